"""A worker's thread decodes by itself, answers every call with a future, and fails all of them when its engine does."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from ulorl.engines.scripted import FaultyEngine, ScriptedEngine
from ulorl.engines.thread_worker import ThreadWorker
from ulorl.types import Finish, Request, Sampling, Segment

EOS, SECONDS = 0, 20
PROMPT = np.array([7, 8], np.int32)


def request(id: int, budget: int = 6) -> Request:
    return Request(id, PROMPT, budget, Sampling(), id)


def scripted(outputs: dict[int, list[int]] | None = None) -> ScriptedEngine:
    return ScriptedEngine(outputs or {0: [1, EOS], 1: [2] * 9999, 2: [3, 3, EOS]}, EOS, slots=2)


def collected(worker: ThreadWorker, samples: int) -> dict[int, Segment]:
    found: dict[int, Segment] = {}
    while len(found) < samples:
        for segment in worker.collect().result(SECONDS).segments:
            assert segment.sample_id not in found
            found[segment.sample_id] = segment
    return found


def test_segments_come_back_by_themselves_and_once() -> None:
    worker = ThreadWorker(scripted())
    worker.decode([request(0), request(1), request(2)]).result(SECONDS)
    found = collected(worker, 3)
    assert {id: (s.tokens.tolist(), s.finish) for id, s in found.items()} == {
        0: ([1, EOS], Finish.EOS), 1: ([2] * 6, Finish.LENGTH), 2: ([3, 3, EOS], Finish.EOS)
    }  # fmt: skip
    idle = worker.collect()
    assert not idle.done()
    worker.decode([request(0)])
    progress = idle.result(SECONDS)
    assert [s.sample_id for s in progress.segments] == [0]
    assert progress.stats.decode_tokens == 2 + 6 + 3 + 2
    worker.close().result(SECONDS)


def test_idle_calls_take_effect_in_their_order() -> None:
    engine = scripted()
    worker = ThreadWorker(engine)
    worker.load_weights([], 5)
    worker.sleep().result(SECONDS)
    worker.decode([request(0)])
    assert collected(worker, 1)[0].versions.tolist() == [5, 5]
    assert not worker.died()
    worker.close().result(SECONDS)
    assert not worker.died()
    with pytest.raises(RuntimeError, match="closed"):
        worker.sleep().result(SECONDS)


def test_abort_returns_partial_segments_through_collect() -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait(segments: list[Segment]) -> list[Segment]:
        entered.set()
        leave.wait(SECONDS)
        return segments

    worker = ThreadWorker(FaultyEngine(scripted(), {0: wait}))
    worker.decode([request(1), request(2)])
    assert entered.wait(SECONDS)
    aborted = worker.abort()
    leave.set()
    aborted.result(SECONDS)
    found = collected(worker, 2)
    assert {id: (s.tokens.tolist(), s.finish) for id, s in found.items()} == {
        1: ([2], Finish.ABORT), 2: ([3], Finish.ABORT)
    }  # fmt: skip
    worker.close().result(SECONDS)


def test_a_wrong_request_fails_its_call_and_not_the_thread() -> None:
    worker = ThreadWorker(scripted())
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        worker.decode([request(0, budget=0)]).result(SECONDS)
    worker.decode([request(0), request(1, 5000)])
    loading = worker.load_weights([], 1)  # while the long one decodes
    with pytest.raises(RuntimeError, match=r"load_weights with [12] requests pending"):
        loading.result(SECONDS)
    assert len(collected(worker, 2)) == 2
    worker.close().result(SECONDS)


def test_an_engine_that_raises_fails_every_call() -> None:
    def raises(_: list[Segment]) -> list[Segment]:
        raise OSError("broken pipe")

    worker = ThreadWorker(FaultyEngine(scripted(), {0: raises}))
    waiting = worker.collect()
    worker.decode([request(0)])
    calls: list[Future[Any]] = [waiting]
    with pytest.raises(OSError, match="broken pipe"):
        waiting.result(SECONDS)
    calls = [worker.collect(), worker.sleep(), worker.decode([request(1)])]
    for call in calls:
        with pytest.raises(OSError, match="broken pipe"):
            call.result(SECONDS)
    worker._thread.join(SECONDS)
    assert worker.died()


def test_a_killed_worker_answers_at_once_and_its_thread_ends() -> None:
    entered, leave, killed = threading.Event(), threading.Event(), threading.Event()

    class InProcess(FaultyEngine):
        def died(self) -> bool:
            return False

        def kill(self) -> bool:
            killed.set()
            return True

    def hang(segments: list[Segment]) -> list[Segment]:
        entered.set()
        leave.wait(SECONDS)
        return segments

    worker = ThreadWorker(InProcess(scripted(), {0: hang}))
    idle = ThreadWorker(scripted())
    worker.decode([request(0)])
    assert entered.wait(SECONDS)
    waiting, queued = worker.collect(), worker.sleep()
    for each in (worker, idle):
        each.kill()
        each.kill()
    for call in (waiting, queued, idle.collect()):
        with pytest.raises(RuntimeError, match="the worker was killed"):
            call.result(SECONDS)
    assert killed.is_set()
    leave.set()
    for each in (worker, idle):
        each._thread.join(SECONDS)
        assert not each._thread.is_alive()


def test_long_decoding_without_a_segment_is_reported() -> None:
    worker = ThreadWorker(scripted({1: [2] * 10**6}), report_seconds=0)
    worker.decode([request(1, 10**6)])
    reports = [worker.collect().result(SECONDS) for _ in range(3)]
    assert all(report.segments == () for report in reports)
    tokens = [report.stats.decode_tokens for report in reports]
    assert tokens == sorted(set(tokens))
    worker.kill()
