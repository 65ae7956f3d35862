"""Writes report.html: one page about a run, or about several on one another, that loads nothing from the network.

The same run folders give the same bytes, at most `LIMIT` of them. Outputs, configuration and metrics are untrusted
text: they reach the page as JSON in which no tag can begin, and its script shows them as text only. The page's content
security policy admits the scripts of the page by their hashes, and no other.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ulorl.common import atomic_files
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.report.arms import arms
from ulorl.report.figures import FIGURES
from ulorl.report.run_data import run_data, short_names
from ulorl.report.sample_choice import choose, read_some
from ulorl.runs.saved_run import SavedRun, read_run

REPORT = "report.html"
LIMIT = 3_000_000  # bytes of the page
SAMPLES_LIMIT = 1_200_000  # bytes of samples, of all runs together
VALUES = 80_000  # of all metrics and runs together that are shown; a metric has no fewer than `LEAST_ROWS`
LEAST_ROWS = 40
_SCRIPTS = ("elements", "steps", "charts", "toolbar", "timeline", "tokens", "samples", "tables", "live", "main")
_RESERVE = 2000  # bytes for what is written when all else is known


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of runs, finished or not, and return its path. out: report.html in the folder of the first run by
    default. Raises UserError for what is not a run, when a file of a run is damaged, and for another file type."""
    if not run_dirs:
        raise UserError("give the folder of at least one run", code=ErrorCode.COMMAND_LINE)
    path = out or Path(run_dirs[0]) / REPORT
    if path.suffix != ".html":
        message = f"{path}: the name of a page ends in .html"
        raise UserError(message, code=ErrorCode.COMMAND_LINE, key="--out", file=path)
    page = render([read_run(Path(run_dir)) for run_dir in run_dirs])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_text(path, page)
    return path


def render(runs: Sequence[SavedRun]) -> str:
    """Return the page as text. Raises UserError when a file of a run is damaged."""
    found = [read_some(run) for run in runs]
    data = page_data(runs, [run_data(run, samples, rows_shown(runs)) for run, samples in zip(runs, found, strict=True)])
    left = LIMIT - len(html(data).encode()) - _RESERVE
    for samples, shown in zip(found, data["runs"], strict=True):
        shown["samples"] = choose(samples, max(0, min(left, SAMPLES_LIMIT)) // len(runs))
    return html(data)


def rows_shown(runs: Sequence[SavedRun]) -> int:
    """Return how many steps of each run are shown, about, so that all values together are about `VALUES`."""
    metrics = sum(len({name for one in run.metrics[:1] + run.metrics[-1:] for name in one}) for run in runs)
    return max(LEAST_ROWS, VALUES // max(1, metrics))


def page_data(runs: Sequence[SavedRun], shown: Sequence[dict[str, Any]], *, live: bool = False) -> dict[str, Any]:
    """Return all that the page shows as plain values. shown: of each run, as `run_data` returns it."""
    names = short_names([run.dir for run in runs])
    places = {id(run): place for place, run in enumerate(runs)}
    found = arms(runs)
    several = len(found) > 1
    return {
        "runs": [{"name": name, **one} for name, one in zip(names, shown, strict=True)],
        "arms": [
            {
                "label": arm.label if several or len(runs) > 1 else names[0],
                "runs": [places[id(run)] for run in arm.runs],
            }
            for arm in found
        ],
        "figures": [asdict(figure) for figure in FIGURES],
        "live": live,
    }


def html(data: Mapping[str, Any]) -> str:
    """Return the page with its data. `live`: it asks the server that sent it for what is new."""
    scripts = {"library": library(), "script": "\n".join(_page_file(f"{name}.js") for name in _SCRIPTS)}
    policy = [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        f"script-src {' '.join(_hashed(text) for text in scripts.values())}",
        f"connect-src '{'self' if data['live'] else 'none'}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    environment = Environment(loader=PackageLoader("ulorl", "report/page"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("template.html").render(
        title=" · ".join(run["name"] for run in data["runs"]),
        policy=Markup("; ".join(policy)),
        style=Markup(_page_file("report.css")),
        data=Markup(as_json(data)),
        **{name: Markup(text) for name, text in scripts.items()},
    )


def as_json(data: Any) -> str:
    """Return JSON that can stand in a script element: no tag, comment or entity can begin in it. Halves of a character
    that UTF-8 cannot express become question marks."""
    text = (
        json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace").decode()
    )
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@cache
def library() -> str:
    """Return the script of the chart library."""
    return _page_file("echarts.min.js")


def _page_file(name: str) -> str:
    return files("ulorl.report").joinpath("page", name).read_text(encoding="utf-8")


def _hashed(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
