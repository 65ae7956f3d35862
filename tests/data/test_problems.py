"""Problems in: every kind loads, and every bad record is named with its place."""

from __future__ import annotations

import ast
import json
import logging
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from paths import ROOT, SHARED
from refusals import refused
from ulorl.config.data_config import CountdownDataConfig, FilesDataConfig, HubDataConfig, ReasoningGymDataConfig
from ulorl.data.problem_keys import has_rule, is_held_out, problem_key
from ulorl.data.problems import load_located, load_problems
from ulorl.error_codes import ErrorCode


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def record(**fields: Any) -> str:
    return json.dumps({"problem": "1 + 1?", "answer": "2", **fields})


def load(path: Path | str, **keys: Any) -> Any:
    return load_problems(FilesDataConfig(path=str(path), **keys))


def test_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "\ufeff" + record(), "", record(answer=7, id=3), record(unique_id="x/1"))
    problems = load(path)
    assert [(p.id, p.prompt, p.answer) for p in problems] == [
        (f"{path}:1", "1 + 1?", "2"),
        ("3", "1 + 1?", "7"),
        ("x/1", "1 + 1?", "2"),
    ]


def test_the_answer_follows_the_last_marker(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", record(answer="#### 3 is not it\n#### 1,200 "))
    assert load(path, answer_after="####")[0].answer == "1,200"


def test_json_array_nested_fields_and_kept_ones(tmp_path: Path) -> None:
    rows = [{"chat": [{"content": "Q?"}], "truth": {"target": 1.5}, "level": 4, "solution": "long"}]
    path = write(tmp_path / "a.json", json.dumps(rows, indent=1))
    (problem,) = load(path, question="chat.0.content", answer="truth.target", keep=("level",))
    assert (problem.id, problem.prompt, problem.answer) == (f"{path}: record 1", "Q?", "1.5")
    assert problem.meta == {"level": 4}


def test_json_file_of_lines(tmp_path: Path) -> None:
    assert len(load(write(tmp_path / "a.json", record(), record(id=1)))) == 2


def test_parquet_and_csv_give_the_problems_of_the_same_json_lines(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": f"r{i}", "problem": f"{i} + 1?", "answer": i + 1} for i in range(5)]
    expected = load(write(tmp_path / "a.jsonl", *map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet") == expected
    table = ["id,problem,answer", *(",".join(map(str, row.values())) for row in rows)]
    assert load(write(tmp_path / "a.csv", *table)) == expected


def test_glob_takes_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", record(id="b"))
    write(tmp_path / "a.jsonl", record(id="a"))
    assert [p.id for p in load(tmp_path / "*.jsonl")] == ["a", "b"]


def test_size_takes_the_first_and_refuses_too_many(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", record(id=1), record(id=2), "not JSON")
    assert [p.id for p in load(path, size=2)] == ["1", "2"]
    path = write(tmp_path / "a.jsonl", record(id=1))
    with refused(ErrorCode.DATA_TOO_FEW, file=path, key="data.size"):
        load(path, size=2)


@pytest.mark.parametrize(
    ("line", "code", "key"),
    [
        ('{"problem": "Q", "answer": ', ErrorCode.DATA_UNREADABLE, ""),
        ("[1, 2]", ErrorCode.DATA_UNREADABLE, ""),
        (b'{"problem": "caf\xe9", "answer": "1"}', ErrorCode.DATA_UNREADABLE, ""),
        ('{"question": "Q", "answer": "1"}', ErrorCode.DATA_BAD_RECORD, "data.question"),
        ('{"problem": "Q"}', ErrorCode.DATA_BAD_RECORD, "data.answer"),
        (record(problem=["Q"]), ErrorCode.DATA_BAD_RECORD, "data.question"),
        (record(answer=None), ErrorCode.DATA_BAD_RECORD, "data.answer"),
        (record(answer=True), ErrorCode.DATA_BAD_RECORD, "data.answer"),
        (record(answer="  "), ErrorCode.DATA_BAD_RECORD, "data.answer"),
        (record(problem=""), ErrorCode.DATA_BAD_RECORD, "data.question"),
        (record(problem="1\x00"), ErrorCode.DATA_BAD_RECORD, "data.question"),
        (record(problem="\ud800"), ErrorCode.DATA_BAD_RECORD, "data.question"),
        (record(answer=float("inf")), ErrorCode.DATA_BAD_RECORD, "data.answer"),
        (record(id=[1]), ErrorCode.DATA_BAD_RECORD, ""),
        (record(id=""), ErrorCode.DATA_BAD_RECORD, ""),
        ("[" * 100_000, ErrorCode.DATA_UNREADABLE, ""),
        ('{"problem": "Q", "answer": ' + "9" * 5000 + "}", ErrorCode.DATA_UNREADABLE, ""),
        ('{"problem": "Q", "answer": "1", "answer": "2"}', ErrorCode.DATA_UNREADABLE, ""),
        (record(id="first"), ErrorCode.DATA_BAD_RECORD, ""),
    ],
)
def test_a_bad_record_is_named_and_can_be_left_out(
    tmp_path: Path, line: str | bytes, code: ErrorCode, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", record(id="first"), line, record(id="third"))
    with refused(code, key=key, record=f"{path}:2"):
        load(path)
    with caplog.at_level(logging.WARNING):
        assert [p.id for p in load(path, bad="skip")] == ["first", "third"]
    assert "1 bad records left out" in caplog.text
    assert "a.jsonl:2" in caplog.text


def test_all_bad_records_are_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[record(answer="") for _ in range(12)], record())
    with refused(ErrorCode.DATA_BAD_RECORD, record=f"{path}:12") as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert "data.bad=skip" in lines[0]
    assert [f"a.jsonl:{n}:" in line for n, line in zip(range(1, 11), lines[1:11], strict=True)] == [True] * 10
    assert lines[11] == "  and 2 more"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.jsonl", b"", ErrorCode.DATA_TOO_FEW),
        ("a.json", b"[1", ErrorCode.DATA_UNREADABLE),
        ("a.csv", b"x", ErrorCode.DATA_TOO_FEW),
        ("a.txt", b"x", ErrorCode.DATA_UNREADABLE),
        ("a.jsonl.gz", b"x", ErrorCode.DATA_UNREADABLE),
        ("a.parquet", b"PAR1 not really", ErrorCode.DATA_UNREADABLE),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, code: ErrorCode) -> None:
    path = write(tmp_path / name, content)
    with refused(code, file=path):
        load(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with refused(ErrorCode.DATA_NOT_FOUND, file=path, key="data.path"):
            load(path)
    for name in ("n" * 300, "none*.jsonl", "a.jsonl/below"):
        with refused(ErrorCode.DATA_NOT_FOUND, file=name, key="data.path"):
            load(name)
    with refused(ErrorCode.DATA_NOT_FOUND, key="data.path"):
        load("~nobody/x.jsonl")


def test_null_is_no_id_and_kept_fields_are_text_that_can_be_stored(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", record(id=None, unique_id="u"), record(id=None))
    assert [p.id for p in load(path)] == ["u", f"{path}:2"]
    path = write(tmp_path / "b.jsonl", record(level=[1, {"x": None}]), record(level="\udc00"))
    with refused(ErrorCode.DATA_BAD_RECORD, key="data.keep", record=f"{path}:2"):
        load(path, keep=("level",))


def test_places_are_known_by_id(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", record(id="x"), "", record())
    assert load_located(FilesDataConfig(path=str(path)))[1] == {"x": f"{path}:1", f"{path}:3": f"{path}:3"}


def test_answer_after_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", record())
    with refused(ErrorCode.DATA_BAD_RECORD, key="data.answer_after", record=f"{path}:1"):
        load(path, answer_after="####")


def test_hub_reads_a_dataset_folder_and_names_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", record(id="a"), record(id="b", answer=" "))
    with refused(ErrorCode.DATA_BAD_RECORD, key="data.answer", record=f"{folder} (train): record 2"):
        load_problems(HubDataConfig(path=str(folder)))
    assert [p.id for p in load_problems(HubDataConfig(path=str(folder), size=1))] == ["a"]
    with refused(ErrorCode.DATA_NOT_FOUND, key="data.path"):
        load_problems(HubDataConfig(path=str(folder), split="dev"))


def gym(task: str, size: int, *, held_out: bool = False, **keys: Any) -> Any:
    return load_problems(ReasoningGymDataConfig(task=task, size=size, **keys), held_out=held_out)


def keys_of(problems: Any) -> set[str]:
    return {problem_key(p.meta["task"], ast.literal_eval(p.meta["entry"])) for p in problems}


SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "operators": ["+"], "allow_negation": False}


def test_one_problem_in_other_words_is_on_one_side() -> None:
    """In any wording: "Evaluate: 4 + 1." held out and "Solve 4 + 1." in training would measure memory."""
    settings = {**SUMS, "allow_parentheses": False, "format_style": "natural"}
    train = gym("basic_arithmetic", 200, settings=settings)
    held_out = gym("basic_arithmetic", 40, settings=settings, held_out=True)

    def sums(problems: Any) -> set[tuple[str, ...]]:
        return {tuple(sorted(re.findall(r"\d+", p.prompt))) for p in problems}

    assert len({p.prompt.split()[0] for p in [*train, *held_out]}) > 3  # wordings
    assert not sums(train) & sums(held_out)
    assert (
        max(Counter(tuple(sorted(re.findall(r"\d+", p.prompt))) for p in held_out).values()) > 1
    )  # they do stand twice


def test_keys_of_one_problem_in_other_words_and_of_others() -> None:
    def key(question: str, expression: str, answer: str) -> str:
        entry = {"question": question, "answer": answer, "metadata": {"expression": expression, "num_terms": 2}}
        return problem_key("basic_arithmetic", entry)

    one = key("Evaluate: 4 + 1.", "4 + 1", "5")
    assert one == key("Solve 4 + 1.", "4 + 1", "5") == key("What is 1 + 4?", "1 + 4", "5")
    assert len({one, key("Solve 4 - 1.", "4 - 1", "3"), key("Solve 1 - 4.", "1 - 4", "-3"), key("", "4 + 2", "6")}) == 4

    def equation(letter: str) -> str:
        entry = {"question": f"Solve for {letter}: 2*{letter} = 6", "answer": "3"}
        return problem_key("simple_equations", {**entry, "metadata": {"equation": f"2*{letter} = 6"}})

    assert equation("m") == equation("k")


@pytest.mark.parametrize(
    ("task", "size", "settings", "others"),
    [
        ("basic_arithmetic", 300, {"max_digits": 1, "max_terms": 3}, {"max_digits": 2, "max_terms": 4}),
        ("chain_sum", 300, {"max_digits": 1, "max_terms": 3}, {"max_digits": 2, "max_terms": 2}),
        ("fraction_simplification", 100, {"max_value": 30, "max_factor": 5}, {"max_value": 40, "styles": ["plain"]}),
        ("polynomial_equations", 40, {"max_degree": 1, "max_value": 5}, {"max_degree": 1, "max_value": 9}),
        ("simple_equations", 100, {"max_value": 9}, {"max_value": 12}),
        ("number_sequence", 60, {"max_terms": 5}, {"max_terms": 8}),
        ("coin_flip", 60, {}, {"max_trials": 10}),
        ("tower_of_hanoi", 36, {}, {"max_disks": 8}),
        ("mini_sudoku", 100, {}, {"max_empty": 9}),
        ("aiw", 60, {}, {}),
        ("maze", 40, {"max_dist": 6}, {"max_grid_size": 7}),
        ("calendar_arithmetic", 100, {}, {"year": 2023}),
    ],
)
def test_no_problem_is_on_both_sides_for_any_settings(
    task: str, size: int, settings: dict[str, Any], others: dict[str, Any]
) -> None:
    train = gym(task, size, settings=settings)
    for keys in ({"settings": settings}, {"settings": others, "seed": 7}):
        assert not keys_of(train) & keys_of(gym(task, size // 4, held_out=True, **keys))


@pytest.mark.parametrize("task", ["sentence_reordering", "caesar_cipher", "spell_backward", "mini_sudoku", "n_queens"])
def test_answers_that_are_the_problem_are_on_one_side(task: str) -> None:
    train, held_out = gym(task, 150), gym(task, 30, held_out=True)
    assert not {p.answer for p in train} & {p.answer for p in held_out}


def test_every_task_has_a_rule_and_is_documented() -> None:
    from reasoning_gym.factory import DATASETS

    documented = (ROOT / "docs" / "tasks.md").read_text()
    assert not [task for task in DATASETS if not has_rule(task)]
    assert not [task for task in DATASETS if f"`{task}`" not in documented]


def test_a_task_with_few_problems_warns(caplog: pytest.LogCaptureFixture) -> None:
    settings = {**SUMS, "allow_parentheses": False, "format_style": "natural"}
    gym("basic_arithmetic", 40, settings=settings)  # in training it is no harm
    gym("prime_factorization", 40, held_out=True)
    assert not caplog.messages
    gym("basic_arithmetic", 40, settings=settings, held_out=True)
    assert "data.task=basic_arithmetic: the 40 held-out questions ask only 13 problems" in caplog.text


def test_reasoning_gym_sides_are_distinct_disjoint_and_stable() -> None:
    """One-digit sums and differences of two numbers: draws repeat, and sides would overlap by chance."""
    keys = {"settings": {"max_terms": 2, "max_digits": 1}}
    train, held_out = gym("chain_sum", 120, **keys), gym("chain_sum", 30, held_out=True, seed=5, **keys)
    questions = Counter(p.prompt for p in [*train, *held_out])
    assert len(train) == 120
    assert len(held_out) == 30
    assert max(questions.values()) == 1
    assert all(is_held_out(key) for key in keys_of(held_out))
    assert len({p.id for p in train}) == 120
    assert gym("chain_sum", 50, **keys) == train[:50]
    json.dumps([dict(p.meta) for p in train])


def test_reasoning_gym_share_of_the_held_out_side() -> None:
    questions = [str(n) for n in range(5000)]
    assert sum(map(is_held_out, questions)) / 5000 == pytest.approx(0.2, abs=0.02)  # 3.5 standard errors


@pytest.mark.parametrize(
    ("task", "size", "settings", "code", "key"),
    [
        ("chain_sums", 1, {}, ErrorCode.DATA_GENERATOR, "data.task"),
        ("chain_sum", 1, {"max_term": 3}, ErrorCode.DATA_GENERATOR, "data.settings.max_term"),
        ("chain_sum", 1, {"min_terms": 0}, ErrorCode.DATA_GENERATOR, "data.settings"),
        ("chain_sum", 5000, {"max_terms": 2, "max_digits": 1}, ErrorCode.DATA_TOO_FEW, "data.size"),
    ],
)
def test_bad_tasks_and_settings_are_refused(
    task: str, size: int, settings: dict[str, Any], code: ErrorCode, key: str
) -> None:
    with refused(code, key=key):
        gym(task, size, settings=settings)


def test_tasks_that_draw_from_sets_give_every_process_the_same_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of a set of texts depends on PYTHONHASHSEED, which is another number in every process."""
    code = (
        "from ulorl.config.data_config import ReasoningGymDataConfig\n"
        "from ulorl.data.problems import load_problems\n"
        "for problem in load_problems(ReasoningGymDataConfig(task='ransom_note', size=3)): print(problem)"
    )
    printed = set()
    for seed in "012":  # with 0 they are drawn in the process itself
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        printed.add(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    (said,) = printed
    assert said.count("Problem(id='ransom_note-0-") == 3
    with refused(ErrorCode.DATA_GENERATOR, key="data.settings.max_note"):
        gym("ransom_note", 1, settings={"max_note": 3})


def test_countdown_refuses_a_setting_with_the_name_of_an_argument() -> None:
    for held_out in (False, True):
        with refused(ErrorCode.DATA_GENERATOR, key="data.settings.held_out"):
            load_problems(CountdownDataConfig(size=20, settings={"held_out": True}), held_out=held_out)


def test_countdown_has_two_sides() -> None:
    data = CountdownDataConfig(size=20, settings={"numbers": [3]})
    train, held_out = load_problems(data), load_problems(data, held_out=True)
    assert len(train) == len(held_out) == 20
    assert not {p.id for p in train} & {p.id for p in held_out}


MATH_TRAIN = {"question": "prompt.0.content", "answer": "reward_model.ground_truth.target", "bad": "skip"}
GSM8K = {"question": "question", "answer_after": "####"}
ROLL = {"question": "prompt", "answer": "ground_truth"}


@pytest.mark.parametrize(
    ("name", "keys", "count", "first", "last"),
    [
        ("eval/aime24.jsonl", {}, 30, "204", "902"),
        ("eval/aime25.jsonl", {}, 30, "70", "240"),
        ("eval/gsm8k_test.jsonl", GSM8K, 1319, "18", "14"),
        ("train/gsm8k_train.jsonl", GSM8K, 7473, "72", "50"),
        ("train/dapo_subset.jsonl", ROLL, 1980, "6", "2000"),
        ("train/deepmath_subset.jsonl", ROLL, 4994, "1", "11"),
        ("train/math_train.parquet", MATH_TRAIN, 7500 - 4, "0", ""),  # four references are empty
        (
            "train/deepscaler_math.json",
            {"bad": "skip"},
            7474 - 4,
            "0",
            r"\left( \frac{8}{5}, -\frac{35}{2} \right)",
        ),  # two empty, two null
    ],
)
def test_real_files(name: str, keys: dict[str, Any], count: int, first: str, last: str) -> None:
    if not (SHARED / name).exists():
        pytest.skip(f"the shared data file {name} is not on this machine")
    problems = load(SHARED / name, **keys)
    assert len(problems) == count
    assert problems[0].answer == first
    assert problems[-1].answer == last or not last


@pytest.mark.parametrize(
    ("spelled", "reference"),
    [("1" + "0" * 400, "1" + "0" * 400), ("0e500", "0"), ("1e22", "1" + "0" * 22), ("4e-05", "0.00004"), ("-0.0", "0")],
)
def test_a_number_as_an_answer_is_written_out(spelled: str, reference: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"problem": "How many?", "answer": {spelled}}}\n')
    assert load(file)[0].answer == reference
