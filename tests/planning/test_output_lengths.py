"""Lengths for the benchmark: drawn from what is in the file, and scaled to its cap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paths import SHARED
from refusals import refused
from ulorl.error_codes import ErrorCode
from ulorl.planning.output_lengths import log_normal, read_lengths

REAL = SHARED / "lengths"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the shared length files are not here")


def test_log_normal_has_the_stated_quantiles() -> None:
    lengths = np.array(log_normal(20_000, 4_000))
    assert np.quantile(lengths, 0.5) == pytest.approx(1_000, rel=0.03)  # a quarter of the maximum
    # ln(3432 / 792) / 1.2816 = 1.1442; the cut is ln(4) = 1.3863 above the median: P(z > 1.2116) = 0.1128
    assert np.mean(lengths == 4_000) == pytest.approx(0.1128, abs=0.01)
    # without the cut q90 would be 1,000 x 3432 / 792 = 4,333; q80 (z = 0.8416) is 1,000 x exp(0.8416 x 1.1442) = 2,619
    assert np.quantile(lengths, 0.8) == pytest.approx(2_619, rel=0.05)
    assert set(log_normal(50, 1)) == {1}


def test_a_row_a_sample(tmp_path: Path) -> None:
    """Cap 1,000 to 10 tokens: 1,000 -> 10, 250 -> 2.5 -> 3, 1 -> 0.01 -> 1; one in four each, 250 twice."""
    file = tmp_path / "mine.csv"
    file.write_text("response_tokens,id\n1000,a\n250,b\n250,c\n1,d\n", encoding="utf-8-sig")  # as spreadsheets do
    lengths = read_lengths(file)
    assert lengths.name == "mine"
    drawn = np.array(lengths.draw(4_000, 10))
    assert set(drawn) == {10, 3, 1}
    assert np.mean(drawn == 3) == pytest.approx(0.5, abs=0.03)
    assert lengths.draw(30, 10) == lengths.draw(30, 10)


def test_a_row_a_length_with_its_weight(tmp_path: Path) -> None:
    """Weights 3 and 1, given as anything positive; a weight of 0 never comes, but its length is still the cap."""
    file = tmp_path / "histogram.csv"
    file.write_text("output_tokens,probability\n5,6\n10,2\n20,0\n")
    drawn = np.array(read_lengths(file).draw(4_000, 20))
    assert set(drawn) == {5, 10}
    assert np.mean(drawn == 5) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("text", "record"),
    [
        (None, ""),
        ("", ""),
        ("words\n3\n", ""),
        ("tokens\n", ""),
        ("tokens\n3\nmany\n", "bad.csv:3"),
        ("tokens\n0\n", "bad.csv:2"),
        ("name,tokens\na\n", "bad.csv:2"),
        ("tokens,probability\n3,0.5\n4,-1\n", "bad.csv:3"),
        ("tokens,probability\n3,nan\n", "bad.csv:2"),
        ("tokens,probability\n3,0\n", ""),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, text: str | None, record: str) -> None:
    file = tmp_path / "bad.csv"
    if text is not None:
        file.write_text(text)
    with refused(ErrorCode.BENCH_INPUT, key="--lengths", file=file, record=record):
        read_lengths(file)


@real_data
@pytest.mark.parametrize(
    ("name", "cap", "median", "at_cap"),
    [
        ("response_tokens", 12_000, 3_441, 0.026),  # 32 of 1,228 stop at the cap
        ("deepseek_r1_production_output_tokens", 32_768, 792, 1.4e-5),
    ],
)
def test_real_lengths_keep_their_shape(name: str, cap: int, median: float, at_cap: float) -> None:
    lengths = read_lengths(REAL / f"{name}.csv")
    assert lengths.tokens.max() == cap
    drawn = np.array(lengths.draw(20_000, 1_024))
    assert drawn.min() >= 1
    assert drawn.max() <= 1_024
    assert np.quantile(drawn, 0.5) == pytest.approx(median * 1_024 / cap, rel=0.03, abs=0.5)
    assert np.mean(drawn == 1_024) == pytest.approx(at_cap, abs=0.005)
    mean = float(lengths.tokens @ lengths.probabilities)
    assert drawn.mean() / 1_024 == pytest.approx(mean / cap, rel=0.05)
