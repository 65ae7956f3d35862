"""report.html: its numbers, hostile text, and runs with missing data."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refusals import refused
from ulorl.config.loading import build
from ulorl.error_codes import ErrorCode
from ulorl.report.figures import figures
from ulorl.report.html_report import write_report
from ulorl.report.timeline_figure import samples_at_once, shown_samples
from ulorl.runs.saved_run import read_run
from ulorl.runs.summary import duration, summarize

DATA = {"kind": "countdown", "size": 8}
METRICS: list[dict[str, Any]] = [
    {
        "step": 0, "version": 0, "eval/accuracy": 0.30, "eval/accuracy_low": 0.257, "eval/accuracy_high": 0.347,
        "eval/problems": 400, "eval/samples": 1,
    },
    {
        "step": 1, "version": 0, "reward/mean": 0.2, "entropy/mean": None, "rollout/tokens": 1000,
        "rollout/finished": 10, "rollout/carried": 6, "rollout/truncated": 0, "rollout/segments_mean": 1.0,
        "rollout/multi_segment_fraction": 0.0, "time/rollout": 4.0, "time/update": 1.0, "time/step": 5.0,
    },
    {
        "step": 2, "version": 1, "reward/mean": 0.6, "entropy/mean": 0.35, "mpt/fraction": 0.1,
        "mpt/masked_fraction": 0.05, "importance/ratio_mean": 1.0, "importance/clip_fraction": 0.0,
        "rollout/tokens": 2000, "rollout/finished": 30, "rollout/carried": 8, "rollout/truncated": 2,
        "rollout/segments_mean": 1.4, "rollout/multi_segment_fraction": 0.4, "train/grad_norm": 0.7,
        "time/rollout": 6.0, "time/update": 2.0, "time/step": 8.0, "time/eval": 50.0,
        "eval/accuracy": 0.42, "eval/accuracy_low": 0.373, "eval/accuracy_high": 0.469, "eval/problems": 400,
        "eval/samples": 1, "eval/length_mean": 120,
    },
]  # fmt: skip


def sample(
    number: int, output: str, reward: float, chars: list[int], versions: list[int], **more: Any
) -> dict[str, Any]:
    segments = [{"version": v, "tokens": c, "chars": c} for v, c in zip(versions, chars, strict=True)]
    return {
        "sample": number, "group": 0, "problem": "p", "prompt": "2+2=", "output": output, "reward": reward,
        "status": "complete", "tokens": sum(chars), "segments": segments,
    } | more  # fmt: skip


def make_run(
    run_dir: Path, metrics: list[dict[str, Any]] = METRICS, samples: dict[int, list[dict[str, Any]]] | None = None
) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    cfg = build({"steps": 2, "data": DATA})
    (run_dir / "config.json").write_text(cfg.model_dump_json())
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    for step, entries in (samples or {}).items():
        (run_dir / "samples").mkdir(exist_ok=True)
        path = run_dir / "samples" / f"step_{step:06d}.jsonl"
        path.write_text("".join(json.dumps(e) + "\n" for e in entries))
    return run_dir


def page(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


class Text(HTMLParser):
    """The page's words, its tags, and everything that could load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.labels: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.links.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            elif name == "aria-label":
                self.labels.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_headline_numbers(tmp_path: Path) -> None:
    text = Text(page(make_run(tmp_path / "my-run"))).text
    assert "30.0% 25.7% to 34.7%, at step 0" in text
    assert "42.0% 37.3% to 46.9%, at step 2" in text
    assert "Gain +12.0 points +5.4 to +18.5, 95% interval" in text  # 12 - hypot(4.7, 4.7), 12 + hypot(4.9, 4.3)
    assert "400 problems x 1" in text
    assert "Mean reward 0.200 → 0.600" in text
    assert "Entropy, nats a token 0.350 → 0.350" in text  # only step 2 has one
    assert "Segments a sample 1.30 30.0% span 2 or more" in text  # (10 x 1.0 + 30 x 1.4) / 40; 30 x 0.4 / 40
    assert "Truncated 5.0%" in text  # 2 of 40
    assert "Tokens a second 300" in text  # 3000 in 10 s
    assert "Time 1 min 03 s 2 steps" in text  # 5 + 8 + 50
    assert "my-run" in text
    assert "outputs of up to 131,072 tokens in 8 segments" in text
    assert '"max_tokens": 131072' in text, "the resolved configuration"


def test_the_headline_names_the_schedule(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    schedule = {"rollout": {"schedule": {"kind": "refill", "factor": 2}}}
    (run / "config.json").write_text(build({"steps": 2, "data": DATA} | schedule).model_dump_json())
    assert "outputs of up to 131,072 tokens, schedule refill with factor 2.0" in Text(page(run)).text


def test_every_figure_says_its_numbers_in_words(tmp_path: Path) -> None:
    samples = {2: [sample(0, "abcd", 1, [2, 2], [0, 1]), sample(1, "abc", 0, [3], [1]), sample(2, "x", 1, [1], [1])]}
    parsed = Text(page(make_run(tmp_path, samples=samples)))
    alts = {label.split(".")[0]: label for label in parsed.labels}
    assert "0.200 at step 1, 0.600 at step 2" in alts["Reward"]
    assert "30.0% at step 0, 42.0% at step 2" in alts["Held-out accuracy"]
    assert "0.350 at step 2" in alts["Entropy"]
    assert "Masked: 5.0% at step 2" in alts["Well-mastered positive tokens"]
    assert "Carried over: 6 at step 1, 8 at step 2" in alts["Samples a step"]
    assert "250 at step 1, 333 at step 2" in alts["Tokens a second"]  # 1000 / 4 and 2000 / 6
    assert "1: 66.7%, 2: 33.3%" in alts["Segments a sample, whole run"]
    assert "Mean length: 3 at step 2" in alts["Output length"]  # (4 + 3 + 1) / 3 = 2.67
    assert "rollout 77%, update 23%" in alts["Time"]  # 10 and 3 of 13
    assert parsed.tags.count("svg") == 12
    assert "target σ = 0.2" in parsed.text


def test_the_figures_of_a_schedule_say_their_numbers_in_words(tmp_path: Path) -> None:
    """Two engines; 1.5 of 6 seconds of the second rollout an engine had no samples, on average."""
    ages = [{f"age/{age}": share for age, share in zip(("0", "1", "2", "3", "4_or_more"), shares, strict=True)}
            for shares in ((1.0, 0, 0, 0, 0), (0.5, 0.25, 0.125, 0.0625, 0.0625))]  # fmt: skip
    of_schedule: list[dict[str, Any]] = [
        {"rollout/staleness_mean": 0.0, "train/groups": 2, "rollout/groups_open": 5, "rollout/groups_waiting": 0,
         "train/versions_mean": 1.0, "train/versions_max": 1, "train/length_bias": 0.6, "engine/occupancy": 0.5,
         "time/engine_idle": 0.0},
        {"rollout/staleness_mean": 0.9375, "train/groups": 4, "rollout/groups_open": 3, "rollout/groups_waiting": 1,
         "train/versions_mean": 1.5, "train/versions_max": 3, "train/length_bias": 0.9, "engine/occupancy": 0.75,
         "time/engine_idle": 1.5},
    ]  # fmt: skip
    metrics = [METRICS[0], *(m | s | age for m, s, age in zip(METRICS[1:], of_schedule, ages, strict=True))]
    alts = {label.split(".")[0]: label for label in Text(page(make_run(tmp_path, metrics))).labels}
    assert "Mean age: 0.000 at step 1, 0.938 at step 2" in alts["Age of the trained tokens"]
    assert "at step 2, 0: 50.0%, 1: 25.0%, 2: 12.5%, 3: 6.2%, 4 or more: 6.2%" in alts["Age of the trained tokens"]
    assert "Highest: 1 at step 1, 3 at step 2" in alts["Versions a sample"]
    assert "Finished, waiting: 0 at step 1, 1 at step 2" in alts["Groups a step"]
    assert "0.600 at step 1, 0.900 at step 2" in alts["Length bias"]
    assert "50.0% at step 1, 75.0% at step 2" in alts["Occupancy"]
    assert "Idle engines: 0.0% at step 1, 25.0% at step 2" in alts["Occupancy"]


def test_the_timeline_shows_who_decoded_when(tmp_path: Path) -> None:
    """Step 1: samples 0 and 1 decode for 4 steps, sample 1 is carried over; step 2: it decodes for 2 more. So 10 tokens
    in 6 decode steps."""
    lines = [
        {"step": 1, "version": 0, "unit": "decode steps", "length": 4, "sample": [0, 1], "start": [0, 0],
         "end": [4, 4], "tokens": [4, 4], "status": "cu"},
        {"step": 2, "version": 1, "unit": "decode steps", "length": 2, "sample": [1], "start": [0], "end": [2],
         "tokens": [2], "status": "t"},
    ]  # fmt: skip
    run_dir = make_run(tmp_path)
    (run_dir / "timeline.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    parsed = Text(page(run_dir))
    (label,) = (label for label in parsed.labels if label.startswith("Samples over time"))
    assert "all 2 samples of steps 1 to 2" in label
    assert "2 decode at once on average, 2 at most, of 128 slots" in label  # 10 / 6 = 1.67
    assert "step 1 · v0" in parsed.text
    assert "step 2 · v1" in parsed.text
    assert page(run_dir) == page(run_dir)
    (run_dir / "timeline.jsonl").write_text('{"step": 1, "sample": [0]}\n')
    with refused(ErrorCode.RUN_DAMAGED, file=run_dir / "timeline.jsonl"):
        write_report(run_dir)


def test_of_many_samples_a_few_are_shown() -> None:
    ids = np.arange(1000)
    assert shown_samples(ids[:40], 4) == list(range(40))
    whole = shown_samples(ids, 4)  # 250 groups: the first and the last, and 10 between them
    assert len(whole) == 48
    assert whole[:4] == [0, 1, 2, 3]
    assert whole[-4:] == [996, 997, 998, 999]
    assert shown_samples(ids, 500) == [*range(24), *range(500, 524)]


def test_samples_at_once_are_the_covered_time() -> None:
    """Spans [0, 4), [1, 3) and [3, 4): in parts of 2, 2 + 1 and 1 + 2 + 1 of 2 each."""
    starts, ends = np.array([0.0, 1, 3]), np.array([4.0, 3, 4])
    edges, decoding = samples_at_once(starts, ends, 4, parts=2)
    assert edges.tolist() == [0, 2, 4]
    assert decoding.tolist() == [1.5, 2]


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    samples = {2: [sample(0, "abcd", 1, [2, 2], [0, 1])]}
    html = page(make_run(tmp_path, samples=samples))
    parsed = Text(html)
    assert all(link.startswith(("#", "data:,")) for link in parsed.links), parsed.links
    assert not {"script", "iframe", "img", "object", "form"} & set(parsed.tags)
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "@import" not in html
    assert set(re.findall(r"https?://[^\"' <]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert len(parsed.ids) == len(set(parsed.ids))


def test_outputs_prompts_and_configuration_are_untrusted_text(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    run_dir = make_run(tmp_path, [], {1: [sample(0, attack + "x", 1, [10, 16], [0, 1], prompt=f'"{attack}')]})
    cfg = json.loads((run_dir / "config.json").read_text())
    cfg["model"]["path"] = f"</pre>{attack}"
    (run_dir / "config.json").write_text(json.dumps(cfg))
    html = page(run_dir)
    assert "<script" not in html
    parsed = Text(html)
    assert "script" not in parsed.tags
    assert f'"{attack}' in parsed.text  # shown as it is
    assert f"</pre>{attack}" in parsed.text


def test_each_segment_has_its_version_and_its_text(tmp_path: Path) -> None:
    samples = {
        1: [sample(0, "first right", 1, [11], [0]), sample(1, "first wrong", 0, [11], [0])],
        2: [sample(2, "never shown", 1, [11], [1])],
        5: [
            sample(3, "in one segment", 1, [14], [4]),
            sample(4, "one two three", 1, [4, 4, 5], [2, 3, 4]),
            sample(5, "cut", 0, [3], [4], status="truncated"),
        ],
    }
    html = page(make_run(tmp_path, [], samples))
    pieces = re.findall(r'<span class="piece h(\d)"><span class="tag"[^>]*>v(\d+)</span>([^<]*)</span>', html)
    assert pieces == [
        ("0", "0", "first right"),
        ("0", "0", "first wrong"),
        ("2", "2", "one "),
        ("3", "3", "two "),
        ("4", "4", "three"),
        ("4", "4", "cut"),
    ]
    text = Text(html).text
    assert "Step 5, sample 4 right 13 tokens, 3 segments" in text
    assert "Step 5, sample 5 truncated 3 tokens, 1 segment" in text


def test_a_long_output_keeps_the_ends_of_every_segment(tmp_path: Path) -> None:
    first, second = "A" + "b" * 9998 + "C", "D" + "e" * 9998 + "F"
    html = page(make_run(tmp_path, [], {1: [sample(0, first + second, 1, [10_000, 10_000], [0, 1])]}))
    text = Text(html).text
    assert text.count("[7,000 characters left out]") == 2  # 6000 / 2 segments = 3000 of 10000 are shown
    for end in ("Ab", "bC", "De", "eF"):
        assert end in text


def test_samples_without_the_characters_of_segments_are_shown_whole(tmp_path: Path) -> None:
    entry = sample(0, "old format", 1, [10], [0])
    entry["segments"] = [{"version": 0, "tokens": 4}, {"version": 1, "tokens": 6}]
    html = page(make_run(tmp_path, [], {1: [entry]}))
    assert '<span class="piece">old format</span>' in html
    assert "10 tokens, 2 segments" in Text(html).text


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    samples = {2: [sample(0, "abcd", 1, [2, 2], [0, 1])]}
    first = write_report(make_run(tmp_path, samples=samples)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ([], "No step is finished yet."),
        (METRICS[:1], "No second evaluation yet."),
        (METRICS[1:2], "No evaluation yet."),
        ([{"step": 1}], "No step is finished yet."),
        (
            [{"step": 1, "reward/mean": 0.0, "time/step": 0.0, "rollout/finished": 0, "rollout/segments_mean": None}],
            "0.000",
        ),
        ([{"step": s, "reward/mean": 0.5, "time/step": 1.0} for s in range(1, 101)], "mean of first and last 10 steps"),
    ],
)
def test_runs_with_missing_data(tmp_path: Path, metrics: list[dict[str, Any]], says: str) -> None:
    assert says in Text(page(make_run(tmp_path, metrics))).text


def test_a_run_in_the_middle_of_a_write_and_without_known_settings(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "config.json").write_text('{"steps": 50, "unheard": {"of": 1}}')
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rewa')
    text = Text(page(tmp_path)).text
    assert "2 of 50 steps" in text
    assert "target σ" not in text


def test_without_segment_metrics_the_stored_samples_are_counted(tmp_path: Path) -> None:
    entries = [sample(0, "abcd", 1, [2, 2], [0, 1]), sample(1, "a", 0, [1], [1]), sample(2, "b", 0, [1], [1])]
    summary = summarize(read_run(make_run(tmp_path, [{"step": 1, "rollout/finished": 3}], {1: entries})))
    assert summary.segments_mean == pytest.approx(4 / 3)
    assert summary.multi_segment_share == pytest.approx(1 / 3)


def test_a_gap_in_a_curve_is_left_out_of_its_numbers(tmp_path: Path) -> None:
    metrics: list[dict[str, Any]] = [
        {"step": 1, "reward/mean": 0.5},
        {"step": 2, "reward/mean": None},
        {"step": 3, "reward/mean": 0.25},
    ]
    run = read_run(make_run(tmp_path, metrics))
    assert run.series("reward/mean") == ([1, 3], [0.5, 0.25])
    (reward,) = figures(run)
    assert reward.alt == "Mean reward: 0.500 at step 1, 0.250 at step 3, lowest 0.250, highest 0.500"


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with refused(ErrorCode.RUN_NOT_FOUND, file=tmp_path / "nowhere"):
        write_report(tmp_path / "nowhere")
    with refused(ErrorCode.RUN_NOT_FOUND, file=tmp_path):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with refused(ErrorCode.RUN_DAMAGED, file=tmp_path / "config.json"):
        write_report(tmp_path)
    make_run(tmp_path, samples={1: [{}]})
    (tmp_path / "samples" / "step_000001.jsonl").write_text('{"sample": 1}\nnonsense\n')
    with refused(ErrorCode.RUN_DAMAGED, record="step_000001.jsonl:2"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.24, "8.2 s"), (59.97, "60.0 s"), (309, "5 min 09 s"), (11100, "3 h 05 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
