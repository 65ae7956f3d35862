"""Recorded output lengths, from CSV files, and how many tokens each request of `ulorl bench engine` decodes."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

COLUMNS = ("output_tokens", "response_tokens", "tokens", "length")
WEIGHT = "probability"
PROBLEM = ("source", "problem")  # rows with the same values are samples of one problem
TAIL = math.log(3432 / 792) / 1.2816  # the 90th percentile of a standard normal is 1.2816


@dataclass(frozen=True)
class Lengths:
    """Output lengths as they were recorded, up to their cap, with the probability and the problem of each.

    problems: their numbers; all 0 where none is named.
    """

    name: str
    tokens: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    problems: NDArray[np.int64]

    def draw(self, requests: int, max_tokens: int) -> list[int]:
        """Draw the lengths of `requests` outputs with a fixed seed, scaled so that the longest recorded one is
        `max_tokens`, and rounded up to whole tokens.

        The shape relative to the cap is preserved: ratios of quantiles, the share of outputs that reach the cap, and
        the waste of a padded batch (1 - mean / cap). Absolute lengths are not, and prompts are not scaled, so that they
        count for more here than in the recorded traffic.
        """
        drawn = np.random.default_rng(1).choice(self.tokens, requests, p=self.probabilities)
        return [int(length) for length in -(-drawn * max_tokens // self.tokens.max())]


def log_normal(requests: int, max_tokens: int) -> list[int]:
    """Draw the default lengths with a fixed seed: median a quarter of `max_tokens`, 90th percentile 4.3 medians as in
    DeepSeek-R1's production traffic (792 and 3,432 tokens), so that `max_tokens` cuts 11% of the outputs."""
    lengths = np.exp(np.random.default_rng(1).normal(math.log(max_tokens / 4), TAIL, requests))
    return [math.ceil(length) for length in lengths.clip(1, max_tokens)]


def read_lengths(path: Path) -> Lengths:
    """Read a CSV with a row for each sample, or for each length with its `probability` (any weight).

    A column `problem` says which samples answer the same problem, of the same `source` where there is such a column.
    The column of lengths is the first found of `COLUMNS`. Raises UserError that names the file and the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin a file with a BOM
            rows = csv.DictReader(file)
            column = _column(path, rows.fieldnames or ())
            found = list(_rows(path, rows, column))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _bad(path, f"--lengths {path}: cannot be read as CSV ({error})") from error
    if not found:
        raise _bad(path, f"--lengths {path}: has a header but no rows")
    names, tokens, weights = map(np.array, zip(*found, strict=True))
    if not weights.sum():
        raise _bad(path, f"--lengths {path}: every {WEIGHT} is 0")
    problems = np.unique(names, return_inverse=True)[1]
    return Lengths(path.stem, tokens, weights / weights.sum(), problems)


def _column(path: Path, header: Sequence[str]) -> str:
    for name in COLUMNS:
        if name in header:
            return name
    raise _bad(
        path,
        f"--lengths {path}: the first line names no column of lengths; found {', '.join(header) or 'nothing'}, "
        f"wanted one of {', '.join(COLUMNS)}",
    )


def _bad(path: Path, message: str, line: int | None = None) -> UserError:
    record = "" if line is None else f"{path.name}:{line}"
    return UserError(message, code=ErrorCode.BENCH_INPUT, key="--lengths", file=path, record=record)


def _rows(path: Path, rows: csv.DictReader[str], column: str) -> Iterator[tuple[str, int, float]]:
    """Yield the problem, the length and the weight of each row."""
    named = (
        [name for name in PROBLEM if name in (rows.fieldnames or ())] if "problem" in (rows.fieldnames or ()) else []
    )
    weighted = WEIGHT in (rows.fieldnames or ())
    for row in rows:
        try:
            length, weight = int(row[column]), float(row[WEIGHT]) if weighted else 1.0
        except (TypeError, ValueError):
            length, weight = 0, 0.0
        if not (length > 0 and 0 <= weight < math.inf):
            found = f"{column}={row[column]!r}" + (f", {WEIGHT}={row[WEIGHT]!r}" if weighted else "")
            message = f"--lengths {path}, line {rows.line_num}: {found}; a length is a whole number of tokens above 0"
            message += f", its {WEIGHT} a number not below 0" if weighted else ""
            raise _bad(path, message, rows.line_num)
        yield "\t".join(str(row[name]) for name in named), length, weight
