"""What the tests of the report in a browser share: when they run, what a page says, and how a control is set."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from browser import CHROMIUM, Page

IN_A_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: make setup-browser"),
]


def legend(page: Page) -> dict[tuple[str, int], tuple[int | None, float | None, str]]:
    """Return step, value and text of each curve as the page says them, by metric and place of the run."""
    found = page.run(
        "[...document.querySelectorAll('.legend [data-metric]')].map(({dataset: d, textContent}) => [d.metric, "
        "Number(d.run), d.step ? Number(d.step) : null, d.value ? Number(d.value) : null, textContent])"
    )
    return {(metric, run): (step, value, text) for metric, run, step, value, text in found}


def set_control(page: Page, selector: str, value: str, event: str = "change") -> None:
    """Set a control to a value, as a reader does."""
    page.run(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
        f" e.dispatchEvent(new Event({json.dumps(event)})); }})()"
    )


def newest(metrics: list[dict[str, Any]], name: str, step: int) -> tuple[int | None, float | None]:
    """Return step and value of the newest value of a metric up to a step."""
    known = [one for one in metrics if one["step"] <= step and one.get(name) is not None]
    return (known[-1]["step"], known[-1][name]) if known else (None, None)


def axe_violations(page: Page) -> list[Any]:
    """Return what axe-core finds: it checks names, roles, contrast and order of headings. Skips the test where its
    package is not installed."""
    spec = importlib.util.find_spec("axe_core_python")
    if not spec or not spec.submodule_search_locations:
        pytest.skip("axe-core-python is not installed; it is in the dependency group dev")
    page.run((Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8") + ";0")
    return list(page.run("axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 200))]))"))
