"""verifier.json, the file next to a verifier's weights: what the reward needs to ask it as training did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ulorl.rewards.verdict_prompt import FOLDER_FILE, VerdictPrompt
from ulorl.verifier.verifier_config import VerifierTrainingConfig


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of the training of a verifier."""

    steps: int = 0
    pairs: int = 0  # seen, in all epochs
    tokens: int = 0  # seen, without padding
    minutes: float = 0.0
    loss: float = 0.0  # nats per token of the verdict, mean of the last tenth of the steps
    right: float = 0.0  # share of the pairs of these steps whose verdict had more than half of the probability


def write_card(
    folder: Path,
    prompt: VerdictPrompt,
    settings: VerifierTrainingConfig,
    progress: TrainingProgress,
    *,
    base: str,
    pairs: dict[str, Any],
) -> None:
    """Write verifier.json into a model folder: the prompt, and how the verifier was made.

    base: the model that the training started from. pairs: what the training pairs are.
    """
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
    return {name: version(name) for name in names}
