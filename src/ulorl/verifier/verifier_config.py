"""How a verifier is trained, and the file beside its weights that says how it was asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ulorl.rewards.verdict_prompt import FOLDER_FILE, VerdictPrompt


@dataclass(frozen=True)
class Training:
    """Of `ulorl verifier train`."""

    prompt: str = "short"  # of `ulorl.rewards.verdict_prompt.SHIPPED`, or a file
    question_chars: int = 120  # of longer questions only the end is shown; 0: all
    chat: Literal["plain", "own"] = "plain"  # plain: the message and nothing else; own: the model's chat template
    max_tokens: int = 256  # pairs that take more, verdict included, are left out
    epochs: float = 1.0
    max_pairs: int = 0  # 0: all
    minutes: float = 0.0  # 0: until the epochs are over
    save_minutes: float = 10.0  # between copies of the model as it is
    batch: int = 32  # pairs a step
    lr: float = 1e-4  # of AdamW, after the warm-up; falls linearly to 0
    warmup: float = 0.05  # share of the training in which it rises
    layers: int = 0  # how many of the uppermost layers train, without embedding and head; 0: all weights
    lora_rank: int = 0  # of adapters in place of the weights; 0: none
    bf16: bool = False  # matrix products in bfloat16
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """What training has brought so far."""

    steps: int = 0
    pairs: int = 0  # seen, in all epochs
    tokens: int = 0  # seen, without padding
    minutes: float = 0.0
    loss: float = 0.0  # nats a token of the verdict, mean of the last tenth of the steps
    right: float = 0.0  # share of these steps' pairs whose verdict had more than half of the probability


def write_card(
    folder: Path, prompt: VerdictPrompt, settings: Training, progress: Progress, *, base: str, pairs: dict[str, Any]
) -> None:
    """`verifier.json`: what reward and benchmark need to ask as training did, and what this verifier is made of."""
    card = {
        "prompt": prompt.text,
        "question_chars": prompt.question_chars,
        "chat": True,  # through the tokenizer's chat template, which is saved with it
        "base": base,
        "pairs": pairs,
        "settings": asdict(settings),
        "training": {name: round(value, 4) for name, value in asdict(progress).items()},
        "versions": _versions(("ulorl", "torch", "transformers", "trl")),
    }
    (folder / FOLDER_FILE).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _versions(names: Sequence[str]) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}
