"""Certainly bad data files, reward modules and generators, beside the configurations of `bad_inputs`."""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs import COUNTDOWN, Case, Mutation

FILES_RECIPE = ("reward.kind=math", "data.kind=files", "data.size=0", "eval.data={}")
GOOD = '{"problem": "7+7", "answer": "14"}\n{"problem": "8+8", "answer": "16"}\n'
Record = dict[str, Any]

# Data files


def good_records(rng: random.Random) -> list[Record]:
    return [
        {"id": f"r{number}", "problem": f"{rng.randrange(1, 9)}+{rng.randrange(1, 9)}", "answer": str(number + 2)}
        for number in range(rng.randrange(2, 12))
    ]


def data_case(path: Path | str, *says: str, overrides: tuple[str, ...] = ()) -> Case:
    return Case(("check", str(COUNTDOWN), *FILES_RECIPE, f"data.path={path}", *overrides), says)


def good_data(folder: Path) -> tuple[str, ...]:
    """A recipe with two problems of a file, which are soon read."""
    (folder / "good.jsonl").write_text(GOOD)
    return ("check", str(COUNTDOWN), *FILES_RECIPE, f"data.path={folder / 'good.jsonl'}")


def without(name: str) -> Callable[[Record], str]:
    return lambda record: json.dumps({key: value for key, value in record.items() if key != name})


def with_field(name: str, value: Any) -> Callable[[Record], str]:
    return lambda record: json.dumps({**record, name: value})


BAD_LINES: dict[str, tuple[Callable[[Record], str], str]] = {  # how, and what is said of it
    "null problem": (with_field("problem", None), "'problem' is null, expected text"),
    "null answer": (with_field("answer", None), "'answer' is null"),
    "no problem": (without("problem"), "no field 'problem'"),
    "no answer": (without("answer"), "no field 'answer'"),
    "misnamed": (lambda r: json.dumps({"Problem": r["problem"], "answer": "1"}), "no field 'problem'"),
    "number for a question": (with_field("problem", 17), "'problem' is 17, expected text"),
    "list for a question": (with_field("problem", ["1+1"]), "expected text"),
    "chat for a question": (with_field("problem", [{"role": "user", "content": "1+1"}]), "expected text"),
    "true for an answer": (with_field("answer", True), "'answer' is true"),
    "list for an answer": (with_field("answer", ["2"]), "expected text or a number"),
    "object for an answer": (with_field("answer", {"value": {"x": [2]}}), "expected text or a number"),
    "empty question": (with_field("problem", ""), "'problem' holds no text"),
    "blank question": (with_field("problem", " \t\n\u00a0"), "'problem' holds no text"),
    "empty answer": (with_field("answer", ""), "'answer' holds no text"),
    "blank answer": (with_field("answer", "\n"), "'answer' holds no text"),
    "list for an id": (with_field("id", [1]), "'id' is [1]"),
    "empty id": (with_field("id", ""), "'id' is"),
    "fraction for an id": (with_field("id", 1.5), "'id' is 1.5"),
    "NUL": (with_field("problem", "1\x00+1"), "'problem' holds a NUL character"),
    "half a surrogate pair": (with_field("problem", "1+1\ud800"), "'problem' is not Unicode text"),
    "half a pair in the answer": (with_field("answer", "\udfff"), "'answer' is not Unicode text"),
    "half a pair in the id": (with_field("id", "\ud800"), "'id' is not Unicode text"),
    "not a number": (lambda _: '{"problem": "1+1", "answer": NaN}', "'answer' is NaN"),
    "infinite": (lambda _: '{"problem": "1+1", "answer": 1e999}', "'answer' is Infinity"),
    "too many digits": (lambda _: '{"problem": "1+1", "answer": ' + "9" * 5000 + "}", "not valid JSON"),
    "nested too deeply": (lambda _: '{"problem": ' + "[" * 100_000, "nested too deeply"),
    "field twice": (lambda _: '{"problem": "1+1", "answer": "2", "answer": "3"}', "'answer' occurs twice"),
    "list": (lambda r: json.dumps(list(r.values())), "expected a JSON object"),
    "text": (lambda r: json.dumps(r["problem"]), "expected a JSON object"),
    "number": (lambda _: "17", "expected a JSON object"),
    "null": (lambda _: "null", "expected a JSON object"),
    "no JSON": (lambda r: f"problem: {r['problem']}", "not valid JSON"),
    "single quotes": (lambda r: str(r), "not valid JSON"),
    "comma at the end": (lambda r: json.dumps(r)[:-1] + ",}", "not valid JSON"),
    "two on a line": (lambda r: json.dumps(r) * 2, "not valid JSON"),
    "control character": (lambda _: '{"problem": "1\x01+1", "answer": "2"}', "not valid JSON"),
    "too long for max_prompt_tokens": (with_field("problem", "1+" * 250 + "1"), "data.max_prompt_tokens=500"),
    "too long for the context": (with_field("problem", "1+" * 200 + "1"), "model's context of 1024"),
}
LIMITS = ("data.max_prompt_tokens=500", "rollout.max_tokens=700")


def bad_line(rng: random.Random, folder: Path) -> Case:
    """One bad record: its line is named, or its number in a file that is one JSON array."""
    what, (spoil, says) = rng.choice(list(BAD_LINES.items()))
    records = good_records(rng)
    at = rng.randrange(len(records))
    lines = [spoil(record) if number == at else json.dumps(record) for number, record in enumerate(records)]
    path, place = folder / "p.jsonl", f"p.jsonl:{at + 1}"
    if rng.random() < 0.2 and "not valid" not in says and what not in ("nested too deeply", "field twice"):
        path, place = folder / "p.json", f"p.json: record {at + 1}"
        lines = [f"[{', '.join(lines)}]"]
    text = rng.choice(["\n", "\r\n"]).join(lines) + rng.choice(["", "\n", "\n\n"])
    path.write_text(rng.choice(["", "\ufeff"]) + text, encoding="utf-8", newline="")
    return data_case(path, place, says, overrides=LIMITS)


def cut_line(rng: random.Random, folder: Path) -> Case:
    """A record that ends early, wherever that is."""
    lines = [json.dumps(record) for record in good_records(rng)]
    at = rng.randrange(len(lines))
    lines[at] = lines[at][: rng.randrange(1, len(lines[at]) - 1)]
    (folder / "p.jsonl").write_text("\n".join(lines))
    return data_case(folder / "p.jsonl", f"p.jsonl:{at + 1}: not valid JSON", "column")


def line_not_utf8(rng: random.Random, folder: Path) -> Case:
    lines = [json.dumps(record).encode() for record in good_records(rng)]
    at = rng.randrange(len(lines))
    cut = rng.randrange(len(lines[at]))
    lines[at] = lines[at][:cut] + rng.choice([b"\xff", b"\xe9", b"\xc3(", b"\x80"]) + lines[at][cut:]
    (folder / "p.jsonl").write_bytes(b"\n".join(lines))
    return data_case(folder / "p.jsonl", f"p.jsonl:{at + 1}: not UTF-8")


def several_bad_lines(rng: random.Random, folder: Path) -> Case:
    """The first ten are named, the others counted."""
    records = [{"problem": "1+1", "answer": "2"} for _ in range(30)]
    bad = sorted(rng.sample(range(30), rng.randrange(2, 25)))
    lines = [json.dumps({"problem": r["problem"]} if n in bad else r) for n, r in enumerate(records)]
    (folder / "p.jsonl").write_text("\n".join(lines))
    more = [f"and {len(bad) - 10} more"] if len(bad) > 10 else []
    return data_case(folder / "p.jsonl", *(f"p.jsonl:{n + 1}: no field" for n in bad[:10]), *more)


def same_id_twice(rng: random.Random, folder: Path) -> Case:
    records = good_records(rng)
    first, second = sorted(rng.sample(range(len(records)), 2))
    records[second]["id"] = records[first]["id"]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, records)))
    return data_case(folder / "p.jsonl", f"p.jsonl:{second + 1}: its id", f"p.jsonl:{first + 1};")


def bad_held_out(rng: random.Random, folder: Path) -> Case:
    """The same faults in the held-out problems, which say so."""
    case = rng.choice([bad_line, cut_line, line_not_utf8])(rng, folder)
    path = next(a for a in case.arguments if a.startswith("data.path=")).partition("=")[2]
    good = folder / "good.jsonl"
    good.write_text(GOOD)
    held_out = f"eval.data={{ path = '{path}', size = 0 }}"
    arguments = [f"data.path={good}" if a.startswith("data.path=") else a for a in case.arguments]
    return Case((*(a for a in arguments if a != "eval.data={}"), held_out), ("eval.data: ", *case.says))


def nothing_left(rng: random.Random, folder: Path) -> Case:
    spoil, _ = rng.choice(list(BAD_LINES.values()))
    (folder / "p.jsonl").write_text("\n".join(spoil(record) for record in good_records(rng)))
    return data_case(folder / "p.jsonl", "p.jsonl", overrides=("data.bad=skip", *LIMITS))


def wrong_keys(rng: random.Random, folder: Path) -> Case:
    """A good file, and keys that do not fit it."""
    records = good_records(rng)
    path = folder / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    override, says = rng.choice([
        ("data.question=prompt.0.content", "p.jsonl:1: no field 'prompt.0.content' (data.question)"),
        ("data.answer=solution", "p.jsonl:1: no field 'solution' (data.answer); the fields are id, problem, answer"),
        ("data.answer_after=####", "p.jsonl:1: field 'answer' lacks '####'"),
        ('data.keep=["level"]', "p.jsonl:1: no field 'level' (data.keep)"),
        (f"data.size={len(records) + 1}", f"fewer than data.size={len(records) + 1}"),
        ("data.system=Be brief.", "data.system"),
        ("data.max_prompt_tokens=2", "problem r0"),
        ("rollout.max_tokens=1024", "rollout.max_tokens"),
        ("eval.data={ split = 'test' }", "eval.data"),
        ("data.path=", "data.path"),
    ])  # fmt: skip
    return data_case(path, says, overrides=(override,))


def bad_file(rng: random.Random, folder: Path) -> Case:
    """A file as a whole."""
    good = "\n".join(map(json.dumps, good_records(rng)))
    contents: dict[str, bytes] = {
        "empty.jsonl": b"",
        "blank.jsonl": b"\n \n\r\n",
        "empty.json": b"",
        "open.json": b'[{"problem": "1+1", "answer": "2"}',
        "noarray.json": b"[]",
        "wide.jsonl": good.encode("utf-16"),
        "nul.jsonl": good.encode() + b"\n" + bytes(rng.randrange(1, 5000)),
        "packed.jsonl.gz": gzip.compress(good.encode()),
        "table.csv": b"problem,answer\n1+1\n",
        "none": good.encode(),
        "fake.parquet": rng.choice([b"", b"PAR1", b"PAR1 no PAR1", good.encode(), rng.randbytes(300)]),
        "long.jsonl": b'{"problem": "' + b"1" * 10**7,
        "zip.jsonl": b"PK\x03\x04" + rng.randbytes(200),
    }
    name = rng.choice([*contents, "missing.jsonl", "no*.jsonl", "", "n" * 300 + ".jsonl", "empty.jsonl/below.jsonl"])
    (folder / "empty.jsonl").write_bytes(b"")
    if name in contents:
        (folder / name).write_bytes(contents[name])
    return data_case(folder / name, name[:50] or str(folder))


def parquet(rng: random.Random, folder: Path) -> Case:
    import pyarrow as pa
    import pyarrow.parquet as pq

    records, path = good_records(rng), folder / "p.parquet"
    at = rng.randrange(len(records))
    kind = rng.choice(["cut", "column", "null", "blank", "bytes"])
    if kind == "column":
        records = [{"problem": r["problem"]} for r in records]
    if kind in ("null", "blank"):
        records[at]["answer"] = None if kind == "null" else " "
    if kind == "bytes":
        records = [{**r, "problem": b"1+1"} for r in records]
    pq.write_table(pa.Table.from_pylist(records), path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[: -rng.randrange(1, 300)])
        return data_case(path, "p.parquet: cannot be read as Parquet")
    number = at + 1 if kind in ("null", "blank") else 1
    return data_case(path, f"p.parquet: record {number}: ")


# Rewards and generators


def bad_reward(rng: random.Random, folder: Path) -> Case:
    name = f"reward_{folder.name}"
    code, function, says = rng.choice([
        ("", f"{name}_none:f", "cannot import"),
        ("x = 1", f"{name}:f", "has no f"),
        ("f = 3", f"{name}:f", "not a function"),
        ("raise ValueError('no')", f"{name}:f", "ValueError: no"),
        ("raise SystemExit(0)", f"{name}:f", "ends Python"),
        ("import no_such_module_anywhere", f"{name}:f", "no_such_module_anywhere"),
        ("def f(:", f"{name}:f", "SyntaxError"),
        ("def f(x, y): return 1", name, "expected module:name"),
        ("def f(x, y): return 1", f"{name}:", "expected module:name"),
        ("def f(x, y): return 1", f"{name}:f.g", "has no g"),
    ])  # fmt: skip
    (folder / f"{name}.py").write_text(code)
    sys.path.insert(0, str(folder))  # as PYTHONPATH would
    return Case(
        ("check", str(COUNTDOWN), "reward.kind=function", f"reward.function={function}"), ("reward.function", says)
    )


def bad_generator(rng: random.Random, _: Path) -> Case:
    overrides, says = rng.choice([
        (("data.size=100000000",), "100000000"),
        (("data.settings={ number = [3] }",), "number"),
        (("data.settings={ numbers = [5] }",), "numbers"),
        (("data.settings={ numbers = 3 }",), "numbers"),
        (("log.project=3",), "log.project"),
        (("model.device=cuda:99",), "model.device=cuda:99"),
    ])  # fmt: skip
    return Case(("check", str(COUNTDOWN), *overrides), (says,))


DATA: list[Mutation] = [
    *[bad_line] * 5, *[cut_line] * 2, line_not_utf8, several_bad_lines, same_id_twice, bad_held_out, nothing_left,
    wrong_keys, bad_file, bad_file, bad_reward, bad_generator,
]  # fmt: skip
