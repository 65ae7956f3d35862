"""UloRL: reinforcement learning for ultra-long reasoning (arXiv 2507.19766).

    import ulorl

    config = ulorl.load(["quickstart"], ["steps=20"])
    result = ulorl.train(config)
    print(result.before.accuracy, result.after.accuracy)

The objective alone is in `ulorl.objective`, as pure functions of tensors. Importing this module imports nothing else:
each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ulorl.config.loading import build, load
    from ulorl.config.tree import Config
    from ulorl.errors import UserError
    from ulorl.training.run import Result, resume, train

__version__ = "0.1.0"
__all__ = ["Config", "Result", "UserError", "build", "load", "resume", "train"]


_MODULES = {
    "ulorl.config.loading": ("build", "load"),
    "ulorl.config.tree": ("Config",),
    "ulorl.errors": ("UserError",),
    "ulorl.training.run": ("Result", "resume", "train"),  # imports torch
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'ulorl' has no attribute {name!r}")
