"""`ulorl chat RUN`: a trained model answers problems that are typed in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ulorl.config.data_config import TaskDataConfig
from ulorl.config.loading import load_saved
from ulorl.data.prompts import PromptFormat, PromptLimits, encode_prompts
from ulorl.data.task_definition import calling
from ulorl.data.task_lookup import find_task
from ulorl.engines.decode import rollout
from ulorl.engines.engine import Engine
from ulorl.engines.factory import make_engine
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards.tasks import TaskReward
from ulorl.rng import Stream, sample_seed
from ulorl.training.build import set_threads
from ulorl.training.specifications import engine_spec, model_source, prompt_format
from ulorl.types import Finish, Problem, Request, Sampling, Tokens


def chat(run_dir: Path, problem: str | None = None) -> None:
    """Answer one problem, or every problem typed until an empty line. Raises UserError when the run has no model."""
    disable_progress_bar()  # of transformers, for loading
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
    task = cfg.data.task if isinstance(cfg.data, TaskDataConfig) and cfg.reward.kind == "task" else ""
    with closing(make_engine(spec, source)) as engine:
        for number, question in enumerate([problem] if problem else _typed()):
            asked = Problem("typed", question, meta={"task": task} if task else {})
            try:
                prompt = _prompt(asked, source.tokenizer, prompt_format(cfg.data), limits)
            except UserError as error:
                if problem:
                    raise
                print(error)
                continue
            seed = sample_seed(cfg.seed, number, Stream.CHAT)
            request = Request(number, prompt, max_tokens, sampling, seed)
            print(_answer(engine, source.tokenizer, request, asked), flush=True)


def _prompt(
    problem: Problem, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, limits: PromptLimits
) -> Tokens:
    (prompt,) = encode_prompts([problem], tokenizer, prompt_format, limits)
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in prompt:
        raise UserError(
            f"{problem.prompt!r} has characters that this model does not know; write one like those in the "
            "samples/ folder of the run",
            code=ErrorCode.PROMPT_UNUSABLE,
        )
    return prompt


def _answer(engine: Engine, tokenizer: PreTrainedTokenizerBase, request: Request, problem: Problem) -> str:
    (segment,) = rollout(engine, [request])
    text = str(tokenizer.decode(segment.tokens.tolist(), skip_special_tokens=True))
    if segment.finish is not Finish.EOS:
        return f"{text}\n[cut after {len(segment)} tokens]"
    return f"{text}\n{_verdict(problem, text)}" if "task" in problem.meta else text


def _verdict(problem: Problem, text: str) -> str:
    """Say whether the problem's task accepts an answer. What is typed need not be a problem of the task."""
    try:
        with calling(find_task(problem.meta["task"]), "check"):
            return "[right]" if TaskReward()(problem, text).reward == 1.0 else "[wrong]"
    except UserError as error:
        return f"[not judged: {error}]"


def _typed() -> Iterator[str]:
    if sys.stdin.isatty():
        print("Type a problem; an empty line ends.")
    for line in sys.stdin:
        if not line.strip():
            return
        yield line.strip()
