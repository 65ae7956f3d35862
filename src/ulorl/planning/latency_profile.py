"""How long an engine and the learner take: what the rollout planner knows about a machine.

A profile is a JSON file, measured by `ulorl bench engine --profile FILE`, or one of the presets of this package:

    {
      "name": "what was measured, where",
      "decode": {"rows": [1, 8, 32], "contexts": [128, 512, 2048], "seconds": [[...], [...], [...]], "alike": [...]},
      "prefill": {"tokens": [128, 1024, 4096], "seconds": [...]},
      "prefill_added": {"tokens": [128, 1024], "seconds": [...]},
      "prefill_pass_tokens": 8192,
      "prefill_padding": 128,
      "sync_seconds": 1.5,
      "learner": {"tokens": [10000, 20000], "seconds": [...]},
      "slots": 32,
      "engines": 1,
      "kv_tokens": 0,
      "workload": {"prompts": 128, "group": 8, "max_tokens": 65536, "prompt_tokens": 200,
                   "mean": 18000, "p95": 55000, "correlation": 0.5},
      "sources": {"decode": "measured", "learner": "assumption", ...}
    }

decode: seconds of a decode step, a line for each number of rows, a column for each context: the mean tokens of a row,
prompt and output so far, its input token included. The rows have lengths that are evenly spread from 0 to twice their
mean; alike: the same of rows that are equally long, for an engine that pads attention; absent: the same times.
prefill: seconds to compute a single request of so many tokens. Requests that enter together share passes.
prefill_added: seconds that one more request of so many tokens adds to a pass; no points: those of a single one without
the part that does not depend on its tokens. prefill_pass_tokens: the most tokens of a pass; 0: no limit.
prefill_padding: of an engine that pads the requests of a pass to the longest one, the most tokens of padding that it
accepts in a pass (`engines.padding`); absent: of one that pads nothing and divides requests between passes.
copy_seconds: to copy the keys and values of a token to another row, as such an engine does for siblings that enter
together and where it sorts rows.
sync_seconds: to give new weights to the engines. learner: seconds of an update on so many output tokens; no points: the
update takes no time. slots: rows that an engine decodes at once. engines: their number. kv_tokens: tokens whose keys
and values fit into an engine; 0: as many as there are. workload: what is decoded where nothing else is asked for; may
be absent: mean and p95 of output lengths, cut at max_tokens, and the correlation of siblings (`log_normal_lengths`).
sources: for each of the others, where its numbers come from, or "assumption".
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from ulorl.common.atomic_files import write_text
from ulorl.config.fields import Finding, Natural, Positive, RefusedKeys, StrictConfig
from ulorl.config.key_messages import findings_of
from ulorl.config.layering import merged
from ulorl.config.unions import variants_of
from ulorl.engines.padding import padded_passes
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

ASSUMPTION = "assumption"
SOURCED = ("decode", "prefill", "sync_seconds", "learner", "slots", "engines", "kv_tokens")
_PRESETS = resources.files("ulorl.planning") / "presets"

Seconds = Annotated[float, Field(ge=0)]
Counts = Annotated[tuple[Positive, ...], Field(strict=False)]
Times = Annotated[tuple[Seconds, ...], Field(strict=False)]


class DecodeTable(StrictConfig):
    """Seconds of a decode step by rows and by context."""

    rows: Counts
    contexts: Counts
    seconds: Annotated[tuple[Times, ...], Field(strict=False)]  # [rows][contexts]
    alike: Annotated[tuple[Times, ...], Field(strict=False)] = ()  # the same, or empty

    @model_validator(mode="after")
    def _check(self) -> DecodeTable:
        findings = [*_order("rows", self.rows, 1), *_order("contexts", self.contexts, 1)]
        for name, lines in (("seconds", self.seconds), ("alike", self.alike or self.seconds)):
            if [len(line) for line in lines] != [len(self.contexts)] * len(self.rows):
                text = f"needs a line for each of {len(self.rows)} rows, with {len(self.contexts)} contexts each"
                findings.append(Finding(name, text, ErrorCode.CONFIG_BAD_VALUE))
        _refuse(findings)
        return self

    def spread(self, spread: float) -> Sequence[Times]:
        """Return the seconds of rows whose lengths are spread so much: 0 equally long, 1 evenly from 0 to twice their
        mean, straight lines between."""
        if not self.alike:
            return self.seconds
        pairs = (zip(*lines, strict=True) for lines in zip(self.alike, self.seconds, strict=True))
        return [tuple(alike + spread * (mixed - alike) for alike, mixed in line) for line in pairs]


class TokenTable(StrictConfig):
    """Seconds by a number of tokens: straight lines between the points, and beyond them."""

    tokens: Counts = ()
    seconds: Times = ()

    @model_validator(mode="after")
    def _check(self) -> TokenTable:
        findings = _order("tokens", self.tokens, 0)
        if len(self.seconds) != len(self.tokens):
            text = f"has {len(self.seconds)} values for {len(self.tokens)} numbers of tokens"
            findings.append(Finding("seconds", text, ErrorCode.CONFIG_BAD_VALUE))
        _refuse(findings)
        return self

    def at(self, tokens: float) -> float:
        """Return the seconds at `tokens`, at least 0; with one point in proportion, without any 0."""
        if not self.tokens:
            return 0.0
        return max(0.0, interpolate(self.tokens, self.seconds, tokens, origin=len(self.tokens) == 1))


class Workload(StrictConfig):
    """Prompts a step, samples a group, and the tokens of prompts and outputs. mean, p95: 0 where they are unknown."""

    prompts: Positive
    group: Positive
    max_tokens: Positive
    prompt_tokens: Positive = 200
    mean: Natural = 0
    p95: Natural = 0
    correlation: Annotated[float, Field(ge=0, le=1)] = 0.0


class LatencyProfile(StrictConfig):
    """The constants of a machine and a model; this module describes the fields."""

    name: str
    decode: DecodeTable
    prefill: TokenTable
    prefill_added: TokenTable = Field(default_factory=TokenTable)
    prefill_pass_tokens: Natural = 0
    prefill_padding: Natural | None = None
    copy_seconds: Seconds = 0
    sync_seconds: Seconds = 0
    learner: TokenTable = Field(default_factory=TokenTable)
    slots: Positive
    engines: Positive = 1
    kv_tokens: Natural = 0
    workload: Workload | None = None
    sources: dict[str, str]

    @model_validator(mode="after")
    def _check(self) -> LatencyProfile:
        sourced = [*SOURCED, *(["workload"] if self.workload else [])]
        missing = [name for name in sourced if not self.sources.get(name, "").strip()]
        text = f'no source of {", ".join(missing)}; say where the numbers come from, or "{ASSUMPTION}"'
        findings = [Finding("sources", text, ErrorCode.CONFIG_MISSING_KEY)] if missing else []
        if not self.prefill.tokens:
            findings.append(Finding("prefill.tokens", "needs at least one point", ErrorCode.CONFIG_BAD_VALUE))
        _refuse(findings)
        return self

    def prefill_seconds(self, requests: Sequence[int]) -> float:
        """Return the seconds to prefill requests of so many tokens that enter together. One of 0 tokens needs none."""
        tokens = [count for count in requests if count]
        if not tokens:
            return 0.0
        most, padding = self.prefill_pass_tokens, self.prefill_padding
        if padding is None:
            passes = -(-sum(tokens) // most) if most else 1
            longest = max(tokens)
            overhead = max(0.0, self.prefill.at(longest) - self.added_seconds(longest))
            return passes * overhead + sum(map(self.added_seconds, tokens))
        tokens.sort(reverse=True)
        # a pass computes as much for each request as for its longest one, which is the first
        parts = ((part.stop - part.start, tokens[part.start]) for part in padded_passes(tokens, most or inf, padding))
        seconds: float = sum(
            self.prefill.at(longest) + (rows - 1) * self.added_seconds(longest) for rows, longest in parts
        )
        return seconds

    def added_seconds(self, tokens: int) -> float:
        """Return the seconds that a request of so many tokens adds to a pass of others."""
        if self.prefill_added.tokens:
            return self.prefill_added.at(tokens)
        alone = 0.0 if len(self.prefill.tokens) == 1 else self.prefill.at(0)
        return max(0.0, self.prefill.at(tokens) - alone)


def linear_decode(base: float, row: float, kv_token: float, *, rows: int, context: int) -> DecodeTable:
    """Return the table of base + row x rows + kv_token x tokens in keys and values, in seconds.

    rows, context: the largest ones of the table, which has no others than these and 1: between them and beyond, it
    agrees with the formula, as that is linear in rows and in context.
    """
    grid = [[base + row * r + kv_token * r * c for c in (1, context)] for r in (1, rows)]
    return DecodeTable(rows=(1, rows), contexts=(1, context), seconds=tuple(map(tuple, grid)))


def presets() -> list[str]:
    """Return the names of the presets."""
    return sorted(entry.name.removesuffix(".json") for entry in _PRESETS.iterdir() if entry.name.endswith(".json"))


def read_profile(name: str, changes: Sequence[Mapping[str, Any]] = ()) -> LatencyProfile:
    """Read a preset by its name, or a file by its path, and lay changes of its keys over it, from left to right.

    Raises UserError that names every wrong key.
    """
    text = (_PRESETS / f"{name}.json").read_text(encoding="utf-8") if name in presets() else _read(Path(name))
    try:
        if changes and isinstance(tree := json.loads(text), dict):
            text = json.dumps(merged(tree, changes))
        return LatencyProfile.model_validate_json(text)
    except ValidationError as error:
        found = findings_of(error, variants_of(LatencyProfile))
        message, key = f"{name}: not a latency profile\n" + "\n".join(f"  {one.line}" for one in found), found[0].key
    except (ValueError, RecursionError) as error:
        message, key = f"{name}: not valid JSON ({error})", ""
    raise _unusable(name, message, key)


def write_profile(profile: LatencyProfile, path: Path) -> None:
    """Write a profile as JSON. Raises OSError."""
    write_text(path, profile.model_dump_json(indent=2) + "\n")


def interpolate(xs: Sequence[float], ys: Sequence[float], x: float, *, origin: bool = False) -> float:
    """Return the value at x of straight lines through the points (xs, ys), with the outermost lines beyond them.

    A single point gives a constant, or the line through 0 with `origin`.
    """
    if len(xs) == 1:
        return ys[0] * x / xs[0] if origin else ys[0]
    i = min(max(bisect_right(xs, x), 1), len(xs) - 1)
    share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + share * (ys[i] - ys[i - 1])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        what = f"no such file; the presets are {', '.join(presets())}"
    except (OSError, ValueError) as error:
        what = f"cannot be read as a UTF-8 text file ({error})"
    raise _unusable(path, f"{path}: {what}")


def _unusable(file: str | Path, message: str, key: str = "") -> UserError:
    message += "\nMeasure a profile with `ulorl bench engine --profile FILE`, or name a preset."
    return UserError(message, code=ErrorCode.PLAN_INPUT, file=file, key=key)


def _order(key: str, values: Sequence[int], least: int) -> list[Finding]:
    if len(values) >= least and all(a < b for a, b in pairwise(values)):
        return []
    text = f"needs at least {least} value" if len(values) < least else "must rise from value to value"
    return [Finding(key, text, ErrorCode.CONFIG_BAD_VALUE)]


def _refuse(findings: Sequence[Finding]) -> None:
    if findings:
        raise RefusedKeys(*findings)
