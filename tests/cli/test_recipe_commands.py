"""`ulorl recipes`, `ulorl quickstart` and `ulorl explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paths import ROOT
from refusals import refused
from ulorl import __version__
from ulorl.cli import main
from ulorl.cli.recipe_commands import complete_recipe
from ulorl.config import shipped_recipes
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode


def invoke(*arguments: str) -> str:
    return CliRunner().invoke(main.app, list(arguments), catch_exceptions=False).output


def test_recipes_are_listed_with_their_first_sentences() -> None:
    found = [line.split()[0] for line in invoke("recipes").splitlines() if not line.startswith(" ")]
    assert found == shipped_recipes.names()


def test_a_recipe_is_copied_and_loads() -> None:
    assert invoke("recipes", "copy", "quickstart", "rewards/generative").split() == [
        "recipes/quickstart.toml", "recipes/rewards/generative.toml",
    ]  # fmt: skip
    assert Path("recipes/quickstart.toml").read_bytes() == (ROOT / "recipes" / "quickstart.toml").read_bytes()


def test_without_names_everything_is_copied() -> None:
    invoke("recipes", "copy", "--to", "mine")
    copied = {path.relative_to("mine").as_posix() for path in Path("mine").rglob("*") if path.is_file()}
    assert copied == set(shipped_recipes.files())


def test_a_file_that_is_there_is_not_replaced() -> None:
    Path("recipes").mkdir()
    Path("recipes/gsm8k.toml").write_text("mine")
    with refused(ErrorCode.OUTPUT_EXISTS, file="recipes/gsm8k.toml"):
        invoke("recipes", "copy", "countdown", "gsm8k")
    assert not Path("recipes/countdown.toml").exists()  # refused before anything is written
    assert Path("recipes/gsm8k.toml").read_text() == "mine"


def test_files_come_before_names_in_completion() -> None:
    assert complete_recipe("") == shipped_recipes.names()
    assert complete_recipe("r") == ["rewards/generative"]
    Path("recipes").mkdir()
    assert complete_recipe("r") == []  # the shell completes recipes/
    assert complete_recipe("[") == []


def test_quickstart_trains_the_recipe_and_says_what_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, bool]] = []
    monkeypatch.setattr(main, "_train", lambda run, overwrite: given.append((run, overwrite)))
    Path("quickstart").write_text("this file is no recipe")
    out = invoke("quickstart", "steps=3", "run.dir=my runs/q", "--overwrite")
    [(config, overwrite)] = given
    assert isinstance(config, Config)
    assert (config.steps, config.data.kind, overwrite) == (3, "task", True)
    assert "3 steps" in out
    assert "ulorl chat 'my runs/q'" in out


def test_quickstart_takes_no_recipe() -> None:
    with refused(ErrorCode.COMMAND_LINE):
        invoke("quickstart", "gsm8k")


def test_quickstart_calls_its_recipe_by_name_when_it_refuses_a_setting() -> None:
    with refused(ErrorCode.CONFIG_UNKNOWN_KEY) as caught:
        invoke("quickstart", "step=3")
    assert str(caught.value).startswith("quickstart + step=3:")


def test_quickstart_announces_no_training_where_the_run_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_train", lambda _run, overwrite: None)  # noqa: ARG005
    Path("runs/quickstart").mkdir(parents=True)
    Path("runs/quickstart/finished.json").write_text('{"steps": 3}')
    assert "has learnt to explore" not in invoke("quickstart", "steps=3")
    assert "has learnt to explore" in invoke("quickstart", "steps=4")
    assert "has learnt to explore" in invoke("quickstart", "steps=3", "--overwrite")


def test_version() -> None:
    assert invoke("--version") == f"ulorl {__version__}\n"


def test_explain_says_cause_and_fix() -> None:
    out = invoke("explain", "config-conflict", "run-locked")
    for code in (ErrorCode.CONFIG_CONFLICT, ErrorCode.RUN_LOCKED):
        assert f"{code.value}: {code.cause}\nFix: {code.fix}" in out
    with refused(ErrorCode.COMMAND_LINE):
        invoke("explain", "config-conflicts")
