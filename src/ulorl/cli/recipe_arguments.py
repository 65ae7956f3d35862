"""Loads what commands take as RECIPE... [key=value]...; importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from ulorl.config.loading import load
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError


def load_recipes(arguments: Sequence[str]) -> Config:
    """Return the configuration of recipes and overrides; an override has an equals sign. Raises UserError."""
    overrides = [text for text in arguments if "=" in text]
    for text in overrides:
        if text.startswith("="):
            message = f"{text}: an override is key=value, without spaces around the equals sign"
            raise UserError(message, code=ErrorCode.COMMAND_LINE)
    return load([text for text in arguments if "=" not in text], overrides)
