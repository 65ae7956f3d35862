"""Problems of reasoning-gym's tasks, with a training side and a held-out side that share no problem."""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from difflib import get_close_matches
from typing import Any

from ulorl.config.data_config import ReasoningGymDataConfig
from ulorl.data.problem_keys import has_rule, is_held_out, problem_key
from ulorl.data.record_files import first_line
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.types import Problem

# Tasks that draw from sets of texts, whose order depends on the hash seed of the Python process.
HASHED = frozenset({
    "isomorphic_strings", "knight_swap", "list_functions", "polynomial_multiplication", "ransom_note", "word_ladder",
})  # fmt: skip
_HASH_SEED = "PYTHONHASHSEED"
_CHECKED = 100  # entries of which it is checked that they can be stored
_log = logging.getLogger(__name__)


def generate_problems(data: ReasoningGymDataConfig, *, held_out: bool) -> list[Problem]:
    """Return `data.size` distinct questions of one side, in the order in which the task draws them.

    The side is a stable hash of what the question asks in any wording (`problem_keys`), so that sides are
    disjoint for every seed, size and setting. `meta` holds what the scorer needs: task, settings, and the entry as a
    Python literal (JSON would lose its tuples and integer keys). Tasks of `HASHED` are drawn in a process with a fixed
    hash seed: every process would draw other problems, and no run could be resumed. Raises UserError for an unknown
    task or setting, and when the task has too few questions.
    """
    if data.task not in HASHED or not sys.flags.hash_randomization:  # off: PYTHONHASHSEED is 0
        return list(_drawn(data, held_out))
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__, str(int(held_out))],
        input=data.model_dump_json(),
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, _HASH_SEED: "0", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    if done.returncode:
        ended = f"the process that draws its problems ended with code {done.returncode}, for the reason above"
        raise _refusal(f"data.task={data.task}: {ended}")
    found = json.loads(done.stdout)
    if isinstance(found, dict):
        raise UserError(found["message"], code=ErrorCode[found["code"]], key=found["key"])
    return [Problem(**fields) for fields in found]


def _main() -> None:
    """Write the problems that standard input describes as JSON, or the error, to standard output."""
    data, answer = ReasoningGymDataConfig.model_validate_json(sys.stdin.read()), sys.stdout
    with redirect_stdout(sys.stderr):  # what libraries print is no problem
        try:
            found: Any = [dataclasses.asdict(problem) for problem in _drawn(data, sys.argv[1] == "1")]
        except UserError as error:
            found = {"message": str(error), "code": error.code.name, "key": error.key}
    json.dump(found, answer)


def _drawn(data: ReasoningGymDataConfig, held_out: bool) -> Iterator[Problem]:
    dataset = _dataset(data)
    seen: set[str] = set()
    keys: set[str] = set()  # of this side
    if not has_rule(data.task):
        _log.warning("data.task=%s: no rule for what its problems are: only equal questions are kept apart", data.task)
    for index in range(len(dataset)):
        entry = dataset[index]
        question, answer = entry["question"], entry["answer"]
        if question in seen or is_held_out(key := problem_key(data.task, entry)) != held_out:
            continue
        seen.add(question)
        keys.add(key)
        literal = repr(entry)
        if index < _CHECKED and not _survives(entry, literal):
            raise _refusal(f"data.task={data.task}: its entries hold values that cannot be stored with a run")
        meta = {"task": data.task, "settings": data.settings, "entry": literal}
        yield Problem(f"{data.task}-{data.seed}-{index}", question, "" if answer is None else str(answer), meta)
        if len(seen) == data.size:
            if held_out:
                _warn_of_few(data, len(keys))
            return
    side = "held-out" if held_out else "training"
    raise UserError(
        f"data.task={data.task}: {len(dataset)} draws with these data.settings gave {len(seen)} distinct {side} "
        f"questions ({len(keys)} problems, each in one or several wordings), fewer than data.size={data.size}; ask for "
        "fewer, or widen the settings",
        code=ErrorCode.DATA_TOO_FEW,
        key="data.size",
    )


def _warn_of_few(data: ReasoningGymDataConfig, problems: int) -> None:
    """Warn of held-out questions that ask few problems: their accuracy says less than their number suggests."""
    if 2 * problems <= data.size:
        _log.warning(
            "data.task=%s: the %d held-out questions ask only %d problems, in other words or another order; more "
            "problems need wider data.settings",
            data.task, data.size, problems,
        )  # fmt: skip


def _survives(entry: Mapping[str, Any], literal: str) -> bool:
    try:
        return bool(ast.literal_eval(literal) == entry)
    except (ValueError, SyntaxError):
        return False


def _dataset(data: ReasoningGymDataConfig) -> Any:
    """reasoning-gym's dataset, long enough to draw `data.size` questions of either side from a task with repeats."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        text = 'data.kind=reasoning_gym needs reasoning-gym: pip install "ulorl[tasks]"'
        raise UserError(text, code=ErrorCode.EXTRA_MISSING, key="data.kind") from None
    if data.task not in DATASETS:
        raise _refusal(f"data.task={data.task}: reasoning-gym has no such task{_near(data.task, DATASETS)}")
    names = [f.name for f in dataclasses.fields(DATASETS[data.task][1]) if f.name not in ("seed", "size")]
    for name in data.settings:
        if name not in names:
            key = f"data.settings.{name}"
            raise _refusal(f"{key}: {data.task} has no such setting{_near(name, names)}", key)
    draws = 20 * data.size + 200
    try:
        return reasoning_gym.create_dataset(data.task, size=draws, seed=data.seed, **data.settings)
    except (AssertionError, AttributeError, TypeError, ValueError) as error:  # reasoning-gym's ways to refuse settings
        text = f"data.settings: {data.task} refuses {data.settings}: {first_line(error)}"
        raise _refusal(text, "data.settings") from error


def _refusal(text: str, key: str = "data.task") -> UserError:
    return UserError(text, code=ErrorCode.DATA_GENERATOR, key=key)


def _near(name: str, names: Iterable[str]) -> str:
    known = list(names)
    near = get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(sorted(known))}"


if __name__ == "__main__":
    _main()
