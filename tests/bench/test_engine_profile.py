"""A latency profile is measured on a real engine, at the points that it names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor
from typer.testing import CliRunner

from refusals import refused
from ulorl.bench.profile_meter import (
    Grid,
    ProfileMeter,
    Subject,
    added_seconds,
    grid,
    mean_without_extremes,
    step_seconds,
)
from ulorl.bench.rising_tables import rising, rising_table
from ulorl.cli.main import app
from ulorl.engines.engine import Engine
from ulorl.engines.forwarding import ForwardingEngine
from ulorl.engines.scripted import ScriptedEngine
from ulorl.error_codes import ErrorCode
from ulorl.planning.latency_profile import read_profile
from ulorl.types import Request


def test_the_command_writes_a_profile_that_the_planner_reads(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    command = ["bench", "engine", "--profile", str(file), "--quick", "--batch", "4", "--tokens", "32"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    profile = read_profile(str(file))
    assert (profile.decode.rows, profile.decode.contexts) == ((1, 2, 4), (4, 16, 28))
    assert profile.prefill.tokens == (1, 4, 8, 16, 28)
    assert profile.prefill_added.tokens == (1, 4, 8, 16, 28)  # 4 requests of each fit into a pass
    assert all(seconds > 0 for seconds in profile.prefill.seconds)
    assert profile.prefill_padding == 128
    assert profile.copy_seconds < profile.decode.seconds[-1][-1]  # one token; may be 0 among so few
    assert "measured on" in profile.sources["copy_seconds"]
    assert all(seconds > 0 for line in profile.decode.seconds for seconds in line)
    assert [line[2] for line in profile.decode.seconds] == [line[2] for line in profile.decode.alike]
    assert profile.sync_seconds > 0
    assert profile.slots == 4
    assert "measured on" in profile.sources["decode"]
    assert "threads" in profile.sources["decode"]
    assert not profile.learner.tokens
    assert "assumption" in profile.sources["learner"]


def test_the_engine_of_a_recipe_is_measured(tmp_path: Path) -> None:
    """Its slots and dtype; rows of 24 tokens: contexts of 3, 12 and 21."""
    file = tmp_path / "profile.json"
    settings = ["data.kind=countdown", "data.size=9", "engine.kind=torch", "engine.slots=3", "engine.dtype=bfloat16"]
    command = ["bench", "engine", "model.path=ulorl:tiny", *settings, "--profile", str(file), "--quick"]
    result = CliRunner().invoke(app, [*command, "--tokens", "24"])
    assert result.exit_code == 0, result.output
    profile = read_profile(str(file))
    assert (profile.decode.rows, profile.decode.contexts, profile.slots) == ((1, 2, 3), (3, 12, 21), 3)
    assert profile.name.startswith("ulorl:tiny, bfloat16, torch engine")
    assert profile.kv_tokens == 0
    with refused(ErrorCode.BENCH_INPUT, key="--tokens"):
        CliRunner().invoke(app, [*command, "--tokens", "10000000"], catch_exceptions=False)
    with refused(ErrorCode.BENCH_INPUT, key="--profile"):
        CliRunner().invoke(app, [*command, "--batch", "8"], catch_exceptions=False)
    with refused(ErrorCode.BENCH_INPUT, key="--profile"):
        CliRunner().invoke(app, ["bench", "engine", "model.path=ulorl:tiny"], catch_exceptions=False)


@pytest.mark.parametrize("options", [["--quick"], ["--profile", "p.json", "--json", "f.json"]])
def test_options_of_the_comparison_and_of_the_profile_do_not_mix(options: list[str]) -> None:
    with refused(ErrorCode.BENCH_INPUT, key="--profile"):
        CliRunner().invoke(app, ["bench", "engine", *options], catch_exceptions=False)


def test_the_grid() -> None:
    """Powers of 2, halves between them, and the slots; contexts are an eighth to seven eighths of the tokens."""
    rows, prefill = [1, 2, 3, 4, 6, 8, 12, 16, 24], [16, 64, 128, 256, 448]
    assert grid(24, 512) == Grid(rows, [64, 128, 256, 448], prefill, 512, rounds=3)
    assert grid(20, 512, quick=True) == Grid([1, 2, 4, 8, 16, 20], [64, 256, 448], prefill, 512, rounds=2)
    assert grid(1, 4) == Grid([1], [1, 2, 3], [1, 2, 3], 4, rounds=3)  # of 1, 1, 1, 2, 3
    assert grid(1, 1, quick=True) == Grid([1], [1], [1], 1, rounds=2)


def test_means_leave_out_a_tenth_at_either_end() -> None:
    """Of 3 values one at either end, the median; of 11 two: 2 to 8 remain of 0 to 10, however large the largest is."""
    assert mean_without_extremes([1, 4]) == 2.5
    assert mean_without_extremes([90, 1, 4]) == 4
    assert mean_without_extremes([0, 1, 2, 3, 4, 5, 6, 7, 8, 100]) == 4.5
    assert mean_without_extremes([3, 2, 1, 0, 4, 5, 6, 7, 8, 9, 1000]) == 5


def test_times_that_fall_are_noise() -> None:
    """3, 1 and 2 become their mean 2; then 5 stays. In the table, 4 above 2 become 3, and what rises stays as it is."""
    assert rising([3, 1, 2, 5]) == [2, 2, 2, 5]
    assert rising([]) == []
    assert rising_table([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    assert rising_table([[1, 4], [1, 2]]) == pytest.approx(np.array([[1, 3], [1, 3]]))
    random = np.random.default_rng(0)
    noisy = random.random((6, 4))
    found = rising_table(noisy)
    assert (np.diff(found, axis=0) >= 0).all()
    assert (np.diff(found, axis=1) >= -1e-9).all()
    assert found.sum() == pytest.approx(noisy.sum(), rel=1e-6)  # neighbours share their mean
    for _ in range(100):  # no other rising table is nearer
        other = np.sort(np.sort(found + 0.01 * random.standard_normal(found.shape), axis=0), axis=1)
        assert ((found - noisy) ** 2).sum() <= ((other - noisy) ** 2).sum() + 1e-9


def test_points_are_measured_in_turns_until_there_are_enough() -> None:
    """Contexts 1, 2 and 3 of one row, prefills of as many tokens, the sync: 7 points with nothing to copy."""
    meter, _ = scripted_meter(slots=1, tokens=4)
    meter.measure(0)
    assert meter.rounds == 1
    meter.measure(0, rounds=1.5)
    assert meter.rounds == pytest.approx(11 / 7)  # the first count of points that is at least 1.5 rounds
    seconds = meter.seconds
    meter.measure(seconds)  # they took as long already
    assert (meter.rounds, meter.seconds) == (11 / 7, seconds)
    meter.measure(seconds + 0.01)
    assert meter.seconds >= seconds + 0.01
    assert meter.profile().decode.contexts == (1, 2, 3)


class Recorded(ForwardingEngine):
    """Notes what it is asked for."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.calls: list[str] = []
        self.prompts: list[tuple[int, ...]] = []

    def add(self, request: Request) -> None:
        self.calls.append("add")
        self.prompts.append(tuple(request.prompt.tolist()))
        super().add(request)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.calls.append("load")
        super().load_weights(weights, version)

    def sleep(self) -> None:
        self.calls.append("sleep")
        super().sleep()


def scripted_meter(slots: int, tokens: int, padding: int | None = None) -> tuple[ProfileMeter, Recorded]:
    """A meter of rows of `tokens` tokens, with passes of 64."""
    engine = Recorded(ScriptedEngine(lambda _: [1] * 999, eos_id=0, slots=slots))
    subject = Subject(engine, "scripted", 999, slots, 64, padding, weights=lambda: ())
    about = {"processor": "P", "capability": "C", "threads": 1, "date": "D"}
    return ProfileMeter(subject, grid(slots, tokens), about), engine


def test_a_prefill_is_never_known_from_before() -> None:
    """An engine with a prefix cache would not compute it again. Of prefills of 16, 32 and 56 tokens, 4, 2 and 1 fit
    into a pass; each request has a token more. A full pass begins with new weights, awake."""
    meter, engine = scripted_meter(slots=4, tokens=64)
    meter.measure(0, rounds=2)
    of_prefills = [prompt for prompt in engine.prompts if len(prompt) in {17, 33, 57}]
    assert len(of_prefills) == len(set(of_prefills)) == 2 * (1 + 4 + 1 + 2 + 1)
    assert "load add" in " ".join(engine.calls)
    assert "load sleep" not in " ".join(engine.calls)


@pytest.mark.parametrize(("padding", "different"), [(128, 1), (None, 4)])
def test_rows_share_prompts_only_where_they_are_copied(padding: int | None, different: int) -> None:
    """1, 2, 3 and 4 equally long rows around 56 tokens, which 8 steps leave 4 tokens before."""
    meter, engine = scripted_meter(slots=4, tokens=64, padding=padding)
    meter.measure(0)
    rows = [prompt for prompt in engine.prompts if len(prompt) == 56 - 4]
    assert len(rows) == 1 + 2 + 3 + 4
    assert len(set(rows)) == different


def test_equal_lengths_are_measured_only_of_an_engine_that_pads() -> None:
    """Of 4 contexts, 2, 3 and 4 rows of spread lengths can have the 3 shorter ones in the mean. The copy of keys and
    values is a further point of an engine that pads."""
    counts = {}
    for padding in (128, None):
        meter, _ = scripted_meter(slots=4, tokens=64, padding=padding)
        meter.measure(0)
        counts[padding] = len(meter._points)
        assert bool(meter.profile().decode.alike) == (padding is not None)
    assert counts[128] - counts[None] == 3 * 3 + 1


def test_short_steps_are_measured_longer() -> None:
    """A scripted step takes microseconds: as many steps are made as an eighth of a row has tokens."""
    meter, engine = scripted_meter(slots=1, tokens=256)
    meter.warm_up()
    engine.prompts.clear()
    before = engine.stats.decode_tokens
    while len(engine.prompts) < 2:
        meter.measure(meter.seconds + 1e-9, rounds=0)
    assert engine.stats.decode_tokens - before == 2 * (1 + 32)


def test_rows_that_do_not_decode_together_are_refused() -> None:
    engine = ScriptedEngine(lambda _: [1] * 99, eos_id=0, slots=2)
    with refused(ErrorCode.BENCH_INPUT, key="--tokens"):
        step_seconds(engine, [np.ones(3, np.int32)] * 3, 4, 20)


def test_what_a_request_adds_to_a_pass() -> None:
    """One request takes 3 + 2, and 7 take 3 + 7 x 2 = 17."""
    assert added_seconds(5, 17, requests=7) == 2


def test_a_step_counts_when_all_rows_draw_a_token() -> None:
    """2 rows: the step in which they enter, and 4 others, though 20 tokens leave a budget of 16. With 6 tokens, the
    budget is what the steps need. A third row enters while these decode, until all three draw a token."""
    for most in (20, 6):
        engine = ScriptedEngine(lambda _: [5] * 30, eos_id=0)
        assert len(step_seconds(engine, [np.ones(4, np.int32)] * 2, 4, most)) == 5
        assert (engine.pending, engine.stats.decode_tokens) == (2, 10)
    engine = ScriptedEngine(lambda _: [5] * 30, eos_id=0)
    step_seconds(engine, [np.ones(4, np.int32)] * 2, 4, 20)
    assert len(step_seconds(engine, [np.ones(4, np.int32)], 3, 20)) == 4
    assert (engine.pending, engine.stats.decode_tokens) == (3, 10 + 12)
