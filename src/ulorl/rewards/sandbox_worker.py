"""The process of a sandbox: reads a line of JSON for each request and writes a line of JSON for its answer.

An answer is {"score": 1.0}, {"failed": why} when the scorer cannot decide, or {"refused": why} when it never will.

The file runs as a script, so that it imports no torch, and of this package only what a kind needs. Answers are parsed
here, not in the trainer, because `10**10**10` or a hostile expression can take all the time and memory there is. A
user's function runs here, because one that hangs can be stopped only with its process.
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any

CPU_SECONDS = 4  # of a request, in this process's own time: a loaded machine judges as an idle one does
KILL_CPU_SECONDS = 8  # for a call into C that no exception reaches; the parent then starts another worker
MEMORY_BYTES = 4 << 30


def task_score(task: str, settings: str, entry: str, answer: str) -> float:
    """Return 1.0 when reasoning-gym gives an answer its full score, else 0.0, also when its scorer fails on the
    answer."""
    dataset, parsed = _dataset(task, settings), ast.literal_eval(entry)  # may raise: that is not the answer's fault
    try:
        score = dataset.score_answer(answer, parsed)
    except Exception:  # scorers parse free text, each in its own way
        return 0.0
    return float(score >= 1.0)


@lru_cache(maxsize=64)
def _dataset(task: str, settings: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(task, size=1, seed=0, **json.loads(settings))


class OutOfTime(BaseException):
    """A request used up its CPU time. It is no Exception, because scorers catch those."""


def _out_of_time(*_: object) -> None:
    raise OutOfTime


@contextmanager
def limited() -> Iterator[None]:
    """Bound the CPU time and memory of one request where the system can (POSIX); elsewhere only the parent's clock
    does."""
    try:
        import resource
    except ImportError:
        yield
        return
    cpu = int(time.process_time()) + KILL_CPU_SECONDS
    for limit, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, cpu)):
        _, hard = resource.getrlimit(limit)  # a user or a cluster may have set one, which must not be raised
        with suppress(ValueError):  # macOS refuses every limit on the address space
            resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    signal.signal(signal.SIGPROF, _out_of_time)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def user_function(path: str, arguments: Mapping[str, Any]) -> Callable[[Any, str], Any]:
    """Return the function that `module:name` names, with these keyword arguments bound to it. Raises LookupError when
    there is none that takes them and two arguments."""
    from ulorl.common.importing import imported_attribute

    found = imported_attribute(path)
    if not callable(found):
        raise LookupError(f"is a {type(found).__name__}, not a function of (problem, text)")
    try:
        inspect.signature(found).bind(None, "", **arguments)
    except TypeError as error:
        names = ", ".join(["problem", "text", *arguments])
        given = " as reward.arguments says" if arguments else ""
        raise LookupError(f"must take the arguments ({names}){given}: {error}") from None
    except ValueError:
        pass  # a builtin without a signature
    return partial(found, **arguments)


def function_answer(function: Callable[[Any, str], Any], problem: Any, text: str) -> dict[str, Any]:
    """Return the answer to a request of a user's function."""
    try:
        value = function(problem, text)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number not in (0.0, 1.0):
        return {"refused": f"returned {value!r} for problem {problem.id}, expected 0 or 1"}
    return {"score": number}


def limited_answer(score: Callable[..., float | str], request: dict[str, str]) -> dict[str, Any]:
    """Return the answer to a request of one of our scorers: a score of 0.0 when it exceeds its time or memory."""
    try:
        with limited():
            return {"score": score(**request)}
    except (OutOfTime, MemoryError, RecursionError):
        return {"score": 0.0}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def answerer(kind: str, function: str, arguments: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the function that answers requests. Imports and compiles here, outside the first request's time limit."""
    if kind == "function":
        from ulorl.types import Problem

        found = user_function(function, json.loads(arguments))
        return lambda request: function_answer(found, Problem(**request["problem"]), request["text"])
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.set_int_max_str_digits(10_000)
    if kind == "reading":
        from ulorl.rewards import explanation

        explanation.reading(r"\sqrt{4}\text{ m}", "2 kg", strict=False)  # loads sympy and pint
        return lambda request: limited_answer(explanation.reading, request)
    if kind != "task":
        from ulorl.answers import equality

        scorer = getattr(equality, f"{kind}_score")
        scorer(r"\sqrt{4}\text{ m}", r"\sqrt{4}\text{ m}")  # loads sympy and pint
        return lambda request: limited_answer(scorer, request)
    import reasoning_gym  # noqa: F401

    return lambda request: limited_answer(task_score, request)


def main() -> None:
    """Answer the requests on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends this process
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that what libraries print is no answer
    sys.stdout = sys.stderr
    sys.path[:] = json.loads(sys.stdin.readline())  # modules are found as in the parent
    try:
        answer = answerer(*sys.argv[1:])
        print(json.dumps({"ready": True}), file=answers, flush=True)
    except LookupError as error:
        print(json.dumps({"refused": str(error)}), file=answers, flush=True)
        return
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
