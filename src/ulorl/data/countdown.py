"""Chain countdown, the task of the tiny reasoner ulorl:tiny: its problems, its scorer, and searches that solve them.

The lengths of the searches are long-tailed, as those of reasoning models are.

A problem gives 3 or 4 numbers (1 to 9) and a target, `7,2,7,2>10`. A chain uses each number exactly once, strictly
left to right, with + - *, and keeps every value within 0..50. An output tries chains, a line each, and compares the
result with the target, which it copies. The last line is the answer:

    7-2=5+2=7+7=14,10>
    7+7=14-2=12-2=10,10

The model reads the problem and a newline (`data.template` in a recipe).

Every valid chain of a length is an equally likely origin of a problem, so targets with many solutions are more common.
A stable hash that ignores the order of the numbers separates training and held-out problems.
"""

from __future__ import annotations

import heapq
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement, permutations
from typing import Any, NamedTuple

from ulorl.data.problem_keys import is_held_out as key_is_held_out
from ulorl.data.task_definition import TaskDefinition
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rng import Stream, generator
from ulorl.types import Problem

LARGEST = 50  # no value of a chain is above it, none below 0
SMALLEST_TARGET = 10
REACHES = (math.inf, 16.0, 8.0, 4.0)  # of searchers: the distance at which a chain's weight has fallen to 1/e

_OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
_PROMPT = re.compile(r"([1-9](?:,[1-9])+)>(0|[1-9][0-9]{0,2})\n?")
_ANSWER = re.compile(r"[1-9](?:[-+*][1-9]=[0-9]{1,3})+,[0-9]{1,3}")
_STEP = re.compile(r"([-+*])([1-9])=([0-9]+)")


class Chain(NamedTuple):
    """One attempt, such as `7-2=5+2=7`, and the value that it ends with."""

    text: str
    value: int


class Countdown(TaskDefinition):
    """Chain countdown as a task of `ulorl tiny make` and `data.kind=task`. All its problems are enumerated."""

    # A product of a value within bounds and a digit can leave the bounds: with numbers up to 99 a model can write it.
    words = (*"+-*=,<>\n", *map(str, range(2 * LARGEST)))

    def problems(self, size: int, seed: int, /, *, held_out: bool = False, **settings: Any) -> list[str]:
        """Return the prompts that the function `problems` returns."""
        return [problem.prompt for problem in problems(size, seed, held_out=held_out, **settings)]

    def training_problems(self, size: int, rng: random.Random, /, **settings: Any) -> list[str]:
        """Return `size` problems of the training side, drawn with replacement."""
        pool = _prompts(_counts(settings), held_out=False)
        return rng.choices(list(pool), list(pool.values()), k=size)

    def demonstrate(self, problem: str, rng: random.Random) -> str:
        """Return a search that ends in the answer."""
        return search_trace(_problem(problem), rng)

    def check(self, problem: str, output: str) -> bool:
        """Return whether the last line is a correct answer."""
        return score(_problem(problem), output) == 1.0


def problems(size: int, seed: int, /, *, held_out: bool = False, **settings: Any) -> list[Problem]:
    """Return `size` distinct problems, the same for the same arguments.

    Training and held-out problems never overlap. Settings: `numbers`, a list of 3 and 4, is how many numbers a problem
    may have (default both, in equal shares). Raises UserError for an unknown or impossible setting, and when there are
    fewer than `size` problems.
    """
    counts = _counts(settings)
    available = len(_prompts(counts, held_out))
    if not 0 <= size <= available:
        text = f"countdown: {size} problems were asked for, and there are {available} distinct ones"
        raise UserError(text, code=ErrorCode.DATA_TOO_FEW, key="data.size")
    return [_problem(prompt) for prompt in _drawn(counts, held_out, size, seed)]


def score(problem: Problem, text: str) -> float:
    """Return 1.0 when the last line of `text` is a correct answer to `problem`, else 0.0.

    `text` is the decoded output without special tokens; the caller judges whether the output ended by itself. The line
    must use each number of the prompt exactly once, be correct in every step, keep values within 0..50, and end with
    its value and the target, which must be equal. Raises UserError when the prompt of the problem is malformed, but
    for no `text`.
    """
    numbers, target = parse_prompt(problem.prompt)
    line = text.rpartition("\n")[2]
    if not _ANSWER.fullmatch(line):
        return 0.0
    chain, _, copied = line.partition(",")
    value, used = int(chain[0]), [int(chain[0])]
    for operation, operand, result in _STEP.findall(chain):
        value = _OPERATIONS[operation](value, int(operand))
        used.append(int(operand))
        if result != str(value) or not 0 <= value <= LARGEST:
            return 0.0
    return float(sorted(used) == sorted(numbers) and value == target and copied == str(target))


def search_trace(problem: Problem, rng: random.Random) -> str:
    """Return a search that tries distinct chains until one reaches the target. It always scores 1.

    Searchers differ in skill: for some every order of the chains is equally likely, others tend to try first what
    comes close to the target (a Plackett-Luce order with weights exp(-distance / REACH)). Raises UserError when no
    chain reaches the target.
    """
    numbers, target = parse_prompt(problem.prompt)
    reach = rng.choice(REACHES)
    found = chains(tuple(sorted(numbers)))
    lines = []
    for chain in sorted(found, key=lambda c: abs(c.value - target) / reach + math.log(rng.expovariate(1))):
        lines.append(f"{chain.text},{target}")
        if chain.value == target:
            return "\n".join(lines)
        lines[-1] += ">" if chain.value > target else "<"
    raise UserError(f"countdown problem {problem.prompt.strip()!r} has no solution", code=ErrorCode.REWARD_PROBLEM)


def parse_prompt(prompt: str) -> tuple[tuple[int, ...], int]:
    """Return the numbers and the target of a prompt such as `7,2,7,2>10`. Raises UserError for any other text."""
    match = _PROMPT.fullmatch(prompt)
    if not match:
        text = f"not a countdown problem: {prompt!r}; expected numbers and a target, such as 7,2,7,2>10"
        raise UserError(text, code=ErrorCode.REWARD_PROBLEM)
    return tuple(map(int, match[1].split(","))), int(match[2])


def is_held_out(numbers: Sequence[int], target: int) -> bool:
    """Return whether a problem is on the held-out side: a hash of its sorted numbers and its target."""
    return key_is_held_out(f"{','.join(map(str, sorted(numbers)))}>{target}")


@lru_cache(maxsize=1024)
def chains(numbers: tuple[int, ...]) -> tuple[Chain, ...]:
    """Return all valid chains of `numbers`, each once, in a fixed order."""
    found: list[Chain] = []
    for order in sorted(set(permutations(numbers))):
        partial = [Chain(str(order[0]), order[0])]
        for operand in order[1:]:
            partial = [
                Chain(f"{chain.text}{symbol}{operand}={value}", value)
                for chain in partial
                for symbol, operate in _OPERATIONS.items()
                if 0 <= (value := operate(chain.value, operand)) <= LARGEST
            ]
        found += partial
    return tuple(found)


@lru_cache(maxsize=4)
def _prompts(counts: tuple[int, ...], held_out: bool) -> dict[str, float]:
    """The distinct prompts of one side of the split, each with the probability (not normalised) of drawing it."""
    pool: dict[str, float] = {}
    for count in counts:
        hits = Counter(
            (numbers, chain.value)
            for numbers in combinations_with_replacement(range(1, 10), count)
            for chain in chains(numbers)
            if chain.value >= SMALLEST_TARGET
        )
        hits = Counter({key: n for key, n in hits.items() if is_held_out(*key) == held_out})
        total = hits.total()
        for (numbers, target), n in hits.items():
            orders = _orders(numbers)
            for order in orders:
                pool[f"{order}>{target}"] = n / len(orders) / total
    return pool


@lru_cache(maxsize=4)
def _drawn(counts: tuple[int, ...], held_out: bool, size: int, seed: int) -> tuple[str, ...]:
    rng = generator(Stream.COUNTDOWN, seed)
    # Efraimidis and Spirakis 2006: the smallest of these keys are a weighted draw without replacement.
    keys = {prompt: rng.expovariate(1) / weight for prompt, weight in _prompts(counts, held_out).items()}
    drawn = heapq.nsmallest(size, keys, key=keys.__getitem__)
    rng.shuffle(drawn)  # the draw has the common problems first
    return tuple(drawn)


@lru_cache(maxsize=1024)
def _orders(numbers: tuple[int, ...]) -> list[str]:
    return [",".join(map(str, order)) for order in sorted(set(permutations(numbers)))]


def _problem(prompt: str) -> Problem:
    return Problem(id=f"countdown-{prompt}", prompt=prompt, answer=prompt.partition(">")[2])


def _counts(settings: dict[str, Any]) -> tuple[int, ...]:
    unknown = sorted(settings.keys() - {"numbers"})
    if unknown:
        text = f"countdown: unknown setting {', '.join(unknown)}; the only one is numbers"
        raise UserError(text, code=ErrorCode.DATA_GENERATOR, key=f"data.settings.{unknown[0]}")
    counts = settings.get("numbers", [3, 4])
    if not isinstance(counts, list | tuple) or not counts or not all(n in (3, 4) for n in counts):
        text = f"countdown: numbers must be a list of 3 and 4, found {counts!r}"
        raise UserError(text, code=ErrorCode.DATA_GENERATOR, key="data.settings.numbers")
    return tuple(sorted(set(counts)))
