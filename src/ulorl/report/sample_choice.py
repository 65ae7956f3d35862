"""Chooses the stored samples that a report contains, and cuts long outputs, within a number of bytes.

The same run gives the same choice. What is left out is counted, so that the page can say it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ulorl.report.page_json import size_of
from ulorl.runs.saved_run import SavedRun, read_samples

STEPS = 100  # whose samples are read at most, evenly spaced
CLIP = 4000  # characters of a prompt or an output that are kept
TOKENS = 1200  # tokens with values of their own that are kept
VERDICTS = ("right", "wrong", "truncated", "unscored")
_KINDS = (*VERDICTS, "segments")  # of each kind the next sample is taken in turn; `segments`: of most segments
_CANDIDATES = 16  # of each kind and step

Stored = dict[str, Any]  # a sample as its file has it


@dataclass(frozen=True)
class ReadSamples:
    """What was read of the samples of some steps, in rising order of the steps."""

    lengths: Mapping[int, Sequence[int]]  # by step: output tokens of each sample
    candidates: Mapping[int, Sequence[Sequence[Stored]]]  # by step: for each kind, the samples to take first

    @property
    def count(self) -> int:
        """Return the number of samples that were read."""
        return sum(map(len, self.lengths.values()))


def read_some(run: SavedRun, steps: int = STEPS) -> ReadSamples:
    """Read the stored samples of at most `steps` steps of a run, evenly spaced, outputs cut. Raises UserError when a
    file is damaged."""
    return read_files(spaced(run.sample_files(), steps))


def spaced(files: Sequence[tuple[int, Path]], number: int) -> list[tuple[int, Path]]:
    """Return at most `number` of the files, evenly spaced, the first and the last included."""
    return [files[int(at)] for at in np.linspace(0, len(files) - 1, min(len(files), number)).round()]


def read_files(files: Iterable[tuple[int, Path]]) -> ReadSamples:
    """Read the samples files of some steps, outputs cut. files: step and path. Raises UserError when one is damaged."""
    lengths, candidates = {}, {}
    for step, path in files:
        found = [shown(one, step) for one in read_samples(path)]
        lengths[step] = [int(one.get("tokens") or 0) for one in found]
        candidates[step] = [of_kind[:_CANDIDATES] for of_kind in _of_kinds(found)]
    return ReadSamples(lengths, candidates)


def choose(samples: ReadSamples, limit: int) -> list[Stored]:
    """Return samples of at most `limit` bytes of the page together, in rising order of step and id.

    They are taken in rounds. Each round goes through the steps, spread over the run, and takes from each the next
    right, wrong, truncated and unscored one and the next of most segments. One that does not fit is left out.
    """
    taken: dict[tuple[int, str], Stored] = {}
    size = 0
    for one in _in_turn(samples.candidates):
        key = (one["step"], str(one["sample"]).zfill(12))
        if key in taken:
            continue
        needed = size_of(one)
        if size + needed <= limit:
            taken[key] = one
            size += needed
    return [taken[key] for key in sorted(taken)]


def shown(sample: Mapping[str, Any], step: int, clip: int | None = CLIP) -> Stored:
    """Return a stored sample with its step and verdict, and with its prompt and output cut to `clip` characters; None:
    not cut."""
    output, segments = str(sample.get("output") or ""), list(sample.get("segments") or [])
    kept = {key: value for key, value in sample.items() if key not in ("prompt", "output", "segments", "token_values")}
    tokens = _tokens(sample, TOKENS if clip is not None else None)
    return kept | {
        "step": step,
        "sample": sample.get("sample", "?"),
        "verdict": verdict(sample),
        "prompt": _cut(str(sample.get("prompt") or ""), clip),
        **({"token_values": tokens} if tokens else {"pieces": pieces(output, segments, clip)}),
        "segments": len(segments),
    }


def verdict(sample: Mapping[str, Any]) -> str:
    """Return right, wrong, truncated or unscored."""
    if (sample.get("reward") or 0) > 0:
        return "right"
    if "error" in sample or sample.get("reward", 0) is None:
        return "unscored"
    return "truncated" if sample.get("status") == "truncated" else "wrong"


def pieces(output: str, segments: Sequence[Mapping[str, Any]], clip: int | None) -> list[dict[str, Any]]:
    """Return the output cut where a segment begins: the version, tokens and text of each; one piece without a version
    when the characters of segments were not stored, or are no numbers. A piece that is longer than its share of `clip`
    has its middle left out: `left_out` is the number of these characters, `tail` what follows them."""
    if not segments or any(segment.get("chars") is None for segment in segments):
        segments = [{"version": None, "tokens": 0, "chars": len(output)}]
    most = len(output) if clip is None else max(200, clip // len(segments))
    ends = list(itertools.accumulate(int(s["chars"]) for s in segments))
    found = []
    for segment, start, end in zip(segments, [0, *ends], ends, strict=False):
        piece = {"version": segment["version"], "tokens": segment["tokens"] or 0, "text": output[start:end]}
        if end - start > most:
            half = most // 2
            piece |= {"text": output[start : start + half], "left_out": end - start - 2 * half}
            piece["tail"] = output[end - half : end]
        found.append(piece)
    return found


def _tokens(sample: Mapping[str, Any], most: int | None) -> dict[str, list[Any]] | None:
    """Return the text, version and values of each token of a sample whose tokens are stored one by one, None of
    another. Of a long output the middle is not stored, and of more than `most` tokens it is left out; `index` says
    which are there. A value is None where it was no number."""
    stored, segments = sample.get("token_values"), sample.get("segments") or []
    if not stored or None in stored["chars"] or any(segment["tokens"] is None for segment in segments):
        return None
    output, chars = str(sample.get("output") or ""), stored["chars"]
    start, end = stored.get("left_out") or (len(chars), len(chars))  # the tokens that are not stored
    index = [*range(start), *range(end, end + len(chars) - start)]
    versions = [segment["version"] for segment in segments for _ in range(segment["tokens"])]
    texts = [*_texts(output, chars[:start]), *_texts(output[len(output) - sum(chars[start:]) :], chars[start:])]
    columns = {"index": index, "text": texts, "version": [versions[at] for at in index], **stored}
    places = list(range(len(index)))
    if most is not None and len(places) > most:
        places = places[: most // 2] + places[-(most // 2) :]
    return {key: [columns[key][at] for at in places] for key in columns if key not in ("chars", "left_out")}


def _texts(output: str, chars: Sequence[int]) -> list[str]:
    ends = list(itertools.accumulate(chars))
    return [output[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _cut(text: str, clip: int | None) -> str:
    return text if clip is None or len(text) <= clip else f"{text[: clip // 2]} [...] {text[-(clip // 2) :]}"


def _in_turn(candidates: Mapping[int, Sequence[Sequence[Stored]]]) -> Iterator[Stored]:
    steps = _spread(list(candidates))
    for place in range(_CANDIDATES):
        for step in steps:
            yield from (of_kind[place] for of_kind in candidates[step] if place < len(of_kind))


def _of_kinds(entries: Sequence[Stored]) -> list[list[Stored]]:
    """Return the samples of each kind, in the order in which they are taken: those whose tokens are stored first, then
    those of most segments."""
    ordered = sorted(entries, key=lambda one: ("token_values" not in one, -one["segments"]))
    return [[one for one in ordered if kind in ("segments", one["verdict"])] for kind in _KINDS]


def _spread(steps: Sequence[int]) -> list[int]:
    """Return the steps so that the first few of them are spread over the run: the ends, the middle, the quarters ..."""
    order, gap = [0, len(steps) - 1], len(steps) - 1
    while gap > 1:
        order += range(gap // 2, len(steps), max(1, gap // 2))
        gap = -(-gap // 2)
    return [steps[i] for i in dict.fromkeys([*order, *range(len(steps))]) if 0 <= i < len(steps)]
