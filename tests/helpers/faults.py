"""SIGKILL at random instants of short runs, and the same command again, until each run is done. `make faults` runs it.

The runs take the schedules in turn, or one that is asked for. A run that was killed must end as the one of its schedule
that was not: same final weights, moments and pools, same metrics lines (but
for the clock), same stored samples. Instants are drawn from a seed; besides those anywhere in a process there are aimed
ones: while the run's folder is being made, while a checkpoint is being written, while the final model is. Half of the
runs write their checkpoints beside the run. Processes are forked from one that has imported everything, or a kill would
cost eight seconds of imports; the last runs go through `python -m ulorl`.

    python tests/helpers/faults.py [--kills 60] [--commands 4] [--seed 0] [--schedule refill]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from paths import COUNTDOWN

RECIPE = COUNTDOWN
STEPS, PROMPTS, GROUP, KILLS_A_RUN = 4, 6, 2, 8
RUN = [
    f"steps={STEPS}", f"rollout.prompts={PROMPTS}", f"rollout.group={GROUP}", "rollout.max_tokens=96",
    "rollout.segments=3", "data.size=40", "eval.problems=4", "eval.samples=1", "eval.every=2",
    "objective.dynamic_sampling=false", "run.checkpoint_every=1", "model.threads=1", "log.progress=false",
    "log.report=false",  # else most kills would hit the run while it draws figures
]  # fmt: skip
OVERSUBSCRIBE = ["rollout.schedule={kind='oversubscribe',factor=2.5,max_versions=3,order='longest'}", "engine.slots=8"]
REFILL = [f"rollout.schedule={{kind='refill',window={2 * PROMPTS}}}"]
OVERLAP = ["rollout.overlap=true"]
SCHEDULES = {
    "segment": [],
    "oversubscribe": OVERSUBSCRIBE,
    "refill": REFILL,
    "segment-overlap": [*OVERLAP, "rollout.segments=2"],  # with more segments, step 3 is the first to train
    "refill-overlap": [*OVERLAP, *REFILL],
}
CLOCK = ("time/", "checkpoint/", "rollout/tokens_per_second")  # what differs between equal runs

# Where a kill is aimed at: it comes some milliseconds after such a path is written to. Or anywhere, at any moment.
MAKING, WRITING, ENDING = (
    "while the run's folder is made",
    "inside checkpoint writing",
    "while the final model is written",
)
AIMS = {
    MAKING: ("config.json.partial", "config.json"),
    WRITING: ("checkpoints/*",),
    ENDING: ("model.partial", "finished.json.partial"),
}
LEFT = {MAKING: ("config.json.partial",), WRITING: ("checkpoints/*.partial",), ENDING: AIMS[ENDING]}
WEIGHTS = {"anywhere": 5, MAKING: 1, WRITING: 6, ENDING: 1}


@dataclass
class Tally:
    """What is printed at the end."""

    kills: Counter[str] = field(default_factory=Counter)  # by where they hit
    resumes: int = 0
    runs: int = 0
    lost: int = 0
    duplicated: int = 0
    differ: list[str] = field(default_factory=list)


Start = Callable[[list[str], Path], "subprocess.Popen[bytes] | Forked"]


class Forked:
    """The command in a fork of this process; as much of Popen as is needed."""

    def __init__(self, arguments: list[str], output: Path) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = ["ulorl", *arguments]
        code: object = 1
        try:
            from ulorl.cli.main import main

            main()
        except SystemExit as leaving:
            code = leaving.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 0)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def command(arguments: list[str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "ulorl", *arguments], stdout=file, stderr=file)


def arguments_of(run_dir: Path, beside: bool, settings: Sequence[str]) -> list[str]:
    return ["train", str(RECIPE), *RUN, *settings, f"run.async_checkpoint={str(beside).lower()}", f"run.dir={run_dir}"]


def outcome(run_dir: Path) -> dict[str, object]:
    """What two equal runs have in common."""
    last = run_dir / "checkpoints" / f"step_{STEPS:06d}"
    files = [*last.glob("*.safetensors"), *last.glob("model/*"), *run_dir.glob("model/*"), *run_dir.glob("samples/*")]
    files.append(run_dir / "timeline.jsonl")
    found: dict[str, object] = {
        str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found["metrics"] = [{k: v for k, v in json.loads(m).items() if not k.startswith(CLOCK)} for m in lines]
    return found


def lost_and_duplicated(run_dir: Path) -> tuple[int, int]:
    """Of the samples that the run began: each is stored, or in one of the pools of the newest checkpoint, once."""
    newest = max((run_dir / "checkpoints").glob("step_??????"))
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    ids = Counter(sample["id"] for sample in state["samples"])
    for path in (run_dir / "samples").glob("*.jsonl"):
        ids.update(json.loads(line)["sample"] for line in path.read_text(encoding="utf-8").splitlines())
    begun = range(state["counters"]["next_group"] * GROUP)
    return sum(id not in ids for id in begun), sum(count > 1 or id not in begun for id, count in ids.items())


def touched(run_dir: Path, patterns: Sequence[str], since: float) -> set[str]:
    """The names, without suffix, of such paths that were written to since: an earlier kill may have left others."""
    names = set()
    for path in (path for pattern in patterns for path in run_dir.glob(pattern)):
        with suppress(FileNotFoundError):  # renamed meanwhile
            if path.stat().st_mtime >= since:
                names.add(path.name.partition(".")[0])
    return names


def where(run_dir: Path, since: float) -> str:
    """Where in its life a process that started at `since` was killed, from what it left."""
    for name, patterns in LEFT.items():
        if touched(run_dir, patterns, since):
            return name
    if not (run_dir / "config.json").exists():
        return "before there was a run"
    if not any((run_dir / "checkpoints").glob("step_??????")):
        return "before the first checkpoint"
    return "elsewhere"


def killed(process: subprocess.Popen[bytes] | Forked, run_dir: Path, draw: random.Random, duration: float) -> bool:
    """Kill at a moment after the start, or where it is aimed at; False when the process ended by itself before that."""
    aim, since = draw.choices([*WEIGHTS], [*WEIGHTS.values()])[0], time.time()
    moment, delay, nth = since + draw.uniform(0, duration), draw.uniform(0, 0.04), draw.randint(1, 3)
    seen: set[str] = set()
    while process.poll() is None:
        seen |= touched(run_dir, AIMS.get(aim, ()), since)
        if len(seen) >= (nth if aim == WRITING else 1):
            time.sleep(delay)
            break
        if aim not in AIMS and time.time() >= moment:
            break
        time.sleep(0.0005)
    else:
        return False
    process.kill()
    return process.wait() == -signal.SIGKILL


def disturbed(run_dir: Path, arguments: list[str], start: Start, draw: random.Random, tally: Tally, budget: int,
              duration: float) -> Iterator[str]:  # fmt: skip
    """One run to its end, with `budget` kills at most. Yields what went wrong, nothing when all is well."""
    output = run_dir.with_suffix(".txt")
    kills = 0
    while True:
        since, process = time.time(), start(arguments, output)
        if kills < budget and killed(process, run_dir, draw, duration):
            kills += 1
            tally.kills[where(run_dir, since)] += 1
            tally.resumes += 1
            continue
        code = process.wait()
        if (run_dir / "finished.json").exists():
            return
        yield f"{run_dir.name} ended with {code}:\n{output.read_text(errors='replace')[-3000:]}"
        return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="through forks")
    parser.add_argument("--commands", type=int, default=4, help="further ones through `python -m ulorl`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schedule", choices=SCHEDULES, help="of all runs; without it, the runs take each in turn")
    asked = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    import ulorl.training.run  # noqa: F401 - so that forks need not

    draw, tally, began = random.Random(asked.seed), Tally(), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="ulorl-faults-"))
    schedules = [asked.schedule] if asked.schedule else [*SCHEDULES]
    calm = [Calm.run(folder / name, SCHEDULES[name]) for name in schedules]
    for start, wanted in ((Forked, asked.kills), (command, asked.kills + asked.commands)):
        while (left := wanted - tally.kills.total()) > 0:
            turn = tally.runs % len(calm)
            run_dir, beside = folder / f"run{tally.runs}_{schedules[turn]}", bool(tally.runs // len(calm) % 2)
            budget = min(math.ceil(left / (len(calm) - turn)), draw.randint(1, KILLS_A_RUN))  # some for each schedule
            arguments = arguments_of(run_dir, beside, SCHEDULES[schedules[turn]])
            wrong = list(disturbed(run_dir, arguments, start, draw, tally, budget, calm[turn].seconds))
            tally.differ += wrong or compared(run_dir, calm[turn].outcome, tally)
            tally.runs += 1
            print(f"{tally.kills.total():4} kills, {tally.runs} runs, {time.monotonic() - began:.0f} s", flush=True)
    return report(tally, folder)


@dataclass(frozen=True)
class Calm:
    """The undisturbed run of a schedule."""

    seconds: float
    outcome: dict[str, object]

    @classmethod
    def run(cls, run_dir: Path, settings: Sequence[str]) -> Calm:
        started, output = time.monotonic(), run_dir.with_suffix(".txt")
        if Forked(arguments_of(run_dir, False, settings), output).wait():
            raise SystemExit(output.read_text())
        return cls(time.monotonic() - started, outcome(run_dir))


def compared(run_dir: Path, expected: dict[str, object], tally: Tally) -> list[str]:
    """Count lost and duplicated samples; return what differs from the undisturbed run."""
    lost, duplicated = lost_and_duplicated(run_dir)
    tally.lost, tally.duplicated = tally.lost + lost, tally.duplicated + duplicated
    found = outcome(run_dir)
    differ = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
    return [f"{run_dir.name} differs in {', '.join(sorted(differ))}"] if differ else []


def report(tally: Tally, folder: Path) -> int:
    for wrong in tally.differ:
        print(wrong)
    rows = [("kills", tally.kills.total()), *((f"  {name}", count) for name, count in sorted(tally.kills.items()))]
    rows += [
        ("resumes", tally.resumes), ("runs", tally.runs), ("samples lost", tally.lost),
        ("samples duplicated", tally.duplicated), ("runs that differ", len(tally.differ)),
    ]  # fmt: skip
    print("\n".join(f"{name:<36}{count:>5}" for name, count in rows))
    bad = bool(tally.differ or tally.lost or tally.duplicated)
    print(f"the runs are in {folder}" if bad else "every run ended as the undisturbed one")
    if not bad:
        shutil.rmtree(folder)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
