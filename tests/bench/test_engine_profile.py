"""A latency profile is measured on a real engine, at the points that it names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from refusals import refused
from ulorl.bench.engine_profile import Grid, _step_seconds, grid, request_share
from ulorl.cli.main import app
from ulorl.engines.scripted import ScriptedEngine
from ulorl.error_codes import ErrorCode
from ulorl.planning.latency_profile import read_profile


def test_the_command_writes_a_profile_that_the_planner_reads(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    command = ["bench", "engine", "--profile", str(file), "--quick", "--batch", "4", "--tokens", "32"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    profile = read_profile(str(file))
    assert (profile.decode.rows, profile.decode.contexts) == ((1, 2, 4), (4, 16))
    assert profile.prefill.tokens == (4, 8, 16)
    assert all(seconds > 0 for line in profile.decode.seconds for seconds in line)
    assert profile.sync_seconds > 0
    assert profile.slots == 4
    assert "measured on" in profile.sources["decode"]
    assert "threads" in profile.sources["decode"]
    assert not profile.learner.tokens
    assert "assumption" in profile.sources["learner"]


@pytest.mark.parametrize("options", [["--quick"], ["--profile", "p.json", "--json", "f.json"]])
def test_options_of_the_comparison_and_of_the_profile_do_not_mix(options: list[str]) -> None:
    with refused(ErrorCode.BENCH_INPUT, key="--profile"):
        CliRunner().invoke(app, ["bench", "engine", *options], catch_exceptions=False)


def test_the_grid() -> None:
    """Powers of 2, halves between them, and the slots; contexts are an eighth to a half of the tokens."""
    assert grid(24, 512) == Grid([1, 2, 3, 4, 6, 8, 12, 16, 24], [64, 128, 256], [64, 128, 256], rounds=3)
    assert grid(20, 512, quick=True) == Grid([1, 2, 4, 8, 16, 20], [64, 256], [64, 128, 256], rounds=2)


def test_the_share_of_a_request() -> None:
    """Overhead 3, share 2: one request takes 5, and 7 requests in 3 passes take 3 x 3 + 7 x 2 = 23."""
    assert request_share(5, 23, requests=7, passes=3) == (23 - 3 * 5) / (7 - 3) == 2


def test_a_step_counts_when_all_rows_draw_a_token() -> None:
    """2 rows of 1 + 4 tokens: the step in which they enter, and 4 others."""
    engine = ScriptedEngine(lambda _: [5] * 9, eos_id=0)
    assert len(_step_seconds(engine, [np.ones(4, np.int32)] * 2, steps=4)) == 5
