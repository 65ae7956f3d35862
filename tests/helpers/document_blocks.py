"""The code blocks of the documents, and how a test runs them.

A `sh` or `python` block is run, unless the line before it is `<!-- not run: REASON -->`, or the page has the line
`<!-- blocks not run: REASON -->`. The blocks of a page run in order, in one folder, as a reader types them: `ulorl` in
this process, everything else by bash. Runs are made small (`SMALL`), because a document shows them at full length. A
block whose first line is a comment with the name of a file is also written to that file.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ulorl.cli.main import main

_BLOCK = re.compile(
    r"^(?:<!-- not run: ([^\n]+) -->\n)?```(sh|python|toml)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL
)
_PAGE = re.compile(r"^<!-- blocks not run: .+ -->$", flags=re.MULTILINE)
_FILE = re.compile(r"# ([\w/]+\.(?:py|toml))\n")

SMALL = [
    "steps=1", "rollout.prompts=2", "rollout.group=2", "eval.problems=2", "eval.every=0", "run.checkpoint_every=1",
    "model.threads=1", "log.progress=false", "log.report=false",
]  # fmt: skip
_ENDLESS = (["watch"], ["verifier", "serve"])
_RESUMED = ["steps=3", "log.report=false"]
_EVALUATED = ["eval.problems=2", "eval.samples=2", "model.threads=1"]
_SCRIPT = {"max_steps=20": "max_steps=1", "gradient_accumulation_steps=4": "gradient_accumulation_steps=1"}
_MADE = ["steps=2", "batch_tokens=256", "eval_problems=2", "eval_tokens=8"]


@dataclass(frozen=True)
class Block:
    """A code block. reason: why it is not run, "" for one that is."""

    line: int
    language: str
    text: str
    reason: str

    @property
    def file(self) -> str:
        """The file that the block is the content of; "" for none."""
        found = _FILE.match(self.text)
        return found[1] if found else ""


def blocks(page: Path) -> list[Block]:
    """Return the shell, Python and TOML blocks of a page."""
    text = page.read_text(encoding="utf-8")
    whole = "as its page says" if _PAGE.search(text) else ""
    return [
        Block(text[: found.start(2)].count("\n") + 1, found[2], found[3], found[1] or whole)
        for found in _BLOCK.finditer(text)
    ]


def run_block(block: Block) -> None:
    """Run a block in the working folder. Raises what it raises, and CalledProcessError when a command fails."""
    if block.file:
        path = Path(block.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
    if block.language == "python":
        text = re.sub("|".join(_SCRIPT), lambda found: _SCRIPT[found[0]], block.text)
        exec(compile(text, f"line {block.line}", "exec"), {"__name__": "__main__"})
    elif block.language == "sh":
        for command in _commands(block.text):
            if command.startswith("ulorl "):
                _ulorl(shlex.split(command, comments=True)[1:])
            else:
                subprocess.run(["bash", "-e", "-c", command], check=True)


def _commands(text: str) -> list[str]:
    """Return each `ulorl` command, and what is between two of them as one script: a here-document has several lines."""
    commands = [""]
    for line in text.replace("\\\n", " ").splitlines(keepends=True):
        if line.startswith("ulorl "):
            commands += [line, ""]
        else:
            commands[-1] += line
    return [command for command in commands if command.strip()]


def _ulorl(arguments: list[str]) -> None:
    assert not any(arguments[: len(words)] == words for words in _ENDLESS), f"never ends, mark its block: {arguments}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ulorl", *_small(arguments)])
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise subprocess.CalledProcessError(int(end.code), shlex.join(arguments)) from end


def _small(arguments: list[str]) -> list[str]:
    """Return the arguments with what makes the command short; the last of two values of a key counts."""
    changes = {
        ("train", "--resume"): _RESUMED,
        ("train",): SMALL,
        ("quickstart",): SMALL,
        ("eval",): _EVALUATED,
        ("tiny", "make"): _MADE,
        ("plan", "rollout"): ["--steps", "8"],
    }
    found = next((more for words, more in changes.items() if tuple(arguments[: len(words)]) == words), [])
    keys = {change.partition("=")[0] for change in found}
    given = {one.partition("=")[0] for one in arguments}
    added = [change for change in found if found is not _RESUMED or change.partition("=")[0] in given | {"log.report"}]
    return [one for one in arguments if one.partition("=")[0] not in keys] + added
