"""UloRL: reinforcement learning for ultra-long reasoning (arXiv 2507.19766).

    import ulorl

    config = ulorl.load(["recipes/quickstart.toml"], ["steps=20"])
    result = ulorl.train(config)
    print(result.before.accuracy, result.after.accuracy)

The objective alone is in `ulorl.objective`, as pure functions of tensors. Importing this module imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ulorl.config.loading import build, load
from ulorl.config.tree import Config
from ulorl.errors import UserError

if TYPE_CHECKING:
    from ulorl.training.run import Result, resume, train

__version__ = "0.1.0"
__all__ = ["Config", "Result", "UserError", "build", "load", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name in ("train", "resume", "Result"):  # these need torch
        from ulorl.training import run

        return getattr(run, name)
    raise AttributeError(f"module 'ulorl' has no attribute {name!r}")
