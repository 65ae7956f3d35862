"""Documents, recipes and the Makefile name only files, headings, modules and configuration keys that exist."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from paths import ROOT
from ulorl.config import shipped_recipes
from ulorl.config.loading import load

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
COMMENTED = sorted(
    [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run", *(ROOT / "recipes").rglob("*.toml")]
)
PATH = re.compile(r"(?<![\w/.-])(?:src|tests|recipes|docs|\.ci)/[\w./-]*\w/?")
MODULE_FILE = re.compile(r"(?<![\w/.*-])[\w./-]+\.py\b")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
MODULE = re.compile(r"\bulorl(?:\.[a-z_][\w]*)+")
IMPORT = re.compile(r"^from (ulorl[\w.]*) import ([\w, ]+)", flags=re.MULTILINE)
COMMAND = re.compile(r"^\s*(?:\.venv/bin/)?ulorl (?:train|check) ([^\n`]*)", flags=re.MULTILINE)
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
def test_links_have_targets(document: Path) -> None:
    dead = []
    for target, anchor in LINK.findall(document.read_text(encoding="utf-8")):
        path = document.parent / target if target else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            dead.append(f"{target}#{anchor}")
    assert not dead


def test_the_site_has_the_targets_of_its_pages() -> None:
    """`make docs` fails otherwise: the site has the pages of docs/, and files of other kinds, but no folders."""
    targets = {
        (page.name, target)
        for page in (ROOT / "docs").glob("*.md")
        for target, _ in LINK.findall(page.read_text(encoding="utf-8"))
        if target.startswith("../")
    }
    assert not [(page, at) for page, at in targets if at.endswith(".md") or (ROOT / "docs" / at).is_dir()]


def test_every_page_is_in_the_index() -> None:
    """The navigation of the site is made from the links of index.md."""
    linked = {target for target, _ in LINK.findall((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - linked == {"index.md"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_row_belongs_to_a_table_with_a_header(document: Path) -> None:
    lines = ["", *document.read_text(encoding="utf-8").splitlines(), ""]
    first = [i for i in range(1, len(lines)) if lines[i].startswith("|") and not lines[i - 1].startswith("|")]
    assert not [lines[i] for i in first if not re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", lines[i + 1])]


@pytest.mark.parametrize("document", [*DOCUMENTS, *COMMENTED], ids=lambda document: document.name)
def test_named_files_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = {*PATH.findall(text), *(name for name in MODULE_FILE.findall(text) if "/" in name)}
    assert not sorted(name for name in named if not any((place / name).exists() for place in PLACES))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_named_modules_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    imported = {f"{module}.{name}" for module, names in IMPORT.findall(text) for name in re.findall(r"\w+", names)}
    assert not sorted(name for name in {*MODULE.findall(text), *imported} if not is_there(name))


@pytest.mark.parametrize("document", [*DOCUMENTS, *COMMENTED], ids=lambda document: document.name)
def test_recipes_and_overrides_of_commands_load(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = re.sub(r"^# ?", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    for command in COMMAND.findall(text):
        words = shlex.split(re.sub(r"\$\w+", "off", command.replace("$seed", "0")), comments=True)
        recipes = [word for word in words if word.startswith("recipes/") or word in shipped_recipes.names()]
        if recipes:
            load(recipes, [word for word in words if "=" in word and not word.startswith("-")])
