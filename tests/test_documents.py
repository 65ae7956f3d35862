"""Documents, recipes and the Makefile name only files, headings and modules that exist."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from paths import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
COMMENTED = sorted(
    [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run", *(ROOT / "recipes").rglob("*.toml")]
)
PATH = re.compile(r"(?<![\w/.-])(?:src|tests|recipes|docs|\.ci)/[\w./-]*\w/?")
MODULE_FILE = re.compile(r"(?<![\w/.*-])[\w./-]+\.py\b")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
MODULE = re.compile(r"\bulorl(?:\.[a-z_][\w]*)+")
PLACES = (ROOT, ROOT / "src" / "ulorl", ROOT / "tests", ROOT / "docs")


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_there(name: str) -> bool:
    """Whether a dotted name of the package is a module, or an attribute of one."""
    parent, _, last = name.rpartition(".")
    try:
        module = importlib.import_module(parent)
    except ModuleNotFoundError:
        return False
    return hasattr(module, last) or (hasattr(module, "__path__") and importlib.util.find_spec(name) is not None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    dead = []
    for target, anchor in LINK.findall(document.read_text(encoding="utf-8")):
        path = document.parent / target if target else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            dead.append(f"{target}#{anchor}")
    assert not dead


@pytest.mark.parametrize("document", [*DOCUMENTS, *COMMENTED], ids=lambda document: document.name)
def test_named_files_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = {*PATH.findall(text), *(name for name in MODULE_FILE.findall(text) if "/" in name)}
    assert not sorted(name for name in named if not any((place / name).exists() for place in PLACES))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_named_modules_exist(document: Path) -> None:
    names = set(MODULE.findall(document.read_text(encoding="utf-8")))
    assert not sorted(name for name in names if not is_there(name))
