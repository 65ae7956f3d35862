"""Draws docs/figures/timeline_segment.svg and timeline_refill.svg, the picture "Samples over time" of report.html.

They are of two runs of recipes/countdown.toml. `python docs/make_timeline_figures.py` takes a minute on two CPU cores.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import ulorl
from ulorl import report
from ulorl.report.timeline_figure import timeline_figure
from ulorl.runs.saved_run import read_run

DOCS = Path(__file__).parent
TEMPLATE = Path(*report.__path__) / "template.html"
OVERRIDES = [
    "steps=6", "rollout.prompts=6", "rollout.group=4", "rollout.max_tokens=256", "rollout.segments=4",
    "engine.slots=64", "eval.problems=2", "eval.samples=1", "eval.every=0", "log.progress=false", "model.threads=1",
]  # fmt: skip
SCHEDULES = {"segment": [], "refill": ["rollout.schedule.kind=refill", "rollout.schedule.factor=2"]}


def main() -> None:
    colors = "".join(
        re.findall(r"^:root \{.*?^\}|^@media \(prefers.*?^\}", TEMPLATE.read_text(), re.DOTALL | re.MULTILINE)
    )
    for name, overrides in SCHEDULES.items():
        with tempfile.TemporaryDirectory() as folder:
            config = ulorl.load(
                [DOCS.parent / "recipes" / "countdown.toml"], [*OVERRIDES, *overrides, f"run.dir={folder}/run"]
            )
            ulorl.train(config)
            figure = timeline_figure(read_run(Path(folder) / "run"))
        assert figure
        head, tail = figure.svg.split(">", 1)  # the page gives the figure its colours; a file brings its own
        out = DOCS / "figures" / f"timeline_{name}.svg"
        out.write_text(f"{head}><style>{' '.join(colors.split())}</style>{tail}", encoding="utf-8")
        print(f"{out}: {figure.alt}")


if __name__ == "__main__":
    main()
