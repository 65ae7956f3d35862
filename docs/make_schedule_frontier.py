"""Draws docs/figures/schedule_frontier.svg: the speed of rollout schedules against the age of the tokens they train.

Run it with `python docs/make_schedule_frontier.py LENGTHS.csv`, with the output lengths of DeepSeek-R1's production
traffic (computed from ServeGen, https://github.com/alibaba/ServeGen): columns `output_tokens` and `probability`. It
prints the table of docs/schedule_results.md. Every point is a simulation of `ulorl plan rollout`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ulorl.common.markdown import table
from ulorl.common.plot_style import STYLE
from ulorl.planning.schedule_inputs import lengths_source, read_inputs, workload_of
from ulorl.planning.schedule_plan import Choice, PlanSetting, SchedulePlan, plan_schedules

CHOICES = (
    *(Choice("segment", segments=count) for count in (1, 2, 4, 8, 16)),
    *(Choice("oversubscribe", factor=factor) for factor in (1.1, 1.25, 1.5, 2.0, 3.0)),
    *(Choice("refill", factor=factor) for factor in (1.0, 1.5, 2.0, 3.0)),
)
COLOURS = {"segment": "#4878a8", "oversubscribe": "#e49444", "refill": "#6a9f58"}
OUT = Path(__file__).parent / "figures" / "schedule_frontier.svg"


def plan(preset: str, changes: list[str], lengths: Path | None, steps: int) -> SchedulePlan:
    """Compare all choices on a preset, with changes of its keys."""
    profile, _ = read_inputs(preset, changes)
    workload = workload_of(profile)
    setting = PlanSetting(
        profile=profile,
        source=lengths_source(workload, lengths, 1.0),
        prompts=workload.prompts,
        group=workload.group,
        max_tokens=workload.max_tokens,
        prompt_tokens=workload.prompt_tokens,
        steps=steps,
    )
    return plan_schedules(setting, CHOICES)


def draw(plans: dict[str, SchedulePlan]) -> None:
    """A set-up a column, a line a kind of schedule; grey: the bound. Hollow: keys and values above .9."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        columns = figure.subplots(1, len(plans))
        for axes, (title, one) in zip(columns, plans.items(), strict=True):
            _draw(axes, title, one)
        columns[0].set_ylabel("completed groups a second\nover one segment, update included")
        columns[0].legend(frameon=False, fontsize=8, loc="lower right")
        figure.savefig(OUT, metadata={"Date": None, "Creator": None})


def _draw(axes: Axes, title: str, plan: SchedulePlan) -> None:
    axes.axhline(plan.bound_speed, color="grey", linewidth=1, linestyle="--")
    for kind, colour in COLOURS.items():
        points = [one for one in plan.planned if one.choice.kind == kind]
        ages, speeds = [one.figures.age for one in points], [plan.speed(one.figures) for one in points]
        axes.plot(ages, speeds, color=colour, linewidth=1, label=kind)
        for one, age, speed in zip(points, ages, speeds, strict=True):
            full = one.figures.kv_peak > plan.setting.kv_limit
            axes.plot(age, speed, "o", markersize=4, color=colour, markerfacecolor="white" if full else colour)
            value = str(one.choice.segments) if kind == "segment" else f"{one.choice.factor:g}"
            axes.annotate(value, (age, speed), (3, -8), textcoords="offset points", fontsize=6, color=colour)
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel("mean age of trained tokens, versions")


def rows(plans: dict[str, SchedulePlan]) -> list[tuple[object, ...]]:
    """A row a choice: speed and age of every set-up."""
    found = []
    for index, choice in enumerate(CHOICES):
        cells = []
        for one in plans.values():
            figures = one.planned[index].figures
            mark = " *" if figures.kv_peak > one.setting.kv_limit else ""
            cells += [f"{one.speed(figures):.2f}{mark}", f"{figures.age:.2f}"]
        found.append((choice.name, *cells))
    return [*found, ("bound", *(cell for one in plans.values() for cell in (f"{one.bound_speed:.2f}", "")))]


def main() -> None:
    """Simulate, print the table, draw."""
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/make_schedule_frontier.py LENGTHS.csv")
    plans = {
        "the paper's set-up": plan("paper", [], None, 48),
        "8B on one node": plan("h100-8b", [], None, 64),
        "30B-A3B, R1's production lengths": plan("h100-30b-a3b", ["workload.max_tokens=32768"], Path(sys.argv[1]), 48),
    }
    head = ("schedule", *(cell for title in plans for cell in (title, "age")))
    print(table(head, rows(plans), numbers_from=1))
    draw(plans)


if __name__ == "__main__":
    main()
