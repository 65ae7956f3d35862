"""Trains the runs of arms, several at a time, each as `ulorl train` in a process of its own. Finished runs stay as they
are and unfinished ones resume, so the same command continues what was stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ulorl.cancellation import NEVER, CancelToken
from ulorl.common.progress import SILENT, ProgressBars
from ulorl.config.loading import load
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
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
                done = run_folder.finished(Path(cfg.run.dir)) == cfg.steps
                if run_folder.holds_run(Path(cfg.run.dir)):
                    _check_settings(cfg, done)
                if not done:
                    todo.append((arm, seed))
        return todo

    def train(self, arms: Sequence[Arm], bars: ProgressBars = SILENT, cancel: CancelToken = NEVER) -> None:
        """Train the runs that are not finished. Raises UserError when one fails, and Cancelled: the runs in progress
        are saved then."""
        todo = self.unfinished(arms)
        bar = bars.add("runs", len(arms) * self.seeds)
        running: list[_Running] = []
        try:
            while todo or running:
                cancel.check()
                while todo and len(running) < self.jobs:
                    running.append(self._start(*todo.pop(0)))
                running = [one for one in running if not one.ended()]
                done = len(arms) * self.seeds - len(todo) - len(running)
                bar.show(completed=done, status=", ".join(map(str, running)))
                time.sleep(_POLL_SECONDS if running else 0)
        finally:
            for one in running:
                one.stop()
            bar.remove()

    def _start(self, arm: Arm, seed: int) -> _Running:
        run_dir = self.run_dir(arm, seed)
        log = self.out / "logs" / f"{run_dir.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        stream = log.open("a", encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "ulorl", *self.command(arm, seed)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process, which passes it on once
        )
        return _Running(run_dir, process, log, stream)


def _check_settings(cfg: Config, done: bool) -> None:
    """Refuse the run in `run.dir` when it is another one, or finished with a setting that a resumed run may change.
    Raises UserError."""
    differ = {k: v for k, v in run_folder.changes(cfg).items() if not k.startswith(("run.", "log."))}
    if done and differ:
        raise UserError(
            f"{cfg.run.dir} holds a finished run with other settings: {run_folder.changes_text(differ)}. Choose "
            "another --out, or remove that folder",
            code=ErrorCode.RUN_FOLDER_TAKEN,
            file=cfg.run.dir,
            key=next(iter(differ)),
        )


@dataclass(frozen=True)
class _Running:
    """A run in progress. As text: its folder and the steps that it has done."""

    run_dir: Path
    process: subprocess.Popen[bytes]
    log: Path
    stream: IO[str]

    def __str__(self) -> str:
        try:
            lines = (self.run_dir / METRICS).read_bytes().count(b"\n")
        except OSError:
            lines = 0
        return f"{self.run_dir.name} {max(0, lines - 1)}"  # the first line is of step 0

    def ended(self) -> bool:
        """Return whether the run has finished. Raises UserError when it failed."""
        code = self.process.poll()
        if code is None:
            return False
        self.stream.close()
        if code:
            last = " / ".join(self.log.read_text(encoding="utf-8", errors="replace").split("\n")[-4:]).strip(" /")
            raise UserError(
                f"{self.run_dir}: ulorl train ended with exit code {code}: {last or 'no message'}. All of its output "
                f"is in {self.log}; the same command continues when the cause is removed",
                code=ErrorCode.REPRODUCE_RUN_FAILED,
                file=self.log,
            )
        return True

    def stop(self) -> None:
        """Let the run save what it has, and end."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)
        self.process.wait()
        self.stream.close()
