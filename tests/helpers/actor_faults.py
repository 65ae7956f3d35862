"""SIGKILL and SIGSTOP of the actors of a run on Ray, at random instants. `make faults` runs it.

Two engines and two ranks of the learner train. An engine is hit while it decodes a segment or loads weights, a rank in
its forward or backward pass, its optimizer step, a checkpoint or the transfer of weights. Every second run
refills: which groups end first then depends on clocks and faults, so no sample may be lost or duplicated, and that is
all. The others must end as the run that was not disturbed: the same samples, and the same weights and metrics but for
rounding, because an engine's rounding depends on which samples it decodes together.

    python tests/helpers/actor_faults.py [--faults 42] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fault_points
from fault_points import ENGINE, KILL, POINTS, STOP, Fault
from faults import CLOCK, RECIPE, REFILL, RUN, lost_and_duplicated

DEADLINE = 4.0  # seconds after which a process counts as hanging
TOLERANCE = 1e-5  # of weights and metrics
BACKEND = [
    "backend.kind=ray", "backend.ranks=2", "backend.engines=2", f"backend.deadline={DEADLINE}",
    f"engine.deadline={DEADLINE}", "engine.max_faults=20", "engine.slots=4",
]  # fmt: skip
# These depend on which engine decoded what, or are differences of rounding themselves.
UNEQUAL = (*CLOCK, "rollout/decode_steps", "rollout/prefill_tokens", "engine/", "eval/engine_", "mismatch/")


@dataclass
class Tally:
    """What is printed at the end."""

    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    lost: int = 0
    duplicated: int = 0
    largest: float = 0.0  # difference of a weight
    differ: list[str] = field(default_factory=list)


def train(run_dir: Path, schedule: Sequence[str] = ()) -> None:
    import ulorl

    ulorl.train(ulorl.load([RECIPE], [*RUN, *BACKEND, *schedule, f"run.dir={run_dir}"]))


def outcome(run_dir: Path) -> dict[str, Any]:
    """What two equal runs have in common, but for rounding."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = {"metrics": [json.loads(line) for line in lines]}
    for path in (run_dir / "samples").glob("*.jsonl"):
        samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[path.name] = [(s["sample"], s["output"], s["reward"]) for s in samples]
    return found


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    differ = [key for key in found.keys() | expected.keys() if key != "metrics" and found.get(key) != expected.get(key)]
    if len(found["metrics"]) != len(expected["metrics"]):
        return [*differ, "the number of metrics lines"]
    for mine, other in zip(found["metrics"], expected["metrics"], strict=True):
        for name in mine.keys() | other.keys():
            if not name.startswith(UNEQUAL) and not close(mine.get(name), other.get(name)):
                differ.append(f"step {mine['step']} {name} {mine.get(name)} {other.get(name)}")
    return differ


def close(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and abs(a - b) <= TOLERANCE * max(1.0, abs(a), abs(b)))


def largest_difference(a: Path, b: Path) -> float:
    from safetensors.torch import load_file

    first, second = (load_file(path / "model" / "model.safetensors") for path in (a, b))
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def drawn(draw: random.Random, point: str, number: int) -> Fault:
    skip = draw.randint(0, 150) if point == "segment" else draw.randint(0, 2)
    return Fault(point, (KILL, STOP)[number % 2], skip, draw.choice([0.0, draw.uniform(0, 0.02)]))


class Planner(threading.Thread):
    """Plans one fault after the other, until the run ends: the next one of the learner when a checkpoint has been
    written since the last one."""

    def __init__(self, folder: Path, run_dir: Path, faults: list[Fault], draw: random.Random) -> None:
        super().__init__(daemon=True)
        self.folder, self.run_dir, self.faults, self.draw = folder, run_dir, faults, draw
        self.ended = threading.Event()

    def run(self) -> None:
        before = -1
        while self.faults and not self.ended.is_set():
            steps = len(list((self.run_dir / "checkpoints").glob("step_??????")))
            newest = max((int(p.name[-6:]) for p in (self.run_dir / "checkpoints").glob("step_??????")), default=0)
            free = not fault_points.waiting(self.folder)
            if free and (self.faults[0].point in ENGINE or newest > before):
                fault = self.faults.pop(0)
                before = before if fault.point in ENGINE else newest
                fault_points.plan(self.folder, fault)
            self.ended.wait(0.05 + 0.3 * self.draw.random() * bool(steps))


def disturbed(
    folder: Path, run_dir: Path, faults: list[Fault], draw: random.Random, train: Callable[[Path], object] = train
) -> None:
    """Train with the first of `faults`, which are taken from the list; those that did not happen are put back."""
    planner = Planner(folder, run_dir, faults, draw)
    planner.start()
    try:
        train(run_dir)
    finally:
        planner.ended.set()
        planner.join()
        if fault_points.waiting(folder):
            values = json.loads((folder / "plan.json").read_text())
            del values["id"]
            faults.insert(0, Fault(**values))
            (folder / "plan.json").unlink()


def campaign(folder: Path, faults: Sequence[Fault], draw: random.Random) -> Tally:
    """Train until all faults have happened, and compare every run with one that is not disturbed."""
    tally, left = Tally(), list(faults)
    plans = folder / "plans"
    plans.mkdir()
    with fault_points.cluster(plans):
        train(folder / "undisturbed")
        expected = outcome(folder / "undisturbed")
        while left:
            run_dir, began, refill = folder / f"run{tally.runs}", time.monotonic(), tally.runs % 2 == 1
            disturbed(plans, run_dir, left, draw, partial(train, schedule=REFILL if refill else ()))
            tally.runs += 1
            lost, duplicated = lost_and_duplicated(run_dir)
            tally.lost, tally.duplicated = tally.lost + lost, tally.duplicated + duplicated
            if not refill:
                difference = largest_difference(run_dir, folder / "undisturbed")
                tally.largest = max(tally.largest, difference)
                differ = differences(outcome(run_dir), expected)
                differ += [f"weights, by {difference}"] if difference > TOLERANCE else []
                tally.differ += [f"{run_dir.name} differs in {d}" for d in differ]
            done = len(fault_points.happened(plans))
            print(f"{done:4} faults, {tally.runs} runs, {time.monotonic() - began:.0f} s", flush=True)
    names = {KILL: "killed", STOP: "stopped"}
    for fault, _ in fault_points.happened(plans):
        what = "engine" if fault.point in ENGINE else "rank"
        tally.faults[f"{what} {names[fault.signal]}: {fault.point}"] += 1
    return tally


def report(tally: Tally) -> bool:
    """Print the result; return whether it is good."""
    print("\n".join(tally.differ))
    rows = [("faults", tally.faults.total()), *((f"  {name}", count) for name, count in sorted(tally.faults.items()))]
    rows += [
        ("runs", tally.runs), ("samples lost", tally.lost), ("samples duplicated", tally.duplicated),
        ("runs that differ", len({wrong.split()[0] for wrong in tally.differ})),
    ]  # fmt: skip
    print("\n".join(f"{name:<40}{count:>5}" for name, count in rows))
    print(f"largest difference of a weight: {tally.largest:.1g}")
    return not (tally.differ or tally.lost or tally.duplicated)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=42)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    draw = random.Random(asked.seed)
    points = [[*POINTS][i % len(POINTS)] for i in range(asked.faults)]
    faults = [drawn(draw, point, number // len(POINTS)) for number, point in enumerate(points)]
    draw.shuffle(faults)
    folder = Path(tempfile.mkdtemp(prefix="ulorl-actor-faults-"))
    good = report(campaign(folder, faults, draw))
    print("every run with segments ended as the undisturbed one" if good else f"the runs are in {folder}")
    if good:
        shutil.rmtree(folder)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
