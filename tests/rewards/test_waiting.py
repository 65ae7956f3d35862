"""How verdicts are waited for: in order, one at a time, until the token is cancelled."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Event

import pytest

from ulorl.cancellation import NEVER, Cancelled, CancelToken
from ulorl.clients.daemon_pool import DaemonPool
from ulorl.rewards.reward import Reward, RewardError, Verdict, completed, verdict_with_retries, wait_for_verdict
from ulorl.types import Problem

P = Problem("p1", "?", "7")


class Recording(Reward):
    """Judges in this process, and records the order; "bad" fails, "stop" cancels the token."""

    def __init__(self, cancel: CancelToken = NEVER) -> None:
        self.judged: list[str] = []
        self.dropped = 0
        self._cancel = cancel

    def __call__(self, problem: Problem, text: str) -> Verdict:
        self.judged.append(text)
        if text == "bad":
            raise OSError("disk gone")
        if text == "stop":
            self._cancel.cancel()
        return Verdict(float(text == problem.answer))

    def drop_pending(self) -> None:
        self.dropped += 1


def test_a_reward_of_this_process_judges_when_it_is_waited_for() -> None:
    """In the order of waiting, each output once, however often its verdict is asked for."""
    reward = Recording()
    first, second = (reward.submit(P, text) for text in "78")
    assert reward.judged == []
    assert wait_for_verdict(reward, second) == Verdict(0.0)
    assert wait_for_verdict(reward, first) == Verdict(1.0)
    assert wait_for_verdict(reward, first) == Verdict(1.0)
    assert reward.judged == ["8", "7"]
    assert first.done()


def test_a_cancelled_wait_judges_nothing_more_and_drops_what_is_pending() -> None:
    cancel = CancelToken()
    reward = Recording(cancel)
    stop, other = (reward.submit(P, text) for text in ("stop", "7"))
    assert wait_for_verdict(reward, stop, cancel).reward == 0.0  # it was judged before the token was looked at again
    with pytest.raises(Cancelled):
        wait_for_verdict(reward, other, cancel)
    assert reward.judged == ["stop"]
    assert reward.dropped == 1


def test_a_wait_for_another_thread_is_cancelled() -> None:
    class Background(Recording):
        def submit(self, problem: Problem, text: str) -> Future[Verdict]:  # noqa: ARG002
            return Future()  # nobody completes it

        def run_pending(self, future: Future[Verdict], cancel: CancelToken = NEVER) -> None:  # noqa: ARG002
            cancel.cancel()

    reward, cancel = Background(), CancelToken()
    with pytest.raises(Cancelled):
        wait_for_verdict(reward, reward.submit(P, "7"), cancel)
    assert reward.dropped == 1


def test_a_cancelled_wait_drops_what_a_thread_has_not_started() -> None:
    """One thread judges in the order of submission: "first" is in progress, "second" is never judged."""
    begun, go_on, cancel = Event(), Event(), CancelToken()

    class Threaded(Recording):
        threads = DaemonPool(1)

        def __call__(self, problem: Problem, text: str) -> Verdict:
            begun.set()
            assert go_on.wait(30)
            return super().__call__(problem, text)

        def drop_pending(self) -> None:
            Reward.drop_pending(self)
            super().drop_pending()

    reward = Threaded()
    first, second = (reward.submit(P, text) for text in ("first", "second"))
    assert begun.wait(30)
    cancel.cancel()
    with pytest.raises(Cancelled):
        wait_for_verdict(reward, first, cancel)
    with pytest.raises(RewardError):
        wait_for_verdict(reward, second)
    go_on.set()
    assert wait_for_verdict(reward, first) == Verdict(0.0)  # what had begun ends
    assert (reward.judged, reward.dropped) == (["first"], 1)


def test_a_failure_is_repeated_and_returned() -> None:
    reward = Recording()
    verdict, error = verdict_with_retries(reward, P, "bad", reward.submit(P, "bad"), retries=2, pause=0.0)
    assert verdict is None
    assert isinstance(error, OSError)
    assert reward.judged == ["bad"] * 3
    assert reward.dropped == 0
    first = Future[Verdict]()
    first.set_exception(RewardError("away"))
    assert verdict_with_retries(reward, P, "7", first, retries=1, pause=0.0) == (Verdict(1.0), None)
    assert verdict_with_retries(reward, P, "7", completed(Verdict(0.5)), retries=0, pause=0.0) == (Verdict(0.5), None)
