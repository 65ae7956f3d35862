"""An engine without tokens: which rows decode when, by a latency profile. Time passes from event to event.

A decode step draws one token for every row. Requests enter between two steps, in the order in which they came, and
their prefill stops decoding, as in the embedded engine. When keys and values no longer fit, the row that entered last
is taken out and computed again later, as vLLM does (`recompute`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil, inf, sqrt

from ulorl.engines.padding import SORT_ABOVE, SORT_EVERY
from ulorl.planning.decode_times import DecodeTimes
from ulorl.planning.latency_profile import LatencyProfile

_ROUNDING = 1e-9  # steps: an event at the end of a step must not begin the next one


@dataclass(slots=True)
class Row:
    """A request for `max_new_tokens` that ends after `draws` of them. expected_tokens: of them, 0: unknown.

    prompt, output: its tokens when it was sent. drawn: those of `draws`, up to date while it does not decode. entered:
    the seconds at which it got a slot.
    """

    sample_id: int
    group: int
    prompt: int
    output: int
    max_new_tokens: int
    expected_tokens: int
    draws: int
    drawn: int = 0
    entered: float = 0.0

    @property
    def context(self) -> int:
        """Tokens of the prompt and of the output so far."""
        return self.prompt + self.output + self.drawn


@dataclass(slots=True)
class EngineFigures:
    """What an engine did. seconds are of the simulated clock; row_seconds: of decoding, by row."""

    decode_steps: int = 0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    row_seconds: float = 0.0
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    again_tokens: int = 0  # of prefill_tokens, those that were computed before: carried samples and preempted rows
    preemptions: int = 0
    context_peak: int = 0  # the most tokens in keys and values at once


class SimulatedEngine:
    """An engine of `profile`. times: of decode steps, by the number of rows and the spread of their lengths.

    `time` is the end of the last decode step that was made, and `event` when something happens next: rows end, keys and
    values are full, or rows can enter after the step in progress.
    """

    def __init__(self, profile: LatencyProfile, times: Callable[[int, float], DecodeTimes]) -> None:
        self.figures = EngineFigures()
        self.time = 0.0
        self.event = inf
        self._profile, self._times = profile, times
        self._slots, self._capacity = profile.slots, profile.kv_tokens or inf
        self._queue: deque[Row] = deque()
        self._rows: dict[int, tuple[Row, int]] = {}  # with the number of the step after which each ends; oldest first
        self._ends: list[tuple[int, int]] = []  # these numbers and the ids; a heap, with entries of rows that have left
        self._step = 0
        self._context = 0  # tokens of all rows, with the inputs of the next step
        self._squares = 0  # the sum of their squares
        self._pads = profile.prefill_padding is not None
        self._places: list[int] = []  # the ids of the rows of an engine that pads, in the order of its keys and values
        self._place: dict[int, int] = {}  # where each of them is
        self._extras: dict[int, int] = {}  # entries that a row reads beyond its own, in the place of a longer one
        self._extra = 0  # their sum
        self._idle_step = 0  # the number of the step after which the engine was idle
        self._start = 0.0  # of the next decode step: `time`, and the prefill before it
        self._planned = 0  # steps until the event

    @property
    def rows(self) -> int:
        """The number of rows that decode."""
        return len(self._rows)

    def add(self, row: Row) -> None:
        """Queue a request. `schedule` must be called after the last one."""
        self._queue.append(row)

    def schedule(self, time: float) -> float:
        """Let queued requests enter, at `time` or after the step in progress; return when something happens next."""
        if not self._rows:
            self.time = self._start = max(self.time, time)
            self._idle_step = self._step
        if time <= self.time:
            self._admit()
            self._planned = self._steps_to_event()
        elif self._queue and len(self._rows) < self._slots:
            self._planned = min(self._planned, self._steps_until(time))
        self.event = self._start + self._seconds(self._planned) if self._rows else inf
        return self.event

    def advance(self) -> list[Row]:
        """Make the decode steps up to the event; return the rows that end with it, by sample id."""
        self._decode(self._planned)
        ended = []
        while self._ends and (self._ends[0][0] <= self._step or self._stale(self._ends[0])):
            entry = heappop(self._ends)
            if not self._stale(entry):
                ended.append(self._leave(entry[1]))
        while self._context > self._capacity and len(self._rows) > 1:
            self._queue.appendleft(self._leave(next(reversed(self._rows))))
            self.figures.preemptions += 1
        return ended

    def abort(self, time: float) -> list[Row]:
        """Finish the step in progress at `time`; return all rows: those that decoded, then those that waited."""
        if self._rows and time > self.time:
            self._decode(min(self._planned, self._steps_until(time)))
        rows = [*map(self._leave, [*self._rows]), *self._queue]
        self._queue.clear()
        self._ends.clear()
        self.event = inf
        return rows

    def _admit(self) -> None:
        """Move queued requests into free slots while their keys and values fit. The last token of a request is its
        first decode input, so the others are prefilled; samples of a group that enter together share their prompt."""
        if not self._queue or len(self._rows) >= self._slots:
            return
        prefilled, prompts, copied = [], set(), 0
        while self._queue and len(self._rows) < self._slots:
            row = self._queue[0]
            context = row.context
            if self._rows and self._context + context > self._capacity:
                break
            self._queue.popleft()
            row.entered = self.time
            end = self._step + row.draws - row.drawn
            self._rows[row.sample_id] = row, end
            heappush(self._ends, (end, row.sample_id))
            if self._pads:
                self._place[row.sample_id] = len(self._places)
                self._places.append(row.sample_id)
            self._context += context
            self._squares += context * context
            if row.output or row.drawn:
                self.figures.again_tokens += context - 1
            elif row.group in prompts:
                copied += context - 1
                continue
            else:
                prompts.add(row.group)
            prefilled.append(context - 1)
        if prefilled:
            seconds = self._profile.prefill_seconds(prefilled) + copied * self._profile.copy_seconds
            self.figures.prefill_tokens += sum(prefilled)
            self.figures.prefill_seconds += seconds
            self._start += seconds

    def _steps_to_event(self) -> int:
        """Return the steps until a row ends, or the keys and values of the next step do not fit."""
        while self._ends and self._stale(self._ends[0]):
            heappop(self._ends)
        if not self._rows:
            return 0
        steps = self._ends[0][0] - self._step
        if self._capacity < inf and len(self._rows) > 1:
            steps = min(steps, max(1, int(self._capacity - self._context) // len(self._rows) + 1))
        return steps

    def _steps_until(self, time: float) -> int:
        """Return the steps that have begun by `time`, at least 1."""
        steps = self._decode_times().steps(self._mean_entries(), max(0.0, time - self._start))
        return max(1, ceil(min(steps, self._planned) - _ROUNDING))

    def _decode(self, steps: int) -> None:
        if not steps:
            return
        rows, seconds, figures = len(self._rows), self._seconds(steps), self.figures
        self.time = self._start = self._start + seconds
        checks = (self._step - self._idle_step) // SORT_EVERY
        self._step += steps
        self._squares += (2 * self._context + rows * steps) * steps  # (c + s)^2 = c^2 + 2 c s + s^2
        self._context += rows * steps
        if (self._step - self._idle_step) // SORT_EVERY > checks and self._extra > (SORT_ABOVE - 1) * self._context:
            self._sort()
        figures.decode_steps += steps
        figures.decode_tokens += rows * steps
        figures.decode_seconds += seconds
        figures.row_seconds += rows * seconds
        figures.context_peak = max(figures.context_peak, self._context - rows)

    def _seconds(self, steps: int) -> float:
        return self._decode_times().seconds(self._mean_entries(), steps)

    def _mean_entries(self) -> float:
        """Return the entries that the next decode step reads for a row, in the mean."""
        return (self._context + self._extra) / len(self._rows)

    def _decode_times(self) -> DecodeTimes:
        """Return the times of the rows. Their lengths spread as much as their deviation is of that of lengths that are
        even from 0 to twice the mean, in eighths: each other spread costs a table."""
        rows = len(self._rows)
        if not self._profile.decode.alike:
            return self._times(rows, 1.0)
        ratio = max(0.0, rows * self._squares / (self._context * self._context) - 1)  # of variance and squared mean
        return self._times(rows, min(1.0, round(8 * sqrt(3 * ratio)) / 8))

    def _leave(self, sample: int) -> Row:
        row, end = self._rows.pop(sample)
        row.drawn = row.draws - (end - self._step)
        self._context -= row.context
        self._squares -= row.context * row.context
        if self._pads:
            self._close_gap(row)
        return row

    def _close_gap(self, row: Row) -> None:
        """Let the last row take the place of one that has left, and read as much as that one did from now on."""
        place, reads = self._place.pop(row.sample_id), row.context + self._take_extra(row.sample_id)
        last = self._places.pop()
        if last != row.sample_id:
            self._places[place], self._place[last] = last, place
            self._take_extra(last)
            self._extras[last] = max(0, reads - self._length(last))
            self._extra += self._extras[last]
        if len(self._places) == 1:  # no longer one is left
            self._take_extra(self._places[0])

    def _take_extra(self, sample: int) -> int:
        extra = self._extras.pop(sample, 0)
        self._extra -= extra
        return extra

    def _sort(self) -> None:
        """Order the rows by length, longest first, so that none is in the place of a longer one. Nearly all move."""
        self._places.sort(key=self._length, reverse=True)
        self._place = {sample: place for place, sample in enumerate(self._places)}
        self._extras.clear()
        self._extra = 0
        seconds = self._context * self._profile.copy_seconds
        self.time = self._start = self._start + seconds
        self.figures.decode_seconds += seconds

    def _length(self, sample: int) -> int:
        """Return the tokens of a row that decodes."""
        row, end = self._rows[sample]
        return row.prompt + row.output + row.draws - (end - self._step)

    def _stale(self, entry: tuple[int, int]) -> bool:
        """Whether a row has left before its end."""
        row = self._rows.get(entry[1])
        return row is None or row[1] != entry[0]
