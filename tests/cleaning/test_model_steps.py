"""The model-backed steps with scripted models."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripted_client import Answer, ScriptedClient, cached
from ulorl.cleaning import model_steps
from ulorl.cleaning.cleaning_config import TooEasyConfig, WrongReferencesConfig
from ulorl.cleaning.items import Drop, Item, Outcome
from ulorl.cleaning.question_shapes import Shape
from ulorl.clients.client import CachedClient
from ulorl.clients.output_cache import OutputCache
from ulorl.common.progress import SILENT
from ulorl.rewards.reward import Reward, RewardError, Verdict
from ulorl.types import Problem


class Exact(Reward):
    """As math-verify, for integers; fails on ?"""

    def __call__(self, problem: Problem, text: str) -> Verdict:
        if "?" in text:
            raise RewardError("no verdict")
        return Verdict(float(f"\\boxed{{{problem.answer}}}" in text))


def item(question: str, answer: str = "1") -> Item:
    return Item("s/1", question, answer, "s", "s:1", question, answer)


CHOICE = "Which of the following is prime? (A) 4 (B) 5 (C) 6"


def rewritten(output: str | None, folder: Path) -> Outcome:
    model = cached(ScriptedClient(lambda _, __: output), folder)
    step = model_steps.converting(Shape.MULTIPLE_CHOICE, yes_no=False, model=model, bars=SILENT)
    (outcome,) = step([item(CHOICE, "B")])
    return outcome


@pytest.mark.parametrize(
    "output",
    [
        '{"question": "Find the prime among 4, 5 and 6.", "answer": "5"}',
        '<think>{hm}</think>\n```json\n{"question": "Find the prime among 4, 5 and 6.", "answer": 5}\n```',
    ],
)
def test_a_model_rewrites(output: str, tmp_path: Path) -> None:
    outcome = rewritten(output, tmp_path)
    assert isinstance(outcome, Item)
    assert (outcome.question, outcome.answer) == ("Find the prime among 4, 5 and 6.", "5")
    assert (outcome.changed_by, outcome.original_question) == (("multiple_choice",), CHOICE)


@pytest.mark.parametrize(
    "output",
    [
        None, "", "{", "no", "[]", '"x"', '{"question": "Find x."}', '{"question": "", "answer": "5"}',
        '{"question": "Find x.", "answer": NaN}', '{"question": "Find x.", "answer": true}',
        '{"question": "Find x.", "answer": null}',
        '{"question": "Which of the following is prime? (A) 4 (B) 5 (C) 6", "answer": "5"}',  # not rewritten at all
        '{"question": "Find \\ud800.", "answer": "5"}', '{"question": "Find x\\u0000", "answer": "5"}', "{" * 10**5,
    ],
)  # fmt: skip
def test_malformed_output_decides_nothing(output: str | None, tmp_path: Path) -> None:
    outcome = rewritten(output, tmp_path)
    assert isinstance(outcome, Item)
    assert (outcome.question, outcome.answer, outcome.changed_by) == (CHOICE, "B", ())
    assert outcome.undecided_by == ("multiple_choice",)


def test_a_model_that_finds_none_and_no_model(tmp_path: Path) -> None:
    outcome = rewritten('{"question": null}', tmp_path)
    assert outcome == Drop("model finds no short-answer form", "a multiple_choice question")
    step = model_steps.converting(Shape.MULTIPLE_CHOICE, yes_no=False, model=None, bars=SILENT)
    assert list(step([item(CHOICE, "B")])) == [Drop("multiple choice that needs its options")]


def judged(by_model: list[str], folder: Path, answer: str = "1", agreement: float = 0.75) -> Outcome:
    """by_model: what each model answers, sample by sample, "-" an output without an answer, "!" a failure."""

    def says(answers: list[str]) -> Answer:
        def answered(_: str, sample: int) -> str | None:
            said = answers[sample]
            return None if said == "!" else said if said == "-" else f"So \\boxed{{{said}}}"

        return answered

    settings = WrongReferencesConfig(models=(), samples=len(by_model[0].split()), agreement=agreement)
    models = [
        CachedClient(
            f"m{n}", lambda said=said: ScriptedClient(says(said.split())), OutputCache(folder / "cache.sqlite")
        )  # type: ignore[misc]
        for n, said in enumerate(by_model)
    ]
    (outcome,) = model_steps.drop_wrong_references(settings, models, model_steps.SameAnswer(Exact()), SILENT)(
        [item("x?", answer)]
    )
    return outcome


def test_wrong_references(tmp_path: Path) -> None:
    outcome = judged(["7 7 7 2"], tmp_path)  # 3 of 4 are 75%
    assert outcome == Drop("wrong reference", "reference 1, models 7 (3 of 4)")


@pytest.mark.parametrize(
    ("by_model", "undecided"),
    [
        (["7 7 2 3"], False),  # 2 of 4
        (["1 1 1 1"], False),  # the reference
        (["7 7 7 7", "1 1 7 1"], False),  # 5 of 8
        (["7 7 ! 2"], True),  # the third could have made it 3 of 4
        (["7 7 - 2"], True),
        (["7 7 7? 2"], True),  # the judge fails to compare it
        (["! ! ! !"], True),
        (["1 1 1 -"], False),  # whatever the fourth said
    ],
)
def test_references_that_stay(by_model: list[str], undecided: bool, tmp_path: Path) -> None:
    outcome = judged(by_model, tmp_path)
    assert isinstance(outcome, Item)
    assert bool(outcome.undecided_by) == undecided


def test_every_model_must_agree(tmp_path: Path) -> None:
    """6 answers of 12, all of one model, are its own error, and 7 of 12 with one of the other are not."""
    (tmp_path / "b").mkdir()
    stays = judged(["7 7 7 7 7 7", "2 3 4 5 6 8"], tmp_path, agreement=0.501)
    assert isinstance(stays, Item)
    goes = judged(["7 7 7 7 7 7", "7 3 4 5 6 8"], tmp_path / "b", agreement=0.501)
    assert goes == Drop("wrong reference", "reference 1, models 7 (7 of 12)")


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ("1 1 1 1", "dropped"),
        ("1 1 1 2", "kept"),
        ("1 1 1 -", "kept"),  # cut at the length limit
        ("1 1 1 !", "undecided"),
        ("1 1 1 1?", "undecided"),
        ("1 1 2 !", "kept"),
    ],
)
def test_too_easy(outputs: str, expected: str, tmp_path: Path) -> None:
    said = outputs.split()

    def answer(_: str, sample: int) -> str | None:
        return {"!": None, "-": ""}.get(said[sample], f"\\boxed{{{said[sample]}}}")

    model = cached(ScriptedClient(answer), tmp_path)
    (outcome,) = model_steps.drop_too_easy(TooEasyConfig(model="m", samples=4), model, Exact(), SILENT)([item("x?")])
    if expected == "dropped":
        assert outcome == Drop("too easy", "4 of 4 right")
    else:
        assert isinstance(outcome, Item)
        assert outcome.undecided_by == (("too_easy",) if expected == "undecided" else ())
