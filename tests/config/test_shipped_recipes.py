"""Recipes of the package go by their names, and a file comes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from paths import ROOT
from refusals import refused
from ulorl.config import shipped_recipes
from ulorl.config.loading import load
from ulorl.error_codes import ErrorCode


def test_names_are_paths_without_suffix() -> None:
    assert shipped_recipes.folder() == ROOT / "recipes"
    assert {"quickstart", "gsm8k", "rewards/generative"} <= set(shipped_recipes.names())
    assert "rewards/countdown_judge.txt" in shipped_recipes.files()


def test_a_name_gives_the_recipe_of_the_package() -> None:
    assert load(["quickstart"]) == load([ROOT / "recipes" / "quickstart.toml"])
    both = load(["countdown", "rewards/generative"])
    assert (both.data.kind, both.reward.kind) == ("countdown", "generative")


def test_a_file_of_that_name_comes_first_and_a_folder_does_not() -> None:
    Path("gsm8k").mkdir()
    assert load(["gsm8k"]).run.dir == "runs/gsm8k"
    text = (ROOT / "recipes" / "quickstart.toml").read_text()
    Path("countdown").write_text(text.replace("steps = 120", "steps = 7"))
    assert load(["countdown"]).steps == 7


def test_a_path_is_never_taken_for_a_name() -> None:
    with refused(ErrorCode.RECIPE_NOT_FOUND, file="recipes/gsm8k.toml") as caught:
        load(["recipes/gsm8k.toml"])
    assert "give gsm8k" in str(caught.value)
    with refused(ErrorCode.RECIPE_NOT_FOUND, file="gsm8k.toml"):
        load(["gsm8k.toml"])
    with refused(ErrorCode.RECIPE_NOT_FOUND, file="gsm9k"):
        load(["gsm9k"])


def test_a_wrong_value_in_a_recipe_of_the_package_names_its_file() -> None:
    with refused(ErrorCode.CONFIG_CONFLICT, file=ROOT / "recipes" / "quickstart.toml"):
        load(["quickstart"], ["rollout.max_tokens=1"])


def test_a_name_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with refused(ErrorCode.RECIPE_NOT_FOUND) as caught:
        shipped_recipes.named("quickstrat")
    assert "did you mean quickstart?" in str(caught.value)


def test_a_recipe_that_is_no_file_is_refused_with_what_may_be_meant() -> None:
    Path("sums.toml").touch()
    for name, hint in (
        ("sum.toml", "did you mean sums.toml?"),
        ("sums", "did you mean sums.toml?"),
        ("quikstart", f"did you mean quickstart? a path begins in {Path.cwd()}, and "),
        ("other/quickstart.toml", "give quickstart in place of the path"),
    ):
        with refused(ErrorCode.RECIPE_NOT_FOUND, file=name) as caught:
            load([name])
        assert hint in str(caught.value)


@pytest.mark.parametrize("name", shipped_recipes.names())
def test_every_recipe_begins_with_a_sentence_about_it(name: str) -> None:
    sentence = shipped_recipes.description(name)
    assert sentence.endswith(".")
    assert len(sentence) < 160
