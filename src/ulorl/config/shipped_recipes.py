"""Finds the recipes of the package by name: those that the wheel contains, or in a clone those of its folder recipes/.

The name of a recipe is its path in that folder without `.toml`: `gsm8k`, `rewards/generative`.
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

SUFFIX = ".toml"


def folder() -> Path:
    """Return the folder of the recipes: in the package where a wheel is installed, else at the root of the clone."""
    inside = Path(__file__).parents[1] / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "recipes"


def names() -> list[str]:
    """Return the names of the recipes, those for a layer above another recipe last."""
    found = [path.relative_to(folder()).with_suffix("").as_posix() for path in folder().rglob("*" + SUFFIX)]
    return sorted(found, key=lambda name: ("/" in name, name))


def files() -> list[str]:
    """Return the paths in the folder of everything in it: the recipes, and what they name, such as prompts."""
    return sorted(path.relative_to(folder()).as_posix() for path in folder().rglob("*.*") if path.is_file())


def find(recipe: str | Path) -> Path:
    """Return the path of a recipe that is given as a path, or by the name of one of the package.

    A file with that path comes first. A path of no file, or of another name, is returned as it is.
    """
    if str(recipe) in names() and not os.path.isfile(recipe):
        return named(str(recipe))
    return Path(recipe)


def shown(recipe: str | Path) -> str:
    """Return what a message calls a recipe: its path as it was given, but the name of one in the package's folder."""
    path = Path(recipe)
    return path.relative_to(folder()).with_suffix("").as_posix() if path.is_relative_to(folder()) else str(recipe)


def named(name: str) -> Path:
    """Return the path of a recipe of the package. Raises UserError when it has none of this name."""
    if name in names():
        return folder() / (name + SUFFIX)
    text = f"{name}: the package has no such recipe; {_meant(name)}it has {', '.join(names())}"
    raise UserError(text, code=ErrorCode.RECIPE_NOT_FOUND)


def hint(path: Path) -> str:
    """Return what a message says of a recipe that is no file: which file, or recipe of the package, may be meant."""
    if os.path.isfile(f"{path}{SUFFIX}"):
        return f"did you mean {path}{SUFFIX}?"
    if near := get_close_matches(path.name, [other.name for other in path.parent.glob("*" + SUFFIX)], 1):
        return f"did you mean {path.parent / near[0]}?"
    if path.stem in names():
        return f"the package has a recipe of this name: give {path.stem} in place of the path"
    place = "" if path.is_absolute() else f"a path begins in {Path.cwd()}, and "
    return f"{_meant(path.stem)}{place}`ulorl recipes` lists the recipes of the package, which go by their names"


def _meant(name: str) -> str:
    near = get_close_matches(name, names(), 1)
    return f"did you mean {near[0]}? " if near else ""


def description(name: str) -> str:
    """Return the first sentence of the comment with which a recipe begins."""
    lines = named(name).read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines[:3] if line.startswith("#"))
    return re.split(r"(?<=\.)\s", comment, maxsplit=1)[0]
