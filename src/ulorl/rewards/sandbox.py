"""Judges in a process of their own, with a time limit that holds for any input and from any thread."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from queue import LifoQueue
from typing import IO, Any, Literal
from weakref import WeakSet

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards import sandbox_worker
from ulorl.rewards.reward import RewardError

SECONDS = 120.0  # of a request, by the clock: the last resort behind the worker's own limits on its CPU time
START_SECONDS = 300.0  # importing sympy on a loaded machine
# math, numeric and rules: the functions of answers/equality.py; task: reasoning-gym; reading: rewards/explanation.py
Kind = Literal["math", "numeric", "rules", "task", "reading"]
_OUT_OF_CPU = -getattr(signal, "SIGXCPU", 0)  # the return code of a worker that its limit on CPU time stopped


class Sandbox:
    """A process that answers requests one at a time (`sandbox_worker.py`).

    A request that hangs or kills the process raises RewardError, and the next request gets a new process. The process
    ends with this one: `_end_all` kills it, or its input ends.
    """

    def __init__(
        self,
        kind: Kind | Literal["function"],
        seconds: float = SECONDS,
        function: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """seconds: that a request may take by the clock. function, arguments: `module:name` and its keyword arguments,
        for kind "function"."""
        self._kind, self._seconds, self._function = kind, seconds, function
        self._arguments = json.dumps(dict(arguments or {}))
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._ended = threading.Event()  # for good
        _all.add(self)

    def __del__(self) -> None:
        try:  # noqa: SIM105 - at the interpreter's end names are gone, `suppress` too; the worker ends with it
            self._close()
        except TypeError:
            pass

    def start(self) -> None:
        """Start the process now. Raises UserError for a function that cannot be used, RewardError if none starts."""
        with self._lock:
            self._running()

    def score(self, **request: Any) -> float:
        """Return the score of a request; 0.0 also for one that used up its CPU time, since it would do so again.

        Raises RewardError when the scorer raises, dies or does not answer, and UserError when a user's function returns
        neither 0 nor 1.
        """
        return float(self._answered(request)["score"])

    def text(self, **request: Any) -> str:
        """Return the text of a request of kind "reading"; "" for one that used up its CPU time. Raises RewardError."""
        return str(self._answered(request)["score"] or "")

    def end(self) -> None:
        """Kill the process, also during a request, and start no other: later requests raise RewardError."""
        self._ended.set()
        if (process := self._process) is not None:
            process.kill()

    def _answered(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            process = self._running()
            with suppress(BrokenPipeError):  # it died: `_answer` finds out
                _end(process.stdin).write(json.dumps(request) + "\n")
                _end(process.stdin).flush()
            try:
                answer = self._answer(process, self._seconds)
            except BaseException as error:  # also Ctrl-C: a late answer must not become the next request's
                self._close()
                if isinstance(error, RewardError) and error.exit_code == _OUT_OF_CPU:
                    return {"score": 0.0}
                raise
        if "failed" in answer:
            raise RewardError(answer["failed"])
        if "refused" in answer:
            raise self._refused(answer)
        return answer

    def _refused(self, answer: Mapping[str, Any]) -> UserError:
        message = f"reward.function={self._function}: {answer['refused']}"
        return UserError(message, code=ErrorCode.REWARD_FUNCTION, key="reward.function")

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is not None:
            self._close()  # it ended between two requests: the cause was no answer
        if self._ended.is_set():
            raise RewardError("this process ends")
        if self._process is None:
            # -P: our folder hides no module
            script = str(Path(sandbox_worker.__file__))
            command = [sys.executable, "-P", script, self._kind, self._function, self._arguments]
            # Sympy's results can depend on the order of sets, and that on the hash seed, which else differs each time.
            fixed = {**os.environ, "PYTHONHASHSEED": "0"}
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, encoding="utf-8", env=fixed)
            if self._ended.is_set():  # `end`, which takes no lock, may have seen no process
                self._close()
                raise RewardError("this process ends")
            try:
                with suppress(BrokenPipeError):
                    _end(self._process.stdin).write(json.dumps(sys.path) + "\n")
                    _end(self._process.stdin).flush()
                answer = self._answer(self._process, START_SECONDS)
            except BaseException as error:
                self._close()
                if isinstance(error, RewardError):
                    message = f"{error}; it does not start: {' '.join(command)}"
                    raise RewardError(message, timed_out=error.timed_out, exit_code=error.exit_code) from None
                raise
            if "refused" in answer:
                self._close()
                raise self._refused(answer)
        return self._process

    def _answer(self, process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True  # else a request in a daemon thread would keep this process alive
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
            raise RewardError(f"no answer within {seconds:g} seconds", timed_out=True)
        code = process.returncode
        raise RewardError(f"the reward's process ended with code {code}", exit_code=code)

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


_all = WeakSet[Sandbox]()


@atexit.register
def _end_all() -> None:
    """Kill what judges for daemon threads: a request that never ends would outlive this process."""
    for sandbox in list(_all):
        sandbox.end()


class SandboxPool:
    """Sandboxes of one kind, which answer as many requests at once. A process starts when all others are busy."""

    def __init__(
        self,
        workers: int,
        kind: Kind | Literal["function"],
        seconds: float = SECONDS,
        function: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """workers: sandboxes; the others as of `Sandbox`."""
        self._free = LifoQueue[Sandbox]()
        for _ in range(workers):
            self._free.put(Sandbox(kind, seconds, function, arguments))

    def start(self) -> None:
        """Start one process, as `Sandbox.start` does."""
        with self._lent() as sandbox:
            sandbox.start()

    def score(self, **request: Any) -> float:
        """Return the score of a request, as `Sandbox.score` does, once a sandbox is free."""
        with self._lent() as sandbox:
            return sandbox.score(**request)

    def text(self, **request: Any) -> str:
        """Return the text of a request, as `Sandbox.text` does, once a sandbox is free."""
        with self._lent() as sandbox:
            return sandbox.text(**request)

    @contextmanager
    def _lent(self) -> Iterator[Sandbox]:
        sandbox = self._free.get()
        try:
            yield sandbox
        finally:
            self._free.put(sandbox)


@lru_cache
def shared_sandbox(kind: Kind, seconds: float = SECONDS, workers: int = 1) -> SandboxPool:
    """Return the sandboxes of a kind that the whole process shares."""
    return SandboxPool(workers, kind, seconds)
