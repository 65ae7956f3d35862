"""Latency profiles: what is interpolated, the closed form of many decode steps, and which files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refusals import refused
from ulorl.error_codes import ErrorCode
from ulorl.planning.decode_times import decode_times
from ulorl.planning.latency_profile import (
    SOURCED,
    DecodeTable,
    LatencyProfile,
    TokenTable,
    linear_decode,
    presets,
    read_profile,
    write_profile,
)

TABLE = DecodeTable(rows=(1, 4, 16), contexts=(10, 40, 100), seconds=((1, 2, 3), (2, 4, 8), (3, 8, 16)))


def profile(**changes: Any) -> LatencyProfile:
    fields: dict[str, Any] = {
        "name": "test",
        "decode": TABLE,
        "prefill": TokenTable(tokens=(100, 200), seconds=(3.0, 5.0)),
        "slots": 16,
        "sources": dict.fromkeys(SOURCED, "assumption"),
    }
    return LatencyProfile(**(fields | changes))


def step(rows: int, context: float) -> float:
    return decode_times(TABLE, rows).seconds(context, 1)


def test_a_step_is_bilinear_in_rows_and_context() -> None:
    assert step(4, 40) == pytest.approx(4, abs=0.01)  # at a point, whose lines it meets for half a token each
    assert step(10, 70) == pytest.approx(((4 + 8) / 2 + (8 + 16) / 2) / 2)  # halfway in both
    assert step(16, 130) == pytest.approx(16 + 8 / 60 * 30)  # beyond the last context
    assert step(28, 70) == pytest.approx(12 + (12 - 6))  # beyond the last rows: 16 + 12 are 12 + (12 - 6)
    assert step(1, 3) == pytest.approx(1 - 7 / 30)


def test_no_step_takes_less_than_no_time() -> None:
    falling = DecodeTable(rows=(1,), contexts=(10, 20), seconds=((3, 1),))
    assert decode_times(falling, 1).seconds(30, 5) == 0
    assert decode_times(falling, 7).seconds(1, 1) == pytest.approx(3 + 9 * 0.2)
    steep = DecodeTable(rows=(1,), contexts=(10, 20), seconds=((1, 3),))
    assert decode_times(steep, 1).seconds(2, 1) == 0
    assert decode_times(steep, 1).seconds(2, 9) == pytest.approx(
        sum(max(0, 1 - (10 - c) * 0.2) for c in range(2, 11)), abs=0.03
    )


@pytest.mark.parametrize("rows", [1, 3, 4, 9, 40])
def test_many_steps_take_as_long_as_they_do_one_by_one(rows: int) -> None:
    times = decode_times(TABLE, rows)
    context, n = 7.25, 150
    total = times.seconds(context, n)
    assert total == pytest.approx(sum(times.seconds(context + i, 1) for i in range(n)))
    for taken in (0, 1, 33, 90, 150):
        assert times.steps(context, times.seconds(context, taken)) == pytest.approx(taken, abs=1e-6)


def test_a_linear_profile_is_its_formula() -> None:
    table = linear_decode(5e-3, 2e-5, 1e-8, rows=64, context=32768)
    for rows, context in ((1, 1), (7, 900), (64, 32768), (128, 65536)):
        expected = 5e-3 + 2e-5 * rows + 1e-8 * rows * context
        assert decode_times(table, rows).seconds(context, 1) == pytest.approx(expected)


def test_requests_that_enter_together_share_the_overhead_of_a_prefill_pass() -> None:
    one = profile()  # 1 second a pass, and .02 a token
    assert one.prefill_seconds([150]) == pytest.approx(4)
    assert one.prefill_seconds([150, 50]) == pytest.approx(1 + 3 + 1)
    assert one.prefill_seconds([0]) == one.prefill_seconds([]) == 0
    assert profile(prefill_pass_tokens=100).prefill_seconds([150, 50]) == pytest.approx(2 + 3 + 1)


def test_a_request_adds_less_to_a_pass_than_it_takes_alone() -> None:
    """A single request takes 1 + .02 a token, one more .5 + .01 a token: 150 tokens take 4, or 2 beside others, so that
    the overhead of their pass is 2. 2 requests of 150 and 50 take 4 + 1. In passes of 100 tokens, the overhead counts
    twice."""
    added = TokenTable(tokens=(100, 200), seconds=(1.5, 2.5))
    assert profile(prefill_added=added).prefill_seconds([150]) == pytest.approx(4)
    assert profile(prefill_added=added).prefill_seconds([50, 150]) == pytest.approx(4 + 1)
    many = profile(prefill_added=added, prefill_pass_tokens=100)
    assert many.prefill_seconds([150, 50]) == pytest.approx(2 * 2 + 2 + 1)


def test_an_engine_that_pads_computes_every_request_of_a_pass_as_its_longest() -> None:
    """200 and 180 tokens share a pass of 400, of which 20 are padding; with 100 it would have 600. A pass of 200 takes
    5 and 2.5 for each further request, one of 100 takes 3 and 1.5. With less padding, every request has its own."""
    added = TokenTable(tokens=(100, 200), seconds=(1.5, 2.5))
    one = profile(prefill_added=added, prefill_pass_tokens=400, prefill_padding=50)
    assert one.prefill_seconds([100, 200, 0, 180]) == pytest.approx((5 + 2.5) + 3)
    assert one.prefill_seconds([100, 200, 100, 180]) == pytest.approx((5 + 2.5) + (3 + 1.5))
    tight = profile(prefill_added=added, prefill_pass_tokens=400, prefill_padding=19)
    assert tight.prefill_seconds([100, 200, 180]) == pytest.approx(3 + 5 + 4.6)
    unlimited = profile(prefill_added=added, prefill_padding=150)
    assert unlimited.prefill_seconds([100, 200, 180]) == pytest.approx(5 + 2 * 2.5)


def test_learner_seconds_are_a_line() -> None:
    assert profile().learner.at(1000) == 0
    assert TokenTable(tokens=(10, 20), seconds=(3, 4)).at(40) == pytest.approx(6)
    assert TokenTable(tokens=(10,), seconds=(3,)).at(40) == pytest.approx(12)


def test_a_profile_is_written_and_read(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    write_profile(profile(kv_tokens=7), file)
    assert read_profile(str(file)) == profile(kv_tokens=7)


@pytest.mark.parametrize("name", presets())
def test_every_number_of_a_preset_has_a_source(name: str) -> None:
    assert set(read_profile(name).sources) == {*SOURCED, "workload"}


@pytest.mark.parametrize(
    ("change", "key", "text"),
    [
        ({"slots": 0}, "slots", "greater than 0"),
        ({"rows": 3}, "rows", "unknown key"),
        ({"decode": {"rows": [4, 1], "contexts": [1], "seconds": [[1], [2]]}}, "decode.rows", "must rise"),
        (
            {"decode": {"rows": [1, 4], "contexts": [1], "seconds": [[1]]}},
            "decode.seconds",
            "a line for each of 2 rows",
        ),
        ({"prefill": {"tokens": [1, 2], "seconds": [1]}}, "prefill.seconds", "1 values for 2"),
        ({"prefill": {}}, "prefill.tokens", "at least one point"),
        ({"sources": {"decode": "measured"}}, "sources", "no source of prefill"),
    ],
)
def test_wrong_profiles_are_refused_by_their_key(tmp_path: Path, change: dict[str, Any], key: str, text: str) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(json.loads(profile().model_dump_json()) | change))
    with refused(ErrorCode.PLAN_INPUT, key=key, file=file) as caught:
        read_profile(str(file))
    assert text in str(caught.value)


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    with refused(ErrorCode.PLAN_INPUT, file=tmp_path / "none.json"):
        read_profile(str(tmp_path / "none.json"))
    (tmp_path / "profile.json").write_text("{")
    with refused(ErrorCode.PLAN_INPUT, file=tmp_path / "profile.json"):
        read_profile(str(tmp_path / "profile.json"))
