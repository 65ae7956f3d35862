"""Writes docs/cli.md from the commands themselves: `python docs/make_cli.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from ulorl.cli.main import app

HEAD = """# Command line

`ulorl COMMAND --help` prints what this page lists, and `ulorl --version` the version. `ulorl --install-completion`
installs completion for bash, zsh, fish or PowerShell, names of recipes included.

**Arguments of the form `key=value`** are overrides of the [configuration](configuration.md), or settings of the
command. Values are written as in TOML: `optim.lr=1e-4`, `data.keep='["unit"]'`, `model.lora='{rank=16, alpha=32}'`;
text needs no quotes.

**Exit codes**: 0 done; 1 `ulorl reward test` found verdicts that disagree with their labels, `ulorl plan
memory` a run that does not fit, or `ulorl plan rollout` no schedule within the limits; 2 a [recipe, data, a folder or
the command itself is wrong](errors.md); 75 the engine hung in this process, so give the same command again; 130 or 143
interrupted, and everything is saved.

This page is written by `docs/make_cli.py`.
"""


def page() -> str:
    """Return the text of docs/cli.md."""
    commands = dict(_commands(typer.main.get_command(app), "ulorl"))
    first = next(iter(commands))
    links = [
        f"| [`{name}`](#{name.replace(' ', '-')}) | {_first_sentence(one)} |"
        for name, one in commands.items()
        if name != first
    ]
    sections = [_section(name, one) for name, one in commands.items() if name != first]
    return "\n".join([HEAD, "| command | |", "|---|---|", *links, "", *sections])


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield a command and those below it, with their whole names."""
    yield name, command
    for short, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{name} {short}")


def _first_sentence(command: Any) -> str:
    return re.split(r"(?<=\.)\s", _paragraphs(command)[0], maxsplit=1)[0]


def _paragraphs(command: Any) -> list[str]:
    return [" ".join(part.split()) for part in inspect.cleandoc(command.help or "").split("\n\n")]


def _section(name: str, command: Any) -> str:
    """Return the section of one command: its help, with the examples as a block, and its parameters."""
    lines = [f"## {name}", ""]
    examples = [text for text in _paragraphs(command) if text.startswith("ulorl ")]
    for text in _paragraphs(command):
        lines += [] if text in examples else [_linked(text), ""]
    if examples:
        lines += ["```text", *examples, "```", ""]
    rows = [_row(one) for one in command.params if one.name not in ("help", "install_completion", "show_completion")]
    if rows:
        lines += ["| argument or option | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(parameter: Any) -> str:
    option = parameter.param_type_name == "option"
    value = parameter.metavar or parameter.name.upper()
    opts = ", ".join([*parameter.opts, *parameter.secondary_opts])
    name = value if not option else opts if parameter.is_flag else f"{opts} {value}"
    default = "required" if parameter.required and option else _default(parameter)
    meaning = _linked(" ".join((parameter.help or "").split()).replace("|", "\\|"))
    return "| `{}` | {} | {} |".format(name.replace("|", "\\|"), default, meaning)


def _default(parameter: Any) -> str:
    value = parameter.default
    if value in (None, False, (), [], "") or callable(value) or parameter.required:
        return ""
    return f"`{getattr(value, 'value', value)}`"


def _linked(text: str) -> str:
    """Return a text whose names of pages are links: docs/data.md is data.md beside this page."""
    return re.sub(r"(?<![\w/(])docs/([\w-]+\.md)", r"[\1](\1)", text)


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(page(), encoding="utf-8")
