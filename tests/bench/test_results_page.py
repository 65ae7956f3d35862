"""docs/benchmarks.md is what the figures say, and nothing of the machine it was written on."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from refusals import refused
from ulorl.bench import engine_bench, logprobs_bench, step_bench
from ulorl.bench.results_page import table, write_page
from ulorl.cli.main import app
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

WHERE: dict[str, Any] = {
    "date": "2026-01-02", "processor": "AMD EPYC", "capability": "AVX2", "cores": 2, "threads": 1, "load_average": 0.1,
    "versions": {"ulorl": "0.1.0", "torch": "2.13.0+cpu"},
}  # fmt: skip
PLACE = "2026-01-02, 2 cores of AMD EPYC (AVX2), 1 thread, load average 0.1 before; ulorl 0.1.0, torch 2.13.0+cpu."
FIGURES: dict[str, dict[str, Any]] = {
    "engine": {
        "benchmark": "engine", **WHERE, "model": "/home/me/models/smollm2", "max_tokens": 64, "repeats": 5,
        "ratio_to_transformers_static": 3.96, "ratio_to_vllm": 1.25,
        "results": [
            {
                "lengths": "long_tail", "batch": 32, "requests": 64, "tokens": 2603,
                "tokens_per_second": {"engine": 7999.6, "generate_static": 2020.0, "vllm": 6400.0},
                "ratio_to_transformers_static": 3.96, "ratio_to_vllm": 1.25,
            },
            {
                "lengths": "equal", "batch": 32, "requests": 32, "tokens": 2048,
                "tokens_per_second": {"engine": 9000.0, "generate_static": 4500.0, "vllm": 10000.0},
                "ratio_to_transformers_static": 2.0, "ratio_to_vllm": 0.9,
            },
        ],
    },
    "logprobs": {
        "benchmark": "logprobs", **WHERE, "vocabulary": 151936, "peak_memory_ratio": 0.00066, "time_ratio": 0.5,
        "recomputed_time_ratio": 0.75,
        "memory": {
            "tokens": 32768, "hidden": 8, "peak_bytes": 40312832, "naive_peak_bytes": 60799057920,
            "peak_bytes_from": "measured", "naive_peak_bytes_from": "128 x what 256 tokens take",
        },
        "time": {"tokens": 128, "hidden": 1024, "repeats": 5, "words": 37984,
                 "median_seconds": {"ulorl": 1.1, "recomputed": 1.65, "naive": 2.2}},
    },
    "learner": {
        "benchmark": "learner", **WHERE, "model": "Qwen3", "bytes_a_token": 7700,
        "results": [
            {"tokens": 8192, "peak_bytes": 660926464, "off_the_line": 0.0,
             "logits_would_take_bytes": 4978638848, "seconds": 9.4},
            {"tokens": 131072, "peak_bytes": 1610000000, "off_the_line": 0.0,
             "logits_would_take_bytes": 79658221568, "seconds": 503.2},
        ],
    },
    "ulysses": {
        "benchmark": "ulysses", **WHERE, "model": "Qwen3, layers 1", "tokens": 131072, "gradient_difference": 1.7e-06,
        "alone": {"seconds": 200.4, "cpu_seconds": 199.2, "before_bytes": 426000000, "peak_bytes": 4229000000},
        "shared": [
            {"seconds": 110.2, "cpu_seconds": 51.0, "before_bytes": 427000000, "peak_bytes": 1433000000},
            {"seconds": 110.9, "cpu_seconds": 50.0, "before_bytes": 426000000, "peak_bytes": 1400000000},
        ],
    },
    "memory": {
        "benchmark": "memory", **WHERE, "model": "Small models",
        "results": [
            {"shape": "dense", "tokens": 2048, "measured_bytes": 52865336, "smallest_measured_bytes": 52765336,
             "planned_bytes": 53986944, "planned_to_measured": 1.021, "phase": "layer, backward",
             "state_bytes": 10497024},
        ],
    },
    "rollout": {
        "benchmark": "rollout", **WHERE, "tokens": 4096,
        "segments": [
            {"tokens": 2048, "prefilled": 15, "seconds": 1.25}, {"tokens": 4096, "prefilled": 2063, "seconds": 2.0},
        ],
    },
    "controller": {
        "benchmark": "controller", **WHERE, "engines": 256, "slots": 128,
        "sizes": [
            {"schedule": "segment", "samples": 10000, "came_back": [10000, 9990, 10010],
             "cpu_seconds": [0.1, 0.2, 0.12],
             "microseconds_a_sample": 14.0, "fleet_cpu_seconds": [0.3, 0.31, 0.4], "collection_cpu_seconds": 0.02},
            {"schedule": "refill", "samples": 100000, "came_back": [130000, 128000, 129000],
             "cpu_seconds": [1.0, 1.2, 1.1], "microseconds_a_sample": 8.5, "fleet_cpu_seconds": [3.0, 2.5, 2.75],
             "collection_cpu_seconds": 0.25},
        ],
    },
    "step": {
        "benchmark": "step", **WHERE, "samples": 64, "max_tokens": 1024, "repeats": 5, "ratio_to_trl": 5.1,
        "ratio_of_totals_to_trl": 5.4,
        "trained_tokens_per_second": {"ulorl": 4080.0, "ulorl_4_segments": 3000.0, "trl": 800.0},
        "where_the_time_goes": {
            "ulorl": {"rollout": 0.98, "update": 0.84, "sync": 0.04, "seconds": 1.87, "tokens": 6874.0},
            "ulorl_4_segments": {"rollout": 1.28, "update": 0.83, "sync": 0.04, "seconds": 2.17, "tokens": 6748.0},
            "trl": {"rollout": 5.4, "update": 4.7, "sync": 0.0, "seconds": 10.1, "tokens": 8079.0},
        },
    },
}  # fmt: skip
TABLES = {
    "engine": f"""\
**smollm2**, outputs of at most 64 tokens, tokens a second, medians of 5. \
Worst ratio on long-tailed lengths: 3.96 to static, 1.25 to vLLM. {PLACE}

| lengths | rows | requests | tokens | engine | static cache | vLLM | engine to static | engine to vLLM |
|---|---|---|---|---|---|---|---|---|
| long tail | 32 | 64 | 2,603 | 8,000 | 2,020 | 6,400 | 3.96 | 1.25 |
| equal | 32 | 32 | 2,048 | 9,000 | 4,500 | 10,000 | 2.00 | 0.90 |""",
    "logprobs": f"""\
Vocabulary 151,936, medians of 5. {PLACE}

|  | ours | plain | ratio |
|---|---|---|---|
| peak memory at 32,768 tokens, hidden 8 | 40 MB (measured) | 60.80 GB (128 x what 256 tokens take) | 0.07% |
| seconds at 128 tokens, 37,984 words, hidden 1,024 | 1.10 | 2.20 | 0.50 |
| the same, logits recomputed as for many tokens | 1.65 | 2.20 | 0.75 |""",
    "learner": f"""\
Qwen3. Memory grows by 7,700 bytes a token. {PLACE}

| tokens | peak of the process | off the straight line | logits alone would take | seconds |
|---|---|---|---|---|
| 8,192 | 0.66 GB | 0.0% | 4.98 GB | 9 |
| 131,072 | 1.61 GB | 0.0% | 79.66 GB | 503 |""",
    "ulysses": f"""\
Qwen3, layers 1, 131,072 tokens. The gradients differ by 1.7e-06 of the largest in a parameter. {PLACE}

| processes | peak of a process | before the forward pass | of the sample | seconds | CPU seconds of a process |
|---|---|---|---|---|---|
| 1 | 4.23 GB | 0.43 GB | 3.80 GB | 200 | 199 |
| 2 | 1.43 GB | 0.43 GB | 1.01 GB | 111 | 51 |""",
    "memory": f"""\
Small models. {PLACE}

| learner | tokens | peak of a process | smallest peak | plan | plan to peak | phase of the peak |
|---|---|---|---|---|---|---|
| dense | 2,048 | 52.9 MB | 52.8 MB | 54.0 MB | 1.021 | layer, backward |""",
    "rollout": f"""\
4,096 tokens, which arrived whole. {PLACE}

| segment | tokens so far | tokens prefilled | seconds |
|---|---|---|---|
| 1 | 2,048 | 15 | 1.2 |
| 2 | 4,096 | 2,063 | 2.0 |""",
    "controller": f"""\
Medians of 3 steps with their range; a fleet of 256 engines of 128 slots. {PLACE}

| schedule | in flight | came back | CPU seconds a step | microseconds a sample | with the fleet | a full collection |
|---|---|---|---|---|---|---|
| segment | 10,000 | 10,000 | 0.12 (0.10 to 0.20) | 14.0 | 0.31 (0.30 to 0.40) | 0.02 |
| refill | 100,000 | 129,000 | 1.10 (1.00 to 1.20) | 8.5 | 2.75 (2.50 to 3.00) | 0.25 |""",
    "step": f"""\
64 samples of at most 1024 tokens, medians of 5. **5.10 times TRL's trained tokens a second**, with one segment \
(5.40 times in all tokens over all seconds). {PLACE}

| seconds a step | rollout | update | sync | whole step | trained tokens | trained tokens a second |
|---|---|---|---|---|---|---|
| ours, 1 segment | 0.98 | 0.84 | 0.04 | 1.87 | 6,874 | 4,080 |
| ours, 4 segments | 1.28 | 0.83 | 0.04 | 2.17 | 6,748 | 3,000 |
| TRL | 5.40 | 4.70 | 0.00 | 10.10 | 8,079 | 800 |""",
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_table(name: str) -> None:
    assert table(FIGURES[name]) == TABLES[name]


def test_peers_that_were_not_there_have_no_column() -> None:
    alone = copy.deepcopy(FIGURES["step"])
    del alone["ratio_to_trl"], alone["where_the_time_goes"]["trl"]
    assert "TRL" not in table(alone)


def test_the_page(tmp_path: Path) -> None:
    """Every table, what is equal and what is not, one picture of ratios; written twice it is the same."""
    files = [_file(tmp_path, name) for name in reversed(FIGURES)]
    out = tmp_path / "docs" / "benchmarks.md"
    out.parent.mkdir()
    written = []
    for _ in range(2):
        result = CliRunner().invoke(app, ["bench", "page", *map(str, files), "--out", str(out)])
        assert result.exit_code == 0, result.output
        written.append([out.read_bytes(), *(p.read_bytes() for p in sorted((out.parent / "figures").iterdir()))])
    assert written[0] == written[1]
    text = out.read_text()
    for name in FIGURES:
        assert TABLES[name] in text
    for module in (engine_bench, logprobs_bench, step_bench):
        assert (module.__doc__ or "").strip() in text
        assert re.search(r"^Equal: .*^Not equal: |Equal: .*Not equal: ", module.__doc__ or "", re.DOTALL | re.MULTILINE)
    assert re.findall(r"^## \w[\w -]*", text, re.MULTILINE) == [
        "## Rollout", "## Log-probs and entropies", "## One long sample in the learner",
        "## One long sample in several processes", "## The memory plan of a learner",
        "## One long sample in the engine", "## The controller alone", "## A whole step",
    ]  # fmt: skip
    assert re.findall(r"\((figures/\w+\.svg)\)", text) == ["figures/benchmarks.svg", "figures/learner_memory.svg"]
    assert "/home" not in text
    bars = (out.parent / "figures/benchmarks.svg").read_text()
    for text in ("smollm2, 32 rows", "long tail", "log-probs and entropies", "a whole step", "vLLM", "TRL", "5.10"):
        assert text in bars
    assert bars.count("<!-- 2.00 -->") == 2  # static cache, equal lengths; log-probs 1 / 0.5


def test_a_page_of_one(tmp_path: Path) -> None:
    text = write_page([_file(tmp_path, "rollout")], tmp_path / "page.md").read_text()
    assert "figures/" not in text
    assert text.count("\n## ") == 1


@pytest.mark.parametrize("text", ["{", "[1]", '{"benchmark": "speed"}', '{"benchmark": "engine", "results": []}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with refused(ErrorCode.BENCH_INPUT, file=file):
        write_page([file], tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


def test_a_missing_folder_is_named_before_the_work(tmp_path: Path) -> None:
    with refused(ErrorCode.FILE_NOT_WRITABLE, key="--out"):
        write_page([_file(tmp_path, "step")], tmp_path / "none" / "page.md")
    result = CliRunner().invoke(app, ["bench", "step", "--json", str(tmp_path / "none" / "step.json")])
    assert isinstance(result.exception, UserError)


def _file(folder: Path, name: str) -> Path:
    file = folder / f"{name}.json"
    file.write_text(json.dumps(FIGURES[name]))
    return file
