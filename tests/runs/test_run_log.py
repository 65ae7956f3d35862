"""What a run leaves behind and what it prints."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from refusals import refused
from ulorl.config.loading import build
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.learner.observed import TokenValues
from ulorl.learner.update_result import Update
from ulorl.report.sample_choice import shown
from ulorl.runs.problem_counts import ProblemCounts, read_counts, write_counts
from ulorl.runs.run_log import Position, RunLog, truncate_to
from ulorl.runs.samples import write_samples
from ulorl.runs.saved_run import read_metrics
from ulorl.runs.terminal_lines import HEADER, metrics_line
from ulorl.runs.timeline import DECODE_STEPS, TIMELINE, Span, last_lines, read_timeline, timeline_entry
from ulorl.types import Finish, Group, Problem, Sample, Scored, Segment, Status, Tokens


def make_config(**log: Any) -> Config:
    return build({"steps": 3, "data": {"kind": "countdown", "size": 8}, "log": log})


def piped() -> Console:
    return Console(file=io.StringIO(), width=80)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def from_bytes(tokens: Tokens) -> str:
    """A tokenizer whose tokens are bytes: what byte-level BPE does to characters that are cut."""
    return bytes(tokens.tolist()).decode("utf-8", errors="replace")


def make_sample(text: str, cuts: list[int], versions: list[int], sample_id: int = 0, reward: float = 1.0) -> Scored:
    """`text` in segments that end at the byte positions `cuts`, each from one version."""
    tokens = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
    edges = [0, *cuts, len(tokens)]
    segments = tuple(
        Segment(
            sample_id,
            tokens[a:b],
            np.zeros(b - a, np.float32),
            np.full(b - a, version, np.int32),
            Finish.LENGTH if b < len(tokens) else Finish.EOS,
        )
        for a, b, version in zip(edges, edges[1:], versions, strict=False)
    )
    prompt = np.frombuffer(b"1+1=", dtype=np.uint8).astype(np.int32)
    return Scored(Sample(sample_id, 7, prompt, segments, Status.COMPLETE), reward, text)


def stored(run_dir: Path, scored: Scored, step: int = 1) -> dict[str, Any]:
    path = write_samples(run_dir, step, [Group(7, Problem("p-7", "1+1"), (scored,))], from_bytes)
    (line,) = path.read_text(encoding="utf-8").splitlines()
    return dict(json.loads(line))


def test_metrics_are_valid_json_for_any_numbers(tmp_path: Path) -> None:
    with RunLog(tmp_path, make_config(), console=piped()) as log:
        log.step({"step": 1, "reward/mean": float("nan"), "entropy/mean": None, "train/grad_norm": float("inf")})
        log.step({"step": 2, "reward/mean": np.float32(0.25), "rollout/tokens": np.int64(12)})  # type: ignore[dict-item]
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()  # flushed before the run ends

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    first, second = (json.loads(line, parse_constant=refuse) for line in lines)
    assert first == {"step": 1, "reward/mean": None, "entropy/mean": None, "train/grad_norm": None}
    assert second == {"step": 2, "reward/mean": 0.25, "rollout/tokens": 12}


def test_tensorboard_holds_the_finite_numbers_and_hides_purged_steps(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, make_config(), console=piped()) as log:
        for step, reward in ((1, 0.25), (2, 0.5), (3, 0.75)):
            log.step({"step": step, "reward/mean": reward, "entropy/mean": float("nan")})
    # TensorBoard sorts its files by the second in which they begin; within a second, 10 comes before 9.
    time.sleep(1 - time.time() % 1)
    with RunLog(tmp_path, make_config(), resume_step=1, console=piped()) as log:
        log.step({"step": 2, "reward/mean": 0.125})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 0.25), (2, 0.125)]


def test_a_piped_log_is_plain_lines_of_one_table(tmp_path: Path) -> None:
    console = piped()
    with RunLog(tmp_path, make_config(), console=console) as log:
        log.step({"step": 0, "eval/accuracy": 0.4125, "eval/accuracy_low": 0.37, "eval/accuracy_high": 0.452})
        for step in (1, 2):
            with log.phase("rollout", 4, tokens=lambda: 100) as phase:
                phase.advance()
            log.step(
                {"step": step, "reward/mean": 0.5, "mpt/fraction": 0.1234, "rollout/tokens": 12345, "time/step": 2.0}
            )
    text = printed(console)
    assert "\x1b" not in text
    assert "\r" not in text
    header, zero, one, _ = text.splitlines()
    assert header == HEADER
    assert zero.endswith("41.2% (37.0% to 45.2%)")
    assert one.split() == ["1", "0.500", "-", "12.3%", *"-------", "12,345", "2.0"]
    for title, value in (("reward", "0.500"), ("MPT", "12.3%"), ("tokens", "12,345")):
        assert header.index(title) + len(title) == one.index(value) + len(value), "columns are aligned right"


def test_a_value_that_does_not_exist_is_a_dash_and_zero_is_zero() -> None:
    cells = metrics_line(3, {"reward/mean": 0.0, "rollout/truncated": 0}).split()
    assert cells == ["3", "0.000", *"-------", "0", "-", "-", "-"]


def test_bars_on_a_terminal_and_none_when_turned_off(tmp_path: Path) -> None:
    def run(progress: bool) -> str:
        console = Console(
            file=io.StringIO(), force_terminal=True, width=120, color_system=None, _environ={"TERM": "xterm"}
        )
        tokens = 1000
        with RunLog(tmp_path / str(progress), make_config(progress=progress), console=console) as log:
            with log.phase("rollout", 4, tokens=lambda: tokens) as phase:
                tokens += 50
                phase.advance(3)
                log._bars.refresh()
            log.step({"step": 1, "reward/mean": 0.5, "eval/accuracy": 0.375})
            log._bars.refresh()
        return printed(console)

    shown = run(progress=True)
    assert "rollout" in shown
    assert "3/4" in shown
    assert "tok/s" in shown
    assert "accuracy 37.5%  reward 0.500" in shown
    assert "\x1b" not in run(progress=False)


def test_an_ascii_log_does_not_stop_a_run(tmp_path: Path) -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=80)
    (tmp_path / "config.json").write_text(make_config().model_dump_json())
    with RunLog(tmp_path, make_config(), console=console) as log:
        log.step({"step": 1, "reward/mean": 0.25})
        log.step({"step": 2, "reward/mean": 0.75})
        log.summary(model=tmp_path)
    assert b"0.250 -> 0.750" in raw.getvalue()


def held_out(accuracy: float, low: float, high: float) -> dict[str, float]:
    return {
        "eval/accuracy": accuracy, "eval/accuracy_low": low, "eval/accuracy_high": high,
        "eval/problems": 250, "eval/samples": 2,
    }  # fmt: skip


def test_the_closing_table_says_the_numbers(tmp_path: Path) -> None:
    cfg = make_config()
    (tmp_path / "config.json").write_text(cfg.model_dump_json())
    console = piped()
    long_path = tmp_path / ("deep/" * 30) / "model"
    with RunLog(tmp_path, cfg, console=console) as log:
        log.step({"step": 0, **held_out(0.4, 0.34, 0.45)})
        log.step({"step": 1, "reward/mean": 0.25, "rollout/tokens": 600, "time/rollout": 2.0, "time/step": 3.0})
        log.step(
            {"step": 2, "reward/mean": 0.75, "rollout/tokens": 400, "time/rollout": 3.0, "time/step": 5.0}
            | {**held_out(0.5, 0.42, 0.58), "time/eval": 1.5}
        )
        log.summary(model=long_path)
    table = dict(line.split("  ", 1) for line in printed(console).splitlines()[4:])
    table = {label: value.strip() for label, value in table.items()}
    assert table["held-out accuracy before"] == "40.0% (34.0% to 45.0%), step 0, 250 problems x 2"
    assert table["held-out accuracy after"] == "50.0% (42.0% to 58.0%), step 2, 250 problems x 2"
    assert table["gain"] == "+10.0 (+0.6 to +20.0) points"  # 10 - hypot(5, 8), 10 + hypot(6, 8)
    assert table["mean reward"] == "0.250 → 0.750 (first and last step)"
    assert table["decoded tokens a second"] == "200"  # 1000 tokens in 5 s
    assert table["time"] == "9.5 s (2 steps)"  # 3 + 5 + 1.5
    assert table["model"] == str(long_path), "paths are not wrapped"


def test_truncate_to_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "reward/mean": null}\n{"step": 2}\n{"step": 3}\n{"step": 4, "rew')
    for step in (1, 2, 3):
        stored(tmp_path, make_sample("ab", [], [0]), step)
        write_counts(tmp_path, step, ProblemCounts(["p-7"], [1], [2]))
    timeline = tmp_path / "timeline.jsonl"
    timeline.write_text('{"step":1}\n{"step":2}\n{"step":3}\n{"st')
    truncate_to(tmp_path, 2)
    assert metrics.read_text() == '{"step": 1, "reward/mean": null}\n{"step": 2}\n'
    assert timeline.read_text() == '{"step":1}\n{"step":2}\n'
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["step_000001.jsonl", "step_000002.jsonl"]
    assert [read_counts(tmp_path, step) is None for step in (1, 2, 3)] == [False, False, True]
    truncate_to(tmp_path, 1, Position(metrics=33, timeline=99))  # the timeline has lost lines
    assert metrics.read_text() == '{"step": 1, "reward/mean": null}\n'
    assert timeline.read_text() == '{"step":1}\n'
    truncate_to(tmp_path / "no-such-run", 2)  # nothing to forget


def test_the_timeline_of_the_last_steps_is_read_from_the_end_of_the_file(tmp_path: Path) -> None:
    samples = [make_sample("abcd", [2], [0, 1], id, 1).sample for id in (3, 7)]
    config = make_config()
    with RunLog(tmp_path, config, console=piped()) as log:
        for step in (1, 2, 3):
            entry = timeline_entry(step, samples, {3: Span(0, 2), 7: Span(step, 2 + step)}, 5, DECODE_STEPS)
            log.timeline(entry)
        assert log.position.timeline == (tmp_path / TIMELINE).stat().st_size
    with (tmp_path / TIMELINE).open("a") as file:
        file.write('{"step": 4, "sam')
    steps = read_timeline(tmp_path, 2)
    assert [(one.step, one.version, one.length, one.status) for one in steps] == [(2, 1, 5, "cc"), (3, 1, 5, "cc")]
    assert [(one.sample.tolist(), one.start.tolist(), one.end.tolist()) for one in steps] == [
        ([3, 7], [0, 2], [2, 4]),
        ([3, 7], [0, 3], [2, 5]),
    ]
    assert steps[0].tokens.tolist() == [2, 2]
    assert [one.step for one in read_timeline(tmp_path, 99)] == [1, 2, 3]
    for number in (1, 2, 3, 4):
        assert len(last_lines(tmp_path / TIMELINE, number, block=7)) == min(number, 3)
    with (tmp_path / TIMELINE).open("a") as file:
        file.write("ples\n")
    with refused(ErrorCode.RUN_DAMAGED, file=tmp_path / TIMELINE):
        read_timeline(tmp_path, 1)


def test_a_run_can_do_without_the_timeline(tmp_path: Path) -> None:
    with RunLog(tmp_path, make_config(timeline=False), console=piped()) as log:
        log.timeline({"step": 1})
        assert log.position.timeline == 0
    assert not (tmp_path / TIMELINE).exists()
    assert read_timeline(tmp_path, 9) == []


def test_a_damaged_metrics_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with refused(ErrorCode.RUN_DAMAGED, file=path, record="metrics.jsonl:2"):
        read_metrics(path)
    path.write_text('{"reward/mean": 1}\n')
    with refused(ErrorCode.RUN_DAMAGED, file=path, record="metrics.jsonl:1"):
        read_metrics(path)


def test_samples_show_the_versions_along_an_output(tmp_path: Path) -> None:
    entry = stored(tmp_path, make_sample("abcdefg", [3, 5], [4, 5, 9], sample_id=12))
    assert entry == {
        "sample": 12,
        "group": 7,
        "problem": "p-7",
        "prompt": "1+1=",
        "output": "abcdefg",
        "reward": 1.0,
        "status": "complete",
        "tokens": 7,
        "segments": [
            {"version": 4, "tokens": 3, "chars": 3},
            {"version": 5, "tokens": 2, "chars": 2},
            {"version": 9, "tokens": 2, "chars": 2},
        ],
    }


def test_observed_tokens_are_stored_one_by_one(tmp_path: Path) -> None:
    """Bytes are tokens, so the euro sign is three: its characters go to the last of them."""
    scored = make_sample("a€b", [2], [0, 1])
    values = TokenValues(np.array([0.5, 0.25, 0, 0, 1], np.float32), np.array([0, 1, 1, 0, 0], np.bool_))
    groups = [Group(7, Problem("p-7", "1+1"), (scored,))]
    path = write_samples(tmp_path, 1, groups, from_bytes, {scored.sample.id: -0.5}, {scored.sample.id: values})
    entry = json.loads(path.read_text(encoding="utf-8"))
    assert entry["advantage"] == -0.5
    assert entry["token_values"] == {
        "chars": [1, 0, 0, 1, 1],
        "logprob": pytest.approx(scored.sample.logprobs.tolist(), abs=1e-4),
        "entropy": [0.5, 0.25, 0, 0, 1],
        "masked": [0, 1, 1, 0, 0],
    }
    assert not {"advantage", "token_values"} & stored(tmp_path, scored).keys()


@pytest.mark.parametrize(("text", "last"), [("abbcab", ["a", "b"]), ("ab€b", ["€", "b"])])
def test_of_a_long_output_the_first_and_last_tokens_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, last: list[str]
) -> None:
    """Six tokens, of which four may be stored. Of the euro sign only the last of three tokens is stored, which has the
    character. An id is decoded once."""
    monkeypatch.setattr("ulorl.runs.samples.TOKENS", 4)
    scored = make_sample(text, [2], [0, 1])
    values = TokenValues(np.arange(6, dtype=np.float32), np.array([1, 0, 0, 0, 0, 1], np.bool_))
    decoded: list[list[int]] = []

    def decode(tokens: Tokens) -> str:
        decoded.append(tokens.tolist())
        return from_bytes(tokens)

    groups = [Group(7, Problem("p-7", "1+1"), (scored,))]
    path = write_samples(tmp_path, 1, groups, decode, {}, {scored.sample.id: values})
    assert decoded.count([ord("b")]) == 1
    entry = json.loads(path.read_text(encoding="utf-8"))
    assert entry["token_values"] == {
        "chars": [1, 1, 1, 1],
        "logprob": [0, 0, 0, 0],
        "entropy": [0, 1, 4, 5],
        "masked": [1, 0, 0, 1],
        "left_out": [2, 4],
    }
    tokens = shown(entry, 1)["token_values"]
    assert (tokens["index"], tokens["text"], tokens["version"]) == ([0, 1, 4, 5], ["a", "b", *last], [0, 0, 1, 1])
    assert (tokens["entropy"], tokens.keys() & {"chars", "left_out"}) == ([0, 1, 4, 5], set())


def test_segments_of_one_version_stay_apart(tmp_path: Path) -> None:
    same = stored(tmp_path, make_sample("abcd", [2], [4, 4]))
    assert [s["version"] for s in same["segments"]] == [4, 4]  # a step without an update between the two


def test_a_character_cut_by_a_segment_goes_to_the_earlier_one(tmp_path: Path) -> None:
    # "aé€b": a is 1 byte, é 2, € 3, b 1; the cut after byte 4 is inside €.
    entry = stored(tmp_path, make_sample("aé€b", [4], [0, 1]))
    assert entry["output"] == "aé€b"
    assert [s["chars"] for s in entry["segments"]] == [3, 1]


def test_a_decoder_that_drops_the_space_before_a_piece_does_not_shift_the_segments(tmp_path: Path) -> None:
    scored = make_sample("one two three", [3, 7], [0, 1, 2])  # "one", " two", " three"

    def stripping(tokens: Tokens) -> str:
        return from_bytes(tokens).removeprefix(" ")  # as SentencePiece tokenizers do

    path = write_samples(tmp_path, 1, [Group(7, Problem("p-7", "1+1"), (scored,))], stripping)
    assert [s["chars"] for s in json.loads(path.read_text())["segments"]] == [4, 4, 5]  # "one ", "two ", "three"


@given(st.text(min_size=1, max_size=30), st.data())
def test_characters_of_segments_always_add_up(tmp_path_factory: Any, text: str, data: st.DataObject) -> None:
    size = len(text.encode())
    cuts = sorted(data.draw(st.sets(st.integers(1, size - 1), max_size=3))) if size > 1 else []
    entry = stored(tmp_path_factory.mktemp("run"), make_sample(text, cuts, list(range(len(cuts) + 1))))
    assert sum(s["chars"] for s in entry["segments"]) == len(text)
    assert all(s["chars"] >= 0 for s in entry["segments"])
    assert sum(s["tokens"] for s in entry["segments"]) == size
    if text.isascii():
        assert [s["chars"] for s in entry["segments"]] == [s["tokens"] for s in entry["segments"]]


def test_no_groups_no_file(tmp_path: Path) -> None:
    with RunLog(tmp_path, make_config(), console=piped()) as log:
        log.samples(1, [], from_bytes, Update())
    assert not (tmp_path / "samples").exists()


def test_everything_is_closed_when_the_run_fails(tmp_path: Path) -> None:
    log = RunLog(tmp_path, make_config(), console=piped())
    with pytest.raises(KeyboardInterrupt), log:
        raise KeyboardInterrupt
    assert log._metrics.closed
