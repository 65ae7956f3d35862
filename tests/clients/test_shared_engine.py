"""One engine that many callers give requests to."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pytest

from ulorl.clients.shared_engine import SharedEngine
from ulorl.engines.scripted import ScriptedEngine
from ulorl.types import Finish, Sampling, Segment

EOS = 1
PROMPT = np.array([5, 6], dtype=np.int32)


class Gated(ScriptedEngine):
    """Waits before each step until the test lets it go on, and fails, or waits again, at the step that the test
    names."""

    def __init__(self, *, fails_at: int = 0, pauses_after: int = 0) -> None:
        super().__init__(lambda number: [10 + number] * (number + 2) + [EOS], EOS)
        self.gate, self.paused = threading.Event(), threading.Event()
        self.fails_at, self.pauses_after, self.steps = fails_at, pauses_after, 0

    def step(self) -> list[Segment]:
        assert self.gate.wait(30)
        self.steps += 1
        if self.steps == self.fails_at:
            raise OSError("the engine broke")
        ended = super().step()
        if self.steps == self.pauses_after:
            self.gate.clear()
            self.paused.set()
            assert self.gate.wait(30)
        return ended


def test_requests_join_the_batch_and_each_caller_gets_its_own_output() -> None:
    """Sample n has n + 2 tokens and EOS: eight requests decode together in the 10 steps of the longest."""
    engine = Gated()
    shared = SharedEngine(engine)
    futures = [shared.submit(PROMPT, 20, Sampling(), seed=0) for _ in range(8)]
    dropped = futures[3]
    assert dropped.cancel()
    engine.gate.set()
    for number, future in enumerate(futures):
        if future is not dropped:
            segment = future.result(30)
            assert segment.tokens.tolist() == [10 + number] * (number + 2) + [EOS]
            assert segment.finish is Finish.EOS
    assert 10 <= engine.steps < 10 + 8  # the first steps may come before the last requests
    assert shared.error is None
    shared.close()
    with pytest.raises(RuntimeError):
        shared.submit(PROMPT, 20, Sampling(), seed=0).result(30)


def test_a_request_cancelled_before_it_has_a_slot_is_never_decoded() -> None:
    """One slot: the engine decodes sample 0, refuses 2, which does not fit, and decodes 3."""
    engine = Gated()
    shared = SharedEngine(engine, slots=1)
    first, dropped, unfit, last = (shared.submit(PROMPT, tokens, Sampling(), seed=0) for tokens in (20, 20, 0, 20))
    assert dropped.cancel()
    engine.gate.set()
    assert first.result(30).tokens.tolist() == [10, 10, EOS]
    assert last.result(30).tokens.tolist() == [13] * 5 + [EOS]
    with pytest.raises(ValueError, match="max_new_tokens"):
        unfit.result(30)
    assert [request.sample_id for request in engine.requests] == [0, 3]
    assert engine.steps == 3 + 6
    shared.close()


def test_a_request_cancelled_while_it_is_decoded_leaves_its_slot() -> None:
    """One slot: sample 0 has drawn 2 of its 3 tokens when it is cancelled; sample 1 has 4."""
    engine = Gated(pauses_after=2)
    shared = SharedEngine(engine, slots=1)
    dropped, last = (shared.submit(PROMPT, 20, Sampling(), seed=0) for _ in range(2))
    engine.gate.set()
    assert engine.paused.wait(30)
    assert dropped.cancel()
    engine.gate.set()
    assert last.result(30).tokens.tolist() == [11] * 3 + [EOS]
    assert engine.stats.decode_tokens == 2 + 4
    assert shared.error is None
    shared.close()


def test_a_request_that_does_not_fit_fails_alone() -> None:
    engine = Gated()
    engine.gate.set()
    shared = SharedEngine(engine)
    with pytest.raises(ValueError, match="max_new_tokens"):
        shared.submit(PROMPT, 0, Sampling(), seed=0).result(30)
    assert shared.submit(PROMPT, 20, Sampling(), seed=0).result(30).finish is Finish.EOS
    shared.close()


def assert_all_fail(shared: SharedEngine, futures: Sequence[Future[Segment]]) -> None:
    """These requests and later ones fail with the error of the engine, which is closed."""
    for future in futures:
        with pytest.raises(OSError, match="the engine broke"):
            future.result(30)
    assert isinstance(shared.error, OSError)
    with pytest.raises(OSError, match="the engine broke"):
        shared.submit(PROMPT, 20, Sampling(), seed=0).result(30)
    shared.close()


def test_an_engine_that_fails_fails_every_request() -> None:
    engine = Gated(fails_at=2)
    shared = SharedEngine(engine, slots=2)  # the third one waits for a slot
    futures = [shared.submit(PROMPT, 20, Sampling(), seed=0) for _ in range(3)]
    engine.gate.set()
    assert_all_fail(shared, futures)


def test_an_engine_that_fails_to_stop_a_request_fails_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> list[Segment]:
        raise OSError("the engine broke")

    engine = Gated(pauses_after=2)
    monkeypatch.setattr(engine, "abort_some", fails)
    shared = SharedEngine(engine, slots=2)  # the third one waits for a slot
    dropped, *others = (shared.submit(PROMPT, 20, Sampling(), seed=0) for _ in range(3))
    engine.gate.set()
    assert engine.paused.wait(30)
    assert dropped.cancel()
    engine.gate.set()
    assert_all_fail(shared, others)
