"""Several engines as one: nothing is lost, nothing comes back twice, and tokens do not depend on who decodes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from chaos_engine import ChaosEngine
from refusals import refused
from ulorl.cancellation import Cancelled, CancelToken
from ulorl.engines import fleet as fleet_module
from ulorl.engines.decode import rollout
from ulorl.engines.engine import Engine
from ulorl.engines.fleet import EngineFleet, FleetSettings
from ulorl.engines.scripted import FaultyEngine, ScriptedEngine
from ulorl.engines.segment_checks import SegmentChecks
from ulorl.engines.thread_worker import ThreadWorker
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.engines.worker import EngineWorker
from ulorl.error_codes import ErrorCode
from ulorl.errors import EngineMismatch
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import TINY, ModelSource
from ulorl.rng import sample_seed
from ulorl.types import Finish, Request, Sampling, Segment

EOS, VOCABULARY, GROUP, SECONDS = 0, 50, 2, 20
PROMPT = np.array([7, 8], np.int32)
Found = dict[int, tuple[list[int], list[float], list[int], Finish]]


def script(id: int) -> list[int]:
    """Between 1 and 23 tokens before EOS, so that some requests end by EOS and some by their budget."""
    return [1 + (id * 31 + at) % (VOCABULARY - 1) for at in range(1 + id * 7 % 23)] + [EOS]


def request(id: int, budget: int = 12) -> Request:
    return Request(id, PROMPT, budget, Sampling(), id)


def scripted(version: int = 0, slots: int = 3) -> ScriptedEngine:
    return ScriptedEngine(script, EOS, version, slots=slots)


def worker(engine: Engine) -> ThreadWorker:
    return ThreadWorker(engine, report_seconds=0.01)


def fleet(
    engines: list[Any], remake: Callable[[int], Any] = lambda _: scripted(), **settings: Any
) -> tuple[EngineFleet, list[str]]:
    """A fleet over engines, or workers; `remake` returns one of both."""
    reported: list[str] = []

    def as_worker(made: Any) -> EngineWorker:
        return made if hasattr(made, "collect") else worker(made)

    made = EngineFleet(
        [as_worker(engine) for engine in engines],
        remake=lambda index: as_worker(remake(index)),
        checks=SegmentChecks([EOS], VOCABULARY, Sampling()),
        settings=FleetSettings(**({"slots": 3, "group": GROUP, "pause": 0.01} | settings)),
        on_fault=reported.append,
    )
    return made, reported


def entry(s: Segment) -> tuple[list[int], list[float], list[int], Finish]:
    return s.tokens.tolist(), s.logprobs.tolist(), s.versions.tolist(), s.finish


def play(engine: Engine, ids: range = range(40)) -> Found:
    """Decodes all; a sample that comes back twice fails the test."""
    found: Found = {}
    started = time.monotonic()
    for segment in rollout(engine, [request(id) for id in ids]):
        assert segment.sample_id not in found
        found[segment.sample_id] = entry(segment)
        assert time.monotonic() - started < SECONDS
    assert engine.pending == 0
    return found


UNDISTURBED = play(scripted(slots=0))


def hanging() -> Iterator[tuple[Callable[[list[Segment]], list[Segment]], threading.Event]]:
    """A step that hangs until the test ends."""
    release = threading.Event()

    def hang(segments: list[Segment]) -> list[Segment]:
        release.wait(SECONDS)
        return segments

    yield hang, release
    release.set()


hangs = pytest.fixture(hanging)


def raises(_: list[Segment]) -> list[Segment]:
    raise OSError("broken pipe")


@pytest.fixture(autouse=True)
def short_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "CLOSE_SECONDS", 0.2)


# Without faults


@pytest.mark.parametrize("engines", [1, 2, 3, 7])
def test_segments_do_not_depend_on_the_number_of_engines(engines: int) -> None:
    made, reported = fleet([scripted() for _ in range(engines)])
    with closing(made):
        assert play(made) == UNDISTURBED
        assert made.stats.decode_tokens == sum(len(tokens) for tokens, *_ in UNDISTURBED.values())
        assert sum(place.tokens for place in made.occupancy) == made.stats.decode_tokens
    assert reported == []


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_outputs_of_the_tiny_model_do_not_depend_on_the_number_of_engines(temperature: float) -> None:
    source = ModelSource(TINY)
    prompts = [np.array(source.tokenizer(text)["input_ids"], np.int32) for text in ("Use 2, 3 and 7 to make 13.", "1+")]
    requests = [Request(id, prompts[id % 2], 8 + id, Sampling(temperature), sample_seed(1, id)) for id in range(8)]

    def decoded(engines: int) -> dict[int, Segment]:
        def made(_: int) -> ThreadWorker:
            model = load_model(source, dtype=torch.float32, device="cpu")
            return worker(TorchEngine(model, eos_ids=source.eos_ids, slots=3, prefill_tokens=128, max_length=128))

        fleet = EngineFleet(
            [made(index) for index in range(engines)],
            remake=made,
            checks=SegmentChecks(source.eos_ids, source.vocabulary, Sampling(temperature)),
            settings=FleetSettings(slots=3, group=GROUP),
        )
        with closing(fleet):
            return {segment.sample_id: segment for segment in rollout(fleet, requests)}

    alone = decoded(1)
    assert len({tuple(segment.tokens.tolist()[:8]) for segment in alone.values()}) >= (6 if temperature else 2)
    for engines in (2, 3):
        found = decoded(engines)
        assert sorted(found) == sorted(alone)
        for id, segment in found.items():
            assert segment.tokens.tolist() == alone[id].tokens.tolist()
            assert segment.finish is alone[id].finish
            np.testing.assert_allclose(segment.logprobs, alone[id].logprobs, atol=1e-4)


def test_an_engine_has_no_more_requests_than_slots_and_siblings_are_apart() -> None:
    engines = [scripted() for _ in range(4)]
    made, _ = fleet(engines)
    with closing(made):
        for id in range(12):
            made.add(request(id))
        made._deal()
        assert [len(member.requests) for member in made._members] == [3, 3, 3, 3]
        held = [[r.sample_id // GROUP for r in member.requests] for member in made._members]
        assert all(len(set(groups)) == len(groups) for groups in held)
        for id in range(12, 40):
            made.add(request(id))
        found = {}
        while made.pending:
            assert all(len(member.requests) <= 3 for member in made._members)
            found |= {s.sample_id: entry(s) for s in made.step()}
        assert found == UNDISTURBED
        assert made.step() == []


def test_every_engine_loads_at_the_same_time() -> None:
    """As in a broadcast: no call returns before all have begun."""
    barrier = threading.Barrier(3, timeout=SECONDS)

    class Broadcast(ScriptedEngine):
        def load_weights(self, weights: Any, version: int) -> None:
            barrier.wait()
            super().load_weights(weights, version)

    made, reported = fleet([Broadcast(script, EOS) for _ in range(3)])
    with closing(made):
        made.load_weights([], 4)
        assert {version for _, _, versions, _ in play(made).values() for version in versions} == {4}
        made.sleep()
    assert reported == []


def test_wrong_calls_are_refused() -> None:
    made, reported = fleet([scripted(), scripted()])
    with closing(made):
        with pytest.raises(TypeError, match="iterated several times"):
            made.load_weights(iter([]), 1)
        made.add(request(3))
        with pytest.raises(ValueError, match="sample 3 is being decoded already"):
            made.add(request(3))
        for call in (made.sleep, lambda: made.load_weights([], 1)):
            with pytest.raises(RuntimeError, match="with 1 requests pending"):
                call()
    assert reported == []


def test_a_caller_can_cancel_while_nothing_ends(hangs: Any) -> None:
    made, _ = fleet([FaultyEngine(scripted(), {0: hangs[0]}), scripted()])
    cancel = CancelToken()
    threading.Timer(0.4, cancel.cancel).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        list(rollout(made, [request(0)], cancel))
    assert time.monotonic() - started < 5
    assert made.occupancy[0].idle_seconds == 0
    assert made.occupancy[1].idle_seconds > 0.1
    hangs[1].set()
    made.close()


def test_abort_returns_partial_segments_of_all_and_empty_ones_of_those_that_wait() -> None:
    entered, leave = threading.Barrier(3, timeout=SECONDS), threading.Event()

    def wait(segments: list[Segment]) -> list[Segment]:
        entered.wait()
        leave.wait(SECONDS)
        return segments

    made, reported = fleet([FaultyEngine(scripted(slots=1), {0: wait}) for _ in range(2)], slots=1)
    with closing(made):
        ids = [5, 8, 11, 14]
        for id in ids:
            made.add(request(id))
        made.step()
        entered.wait()
        leave.set()
        partial = made.abort()
        assert [s.sample_id for s in partial] == ids
        assert [len(s) > 0 for s in partial] == [True, True, False, False]
        for segment in partial:
            assert segment.tokens.tolist() == script(segment.sample_id)[: len(segment)]
        assert made.pending == 0
        assert play(made) == UNDISTURBED
    assert reported == []


# Faults


@pytest.mark.parametrize("step", [0, 2, 5])
def test_requests_of_a_worker_that_raises_are_given_out_again(step: int) -> None:
    made, reported = fleet([FaultyEngine(scripted(), {step: raises}), scripted(), scripted()])
    with closing(made):
        assert play(made) == UNDISTURBED
    assert len(reported) == made.stats.faults == 1
    assert reported[0].startswith("engine 0: OSError: broken pipe (test_fleet.py:")
    assert made.stats.retried >= 1
    assert [place.faults for place in made.occupancy] == [1, 0, 0]


def test_a_worker_that_hangs_is_replaced_while_the_others_decode(hangs: Any) -> None:
    ready = threading.Event()

    def remake(_: int) -> ScriptedEngine:
        assert ready.wait(SECONDS)  # the other one decodes everything
        return scripted()

    made, reported = fleet([FaultyEngine(scripted(), {1: hangs[0]}), scripted()], remake, deadline=0.2)
    assert play(made) == UNDISTURBED
    ready.set()
    assert "engine 0: killed: no token in 0.2 seconds (engine.deadline); 3 requests" in reported[0]
    assert len(reported) == 1
    assert play(made) == UNDISTURBED
    hangs[1].set()
    made.close()


def test_a_late_segment_of_a_replaced_worker_is_dropped(hangs: Any) -> None:
    """The worker that hung answers after its requests were given out again."""
    old = worker(FaultyEngine(scripted(), {1: hangs[0]}))
    old.kill = lambda: None  # type: ignore[method-assign]  # a worker that cannot be reached any more
    made, reported = fleet([old], deadline=0.2)
    for id in range(40):
        made.add(request(id))
    found: Found = {}
    while made.pending:
        for segment in made.step():
            assert segment.sample_id not in found
            found[segment.sample_id] = entry(segment)
        if made.stats.faults:
            hangs[1].set()
    assert found == UNDISTURBED
    assert len(reported) == 1
    made.close()


def test_a_process_that_died_is_noticed_without_a_deadline() -> None:
    dying = ChaosEngine(scripted(), random.Random(0), 1.0, ["dies"])
    made, reported = fleet([dying, scripted()])
    with closing(made):
        assert play(made) == UNDISTURBED
    assert "engine 0: its process died" in reported[0]


@pytest.mark.parametrize("how", ["raises", "hangs", "dies"])
def test_a_worker_that_fails_to_load_is_replaced_by_one_with_the_new_weights(how: str) -> None:
    loaded: list[int] = []

    class Recording(ScriptedEngine):
        def load_weights(self, weights: Any, version: int) -> None:
            super().load_weights(weights, version)
            loaded.append(version)

    failing = ChaosEngine(scripted(), random.Random(0), 1.0, [how])
    made, reported = fleet([failing, scripted()], lambda _: Recording(script, EOS, slots=3), deadline=0.3)
    with closing(made):
        made.load_weights([], 7)
        assert len(reported) == 1
        while not loaded:
            made._handle_events()
        assert {version for _, _, versions, _ in play(made).values() for version in versions} == {7}
        made.load_weights([], 8)
    assert loaded == [7, 8]


def test_a_new_worker_gets_newer_weights_that_came_while_it_loaded() -> None:
    began, proceed = threading.Event(), threading.Event()

    class Slow(ScriptedEngine):
        def load_weights(self, weights: Any, version: int) -> None:
            began.set()
            proceed.wait(SECONDS)
            super().load_weights(weights, version)

    failing = ChaosEngine(scripted(), random.Random(0), 1.0, ["raises"])
    made, _ = fleet([failing], lambda _: Slow(script, EOS, slots=3))
    with closing(made):
        made.load_weights([], 1)
        while not began.is_set():
            made._handle_events()
        threading.Timer(0.1, proceed.set).start()
        made.load_weights([], 2)
        assert {version for _, _, versions, _ in play(made).values() for version in versions} == {2}


def test_a_worker_made_while_the_fleet_sleeps_sleeps_too() -> None:
    slept = threading.Event()

    class Recording(ScriptedEngine):
        def sleep(self) -> None:
            slept.set()

    failing = ChaosEngine(scripted(), random.Random(0), 1.0, ["raises"])
    made, _ = fleet([failing, scripted()], lambda _: Recording(script, EOS))
    with closing(made):
        made.sleep()
        started = time.monotonic()
        while not slept.is_set():
            made._handle_events()
            assert time.monotonic() - started < SECONDS


def test_no_worker_is_made_while_the_learner_has_the_memory() -> None:
    """`sleep` waits for a worker that is being made: the first cannot be made, and another attempt begins only when the
    fleet wakes up; the second sleeps when `sleep` returns."""
    began, proceed, events = threading.Event(), threading.Event(), list[str]()

    class Recording(ScriptedEngine):
        def sleep(self) -> None:
            events.append("sleeps")

    def remake(_: int) -> ScriptedEngine:
        events.append("begins")
        began.set()
        proceed.wait(SECONDS)
        if len(events) == 1:
            raise OSError("no memory")
        return Recording(script, EOS)

    made, reported = fleet([FaultyEngine(scripted(), {0: raises}), scripted()], remake, colocated=True, pause=0.001)
    with closing(made):
        for expected in (["begins"], ["begins", "begins", "sleeps"]):
            assert play(made) == UNDISTURBED
            assert began.wait(SECONDS)
            threading.Timer(0.1, proceed.set).start()
            made.sleep()
            assert events == expected
            began.clear()
            proceed.clear()
        made._make(made._members[1])
    for thread in threading.enumerate():
        if thread.name == "make-engine-1":  # it waited until the fleet was closed
            thread.join(SECONDS)
    assert events == ["begins", "begins", "sleeps"]
    assert "no memory" in reported[1]


def test_the_run_stops_when_one_worker_fails_max_faults_times_in_a_row() -> None:
    made, reported = fleet(
        [FaultyEngine(scripted(), {0: raises}) for _ in range(3)],
        lambda _: FaultyEngine(scripted(), dict.fromkeys(range(99), raises)),
        resume="ulorl train --resume runs/r",
    )
    with closing(made), refused(ErrorCode.ENGINE_FAILED, key="engine.max_faults") as stopped:
        play(made)
    assert 3 <= len(reported) <= 9
    assert "failed 3 times in a row (engine.max_faults), at last with: OSError: broken pipe" in str(stopped.value)
    assert str(stopped.value).endswith("Resume with: ulorl train --resume runs/r")


def test_segments_between_faults_reset_the_count() -> None:
    engines = [FaultyEngine(scripted(slots=1), {at: raises}) for at in (30, 60, 90)]
    made, reported = fleet([engines[0]], lambda _: engines[len(reported)] if len(reported) < 3 else scripted(),
                           max_faults=2, slots=1)  # fmt: skip
    with closing(made):
        assert play(made) == UNDISTURBED
    assert len(reported) == 3


def test_one_place_that_cannot_be_filled_does_not_stop_the_others() -> None:
    def remake(_: int) -> ScriptedEngine:
        raise OSError("no such host")

    made, reported = fleet([FaultyEngine(scripted(), {0: raises}), scripted()], remake, max_faults=10**6)
    with closing(made):
        assert play(made) == UNDISTURBED
        made._members[0].attempts = 5000
        made._make(made._members[0])  # after a pause, which does not overflow
    assert "broken pipe" in reported[0]
    assert all("no such host" in line for line in reported[1:])


def test_a_worker_with_other_weights_than_the_learner_stops_the_run() -> None:
    def remake(_: int) -> ScriptedEngine:
        raise EngineMismatch("other weights", code=ErrorCode.ENGINE_MISMATCH, key="engine.tolerance")

    made, _ = fleet([FaultyEngine(scripted(), {0: raises})], remake)
    with closing(made), refused(ErrorCode.ENGINE_MISMATCH, key="engine.tolerance"):
        play(made)


def test_abort_returns_every_request_once_despite_faults() -> None:
    for how in ("raises", "hangs", "dies"):
        made, reported = fleet([ChaosEngine(scripted(), random.Random(0), 1.0, [how]), scripted()], deadline=0.2)
        with closing(made):
            for id in range(10):
                made.add(request(id, budget=5))
            segments = made.abort()
            assert [s.sample_id for s in segments] == list(range(10))
            assert made.pending == 0
            assert play(made) == UNDISTURBED
        assert len(reported) <= 1


def test_a_worker_that_does_not_close_is_killed() -> None:
    stuck = ChaosEngine(scripted(), random.Random(0), 1.0, ["hangs"])
    made, _ = fleet([stuck, scripted()])
    made.add(request(0))
    made.add(request(1))
    made.step()
    assert stuck.hangs.wait(SECONDS)
    started = time.monotonic()
    made.close()
    assert time.monotonic() - started < 5
    assert stuck._killed.is_set()


# Anything at any time


class World:
    """A fleet of engines that fail at random, and what is expected of it."""

    def __init__(self, seed: int) -> None:
        self.draws = random.Random(seed)
        self.chance = self.draws.choice([0.0, 0.02, 0.1])
        engines = [self.engine(index) for index in range(self.draws.randint(1, 4))]
        self.fleet, self.reported = fleet(
            engines, self.remake, slots=self.draws.randint(1, 4), max_faults=10**9, deadline=0.15, pause=0.0
        )
        self.version, self.next = 0, 0
        self.out: dict[int, Request] = {}

    def remake(self, index: int) -> ChaosEngine:
        if self.draws.random() < self.chance:
            raise OSError("no engine today")
        return self.engine(index)

    def engine(self, _: int) -> ChaosEngine:
        return ChaosEngine(scripted(0, self.draws.randint(1, 4)), random.Random(self.draws.random()), self.chance)

    def add(self) -> None:
        for _ in range(self.draws.randint(1, 15)):
            self.out[self.next] = request(self.next, self.draws.randint(1, 15))
            self.fleet.add(self.out[self.next])
            self.next += 1

    def step(self) -> None:
        for _ in range(self.draws.randint(1, 4)):
            self.take(self.fleet.step())

    def abort(self) -> None:
        self.take(self.fleet.abort(), aborted=True)
        assert not self.out

    def update(self) -> None:
        self.finish()
        self.fleet.sleep()
        self.version += 1
        self.fleet.load_weights([], self.version)

    def finish(self) -> None:
        started = time.monotonic()
        while self.fleet.pending:
            self.take(self.fleet.step())
            assert time.monotonic() - started < SECONDS

    def take(self, segments: list[Segment], *, aborted: bool = False) -> None:
        for s in segments:
            request = self.out.pop(s.sample_id)  # a KeyError: twice, or not asked for
            whole = script(s.sample_id)[: request.max_new_tokens]
            assert s.tokens.tolist() == (whole[: len(s)] if s.finish is Finish.ABORT else whole)
            assert aborted or s.finish is not Finish.ABORT
            assert s.versions.tolist() == [self.version] * len(s)
        assert self.fleet.pending == len(self.out)


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_lost_or_comes_back_twice_whatever_fails(seed: int) -> None:
    world = World(seed)
    moves = [world.add, world.add, world.step, world.step, world.step, world.abort, world.update]
    with closing(world.fleet):
        for _ in range(12):
            world.draws.choice(moves)()
        world.finish()
    assert world.out == {}
    assert world.fleet.stats.faults == len(world.reported)
