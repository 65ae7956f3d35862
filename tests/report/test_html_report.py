"""report.html: its numbers, hostile text, its size, and runs with missing data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from refusals import refused
from report_runs import METRICS, OF_TWO_ENGINES, add_overflowing, add_timeline, data_of, make_run, sample
from ulorl.error_codes import ErrorCode
from ulorl.report.html_report import LIMIT, render, write_report
from ulorl.runs.saved_run import read_run
from ulorl.runs.summary import duration, summarize

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--\u2028\ud800&amp;"


def page(*run_dirs: Path) -> str:
    return write_report(run_dirs, run_dirs[0] / "page.html").read_text(encoding="utf-8")


def shown(run_dir: Path) -> dict[str, Any]:
    return dict(data_of(page(run_dir))["runs"][0])


class Elements(HTMLParser):
    """The elements of a page, with the text of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def test_the_head_has_the_main_numbers(tmp_path: Path) -> None:
    run = shown(make_run(tmp_path / "my-run"))
    assert run["name"] == "my-run"
    assert run["evaluations"] == [
        {"value": 0.30, "limits": "25.7% to 34.7%", "step": 0},
        {"value": 0.42, "limits": "37.3% to 46.9%", "step": 2},
    ]
    assert run["evaluation_size"] == "400 problems x 1"
    cards = {card["label"]: (card["value"], card["note"]) for card in run["cards"]}
    assert cards == {
        "Gain": ("+12.0 points", "+5.4 to +18.5, 95% interval"),  # 12 - hypot(4.7, 4.7), 12 + hypot(4.9, 4.3)
        "Mean reward": ("0.200 → 0.600", "first and last step"),
        "Entropy, nats a token": ("0.350 → 0.350", "first and last step"),  # only step 2 has one
        "Segments a sample": ("1.30", "30.0% span 2 or more"),  # (10 x 1.0 + 30 x 1.4) / 40; 30 x 0.4 / 40
        "Truncated": ("5.0%", "of finished samples"),  # 2 of 40
        "Tokens a second": ("300", "decoded while rolling out"),  # 3000 in 10 s
        "Time": ("1 min 04 s", "2 steps"),  # 5.5 + 8 + 50
    }
    assert "2 of 2 steps · outputs of up to 131,072 tokens in 8 segments · POIS" in run["lead"]
    assert run["config"]["rollout"]["max_tokens"] == 131072


def test_the_line_about_a_run_names_the_schedule(tmp_path: Path) -> None:
    run = make_run(tmp_path, settings={"rollout": {"schedule": {"kind": "refill", "factor": 2}}})
    assert "outputs of up to 131,072 tokens, schedule refill with factor 2.0" in shown(run)["lead"]


def test_the_columns_are_the_metrics(tmp_path: Path) -> None:
    samples = {2: [sample(0, "abcd", 1, [2, 2], [0, 1]), sample(1, "ab", 0, [2], [1])]}
    found = shown(make_run(tmp_path, samples=samples))["columns"]
    for name in {key for metrics in METRICS for key in metrics}:
        assert found[name] == [metrics.get(name) for metrics in METRICS], name
    assert found["computed/time_other"] == [None, 0.5, 0.0]  # 5.5 - 4 - 1 and 8 - 6 - 2
    assert found["computed/idle_share"] == [None, None, 0.25]  # 1.5 / 6
    assert found["rollout/tokens_per_second"] == [None, 250, 333.333]  # 1000 / 4 and 2000 / 6, to 6 digits
    assert found["length/p50"] == [None, None, 3]  # of 4 and 2
    assert found["length/max"] == [None, None, 4]


def test_the_recipe_is_what_differs_from_the_defaults(tmp_path: Path) -> None:
    settings = {"seed": 3, "reward": {"kind": "choice"}, "objective": {"mpt": {"sigma": 0.5}}}
    changed = shown(make_run(tmp_path, settings=settings))["settings"]["changed"]
    assert changed == [
        ["steps", 2, 300], ["seed", 3, 0], ["objective.mpt.sigma", 0.5, 0.2], ["reward.kind", "choice", "math"],
        ["data.kind", "countdown", None], ["data.size", 8, None],
    ]  # fmt: skip


def test_the_timeline_shows_who_decoded_when(tmp_path: Path) -> None:
    """Step 1: samples 0 and 1 decode for 4 steps, sample 1 is carried over; step 2: it decodes for 2 more."""
    run_dir = make_run(tmp_path)
    assert shown(run_dir)["timeline"] is None
    add_timeline(run_dir)
    found = shown(run_dir)["timeline"]
    assert found["bars"] == [[0, 0, 4, 0, "c", 4, 1, 0], [1, 0, 4, 0, "u", 4, 1, 0], [1, 4, 6, 1, "t", 2, 2, 0]]
    assert found["decoding"] == [[0, 2], [1, 2], [2, 2], [3, 2], [4, 1], [5, 1]]
    assert (found["total"], found["slots"], found["unit"]) == (2, 128, "decode steps")
    assert (found["engines"], found["engine_count"], found["load"]) == ([], 1, [])
    add_timeline(run_dir, OF_TWO_ENGINES)
    found = shown(run_dir)["timeline"]
    assert found["bars"][2] == [2, 1, 4, 0, "u", 3, 1, 1]
    assert (found["engines"], found["engine_count"], found["slots"], found["unit"]) == ([0, 1], 2, 256, "seconds")
    (run_dir / "timeline.jsonl").write_text('{"step": 1, "sample": [0]}\n')
    with refused(ErrorCode.RUN_DAMAGED, file=run_dir / "timeline.jsonl"):
        page(run_dir)


def test_runs_that_differ_in_the_seed_only_are_one_arm(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / name / "run", settings={"seed": seed, "objective": {"mpt": {"mask": mask}}})
        for seed, (name, mask) in enumerate((("a", "off"), ("b", "dynamic"), ("c", "off")))
    ]
    data = data_of(page(*runs))
    assert [run["name"] for run in data["runs"]] == ["a/run", "b/run", "c/run"]
    assert data["arms"] == [
        {"label": "objective.mpt.mask=off", "runs": [0, 2]},
        {"label": "objective.mpt.mask=dynamic", "runs": [1]},
    ]


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    html = page(make_run(tmp_path))
    found = Elements(html).found
    links = [value for _, attrs in found for name, value in attrs.items() if name in ("src", "href", "action")]
    assert links == ["data:,", "#main"]
    assert [attrs.get("type") for tag, attrs in found if tag == "script"] == ["application/json", None, "module"]
    assert not {"iframe", "img", "object", "form", "base"} & {tag for tag, _ in found}
    assert "url(" not in html.partition("<script")[0]
    assert "@import" not in html.partition("<script")[0]


def test_the_policy_of_the_page_admits_its_own_scripts_only(tmp_path: Path) -> None:
    elements = Elements(page(make_run(tmp_path)))
    policy = next(attrs["content"] for tag, attrs in elements.found if attrs.get("http-equiv"))
    assert policy
    _, library, script = elements.scripts
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (library, script)]
    assert f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "connect-src 'none'" in policy
    assert "<!--" not in library + script  # would change how the rest of the page is read


def test_hostile_text_stays_in_the_data(tmp_path: Path) -> None:
    entry = sample(0, HOSTILE, 1, [len(HOSTILE)], [0], prompt=HOSTILE, problem=HOSTILE, error=HOSTILE, answer=HOSTILE)
    run_dir = make_run(tmp_path / "<img src=x onerror=alert(3)>", [{"step": 1, HOSTILE: 2.0}], {1: [entry]})
    cfg = json.loads((run_dir / "config.json").read_text())
    cfg["model"]["path"] = HOSTILE
    (run_dir / "config.json").write_text(json.dumps(cfg))
    (run_dir / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    html = page(run_dir)
    found = Elements(html).found
    assert [tag for tag, _ in found if tag in ("script", "img")] == ["script"] * 3
    text = HOSTILE.replace("\ud800", "?")  # half of a character, which UTF-8 cannot express
    (run,) = data_of(html)["runs"]
    assert run["samples"][0]["prompt"] == text
    assert run["samples"][0]["pieces"][0]["text"] == text
    assert run["columns"][text] == [2]
    assert run["environment"] == {text: text}
    assert text in run["lead"]
    raw = html.partition('id="data">')[2].partition("</script>")[0]
    assert not set("<>&\u2028") & set(raw)


def test_numbers_that_no_float_can_express_are_missing(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, METRICS)
    add_overflowing(run_dir, 3)
    run = shown(run_dir)
    assert run["columns"]["reward/mean"] == [None, 0.2, 0.6, -1.79769e308, None]
    assert run["columns"]["entropy/mean"] == [None, None, 0.35, 1e308, -1e308]
    assert run["columns"]["train/grad_norm"] == [None, None, 0.7, None, None]
    assert run["columns"]["computed/idle_share"] == [None, None, 0.25, None, None]  # 1e300 / 1e-300
    found = {one["sample"]: one for one in run["samples"]}
    assert found[0]["verdict"] == found[None]["verdict"] == "unscored"
    values = found[0]["token_values"]
    assert (values["logprob"], values["entropy"]) == ([-0.5, None, None], [None, 0.25, 1e308])
    assert values["version"] == [0, 0, None]
    assert found[None]["pieces"] == [{"version": None, "tokens": 0, "text": "abc"}]
    assert found[2]["pieces"] == [{"version": 0, "tokens": 2, "text": "ab"}]
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps(config).replace('"seed": 0', '"seed": 1e999', 1))
    assert shown(run_dir)["config"]["seed"] is None
    (run_dir / "timeline.jsonl").write_text('{"step": 1, "version": 0, "unit": "decode steps", "length": 1e999}\n')
    with refused(ErrorCode.RUN_DAMAGED, file=run_dir / "timeline.jsonl"):
        page(run_dir)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    samples = {2: [sample(0, "abcd", 1, [2, 2], [0, 1])]}
    run_dir = make_run(tmp_path, samples=samples)
    assert page(run_dir) == page(run_dir)
    assert not list(tmp_path.glob("*.partial"))


def test_a_long_run_stays_under_the_limit_and_says_what_is_left_out(tmp_path: Path) -> None:
    names = [f"part/metric_{i}" for i in range(60)]
    metrics = [{"step": step, "train/grad_norm": 1.0} | dict.fromkeys(names, step / 7) for step in range(2000)]
    metrics[1234]["train/grad_norm"] = 50.0
    long = "the model writes and writes " * 200
    samples = {
        step: [sample(i, long + str(i), i % 2, [len(long) + len(str(i))], [0]) for i in range(10)]
        for step in range(1, 1200, 10)
    }
    html = page(make_run(tmp_path, metrics, samples))
    assert len(html.encode()) <= LIMIT
    (run,) = data_of(html)["runs"]
    assert run["counts"] == {
        "steps_logged": 2000, "sample_steps": 120, "sample_steps_read": 100, "samples_read": 1000,
    }  # fmt: skip
    steps = run["columns"]["step"]
    assert 500 < len(steps) <= 80_000 / 61  # VALUES over the metrics
    assert (steps[0], steps[-1]) == (0, 1999)
    assert run["columns"]["train/grad_norm"][steps.index(1234)] == 50
    assert 200 < len(run["samples"]) < 1000
    assert len({one["step"] for one in run["samples"]}) == 100
    assert sum(value is not None for value in run["columns"]["length/p50"]) == 100  # no step that was read is missing
    assert {one["verdict"] for one in run["samples"]} == {"right", "wrong"}


def test_many_runs_of_text_that_grows_in_json_stay_under_the_limit(tmp_path: Path) -> None:
    """A "<" is one byte of an output and six of the page. The limit is so low that eight runs reach it."""
    metrics = [{"step": step} | {f"part/{i}": step / 7 + i for i in range(10)} for step in range(100)]
    samples = {step: [sample(0, "<" * 900 * step, 1, [900 * step], [0])] for step in range(1, 100, 24)}
    line = {"version": 1, "unit": "decode steps", "length": 9999, "sample": list(range(64)), "start": [111] * 64,
            "end": [8888] * 64, "tokens": [8777] * 64, "status": "u" * 64}  # fmt: skip
    runs = []
    for seed in range(8):
        runs.append(make_run(tmp_path / str(seed), metrics, samples, {"seed": seed}))
        add_timeline(runs[-1], [{"step": step} | line for step in range(12)])
    read = [read_run(run_dir) for run_dir in runs]
    limit = 1_100_000
    html = render(read, limit)
    assert len(html.encode()) <= limit
    shown = data_of(html)["runs"]
    assert [len(run["samples"]) for run in shown] == [1] * 8  # the short one: others follow it in turn and do not fit
    assert {len(run["timeline"]["samples"]) for run in shown} == {32}  # of 64
    with refused(ErrorCode.COMMAND_LINE):
        render(read[:1], 500_000)  # less than the chart library


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        METRICS[:1],
        METRICS[1:2],
        [{"step": 1}],
        [{"step": 1, "reward/mean": 0.0, "time/step": 0.0, "rollout/finished": 0, "rollout/segments_mean": None}],
    ],
)
def test_runs_with_missing_data(tmp_path: Path, metrics: list[dict[str, Any]]) -> None:
    columns = shown(make_run(tmp_path, metrics))["columns"]
    assert columns.get("step", []) == [m["step"] for m in metrics]


def test_a_run_in_the_middle_of_a_write_and_without_known_settings(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "config.json").write_text('{"steps": 50, "unheard": {"of": 1}}')
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rewa')
    run = shown(tmp_path)
    assert run["lead"] == "2 of 50 steps"
    assert run["settings"]["changed"] is None
    assert run["columns"]["step"] == [0, 1, 2]


def test_without_segment_metrics_the_stored_samples_are_counted(tmp_path: Path) -> None:
    entries = [sample(0, "abcd", 1, [2, 2], [0, 1]), sample(1, "a", 0, [1], [1]), sample(2, "b", 0, [1], [1])]
    summary = summarize(read_run(make_run(tmp_path, [{"step": 1, "rollout/finished": 3}], {1: entries})))
    assert summary.segments_mean == pytest.approx(4 / 3)
    assert summary.multi_segment_share == pytest.approx(1 / 3)


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with refused(ErrorCode.RUN_NOT_FOUND, file=tmp_path / "nowhere"):
        write_report([tmp_path / "nowhere"])
    with refused(ErrorCode.RUN_NOT_FOUND, file=tmp_path):
        write_report([tmp_path])
    with refused(ErrorCode.COMMAND_LINE):
        write_report([])
    (tmp_path / "config.json").write_text("{")
    with refused(ErrorCode.RUN_DAMAGED, file=tmp_path / "config.json"):
        write_report([tmp_path])
    make_run(tmp_path, samples={1: [{}]})
    with refused(ErrorCode.COMMAND_LINE, key="--out"):
        write_report([tmp_path], tmp_path / "page.txt")
    (tmp_path / "samples" / "step_000001.jsonl").write_text('{"sample": 1}\nnonsense\n')
    with refused(ErrorCode.RUN_DAMAGED, record="step_000001.jsonl:2"):
        write_report([tmp_path])


def test_the_library_is_of_the_versions_that_its_script_fetches() -> None:
    """docs/make_echarts.py wrote the file: its head names the versions, and the licences are beside it."""
    folder = Path(__file__).parents[2]
    fixed = dict(re.findall(r'"(\w+)": "([\d.]+)"', (folder / "docs" / "make_echarts.py").read_text()))
    library = (folder / "src" / "ulorl" / "report" / "page" / "echarts.min.js").read_text(encoding="utf-8")
    head, licences = library.partition("*/")[0], library_licences(folder)
    for package, version in fixed.items():
        assert f"{package} {version}".lower() in head.lower()
        assert package == "esbuild" or f"{package} {version}" in licences


def library_licences(folder: Path) -> str:
    return (folder / "src" / "ulorl" / "report" / "page" / "echarts.licences.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.24, "8.2 s"), (59.97, "60.0 s"), (309, "5 min 09 s"), (11100, "3 h 05 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
