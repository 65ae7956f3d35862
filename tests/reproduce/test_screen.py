"""`ulorl reproduce screen` on the shipped tiny model, end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paths import COUNTDOWN
from refusals import refused
from ulorl.cli.main import app
from ulorl.config.loading import load
from ulorl.error_codes import ErrorCode
from ulorl.reproduce import screen

SMALL = ["rollout.prompts=4", "rollout.group=4", "rollout.max_tokens=128", "data.size=40", "model.threads=1"]


def test_command(tmp_path: Path) -> None:
    """16 of 32 samples are the held-out ones of the other 16. The classes add up to the whole; a higher tau leaves
    fewer MPTs; the entropy and the shares of MPTs lie where they must; the CSV holds what the JSON file does."""
    found, lines = tmp_path / "screen.json", tmp_path / "screen.csv"
    command = [
        "reproduce",
        "screen",
        "ulorl:tiny",
        "--recipe",
        str(COUNTDOWN),
        *SMALL,
        "--tau",
        "0.8",
        "--tau",
        "0.99",
    ]
    result = CliRunner().invoke(app, [*command, "--json", str(found), "--csv", str(lines)])
    assert result.exit_code == 0, result.output
    figures = json.loads(found.read_text(encoding="utf-8"))
    assert (figures["reproduces"], figures["model"]) == ("screen", "ulorl:tiny")
    assert (figures["prompts"], figures["samples"]) == (8, 32)
    assert 2 <= figures["trained_prompts"] <= 8
    assert 0 < figures["entropy"] < 3
    low, high = figures["taus"]
    assert (low["tau"], high["tau"]) == (0.8, 0.99)
    assert 0 < high["mpt_share"] < low["mpt_share"] < 1
    assert 0 < high["mpt_entropy_share"] < low["mpt_entropy_share"] < 1
    for one in figures["taus"]:
        assert f"- {one['verdict_text']}" in result.output
        for of in one["attribution"].values():
            values = {name: interval["value"] for name, interval in of.items()}
            assert values["mpts"] + values["other_right"] + values["wrong"] == pytest.approx(values["all"])
            assert values["mpts"] + values["all_but_mpts"] == pytest.approx(values["all"])
    rows = list(csv.DictReader(lines.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 2 * 2 * 5
    assert float(rows[0]["value"]) == low["attribution"]["SGD"]["mpts"]["value"]


def test_nothing_to_train_on(tmp_path: Path) -> None:
    """Outputs of 4 tokens are all cut, so all wrong."""
    cfg = load([COUNTDOWN], [*SMALL, "rollout.max_tokens=4", "rollout.segments=1", f"run.dir={tmp_path}"])
    with refused(ErrorCode.BENCH_INPUT, key="rollout.prompts"):
        screen.run(cfg)
