"""Measures a latency profile of an engine, from which the rollout planner predicts steps: seconds of a decode step by
rows and context, of a prefill by tokens, and of giving it new weights.

Attention reads, and a prefill pass computes, as much for a short row as for a longer neighbour. So a decode step is
measured twice: with rows that are equally long, as those of one segment are, and with lengths from 0 to twice their
mean, as carried samples have. They share up to 16 prompts, as the embedded engine prefills each of these once and
copies its keys and values. The step in which requests enter is not counted. A prefill is measured with one request and,
where several fit into a pass, with 3 passes of them, from half of their mean length to one and a half times as long:
carried samples share passes with others of about their length, and a token of a full pass costs more than one that is
added to a short one.
Each point is measured once in a round over all of them, so that a slow minute of the machine
meets all points alike, and each number is a median over the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulorl.bench.engine_bench import PREFILL_TOKENS, check_length
from ulorl.bench.machine_facts import facts
from ulorl.common.progress import ProgressBars
from ulorl.engines.engine import Engine
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import TINY, ModelSource
from ulorl.planning.latency_profile import ASSUMPTION, DecodeTable, LatencyProfile, TokenTable
from ulorl.rng import sample_seed
from ulorl.types import Request, Sampling, Tokens

_LENGTHS = 16  # of rows that decode together, at most
_PASSES = 3  # of a prefill of many requests


@dataclass(frozen=True)
class Grid:
    """What is measured: rows x contexts, and prefills of so many tokens. steps: decode steps of a point in a round."""

    rows: Sequence[int]
    contexts: Sequence[int]
    prefill: Sequence[int]
    rounds: int = 3
    steps: int = 8


def grid(slots: int, max_tokens: int, *, quick: bool = False) -> Grid:
    """Return the grid for `slots` rows of up to `max_tokens` tokens: powers of 2 and halves between them.

    quick: fewer points, and a round less.
    """
    rows = {min(slots, number) for power in range(slots.bit_length() + 1) for number in (2**power, 3 * 2**power)}
    if quick:
        rows = {min(slots, 2**power) for power in range(slots.bit_length() + 1)}
    lengths = [max_tokens // part for part in (8, 4, 2)]  # rows of twice as much must fit
    return Grid(sorted(rows), lengths[:: 2 if quick else 1], lengths, rounds=2 if quick else 3)


@dataclass(frozen=True)
class Subject:
    """The engine to measure. weights: what `load_weights` is given. vocabulary: of its model.

    slots, prefill_tokens: the engine's, for the profile. name: of the model and its dtype.
    """

    engine: Engine
    name: str
    vocabulary: int
    slots: int
    prefill_tokens: int
    weights: Callable[[], Iterable[tuple[str, Tensor]]]


def run(model: str = TINY, slots: int = 32, max_tokens: int = 512, *, quick: bool = False) -> LatencyProfile:
    """Measure the embedded engine with `model`, in float32 with torch's threads.

    slots: rows decoded at once, at most. max_tokens: of prompt and output. quick: a smaller grid. Raises UserError for
    an unusable model and for rows longer than it takes.
    """
    about = facts()
    loaded = load_model(ModelSource(model), dtype=torch.float32, device="cpu")
    check_length(model, loaded, max_tokens)
    engine = TorchEngine(loaded, eos_ids=(), slots=slots, prefill_tokens=PREFILL_TOKENS)
    weights = {name: parameter.detach().clone() for name, parameter in loaded.named_parameters()}
    subject = Subject(
        engine, f"{model}, float32", loaded.config.vocab_size, slots, PREFILL_TOKENS, weights=weights.items
    )
    points = grid(slots, max_tokens, quick=quick)
    meter = ProfileMeter(subject, points, about)
    meter.warm_up()
    with ProgressBars() as bars:
        bar = bars.add("rounds", total=points.rounds)
        for _ in range(points.rounds):
            meter.round()
            bar.advance()
    return meter.profile()


class ProfileMeter:
    """Measures `subject` at every point of `grid`, a round at a time, so that rounds of something else may come between
    them. about: of `machine_facts.facts`. Begin with `warm_up`."""

    def __init__(self, subject: Subject, grid: Grid, about: dict[str, Any]) -> None:
        self._subject, self._grid, self._about = subject, grid, about
        points = product(grid.rows, grid.contexts, (False, True))
        self._decode: dict[tuple[int, int, bool], list[float]] = {at: [] for at in points if at[0] > 1 or not at[2]}
        self._prefill: dict[tuple[int, int], list[float]] = {
            (tokens, requests): [] for tokens in grid.prefill for requests in {1, _requests(subject, tokens)}
        }
        self._sync: list[float] = []
        self.seconds = 0.0  # of the latest round

    def warm_up(self) -> None:
        """Let the engine make what it makes once for each number of rows, and for prefills."""
        for rows in self._grid.rows:
            _decode_seconds(self._subject, rows, min(self._grid.contexts), alike=False, steps=2)
        _prefill_seconds(self._subject, min(self._grid.prefill), 1)

    def measure(self, seconds: float = 0.0) -> None:
        """Measure every point once, and again until `seconds` have passed: steps of milliseconds need many rounds."""
        started = time.perf_counter()
        while True:
            self.round()
            if time.perf_counter() - started >= seconds:
                break

    def round(self) -> None:
        """Measure every point once more."""
        began = time.perf_counter()
        for (rows, context, alike), seconds in self._decode.items():
            seconds += _decode_seconds(self._subject, rows, context, alike=alike, steps=self._grid.steps)
        for (tokens, requests), times in self._prefill.items():
            times.append(_prefill_seconds(self._subject, tokens, requests))
        started = time.perf_counter()
        self._subject.engine.load_weights(self._subject.weights(), len(self._sync))
        self._sync.append(time.perf_counter() - started)
        self.seconds = time.perf_counter() - began

    def profile(self) -> LatencyProfile:
        """Return the medians of all rounds. The update is not measured: the profile says that it takes no time."""
        grid, subject, about = self._grid, self._subject, self._about
        where = f"{about['processor']} ({about['capability']}), {about['threads']} threads"
        return LatencyProfile(
            name=f"{subject.name}, {where}",
            decode=DecodeTable(
                rows=tuple(grid.rows),
                contexts=tuple(grid.contexts),
                seconds=self._decode_table(alike=False),
                alike=self._decode_table(alike=True),
            ),
            prefill=self._prefill_table(),
            prefill_pass_tokens=subject.prefill_tokens,
            sync_seconds=_rounded(median(self._sync)),
            slots=subject.slots,
            sources={
                **dict.fromkeys(("decode", "prefill", "sync_seconds"), f"measured on {where}, {about['date']}"),
                "learner": f"{ASSUMPTION}: not measured here; without points, the update takes no time",
                "slots": "the engine's setting",
                "engines": "one was measured",
                "kv_tokens": f"{ASSUMPTION}: not limited; the embedded engine's cache grows with its rows",
            },
        )

    def _decode_table(self, *, alike: bool) -> tuple[tuple[float, ...], ...]:
        points = [[(rows, context, alike and rows > 1) for context in self._grid.contexts] for rows in self._grid.rows]
        return tuple(tuple(_rounded(median(self._decode[point])) for point in line) for line in points)

    def _prefill_table(self) -> TokenTable:
        """Return the seconds of a single request: the overhead of a pass and its share of full ones."""
        single = {tokens: median(self._prefill[tokens, 1]) for tokens in self._grid.prefill}
        share = {}
        for tokens, requests in self._prefill:
            if requests > 1:
                passes = -(-requests * tokens // self._subject.prefill_tokens)
                many = median(self._prefill[tokens, requests])
                share[tokens] = request_share(single[tokens], many, requests, passes)
        shortest = min(single)
        overhead = max(0.0, single[shortest] - share[shortest]) if shortest in share else 0.0
        seconds = {tokens: overhead + share[tokens] if tokens in share else single[tokens] for tokens in single}
        return TokenTable(tokens=tuple(seconds), seconds=tuple(map(_rounded, seconds.values())))


def request_share(single: float, many: float, requests: int, passes: int) -> float:
    """Return the seconds of a request without the overhead of a pass, from those of a single one, which are overhead +
    share, and of `requests` in `passes` passes, which are passes x overhead + requests x share."""
    return max(0.0, many - passes * single) / (requests - passes)


def _decode_seconds(subject: Subject, rows: int, context: int, *, alike: bool, steps: int) -> list[float]:
    """Return the seconds of `steps` decode steps of `rows` rows with `context` tokens in the mean."""
    lengths = _spread(max(1, context - (steps + 1) // 2), 1 if alike else min(rows, _LENGTHS), share=1.0)
    prompts = [_prompt(subject, length) for length in lengths]
    return _step_seconds(subject.engine, [prompts[row * len(prompts) // rows] for row in range(rows)], steps)[1:]


def _requests(subject: Subject, tokens: int) -> int:
    """Return how many requests of so many tokens are prefilled together, 1 where a pass holds only one; their lengths
    must differ."""
    fit = subject.prefill_tokens // tokens
    return max(1, min(subject.slots, _PASSES * fit, tokens)) if fit > 1 else 1


def _prefill_seconds(subject: Subject, tokens: int, requests: int) -> float:
    """Return the seconds to prefill requests of so many tokens in the mean that enter together, without the decode step
    of that step."""
    prompts = [_prompt(subject, length + 1, requests) for length in _spread(tokens, requests, share=0.4)]
    subject.engine.sleep()  # as before a rollout, whose first prefill allocates keys and values
    first, *rest = _step_seconds(subject.engine, prompts, steps=3)
    return max(0.0, first - median(rest))


def _spread(mean: int, count: int, *, share: float) -> list[int]:
    """Return `count` lengths, evenly spread from (1 - share) of their mean to (1 + share) of it."""
    return [max(1, round(mean * (1 - share + 2 * share * (index + 0.5) / count))) for index in range(count)]


def _step_seconds(engine: Engine, prompts: Sequence[Tokens], steps: int) -> list[float]:
    """Return the seconds until requests, one for each prompt, have all entered and drawn a token, and of the `steps`
    decode steps after that."""
    rows, started = len(prompts), time.perf_counter()
    for row, prompt in enumerate(prompts):
        engine.add(Request(row, prompt, steps + 1, Sampling(), sample_seed(0, row)))
    seconds = []
    while engine.pending:
        drawn = engine.stats.decode_tokens
        engine.step()
        if engine.stats.decode_tokens - drawn == rows:  # vLLM may take several steps to let all rows enter
            now = time.perf_counter()
            seconds.append(now - started)
            started = now
    return seconds


def _prompt(subject: Subject, tokens: int, seed: int = 0) -> Tokens:  # vLLM computes equal ones only once
    return np.random.default_rng([tokens, seed]).integers(1, subject.vocabulary, tokens).astype(np.int32)


def _rounded(seconds: float) -> float:
    return round(seconds, 7)
