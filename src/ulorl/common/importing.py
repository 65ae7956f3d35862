"""Imports what a user names: an attribute of a module."""

from __future__ import annotations

import importlib
from typing import Any


def imported_attribute(path: str) -> Any:
    """Return what `module:name` or `module:name.inner` names.

    Raises LookupError, with the reason, when the module cannot be imported or has no such attribute.
    """
    module_name, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except SystemExit:  # of a script, when it is imported
        raise LookupError(f"{module_name} ends Python when it is imported") from None
    except Exception as error:
        raise LookupError(
            f"cannot import {module_name} ({type(error).__name__}: {error}); "
            "its folder must be the working folder or on PYTHONPATH"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise LookupError(f"{found.__name__} has no {part}")
        found = getattr(found, part)
    return found
