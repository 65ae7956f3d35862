"""Seconds of many decode steps at once, in closed form, from the table of a latency profile.

While no sample enters or ends, the rows of an engine are constant, and their mean context grows by one token a step.
At a number of rows the table is a piecewise linear function of context, so that n steps are an area under it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, starmap
from math import inf, sqrt

from ulorl.planning.latency_profile import DecodeTable, interpolate


@dataclass(frozen=True)
class DecodeTimes:
    """Seconds of decode steps at one number of rows.

    The step at context c takes the mean of the table from c - 1/2 to c + 1/2: what the table has at c, unless a point
    of the table is nearer than half a token. So n steps are one area, exactly, and times add up.

    knots: the contexts where a straight line begins, from 0. values, slopes: of the lines there. areas: from 0 to each.
    """

    knots: Sequence[float]
    values: Sequence[float]
    slopes: Sequence[float]
    areas: Sequence[float]

    def seconds(self, context: float, steps: int) -> float:
        """Return the seconds of `steps` steps, the first of them at a mean context of `context` tokens a row."""
        return self._area(context + steps - 0.5) - self._area(context - 0.5)

    def steps(self, context: float, seconds: float) -> float:
        """Return how many steps take `seconds`, with the fraction of the last one."""
        start = context - 0.5
        target = self._area(start) + seconds
        i = max(bisect_right(self.areas, target) - 1, 0)
        left, value, slope = target - self.areas[i], self.values[i], self.slopes[i]
        rate = value + sqrt(max(0.0, value * value + 2 * slope * left))  # of value x + slope x^2 / 2 = left
        end = self.knots[i] + (2 * left / rate if rate else inf)
        return end - start

    def _area(self, x: float) -> float:
        i = max(bisect_right(self.knots, x) - 1, 0)
        width = x - self.knots[i]
        return self.areas[i] + width * (self.values[i] + self.slopes[i] * width / 2)


def decode_times(table: DecodeTable, rows: int, spread: float = 1.0) -> DecodeTimes:
    """Return the times at `rows` rows whose lengths are spread so much (`DecodeTable.spread`).

    The table is interpolated in rows and in context, extended beyond its last points, and nowhere below 0.
    """
    columns = zip(*table.spread(spread), strict=True)
    seconds = [max(0.0, interpolate(table.rows, column, rows)) for column in columns]
    points = list(zip(map(float, table.contexts), seconds, strict=True))
    first, last = _slope(*points[:2]), _slope(*points[-2:])
    if (at_zero := points[0][1] - first * points[0][0]) < 0:  # the first line reaches 0 on its way to no context
        points.insert(0, (points[0][0] - points[0][1] / first, 0.0))
    points.insert(0, (0.0, max(0.0, at_zero)))
    if last < 0:  # the last line reaches 0 on its way to long contexts
        points.append((points[-1][0] - points[-1][1] / last, 0.0))
        last = 0.0
    slopes = [*starmap(_slope, pairwise(points)), last]
    pieces = ((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    knots, values = zip(*points, strict=True)
    return DecodeTimes(knots, values, slopes, list(accumulate(pieces, initial=0.0)))


def _slope(first: tuple[float, float], second: tuple[float, float] | None = None) -> float:
    """Return the slope between two points; 0 for one, or one point twice."""
    if second is None or second[0] == first[0]:
        return 0.0
    return (second[1] - first[1]) / (second[0] - first[0])
