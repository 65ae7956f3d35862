"""Certainly bad input: configurations, data files, model and run folders, made from good ones by one mutation each.

A mutation knows which place a message has to name. `python tests/helpers/bad_inputs.py` runs thousands of them through
the command's entry point in this process, and some through the real command.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin
from unittest.mock import patch

from pydantic.fields import FieldInfo

from paths import ROOT
from ulorl.config.fields import StrictConfig
from ulorl.config.tree import Config
from ulorl.config.unions import variants_of

RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
COUNTDOWN = ROOT / "recipes" / "countdown.toml"


@dataclass(frozen=True)
class Case:
    """What the command is given, and what its message must hold."""

    arguments: tuple[str, ...]
    says: tuple[str, ...]
    name: str = ""


Outcome = tuple[Any, str, str]  # exit code, output, errors
Mutation = Callable[[random.Random, Path], Case]


def cases(mutations: Sequence[Mutation], count: int, folder: Path, seed: int = 0) -> Iterator[Case]:
    """`count` cases, the mutations in turn; a case's files lie in a folder of its own below `folder`,
    which goes when the next case is asked for."""
    for number in range(count):
        mutation = mutations[number % len(mutations)]
        place = folder / f"{number}"
        place.mkdir()
        yield replace(mutation(random.Random(f"{seed} {number}"), place), name=mutation.__name__)
        shutil.rmtree(place)


def run(arguments: Sequence[str]) -> Outcome:
    """Exit code, output and errors of the command, in this process."""
    from ulorl.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with patch("sys.argv", ["ulorl", *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            main.main()
        except SystemExit as end:
            code = end.code  # type: ignore[assignment]
        except Exception:
            traceback.print_exc()
    return code, out.getvalue(), err.getvalue()


def run_command(arguments: Sequence[str]) -> Outcome:
    """The same, of the real command in a process of its own."""
    command = [sys.executable, "-m", "ulorl", *arguments]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=env, timeout=240)
    return done.returncode, done.stdout, done.stderr


def complaint(case: Case, result: Outcome) -> str | None:
    """What is wrong with how the command took a bad input; None when it took it as it should."""
    code, out, err = result
    errors = sum(line.startswith("error:") for line in err.splitlines())
    unsaid = [text for text in case.says if text not in err]
    faults = {
        f"exit code {code}": code != 2,
        "a traceback": "Traceback" in err,
        f"{errors} lines begin with error:": errors != 1,
        f"not said: {unsaid}": unsaid,
        "something on the output": out,
    }
    found = [fault for fault, is_so in faults.items() if is_so]
    return f"{case.name} {case.arguments}: {'; '.join(found)}\n{err[-1500:]}" if found else None


def toml(tree: dict[str, Any], prefix: str = "") -> str:
    """A tree as TOML, a line for each leaf."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            lines.append(toml(value, f"{prefix}{key}."))
        else:
            lines.append(f"{prefix}{key} = {literal(value)}")
    return "\n".join(lines)


def literal(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if value == float("inf"):
        return "inf"
    return json.dumps(value)


# Configurations


Kinds = tuple[str, ...]  # overrides


class Leaf(NamedTuple):
    """A key of the configuration. kinds: the overrides that choose the kinds it goes with."""

    field: FieldInfo
    kinds: Kinds


def leaves(section: type[StrictConfig] = Config, prefix: str = "", kinds: Kinds = ()) -> Iterator[tuple[str, Leaf]]:
    """Every key of the configuration, of every kind."""
    for name, field in section.model_fields.items():
        variants = variants_of(field.annotation)
        for kind, variant in variants.items():
            chosen = (*kinds, f"{prefix}{name}.kind={kind}") if kind else kinds
            yield from leaves(variant, f"{prefix}{name}.", chosen)
        if not variants:
            yield f"{prefix}{name}", Leaf(field, kinds)


LEAVES = dict(leaves())  # of a key that several kinds have: as the last one has it
SECTIONS = sorted({key.rpartition(".")[0] for key in LEAVES} - {""})
WRONG: dict[Any, list[Any]] = {  # values that no key of this type takes
    int: [1.5, 3.0, "3", "many", True, [1], {"x": 1}, 10**25],
    float: ["0.5", "fast", True, [0.5], {"x": 1}],
    str: [3, 0.5, True, ["x"], {"x": "y"}, "a\0b"],
    bool: [0, 1, "true", "yes", [], 0.5],
    tuple: [3, True, {"x": 1}, [{"x": 1}], [[True]]],
    dict: [3, "x", True, ["x"]],
    Literal: ["nonsense", "", 3, True, ["x"]],
}


def given(rng: random.Random, folder: Path, key: str, value: Any, says: Sequence[str] = ()) -> Case:
    """A recipe with one key changed, in a file of its own or on the command line; the recipe has the kinds that the key
    goes with, or not."""
    recipe = rng.choice(RECIPES)
    leaf = LEAVES.get(key) or next((leaf for name, leaf in LEAVES.items() if name.startswith(f"{key}.")), None)
    kinds = leaf.kinds if leaf and rng.random() < 0.8 else ()
    kinds = tuple(kind for kind in kinds if not kind.startswith((f"{key}.", f"{key}=")))
    if rng.random() < 0.5:
        return Case(("check", str(recipe), *kinds, f"{key}={literal(value)}"), tuple(says) or (key,))
    tree: Any = {}
    for part in reversed(key.split(".")):
        tree = {part: tree or value}
    (folder / "more.toml").write_text(toml(tree) if isinstance(value, dict) else f"{key} = {literal(value)}\n")
    more = str(folder / "more.toml")
    return Case(("check", str(recipe), more, *kinds), (*(tuple(says) or (key,)), "more.toml"))


def unknown_key(rng: random.Random, folder: Path) -> Case:
    key = rng.choice([*LEAVES, *SECTIONS])
    section, _, name = key.rpartition(".")
    at = rng.randrange(len(name))
    typo = rng.choice([name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name + "s", name + "_2"])
    bad = f"{section}.{typo}" if section else typo
    if not typo or bad in LEAVES or bad in SECTIONS or typo in Config.model_fields:
        return unknown_key(rng, folder)
    return given(rng, folder, bad, rng.choice([1, "x", True]), (f"{bad}: ",))


def wrong_type(rng: random.Random, folder: Path) -> Case:
    key = rng.choice(list(LEAVES))
    kind = LEAVES[key].field.annotation
    options = [kind, *get_args(kind)]
    kind = next((k for k in map(lambda o: get_origin(o) or o, options) if k in WRONG), tuple)
    value = rng.choice([v for v in WRONG[kind] if key != "model.lora.targets" or v != ["x"]])  # a list of names
    section = key.rpartition(".")[0]
    return given(rng, folder, key, value, (section or key,) if value == "" and section else (key,))


def out_of_range(rng: random.Random, folder: Path) -> Case:
    lows: dict[str, int] = {}  # below the range of every kind that has the key: data.size=0 is right for some
    for key, leaf in leaves():
        for rule in leaf.field.metadata:
            if hasattr(rule, "gt") or hasattr(rule, "ge"):
                low = int(rule.gt if hasattr(rule, "gt") else rule.ge - 1)
                lows[key] = min(low, lows.get(key, low))
    key = rng.choice(list(lows))
    return given(rng, folder, key, lows[key] - rng.choice([0, 0, 1, 5, 1000]))


def above_its_range(rng: random.Random, folder: Path) -> Case:
    tops = {k: r for k, (f, _) in LEAVES.items() for r in f.metadata if hasattr(r, "le") or hasattr(r, "lt")}
    key = rng.choice(list(tops))
    top = getattr(tops[key], "le", None) or tops[key].lt
    return given(rng, folder, key, rng.choice([float("inf"), float(top) + rng.choice([0.001, 0.5, 10])]))


def not_finite(rng: random.Random, _: Path) -> Case:
    key = rng.choice([key for key, (field, _) in LEAVES.items() if field.annotation is float])
    return Case(("check", str(rng.choice(RECIPES)), f"{key}={rng.choice(['nan', 'inf', '-inf'])}"), (key,))


def section_is_no_table(rng: random.Random, folder: Path) -> Case:
    key = rng.choice(SECTIONS)
    return given(rng, folder, key, rng.choice([3, "x", True, [1], 0.5]))


def value_is_a_section(rng: random.Random, folder: Path) -> Case:
    free = (tuple, dict)
    key = rng.choice([k for k, (field, _) in LEAVES.items() if (get_origin(field.annotation) or 0) not in free])
    return given(rng, folder, f"{key}.deep", 3, (key,))


COMBINATIONS = [  # on countdown.toml: overrides, and what must be said
    (
        "objective.importance=tois",
        "objective.importance: tois needs rollout.segments=1 with rollout.schedule.kind=segment",
    ),
    (
        "objective.importance=tois rollout.segments=1 rollout.schedule.kind=refill",
        "objective.importance: tois needs rollout.segments=1 with rollout.schedule.kind=segment (found "
        "rollout.schedule.kind=refill)",
    ),
    ("rollout.schedule.kind=fifo", "rollout.schedule.kind: expected segment or oversubscribe or refill, found 'fifo'"),
    ("rollout.schedule=refill", "rollout.schedule: expected a table of keys"),
    ("rollout.schedule.kind=refill rollout.schedule.factor=0.9", "rollout.schedule.factor: Input should be greater"),
    ("rollout.schedule.kind=refill rollout.schedule.factor=150", "rollout.schedule.factor: Input should be less"),
    (
        "rollout.schedule.kind=refill rollout.schedule.max_versions=1",
        "rollout.schedule.max_versions: 1 is not possible",
    ),
    (
        "rollout.schedule.batch_tokens=100",
        "rollout.schedule.batch_tokens: goes with rollout.schedule.kind=oversubscribe or refill only",
    ),
    ("objective.importance=sais objective.tis_cap=2.0", "objective.tis_cap"),
    ("objective.entropy.kind=kl_cov", "objective.entropy.kind: kl_cov has no effect with objective.importance=pois"),
    ("objective.min_prefix=true", "objective.min_prefix: goes with objective.importance=sais, tois or decoupled"),
    ("engine.kind=vllm rollout.temperature=0.5 rollout.top_k=5", "engine.kind: vllm with rollout.temperature=0.5"),
    ("engine.kind=vllm rollout.temperature=2.0 rollout.top_p=0.9", "rollout.top_p=1"),
    ("model.dtype=bfloat16 optim.autocast=bfloat16", "optim.autocast: bfloat16"),
    ("model.dtype=bfloat16", "model.dtype=bfloat16: bfloat16 weights of .02 lose steps below 6e-5"),
    ("model.attention=flash_attention_2", "model.attention: flash_attention_2 needs bfloat16"),
    ("optim.layout=packed optim.microbatch_tokens=16385", "optim.microbatch_tokens"),
    ("objective.overlong=soft", "objective.overlong_buffer"),
    ("objective.overlong=soft objective.overlong_buffer=256", "objective.overlong_buffer"),
    ("objective.overlong_buffer=300", "objective.overlong_buffer"),
    ("optim.minibatches=257", "optim.minibatches: 257"),
    ("model.rope.factor=2", "model.rope"),
    ("model.rope.type=yarn", "model.rope.factor"),
    ("model.rope.type=yarn model.rope.factor=2", "model.rope.original_max_position_embeddings"),
    ("model.lora.targets=[]", "model.lora.targets"),
    ('model.lora.targets=[""]', "model.lora.targets"),
    ("engine.kind=vllm engine.vllm.transfer=direct engine.vllm.process=true", "engine.vllm.transfer: direct"),
    ("engine.kind=vllm engine.vllm.transfer=ipc", "engine.vllm.transfer: ipc"),
    ("engine.kind=vllm engine.vllm.transfer=nccl", "engine.vllm.transfer: nccl"),
    ("engine.kind=vllm engine.vllm.devices=[0,1]", "engine.vllm.devices: lists 2"),
    ("reward.kind=function", "reward.function: missing"),
    ("reward.function=a:b", "reward.function: goes with reward.kind=function only"),
    ("engine.vllm.eager=true", "engine.vllm.eager: goes with engine.kind=vllm only"),
    ("reward.kind=numeric reward.verifier.name=x", "reward.verifier.name: goes with reward.kind=generative only"),
    ("reward.kind=reasoning_gym", "reward.kind: reasoning_gym"),
    ('reward.kind=countdown eval.data={kind="files",path="x"}', "eval.data.kind=files"),
    ("data.kind=files reward.kind=math", "data.path: missing"),
    ("data.kind=reasoning_gym", "data.task: missing"),
    ("data.size=0", "data.size: Input should be greater than 0"),
    ("data.template=solve", "data.template"),
    ("eval.data.sizes=3", "eval.data.sizes: unknown key"),
    ("eval.data.size=many", "eval.data.size"),
    ("eval.data.size=0", "eval.data.size: Input should be greater than 0"),
    ("model.device=gpu", "model.device"),
    ("data=3", "data"),
]


def impossible_combination(rng: random.Random, _: Path) -> Case:
    overrides, says = rng.choice(COMBINATIONS)
    return Case(("check", str(COUNTDOWN), f"seed={rng.randrange(100)}", *overrides.split()), (says,))


def segments_that_do_not_divide(rng: random.Random, _: Path) -> Case:
    tokens = rng.randrange(50, 200_000)
    segments = rng.choice([n for n in range(2, 40) if tokens % n] + [tokens + 1])
    overrides = (f"rollout.max_tokens={tokens}", f"rollout.segments={segments}")
    says = f"rollout.segments: {segments} does not divide rollout.max_tokens={tokens}"
    return Case(("check", str(rng.choice(RECIPES)), *overrides), (says,))


def several_at_once(rng: random.Random, folder: Path) -> Case:
    faults = {"optim.lr": -1, "rollout.group": 1, "objective.mpt.tau": 1.5, "engine.slots": 0, "run.dirr": "x"}
    chosen = rng.sample(list(faults), rng.randrange(2, 5))
    (folder / "bad.toml").write_text("\n".join(f"{key} = {literal(faults[key])}" for key in chosen))
    return Case(("check", str(rng.choice(RECIPES)), str(folder / "bad.toml")), (*chosen, "bad.toml"))


def broken_toml(rng: random.Random, folder: Path) -> Case:
    lines = rng.choice(RECIPES).read_text().splitlines()
    at = rng.randrange(len(lines))
    line = lines[at]
    lines[at] = rng.choice(
        ["= 3", "[run", "a b = 3", 'x = "open', "steps = ", "x = [1, 2", "x = 01", "]", line[:-1] + "'"]
    )
    text = "\n".join(lines)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        (folder / "broken.toml").write_text(text)
        return Case(("check", str(folder / "broken.toml")), ("broken.toml: not valid TOML", "(at "))
    return broken_toml(rng, folder)


def repeated_key(rng: random.Random, folder: Path) -> Case:
    (folder / "twice.toml").write_text(f"steps = 3\n[optim]\nlr = 1e-3\nlr = {rng.random()}\n")
    return Case(("check", str(folder / "twice.toml")), ("twice.toml: not valid TOML", "line 4"))


def recipe_not_utf8(rng: random.Random, folder: Path) -> Case:
    raw = bytearray(rng.choice(RECIPES).read_bytes())
    at = rng.randrange(len(raw))
    raw[at:at] = rng.choice([b"\xff", b"\xc3(", b"\xe9t\xe9", b"\xed\xa0\x80"])
    (folder / "latin.toml").write_bytes(raw)
    return Case(("check", str(folder / "latin.toml")), ("latin.toml", "UTF-8"))


def recipe_that_is_none(rng: random.Random, folder: Path) -> Case:
    (folder / "empty.toml").write_text("")
    (folder / "deep.toml").write_text(f"x = {'[' * 100_000}")
    (folder / "long.toml").write_text(f"steps = {'9' * 5000}")
    options = {
        "none.toml": "none.toml: no such recipe",
        ".": "cannot be read",
        "empty.toml": "data: missing",
        "empty.toml/x": "cannot be read",
        "deep.toml": "deep.toml",
        "long.toml": "long.toml",
        "x" * 300: "x" * 100,
    }
    name = rng.choice(list(options))
    return Case(("check", str(folder / name)), (options[name],))


def override_without_value(rng: random.Random, _: Path) -> Case:
    key = rng.choice(list(LEAVES))
    bad = rng.choice([key, f"={key}", f".{key}=1", f"{key}.=1", f"{key}..x=1", f" ={rng.random()}"])
    return Case(("check", str(COUNTDOWN), bad), (bad.strip(),))


CONFIGURATIONS: list[Mutation] = [
    unknown_key, wrong_type, out_of_range, above_its_range, not_finite, section_is_no_table, value_is_a_section,
    impossible_combination, segments_that_do_not_divide, several_at_once, broken_toml, repeated_key, recipe_not_utf8,
    recipe_that_is_none, override_without_value, wrong_type, unknown_key, out_of_range,
]  # fmt: skip


# All of them, counted


def campaign(
    kinds: Sequence[tuple[Sequence[Mutation], int]],
    folder: Path,
    *,
    seed: int = 0,
    take: Callable[[Sequence[str]], Outcome] = run,
) -> tuple[int, list[str]]:
    """Give the command `count` cases of each kind. Returns how many there were, and the complaints about them."""
    total, complaints = 0, []
    for mutations, count in kinds:
        for case in cases(mutations, count, Path(tempfile.mkdtemp(dir=folder)), seed):
            total += 1
            complaints += filter(None, [complaint(case, take(case.arguments))])
    return total, complaints


def main() -> None:
    from bad_anything import complaint_about  # beside this file
    from bad_files import DATA
    from bad_models import MODELS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="in this process")
    parser.add_argument("--commands", type=int, default=50, help="as real commands")
    parser.add_argument("--changes", type=int, default=200, help="anything for any key: refused or accepted")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = 0
    for what, count, take in (("in-process", options.cases, run), ("real commands", options.commands, run_command)):
        started = time.perf_counter()
        kinds = [(CONFIGURATIONS, count - 3 * (count // 10)), (DATA, 2 * (count // 10)), (MODELS, count // 10)]
        with tempfile.TemporaryDirectory() as folder, chdir(folder):  # runs/ of the user's folder is not looked at
            total, complaints = campaign(kinds, Path(folder), seed=options.seed, take=take)
        print(*complaints, sep="\n\n")
        seconds = time.perf_counter() - started
        print(f"{what}: {total} bad inputs, {len(complaints)} not refused as they should be, {seconds:.0f} s")
        failed += len(complaints)
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(tempfile.mkdtemp(dir=folder)) for _ in range(options.changes)]
        found = [*filter(None, (complaint_about(options.seed + n, place) for n, place in enumerate(places)))]
    print(*found, f"{options.changes} changes, {len(found)} neither accepted nor refused", sep="\n")
    sys.exit(bool(failed or found))


if __name__ == "__main__":
    main()
