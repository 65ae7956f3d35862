"""The benchmark compares equal work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refusals import refused
from ulorl.bench.engine_bench import Work, interleaved, run
from ulorl.bench.results_page import table
from ulorl.error_codes import ErrorCode


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ulorl.bench.engine_bench.installed", lambda _: None)


@pytest.mark.slow
def test_rates_are_tokens_over_median_seconds(tmp_path: Path) -> None:
    """`run` itself raises when the three decode different numbers of tokens."""
    lengths = tmp_path / "real.csv"
    lengths.write_text("length\n60\n60\n10\n")
    figures = run(batches=(3, 2), max_tokens=6, lengths=[lengths], equal=True, caches=("static", "dynamic"), repeats=3)
    first = figures["results"][0]
    assert [(r["lengths"], r["batch"], r["requests"]) for r in figures["results"]] == [
        ("real", 3, 6), ("equal", 3, 3), ("real", 2, 4), ("equal", 2, 2)
    ]  # fmt: skip
    assert figures["results"][1]["tokens"] == 18
    for result in figures["results"]:
        assert set(result["seconds"]) == {"engine", "generate_static", "generate_dynamic"}
        for who, seconds in result["seconds"].items():
            assert len(seconds) == 3
            rate = result["tokens_per_second"][who]
            np.testing.assert_allclose(rate, result["tokens"] / np.median(seconds), rtol=0.05)
    rates = first["tokens_per_second"]
    np.testing.assert_allclose(
        first["ratio_to_transformers_static"], rates["engine"] / rates["generate_static"], atol=0.01
    )
    for peer in ("static", "dynamic"):
        name = f"ratio_to_transformers_{peer}"
        assert figures[name] == min(r[name] for r in figures["results"] if r["lengths"] == "real")
    assert "ratio_to_vllm" not in figures


def test_by_default_the_log_normal_and_the_static_cache() -> None:
    figures = run(batches=(2,), max_tokens=4, repeats=1)
    (result,) = figures["results"]
    assert (result["lengths"], set(result["seconds"])) == ("long_tail", {"engine", "generate_static"})
    assert figures["ratio_to_transformers_static"] == result["ratio_to_transformers_static"]


def test_alone_there_are_no_ratios() -> None:
    figures = run(batches=(2,), max_tokens=4, caches=(), repeats=1)
    assert set(figures["results"][0]["seconds"]) == {"engine"}
    assert not [name for name in figures if name.startswith("ratio")]
    assert "ratio" not in table(figures)


def test_unequal_work_is_no_benchmark() -> None:
    work = Work([np.array([1], np.int32)], [20])
    assert len(interleaved({"all": lambda w: sum(w.lengths)}, work, 2)["all"]) == 2
    with pytest.raises(RuntimeError, match=r"decoded \[19, 20\] tokens of 20"):
        interleaved({"all": lambda w: sum(w.lengths), "fewer": lambda w: sum(w.lengths) - 1}, work, 2)


def test_longer_than_the_model_takes() -> None:
    with refused(ErrorCode.BENCH_INPUT, key="--tokens"):
        run(max_tokens=1009)
