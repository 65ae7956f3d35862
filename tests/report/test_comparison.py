from __future__ import annotations

import json
from pathlib import Path

from refusals import refused
from ulorl.error_codes import ErrorCode
from ulorl.report.arms import arms
from ulorl.report.comparison_figure import compare, draw_comparison
from ulorl.runs.saved_run import read_run


def make(folder: Path, seed: int, mask: str, accuracies: list[float]) -> Path:
    folder.mkdir()
    config = {
        "seed": seed,
        "steps": 9,
        "run": {"dir": str(folder)},
        "objective": {"mpt": {"mask": mask}},
        "optim": {"lr": 1},
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        json.dumps({"step": i, "eval/accuracy": a, "entropy/mean": a / 2}) + "\n" for i, a in enumerate(accuracies)
    ]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_seeds_are_one_arm_and_settings_are_several(tmp_path: Path) -> None:
    runs = [
        make(tmp_path / "a", 0, "off", [0.2, 0.3, 0.4]),
        make(tmp_path / "b", 1, "off", [0.4, 0.5]),  # still running: only the steps that both have are drawn
        make(tmp_path / "c", 0, "dynamic", [0.1, 0.9]),
    ]
    off, dynamic = arms([read_run(run) for run in runs])
    assert (off.label, dynamic.label) == ("objective.mpt.mask=off", "objective.mpt.mask=dynamic")
    steps, values = off.curve("eval/accuracy")
    assert steps == [0, 1]
    assert values.tolist() == [[0.2, 0.3], [0.4, 0.5]]

    keys = ["eval/accuracy", "entropy/mean"]
    table = compare(runs, keys).splitlines()
    # means over the two seeds: (0.2 + 0.4) / 2 = 0.3 and (0.3 + 0.5) / 2 = 0.4
    assert table[2] == "| objective.mpt.mask=off | eval/accuracy | 0.300 (step 0) | 0.400 (step 1) | 0.300, 0.500 |"
    assert table[5] == "| objective.mpt.mask=dynamic | entropy/mean | 0.050 (step 0) | 0.450 (step 1) | 0.450 |"
    draw_comparison(runs, tmp_path / "out" / "figure.svg", keys)
    drawn = (tmp_path / "out" / "figure.svg").read_bytes()
    draw_comparison(runs, tmp_path / "out" / "again.svg", keys)
    assert (tmp_path / "out" / "again.svg").read_bytes() == drawn  # the same runs give the same bytes


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with refused(ErrorCode.RUN_NOT_FOUND, file=tmp_path):
        compare([tmp_path])
    with refused(ErrorCode.COMMAND_LINE):
        arms([])
