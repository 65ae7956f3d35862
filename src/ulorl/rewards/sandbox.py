"""A judge in a process of its own, with a time limit that holds for any input and from any thread."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal

from ulorl.errors import UserError
from ulorl.rewards import sandbox_worker
from ulorl.rewards.reward import RewardError

SECONDS = 120.0  # a request's, by the clock: the last resort behind the worker's own limits on its CPU time
START_SECONDS = 300.0  # importing sympy on a loaded machine
Kind = Literal[
    "math", "numeric", "rules", "task", "reading"
]  # math, numeric, rules: `equality.py`; reading: `explain.py`
_OUT_OF_CPU = -getattr(signal, "SIGXCPU", 0)  # how a worker ends that its limit on CPU time had to stop


class Sandbox:
    """Scores requests one at a time in `rewards/worker.py`; one that hangs or kills the worker is a RewardError, and
    the next one gets a new worker. The worker ends with this process, because its input does.

    function: `module:name`, for kind "function".
    """

    def __init__(self, kind: Kind | Literal["function"], seconds: float = SECONDS, function: str = "") -> None:
        self._kind, self._seconds, self._function = kind, seconds, function
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def __del__(self) -> None:
        try:  # noqa: SIM105 - at the interpreter's end names are gone, `suppress` too; the worker ends with it
            self._close()
        except TypeError:
            pass

    def start(self) -> None:
        """Start the worker now. Raises UserError for a function that cannot be used, RewardError if none starts."""
        with self._lock:
            self._running()

    def score(self, **request: Any) -> float:
        """0.0 also for a request that used up the worker's CPU time: it would do so again. Raises RewardError when the
        worker raises, dies or does not answer, UserError when it gives neither 0 nor 1."""
        return float(self._answered(request)["score"])

    def text(self, **request: Any) -> str:
        """As `score`, of kind "reading"; "" for a request that used up the CPU time."""
        return str(self._answered(request)["score"] or "")

    def _answered(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            process = self._running()
            with suppress(BrokenPipeError):  # it died: the missing answer will say so
                _end(process.stdin).write(json.dumps(request) + "\n")
                _end(process.stdin).flush()
            try:
                answer = self._answer(process, self._seconds)
            except BaseException as error:  # also Ctrl-C: a late answer must not be taken for the next request's
                self._close()
                if isinstance(error, RewardError) and process.returncode == _OUT_OF_CPU:
                    return {"score": 0.0}
                raise
        if "failed" in answer:
            raise RewardError(answer["failed"])
        if "refused" in answer:
            raise UserError(f"reward.function={self._function}: {answer['refused']}")
        return answer

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is not None:
            self._close()  # it ended between two requests: no answer's fault
        if self._process is None:
            # -P: our folder hides no module
            command = [sys.executable, "-P", str(Path(sandbox_worker.__file__)), self._kind, self._function]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
            try:
                with suppress(BrokenPipeError):
                    _end(self._process.stdin).write(json.dumps(sys.path) + "\n")
                    _end(self._process.stdin).flush()
                answer = self._answer(self._process, START_SECONDS)
            except BaseException as error:
                self._close()
                if isinstance(error, RewardError):
                    raise RewardError(f"{error}; it does not start: {' '.join(command)}") from None
                raise
            if "refused" in answer:
                self._close()
                raise UserError(f"reward.function={self._function}: {answer['refused']}")
        return self._process

    def _answer(self, process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, expire)
        timer.start()
        try:
            line = _end(process.stdout).readline()
        finally:
            timer.cancel()
        if line.endswith("\n"):
            answer: dict[str, Any] = json.loads(line)
            return answer
        process.wait()
        if expired.is_set():
            raise RewardError(f"no answer within {seconds:g} seconds")
        raise RewardError(f"the reward's process ended with code {process.returncode}")

    def _close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(BrokenPipeError):  # what was still unsent
                    _end(pipe).close()
            self._process = None


def _end(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None  # both are opened in _running
    return pipe


@lru_cache
def shared_sandbox(kind: Kind, seconds: float = SECONDS) -> Sandbox:
    """One worker of a kind is shared by the whole process."""
    return Sandbox(kind, seconds)
