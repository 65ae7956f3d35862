"""Reads recipes (TOML files, layered left to right), then `key.sub=value` overrides, into a checked configuration.

Unknown keys and impossible combinations are refused with the key's name. The resolved tree is saved with the run as
config.json.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ulorl.config.fields import StrictConfig
from ulorl.config.key_messages import explain, short_repr
from ulorl.config.tree import Config
from ulorl.errors import UserError, bad_character

S = TypeVar("S", bound=StrictConfig)


_OVERRIDE = re.compile(r"[a-z_]+(\.[^=/\\*?]+)*=", re.I)


def overrides_among(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that are `key.sub=value`: such ones that name no file that exists."""
    return [argument for argument in arguments if _OVERRIDE.match(argument) and not Path(argument).exists()]


def load(recipes: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Read recipes left to right, then `key.sub=value` overrides. Raises UserError naming the file or the key."""
    return load_as(Config, recipes, overrides)


def load_as(section: type[S], recipes: Sequence[str | Path], overrides: Sequence[str] = ()) -> S:
    """As `load`, for another tree than that of a run."""
    tree: dict[str, Any] = {}
    for recipe in recipes:
        tree = _layered(tree, _read_toml(Path(recipe)))
    for override in overrides:
        tree = _layered(tree, parse_override(override))
    return _checked(section, tree, " + ".join([*map(str, recipes), *overrides]) or "the configuration")


def build(tree: Mapping[str, Any], source: str = "the configuration") -> Config:
    """Check a tree of plain values. Raises UserError with a line for each wrong key."""
    return _checked(Config, tree, source)


def _checked(section: type[S], tree: Mapping[str, Any], source: str) -> S:
    if not isinstance(tree, Mapping):
        raise UserError(f"{source}: expected a table of keys, found {short_repr(tree)}")
    lines = list(_unusable(tree))
    try:
        if not lines:
            return section.model_validate(tree)
    except ValidationError as error:
        lines = [line for e in error.errors() for line in explain(dict(e), section=section).splitlines()]
    raise UserError(f"{source}:\n" + "\n".join(f"  {line}" for line in lines))


def overridden(saved: Config, overrides: Sequence[str], *, may_change: Sequence[str]) -> Config:
    """A saved configuration with overrides. Raises UserError naming the keys that a resumed run may not change."""
    tree = saved.model_dump()
    for override in overrides:
        key = override.partition("=")[0].strip()
        if not any(key == free or key.startswith(free + ".") for free in may_change):
            raise UserError(
                f"{key}: a resumed run may change {', '.join(may_change)} only; for another run give another run.dir"
            )
        tree = _layered(tree, parse_override(override))
    return build(tree, " ".join(overrides) or "the saved configuration")


def from_json(path: Path) -> Config:
    """The resolved configuration saved with a run. Raises UserError when it is missing or damaged."""
    try:
        return build(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; a run folder holds its config.json") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the folder of a run") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers or brackets without end
        raise UserError(f"{path}: not valid JSON ({error})") from None


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=value` as a tree. The value is read as TOML, and as a plain string when it is not TOML."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"{text!r}: expected key=value, for example optim.lr=3e-6")
    try:
        tree = tomllib.loads(f"value = {value}")
        parsed: Any = tree["value"] if len(tree) == 1 else value  # several lines are a text, not several keys
    except (ValueError, RecursionError):
        parsed = value
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a BOM
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; recipes/ holds the ones that come with the project") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as a UTF-8 text file ({error})") from None
    except OSError as error:
        raise UserError(f"{str(path)[:300]}: cannot be read as a UTF-8 text file ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # a name with a NUL; numbers or brackets without end
        raise UserError(f"{str(path)!r}: cannot be read as TOML ({error})") from None


def _layered(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping) and value  # an empty table replaces
        merged[key] = _layered(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _unusable(value: Any, key: str = "") -> Iterator[str]:
    """What TOML and the command line can say, but no path, no saved configuration and no 64-bit counter can hold."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _unusable(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _unusable(inner, f"{key}.{number}")
    elif isinstance(value, str) and (where := bad_character(value)):
        yield f"{key}: {where}, found {short_repr(value)}"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield f"{key}: expected a number of at most 64 bits, found {short_repr(value)}"
