"""`ulorl eval --suite` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bad_inputs import run
from paths import COUNTDOWN
from ulorl.evaluation.stored_evaluation import locked
from ulorl.models.tiny import model_path

SMALL = ["data.size=8", "eval.samples=2", "engine.slots=4", "model.threads=1"]


def changed_model(folder: Path) -> Path:
    """The tiny model with a little noise on its weights."""
    folder.mkdir()
    for file in model_path().iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    tensors = {
        name: t + 0.05 * torch.randn_like(t) for name, t in load_file(model_path() / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_two_models_in_one_table(tmp_path: Path) -> None:
    other, out = changed_model(tmp_path / "other"), tmp_path / "out"
    lengths = ["--max-tokens", "96", "--max-tokens", "32"]
    arguments = ["eval", "ulorl:tiny", str(other), "--suite", "countdown", *lengths, *SMALL, "--out", str(out)]
    code, printed, err = run([*arguments, "--json", str(tmp_path / "r.json")])
    assert code == 0, err
    assert "| model | output length | countdown, avg@2 |" in printed
    assert "mean token entropy" in printed
    assert f"countdown, 96 tokens: {other} - ulorl:tiny = " in printed
    assert (out / "tables.md").read_text() == printed
    found = json.loads((tmp_path / "r.json").read_text())
    assert found == json.loads((out / "results.json").read_text())
    assert [(one["model"], one["max_tokens"]) for one in found["results"]] == [
        ("ulorl:tiny", 32), ("ulorl:tiny", 96), (str(other), 32), (str(other), 96),
    ]  # fmt: skip
    assert run(arguments)[1] == printed  # from what is stored
    code, _, err = run([*arguments, "eval.temperature=0.5"])
    assert code == 2
    assert "(evaluation-taken; docs/errors.md#evaluation-taken)" in err
    code, again, err = run([*arguments, "eval.temperature=0.5", "--overwrite", "--no-entropy"])
    assert code == 0, err
    assert "entropy" not in again


def test_one_command_at_a_time_writes_an_evaluation(tmp_path: Path) -> None:
    """Refused before anything is decoded or removed. Another model may be evaluated into the same --out meanwhile, and
    the tables have both."""
    out, other = tmp_path / "out", changed_model(tmp_path / "other")
    options = ["--suite", "countdown", "--max-tokens", "16", "--no-entropy", *SMALL, "--out", str(out)]
    assert run(["eval", "ulorl:tiny", *options])[0] == 0
    folder = out / "ulorl_tiny" / "countdown"
    samples = (folder / "samples.jsonl").read_bytes()
    with locked(folder):
        for more in ([], ["--overwrite"], [str(other)]):
            code, printed, err = run(["eval", "ulorl:tiny", *more, *options])
            assert (code, printed) == (2, "")
            assert f"{folder}: another process writes this evaluation" in err
            assert "(evaluation-locked; docs/errors.md#evaluation-locked)" in err
        assert run(["eval", str(other), *options])[0] == 0
    assert (folder / "samples.jsonl").read_bytes() == samples
    code, _, err = run(["eval", "ulorl:tiny", *options, "--overwrite"])
    assert code == 0, err
    assert (folder / "samples.jsonl").read_bytes() == samples  # the same evaluation, made again
    found = json.loads((out / "results.json").read_text())
    assert [one["model"] for one in found["results"]] == ["ulorl:tiny", str(other)]
    assert f"countdown, 16 tokens: {other} - ulorl:tiny = " in (out / "tables.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ulorl:tiny", "--suite", "aime26"], "aime26"),
        (["ulorl:tiny", "--suite", "aime25=none.jsonl", "--max-tokens", "16"], "none.jsonl"),
        (["nowhere/model", "--suite", "countdown"], "nowhere/model"),
        (["ulorl:tiny", "--suite", "countdown", "steps=3"], "steps"),
        (["ulorl:tiny", "--suite", "countdown"], "eval.max_tokens=131072"),  # more than the model's context
        (["recipes/quickstart.toml", "--rope", "none"], "--rope goes with --suite"),
        (["recipes/quickstart.toml", "--no-entropy"], "--no-entropy goes with --suite"),
        ([str(COUNTDOWN)], "--out goes with --suite"),
    ],
)
def test_mistakes_end_with_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    code, out, err = run(["eval", *arguments, "--out", str(tmp_path / "out")])
    assert code == 2, out + err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
