"""Every code block of the documents that can run is run; `document_blocks` has the convention."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest

import ulorl
from document_blocks import SMALL, blocks, run_block
from paths import ROOT
from small_runs import killed_copy

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RUN = [page for page in PAGES if any(not one.reason and one.language != "toml" for one in blocks(page))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the quickstart of two steps, which the pages read, compare, chat with and resume."""
    run_dir = tmp_path_factory.mktemp("quickstart") / "run"
    ulorl.train(ulorl.load(["quickstart"], [*SMALL, "steps=2", f"run.dir={run_dir}"]))
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_blocks_run(page: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("recipes").symlink_to(ROOT / "recipes")
    if page.name == "resume.md":  # its run was stopped
        killed_copy(finished, Path("runs/quickstart"), step=1)
    elif page.name != "tutorial.md":  # which makes it
        for name in ("quickstart", "one_segment"):
            shutil.copytree(finished, f"runs/{name}")
    monkeypatch.syspath_prepend(Path.cwd())
    load = ulorl.load
    monkeypatch.setattr(ulorl, "load", lambda recipes, overrides: load(recipes, [*overrides, *SMALL]))
    for block in blocks(page):
        if not block.reason:
            run_block(block)


def test_the_lines_of_a_run_have_the_documented_keys(finished: Path) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for line in (finished / "metrics.jsonl").read_text().splitlines():
        assert not [key for key in json.loads(line) if f"`{key}`" not in text and not key.startswith("age/")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_toml_blocks_are_toml(page: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            assert tomllib.loads(block.text)
