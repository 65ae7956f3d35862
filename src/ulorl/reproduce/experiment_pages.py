"""Writes what an experiment found: CSV files of all curves and of all held-out problems, a picture, and a page with
table and verdicts."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ulorl.common import atomic_files
from ulorl.common.intervals import Interval, mean_interval
from ulorl.common.markdown import table
from ulorl.common.plot_style import STYLE
from ulorl.reproduce.arm_results import ENTROPY
from ulorl.reproduce.arms import Subject
from ulorl.reproduce.claims import Claim
from ulorl.reproduce.experiments import Experiment, Results
from ulorl.reproduce.held_out_scores import ACCURACY, PASS, SEEDS_ONLY, Array
from ulorl.runs.problem_counts import EVALUATIONS, read_counts
from ulorl.runs.saved_run import step_files

CURVES = (
    ENTROPY, "entropy/mean", "reward/mean", "rollout/length_mean", "mpt/masked_fraction", "importance/clip_fraction",
    "rollout/staleness_mean", ACCURACY, PASS, "eval/length_mean",
)  # fmt: skip
_HEAD = (
    "arm", "entropy at the start", "entropy at the end", "accuracy before", "accuracy after", "less the first arm",
    "pass@k after", "output tokens", "masked tokens", "clipped tokens", "mean age",
)  # fmt: skip
_NOTE = """\
Means over {seeds} seeds ± half their 95% interval (Student's t). Entropy in nats, over all samples that finish in a
step: at the start three steps, from the first in which samples of any length can finish (later with more segments); at
the end the last third. Accuracy: avg@{k} on {problems} held-out problems at temperature {temperature:g} and top-p
{top_p:g}, before and after training. {over} Masked and clipped tokens and age (in versions): means over the last
third."""
_BOTH = """\
All seeds have the same problems, so the intervals of accuracy and pass@k count both errors, over seeds and over
problems (min F' of Clark, 1973)."""
_SEEDS = """\
All seeds have the same problems. **Over seeds only are the intervals of accuracy and pass@k of these arms, and of
differences from them: {arms}.** They leave out what other problems would give, because some of these runs stored no
counts of the problems, as runs of earlier versions, or had other problems, or because too few answers to every problem
were scored in some seed."""


def write(
    out: Path, experiment: Experiment, results: Results, subject: Subject, about: str, commands: Sequence[str]
) -> list[Claim]:
    """Write `<name>.csv`, `<name>_problems.csv`, `<name>.svg` and `<name>.md` into folder `out`, and return the judged
    claims.

    about: machine, recipe and seeds as text. commands: how to train the first seed of each arm.
    """
    claims = experiment.claims(results, subject)
    atomic_files.write_text(out / f"{experiment.name}.csv", as_csv(results))
    atomic_files.write_text(out / f"{experiment.name}_problems.csv", problems_csv(results))
    _draw(out / f"{experiment.name}.svg", results, experiment.target_entropies(subject))
    parts = [
        f"# {experiment.title}",
        f"**The paper.** {experiment.paper}",
        f"**Here.** {about}",
        f"![Entropy and reward over the steps, and accuracy after training]({experiment.name}.svg)",
        "\n".join(f"- {claim}" for claim in claims),
        table(_HEAD, _rows(results), numbers_from=1),
        _note(results),
        "The runs, seed 0:\n\n```sh\n" + "\n".join(commands) + "\n```",
    ]
    atomic_files.write_text(out / f"{experiment.name}.md", "\n\n".join(parts) + "\n")
    return claims


def _note(results: Results) -> str:
    first = next(iter(results.values()))
    of, problems = first.runs[0].setting, int(first.runs[0].series("eval/problems")[1][-1])
    seeds_only = [
        label
        for label, arm in results.items()
        if SEEDS_ONLY in (arm.scores(key, before=before).over for key in (ACCURACY, PASS) for before in (True, False))
    ]
    return _NOTE.format(
        seeds=len(first.runs),
        k=of("eval.samples"),
        problems=problems,
        temperature=of("eval.temperature"),
        top_p=of("eval.top_p"),
        over=_SEEDS.format(arms="; ".join(seeds_only)) if seeds_only else _BOTH,
    )


def as_csv(results: Results) -> str:
    """Return every curve of every run as CSV: a line for each arm, seed, step and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("arm", "seed", "step", "metric", "value"))
    for label, arm in results.items():
        for run in arm.runs:
            for key in CURVES:
                for step, value in zip(*run.series(key), strict=True):
                    writer.writerow((label, run.setting("seed"), step, key, value))
    return text.getvalue()


def problems_csv(results: Results) -> str:
    """Return every stored evaluation as CSV: a line for each arm, seed, step and held-out problem, with the numbers of
    right and of scored answers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("arm", "seed", "step", "problem", "right", "scored"))
    for label, arm in results.items():
        for run in arm.runs:
            for step, _ in step_files(run.dir / EVALUATIONS):
                if counts := read_counts(run.dir, step):
                    for row in zip(counts.problems, counts.right, counts.scored, strict=True):
                        writer.writerow((label, run.setting("seed"), step, *row))
    return text.getvalue()


def _rows(results: Results) -> list[tuple[str, ...]]:
    first = next(iter(results.values())).scores(ACCURACY)
    rows: list[tuple[str, ...]] = []
    for label, arm in results.items():
        after = arm.scores(ACCURACY)
        rows.append(
            (
                label,
                _cell(mean_interval(arm.entropy_start), "nats"),
                _cell(mean_interval(arm.entropy_end), "nats"),
                _cell(arm.scores(ACCURACY, before=True).interval, "%"),
                _cell(after.interval, "%"),
                "" if not rows else _cell((after - first).interval, "%", sign=True),
                _cell(arm.scores(PASS).interval, "%"),
                _cell(mean_interval(arm.evaluation("eval/length_mean")), ""),
                _cell(mean_interval(arm.last_third("mpt/masked_fraction")), "%"),
                _cell(mean_interval(arm.last_third("importance/clip_fraction")), "%"),
                _cell(mean_interval(arm.last_third("rollout/staleness_mean")), "versions"),
            )
        )
    return rows


def _cell(found: Interval, unit: str, *, sign: bool = False) -> str:
    """Return mean ± half of the interval."""
    if math.isnan(found.value):
        return "-"
    factor, digits = {"%": (100, 1), "nats": (1, 3), "versions": (1, 2)}.get(unit, (1, 0))
    mean = f"{factor * found.value:{'+' if sign else ''}.{digits}f}"
    half = "" if math.isinf(found.high) else f" ± {factor * (found.high - found.value):.{digits}f}"
    return mean + half + ("%" if unit == "%" else "")


def _draw(path: Path, results: Results, target_entropies: Sequence[float]) -> None:
    """Draw entropy and reward over the steps, and the accuracy after training. target_entropies: target entropies."""
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(11, 3.4), layout="constrained")
        entropy, reward, accuracy = canvas.subplots(1, 3, width_ratios=(3, 3, 2))
        colors = {label: f"C{index}" for index, label in enumerate(results)}
        for axes, key, title in ((entropy, ENTROPY, "entropy, nats"), (reward, "reward/mean", "mean reward")):
            _draw_curves(axes, results, key, colors)
            axes.set_ylabel(title)
            axes.set_xlabel("step")
            axes.grid(alpha=0.25)
        for sigma in target_entropies:
            entropy.axhline(sigma, color="0.4", linestyle=":", linewidth=1)
        entropy.set_ylim(bottom=0)
        _draw_accuracy(accuracy, results, colors)
        canvas.legend(*entropy.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4)
        canvas.savefig(path, metadata={"Date": None}, facecolor="white")


def _draw_curves(axes: Axes, results: Results, key: str, colors: dict[str, str]) -> None:
    """Draw each arm's mean over seeds inside the range of its seeds, as running means over a tenth of the steps."""
    for label, arm in results.items():
        steps, values_ST = arm.curve(key)
        if not steps:
            continue
        smooth_ST = np.array([_running_mean(values, max(1, len(steps) // 10)) for values in values_ST])
        axes.plot(steps, smooth_ST.mean(axis=0), color=colors[label], label=label, linewidth=1.5)
        axes.fill_between(steps, smooth_ST.min(axis=0), smooth_ST.max(axis=0), color=colors[label], alpha=0.15)


def _running_mean(values: Array, window: int) -> Array:
    """Return the mean of each value and the `window` - 1 before it, of fewer at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(0, np.arange(1, len(values) + 1) - window)
    ends = np.arange(1, len(values) + 1)
    found: Array = (sums[ends] - sums[first]) / (ends - first)
    return found


def _draw_accuracy(axes: Axes, results: Results, colors: dict[str, str]) -> None:
    """Draw the accuracy of each seed after training, their mean, and the mean before training."""
    for place, (label, arm) in enumerate(results.items()):
        after = 100 * arm.evaluation(ACCURACY)
        before = 100 * float(arm.evaluation(ACCURACY, before=True).mean())
        axes.plot(before, place, "o", color="0.4", markerfacecolor="none", markersize=4)
        axes.plot(after, np.full(len(after), place), "o", color=colors[label], markersize=3, alpha=0.6)
        axes.plot(after.mean(), place, "|", color=colors[label], markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.set_xlabel("accuracy, % (hollow: before)")
    axes.grid(alpha=0.25, axis="x")


def summary(found: dict[Experiment, list[Claim]], about: str) -> str:
    """Return a page with every verdict of several experiments."""
    rows = [
        (f"[{experiment.title}]({experiment.name}.md)", claim.text, claim.verdict, claim.measured)
        for experiment, claims in found.items()
        for claim in claims
    ]
    return "\n\n".join(["# Verdicts", about, table(("figure", "claim", "verdict", "measured"), rows)]) + "\n"
