"""A judge in a process of its own, with a time limit that holds for any input and from any thread."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal

from ulorl.rewards import worker

SECONDS = 120.0  # a request's, by the clock: the last resort behind the worker's own limits on its CPU time
START_SECONDS = 300.0  # importing sympy on a loaded machine


class Judge:
    """Scores requests one at a time in `rewards/worker.py`; a request that hangs or kills the worker scores 0 and the
    next one gets a new worker. The worker ends with this process, because its input does."""

    def __init__(self, kind: Literal["math", "task"], seconds: float = SECONDS) -> None:
        self._kind = kind
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def score(self, **request: str) -> float:
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._close()  # it ended between two requests: no answer's fault
            if self._process is None:
                self._process = self._start()
            try:
                _end(self._process.stdin).write(json.dumps(request) + "\n")
                _end(self._process.stdin).flush()
                return float(self._answer(self._process, self._seconds))
            except (BrokenPipeError, ValueError):  # it died, or was killed for taking too long: no answer, no number
                self._close()
                return 0.0

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", str(Path(worker.__file__)), self._kind]  # -P: our folder hides no module
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        if self._answer(process, START_SECONDS) != "ready":
            process.kill()
            raise RuntimeError(f"the judge's process does not start; run it by hand to see why: {' '.join(command)}")
        return process

    def _answer(self, process: subprocess.Popen[str], seconds: float) -> str:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            return _end(process.stdout).readline().strip()  # empty once the process is dead
        finally:
            timer.cancel()

    def _close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(BrokenPipeError):  # what was still unsent
                    _end(pipe).close()
            self._process = None


def _end(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None  # both are opened in _start
    return pipe


@lru_cache
def judge(kind: Literal["math", "task"]) -> Judge:
    """One worker of a kind is shared by the whole process."""
    return Judge(kind)
