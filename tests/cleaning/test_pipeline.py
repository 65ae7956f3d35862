"""`ulorl data clean` as a whole: sources in, files out, nothing lost, the same bytes again; bad input named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from paths import ROOT, SHARED
from refusals import refused
from ulorl.cleaning import length_and_language, pipeline
from ulorl.cleaning.cleaning_config import CleaningConfig
from ulorl.cli.data_commands import app
from ulorl.clients.client import Prompt
from ulorl.config.data_config import FilesDataConfig
from ulorl.config.loading import load_class
from ulorl.data.problems import load_problems
from ulorl.error_codes import ErrorCode

RECORDS = [
    {"id": "a", "problem": "What is the sum of the first ten odd numbers?", "answer": "\\boxed{100}"},
    {"id": "b", "problem": "what is the sum of the first ten odd numbers", "answer": "100"},
    {"id": "c", "problem": "(a) Find $x$ if $2x=8$. (b) Find $y$ if $3y=9$.", "answer": "4"},
    {"id": "d", "problem": "What is $3 + 4$ times two? (A) 11 (B) 14 (C) 9", "answer": "A"},
    {"id": "e", "problem": "Is every prime number greater than two odd?", "answer": "Yes"},
    {"id": "f", "problem": "Prove that the square root of two is irrational.", "answer": "irrational"},
    {"id": "g", "problem": "Compute the inverse of the matrix above.", "answer": r"\begin{pmatrix}1\\2\end{pmatrix}"},
    {"id": "h", "problem": "How many primes are there below one hundred and ten if one omits the two?", "answer": "28"},
    {"id": "i", "problem": "How many letters has the longest word of this question?", "answer": None},
]  # fmt: skip
FATE = {  # by step and reason
    "b": ("duplicates", "duplicate"),
    "c": ("subquestions", "several sub-questions"),
    "e": ("true_false", "true or false"),
    "f": ("proof", "proof"),
    "g": ("short_answers", "matrix"),
    "h": ("contamination", "overlap with evaluation"),
    "i": ("normalise", "empty answer"),
}


def lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    question = "How many primes are there below one hundred and ten if one omits the three?"
    lines(tmp_path / "evals.jsonl", [{"question": question}])
    return lines(tmp_path / "raw.jsonl", RECORDS)


def run(
    out: Path, *sources: str, overwrite: bool = False, config: Path | None = None, **keys: Any
) -> pipeline.CleaningResult:
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in keys.items()]
    settings = load_class(CleaningConfig, [config] if config else [], overrides)
    return pipeline.clean(sources, out, settings, overwrite=overwrite)[0]


def test_every_record_is_kept_or_dropped_once(raw: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", str(raw), contamination__against=[str(tmp_path / "evals.jsonl")])
    kept = pandas.read_parquet(tmp_path / "out/problems.parquet").set_index("id")
    gone = pandas.read_parquet(tmp_path / "out/dropped.parquet").set_index("id")
    assert {name.split("/")[1]: (row.step, row.reason) for name, row in gone.iterrows()} == FATE
    assert list(kept.index) == ["raw/a", "raw/d"]
    assert kept.loc["raw/a"].answer == "100"
    assert list(kept.loc["raw/a"].changed_by) == ["answers"]
    converted = kept.loc["raw/d"]
    assert (converted.problem, converted.answer) == ("What is $3 + 4$ times two?", "11")
    assert (converted.original_problem, converted.original_answer) == (RECORDS[3]["problem"], "A")
    assert list(converted.changed_by) == ["multiple_choice"]
    assert gone.loc["raw/b"].detail == "of raw/a"
    assert gone.loc["raw/h"].detail.startswith("evals/1, ")
    assert gone.loc["raw/i"].place == f"{raw}:9"


def test_our_reader_loads_it(raw: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", str(raw))
    problems = load_problems(FilesDataConfig(path=str(tmp_path / "out/problems.parquet")))
    assert [(p.id, p.answer) for p in problems] == [("raw/a", "100"), ("raw/d", "11"), ("raw/h", "28")]


def test_report_and_card_agree_with_the_files(raw: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", str(raw), duplicates__run=2)
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert (report["records"], report["kept"], report["dropped"]) == (9, 3, 6)
    assert sum(sum(step["dropped"].values()) for step in report["steps"]) == 6
    for before, after in zip(report["steps"], report["steps"][1:], strict=False):
        assert before["after"] == after["before"] == before["before"] - sum(before["dropped"].values())
    assert report["config"]["duplicates"]["run"] == 2
    (example,) = report["steps"][3]["examples"]["several sub-questions"]
    assert example["id"] == "raw/c"
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "| raw | 9 | 3 | `problem`: 9 | `answer`: 9 |" in card
    assert "| subquestions | 8 | several sub-questions: 1 | 0 | 0 | 7 |" in card


def test_same_bytes(raw: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        run(tmp_path / out, str(raw))
    for name in ("problems.parquet", "dropped.parquet", "report.json", "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_steps_can_be_left_out(raw: Path, tmp_path: Path) -> None:
    steps = ("normalise", "answers", "subquestions", "multiple_choice", "true_false", "proof", "short_answers",
             "lengths", "language", "duplicates")  # fmt: skip
    result = run(tmp_path / "out", str(raw), **{f"{step}__enabled": False for step in steps})
    assert [step.name for step in result.steps] == ["read"]
    assert len(result.kept) == 9


def test_yes_or_no_questions_can_stay(raw: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", str(raw), true_false__plain="yes_no")
    kept = pandas.read_parquet(tmp_path / "out/problems.parquet").set_index("id")
    assert kept.loc["raw/e"].problem.endswith("\nAnswer Yes or No.")


def test_formats_and_fields(tmp_path: Path) -> None:
    """JSON Lines, JSON, Parquet and CSV; usual field names; a conversation; a nested reference."""
    asked = "What is {} times one hundred and one?"
    lines(tmp_path / "one.jsonl", [{"question": asked.format(2), "answer": "... #### 202"}])
    (tmp_path / "two.json").write_text(json.dumps([{"problem": asked.format(3), "solution": "It is \\boxed{303}."}]))
    chat = [{"role": "system", "content": "Think."}, {"role": "user", "content": asked.format(4)}]
    nested = {"ground_truth": {"target": "404"}, "style": "rule"}
    pandas.DataFrame([{"prompt": chat, "reward_model": nested}]).to_parquet(tmp_path / "three.parquet")
    (tmp_path / "four.csv").write_text(f"input,target,level\n{asked.format(5)},0505,hard\n")
    paths = [str(tmp_path / name) for name in ("one.jsonl", "two.json", "three.parquet", "four.csv")]
    result = run(tmp_path / "out", *paths, sources__four__keep=["level"])
    assert [(item.id, item.answer) for item in result.kept] == [
        ("one/1", "202"), ("two/1", "303"), ("three/1", "404"), ("four/1", "0505")
    ]  # fmt: skip
    assert result.kept[2].question == asked.format(4)
    assert result.kept[3].meta == '{"level": "hard"}'


def test_sources_of_the_configuration(tmp_path: Path) -> None:
    """A table maps fields; ids that occur twice get numbers, and so do files of one name."""
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        texts = [f"What is the number after {n} in {folder}?" for n in (1, 22)]
        lines(
            tmp_path / folder / "part.jsonl",
            [{"q": {"text": t}, "a": f"n/a => {n}", "key": 7} for n, t in enumerate(texts)],
        )
    config = tmp_path / "clean.toml"
    config.write_text(
        f"[sources.all]\npath = '{tmp_path}/*/part.jsonl'\nquestion = 'q.text'\nanswer = 'a'\nid = 'key'\n"
        "answer_after = '=>'\n"
    )
    result = run(tmp_path / "out", config=config)
    assert [(item.id, item.answer) for item in result.kept] == [
        ("all/7", "0"), ("all/7#2", "1"), ("all/7#3", "0"), ("all/7#4", "1")
    ]  # fmt: skip
    found = f"{tmp_path / folder / 'part.jsonl'}:1"
    with refused(ErrorCode.DATA_BAD_RECORD, key="sources.part-2.question", record=found):
        run(tmp_path / "out2", str(tmp_path / "*/part.jsonl"))


@pytest.mark.parametrize(
    ("line", "code", "key"),
    [
        ("{", ErrorCode.DATA_UNREADABLE, ""),
        ('{"problem": 5.5e999, "answer": "1"}', ErrorCode.DATA_BAD_RECORD, "sources.bad.question"),
        ('{"problem": ["a", "b"], "answer": "1"}', ErrorCode.DATA_BAD_RECORD, "sources.bad.question"),
        ('{"answer": "1"}', ErrorCode.DATA_BAD_RECORD, "sources.bad.question"),
        ('{"problem": "x\\u0000?", "answer": "1"}', ErrorCode.DATA_BAD_RECORD, ""),
        ('{"problem": "x\\ud800?", "answer": "1"}', ErrorCode.DATA_BAD_RECORD, ""),
    ],
)
def test_bad_records(line: str, code: ErrorCode, key: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(RECORDS[0]) + "\n" + line + "\n")
    with refused(code, key=key, record=f"{path}:2"):
        run(tmp_path / "out", str(path))
    result = run(tmp_path / "out", str(path), unreadable="drop")
    assert len(result.kept) == 1
    gone = pandas.read_parquet(tmp_path / "out/dropped.parquet").iloc[0]
    assert (gone.id, gone.step, gone.reason) == ("bad/unreadable-2", "read", "unreadable")
    assert "bad.jsonl:2" in gone.detail


@pytest.mark.parametrize(
    ("keys", "code", "key"),
    [
        ({"sources__other__question": "q"}, ErrorCode.CONFIG_UNKNOWN_KEY, "sources.other"),
        ({"convert__model": "m"}, ErrorCode.CONFIG_CONFLICT, None),
        ({"lengths__min_chars": 5000}, ErrorCode.CONFIG_CONFLICT, "lengths.min_chars"),
        ({"duplicate__run": 1}, ErrorCode.CONFIG_UNKNOWN_KEY, "duplicate"),
        ({"duplicates__run": 0}, ErrorCode.CONFIG_BAD_VALUE, "duplicates.run"),
        ({"duplicates__permutations": 6}, ErrorCode.CONFIG_BAD_VALUE, "duplicates.permutations"),  # too few for LSH
        ({"duplicates__seed": 2**32}, ErrorCode.CONFIG_BAD_VALUE, "duplicates.seed"),  # numpy's has 32 bits
        ({"contamination__against": ["none.jsonl"]}, ErrorCode.DATA_NOT_FOUND, None),
        ({"models__m__kind": "endpoint"}, ErrorCode.CONFIG_MISSING_KEY, "models.m.name"),
    ],
)
def test_bad_settings(keys: dict[str, Any], code: ErrorCode, key: str | None, raw: Path, tmp_path: Path) -> None:
    with refused(code, key=key):
        run(tmp_path / "out", str(raw), **keys)


def test_missing_sources(tmp_path: Path) -> None:
    path = tmp_path / "nothing.jsonl"
    with refused(ErrorCode.DATA_NOT_FOUND, file=path):
        run(tmp_path / "out", str(path))
    with refused(ErrorCode.CONFIG_MISSING_KEY, key="sources"):
        run(tmp_path / "out")


def test_the_folder_is_ours_or_empty(raw: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", str(raw))
    with refused(ErrorCode.OUTPUT_EXISTS, file=tmp_path / "out", key="--out"):
        run(tmp_path / "out", str(raw))
    run(tmp_path / "out", str(raw), overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").touch()
    with refused(ErrorCode.OUTPUT_EXISTS, file=tmp_path / "other", key="--out"):
        run(tmp_path / "other", str(raw), overwrite=True)


def test_missing_packages_are_named(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    length_and_language._classifier.cache_clear()
    with refused(ErrorCode.EXTRA_MISSING, key="language.enabled"):
        run(tmp_path / "out", str(raw))
    assert run(tmp_path / "out", str(raw), language__enabled=False).kept


def test_models_take_part_and_are_counted(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model rewrites the proof, judges references and is the starting model; a second run asks it nothing."""
    asked: list[str] = []

    class Model:
        identity = "m"

        def complete(self, prompts: list[Prompt]) -> Any:
            for index, (prompt, _) in enumerate(prompts):
                asked.append(prompt)
                rewriting = prompt.startswith("Rewrite")
                proof = '{"question": "Which integer is the square of the root of two?", "answer": "2"}'
                yield index, (proof if "irrational" in prompt else "hm") if rewriting else r"\boxed{11}"

    monkeypatch.setattr(pipeline, "make_client", lambda *_: Model())
    keys: dict[str, Any] = {
        "models__m__name": "m", "convert__model": "m", "wrong_references__models": ["m"], "too_easy__model": "m"
    }  # fmt: skip
    result = run(tmp_path / "out", str(raw), **keys)
    fate = {gone.item.id: (gone.step, gone.drop.reason) for gone in result.dropped}
    assert fate["raw/a"] == ("wrong_references", "wrong reference")  # 100, and all say 11
    assert fate["raw/d"] == ("too_easy", "too easy")
    assert fate["raw/f"] == ("wrong_references", "wrong reference")  # rewritten, then judged
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert report["undecided"] == 0
    assert fate["raw/e"] == ("wrong_references", "wrong reference")  # the model said "hm": undecided, it stayed
    asked.clear()
    before = (tmp_path / "out/report.json").read_bytes()
    run(tmp_path / "out", str(raw), overwrite=True, **keys)
    assert not asked
    assert (tmp_path / "out/report.json").read_bytes() == before


def test_command(raw: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["clean", str(raw), "lengths.max_chars=500", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "subquestions            8 -> 7       several sub-questions 1" in done.output
    assert "3 of 9 problems kept" in done.output


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=60), st.text(max_size=20)), min_size=1, max_size=8))
def test_nothing_is_lost(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]) -> None:
    """For any records, each is kept or dropped once, with its original text."""
    folder = tmp_path_factory.mktemp("any")
    lines(folder / "raw.jsonl", [{"problem": q, "answer": a} for q, a in pairs])
    run(folder / "out", str(folder / "raw.jsonl"), unreadable="drop", duplicates__enabled=False)
    kept = pandas.read_parquet(folder / "out/problems.parquet")
    gone = pandas.read_parquet(folder / "out/dropped.parquet")
    assert len(kept) + len(gone) == len(pairs)
    originals = dict(enumerate(pairs, 1))
    for row in [*kept.itertuples(), *gone[gone.step != "read"].itertuples()]:
        assert (row.original_problem, row.original_answer) == originals[int(row.id.split("/")[1])]


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "train").is_dir(), reason="needs the shared data sets, which the project commits none of"
)
def test_real_data(tmp_path: Path) -> None:
    """All the parquet's and the Chinese file's schemas; AIME's own years must be found in themselves."""
    paths = [str(SHARED / "train/dapo_subset.jsonl"), str(SHARED / "eval/aime24.jsonl")]
    against = [str(SHARED / "eval/*.jsonl")]
    result = run(tmp_path / "out", *paths, contamination__against=against)
    fates = {gone.item.id: gone.step for gone in result.dropped}
    assert all(fates.get(f"aime24/{n}") in ("contamination", "duplicates") for n in range(60, 90))
    assert len(result.kept) > 1500
    assert {item.source for item in result.kept} == {"dapo_subset"}


def test_the_page_names_every_key() -> None:
    page = (ROOT / "docs/cleaning.md").read_text(encoding="utf-8")
    for name, field in CleaningConfig.model_fields.items():
        keys = getattr(field.annotation, "model_fields", {}) if field.annotation else {}
        for key in [] if name in ("sources", "models", "examples") else {name, *keys} - {"enabled"}:
            assert f"`{key}`" in page or f"{key} =" in page or f"[{key}]" in page or f"{name}.{key}" in page, key


def test_hub_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*args: Any, **keys: Any) -> list[dict[str, str]]:
        asked.append((args, keys))
        return [{"problem": "How much is twice the number twenty?", "answer": "40"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = tmp_path / "clean.toml"
    config.write_text(
        '[sources.small]\npath = "someone/small-set"\nsubset = "easy"\nsplit = "train[:9]"\nkind = "hub"\n'
    )
    result = run(tmp_path / "out", "someone/large-set", config=config)
    assert asked == [
        (("someone/large-set", None), {"split": "train", "revision": None}),
        (("someone/small-set", "easy"), {"split": "train[:9]", "revision": None}),
    ]
    assert [item.id for item in result.kept] == ["someone/large-set/1"]
    assert result.dropped[0].drop.detail == "of someone/large-set/1"
    assert result.dropped[0].item.place == "someone/small-set (easy, train[:9]): record 1"
