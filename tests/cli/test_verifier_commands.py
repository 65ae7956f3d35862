"""`ulorl verifier train` and `bench` as commands."""

from __future__ import annotations

import json
import re
from inspect import signature
from pathlib import Path

import pytest
from typer.models import OptionInfo
from typer.testing import CliRunner

from refusals import refused
from ulorl.cli.data_commands import app as data_app
from ulorl.cli.main import app
from ulorl.cli.verifier_commands import app as verifier_app
from ulorl.error_codes import ErrorCode

PAIRS = [
    ("27cm", "0.27m", True, "units"),
    ("27cm", "2.7m", False, "units"),
    ("3", "3.0", True, "decimals"),
    ("3", "4", False, "decimals"),
    (r"\frac{1}{2}", "one half", True, "words"),
    (r"\frac{1}{2}", "one third", False, "words"),
]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["verifier", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    names = ("reference", "answer", "equivalent", "kind")
    records = [
        {"question": f"{i // 2}?", "problem": str(i // 2), **dict(zip(names, p, strict=True))}
        for i, p in enumerate(PAIRS)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_bench_of_the_rules(pairs: Path, tmp_path: Path) -> None:
    """Neither math-verify nor the rules know words; units only the rules."""
    files = ("--json", tmp_path / "f.json", "--picture", tmp_path / "f.svg", "--cache", tmp_path / "c.sqlite")
    text = run("bench", pairs, *files)
    assert "6 pairs of 3 problems, 3 of them equivalent" in text
    figures = json.loads((tmp_path / "f.json").read_text())
    wrong = {name: (s["false_positives"], s["false_negatives"]) for name, s in figures["total"].items()}
    assert wrong == {"math-verify": (0, 2), "rules": (0, 1)}
    assert [e["verdicts"]["rules"] for e in figures["paper"]] == [True, False, False, False]
    assert figures["false_negatives"]["rules"][0]["answer"] == "one half"
    assert (tmp_path / "f.svg").read_text().startswith("<?xml")


def test_limit_draws_the_same_pairs_every_time(pairs: Path, tmp_path: Path) -> None:
    drawn = [run("bench", pairs, "--limit", 3, "--cache", tmp_path / "c.sqlite") for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith("3 pairs")


@pytest.mark.parametrize(
    ("arguments", "code", "key"),
    [
        (("max_tokens=4",), ErrorCode.COMMAND_LINE, "--verifier"),
        (("--verifier", "nowhere", "max_tokens=none"), ErrorCode.CONFIG_BAD_VALUE, "max_tokens"),
        (("--verifier", "nowhere/at/all"), ErrorCode.MODEL_NOT_FOUND, None),
        (("--json", "no/such/f.json"), ErrorCode.FILE_NOT_WRITABLE, "--json"),
        (("--picture", "f.txt"), ErrorCode.COMMAND_LINE, "--picture"),
    ],
)
def test_bench_refuses(pairs: Path, arguments: tuple[str, ...], code: ErrorCode, key: str | None) -> None:
    with refused(code, key=key):
        run("bench", pairs, *arguments)


def test_pairs_with_missing_fields_are_named_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"question": "?", "reference": "1", "answer": "1"}\n')
    with refused(ErrorCode.DATA_BAD_RECORD, record=f"{tmp_path / 'p.jsonl'}:1"):
        run("train", tmp_path / "p.jsonl", "--model", "none", "--out", tmp_path / "v")
    with refused(ErrorCode.DATA_NOT_FOUND):
        run("bench", tmp_path / "absent.jsonl")


def test_train_names_a_model_that_is_none(pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    with refused(ErrorCode.MODEL_NOT_FOUND):
        run("train", pairs, "--model", tmp_path, "--out", tmp_path / "v")


def test_data_makes_files_that_bench_reads_with_graded_outputs(tmp_path: Path) -> None:
    """60 problems with a fraction for a reference, and two outputs of a model graded as grade-school-math does: the
    file with other fields is known by them, also where one glob pattern names both."""
    problems = [{"problem": f"What share is {i} of 64?", "answer": rf"\frac{{{i}}}{{64}}"} for i in range(1, 64, 2)]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    text = run("data", tmp_path / "raw.jsonl", "--out", tmp_path / "pairs", "--held-out", 0.5)
    assert "32 of 32 problems gave pairs; 0 could not be read" in text
    with refused(ErrorCode.OUTPUT_EXISTS, file=tmp_path / "pairs"):
        run("data", tmp_path / "raw.jsonl", "--out", tmp_path / "pairs")

    solution = {"is_correct": True, "solution": "1 + 1 = 2\nA: 2"}
    names = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    graded = {"question": "1 + 1?", "ground_truth": "It is 2.\nA: 2", **dict.fromkeys(names, solution)}
    (tmp_path / "pairs" / "graded.jsonl").write_text(json.dumps(graded) + "\n")
    text = run("bench", tmp_path / "pairs" / "*.jsonl", "--cache", tmp_path / "c.sqlite")
    assert "graded.jsonl: 4 graded answers; 0 outputs without one left out" in text
    both = sum(1 for side in ("train", "held_out") for _ in (tmp_path / "pairs" / f"{side}.jsonl").open())
    assert f"{both + 4} pairs of " in text


def ranges() -> list[tuple[tuple[str, ...], str, OptionInfo, bool]]:
    """Every option of `ulorl verifier` and `ulorl data` whose --help states a range: the command it belongs to, its
    name, and whether it takes fractions."""
    return [
        ((group, command.name or command.callback.__name__), name, info, "float" in str(parameter.annotation))
        for group, commands in (("verifier", verifier_app), ("data", data_app))
        for command in commands.registered_commands
        if command.callback
        for name, parameter in signature(command.callback, eval_str=True).parameters.items()
        for info in getattr(parameter.annotation, "__metadata__", ())
        if isinstance(info, OptionInfo) and info.min is not None
    ]


def test_every_value_outside_a_stated_range_is_refused_with_the_options_name(pairs: Path) -> None:
    """And nan and infinity, which are in none."""
    found = ranges()
    assert {name for _, name, *_ in found} >= {"held_out", "per_problem", "epochs", "seed", "limit", "batch", "lr"}
    for command, name, info, fractions in found:
        assert info.min is not None
        values = ["nan", "inf"] if fractions else ["1.5"]
        values += [str(end) for end in (info.min - 1, info.max and info.max + 1) if end is not None]
        option = "--" + name.replace("_", "-")
        for value in values:
            needed = ("--model", "m", "--out", "o") if command[1] == "train" else ()
            result = CliRunner().invoke(app, [*command, str(pairs), f"{option}={value}", *needed])
            assert result.exit_code == 2, (command, option, value, result.exception)
            assert option in re.sub(r"\x1b\[[\d;]*m", "", result.output), (command, option, value)


@pytest.mark.parametrize(("share", "written", "other"), [(0, "train", "held_out"), (1, "held_out", "train")])
def test_a_side_that_gets_no_problem_has_no_file(tmp_path: Path, share: int, written: str, other: str) -> None:
    """Both ends of the range that --help states; a file of an earlier call would hold problems of the other side."""
    problems = [{"problem": f"What share is {i} of 64?", "answer": rf"\frac{{{i}}}{{64}}"} for i in range(1, 32, 2)]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    out = tmp_path / "pairs"
    out.mkdir()
    (out / f"{other}.jsonl").write_text("of an earlier call")
    given = (tmp_path / "raw.jsonl", "--out", out, "--overwrite", "--per-problem", 2, "--seed", 0)
    text = run("data", *given, "--held-out", share)
    assert f"{other}.jsonl: not written, --held-out {share} leaves it empty" in text.replace("\n", " ")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", f"{written}.jsonl"]
    assert len((out / f"{written}.jsonl").read_text().splitlines()) == 32
