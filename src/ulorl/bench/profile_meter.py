"""Measures a latency profile of an engine, from which the rollout planner predicts steps: seconds of a decode step by
rows and context, of a prefill by tokens, and of giving it new weights.

Attention reads, and a prefill pass computes, as much for a short row as for a longer neighbour. So a decode step is
measured twice: with rows that are equally long, as those of one segment are, and with lengths from 0 to twice their
mean, as carried samples have. In the embedded engine they share up to 16 prompts, as it prefills each of these once and
copies its keys and values; vLLM's rows would share memory, so each has its own prompt. The step in which requests enter
is not counted.

A prefill is measured with one request, which enters while another row decodes, and, where several fit into a pass, with
a full pass of equally long ones at the beginning of a rollout, after new weights; the planner computes the passes of
other lengths as the engine does. Budgets are those of a rollout, so that keys and values have as much memory as there.

The points take turns, so that a slow minute of the machine meets all points alike. Each number is the mean of all its
values without at least a tenth at either end; of three values, that is the median. A rollout is the sum of its steps:
where there are many values, slow periods of a shared machine count nearly as much as in a rollout, and a single pause
does not count. More rows, context or tokens never make a pass faster, so where means fall they are noise, and
neighbours get their common mean.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulorl.bench.rising_tables import rising, rising_table
from ulorl.engines.engine import Engine
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.planning.latency_profile import ASSUMPTION, DecodeTable, LatencyProfile, TokenTable
from ulorl.rng import sample_seed
from ulorl.types import Request, Sampling, Tokens

DEFAULT_SAMPLING = Sampling()
_LENGTHS = 16  # of rows that decode together, at most
_POINT_SECONDS = 0.1  # of decode steps, unless they need more contexts than an eighth of a row
_PREFILL_STEPS = 3  # decode steps after a prefill, to know what is not prefill


@dataclass(frozen=True)
class Grid:
    """What is measured: rows x contexts, and prefills of so many tokens. max_tokens: of a row. steps: decode steps of a
    point in a round, at least: of short ones there are more, because the first ones after a prefill are slower."""

    rows: Sequence[int]
    contexts: Sequence[int]
    prefill: Sequence[int]
    max_tokens: int
    rounds: int = 3
    steps: int = 8


def grid(slots: int, max_tokens: int, *, quick: bool = False) -> Grid:
    """Return the grid for `slots` rows of up to `max_tokens` tokens: powers of 2 and halves between them.

    quick: fewer points, and a round less.
    """
    rows = {min(slots, number) for power in range(slots.bit_length() + 1) for number in (2**power, 3 * 2**power)}
    if quick:
        rows = {min(slots, 2**power) for power in range(slots.bit_length() + 1)}
    lengths = [max(1, max_tokens * share // 32) for share in (1, 4, 8, 16, 28)]
    contexts = lengths[1::2] + lengths[-1:] if quick else lengths[1:]
    return Grid(sorted(rows), sorted(set(contexts)), sorted(set(lengths)), max_tokens, rounds=2 if quick else 3)


@dataclass(frozen=True)
class Subject:
    """The engine to measure. weights: what `load_weights` is given. vocabulary: of its model.

    slots, prefill_tokens: the engine's, for the profile. prefill_padding: the embedded engine's (`engines.padding`),
    None for another. kv_tokens: whose keys and values fit into its memory; 0: its cache grows with its rows. name: of
    the model and its dtype. sampling: how tokens are drawn.
    """

    engine: Engine
    name: str
    vocabulary: int
    slots: int
    prefill_tokens: int
    prefill_padding: int | None
    weights: Callable[[], Iterable[tuple[str, Tensor]]]
    kv_tokens: int = 0
    sampling: Sampling = DEFAULT_SAMPLING


class ProfileMeter:
    """Measures `subject` at every point of `grid`, one after the other in rounds; anything else may run between two
    points. about: of `machine_facts.facts`. Begin with `warm_up`."""

    def __init__(self, subject: Subject, grid: Grid, about: dict[str, Any]) -> None:
        self._subject, self._grid, self._about = subject, grid, about
        points = product(grid.rows, grid.contexts, (False, True) if self._pads else (False,))
        self._decode: dict[tuple[int, int, bool], list[float]] = {self._decode_point(*point): [] for point in points}
        self._prefill: dict[tuple[int, int], list[float]] = {
            (tokens, requests): [] for tokens in grid.prefill for requests in {1, self._full_pass(tokens)}
        }
        self._sync: list[float] = []
        self._copy: list[float] = []
        self._steps = dict.fromkeys(grid.rows, grid.steps)
        self._points = self._all_points()
        self._measured = 0  # points, over all rounds
        self._prefills = 0  # prompts that were made for prefills: a prefix cache would know one that comes again
        self.seconds = 0.0  # that all points together took

    @property
    def rounds(self) -> float:
        """How often every point was measured; 1.5: half of them twice."""
        return self._measured / len(self._points)

    def warm_up(self) -> None:
        """Let the engine make what it makes once for each number of rows, and for prefills."""
        least, most = self._grid.steps, self._grid.max_tokens // 8
        for rows in self._grid.rows:
            seconds = min(self._decode_seconds(rows, min(self._grid.contexts), alike=False, steps=2))
            self._steps[rows] = max(least, min(most, math.ceil(_POINT_SECONDS / seconds)))
        for tokens, requests in self._prefill:
            self._prefill_seconds(tokens, requests)

    def measure(self, seconds: float, rounds: float = 1) -> None:
        """Measure points until there are `rounds` rounds that took `seconds`, with what was measured before."""
        while self.rounds < rounds or self.seconds < seconds:
            began = time.perf_counter()
            self._points[self._measured % len(self._points)]()
            self._measured += 1
            self.seconds += time.perf_counter() - began

    def _all_points(self) -> list[Callable[[], None]]:
        copy = self._pads and self._subject.slots > 2 and max(self._grid.contexts) > 1
        return [
            *(partial(self._measure_decode, *point) for point in self._decode),
            *(partial(self._measure_prefill, *point) for point in self._prefill),
            *([self._measure_copy] if copy else []),
            self._measure_sync,
        ]

    def _measure_decode(self, rows: int, context: int, alike: bool) -> None:
        seconds = self._decode_seconds(rows, context, alike=alike, steps=self._steps[rows])
        self._decode[rows, context, alike] += seconds

    def _measure_prefill(self, tokens: int, requests: int) -> None:
        self._prefill[tokens, requests].append(self._prefill_seconds(tokens, requests))

    def _measure_copy(self) -> None:
        self._copy.append(self._copy_seconds(max(self._grid.contexts), self._subject.slots))

    def _measure_sync(self) -> None:
        self._subject.engine.sleep()  # as before a rollout
        started = time.perf_counter()
        self._subject.engine.load_weights(self._subject.weights(), len(self._sync))
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        self._sync.append(time.perf_counter() - started)

    def profile(self) -> LatencyProfile:
        """Return what was measured, after a round or more. No update is: the profile says that it takes no time."""
        grid, subject, about = self._grid, self._subject, self._about
        spread, alike = self._decode_tables()
        where = f"{about['processor']} ({about['capability']}), {about['threads']} threads"
        return LatencyProfile(
            name=f"{subject.name}, {where}",
            decode=DecodeTable(
                rows=tuple(grid.rows),
                contexts=tuple(grid.contexts),
                seconds=_rounded_table(spread),
                alike=_rounded_table(alike) if self._pads else (),
            ),
            prefill=self._prefill_table(),
            prefill_added=self._added_table(),
            prefill_pass_tokens=subject.prefill_tokens,
            prefill_padding=subject.prefill_padding,
            copy_seconds=round(max(0.0, mean_without_extremes(self._copy)), 10) if self._copy else 0.0,
            sync_seconds=_rounded(mean_without_extremes(self._sync)),
            slots=subject.slots,
            kv_tokens=subject.kv_tokens,
            sources={
                **dict.fromkeys(
                    ("decode", "prefill", "copy_seconds", "sync_seconds"), f"measured on {where}, {about['date']}"
                ),
                "learner": f"{ASSUMPTION}: not measured here; without points, the update takes no time",
                "slots": "the engine's setting",
                "engines": "one was measured",
                "kv_tokens": "the memory of the engine that was measured"
                if subject.kv_tokens
                else f"{ASSUMPTION}: not limited; the embedded engine's cache grows with its rows",
            },
        )

    @property
    def _pads(self) -> bool:
        """Whether the engine pads attention, so that a step takes longer where the lengths of its rows are spread."""
        return self._subject.prefill_padding is not None

    def _decode_tables(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the seconds with rows of spread and of equal lengths, [rows, contexts] each.

        They differ only where both are measured: for several rows, in the first columns. Each rises by itself, as
        equally long rows may read less than spread ones of a smaller mean.
        """
        rows, contexts = self._grid.rows, self._grid.contexts
        spread, alike = (
            np.array(
                [[mean_without_extremes(self._decode[self._decode_point(r, c, a)]) for c in contexts] for r in rows]
            )
            for a in (False, self._pads)
        )
        found = alike = rising_table(alike)
        both = sum(2 * context <= self._grid.max_tokens for context in contexts)
        if both and self._pads:
            found = alike.copy()
            found[1:, :both] = rising_table(spread[:, :both])[1:]
        return found, alike

    def _decode_point(self, rows: int, context: int, alike: bool) -> tuple[int, int, bool]:
        """Return what is measured for a point of the table: where rows of twice the mean do not fit, equally long ones
        also for others, as only rows of about the same length have so long a mean."""
        return rows, context, alike or rows == 1 or 2 * context > self._grid.max_tokens

    def _prefill_table(self) -> TokenTable:
        """Return the seconds of a single request."""
        return self._token_table([tokens for tokens, requests in self._prefill if requests == 1], self._single)

    def _added_table(self) -> TokenTable:
        """Return the seconds that one more request adds to a pass: a line from one request to as many as fit."""
        full = {tokens: requests for tokens, requests in self._prefill if requests > 1}

        def added(tokens: int) -> float:
            many = mean_without_extremes(self._prefill[tokens, full[tokens]])
            return added_seconds(self._single(tokens), many, full[tokens])

        return self._token_table(list(full), added)

    def _single(self, tokens: int) -> float:
        return max(0.0, mean_without_extremes(self._prefill[tokens, 1]))

    def _token_table(self, tokens: Sequence[int], seconds: Callable[[int], float]) -> TokenTable:
        return TokenTable(tokens=tuple(tokens), seconds=tuple(map(_rounded, rising([*map(seconds, tokens)]))))

    def _full_pass(self, tokens: int) -> int:
        """Return how many requests of so many tokens a pass has, at least 1."""
        return max(1, min(self._subject.slots, self._subject.prefill_tokens // tokens))

    def _decode_seconds(self, rows: int, context: int, *, alike: bool, steps: int) -> list[float]:
        """Return the seconds of `steps` decode steps of `rows` rows with `context` tokens in the mean."""
        lengths = _spread(max(1, context - (steps + 1) // 2), 1 if alike else min(rows, _LENGTHS))
        # without padding, rows of one length share no prompt: vLLM would store its keys and values only once
        prompts = [self._prompt(lengths[row * len(lengths) // rows], 0 if self._pads else row) for row in range(rows)]
        return self._step_seconds(prompts, steps)[1:]

    def _prefill_seconds(self, tokens: int, requests: int) -> float:
        """Return the seconds to prefill requests of so many tokens that enter together, without the decode step of that
        step: of a single one while another row decodes; of many as at the beginning of a rollout, which has new weights
        and whose first prefill allocates keys and values."""
        if requests > 1:
            self._measure_sync()
        else:
            self._subject.engine.sleep()
            self._step_seconds([self._prompt(2)], 1, stop=self._subject.slots == 1)
        first, *rest = self._step_seconds([self._new_prompt(tokens + 1) for _ in range(requests)], _PREFILL_STEPS)
        return first - median(rest)

    def _copy_seconds(self, tokens: int, rows: int) -> float:
        """Return the seconds to copy a token's keys and values to another row: the prompt of siblings is prefilled once
        and copied to all but the first. Memory for them is there already, from earlier rows."""

        def entry(siblings: int) -> float:
            first, *rest = self._step_seconds([self._prompt(tokens)] * siblings, _PREFILL_STEPS)
            return first - median(rest)

        entry(rows)
        return (entry(rows) - entry(2)) / ((rows - 2) * (tokens - 1))

    def _step_seconds(self, prompts: Sequence[Tokens], steps: int, *, stop: bool = True) -> list[float]:
        subject = self._subject
        seconds = step_seconds(subject.engine, prompts, steps, self._grid.max_tokens, subject.sampling)
        if stop:
            self._subject.engine.abort()
        return seconds

    def _new_prompt(self, tokens: int) -> Tokens:
        self._prefills += 1
        return self._prompt(tokens, self._prefills)

    def _prompt(self, tokens: int, seed: int = 0) -> Tokens:  # the embedded engine computes equal ones only once
        return np.random.default_rng([tokens, seed]).integers(1, self._subject.vocabulary, tokens).astype(np.int32)


def added_seconds(single: float, many: float, requests: int) -> float:
    """Return the seconds that one more request adds to a pass, from those of a pass with 1 and with `requests`."""
    return max(0.0, many - single) / (requests - 1)


def _spread(mean: int, count: int) -> list[int]:
    """Return `count` lengths, evenly spread from 0 to twice their mean."""
    return [max(1, round(mean * 2 * (index + 0.5) / count)) for index in range(count)]


def step_seconds(
    engine: Engine, prompts: Sequence[Tokens], steps: int, max_tokens: int, sampling: Sampling = DEFAULT_SAMPLING
) -> list[float]:
    """Return the seconds until requests, one for each prompt, have all entered and drawn a token with those that decode
    already, and of the `steps` decode steps after that, or of fewer when rows end. Their budgets end at `max_tokens`
    tokens, or later. Raises UserError when the engine never decodes all of them at once."""
    rows, started = engine.pending + len(prompts), time.perf_counter()
    for row, prompt in enumerate(prompts, start=engine.pending):
        budget = max(steps + 2, max_tokens - len(prompt))
        engine.add(Request(row, prompt, budget, sampling, sample_seed(0, row)))
    seconds = list[float]()
    while engine.pending and len(seconds) <= steps:
        drawn = engine.stats.decode_tokens
        engine.step()
        now = time.perf_counter()
        together = engine.stats.decode_tokens - drawn == rows  # vLLM may take several steps to let all rows enter
        if together:
            seconds.append(now - started)
        if together or seconds:
            started = now
    if len(seconds) < 2:
        message = (
            f"the engine does not decode {rows} rows of {max(map(len, prompts))} tokens and more at once: their keys "
            "and values do not fit into its memory; lower engine.slots, or give fewer --tokens"
        )
        raise UserError(message, code=ErrorCode.BENCH_INPUT, key="--tokens")
    return seconds


def mean_without_extremes(values: Sequence[float]) -> float:
    """Return the mean without at least a tenth of the values at either end: one of 3 to 10 values, two of 11 to 20."""
    cut = math.ceil(len(values) / 10) if len(values) > 2 else 0
    return float(np.mean(sorted(values)[cut : len(values) - cut]))


def _rounded(seconds: float) -> float:
    return round(seconds, 7)


def _rounded_table(table: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(_rounded, line)) for line in table.tolist())
