"""Writes docs/configuration.md from the configuration itself: `python docs/make_configuration.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ulorl.config.fields import StrictConfig
from ulorl.config.resumable_keys import may_change
from ulorl.config.tree import Config
from ulorl.config.unions import ByKind, variants_of
from ulorl.warmup.warm_up_config import WarmUpConfig

HEAD = """# Configuration

A run is configured by one or more TOML recipes and by overrides on the command line:
`ulorl train a.toml b.toml key.sub=value`. Recipes are layered from left to right, and overrides come last. A recipe may
also be the name of one of the package (`ulorl train quickstart`), as `ulorl recipes` lists them; a file of that path
comes first. Unknown keys are refused. The defaults are the paper's settings (section 4.1) where the paper gives them.

Some sections have a `kind`, which decides what keys they have. The column "only with" says which kind a key needs; with
another kind it is refused. Where a later recipe or an override chooses another kind, the keys of the earlier kind are
dropped. All overrides of a command count as one layer, so their order does not matter for this.

A key with a ✓ under "on resume" may be changed when a run is resumed.

This page is written by `docs/make_configuration.py`.

| key | only with | default | allowed | on resume | meaning |
|---|---|---|---|---|---|
"""

WARM_UP = """
## Settings of `ulorl tiny make`

`ulorl tiny make TASK OUT key=value...` makes a tiny model of a task by supervised training
([how](own_task.md#make-a-model-of-it)).

| key | default | allowed | meaning |
|---|---|---|---|
"""


class Row(NamedTuple):
    """A line of the table but for its key. Of a key that several kinds share there is one for each kind."""

    default: str
    allowed: str
    meaning: str


def page() -> str:
    """Return the text of docs/configuration.md."""
    warm_up = [
        f"| `{key}` | {row.default} | {row.allowed} | {row.meaning} |" for key, _, row in _rows(WarmUpConfig, "", "")
    ]
    return HEAD + "\n".join(_lines()) + "\n" + WARM_UP + "\n".join(warm_up) + "\n"


def _lines() -> Iterator[str]:
    rows: dict[tuple[str, Row], list[str]] = {}
    for key, kind, row in _rows(Config, "", ""):
        kinds = rows.setdefault((key, row), [])
        kinds += [kind] if kind not in kinds else []
    for (key, row), kinds in rows.items():
        resume = "✓" if may_change(key) else ""
        section = next((kind.partition("=")[0] for kind in kinds if kind), "")
        kind = f"`{section}`: {', '.join(kind.partition('=')[2] for kind in kinds)}" if section else ""
        yield f"| `{key}` | {kind} | {row.default} | {row.allowed} | {resume} | {row.meaning} |"


def _rows(section: type[StrictConfig], prefix: str, kind: str) -> Iterator[tuple[str, str, Row]]:
    """Yield the dotted key, the kind that it belongs to, and the row of each key of a section."""
    for name, field in section.model_fields.items():
        variants = variants_of(field.annotation)
        if name == "kind" and kind:  # one row for the whole union
            continue
        if not variants:
            yield prefix + name, kind, Row(_default(field), _allowed(field), field.description or "")
        elif "" in variants:
            yield from _rows(variants[""], f"{prefix}{name}.", kind)
        else:
            yield from _union(field, f"{prefix}{name}.", kind)


def _union(field: FieldInfo, prefix: str, kind: str) -> Iterator[tuple[str, str, Row]]:
    variants = variants_of(field.annotation)
    meaning = next(mark.description for mark in field.metadata if isinstance(mark, ByKind))
    yield f"{prefix}kind", kind, Row(f"`'{next(iter(variants))}'`", _codes(list(variants)), meaning)
    keys: dict[tuple[str, Row], list[str]] = {}
    for inner, variant in variants.items():
        for key, of_kind, row in _rows(variant, prefix, f"{prefix}kind={inner}"):
            keys.setdefault((key, row), []).append(of_kind)
    for (key, row), kinds in keys.items():
        shared = kinds == [f"{prefix}kind={inner}" for inner in variants]
        yield from ((key, kind if shared else of_kind, row) for of_kind in (kinds[:1] if shared else kinds))


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)  # type: ignore[call-arg]
    if value is PydanticUndefined:
        return "required"
    return f"`{str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, str) else value}`"


def _allowed(field: FieldInfo) -> str:
    choices = [a for a in get_args(field.annotation) if isinstance(a, str)]
    if choices:
        return _codes(choices)
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds: list[Any] = [
        f"{sign} {getattr(rule, key)}" for rule in field.metadata for key, sign in signs.items() if hasattr(rule, key)
    ]
    return " and ".join(bounds)


def _codes(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(page(), encoding="utf-8")
