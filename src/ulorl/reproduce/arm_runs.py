"""Trains the runs of arms, several at a time, each as `ulorl train` in a process of its own. Finished runs stay as they
are and unfinished ones resume, so the same command continues what was stopped."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ulorl.cancellation import NEVER, CancelToken
from ulorl.common.progress import SILENT, ProgressBars
from ulorl.config.loading import load
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import ErrorCollector, UserError
from ulorl.reproduce.arms import Arm
from ulorl.runs import run_folder
from ulorl.runs.saved_run import METRICS

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Trainer:
    """Trains arms of one recipe. recipes: TOML files. user: overrides of the command line. out: the folder that gets
    `runs/` and `logs/`. jobs: runs at a time."""

    recipes: tuple[Path, ...]
    user: tuple[str, ...]
    out: Path
    seeds: int
    jobs: int

    def run_dir(self, arm: Arm, seed: int) -> Path:
        """Return the folder of a run."""
        return self.out / "runs" / f"{arm.folder}-seed{seed}"

    def overrides(self, arm: Arm, seed: int) -> list[str]:
        """Return the keys of a run."""
        return arm.overrides(self.user, seed, str(self.run_dir(arm, seed)))

    def command(self, arm: Arm, seed: int) -> list[str]:
        """Return the arguments of `ulorl` that train a run."""
        return ["train", *map(str, self.recipes), *self.overrides(arm, seed)]

    def config(self, arm: Arm, seed: int = 0) -> Config:
        """Return the configuration of a run. Raises UserError."""
        return load(self.recipes, self.overrides(arm, seed))

    def unfinished(self, arms: Sequence[Arm]) -> list[tuple[Arm, int]]:
        """Return the runs that are not finished, all arms of a seed before the next seed. Raises UserError when a
        folder holds a run with other settings, and for settings that no run can have."""
        todo = []
        for seed in range(self.seeds):
            for arm in arms:
                cfg = self.config(arm, seed)
                done = run_folder.finished(Path(cfg.run.dir))
                _check_settings(cfg, done or 0)
                if done != cfg.steps:
                    todo.append((arm, seed))
        return todo

    def train(self, arms: Sequence[Arm], bars: ProgressBars = SILENT, cancel: CancelToken = NEVER) -> None:
        """Train the runs that are not finished. Raises UserError when some fail, after all others are finished, and
        Cancelled: the runs in progress are saved then."""
        todo, errors = self.unfinished(arms), ErrorCollector()
        bar = bars.add("runs", len(arms) * self.seeds)
        running: list[_Running] = []
        try:
            while todo or running:
                cancel.check()
                while todo and len(running) < self.jobs:
                    running.append(self._start(*todo.pop(0)))
                ended = [one for one in running if one.ended]
                running = [one for one in running if one not in ended]
                for one in ended:
                    with errors:
                        one.close()
                bar.show(completed=len(arms) * self.seeds - len(todo) - len(running), status=_names(running))
                time.sleep(_POLL_SECONDS if running else 0)
        finally:
            for one in running:
                one.process.terminate()  # as Ctrl-C does: the run saves what it has
            for one in running:
                one.process.wait()
            bar.remove()
        errors.raise_errors()

    def _start(self, arm: Arm, seed: int) -> _Running:
        run_dir = self.run_dir(arm, seed)
        log = self.out / "logs" / f"{run_dir.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "ulorl", *self.command(arm, seed)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process, which passes it on once
            )
        return _Running(run_dir, process, log)


def _check_settings(cfg: Config, done: int) -> None:
    """Refuse the folder of a run that has other settings than `cfg`, also those that a resumed run may change, or that
    was finished after more steps. Raises UserError."""
    if not run_folder.holds_run(Path(cfg.run.dir)):
        return
    try:
        found = run_folder.changes(cfg)
    except UserError as error:
        found = {error.key or "": (None, None)}
    keys = [key for key in found if not key.startswith(("run.", "log.")) and (key != "steps" or done > cfg.steps)]
    if keys:
        raise UserError(
            f"{cfg.run.dir} holds a run with other settings ({', '.join(keys)}). Choose another --out, or remove that "
            "folder",
            code=ErrorCode.RUN_FOLDER_TAKEN,
            file=cfg.run.dir,
            key=keys[0],
        )


def _names(running: Sequence[_Running]) -> str:
    return ", ".join(f"{one.run_dir.name} {one.steps}" for one in running)


@dataclass(frozen=True)
class _Running:
    """A run in progress."""

    run_dir: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def steps(self) -> int:
        """The steps that it has done."""
        try:
            return max(0, (self.run_dir / METRICS).read_bytes().count(b"\n") - 1)  # the first line is of step 0
        except OSError:
            return 0

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def close(self) -> None:
        """Raise UserError when the run failed."""
        if self.process.returncode:
            last = " / ".join(self.log.read_text(encoding="utf-8", errors="replace").split("\n")[-4:]).strip(" /")
            raise UserError(
                f"{self.run_dir}: ulorl train ended with exit code {self.process.returncode}: {last or 'no message'}. "
                f"All of its output is in {self.log}; the same command continues when the cause is removed",
                code=ErrorCode.REPRODUCE_RUN_FAILED,
                file=self.log,
            )
