"""docs/cli.md is made from the commands."""

from __future__ import annotations

import runpy

from paths import ROOT


def test_the_page_is_made_from_the_commands() -> None:
    maker = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == maker["page"](), "run docs/make_cli.py"
    assert "\n## ulorl train\n" in page
    assert "| `--resume RUN` |" in page
