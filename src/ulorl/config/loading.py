"""Reads recipes (TOML files, layered left to right), then `key.sub=value` overrides, into a checked configuration.

Unknown keys and impossible combinations are refused, each with its key. The resolved configuration is saved with a run
as config.json.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, overload

from pydantic import TypeAdapter, ValidationError

from ulorl.config import shipped_recipes
from ulorl.config.fields import Finding, StrictConfig
from ulorl.config.key_messages import findings_of, short_repr
from ulorl.config.layering import add_layer, merged
from ulorl.config.tree import Config, without_other_eval_kinds
from ulorl.config.unions import variants_of
from ulorl.config.upgrade import upgraded
from ulorl.error_codes import ErrorCode
from ulorl.errors import CombinedError, UserError, bad_character

S = TypeVar("S", bound=StrictConfig)
_OVERRIDE = re.compile(r"[a-z_]+(\.[^=/\\*?]+)*=", re.I)


@dataclass(frozen=True)
class _Layer:
    """Changes that belong together: those of one recipe, or all overrides. file: the recipe."""

    changes: Sequence[Any]  # trees, of which only config.json may be no table
    file: str = ""


def load(recipes: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Read recipes from left to right, then `key.sub=value` overrides, into the configuration of a run.

    recipes: paths of files, or names of recipes of the package, such as `quickstart`; a file comes first. Raises
    UserError naming the file or the key.
    """
    return load_class(Config, recipes, overrides)


@overload
def load_class(
    config_class: type[S],
    recipes: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    table: Mapping[str, Any] = ...,
) -> S: ...
@overload
def load_class(
    config_class: object,
    recipes: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    table: Mapping[str, Any] = ...,
) -> Any: ...
def load_class(
    config_class: Any,
    recipes: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    table: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Read recipes and overrides, as `load` does, into another class of configuration, or a union of classes.

    table: plain values, which count as further overrides.
    """
    files = [shipped_recipes.find(recipe) for recipe in recipes]
    layers = [_Layer([_read_toml(file)], str(file)) for file in files]
    layers.append(_Layer([*(parse_override(override) for override in overrides), table]))
    return _checked(
        config_class, layers, " + ".join([*map(shipped_recipes.shown, recipes), *overrides]) or "the configuration"
    )


def load_sections(
    base: Mapping[str, Any],
    recipes: Sequence[str | Path],
    above: Sequence[Mapping[str, Any]],
    overrides: Sequence[str],
    keep: Sequence[str],
) -> Config:
    """Return a configuration for another purpose than the runs that recipes describe: `base`, over it the sections
    `keep` of the recipes, over these the trees `above`, then the overrides.

    base, above: trees of plain values. Raises UserError naming the file or the key.
    """
    layers = [_Layer([base])]
    for file in map(shipped_recipes.find, recipes):
        tree = _read_toml(file)
        layers.append(_Layer([{name: section for name, section in tree.items() if name in keep}], str(file)))
    layers += [_Layer([tree]) for tree in above]
    layers.append(_Layer([parse_override(override) for override in overrides]))
    return _checked(
        Config, layers, " + ".join([*map(shipped_recipes.shown, recipes), *overrides]) or "the configuration"
    )


def build(tree: Mapping[str, Any], source: str = "the configuration") -> Config:
    """Check a tree of plain values. Raises UserError with one part for each wrong key.

    source: what the message calls the tree.
    """
    return _checked(Config, [_Layer([tree])], source)


def load_saved(path: Path) -> Config:
    """Read the resolved configuration that was saved with a run, by this version or an earlier one.

    Raises UserError when it is missing or damaged.
    """
    saved = _read_json(path)
    return _checked(Config, [_Layer([upgraded(saved) if isinstance(saved, dict) else saved], str(path))], str(path))


def with_overrides(saved: Config, overrides: Sequence[str], *, allowed: Sequence[str], purpose: str) -> Config:
    """Return a saved configuration with overrides of the allowed keys.

    allowed: dotted keys; a section allows all its keys. purpose: who may change them, for the message. Raises UserError
    naming the key that may not change, or that has a wrong value.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if not any(key == free or key.startswith(free + ".") for free in allowed):
            raise UserError(
                f"{key}: {purpose} may change only {', '.join(allowed)}; for another run choose another run.dir",
                code=ErrorCode.CONFIG_FIXED_ON_RESUME,
                key=key,
            )
    layers = [_Layer([saved.model_dump()]), _Layer([parse_override(override) for override in overrides])]
    return _checked(Config, layers, " ".join(overrides) or "the saved configuration")


def overrides_among(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that are overrides: they look like `key.sub=value`, and are not names of existing files."""
    return [argument for argument in arguments if _OVERRIDE.match(argument) and not Path(argument).exists()]


def parse_override(text: str) -> dict[str, Any]:
    """Return `a.b=value` as a tree. The value is read as TOML, and as a plain string when it is not TOML."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        message = f"{text!r}: expected key=value, for example optim.lr=3e-6"
        raise UserError(message, code=ErrorCode.COMMAND_LINE, key=key.strip())
    try:
        tree = tomllib.loads(f"value = {value}")
        parsed: Any = tree["value"] if len(tree) == 1 else value  # several lines are a text, not several keys
    except (ValueError, RecursionError):
        parsed = value
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


@overload
def _checked(config_class: type[S], layers: Sequence[_Layer], source: str) -> S: ...
@overload
def _checked(config_class: object, layers: Sequence[_Layer], source: str) -> Any: ...
def _checked(config_class: Any, layers: Sequence[_Layer], source: str) -> Any:
    """Return the configuration that the layers give, laid over each other. Raises UserError for all wrong keys."""
    tree: Mapping[str, Any] = {}
    for layer in layers:
        for change in layer.changes:
            if not isinstance(change, Mapping):
                message = f"{source}: expected a table of keys, found {short_repr(change)}"
                raise UserError(message, code=ErrorCode.CONFIG_BAD_VALUE, file=layer.file)
        tree = _with_layer(config_class, tree, layer.changes)
    found = list(_unusable(tree))
    try:
        if not found:
            return TypeAdapter(config_class).validate_python(tree)
    except ValidationError as error:
        found = findings_of(error, variants_of(config_class))
    raise _error(found, layers, source)


def _with_layer(config_class: Any, below: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    if config_class is Config:
        below = without_other_eval_kinds(below, merged(below, changes))
    return add_layer(variants_of(config_class), below, changes)


def _error(found: Sequence[Finding], layers: Sequence[_Layer], source: str) -> UserError:
    """Return one error for one wrong key, or a combined one that prints a line for each."""
    parts = [
        UserError(f"{source}:\n  {one.line}", code=one.code, file=_file_of(one.key, layers), key=one.key)
        for one in found
    ]
    lines = "\n".join(f"  {one.line}" for one in found)
    return parts[0] if len(parts) == 1 else CombinedError(parts, text=f"{source}:\n{lines}")


def _file_of(key: str, layers: Sequence[_Layer]) -> str:
    """Return the recipe that set a key last, or the nearest table above it; "" for an override."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        for layer in reversed(layers):
            if any(_holds(change, parts[:length]) for change in layer.changes):
                return layer.file
    return layers[0].file if len(layers) == 1 else ""


def _holds(tree: Any, parts: Sequence[str]) -> bool:
    for part in parts:
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        text, code = "not found; give the folder of a run, such as runs/quickstart", ErrorCode.RUN_NOT_FOUND
    except OSError as error:
        text, code = f"cannot be read ({error.strerror}); give the folder of a run", ErrorCode.RUN_NOT_FOUND
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers or brackets without end
        text, code = f"not valid JSON ({error})", ErrorCode.RECIPE_UNREADABLE
    raise UserError(f"{path}: {text}", code=code, file=path)


def _read_toml(path: Path) -> dict[str, Any]:
    code, name = ErrorCode.RECIPE_UNREADABLE, str(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a BOM
    except FileNotFoundError:
        text, code = f"no such recipe; {shipped_recipes.hint(path)}", ErrorCode.RECIPE_NOT_FOUND
    except tomllib.TOMLDecodeError as error:
        text = f"not valid TOML: {error}"
    except UnicodeDecodeError as error:
        text = f"cannot be read as a UTF-8 text file ({error})"
    except OSError as error:
        name, text = name[:300], f"cannot be read as a UTF-8 text file ({error.strerror})"
    except (ValueError, RecursionError) as error:  # a name with a NUL; numbers or brackets without end
        name, text = repr(name), f"cannot be read as TOML ({error})"
    raise UserError(f"{name}: {text}", code=code, file=path)


def _unusable(value: Any, key: str = "") -> Iterator[Finding]:
    """Yield what TOML and the command line can say, but no path, saved configuration or 64-bit counter can hold."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _unusable(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _unusable(inner, f"{key}.{number}")
    elif isinstance(value, str) and (where := bad_character(value)):
        yield Finding(key, f"{where}, found {short_repr(value)}", ErrorCode.CONFIG_BAD_VALUE)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        text = f"expected a number of at most 64 bits, found {short_repr(value)}"
        yield Finding(key, text, ErrorCode.CONFIG_BAD_VALUE)
