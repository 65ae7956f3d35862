"""Draws docs/figures/algorithm.svg and old_policy.svg: `python docs/make_algorithm_figures.py`.

The first shows four steps of Algorithm 1, played by the scheduler of training on outputs of given lengths; the second
the old policy of one of its samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ulorl.common.plot_style import STYLE
from ulorl.engines.decode import scheduled_rollout
from ulorl.engines.scripted import ScriptedEngine
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import SegmentSchedule
from ulorl.types import Problem, Sample, Sampling, Scored, Status

FIGURES = Path(__file__).parent / "figures"
PROMPTS, GROUP, SEGMENTS, LENGTH, STEPS = 2, 2, 3, 12, 4  # L = 12 tokens in segments of 4
OUTPUTS = [3, 7, 2, 4, 9, 6, 4, 99, 3, 2, 5, 3, 2, 8, 4, 1]  # tokens of each sample up to EOS; 99: it never ends
EOS = 0
COLORS = ("#4878a8", "#e08a3c", "#6aa565", "#a06ab4")  # of the versions


@dataclass(frozen=True)
class Shown:
    """A step as it is drawn: all samples so far, those that were decoded, and the ids of the groups that trained."""

    samples: dict[int, Sample]
    decoded: set[int]
    trained: list[int]  # groups, in this step
    earlier: set[int]  # groups that trained in an earlier step


def steps() -> list[Shown]:
    """Play the steps with the scheduler of training."""
    scripts = [[1] * (length - 1) + [EOS] for length in OUTPUTS]
    engine = ScriptedEngine(dict(enumerate(scripts)), EOS)
    schedule = SegmentSchedule(prompts=PROMPTS, group=GROUP, tokens=LENGTH // SEGMENTS)
    scheduler = Scheduler(schedule, max_tokens=LENGTH, sampling=Sampling(1.0), seed=0)
    shown, samples, trained = [], dict[int, Sample](), set[int]()
    for step in range(STEPS):
        new = [(Problem(f"{step}-{i}", ""), np.array([1], np.int32)) for i in range(PROMPTS)]
        scheduler.begin_step(new)
        decoded = set[int]()
        for segment in scheduled_rollout(engine, scheduler.next_requests):
            sample = scheduler.end_segment(segment)
            samples[sample.id] = sample
            decoded.add(sample.id)
            if sample.status is not Status.UNFINISHED:
                scheduler.experience.add(Scored(sample, 0.0, ""))
        released = [group.id for group in scheduler.release()]
        shown.append(Shown(dict(samples), decoded, released, set(trained)))
        trained |= set(released)
        if released:
            engine.load_weights([], engine.version + 1)
    return shown


def draw_steps(shown: Sequence[Shown], path: Path) -> None:
    """Draw a panel for each step: a row for each sample, its tokens in the colour of the version that drew them."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 6.4), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True, sharey=True).flat
        for number, (axes, step) in enumerate(zip(panels, shown, strict=True)):
            _panel(axes, number, step)
        handles = [Patch(color=color, label=f"drawn by version {i}") for i, color in enumerate(COLORS)]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def _panel(axes: Axes, number: int, step: Shown) -> None:
    per_step = PROMPTS * GROUP
    carried = len(step.decoded) - per_step
    groups = ", ".join(str(group + 1) for group in step.trained)
    trains = f"groups {groups} train" if len(step.trained) > 1 else f"group {groups} trains"
    title = f"Step {number + 1}: {carried} carried samples, {per_step} new\nversion {number} decodes; {trains}"
    axes.set_title(title, loc="left", fontsize=9)
    for group in range(PROMPTS * STEPS):
        if group % 2:
            axes.axhspan(group * GROUP - 0.5, group * GROUP + GROUP - 0.5, color="#f1f1f1", linewidth=0)
    for id, sample in step.samples.items():
        start = 0
        for segment in sample.segments:
            now = id in step.decoded and start + len(segment) == len(sample)
            color = COLORS[int(segment.versions[0])]
            axes.barh(id, len(segment), left=start, height=0.7, color=color, alpha=1.0 if now else 0.3)
            start += len(segment)
        axes.text(len(sample) + 0.25, id, _state(step, id, sample), va="center", fontsize=7)
    axes.set_xlim(0, LENGTH + 7)
    axes.set_ylim(PROMPTS * STEPS * GROUP - 0.5, -0.5)
    axes.set_xticks(range(0, LENGTH + 1, LENGTH // SEGMENTS))
    centres = [group * GROUP + (GROUP - 1) / 2 for group in range(PROMPTS * STEPS)]
    axes.set_yticks(centres, [f"group {group + 1}" for group in range(PROMPTS * STEPS)], fontsize=7)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#cccccc", linewidth=0.5)
    axes.set_axisbelow(True)
    if number >= 2:
        axes.set_xlabel("output tokens, in segments of 4")


def _state(step: Shown, id: int, sample: Sample) -> str:
    group = id // GROUP
    if group in step.earlier:
        return ""
    if sample.status is Status.UNFINISHED:
        return "carried over"
    ended = "EOS" if sample.status is Status.COMPLETE else "cut at L"
    return f"{ended}, trains" if group in step.trained else f"{ended}, waits"


def draw_old_policy(path: Path) -> None:
    """Draw one sample of three segments, and the version that is the old policy of its tokens under each rule."""
    rows = (
        ("TOIS", (0,), "one segment: the version that drew the sample"),
        ("SAIS", (0, 1, 2), "the version that drew the segment"),
        ("POIS", (2, 2, 2), "the newest version, for all tokens"),
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 2.0), layout="constrained")
        axes = figure.subplots()
        for row, (_, versions, meaning) in enumerate(rows):
            width = LENGTH / len(versions)
            for segment, version in enumerate(versions):
                left = width * segment
                axes.barh(row, width - 0.1, left=left, height=0.62, color=COLORS[version])
                text = f"version {version + 3}"
                axes.text(left + width / 2, row, text, ha="center", va="center", color="white", fontsize=8)
            axes.text(LENGTH + 0.3, row, meaning, va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_xlim(0, 21)
        axes.set_ylim(2.5, -0.5)
        axes.set_xticks([0, 4, 8, 12], ["0", "L/3", "2L/3", "L"])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("tokens of a sample", loc="left")
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    """Draw both, and print what the first one shows."""
    shown = steps()
    draw_steps(shown, FIGURES / "algorithm.svg")
    draw_old_policy(FIGURES / "old_policy.svg")
    for number, step in enumerate(shown, 1):
        unfinished = [id for id, one in step.samples.items() if one.status is Status.UNFINISHED]
        print(f"step {number}: decoded {sorted(step.decoded)}, trained groups {step.trained}, carried {unfinished}")


if __name__ == "__main__":
    main()
