"""Stores the finished samples of a step as samples/step_<step>.jsonl, with the versions along each output."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ulorl.common import atomic_files
from ulorl.runs.saved_run import SAMPLES
from ulorl.types import Group, Scored, Tokens

if TYPE_CHECKING:
    from ulorl.learner.observed import TokenValues

TOKENS = 4000  # of one sample whose values are stored; of a longer one the middle is left out

Decode = Callable[[Tokens], str]
_NONE: Mapping[int, Any] = {}


def write_samples(
    run_dir: Path,
    step: int,
    groups: Sequence[Group],
    decode: Decode,
    advantages: Mapping[int, float] = _NONE,
    token_values: Mapping[int, TokenValues] = _NONE,
) -> Path:
    """Store the samples of released groups as samples/step_<step>.jsonl, one JSON object for each. Returns the path.

    `segments` of an object lists the versions along the output: an entry for each segment with its `version`, `tokens`
    and `chars`, its number of characters of `output`; chars add up to len(output).

    decode: turns token ids into text, as it was done for `Scored.text`. advantages, token_values: what the update
    returned, by sample id. A sample that has token values is stored with a list of each, and with the characters and
    log-prob of each token; of more than `TOKENS` the first and the last ones, and `left_out` says which are not there.
    """
    folder = run_dir / SAMPLES
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:06d}.jsonl"
    token_text = cache(lambda token: decode(np.array([token], np.int32)))  # it depends on the id alone
    # Not flushed in every step: the next checkpoint flushes all that it counts on.
    with (
        atomic_files.replacing(path, flush=False) as partial,
        partial.open("w", encoding="utf-8", newline="\n") as lines,
    ):
        for group in groups:
            prompt = decode(group.members[0].sample.prompt) if group.members else ""
            for scored in group.members:
                id = scored.sample.id
                entry = _sample_entry(group, scored, prompt, decode)
                entry |= {"advantage": advantages[id]} if id in advantages else {}
                entry |= _token_entry(scored, token_values[id], decode, token_text) if id in token_values else {}
                lines.write(json.dumps(entry, allow_nan=False) + "\n")
    return path


def _sample_entry(group: Group, scored: Scored, prompt: str, decode: Decode) -> dict[str, Any]:
    sample = scored.sample
    segments = [segment for segment in sample.segments if len(segment)]
    pieces = [decode(segment.tokens) for segment in segments] if len(segments) > 1 else [scored.text] * len(segments)
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
            {"version": int(segment.versions[-1]), "tokens": len(segment), "chars": chars}  # it has one version
            for segment, chars in zip(segments, _spans(scored.text, pieces), strict=True)
        ],
    }


def _token_entry(
    scored: Scored, values: TokenValues, decode: Decode, token_text: Callable[[int], str]
) -> dict[str, Any]:
    """token_text: returns the text of one token."""
    text, tokens = scored.text, scored.sample.tokens
    if len(tokens) <= TOKENS:
        left_out, chars = None, _spans(text, list(map(token_text, tokens.tolist())))
    else:
        left_out = [TOKENS // 2, len(tokens) - TOKENS // 2]
        first, last = tokens[: left_out[0]], tokens[left_out[1] :]
        chars = _spans(text[: len(decode(first))], list(map(token_text, first.tolist())))
        chars += _spans(text[max(0, len(text) - len(decode(last))) :], list(map(token_text, last.tolist())))
    return {
        "token_values": {
            "chars": chars,
            "logprob": _rounded(_kept(scored.sample.logprobs, left_out)),
            "entropy": _rounded(_kept(values.entropy, left_out)),
            "masked": _kept(values.masked, left_out).astype(int).tolist(),
            **({"left_out": left_out} if left_out else {}),
        }
    }


def _kept(values: NDArray[Any], left_out: list[int] | None) -> NDArray[Any]:
    return values if left_out is None else np.delete(values, slice(*left_out))


def _rounded(values: NDArray[np.float32]) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


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
