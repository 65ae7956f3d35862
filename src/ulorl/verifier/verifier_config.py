"""The settings of `ulorl verifier train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class VerifierTrainingConfig:
    """How a generative verifier is trained."""

    prompt: str = "short"  # one of `ulorl.rewards.verdict_prompt.SHIPPED`, or a text file
    question_chars: int = 120  # of a longer question only its last characters are shown; 0: all
    chat: Literal["plain", "own"] = "plain"  # plain: the message and nothing else; own: the model's chat template
    max_tokens: int = 256  # longer pairs, verdict included, are skipped
    epochs: float = 1.0
    max_pairs: int = 0  # 0: all
    minutes: float = 0.0  # the training stops after so many minutes; 0: after the epochs
    save_minutes: float = 10.0  # minutes between copies of the unfinished model
    batch: int = 32  # pairs per step
    lr: float = 1e-4  # learning rate of AdamW after the warm-up; it falls linearly to 0
    warmup: float = 0.05  # share of the training in which the learning rate rises
    layers: int = 0  # train only so many of the uppermost layers, without embedding and head; 0: all weights
    lora_rank: int = 0  # train adapters of this rank instead of the weights; 0: off
    bf16: bool = False  # matrix products in bfloat16
    seed: int = 0
