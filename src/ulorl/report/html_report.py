"""Writes report.html: one page about a run, or about several on one another, that loads nothing from the network.

The same run folders give the same bytes, at most `LIMIT` of them. Outputs, configuration and metrics are untrusted
text: they reach the page as JSON in which no tag can begin, and its script shows them as text only. The page's content
security policy admits the scripts of the page by their hashes, and no other.
"""

from __future__ import annotations

import base64
import hashlib
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
from ulorl.report.page_json import as_json
from ulorl.report.run_data import run_data, short_names
from ulorl.report.sample_choice import STEPS, ReadSamples, choose, read_some
from ulorl.runs.saved_run import SavedRun, read_run

REPORT = "report.html"
LIMIT = 3_000_000  # bytes of the page
SAMPLES_LIMIT = 1_200_000  # bytes of samples, of all runs together
SAMPLES_SHARE = 0.1  # of the page is for samples at least: rows and timelines are cut before
VALUES = 80_000  # of all metrics and runs together that are shown; a metric has no fewer than `LEAST_ROWS`, if they fit
LEAST_ROWS = 40
CUTS = (1, 2, 4, 8, 16, 32)  # by which rows and timelines are divided until the page fits
_SCRIPTS = ("elements", "steps", "charts", "toolbar", "timeline", "tokens", "samples", "tables", "live", "main")


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of runs, finished or not, and return its path. out: report.html in the folder of the first run by
    default. Raises UserError for what is not a run, when a file of a run is damaged, for another file type, and for
    more runs than fit."""
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


def render(runs: Sequence[SavedRun], limit: int = LIMIT) -> str:
    """Return the page as text, of at most `limit` bytes. Raises UserError when a file of a run is damaged, and for more
    runs than fit."""
    for cut in CUTS:
        rows = max(2, rows_shown(runs) // cut)
        found = [read_some(run, min(STEPS, rows // 2)) for run in runs]
        data = page_data(runs, [run_data(run, of, rows, cut) for run, of in zip(runs, found, strict=True)])
        left = limit - len(html(data).encode())
        if left >= (SAMPLES_SHARE * limit if cut < CUTS[-1] else 0):
            return html(_with_samples(data, found, min(left, SAMPLES_LIMIT)))
    message = (
        f"the page of {len(runs)} runs is over its limit of {limit:,} bytes without any sample: give fewer runs, or "
        "runs with a smaller config.json and environment.json"
    )
    raise UserError(message, code=ErrorCode.COMMAND_LINE)


def _with_samples(data: dict[str, Any], found: Sequence[ReadSamples], limit: int) -> dict[str, Any]:
    runs = zip(data["runs"], found, strict=True)
    return data | {"runs": [run | {"samples": choose(samples, limit // len(found))} for run, samples in runs]}


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
        licences=_page_file("echarts.licences.txt"),
        data=Markup(as_json(data)),
        **{name: Markup(text) for name, text in scripts.items()},
    )


@cache
def library() -> str:
    """Return the script of the chart library."""
    return _page_file("echarts.min.js")


def _page_file(name: str) -> str:
    return files("ulorl.report").joinpath("page", name).read_text(encoding="utf-8")


def _hashed(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
