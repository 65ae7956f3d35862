"""Chain countdown: the tiny reasoner's task. Its output is a search whose length is long-tailed.

A problem gives 3 or 4 numbers (1 to 9) and a target, `7,2,7,2>10`. A chain uses each number exactly once, strictly
left to right, with + - *, and keeps every value within 0..50. An output tries chains, a line each, and compares the
result with the target, which it copies; the last line is the answer:

    7-2=5+2=7+7=14,10>
    7+7=14-2=12-2=10,10

The model reads the problem and a newline (`PROMPT_TEMPLATE`, in a recipe `data.template`).

Every valid chain of a length is an equally likely origin of a problem, so targets with many solutions are more common.
Training and held-out problems are kept apart by a stable hash that ignores the order of the numbers.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement, permutations
from typing import Any, NamedTuple

from ulorl.errors import UserError
from ulorl.rng import Stream, generator
from ulorl.types import Problem

PROMPT_TEMPLATE = "{question}\n"
LARGEST = 50  # no value of a chain is above it, none below 0
SMALLEST_TARGET = 10
HELD_OUT_SHARE = 0.2  # of the distinct problems
REACHES = (math.inf, 16.0, 8.0, 4.0)  # of searchers: the distance at which a chain's weight has fallen to 1/e

_OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
_PROMPT = re.compile(r"([1-9](?:,[1-9])+)>(0|[1-9][0-9]{0,2})\n?")
_ANSWER = re.compile(r"[1-9](?:[-+*][1-9]=[0-9]{1,3})+,[0-9]{1,3}")
_STEP = re.compile(r"([-+*])([1-9])=([0-9]+)")


class Chain(NamedTuple):
    """One attempt, `7-2=5+2=7`, and the value it ends with."""

    text: str
    value: int


def problems(size: int, seed: int, *, held_out: bool = False, **settings: Any) -> list[Problem]:
    """`size` distinct problems, the same for the same arguments; training and held-out ones never overlap.

    Settings: `numbers`, the counts of numbers a problem may have, a list of 3 and 4 (default both, in equal shares).
    Raises UserError for an unknown or impossible setting and when there are fewer than `size` problems.
    """
    pool = _prompts(_counts(settings), held_out)
    if not 0 <= size <= len(pool):
        raise UserError(f"countdown: size={size} is not within 0..{len(pool)}, the number of distinct problems")
    rng = generator(Stream.COUNTDOWN, seed)
    # Efraimidis and Spirakis 2006: the smallest of these keys are a weighted draw without replacement.
    keys = {prompt: rng.expovariate(1) / weight for prompt, weight in pool.items()}
    drawn = heapq.nsmallest(size, keys, key=keys.__getitem__)
    rng.shuffle(drawn)  # the draw has the common problems first
    return [_problem(prompt) for prompt in drawn]


def training_stream(size: int, rng: random.Random) -> list[Problem]:
    """`size` training problems drawn with replacement, for the warm-up."""
    pool = _prompts((3, 4), held_out=False)
    return [_problem(prompt) for prompt in rng.choices(list(pool), list(pool.values()), k=size)]


def score(problem: Problem, text: str) -> float:
    """1.0 when the last line of `text` is a right answer to `problem`, else 0.0; no text makes it raise.

    `text` is the decoded output without special tokens; whether the output ended by itself is the caller's to judge.
    The line must use each number of the prompt exactly once, be right in every step, keep values within 0..50, and
    end with its value and the target, equal. Raises UserError when the problem's own prompt is malformed.
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
    """A search that tries distinct chains until one reaches the target. Always scores 1.

    Searchers differ in skill: to some every order of the chains is equally likely, others tend to try first what
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
    raise UserError(f"countdown problem {problem.prompt.strip()!r} has no solution")


def parse_prompt(prompt: str) -> tuple[tuple[int, ...], int]:
    """`7,2,7,2>10` as its numbers and its target. Raises UserError when it is anything else."""
    match = _PROMPT.fullmatch(prompt)
    if not match:
        raise UserError(f"not a countdown problem: {prompt!r}; expected numbers and a target, such as 7,2,7,2>10")
    return tuple(map(int, match[1].split(","))), int(match[2])


def is_held_out(numbers: Sequence[int], target: int) -> bool:
    """Which side of the split a problem is on: a hash of its sorted numbers and its target."""
    name = f"{','.join(map(str, sorted(numbers)))}>{target}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < HELD_OUT_SHARE * 2**64


@lru_cache(maxsize=1024)
def chains(numbers: tuple[int, ...]) -> tuple[Chain, ...]:
    """All valid chains of `numbers`, each once, in a fixed order."""
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


@lru_cache(maxsize=1024)
def _orders(numbers: tuple[int, ...]) -> list[str]:
    return [",".join(map(str, order)) for order in sorted(set(permutations(numbers)))]


def _problem(prompt: str) -> Problem:
    return Problem(id=f"countdown-{prompt}", prompt=prompt, answer=prompt.partition(">")[2])


def _counts(settings: dict[str, Any]) -> tuple[int, ...]:
    unknown = sorted(settings.keys() - {"numbers"})
    if unknown:
        raise UserError(f"countdown: unknown setting {', '.join(unknown)}; the only one is numbers")
    counts = settings.get("numbers", [3, 4])
    if not isinstance(counts, list | tuple) or not counts or not all(n in (3, 4) for n in counts):
        raise UserError(f"countdown: numbers must be a list of 3 and 4, found {counts!r}")
    return tuple(sorted(set(counts)))
