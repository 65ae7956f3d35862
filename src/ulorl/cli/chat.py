"""`ulorl chat RUN`: a trained model answers problems that are typed in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ulorl.config.loading import load_saved
from ulorl.data.prompts import PromptFormat, PromptLimits, encode_prompts
from ulorl.engines.decode import rollout
from ulorl.engines.engine import Engine
from ulorl.engines.factory import make_engine
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rng import Stream, sample_seed
from ulorl.training.build import set_threads
from ulorl.training.specifications import engine_spec, model_source, prompt_format
from ulorl.types import Finish, Problem, Request, Sampling, Tokens


def chat(run_dir: Path, problem: str | None = None) -> None:
    """Answer one problem, or every problem typed until an empty line. Raises UserError when the run has no model."""
    cfg = load_saved(run_dir / "config.json")
    folder = run_dir / "model"
    if not folder.is_dir():
        raise UserError(
            f"{run_dir}: holds no trained model yet; it is saved when the run ends",
            code=ErrorCode.RUN_NO_MODEL,
            file=run_dir,
        )
    source = model_source(cfg, str(folder))
    set_threads(cfg.model.threads)
    max_tokens = cfg.eval.max_tokens or cfg.rollout.max_tokens
    limits = PromptLimits(cfg.data.max_prompt_tokens, source.context_length or sys.maxsize, max_tokens)
    sampling = Sampling(cfg.eval.temperature, cfg.eval.top_p, cfg.eval.top_k)
    spec = engine_spec(cfg, longest=cfg.data.max_prompt_tokens + max_tokens)
    with closing(make_engine(spec, source)) as engine:
        for number, question in enumerate([problem] if problem else _typed()):
            try:
                prompt = _prompt(question, source.tokenizer, prompt_format(cfg.data), limits)
            except UserError as error:
                if problem:
                    raise
                print(error)
                continue
            seed = sample_seed(cfg.seed, number, Stream.CHAT)
            request = Request(number, prompt, max_tokens, sampling, seed)
            print(_answer(engine, source.tokenizer, request), flush=True)


def _prompt(
    question: str, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, limits: PromptLimits
) -> Tokens:
    (prompt,) = encode_prompts([Problem("typed", question)], tokenizer, prompt_format, limits)
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in prompt:
        raise UserError(
            f"{question!r} has characters that this model does not know; its problems look like the recipe's",
            code=ErrorCode.PROMPT_UNUSABLE,
        )
    return prompt


def _answer(engine: Engine, tokenizer: PreTrainedTokenizerBase, request: Request) -> str:
    (segment,) = rollout(engine, [request])
    text = str(tokenizer.decode(segment.tokens.tolist(), skip_special_tokens=True))
    return text if segment.finish is Finish.EOS else f"{text}\n[cut after {len(segment)} tokens]"


def _typed() -> Iterator[str]:
    if sys.stdin.isatty():
        print("Type a problem; an empty line ends.")
    for line in sys.stdin:
        if not line.strip():
            return
        yield line.strip()
