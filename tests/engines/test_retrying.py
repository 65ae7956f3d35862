"""Engines that raise, hang or return something malformed: nothing is lost, duplicated or changed by it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

import ulorl
from paths import COUNTDOWN
from refusals import refused
from ulorl.engines.decode import rollout
from ulorl.engines.retrying import HUNG, RetryingEngine
from ulorl.engines.scripted import FaultyEngine, ScriptedEngine
from ulorl.engines.segment_checks import SegmentChecks
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rng import sample_seed
from ulorl.training import checkpoint
from ulorl.types import Finish, Request, Sampling, Segment

EOS, VOCABULARY, VERSION = 0, 50, 3
PROMPT = np.array([7, 8], np.int32)
# three segments end by EOS, one by its budget of 6; with two slots they end in steps 1, 3, 7 and 7 (from 0)
SCRIPTS = {0: [1, EOS], 1: [2, 2, 2, EOS], 2: [3] * 9, 3: [4, 4, 4, EOS]}
Alter = Callable[[list[Segment]], list[Segment]]


def request(id: int, budget: int = 6) -> Request:
    return Request(id, PROMPT, budget, Sampling(), id)


def scripted() -> ScriptedEngine:
    return ScriptedEngine(SCRIPTS, EOS, VERSION, slots=2)


def retrying_engine(
    engine: Any, remake: Callable[[], Any] | None = scripted, **settings: Any
) -> tuple[RetryingEngine, list[str]]:
    reported: list[str] = []
    retrying = RetryingEngine(
        engine, remake=remake, checks=SegmentChecks([EOS], VOCABULARY, Sampling()), version=VERSION,
        resume="ulorl train --resume runs/r", on_fault=reported.append, **settings,
    )  # fmt: skip
    return retrying, reported


def play(engine: Any) -> dict[int, tuple[list[int], list[float], list[int], Finish]]:
    """Decodes all four; a sample that comes back twice fails the test."""
    found: dict[int, tuple[list[int], list[float], list[int], Finish]] = {}
    for s in rollout(engine, [request(id) for id in SCRIPTS]):
        assert s.sample_id not in found
        found[s.sample_id] = (s.tokens.tolist(), s.logprobs.tolist(), s.versions.tolist(), s.finish)
    assert engine.pending == 0
    return found


UNDISTURBED = play(scripted())


def altered(**fields: Any) -> Alter:
    """The first segment with other fields; past `Segment`'s own check, as from an engine that has another class."""

    def alter(segments: list[Segment]) -> list[Segment]:
        first = replace(segments[0])
        for name, value in fields.items():
            object.__setattr__(first, name, value(getattr(first, name)) if callable(value) else value)
        return [first, *segments[1:]]

    return alter


def with_last(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.append(array[:-1], np.array(value, array.dtype))


def raises(_: list[Segment]) -> list[Segment]:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nand many lines more")


FAULTS: dict[str, tuple[int, Alter, str]] = {  # the step, the fault, the reported line
    "raises": (2, raises, r"RuntimeError: CUDA error: an illegal memory access was encountered \(test_retrying"),
    "raises and takes a segment with it": (1, raises, "CUDA error"),
    "no list": (1, lambda _: None, "TypeError"),  # type: ignore[dict-item,return-value]
    "unknown sample": (1, altered(sample_id=99), "sample 99 came back, which was not pending"),
    "twice": (1, lambda segments: segments * 2, "sample 0 came back, which was not pending"),
    "lost": (1, lambda _: [], "3 requests are pending, 4 have not come back"),
    "invented": (0, lambda _: [UNASKED], "sample 99 came back"),
    "more tokens than log-probs": (1, altered(tokens=lambda t: np.append(t, 1)), "logprobs of shape"),
    "more versions": (1, altered(versions=lambda v: np.append(v, 3)), r"versions of shape \(3,\)"),
    "tokens of another type": (1, altered(tokens=lambda t: t.astype(np.float32)), "tokens of shape .* float32"),
    "too long": (1, lambda s: [replace(s[0], **TOO_LONG)], "sample 0: 7 tokens, asked for 6 at most"),
    "NaN": (1, altered(logprobs=with_last(np.nan)), "1 log-probs are no finite number up to 0: nan"),
    "-inf": (1, altered(logprobs=with_last(-np.inf)), "up to 0: -inf"),
    "positive": (1, altered(logprobs=with_last(0.5)), "up to 0: 0.5"),
    "beyond the vocabulary": (1, altered(tokens=with_last(VOCABULARY)), r"ids 1\.\.50, the vocabulary is 0\.\.49"),
    "negative token": (1, altered(tokens=with_last(-1)), r"token ids -1\.\.1"),
    "old version": (1, altered(versions=with_last(VERSION - 1)), "version 2, the weights are version 3"),
    "EOS missing": (1, altered(tokens=with_last(5)), r"finish 'eos' with 2 tokens and EOS at \[\]"),
    "EOS in the middle": (3, altered(tokens=np.array([2, EOS, 2, EOS])), r"EOS at \[1, 3\]"),
    "EOS and finish length": (1, altered(finish=Finish.LENGTH), r"finish 'length' with 2 tokens and EOS at \[1\]"),
    "length too early": (3, altered(tokens=with_last(2), finish=Finish.LENGTH), "finish 'length' after 4 of 6 tokens"),
    "given up": (1, altered(tokens=with_last(2), finish=Finish.ABORT), "stopped by the engine itself"),
}  # fmt: skip
TOO_LONG: dict[str, Any] = {
    "tokens": np.array([1] * 6 + [EOS]), "logprobs": np.full(7, -1.0), "versions": np.full(7, VERSION),
}  # fmt: skip
UNASKED = Segment(99, np.array([EOS], np.int32), np.array([-1], np.float32), np.array([3], np.int32), Finish.EOS)


@pytest.mark.parametrize("name", FAULTS)
def test_requests_of_a_fault_are_added_again(name: str) -> None:
    """One fault: the engine is stopped and continues, and every sample is as it would have been."""
    step, alter, message = FAULTS[name]
    engine = FaultyEngine(scripted(), {step: alter})
    retrying, reported = retrying_engine(engine, remake=None)
    assert play(retrying) == UNDISTURBED
    assert retrying.stats.faults == len(reported) == 1
    assert re.search(message, reported[0]), reported
    assert retrying.stats.retried >= 1
    assert engine.steps > 8


def test_a_fault_anywhere_changes_nothing() -> None:
    """In every step, and in two and three steps in a row: the engine is stopped, then replaced, and the samples are the
    undisturbed ones."""
    for start in range(9):
        for length in (1, 2, 3):
            faults = {step: raises for step in range(start, start + length)}
            engine = FaultyEngine(scripted(), faults)
            made: list[FaultyEngine] = []

            def remake(faults: dict[int, Alter] = faults, steps: FaultyEngine = engine, made: list[Any] = made) -> Any:
                made.append(FaultyEngine(scripted(), faults))
                made[-1].steps = max(steps.steps, *(m.steps for m in made))  # the plan continues
                return made[-1]

            retrying, reported = retrying_engine(engine, remake, max_faults=4)
            assert play(retrying) == UNDISTURBED
            assert len(reported) == retrying.stats.faults
            if start < 8:
                assert len(reported) == length


def test_the_run_stops_after_max_faults_in_a_row() -> None:
    """The first fault stops the requests, the second makes a new engine, the third is the last."""
    made = []

    def remake() -> FaultyEngine:
        made.append(FaultyEngine(scripted(), dict.fromkeys(range(99), raises)))
        return made[-1]

    retrying, reported = retrying_engine(remake(), remake)
    with pytest.raises(UserError) as stopped:
        play(retrying)
    assert len(made) == 2
    assert retrying.stats.faults == len(reported) == 3
    assert re.fullmatch(
        r"the engine failed 3 times in a row \(engine\.max_faults\), at last with: RuntimeError: CUDA error: an "
        r"illegal memory access was encountered \(test_retrying\.py:\d+\)\. Everything up to the last "
        r"checkpoint is safe\. Resume with: ulorl train --resume runs/r",
        str(stopped.value),
    )


def test_segments_between_faults_reset_the_count() -> None:
    """Slots 1: the four samples end in steps 1, 5, 11 and 15; a fault after each."""
    engine = FaultyEngine(ScriptedEngine(SCRIPTS, EOS, VERSION, slots=1), dict.fromkeys((2, 7, 14), raises))
    retrying, reported = retrying_engine(engine, remake=None, max_faults=2)
    assert play(retrying) == UNDISTURBED
    assert len(reported) == 3


class Failing(ScriptedEngine):
    """Every call named raises as often as said."""

    def __init__(self, **times: int) -> None:
        super().__init__(SCRIPTS, EOS, VERSION, slots=2)
        self.times, self.closed = times, False

    def _fail(self, name: str) -> None:
        if self.times.get(name, 0):
            self.times[name] -= 1
            raise OSError(f"{name}: broken pipe")

    def add(self, request: Request) -> None:
        self._fail("add")
        super().add(request)

    def step(self) -> list[Segment]:
        self._fail("step")
        return super().step()

    def abort(self) -> list[Segment]:
        self._fail("abort")
        return super().abort()

    def abort_some(self, sample_ids: Collection[int]) -> list[Segment]:
        self._fail("abort_some")
        return super().abort_some(sample_ids)

    def load_weights(self, weights: Any, version: int) -> None:
        self._fail("load_weights")
        super().load_weights(weights, version)

    def sleep(self) -> None:
        self._fail("sleep")
        super().sleep()

    def close(self) -> None:
        self.closed = True
        self._fail("close")


@pytest.mark.parametrize(
    ("times", "faults", "replaced"),
    [
        ({"add": 1}, 1, False),
        ({"add": 2}, 2, True),
        ({"step": 1, "abort": 1}, 2, True),  # it cannot even be stopped
        ({"step": 1, "add": 1, "close": 1}, 2, True),
        ({"step": 9, "close": 1}, 2, True),
    ],
)
def test_every_call_may_fail(times: dict[str, int], faults: int, replaced: bool) -> None:
    first = Failing(**times)
    retrying, reported = retrying_engine(first)
    assert play(retrying) == UNDISTURBED
    assert (first.closed, first is not retrying._engine) == (replaced, replaced)
    assert len(reported) == faults


def test_an_engine_that_cannot_load_is_replaced_by_one_with_the_present_weights() -> None:
    first, asleep = Failing(load_weights=1), Failing(sleep=1)
    retrying, reported = retrying_engine(first, lambda: ScriptedEngine(SCRIPTS, EOS, version=VERSION + 1))
    retrying.load_weights(iter(()), VERSION + 1)
    assert first.closed
    assert {s for _, _, versions, _ in play(retrying).values() for s in versions} == {VERSION + 1}
    retrying.sleep()
    assert len(reported) == 1
    retrying, reported = retrying_engine(asleep)
    retrying.sleep()
    assert asleep.closed
    assert play(retrying) == UNDISTURBED
    assert len(reported) == 1


def test_the_old_engine_is_released_before_the_new_one_is_made() -> None:
    """Both at once may not fit the memory: no traceback, no frame and no closure keeps it."""
    first = Failing(step=99)
    gone, was_gone = weakref.ref(first), []

    def remake() -> ScriptedEngine:
        was_gone.append(gone() is None)
        return scripted()

    retrying, _ = retrying_engine(first, remake)
    del first
    assert play(retrying) == UNDISTURBED
    assert was_gone == [True]


def test_a_new_engine_that_does_not_come_up_is_tried_again() -> None:
    answers: list[Any] = [UserError("vLLM does not start", code=ErrorCode.ENGINE_SETTING), scripted()]

    def remake() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    retrying, reported = retrying_engine(Failing(step=99), remake, max_faults=4)
    assert play(retrying) == UNDISTURBED
    assert [line.split(":")[1].strip() for line in reported] == ["OSError", "OSError", "UserError"]


def test_a_mistake_of_the_caller_is_no_fault() -> None:
    retrying, reported = retrying_engine(scripted())
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        retrying.add(request(0, budget=0))
    retrying.add(request(0))
    with pytest.raises(ValueError, match="being decoded already"):
        retrying.add(request(0))
    with pytest.raises(RuntimeError, match="load_weights with 1 requests pending"):
        retrying.load_weights(iter(()), 4)
    assert (reported, retrying.pending, retrying.stats.faults) == ([], 1, 0)


def test_abort_returns_every_request_once_despite_faults() -> None:
    for first, tokens in ((scripted(), {0: [1], 1: [2], 2: []}), (Failing(abort=1), {0: [], 1: [], 2: []})):
        retrying, reported = retrying_engine(first)
        for id in tokens:
            retrying.add(request(id))
        retrying.step()
        assert {s.sample_id: s.tokens.tolist() for s in retrying.abort()} == tokens
        assert retrying.pending == 0
        assert len(reported) == bool(isinstance(first, Failing))
        assert play(retrying) == UNDISTURBED  # the one that failed is another by now


def test_some_requests_are_stopped_and_a_fault_leaves_them_pending() -> None:
    for first, stopped in ((scripted(), {0: [], 1: [2]}), (Failing(abort_some=1), {})):
        retrying, reported = retrying_engine(first)
        for id in (3, 1, 0):
            retrying.add(request(id))
        retrying.step()
        assert {s.sample_id: s.tokens.tolist() for s in retrying.abort_some([0, 1, 9])} == stopped
        assert len(reported) == bool(isinstance(first, Failing))
        ended = [segment for _ in range(9) for segment in retrying.step()]
        assert {s.sample_id: s.tokens.tolist() for s in ended} == {
            id: SCRIPTS[id] for id in (0, 1, 3) if id not in stopped
        }
    retrying, _ = retrying_engine(FaultyEngine(scripted(), {}))  # which cannot stop some requests
    retrying.add(request(0))
    assert retrying.abort_some([0]) == []
    assert retrying.pending == 1


def test_work_counts_on_when_the_engine_is_another() -> None:
    """Slots 2: two faults after step 0, so 2 tokens are drawn in vain in the first engine."""
    retrying, _ = retrying_engine(FaultyEngine(scripted(), {1: raises, 2: raises}))
    play(retrying)
    clean = scripted()
    play(clean)
    assert retrying.stats.decode_tokens == clean.stats.decode_tokens + 2 * 2 + 2  # steps 0, 1; then step 0 once more


# Hanging


class Stuck(ScriptedEngine):
    """Brings nothing any more from step `at` on: it returns at once, or waits until it is killed."""

    def __init__(self, at: int, waits: bool, dies: bool = False) -> None:
        super().__init__(SCRIPTS, EOS, VERSION, slots=2)
        self.at, self.waits, self.dies, self.steps = at, waits, dies, 0
        self.killed = threading.Event()

    def step(self) -> list[Segment]:
        self.steps += 1
        if self.steps <= self.at:
            return super().step()
        if self.waits:
            assert self.killed.wait(20)
            raise RuntimeError("the engine's process is gone")
        return []

    def died(self) -> bool:
        return self.dies and self.steps > self.at

    def kill(self) -> bool:
        self.killed.set()
        return True


def test_steps_that_decode_nothing_are_a_fault_after_the_deadline() -> None:
    retrying, reported = retrying_engine(Stuck(at=3, waits=False), deadline=0.2)
    assert play(retrying) == UNDISTURBED
    assert all("no token in 0.2 seconds" in line for line in reported)
    assert len(reported) == 2


def test_an_engine_in_a_process_of_its_own_is_killed_after_the_deadline_and_replaced() -> None:
    first = Stuck(at=3, waits=True)
    made = iter([scripted()])
    retrying, reported = retrying_engine(first, lambda: next(made), deadline=0.3)
    assert play(retrying) == UNDISTURBED
    assert "killed after 0 seconds without a sign of life; RuntimeError: the engine's process is gone" in reported[0]
    assert first.killed.is_set()


def test_a_process_that_died_is_noticed_long_before_the_deadline() -> None:
    retrying, reported = retrying_engine(Stuck(at=3, waits=True, dies=True), deadline=600)
    started = time.monotonic()
    assert play(retrying) == UNDISTURBED
    assert time.monotonic() - started < 10
    assert "its process died" in reported[0]


def test_a_new_engine_may_take_longer_than_the_deadline() -> None:
    """Starting vLLM takes minutes."""

    def remake() -> ScriptedEngine:
        time.sleep(0.8)
        return scripted()

    retrying, reported = retrying_engine(Failing(step=2), remake, deadline=0.2)
    assert play(retrying) == UNDISTURBED
    assert len(reported) == 2


def test_an_engine_that_hangs_in_our_process_ends_it() -> None:
    """Nothing can interrupt it there: the stacks are shown, and the message says how to resume."""
    code = """
import time
import numpy as np
from ulorl.engines.segment_checks import SegmentChecks
from ulorl.engines.retrying import RetryingEngine
from ulorl.engines.scripted import FaultyEngine, ScriptedEngine
from ulorl.types import Request, Sampling

def deadlock(segments):
    time.sleep(60)

engine = FaultyEngine(ScriptedEngine({0: [1] * 9}, 0), {2: deadlock})
retrying = RetryingEngine(
    engine, remake=None, checks=SegmentChecks([0], 9, None), deadline=0.5, resume="ulorl train --resume runs/r"
)
retrying.add(Request(0, np.array([5], np.int32), 8, Sampling(), 0))
while retrying.pending:
    retrying.step()
"""
    started = time.monotonic()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == HUNG == 75
    assert time.monotonic() - started < 30
    assert "in deadlock" in found.stderr
    assert found.stderr.splitlines()[-1].startswith("error: the engine hangs: no token in ")
    assert found.stderr.endswith(
        "Everything up to the last checkpoint is safe. Resume with: ulorl train --resume runs/r\n"
    )


def test_a_slow_engine_that_makes_progress_is_not_killed() -> None:
    """A call of 0.6 seconds under a deadline of 0.3, which prefills all the while."""

    class Slow(ScriptedEngine):
        def step(self) -> list[Segment]:
            if not self.stats.decode_steps:
                for _ in range(12):
                    time.sleep(0.05)
                    self.stats.prefill_tokens += 1
            return super().step()

        def died(self) -> bool:
            return False

        def kill(self) -> bool:
            raise AssertionError

    retrying, reported = retrying_engine(Slow(SCRIPTS, EOS, VERSION, slots=2), deadline=0.3)
    assert play(retrying) == UNDISTURBED
    assert reported == []


# The embedded engine


def torch_engine() -> TorchEngine:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Qwen3ForCausalLM(
        Qwen3Config(**shape, vocab_size=VOCABULARY, num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
                    initializer_range=0.3, eos_token_id=None, bos_token_id=None)
    )  # fmt: skip
    return TorchEngine(model, eos_ids=[EOS], slots=4, prefill_tokens=64, version=VERSION)


@pytest.mark.parametrize("replaced", [False, True], ids=["stopped", "replaced"])
def test_the_embedded_engine_draws_the_same_tokens_again(replaced: bool) -> None:
    """Raised in the middle of steps, among them while rows enter; retried rows share their batch with others than
    before, so log-probs differ by rounding."""
    requests = [
        Request(i, np.arange(1, 3 + i % 3, dtype=np.int32), 40, Sampling(0.9), sample_seed(1, i)) for i in range(10)
    ]
    straight = {s.sample_id: s for s in rollout(torch_engine(), requests)}
    assert len({len(s) for s in straight.values()}) > 3  # some end by EOS

    class Breaking(TorchEngine):
        calls = 0

        def _record(self, tokens: np.ndarray, logprobs: np.ndarray) -> None:
            Breaking.calls += 1
            if Breaking.calls in (1, 9, 30) or (replaced and Breaking.calls in (10, 31)):
                raise RuntimeError("out of memory")
            super()._record(tokens, logprobs)

    def breaking() -> TorchEngine:
        engine = torch_engine()
        engine.__class__ = Breaking
        return engine

    retrying = RetryingEngine(
        breaking(), remake=breaking, checks=SegmentChecks([EOS], VOCABULARY, Sampling(0.9)), version=VERSION,
        max_faults=9, on_fault=lambda _: None,
    )  # fmt: skip
    retried = {s.sample_id: s for s in rollout(retrying, requests)}
    assert retrying.stats.faults == (5 if replaced else 3)
    assert retried.keys() == straight.keys()
    for id, segment in straight.items():
        assert retried[id].tokens.tolist() == segment.tokens.tolist()
        assert retried[id].finish is segment.finish
        np.testing.assert_allclose(retried[id].logprobs, segment.logprobs, atol=1e-5)


# Whole runs

RECIPE = COUNTDOWN


def config(run_dir: Path, *overrides: str) -> ulorl.Config:
    small = [
        "steps=3", "rollout.prompts=6", "rollout.group=2", "rollout.max_tokens=60", "rollout.segments=3",
        "data.size=20", "eval.data={}", "run.checkpoint_every=1", "model.threads=1", "log.report=false",
    ]  # fmt: skip
    return ulorl.load([RECIPE], [*small, f"run.dir={run_dir}", *overrides])


def samples(run_dir: Path) -> list[dict[str, Any]]:
    paths = sorted((run_dir / "samples").glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def weights(run: ulorl.Result) -> dict[str, torch.Tensor]:
    return load_file(run.model / "model.safetensors")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> ulorl.Result:
    return ulorl.train(config(tmp_path_factory.mktemp("runs") / "straight"))


def same(run: ulorl.Result, other: ulorl.Result) -> bool:
    one, two = weights(run), weights(other)
    return samples(run.dir) == samples(other.dir) and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_a_run_continues_through_faults(
    straight: ulorl.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One while it decodes, two in a row (a new engine, whose weights are checked), one while it loads new weights."""
    step, load = TorchEngine.step, TorchEngine.load_weights
    calls = {"step": 0, "load": 0}

    def failing_step(engine: TorchEngine) -> list[Segment]:
        calls["step"] += 1
        segments = step(engine)
        if calls["step"] in (30, 50, 51):
            raise RuntimeError("an illegal memory access")
        return segments

    def failing_load(engine: TorchEngine, new: Any, version: int) -> None:
        calls["load"] += 1
        if calls["load"] == 2:
            next(iter(new))
            raise RuntimeError("NCCL timeout")
        load(engine, new, version)

    monkeypatch.setattr(TorchEngine, "step", failing_step)
    monkeypatch.setattr(TorchEngine, "load_weights", failing_load)
    found = ulorl.train(config(tmp_path / "r", "engine.max_faults=5"))
    assert sum(m["engine/faults"] for m in found.metrics) == 4
    assert sum(m["engine/retried"] for m in found.metrics) > 4
    assert capsys.readouterr().out.count("engine: RuntimeError: an illegal memory access (test_retrying.py") == 3
    assert [m["engine/faults"] for m in straight.metrics] == [0, 0, 0]
    for ours, theirs in zip(found.metrics, straight.metrics, strict=True):
        for name in ("version", "rollout/tokens", "rollout/finished", "rollout/carried", "train/samples"):
            assert ours[name] == theirs[name], name
        assert ours["mismatch/probe_mean"] == (
            None if theirs["mismatch/probe_mean"] is None else pytest.approx(theirs["mismatch/probe_mean"], abs=1e-5)
        )
    assert [s["output"] for s in samples(found.dir)] == [s["output"] for s in samples(straight.dir)]
    one, two = weights(found), weights(straight)
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


@pytest.mark.slow
def test_a_run_whose_engine_is_broken_resumes_when_it_is_fixed(
    straight: ulorl.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, step = tmp_path / "r", TorchEngine.step
    with monkeypatch.context() as patch:
        calls = 0

        def failing(engine: TorchEngine) -> list[Segment]:
            nonlocal calls
            calls += 1
            if calls > 50:
                raise RuntimeError("driver is gone")
            return step(engine)

        patch.setattr(TorchEngine, "step", failing)
        with refused(ErrorCode.ENGINE_FAILED, key="engine.max_faults"):
            ulorl.train(config(target, "run.checkpoint_every=0"))
        saved = checkpoint.latest(target)  # nothing but the outage made one
        assert 0 < checkpoint.step_of(saved) < len(straight.metrics)
    resumed = ulorl.resume(target)
    assert same(resumed, straight)


@pytest.mark.slow
def test_a_run_that_the_weight_check_stopped_resumes_when_the_cause_is_fixed(
    straight: ulorl.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that keeps its old weights, and names them by the new version: only their numbers give it away."""
    target = tmp_path / "r"
    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "load_weights", lambda engine, _, version: setattr(engine, "version", version))
        with refused(ErrorCode.ENGINE_MISMATCH, key="engine.tolerance"):
            ulorl.train(config(target, "optim.lr=1e-2"))
        with refused(ErrorCode.ENGINE_MISMATCH, key="engine.tolerance"):
            ulorl.resume(target)  # still broken: still refused
    resumed = ulorl.resume(target)
    assert same(resumed, ulorl.train(config(tmp_path / "other", "optim.lr=1e-2")))
    assert not same(resumed, straight)
