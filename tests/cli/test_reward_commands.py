"""`ulorl reward test`: verdicts, where answers were found, why, agreement with labels, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from fake_server import Server, completion, serving
from paths import ROOT
from refusals import refused
from ulorl.cli.main import app
from ulorl.common.intervals import wilson
from ulorl.config.reward_config import (
    AnswerConfig,
    ExactRewardConfig,
    MathRewardConfig,
    NumericRewardConfig,
    RewardConfig,
)
from ulorl.config.unions import variants_of
from ulorl.data.record_files import Record
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards.case_files import case_of, read_cases
from ulorl.rewards.factory import make_reward
from ulorl.rewards.judged_cases import agreement, judge_cases

GENERATIVE = ROOT / "recipes/rewards/generative.toml"
HALF = {"output": r"So it is \boxed{0.5}.", "reference": "1/2"}


def written(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def reward_test(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["reward", "test", *arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    return result


def reasons(settings: RewardConfig | None, path: str) -> list[str]:
    return [found.reason for found in judge_cases(settings, read_cases([path]))]


def test_the_command_writes_every_verdict_in_order(tmp_path: Path) -> None:
    """As a user runs it. 3 labels agree of 4: right accepted, wrong refused twice; a right one is refused."""
    file = written(
        tmp_path / "cases.jsonl",
        {**HALF, "label": True},
        {"output": "I do not know", "reference": "1/2", "label": False},
        {"answer": "27 kg", "reference": "0.27 m", "label": 0, "unknown": [1]},
        {"answer": "a half", "reference": "1/2", "label": 1},
        {"answer": "27 cm", "reference": "0.27 m"},
    )
    command = [sys.executable, "-m", "ulorl", "reward", "test", "numeric", file, "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, "COLUMNS": "60"})
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        f"1 {file}:1: 0.5 from boxed, reference 1/2: the same number with unit, within the toler"
    )
    assert lines[1] == f"0 {file}:2: reference 1/2: no answer found in boxed, tags, phrase, quantity"
    assert lines[2].endswith("the reference is 27/100 meter, the answer 27 kilogram: units of other dimensions")
    assert "1 of 4 labelled records disagree with their label:" in lines
    assert "5 records: 2 get 1, 3 get 0, 0 unscored" in lines
    assert ["reward", "1", "1", "true", "positives", "0", "false", "positives"] in [line.split() for line in lines]
    assert ["reward", "0", "1", "false", "negatives", "2", "true", "negatives"] in [line.split() for line in lines]
    assert f"agreement with 4 labels: {wilson(0.75, 4)}" in done.stdout  # 75.0% (30.1% to 95.4%)
    said = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [record["reward"] for record in said["records"]] == [1, 0, 0, 0, 1]
    assert [record["extracted"] for record in said["records"]] == ["0.5", None, "27 kg", "a half", "27 cm"]
    assert [record["place"] for record in said["records"]] == ["boxed", "", "boxed", "boxed", "boxed"]
    assert [record["agrees"] for record in said["records"]] == [True, True, True, False, None]
    assert said["agreement"] == {
        "true_positives": 1, "false_positives": 0, "true_negatives": 2, "false_negatives": 1, "unscored": 0,
        "unlabelled": 1, "labelled": 4,
        "rate": {"value": 0.75, "low": wilson(0.75, 4).low, "high": wilson(0.75, 4).high},
    }  # fmt: skip


@pytest.mark.parametrize("labels", [[None, None], [True, None], [True, False]])
def test_the_exit_code_is_0_where_labels_agree_or_are_missing(tmp_path: Path, labels: list[bool | None]) -> None:
    records = [{**HALF, "label": labels[0]}, {**HALF, "reference": "3", "label": labels[1]}]
    assert reward_test("math", written(tmp_path / "a.jsonl", *records)).exit_code == 0


def test_reasons_of_every_kind_of_rule(tmp_path: Path) -> None:
    file = written(
        tmp_path / "a.jsonl",
        HALF,
        {"output": r"<think>It is \boxed{0.5}", "reference": "1/2"},
        {"output": r"<think>It is \boxed{0.5}</think>", "reference": "1/2"},
        {"answer": "7" * 4001, "reference": "1/2"},
        {"answer": "1/3", "reference": "1/2"},
    )
    where = "no answer found in boxed, tags, phrase, expression"
    assert reasons(MathRewardConfig(), file) == [
        "equal by math-verify",
        f"{where}; the output ends within its thinking",
        f"{where}; only what follows the thinking counts",
        "too long: more than 4000 characters",
        "not shown equal by math-verify",
    ]
    required = MathRewardConfig(answer=AnswerConfig(thinking="required"))
    assert reasons(required, file)[0] == f"{where}; there is no </think> (reward.answer.thinking=required)"
    assert reasons(required, file)[4] == "not shown equal by math-verify"  # an answer alone stands after the thinking
    assert reasons(None, file)[0] == "equal by the rules"
    assert reasons(None, file)[4] == "plain numbers in like units that differ"
    assert reasons(ExactRewardConfig(), file)[4] == "another text than the reference"


def test_how_quantities_were_read(tmp_path: Path) -> None:
    file = written(
        tmp_path / "a.jsonl",
        {"answer": "5", "reference": "5 m"},
        {"answer": "five", "reference": "5 m"},
        {"answer": "noon", "reference": "8:34 p.m."},
        {"answer": "3e40 m/s", "reference": "1 km"},
    )
    strict = NumericRewardConfig(units="strict")
    assert [reason.partition(": ")[2] for reason in reasons(strict, file)] == [
        "the reference is 5 meter, the answer 5 (no unit), which lacks the unit (reward.units=strict)",
        "the reference is 5 meter, the answer is read as no number with unit",
        "the reference is no number with unit, so both are compared as text",
        "the reference is 1 kilometer, the answer 3e+40 meter second^-1: units of other dimensions",
    ]


def test_options_may_be_in_the_record_or_in_its_meta(tmp_path: Path) -> None:
    file = written(
        tmp_path / "a.jsonl",
        {"answer": "red", "reference": "B", "options": ["blue", "red"], "label": 1},
        {"answer": "red", "reference": "A", "meta": {"choices": {"A": "red", "B": "blue"}}, "label": 1},
    )
    assert reward_test("choice", file).exit_code == 0


def test_a_recipe_gives_the_reward_and_overrides_count(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('steps = 3\n[reward]\nkind = "numeric"\n')
    file = written(tmp_path / "a.jsonl", {"answer": "101", "reference": "100", "label": True})
    assert reward_test(str(recipe), file).exit_code == 1
    assert reward_test(str(recipe), file, "reward.tolerance=0.02").exit_code == 0
    assert reward_test("numeric", file, "reward.tolerance=0.02").exit_code == 0


def test_a_function_judges_whole_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that raises leaves the record unscored, which agrees with no label."""
    (tmp_path / "mine_of_reward_test.py").write_text(
        "def f(problem, text):\n    assert text != 'bad', 'no'\n    return text == problem.answer\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ulorl.rewards.judged_cases.PAUSE", 0.0)
    file = written(
        tmp_path / "a.jsonl",
        {"answer": "x", "reference": "x", "label": True},
        {"output": "bad", "reference": "x", "label": False},
    )
    done = reward_test("function", file, "reward.function=mine_of_reward_test:f", "--json", "out.json")
    assert done.exit_code == 1
    first, second = json.loads(Path("out.json").read_text())["records"]
    assert (first["reward"], first["reason"], first["extracted"]) == (1, "your function returned 1", "")
    assert (second["reward"], second["agrees"]) == (None, False)
    assert second["reason"] == "RewardError: AssertionError: no"
    assert "1 unscored, which agree with no label" in done.stdout


def test_a_reward_that_fails_for_many_in_a_row_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_of_reward_test.py").write_text("def f(problem, text):\n    raise OSError('away')\n")
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path / "a.jsonl", *[HALF] * 3)
    overrides = ["reward.function=broken_of_reward_test:f", "reward.max_unscored=2", "reward.retries=0"]
    with refused(ErrorCode.REWARD_FAILED, key="reward.max_unscored", record=f"{file}:2"):
        reward_test("function", file, *overrides)


class NoThird(Server):
    """Says no to a third."""

    def answer(self, said: str, time_of: int) -> None:  # noqa: ARG002
        self.send(200, completion("Verdict: no" if "one third" in said else "Verdict: yes"))


def test_a_verifier_is_asked_about_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    file = written(
        tmp_path / "a.jsonl",
        {"answer": "one half", "reference": "1/2", "question": "How much?", "label": True},
        {"answer": "one third", "reference": "1/2", "question": "How much?", "label": False},
        {"answer": "0.5", "reference": "1/2", "label": True},
        {"answer": "x" * 501, "reference": "1/2", "label": False},
    )
    with serving(NoThird) as (url, _):
        done = reward_test(
            str(GENERATIVE), file, f"reward.verifier.base_url={url}", "reward.verifier.name=m",
            "reward.verifier.rules_first=true", "--json", str(tmp_path / "out.json"),
        )  # fmt: skip
    assert done.exit_code == 0, done.stdout
    assert [record["reason"] for record in json.loads((tmp_path / "out.json").read_text())["records"]] == [
        "the verifier said yes",
        "the verifier said no",
        "accepted by the rules",
        "too long: more than 500 characters",
    ]


def test_verdicts_are_those_of_training(tmp_path: Path) -> None:
    """The same object judges: what make_reward makes."""
    records = [{"output": rf"so \boxed{{{n}}}", "reference": "7"} for n in ("7", "7.0", "8", "14/2", "")]
    cases = read_cases([written(tmp_path / "a.jsonl", *records)])
    for kind in ("math", "numeric", "exact"):
        settings = variants_of(RewardConfig)[kind]()
        reward = make_reward(settings)
        said = [found.verdict for found in judge_cases(settings, cases)]
        assert said == [reward(case.problem, case.output or "") for case in cases]


def test_records_of_one_question_are_one_problem(tmp_path: Path) -> None:
    records = [{**HALF, "question": question, "label": True} for question in ("a", "a", "b", "b", "c", "c", "", "")]
    found = list(judge_cases(MathRewardConfig(), read_cases([written(tmp_path / "a.jsonl", *records)])))
    assert agreement(found).rate == wilson(1.0, 64 / 14)  # sizes 2, 2, 2, 1, 1: 8² / (4 + 4 + 4 + 1 + 1)


@pytest.mark.parametrize(
    "record",
    [
        {"output": "a"}, {"output": "a", "reference": " "}, {"output": "a", "answer": "b", "reference": "1"},
        {"reference": "1"}, {"output": "a", "reference": ["1"]}, {"output": "a", "reference": True},
        {"output": "a", "reference": "1", "label": "yes"}, {"output": "a", "reference": "1", "meta": 5},
        {"output": "\ud800", "reference": "1"},
    ],
)  # fmt: skip
def test_bad_records_are_named_before_any_is_judged(tmp_path: Path, record: dict[str, Any]) -> None:
    """The first one is the error's place; the message names them all."""
    file = written(tmp_path / "a.jsonl", HALF, record, [3])
    with refused(ErrorCode.DATA_BAD_RECORD, record=f"{file}:2") as caught:
        reward_test("choice", file)
    assert f"{file}:3: " in str(caught.value)


def test_options_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", HALF, {"output": "a", "reference": "A", "options": 5})
    with pytest.raises(UserError) as caught:
        reward_test("choice", file)
    assert caught.value.record == f"{file}:2"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ("reference", "output", "answer", "label", "question", "meta", "options", "id", "other")


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a loaded machine is no failure
@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_record_is_a_case_or_is_named(fields: dict[str, Any]) -> None:
    case, said = None, ""
    try:
        case = case_of(Record("a.jsonl:7", fields))
    except UserError as error:
        said = str(error)
    assert said.startswith("a.jsonl:7: ") if case is None else case.problem.answer
    assert case is None or (case.output is None) is not (case.answer is None)


@pytest.mark.parametrize(
    ("arguments", "code", "key"),
    [
        (["foo", "a.jsonl"], ErrorCode.COMMAND_LINE, ""),
        (["math"], ErrorCode.COMMAND_LINE, ""),
        (["math", "none.jsonl"], None, None),
        (["math", "empty.jsonl"], None, None),
        (["math", "a.jsonl", "steps=3"], ErrorCode.COMMAND_LINE, "steps"),
        (["rules", "a.jsonl", "reward.timeout=3"], ErrorCode.COMMAND_LINE, "reward.timeout"),
        (["math", "a.jsonl", "reward.tolerance=0.1"], ErrorCode.CONFIG_UNKNOWN_KEY, "reward.tolerance"),
        (["math", "a.jsonl", "--json", "nowhere/out.json"], ErrorCode.FILE_NOT_WRITABLE, "--json"),
        (["function", "a.jsonl"], ErrorCode.CONFIG_MISSING_KEY, "reward.function"),
        (["missing.toml", "a.jsonl"], ErrorCode.RECIPE_NOT_FOUND, ""),
    ],
)
def test_bad_arguments_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: ErrorCode | None, key: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.jsonl", HALF)
    (tmp_path / "empty.jsonl").touch()
    with refused(code, key=key) if code else pytest.raises(UserError):
        reward_test(*arguments)


def test_what_would_steer_a_terminal_is_shown(tmp_path: Path) -> None:
    done = reward_test("math", written(tmp_path / "a.jsonl", {"answer": "7\x1b[31m", "reference": "[bold]7[/bold]"}))
    assert "\x1b" not in done.stdout
    assert r"7\x1b[31m from boxed, reference [bold]7[/bold]" in done.stdout


def test_help_teaches() -> None:
    done = reward_test("--help")
    assert "ulorl reward test math cases.jsonl" in done.stdout
    assert '"label": true' in done.stdout


def test_a_number_is_written_as_in_training() -> None:
    """A problem's reference 4e-05 is 0.00004 there; 5.0 is 5."""
    case = case_of(Record("a.jsonl:1", {"reference": 4e-05, "answer": 5.0}))
    assert (case.problem.answer, case.answer) == ("0.00004", "5")
