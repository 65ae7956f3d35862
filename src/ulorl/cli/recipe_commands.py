"""`ulorl recipes`: the recipes of the package. Importing this module imports no torch."""

from __future__ import annotations

import glob
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ulorl.common import atomic_files
from ulorl.config import shipped_recipes
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

app = typer.Typer(
    help="List the recipes of the package, and copy them to change them.",
    epilog="`ulorl train NAME` runs a recipe of the package, unless a file of that name is there.",
    invoke_without_command=True,
)
_INDENT = 22  # columns of the names


def complete_recipe(incomplete: str) -> list[str]:
    """Return the names that continue what was typed; none when files do, which the shell completes itself."""
    if incomplete and glob.glob(glob.escape(incomplete) + "*"):
        return []
    return _beginning(shipped_recipes.names(), incomplete)


def _complete_file(incomplete: str) -> list[str]:
    return _beginning([*shipped_recipes.names(), *_other_files()], incomplete)


def _beginning(names: Sequence[str], text: str) -> list[str]:
    return [name for name in names if name.startswith(text)]


def _other_files() -> list[str]:
    return [name for name in shipped_recipes.files() if not name.endswith(shipped_recipes.SUFFIX)]


@app.callback()
def recipes(context: typer.Context) -> None:
    """List the recipes of the package, each with its first sentence; `ulorl recipes copy` copies them."""
    if context.invoked_subcommand:
        return
    width = max(40, shutil.get_terminal_size().columns)
    for name in shipped_recipes.names():
        head, below = name.ljust(_INDENT), " " * _INDENT
        print(textwrap.fill(shipped_recipes.description(name), width, initial_indent=head, subsequent_indent=below))


@app.command()
def copy(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="as `ulorl recipes` lists them; without names: all, and the prompts that they name",
            autocompletion=_complete_file,
        ),
    ] = None,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="the folder to copy them to")] = Path("recipes"),
) -> None:
    """Copy recipes of the package, to read and change them. A file that is there is never replaced.

    ulorl recipes copy gsm8k

    ulorl recipes copy --to mine
    """
    found = [_file(name) for name in names] if names else shipped_recipes.files()
    for file in found:
        if (to / file).exists():
            message = f"{to / file} is there already; remove it, or give another folder with --to"
            raise UserError(message, code=ErrorCode.OUTPUT_EXISTS, file=to / file)
    for file in found:
        with atomic_files.writing(to / file, lambda: "choose another folder with --to"):
            (to / file).parent.mkdir(parents=True, exist_ok=True)
            atomic_files.write_text(to / file, (shipped_recipes.folder() / file).read_text(encoding="utf-8"))
        print(to / file)


def _file(name: str) -> str:
    """Return the path of a recipe, or of a file that recipes name, in the folder of recipes. Raises UserError."""
    if name in _other_files():
        return name
    return shipped_recipes.named(name).relative_to(shipped_recipes.folder()).as_posix()
