"""What a run is given: reward, problems, tokenizer and prompts, checked before any model is loaded."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ulorl import config
from ulorl.config import Config
from ulorl.data.problems import load_problems
from ulorl.data.prompts import encode_prompts
from ulorl.engines.make import check_engine, pick_device
from ulorl.errors import UserError
from ulorl.learner.attention import require_attention
from ulorl.learner.lora import require_peft
from ulorl.learner.model import context_length, load_config, load_tokenizer
from ulorl.probe import PROBE_TOKENS
from ulorl.rewards import make_reward
from ulorl.rewards.scorer import Scorer
from ulorl.runlog import require_trackers
from ulorl.types import Problem, Tokens

Prompted = tuple[Problem, Tokens]


@dataclass(frozen=True)
class Inputs:
    """What is checked before any model is loaded."""

    tokenizer: PreTrainedTokenizerBase
    problems: Sequence[Prompted]
    held_out: Sequence[Prompted]
    scorer: Scorer

    @property
    def fingerprint(self) -> str:
        """Of the training problems and their order: what a data cursor means depends on it."""
        return hashlib.sha256("\n".join(problem.id for problem, _ in self.problems).encode()).hexdigest()[:16]

    def longest(self, cfg: Config) -> int:
        """Tokens of the longest prompt with the longest output that a run or an evaluation can ask for."""
        rollout = max(len(prompt) for _, prompt in self.problems) + max(cfg.rollout.max_tokens, PROBE_TOKENS)
        held_out = max((len(prompt) for _, prompt in self.held_out), default=0)
        return max(rollout, held_out + (cfg.eval.max_tokens or cfg.rollout.max_tokens))


def load_inputs(cfg: Config, source: str | None = None) -> Inputs:
    """Reward, problems, tokenizer and prompts: everything a user can get wrong, checked without loading a model.

    source: the folder whose tokenizer and config.json count, when it is not `model.path` (a checkpoint's)."""
    source, trust = source or cfg.model.path, cfg.model.trust_remote_code
    if cfg.model.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"model.device={cfg.model.device}: torch finds no CUDA device here; use auto or cpu")
    require_attention(cfg.model.attention, pick_device(cfg.model.device))
    disable_progress_bar()  # transformers' own, of loading and saving; ours are the run's
    require_trackers(cfg.log)
    check_engine(cfg.engine)
    require_peft(cfg.model.lora)
    reward = make_reward(cfg.reward.kind, cfg.reward.function)
    problems = load_problems(cfg.data)
    held_out = load_problems(cfg.eval_data(), held_out=True)[: cfg.eval.problems] if cfg.eval.data else []
    tokenizer = load_tokenizer(source, trust_remote_code=trust)
    context = context_length(load_config(source, trust_remote_code=trust, rope=cfg.model.rope))
    prompted = _prompted(problems, tokenizer, cfg.data, context, cfg.rollout.max_tokens)
    kept_apart = {problem.prompt for problem in held_out}
    return Inputs(
        tokenizer,
        _without(prompted, kept_apart),
        _prompted(held_out, tokenizer, cfg.eval_data(), context, cfg.eval.max_tokens or cfg.rollout.max_tokens),
        Scorer(reward, tokenizer),
    )


def _prompted(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    data: config.Data,
    context: int | None,
    max_tokens: int,
) -> list[Prompted]:
    prompts = encode_prompts(
        problems,
        tokenizer,
        template=data.template,
        system=data.system,
        chat=data.chat,
        max_prompt_tokens=data.max_prompt_tokens,
        context=context or sys.maxsize,  # a model that names no limit
        max_tokens=max_tokens,
    )
    return list(zip(problems, prompts, strict=True))


def _without(prompted: Sequence[Prompted], kept_apart: set[str]) -> list[Prompted]:
    """Problems that are not held out. Raises UserError when none is left."""
    left = [pair for pair in prompted if pair[0].prompt not in kept_apart]
    if not left:
        raise UserError(
            "eval.data: every training problem is also a held-out problem; give eval.data another path, split or seed"
        )
    return left
