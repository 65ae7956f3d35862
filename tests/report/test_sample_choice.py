"""Which samples a report contains, and how long outputs are cut."""

from __future__ import annotations

from pathlib import Path

from report_runs import make_run, sample
from ulorl.report.page_json import size_of
from ulorl.report.sample_choice import TOKENS, choose, pieces, read_some, shown, verdict
from ulorl.runs.saved_run import read_run


def test_verdicts() -> None:
    assert verdict({"reward": 1.0}) == "right"
    assert verdict({"reward": 0.0, "status": "complete"}) == "wrong"
    assert verdict({"reward": 0.0, "status": "truncated"}) == "truncated"
    assert verdict({"reward": None, "error": "the server is gone"}) == "unscored"


def test_each_piece_has_its_version_and_its_text() -> None:
    entry = sample(4, "one two three", 1, [4, 4, 5], [2, 3, 4])
    assert [(p["version"], p["text"]) for p in pieces(entry["output"], entry["segments"], 100)] == [
        (2, "one "), (3, "two "), (4, "three"),
    ]  # fmt: skip


def test_a_long_output_keeps_the_ends_of_every_segment() -> None:
    first, second = "A" + "b" * 998 + "C", "D" + "e" * 998 + "F"
    segments = [{"version": v, "tokens": 1000, "chars": 1000} for v in (0, 1)]
    for piece, (head, tail) in zip(pieces(first + second, segments, 800), (("Ab", "bC"), ("De", "eF")), strict=True):
        assert piece["left_out"] == 600  # 800 / 2 segments = 400 of 1000 are kept
        assert piece["text"].startswith(head)
        assert piece["tail"].endswith(tail)
        assert len(piece["text"]) == len(piece["tail"]) == 200


def test_without_the_characters_of_segments_an_output_is_one_piece() -> None:
    segments = [{"version": 0, "tokens": 4}, {"version": 1, "tokens": 6}]
    assert pieces("old format", segments, 100) == [{"version": None, "tokens": 0, "text": "old format"}]


def test_tokens_with_values_are_shown_one_by_one_and_the_middle_is_left_out() -> None:
    entry = sample(4, "one two three", 1, [4, 9], [2, 3], tokens=3)
    entry["segments"] = [{"version": 2, "tokens": 2, "chars": 8}, {"version": 3, "tokens": 1, "chars": 5}]
    entry["token_values"] = {"chars": [4, 4, 5], "logprob": [-1, -2, -3], "entropy": [1, 2, 3], "masked": [0, 1, 0]}
    found = shown(entry, 7)
    assert found["token_values"] == {
        "index": [0, 1, 2], "text": ["one ", "two ", "three"], "version": [2, 2, 3], "logprob": [-1, -2, -3],
        "entropy": [1, 2, 3], "masked": [0, 1, 0],
    }  # fmt: skip
    assert "pieces" not in found
    size = 2 * TOKENS
    entry["segments"] = [{"version": 0, "tokens": size, "chars": size}]
    entry |= {"output": "x" * size, "token_values": {"chars": [1] * size, "logprob": list(range(size))}}
    values = shown(entry, 7)["token_values"]
    assert values["index"] == values["logprob"] == [*range(TOKENS // 2), *range(size - TOKENS // 2, size)]
    assert len(shown(entry, 7, clip=None)["token_values"]["text"]) == size


def test_samples_are_taken_in_turn_from_steps_and_verdicts(tmp_path: Path) -> None:
    """Each of 5 steps has 6 wrong, 1 right and 1 truncated sample; two of the wrong ones have 2 segments."""
    stored = {
        step: [
            *(sample(10 * step + i, "ab", 0, [1, 1] if i in (4, 5) else [2], [0, 1] if i in (4, 5) else [0])
              for i in range(6)),
            sample(10 * step + 6, "ab", 1, [2], [0]),
            sample(10 * step + 7, "ab", 0, [2], [0], status="truncated"),
        ]
        for step in range(1, 6)
    }  # fmt: skip
    read = read_some(read_run(make_run(tmp_path, [], stored)))
    assert read.lengths[3] == [2] * 8
    everything = choose(read, 10**6)
    assert [one["sample"] for one in everything] == [10 * step + i for step in range(1, 6) for i in range(8)]
    # One round takes from each step the right one, the wrong one of most segments, and the truncated one: 15.
    first = [one for one in everything if one["sample"] % 10 in (4, 6, 7)]
    assert choose(read, sum(map(size_of, first))) == choose(read, sum(map(size_of, first))) == first
    ends = [one for one in first if one["step"] in (1, 5)]  # the ends of the run come first
    assert choose(read, sum(map(size_of, ends))) == ends
    read.candidates[1][0][0]["answer"] = "too long" * 1000
    assert len(choose(read, sum(map(size_of, ends)))) >= 6  # what does not fit is left out, and those after it are not


def test_of_many_steps_some_are_read(tmp_path: Path) -> None:
    stored = {step: [sample(step, "a", 1, [1], [0])] for step in range(1, 10)}
    assert list(read_some(read_run(make_run(tmp_path, [], stored)), steps=3).lengths) == [1, 5, 9]
