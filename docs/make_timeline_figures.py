"""Draws docs/figures/timeline_segment.svg and timeline_refill.svg: the report's "Samples over time" of two short runs.

They are runs of recipes/countdown.toml. `python docs/make_timeline_figures.py` takes a minute on two CPU cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

import ulorl
from ulorl.common.plot_style import STYLE
from ulorl.report.timeline_data import timeline_data
from ulorl.runs.saved_run import read_run

DOCS = Path(__file__).parent
OVERRIDES = [
    "steps=6", "rollout.prompts=6", "rollout.group=4", "rollout.max_tokens=256", "rollout.segments=4",
    "engine.slots=64", "eval.problems=2", "eval.samples=1", "eval.every=0", "log.progress=false", "model.threads=1",
]  # fmt: skip
SCHEDULES = {"segment": [], "refill": ["rollout.schedule.kind=refill", "rollout.schedule.factor=2"]}
VERSIONS = ("#4b86e0", "#de8a3d", "#35a372", "#9a6ad6", "#c3a113", "#dd6f86")  # as in the report


def main() -> None:
    for name, overrides in SCHEDULES.items():
        with tempfile.TemporaryDirectory() as folder:
            config = ulorl.load(
                [DOCS.parent / "recipes" / "countdown.toml"], [*OVERRIDES, *overrides, f"run.dir={folder}/run"]
            )
            ulorl.train(config)
            data = timeline_data(read_run(Path(folder) / "run"))
        assert data
        out = DOCS / "figures" / f"timeline_{name}.svg"
        with matplotlib.rc_context(STYLE):
            draw(data).savefig(out, metadata={"Date": None}, facecolor="white")
        print(out)


def draw(data: dict[str, Any]) -> Figure:
    """Draw a line for each sample with a bar for each segment; below, how many samples decode at once."""
    figure = Figure(figsize=(9.7, 5.6), layout="constrained")
    rows, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.6, 1])
    for place, start, end, version, status, *_ in data["bars"]:
        rows.barh(place, end - start, 0.72, left=start, color=VERSIONS[version % len(VERSIONS)], linewidth=0)
        if status in "ct":
            rows.plot(end, place, {"c": "o", "t": "x"}[status], color="#333", markersize=2.6, clip_on=False)
    for step in data["steps"]:
        rows.annotate(f"step {step['step']} · v{step['version']}", (step["begins"], 1.01),
                      xycoords=("data", "axes fraction"), fontsize=8)  # fmt: skip
        for axes in (rows, below):
            axes.axvline(step["begins"], color="#ccc", linewidth=0.9, zorder=0)
    firsts = [place for place, group in enumerate(data["groups"]) if group not in data["groups"][:place]]
    rows.set_yticks(firsts, [str(data["groups"][place]) for place in firsts])
    rows.set(ylabel="group", ylim=(len(data["samples"]), -1), xlim=(0, data["length"]))
    times, decoding = zip(*data["decoding"], strict=True)
    below.fill_between(times, decoding, step="post", color=VERSIONS[0], alpha=0.75, linewidth=0)
    below.set(xlabel=f"{data['unit']} of rollout", ylabel="decoding", ylim=(0, None))
    return figure


if __name__ == "__main__":
    main()
