"""Measures what a rollout schedule costs in learning, draws docs/figures/schedule_learning.svg, and prints the tables.

Run it with `python docs/make_learning_figure.py RUNS`, where RUNS is a folder for the runs: 27 of them, one and a half
minutes of processor time each. Runs that are finished are not repeated, so the command continues what was interrupted.
With `--finished` it trains nothing and shows the arms whose three seeds are finished.

The task is the chain countdown with 3 numbers and one more rule, which the shipped tiny model does not know: the right
chain must begin with the largest number of the problem. The policy has to change much in 24 steps, so old tokens differ
from new ones. All runs have the same prompts and samples a step and differ in `ARMS` and seed only.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import ulorl
from ulorl.common import markdown
from ulorl.common.plot_style import STYLE
from ulorl.data.countdown import parse_prompt, score
from ulorl.runs.run_folder import finished
from ulorl.runs.saved_run import SavedRun, read_run
from ulorl.types import Problem

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "figures" / "schedule_learning.svg"
SEEDS = (0, 1, 2)
T_95 = 4.303  # Student's t with two degrees of freedom: three seeds
SETTINGS = [
    "steps=24",
    "rollout.prompts=16",
    "rollout.max_tokens=256",
    "rollout.segments=1",
    "engine.slots=512",
    "objective.mpt.mask=off",
    "optim.lr=1e-4",
    "optim.warmup_steps=4",
    "reward.kind=function",
    "reward.function=make_learning_figure:largest_first",
    "data.settings={numbers=[3]}",
    "data.size=1000",
    "eval.problems=400",
    "eval.every=8",
    "eval.data={size=400, seed=7}",
    "log.progress=false",
]
REFILL_3 = ["rollout.schedule.kind=refill", "rollout.schedule.factor=3"]
SCHEDULES = {
    "one segment": [],
    "4 segments": ["rollout.segments=4"],
    "oversubscribe 1.5": ["rollout.schedule.kind=oversubscribe", "rollout.schedule.factor=1.5"],
    "oversubscribe 2": ["rollout.schedule.kind=oversubscribe", "rollout.schedule.factor=2"],
    "refill 1": ["rollout.schedule.kind=refill", "rollout.schedule.factor=1"],
}
CORRECTIONS = {
    "4 segments, truncated weights": ["rollout.segments=4", "objective.tis_cap=2"],
    "refill 3, POIS": REFILL_3,
    "refill 3, SAIS": [*REFILL_3, "objective.importance=sais"],
    "refill 3, truncated weights": [*REFILL_3, "objective.tis_cap=2"],
}
ARMS = SCHEDULES | CORRECTIONS


def largest_first(problem: Problem, text: str) -> float:
    """Return 1.0 when the last line of `text` is a right chain that begins with the problem's largest number."""
    numbers, _ = parse_prompt(problem.prompt)
    answer = text.rpartition("\n")[2]
    return score(problem, text) if answer.startswith(str(max(numbers))) else 0.0


def folder(runs: Path, arm: str, seed: int) -> Path:
    """Return the folder of a run."""
    return runs / f"{arm.replace(',', '').replace(' ', '-')}-{seed}"


def train(run_dir: Path, arm: str, seed: int) -> None:
    """Train one run. Its times are seconds of processor time, which other work on the machine hardly changes."""
    overrides = [*SETTINGS, *ARMS[arm], f"seed={seed}", f"run.dir={run_dir}"]
    with patch("time.perf_counter", time.process_time):
        ulorl.train(ulorl.load([str(ROOT / "recipes" / "countdown.toml")], overrides))


def train_all(runs: Path) -> None:
    """Train every run that is not finished, each in its own process, all arms of a seed before the next seed."""
    for seed in SEEDS:
        for arm in ARMS:
            run_dir = folder(runs, arm, seed)
            if finished(run_dir):
                continue
            started = time.perf_counter()
            process = multiprocessing.get_context("spawn").Process(target=train, args=(run_dir, arm, seed))
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(f"{run_dir}: the run failed")
            print(f"{run_dir}: {time.perf_counter() - started:.0f} s", flush=True)


def curve(run: SavedRun, amount: Callable[[SavedRun], NDArray[np.float64]]) -> tuple[NDArray[np.float64], ...]:
    """Return, at each evaluation, the amount spent before it and the held-out accuracy in percent."""
    steps, accuracy = run.series("eval/accuracy")
    return np.concatenate([[0], np.cumsum(amount(run))])[steps], 100 * np.array(accuracy)


def of_steps(key: str) -> Callable[[SavedRun], NDArray[np.float64]]:
    """Return a function that gives the metric `key` of every step, 0 where a step has none."""
    return lambda run: np.array([m.get(key) or 0 for m in run.metrics if m["step"]], dtype=float)


TOKENS, SECONDS, DECODE_STEPS = (of_steps(k) for k in ("train/tokens", "time/step", "rollout/decode_steps"))
AGE = of_steps("rollout/staleness_mean")


def draw(panel: Axes, arms: dict[str, list[SavedRun]], amount: Callable[[SavedRun], NDArray[np.float64]]) -> None:
    """Draw each arm's mean over seeds, and the range of the seeds at its last evaluation."""
    for arm, seeds in arms.items():
        spent, accuracy = (np.array(values) for values in zip(*(curve(run, amount) for run in seeds), strict=True))
        (line,) = panel.plot(spent.mean(axis=0), accuracy.mean(axis=0), marker="o", markersize=3, label=arm)
        low, high = accuracy[:, -1].min(), accuracy[:, -1].max()
        panel.vlines(spent[:, -1].mean(), low, high, color=line.get_color(), alpha=0.4)
    panel.set_ylabel("held-out accuracy, %")
    panel.grid(alpha=0.25)


def draw_all(found: dict[str, list[SavedRun]]) -> None:
    """Draw the figure."""
    schedules = {arm: runs for arm, runs in found.items() if arm in SCHEDULES}
    corrections = {arm: runs for arm, runs in found.items() if arm in CORRECTIONS or arm == "one segment"}
    panels = (
        (schedules, TOKENS, "trained tokens"),
        (schedules, SECONDS, "processor seconds of rollout, update and sync"),
        (schedules, DECODE_STEPS, "decode steps: the clock of an engine whose rows are free"),
        (corrections, TOKENS, "trained tokens, at high age"),
    )
    with matplotlib.rc_context(STYLE):
        shown = [panel for panel in panels if len(panel[0]) > 1]
        canvas = Figure(figsize=(5 * len(shown), 3.6), layout="constrained")
        for place, (arms, amount, title) in enumerate(shown):
            panel = canvas.add_subplot(1, len(shown), place + 1)
            draw(panel, arms, amount)
            panel.set_xlabel(title)
            if place in (0, 3):
                panel.legend(frameon=False, fontsize=8)
        canvas.savefig(OUT, metadata={"Date": None}, facecolor="white")


def interval(values: Sequence[float] | NDArray[np.float64]) -> str:
    """Return a mean with its 95% interval by Student's t."""
    return f"{np.mean(values):+.1f} ± {T_95 * np.std(values, ddof=1) / len(values) ** 0.5:.1f}"


def at_equal(
    found: dict[str, list[SavedRun]], amount: Callable[[SavedRun], NDArray[np.float64]]
) -> tuple[float, dict[str, NDArray[np.float64]]]:
    """Return the amount that every run has spent, and the accuracies of each arm's seeds there, read off the curves."""
    equal = min(amount(run).sum() for runs in found.values() for run in runs)
    at = {arm: np.array([np.interp(equal, *curve(run, amount)) for run in runs]) for arm, runs in found.items()}
    return float(equal), at


def spread(values: NDArray[np.float64]) -> str:
    """Return a mean with the lowest and the highest value."""
    return f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})"


def table(found: dict[str, list[SavedRun]]) -> str:
    """Return a row for each arm."""
    tokens, at_tokens = at_equal(found, TOKENS)
    seconds, at_seconds = at_equal(found, SECONDS)
    rows = [
        (
            arm,
            f"{np.mean([np.average(AGE(run), weights=TOKENS(run)) for run in runs]):.2f}",
            ", ".join(f"{curve(run, TOKENS)[1][-1]:.1f}" for run in runs),
            spread(at_tokens[arm]),
            "" if arm == "one segment" else interval(at_tokens[arm] - at_tokens["one segment"]),
            spread(at_seconds[arm]),
            f"{np.median([np.sum(SECONDS(run)) / TOKENS(run).sum() * 1e3 for run in runs]):.3f}",
            f"{np.median([DECODE_STEPS(run).sum() / TOKENS(run).sum() * 1e3 for run in runs]):.1f}",
        )
        for arm, runs in found.items()
    ]
    titles = (
        "arm",
        "mean age",
        "after 24 steps, each seed",
        f"at {round(tokens, -3):,.0f} trained tokens (lowest to highest seed)",
        "less one segment (95%)",
        f"at {seconds:.0f} processor seconds (lowest to highest seed)",
        "processor ms a trained token",
        "decode steps per 1,000 trained tokens",
    )
    return markdown.table(titles, rows)


if __name__ == "__main__":
    runs = Path(sys.argv[1])
    if sys.argv[2:] != ["--finished"]:
        train_all(runs)
    shown = [arm for arm in ARMS if all(finished(folder(runs, arm, seed)) for seed in SEEDS)]
    found = {arm: [read_run(folder(runs, arm, seed)) for seed in SEEDS] for arm in shown}
    draw_all(found)
    print(table(found))
    print(
        json.dumps({arm: [[round(float(a), 1) for a in curve(r, TOKENS)[1]] for r in rs] for arm, rs in found.items()})
    )
