"""Stores the finished samples of a step as samples/step_<step>.jsonl, with the versions along each output."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ulorl.common import atomic_files
from ulorl.runs.saved_run import SAMPLES
from ulorl.types import Group, Sample, Scored, Tokens

Decode = Callable[[Tokens], str]


def write_samples(run_dir: Path, step: int, groups: Sequence[Group], decode: Decode) -> Path:
    """Store the samples of released groups as samples/step_<step>.jsonl, one JSON object for each. Returns the path.

    `segments` of an object lists the versions along the output: an entry for each segment (two if the version changes
    within it) with its `version`, `tokens` and `chars`, its number of characters of `output`; chars add up to
    len(output).

    decode: turns token ids into text, as it was done for `Scored.text`.
    """
    folder = run_dir / SAMPLES
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:06d}.jsonl"
    # Not flushed in every step: the next checkpoint flushes all that it counts on.
    with (
        atomic_files.replacing(path, flush=False) as partial,
        partial.open("w", encoding="utf-8", newline="\n") as lines,
    ):
        for group in groups:
            prompt = decode(group.members[0].sample.prompt) if group.members else ""
            for scored in group.members:
                entry = _sample_entry(group, scored, prompt, decode)
                lines.write(json.dumps(entry, allow_nan=False) + "\n")
    return path


def _sample_entry(group: Group, scored: Scored, prompt: str, decode: Decode) -> dict[str, Any]:
    sample = scored.sample
    runs = _version_runs(sample)
    pieces = (
        [decode(sample.tokens[start:end]) for _, start, end in runs] if len(runs) > 1 else [scored.text] * len(runs)
    )
    return {
        "sample": sample.id,
        "group": group.id,
        "problem": group.problem.id,
        "prompt": prompt,
        "output": scored.text,
        "reward": scored.reward,
        **({"answer": scored.answer} if scored.answer != "" else {}),
        **({"error": scored.error} if scored.reward is None else {}),
        "status": sample.status.value,
        "tokens": len(sample),
        "segments": [
            {"version": version, "tokens": end - start, "chars": chars}
            for (version, start, end), chars in zip(runs, _spans(scored.text, pieces), strict=True)
        ],
    }


def _version_runs(sample: Sample) -> list[tuple[int, int, int]]:
    """Return (version, first token, end) of each maximal run of one version within one segment."""
    runs, offset = [], 0
    for segment in sample.segments:
        versions = segment.versions.tolist()
        starts = [i for i in range(len(versions)) if i == 0 or versions[i] != versions[i - 1]]
        ends = [*starts[1:], len(versions)]
        runs += [(versions[a], offset + a, offset + b) for a, b in zip(starts, ends, strict=True)]
        offset += len(versions)
    return runs


def _spans(text: str, pieces: Sequence[str]) -> list[int]:
    """Return the number of characters of `text` that belong to each piece. Pieces that were decoded apart can differ
    from the text where they meet (a character of several tokens is cut, a leading space is lost), so each is searched
    near its expected start; the difference belongs to the piece before."""
    starts, position = [], 0
    for piece in pieces:
        body = piece.strip("\ufffd")
        found = text.find(body[:32], position, position + 40)
        starts.append(position if found < 0 else found)
        position = min(starts[-1] + len(body), len(text))
    edges = [0, *starts[1:], len(text)]
    return [end - start for start, end in itertools.pairwise(edges)] if pieces else []
