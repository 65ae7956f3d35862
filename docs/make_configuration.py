"""Writes docs/configuration.md from the configuration itself: `python docs/make_configuration.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ulorl.config.tree import Config

HEAD = """# Configuration

Every key of a recipe, its default and what it means. Recipes are TOML; `ulorl train a.toml b.toml key.sub=value` lays
them over each other from left to right. Unknown keys are refused. The defaults are the paper's settings (section 4.1)
where it names them. This page is written by `docs/make_configuration.py` from `src/ulorl/config.py` and `sections/`.

| key | default | allowed | meaning |
|---|---|---|---|
"""


def page() -> str:
    return HEAD + "\n".join(_rows(Config, "")) + "\n"


def _rows(section: type[BaseModel], prefix: str) -> list[str]:
    rows = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += _rows(kind, f"{prefix}{name}.")
        else:
            cells = (f"`{prefix}{name}`", _default(field), _allowed(field), field.description or "")
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)  # type: ignore[call-arg]
    if value is PydanticUndefined:
        return "required"
    return f"`{str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else value}`"


def _allowed(field: FieldInfo) -> str:
    choices = [a for a in get_args(field.annotation) if isinstance(a, str)]
    if choices:
        return ", ".join(f"`{c}`" for c in choices)
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds: list[Any] = [
        f"{sign} {getattr(rule, key)}" for rule in field.metadata for key, sign in signs.items() if hasattr(rule, key)
    ]
    return " and ".join(bounds)


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(page(), encoding="utf-8")
