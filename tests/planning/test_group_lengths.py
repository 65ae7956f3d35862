"""Lengths of groups: their distribution, how alike siblings are, and that schedules meet the same samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refusals import refused
from ulorl.error_codes import ErrorCode
from ulorl.planning.group_lengths import RecordedLengths, log_normal_lengths
from ulorl.planning.output_lengths import read_lengths


def recorded(folder: Path, text: str, **settings: float) -> RecordedLengths:
    file = folder / "lengths.csv"
    file.write_text(text)
    return RecordedLengths(read_lengths(file), **settings)


def test_a_group_answers_one_problem(tmp_path: Path) -> None:
    """Three rows of one problem, one of the other: the first is drawn 3 times in 4, and each of its rows as often."""
    text = "source,problem,tokens\na,0,10\na,0,20\na,0,30\nb,0,500\n"
    drawn = recorded(tmp_path, text).draw(1, 0, 4_000, 8)
    long = (drawn == 500).sum(axis=1)
    assert set(long) == {0, 8}
    assert (long == 8).mean() == pytest.approx(0.25, abs=0.03)
    assert (drawn == 20).mean() == pytest.approx(0.25, abs=0.01)


def test_weighted_lengths_are_scaled_and_correlated_as_asked(tmp_path: Path) -> None:
    text = "tokens,probability\n10,1\n15,3\n"
    independent = recorded(tmp_path, text, scale=0.5).draw(1, 0, 5_000, 2)
    assert set(independent.flat) == {5, 8}
    assert (independent == 8).mean() == pytest.approx(0.75, abs=0.015)
    alike = recorded(tmp_path, text, correlation=0.99).draw(1, 0, 5_000, 2)
    assert (alike == 15).mean() == pytest.approx(0.75, abs=0.03)
    assert (alike[:, 0] == alike[:, 1]).mean() > 0.93
    assert (independent[:, 0] == independent[:, 1]).mean() == pytest.approx(0.75**2 + 0.25**2, abs=0.02)


def test_a_log_normal_has_the_mean_and_the_percentile_after_its_cut() -> None:
    drawn = log_normal_lengths(9_000, 30_000, 40_000, correlation=0.5).draw(0, 0, 20_000, 4)
    assert drawn.max() == 40_000
    assert drawn.mean() == pytest.approx(9_000, rel=0.02)
    assert np.quantile(drawn, 0.95) == pytest.approx(30_000, rel=0.03)
    scores = np.log(drawn[drawn.max(axis=1) < 40_000])
    assert np.corrcoef(scores[:, 0], scores[:, 1])[0, 1] == pytest.approx(0.5, abs=0.1)
    with refused(ErrorCode.PLAN_INPUT, key="workload.mean"):
        log_normal_lengths(9_000, 8_000, 40_000)


def test_a_length_depends_on_the_seed_and_the_sample_only() -> None:
    lengths = log_normal_lengths(100, 300, 1_000, correlation=0.3)
    whole = lengths.draw(7, 0, 10, 4)
    assert (lengths.draw(7, 6, 4, 4) == whole[6:]).all()
    assert (lengths.draw(8, 0, 10, 4) != whole).any()
