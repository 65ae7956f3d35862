"""Measures a latency profile of an engine, from which the rollout planner predicts steps: seconds of a decode step by
rows and context, of a prefill by tokens, and of giving it new weights.

All rows of a decode step have the same prompt, so that the embedded engine prefills it once and copies its keys and
values. The step in which requests enter is not counted. Rounds over the whole grid are interleaved, so that a slow
minute of the machine meets all points alike, and each number is a median over the rounds.
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
from ulorl.common.progress import SILENT, ProgressBars
from ulorl.engines.engine import Engine
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import TINY, ModelSource
from ulorl.planning.latency_profile import ASSUMPTION, DecodeTable, LatencyProfile, TokenTable
from ulorl.rng import sample_seed
from ulorl.types import Request, Sampling, Tokens


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
    parts = (8, 1) if quick else (8, 2, 1)
    contexts = sorted({max(8, max_tokens // part) for part in parts})
    return Grid(sorted(rows), contexts, sorted({*contexts, max(4, max_tokens // 4)}), rounds=2 if quick else 3)


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
    with ProgressBars() as bars:
        return measure_profile(subject, grid(slots, max_tokens, quick=quick), about, bars)


def measure_profile(subject: Subject, grid: Grid, about: dict[str, Any], bars: ProgressBars = SILENT) -> LatencyProfile:
    """Measure `subject` at every point of `grid`, interleaved, and return the medians. about: of `machine_facts.facts`.

    The update is not measured: the profile says that its learner takes no time.
    """
    decode: dict[tuple[int, int], list[float]] = {point: [] for point in product(grid.rows, grid.contexts)}
    prefill: dict[int, list[float]] = {tokens: [] for tokens in grid.prefill}
    sync = []
    bar = bars.add("profile", total=(grid.rounds + 1) * (len(decode) + len(prefill)))
    for counted in range(-1, grid.rounds):  # the first round warms up
        for (rows, context), seconds in decode.items():
            found = _decode_seconds(subject, rows, context, grid.steps if counted >= 0 else 1)
            seconds += found if counted >= 0 else []
            bar.advance()
        for tokens, seconds in prefill.items():
            took = _prefill_seconds(subject, tokens)
            seconds += [took] if counted >= 0 else []
            bar.advance()
        started = time.perf_counter()
        subject.engine.load_weights(subject.weights(), counted + 1)
        sync += [time.perf_counter() - started] if counted >= 0 else []
    bar.remove()
    table = [[_rounded(median(decode[rows, context])) for context in grid.contexts] for rows in grid.rows]
    source = f"measured on {about['processor']} ({about['capability']}), {about['threads']} threads, {about['date']}"
    return LatencyProfile(
        name=f"{subject.name}, {about['processor']}, {about['threads']} threads",
        decode=DecodeTable(rows=tuple(grid.rows), contexts=tuple(grid.contexts), seconds=tuple(map(tuple, table))),
        prefill=TokenTable(
            tokens=tuple(prefill), seconds=tuple(_rounded(max(0.0, median(s))) for s in prefill.values())
        ),
        prefill_pass_tokens=subject.prefill_tokens,
        sync_seconds=_rounded(median(sync)),
        slots=subject.slots,
        sources={
            **dict.fromkeys(("decode", "prefill", "sync_seconds"), source),
            "learner": f"{ASSUMPTION}: not measured here; without points, the update takes no time",
            "slots": "the engine's setting",
            "engines": "one was measured",
            "kv_tokens": f"{ASSUMPTION}: not limited; the embedded engine's cache grows with its rows",
        },
    )


def _decode_seconds(subject: Subject, rows: int, context: int, steps: int) -> list[float]:
    """Return the seconds of `steps` decode steps of `rows` rows around a context of `context` tokens."""
    prompt = _prompt(subject, max(1, context - (steps + 1) // 2))
    return _step_seconds(subject.engine, prompt, rows, steps)[1:]


def _prefill_seconds(subject: Subject, tokens: int) -> float:
    """Return the seconds to prefill one request: of the step that it enters in, without the decode step of it."""
    first, *rest = _step_seconds(subject.engine, _prompt(subject, tokens + 1), rows=1, steps=3)
    return first - median(rest)


def _step_seconds(engine: Engine, prompt: Tokens, rows: int, steps: int) -> list[float]:
    """Return the seconds of the step in which the last of `rows` requests with the same prompt has entered, and of the
    `steps` decode steps after that."""
    for row in range(rows):
        engine.add(Request(row, prompt, len(prompt), steps + 1, Sampling(), sample_seed(0, row)))
    seconds = []
    while engine.pending:
        drawn, started = engine.stats.decode_tokens, time.perf_counter()
        engine.step()
        if engine.stats.decode_tokens - drawn == rows:  # vLLM may take several steps to let all rows enter
            seconds.append(time.perf_counter() - started)
    return seconds


def _prompt(subject: Subject, tokens: int) -> Tokens:
    return np.random.default_rng(tokens).integers(1, subject.vocabulary, tokens).astype(np.int32)


def _rounded(seconds: float) -> float:
    return round(seconds, 7)
