"""The command as a user meets it: exit codes, messages without tracebacks, and that bad input is refused early."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bad_inputs import run
from paths import ROOT

pytestmark = pytest.mark.slow

RECIPE = str(ROOT / "recipes" / "quickstart.toml")
TINY = [
    "steps=2", "rollout.prompts=2", "rollout.group=2", "rollout.max_tokens=32", "rollout.segments=2", "data.size=20",
    "eval.problems=4", "eval.samples=1", "eval.every=0", "model.threads=1",
]  # fmt: skip
MAZE = "6:7>21#2,9,15,28"


def ulorl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ulorl", *arguments]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("cli") / "run"
    done = ulorl("train", RECIPE, *TINY, f"run.dir={target}")
    assert done.returncode == 0, done.stderr
    assert "held-out accuracy before" in done.stdout
    assert "held-out accuracy after" in done.stdout
    assert str(target / "report.html") in done.stdout.replace("\n", "")
    assert "\x1b" not in done.stdout  # a log file has no control characters
    return target


def test_eval_of_a_run_is_the_accuracy_the_run_ended_with(run_dir: Path, tmp_path: Path) -> None:
    code, out, err = run(["eval", str(run_dir), "--json", str(tmp_path / "e.json")])
    assert code == 0, err
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads((tmp_path / "e.json").read_text())["accuracy"] == last["eval/accuracy"]
    assert "avg@1 on 4 problems" in out


def test_chat_answers_what_is_asked_and_what_is_typed(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ulorl("chat", str(run_dir), "--problem", MAZE)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.splitlines()[-1] in ("[right]", "[wrong]", "[cut after 32 tokens]")
    assert asked.stderr == ""  # no progress bar, no warning of a library
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{MAZE}\n\n6:0>1#\n"))  # the empty line ends
    _, typed, _ = run(["chat", str(run_dir)])
    assert typed == asked.stdout  # the same question under the same seed


def test_report_and_compare_are_written_again(run_dir: Path, tmp_path: Path) -> None:
    page = run_dir / "report.html"
    before = page.read_text()
    page.unlink()
    assert run(["report", str(run_dir)])[0] == 0
    assert page.read_text() == before
    code, _, err = run(["compare", str(run_dir), "--out", str(tmp_path / "f.svg")])
    assert code == 0, err
    assert (tmp_path / "f.svg").read_text().startswith("<?xml")
    assert run(["compare", str(run_dir), "--out", str(tmp_path / "f.html")])[0] == 0
    assert 'id="data"' in (tmp_path / "f.html").read_text(encoding="utf-8")
    code, _, err = run(["compare", str(run_dir), "--out", "f.txt"])
    assert code == 2
    assert "f.txt: the name of a page ends in .html" in err


def test_check_says_what_would_run() -> None:
    code, out, err = run(["check", RECIPE, *TINY])
    assert code == 0, err
    assert "2 steps of 2 problems x 2 samples" in out
    assert "20 to train on, 4 held out" in out


def test_help_teaches() -> None:
    top = ulorl("--help")
    for command in ("train", "eval", "check", "report", "compare", "chat", "bench", "tiny", "model"):
        assert command in top.stdout
    assert "--resume" in ulorl("train", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),  # of which the second line of the output, the code, is a part
    [
        (["train"], "(command-line; docs/errors.md#command-line)"),
        (["train", "none.toml"], "(recipe-not-found; docs/errors.md#recipe-not-found)"),
        (["train", RECIPE, "optim.rl=1"], "(config-unknown-key; docs/errors.md#config-unknown-key)"),
        (
            ["train", RECIPE, "rollout.segments=5", "seed=x"],
            "(config-bad-value, config-conflict; docs/errors.md#config-bad-value)",
        ),
        (["train", RECIPE, "data.kind=files", "data.path=none.jsonl"], "none.jsonl"),
        (["train", RECIPE, "model.path=/nowhere/model"], "/nowhere/model"),
        (["train", RECIPE, "reward.kind=function", "reward.function=no_such_module:f"], "no_such_module"),
        (["train", RECIPE, "data.kind=reasoning_gym", "data.task=chain_sun"], "chain_sun"),
        (["train", RECIPE, "engine.kind=vllm"], "vllm"),
        (["train", RECIPE, "steps", "=", "3"], "=: an override is key=value, without spaces around the equals sign"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["eval", RECIPE, "eval.data={}", "eval.problems=x"], "(config-bad-value; docs/errors.md#config-bad-value)"),
        (["eval", RECIPE, "--json", "nowhere/eval.json"], "(file-not-writable; docs/errors.md#file-not-writable)"),
        (["eval", "runs/typo", "eval.samples=1"], "runs/typo: no such run or recipe"),
        (["report", "nowhere"], "nowhere"),
        (["chat", "nowhere"], "nowhere"),
        (["compare", "nowhere"], "nowhere"),
        (["bench", "nothing"], "no such benchmark"),
        (["model", "import-gguf", "none.gguf", "out"], "none.gguf"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_name_the_place(arguments: list[str], message: str, tmp_path: Path) -> None:
    if arguments[0] == "train" and len(arguments) > 2 and arguments[1] == RECIPE:
        arguments = [*arguments, f"run.dir={tmp_path / 'run'}"]
    code, out, err = run(arguments)  # in this process: `make bad-input` takes 50 through the real command
    assert code == 2, out + err
    assert "Traceback" not in err
    assert message in err
    assert not (tmp_path / "run").exists()  # refused before anything is written


def test_bad_data_is_refused_before_the_model_loads(tmp_path: Path) -> None:
    """The model folder holds a tokenizer and a configuration but no weights: it is the data that is named."""
    from ulorl.models.tiny import model_path

    for file in model_path().iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"problem": "1+1", "answer": "2"}\n{"problem": "1+2"}\n')
    overrides = [
        f"model.path={tmp_path}",
        "data.kind=files",
        f"data.path={problems}",
        "data.size=0",
        "reward.kind=math",
    ]
    held_out = "eval.data={ kind='countdown', size=4 }"
    code, out, err = run(["train", RECIPE, *TINY, *overrides, held_out, f"run.dir={tmp_path / 'r'}"])
    assert code == 2, out + err
    assert "problems.jsonl:2" in err.replace(", line ", ":")
    assert "answer" in err
    assert "Traceback" not in err
