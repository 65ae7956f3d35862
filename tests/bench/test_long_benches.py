"""The benches of long samples on short ones: what they report is what happened."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from refusals import refused
from ulorl.bench import controller_bench, learner_bench, rollout_bench, step_bench, ulysses_bench
from ulorl.bench.results_page import table
from ulorl.cli.main import app
from ulorl.error_codes import ErrorCode

pytestmark = pytest.mark.slow


def test_a_sample_in_eight_segments_is_complete() -> None:
    """`run` itself raises when a token, a log-prob or a version is missing. Segment s prefills prompt and s segments,
    but for the last token, which is the first decode input."""
    figures = rollout_bench.run(64, segments=8)
    assert [s["tokens"] for s in figures["segments"]] == [8, 16, 24, 32, 40, 48, 56, 64]
    assert [s["prefilled"] for s in figures["segments"]] == [15 + 8 * s for s in range(8)]


def test_memory_of_an_update_is_that_of_the_whole_process() -> None:
    figures = learner_bench.run((1024, 512))
    short, long = figures["results"]
    assert (short["tokens"], long["tokens"]) == (512, 1024)
    assert 1e8 < short["before_bytes"] < short["peak_bytes"]
    assert long["logits_would_take_bytes"] == 1024 * 151_936 * 4
    assert short["off_the_line"] == long["off_the_line"] == 0  # two points make the line
    assert 0 < short["grad_norm"] < 1e3
    assert figures["bytes_a_token"] == round((long["peak_bytes"] - short["peak_bytes"]) / 512)


def test_processes_that_share_a_sample_compute_its_gradient() -> None:
    figures = ulysses_bench.run(64, processes=2)
    assert len(figures["shared"]) == 2
    assert all(0 < each["before_bytes"] <= each["peak_bytes"] for each in (figures["alone"], *figures["shared"]))
    assert 0 < figures["gradient_difference"] < 1e-5  # not the same sums, so not the same bits
    assert table(figures).count("\n| 2 |") == 1


def test_a_step_compared_with_trl_counts_trained_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TRL; rates are medians of trained tokens over seconds."""
    monkeypatch.setattr(step_bench, "installed", lambda _: None)
    figures = step_bench.run(prompts=2, max_tokens=32, segments=2, repeats=3)
    assert set(figures["steps"]) == {"ulorl", "ulorl_2_segments"}
    for who, steps in figures["steps"].items():
        assert len(steps) == 3
        rates = sorted(s["tokens"] / s["seconds"] for s in steps)
        assert figures["trained_tokens_per_second"][who] == pytest.approx(rates[1], rel=1e-2)
        assert all(0 < s["tokens"] <= 2 * 8 * 32 * 2 for s in steps)
    assert "ratio_to_trl" not in figures


def test_both_sides_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round is a step of each of ours and then TRL's; its ratio is that of the rates. By hand: 10 and 40 tokens a
    second to 2 and 5 are 5 and 8 times, 6.5 in the middle; 25 to 3.5 are the medians' 7.14; 200 in 12.5 seconds to
    40 in 14 are 5.6 times."""
    made: list[str] = []

    def ours(_path: Path, _prompts: int, _max_tokens: int, segments: int) -> Iterator[step_bench.Measured]:
        for seconds in (10.0, 2.5):
            made.append(f"ours {segments}")
            yield measured(100, seconds)

    def trl(
        _path: Path, _prompts: int, _max: int, repeats: int, before: Callable[[], None]
    ) -> list[step_bench.Measured]:
        for _ in range(repeats):
            before()
            made.append("trl")
        return [measured(20, 10.0), measured(20, 4.0)]

    def measured(tokens: float, seconds: float) -> step_bench.Measured:
        return {**dict.fromkeys(step_bench.PHASES, 0.0), "seconds": seconds, "cpu": seconds / 2, "tokens": tokens}

    for name, value in {"installed": lambda _: "1", "_ours": ours, "_trl": trl, "facts": lambda _: {}}.items():
        monkeypatch.setattr(step_bench, name, value)
    figures = step_bench.run(max_tokens=8, segments=2, repeats=2)
    assert made == ["ours 1", "ours 2", "trl"] * 2
    assert figures["ratios_to_trl"] == [5.0, 8.0]
    assert figures["ratio_of_rounds_to_trl"] == 6.5
    assert figures["ratio_to_trl"] == figures["ratio_in_cpu_seconds_to_trl"] == 7.14
    assert figures["ratio_of_totals_to_trl"] == 5.6


def test_sizes_that_do_not_fit_are_refused() -> None:
    with refused(ErrorCode.BENCH_INPUT, key="--tokens"):
        rollout_bench.run(20)
    with refused(ErrorCode.BENCH_INPUT, key="--tokens"):
        learner_bench.run((16,))
    with refused(ErrorCode.BENCH_INPUT, key="--tokens"):
        ulysses_bench.run(16)
    with refused(ErrorCode.BENCH_INPUT, key="--processes"):
        ulysses_bench.run(64, processes=3)


def test_the_command_writes_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "rollout.json"
    result = CliRunner().invoke(app, ["bench", "rollout", "--tokens", "32", "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["segments"][-1]["tokens"] == 32


def test_the_controller_bench_keeps_every_sample() -> None:
    figures = controller_bench.run([160], engines=3)
    schedules = ["segment", "oversubscribe", "refill", "refill, longest first"]
    assert [size["schedule"] for size in figures["sizes"]] == schedules
    for size in figures["sizes"]:
        assert [len(size[name]) for name in ("cpu_seconds", "fleet_cpu_seconds", "came_back")] == [3, 3, 3]
        assert 100 <= sum(size["came_back"]) / 3 <= 300
    assert "| 160 |" in table(figures)


def test_the_controller_bench_without_a_fleet(tmp_path: Path) -> None:
    out = tmp_path / "controller.json"
    result = CliRunner().invoke(app, ["bench", "controller", "--samples", "160", "--engines", "0", "--json", str(out)])
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    assert [len(size["cpu_seconds"]) for size in figures["sizes"]] == [3, 3, 3, 3]
    assert not any("fleet_cpu_seconds" in size for size in figures["sizes"])
    assert "; no fleet." in table(figures)
    assert table(figures).count("| not measured |") == 4
