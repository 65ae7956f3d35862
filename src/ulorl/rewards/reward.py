"""The interface of all rewards, and how a verdict is waited for."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass, field
from functools import partial

from ulorl.cancellation import NEVER, CancelToken
from ulorl.clients.daemon_pool import DaemonPool
from ulorl.errors import UserError
from ulorl.types import Metrics, Problem

CHECK_SECONDS = 0.2  # between two looks at the cancel token while a verdict is waited for


class RewardError(Exception):
    """The reward failed: it raised, took too long or died. That says nothing about the output."""

    def __init__(self, message: str, *, timed_out: bool = False, exit_code: int | None = None) -> None:
        """exit_code: of the process that died, negative for a signal."""
        super().__init__(message)
        self.timed_out, self.exit_code = timed_out, exit_code


@dataclass(frozen=True)
class Verdict:
    """The decision of a reward about a finished output."""

    reward: float  # 1.0: the output answers the problem correctly, else 0.0
    answer: str | None = ""  # what was judged; "": the reward does not say; None: the output holds no answer
    place: str = field(default="", compare=False)  # where the answer was found, as in `reward.answer.find`; "": unknown
    reason: str = field(default="", compare=False)  # for people, as far as it costs nothing to say


class Reward(ABC):
    """Judges finished outputs. Truncated samples are not submitted: the scorer gives them 0."""

    retries_itself = False  # whether the reward repeats what fails, so that no caller does
    threads: DaemonPool | None = None  # that judge what is submitted; None: it is judged when it is waited for

    @abstractmethod
    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Judge one output. `text` is the decoded output without special tokens; one without an answer is wrong.

        Raises RewardError (any other exception counts the same) when the reward cannot decide, and UserError for what
        another attempt cannot fix.
        """

    def submit(self, problem: Problem, text: str) -> Future[Verdict]:
        """Return a future of what `__call__` returns or raises.

        A reward that waits for another process or a server starts here, while other samples are still being decoded:
        it has `threads`, or overrides this method. The others take microseconds of this process and judge when the
        future is waited for: `wait_for_verdict` calls `run_pending` first.
        """
        judge = partial(self, problem, text)
        return self.threads.submit(judge) if self.threads else _Deferred(judge)

    def run_pending(self, future: Future[Verdict], cancel: CancelToken = NEVER) -> None:  # noqa: ARG002
        """Do the work of this process that `future` waits for, if there is any. Raises Cancelled."""
        if isinstance(future, _Deferred):
            future.run()

    def drop_pending(self) -> None:
        """Give up what was submitted and not started yet: `wait_for_verdict` raises RewardError for its futures."""
        if self.threads:
            self.threads.drop()

    def check(self, problem: Problem) -> None:  # noqa: B027 - most rewards can judge every problem
        """Check that the reward can judge a problem. Raises UserError."""

    def explain(self, problem: Problem, text: str, verdict: Verdict) -> str:  # noqa: ARG002
        """Return the reason of a verdict on an output, with details that cost more time than training should pay."""
        return verdict.reason

    def output_with(self, answer: str) -> str:
        """Return an output that this reward reads `answer` from: the answer itself, if it judges whole outputs."""
        return answer

    def metrics(self) -> Metrics:
        """Return the reward's own numbers since the last call, for metrics.jsonl."""
        return {}


class _Deferred(Future[Verdict]):
    """A verdict that is computed when `run` is called."""

    def __init__(self, judge: Callable[[], Verdict]) -> None:
        super().__init__()
        self._judge = judge

    def run(self) -> None:
        if self.done():
            return
        try:
            verdict = self._judge()
        except Exception as error:
            self.set_exception(error)
        else:
            self.set_result(verdict)


def completed(verdict: Verdict) -> Future[Verdict]:
    """Return a future that holds `verdict` already."""
    future = Future[Verdict]()
    future.set_result(verdict)
    return future


def wait_for_verdict(reward: Reward, future: Future[Verdict], cancel: CancelToken = NEVER) -> Verdict:
    """Return the verdict of a future that `reward.submit` returned.

    Raises what the reward raises, and Cancelled when `cancel` is cancelled meanwhile; then the reward drops what it has
    not started yet.
    """
    try:
        cancel.check()
        reward.run_pending(future, cancel)
        while not wait_for_futures([future], CHECK_SECONDS).done:
            cancel.check()
    except BaseException:
        reward.drop_pending()
        raise
    try:
        return future.result()
    except CancelledError:
        raise RewardError("the verdict was given up while another one was waited for") from None


def verdict_with_retries(
    reward: Reward,
    problem: Problem,
    text: str,
    future: Future[Verdict],
    cancel: CancelToken = NEVER,
    *,
    retries: int,
    pause: float,
) -> tuple[Verdict | None, Exception | None]:
    """Wait for a verdict, and submit the output again, at most `retries` times, `pause` seconds apart, when the reward
    fails and does not retry itself.

    Returns the verdict and None, or None and the last failure. Raises UserError as the reward, and Cancelled.
    """
    failure: Exception | None = None
    for attempt in range(1 if reward.retries_itself else 1 + retries):
        try:
            if attempt:
                time.sleep(pause)
                cancel.check()
                future = reward.submit(problem, text)
            return wait_for_verdict(reward, future, cancel), None
        except UserError:
            raise
        except Exception as error:
            failure = error
    return None, failure
