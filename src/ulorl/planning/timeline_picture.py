"""Draws which sample decoded when, with which version of the weights, in a simulated run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ulorl.common.plot_style import STYLE
from ulorl.planning.schedule_plan import Choice, PlanSetting
from ulorl.planning.simulated_step import Stay

STEPS, SAMPLES = 5, 160  # that are drawn
_COLOURS = ("#4878a8", "#e49444", "#6a9f58", "#967662", "#a87c9f")
_BETWEEN = "#eeeeee"


def draw_timelines(setting: PlanSetting, choices: Sequence[Choice], path: Path) -> None:
    """Draw the first steps of each choice, one below the other, as an SVG. Raises OSError.

    A bar is a stay of a sample in an engine, its colour the version of the weights; grey: update and weight sync. Of
    many samples, some are shown, in the order in which they were opened.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.2 * len(choices)), layout="constrained")
        rows = figure.subplots(len(choices), 1, squeeze=False, sharex=True)[:, 0]
        for axes, choice in zip(rows, choices, strict=True):
            _draw(axes, setting, choice)
        rows[-1].set_xlabel("seconds since the run began; grey: update and weight sync")
        names = [Patch(color=colour, label=f"version {number}") for number, colour in enumerate(_COLOURS)]
        figure.legend(handles=names, loc="outside upper center", ncols=len(names), frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _draw(axes: Axes, setting: PlanSetting, choice: Choice) -> None:
    stays = list[Stay]()
    simulation = setting.simulation(choice.schedule(setting), stays)
    groups = 0
    for _ in range(STEPS):
        began = simulation.seconds
        step = simulation.step()
        groups += step.groups
        axes.axvspan(began + step.rollout_seconds, simulation.seconds, color=_BETWEEN, linewidth=0)
    samples = sorted({stay.sample_id for stay in stays})
    every = -(-len(samples) // SAMPLES)
    line = {sample: index for index, sample in enumerate(samples[::every])}
    bars = [stay for stay in stays if stay.sample_id in line]
    axes.add_collection(
        PolyCollection(
            [_bar(stay, line[stay.sample_id]) for stay in bars],
            facecolors=[_COLOURS[stay.version % len(_COLOURS)] for stay in bars],
            linewidths=0,
        )
    )
    axes.set_xlim(0, None)
    axes.set_ylim(len(line), 0)
    axes.autoscale_view(scalex=True, scaley=False)
    rate = groups / simulation.seconds
    axes.set_title(f"{choice.name}: {groups} groups in {STEPS} steps, {rate:.3g} a second", loc="left", fontsize=9)
    axes.set_ylabel(f"samples, 1 in {every}" if every > 1 else "samples")


def _bar(stay: Stay, line: int) -> list[tuple[float, float]]:
    return [(stay.start, line), (stay.end, line), (stay.end, line + 0.8), (stay.start, line + 0.8)]
