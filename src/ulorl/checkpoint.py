"""A checkpoint is everything a run is, at a step boundary: weights, optimizer, both pools, counters, data cursor.

    checkpoints/step_000010/
        model/                  a transformers folder, tokenizer included
        adapters.safetensors    with LoRA only; model/ is then without them, as it was loaded
        optimizer.safetensors   AdamW's moments by parameter name
        pools.safetensors       tokens, log-probs and versions of every sample held, end to end
        state.json              counters, and what each sample is

Draws are counter-based, so no generator state is kept. Nothing is pickled. A checkpoint is written to a temporary
folder and renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from ulorl.errors import UserError
from ulorl.learner.lora import save_exact
from ulorl.learner.update import Learner
from ulorl.rollout.pools import ExperiencePool, OpenGroup, UnfinishedPool
from ulorl.rollout.scheduler import Scheduler
from ulorl.types import Finish, Problem, Sample, Scored, Segment, Status

FORMAT = 1
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Counters:
    """What a run counts besides its pools."""

    step: int = 0  # steps done
    version: int = 0  # of the weights
    cursor: int = 0  # problems issued
    next_group: int = 0
    problems: str = ""  # fingerprint of the training problems that the cursor counts in


@dataclass(frozen=True)
class Pools:
    unfinished: UnfinishedPool
    experience: ExperiencePool


def save(
    run_dir: Path,
    counters: Counters,
    scheduler: Scheduler,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    *,
    keep: int,
) -> Path:
    """Write one checkpoint and drop all but the newest `keep`. Returns its folder."""
    final = run_dir / "checkpoints" / f"step_{counters.step:06d}"
    partial = final.with_name(final.name + ".partial")
    for leftover in (partial, final):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    save_exact(learner.model, partial)
    tokenizer.save_pretrained(partial / "model")
    learner.save_optimizer(partial / "optimizer.safetensors")
    meta, arrays = _dump_pools(scheduler)
    save_file(arrays, partial / "pools.safetensors")
    (partial / "state.json").write_text(
        json.dumps({"format": FORMAT, "counters": asdict(counters), **meta}), encoding="utf-8"
    )
    _sync(partial)
    os.replace(partial, final)
    for old in _all(run_dir)[:-keep]:
        shutil.rmtree(old)
    return final


def latest(run_dir: Path) -> Path:
    """The newest whole checkpoint. Raises UserError when there is none."""
    found = _all(run_dir)
    if not found:
        raise UserError(f"{run_dir}: no checkpoint to resume from; start it again with `ulorl train ... --overwrite`")
    return found[-1]


def load(folder: Path, group: int) -> tuple[Counters, Pools]:
    """Counters and pools; the learner reads its own files from `folder`. Raises UserError for a damaged or foreign
    checkpoint."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise UserError(f"{folder}: checkpoint format {state['format']}, this version reads format {FORMAT}")
        return Counters(**state["counters"]), _read_pools(state, load_file(folder / "pools.safetensors"), group)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: damaged checkpoint ({type(error).__name__}: {error}); remove it to use the one before"
        ) from None


def _all(run_dir: Path) -> list[Path]:
    return sorted(p for p in (run_dir / "checkpoints").glob("step_*") if p.suffix != ".partial")


def _sync(folder: Path) -> None:
    """Flush every file to disk before the rename makes the checkpoint the newest."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _dump_pools(scheduler: Scheduler) -> tuple[dict[str, Any], Arrays]:
    groups = scheduler.experience.open_groups
    waiting = [scored for group in groups.values() for scored in group.members.values()]
    samples = [*scheduler.unfinished, *(scored.sample for scored in waiting)]
    segments = [segment for sample in samples for segment in sample.segments]
    arrays = {
        "prompts": _joined((s.prompt for s in samples), np.int32),
        "tokens": _joined((s.tokens for s in segments), np.int32),
        "logprobs": _joined((s.logprobs for s in segments), np.float32),
        "versions": _joined((s.versions for s in segments), np.int32),
    }
    meta = {
        "samples": [
            {
                "id": s.id,
                "group": s.group_id,
                "status": s.status,
                "prompt": len(s.prompt),
                "segments": [[len(segment), segment.finish] for segment in s.segments],
            }
            for s in samples
        ],
        "groups": [
            {
                "id": id,
                "problem": asdict(group.problem),
                "members": [
                    {"id": scored.sample.id, "reward": scored.reward, "text": scored.text}
                    for scored in group.members.values()
                ],
            }
            for id, group in groups.items()
        ],
    }
    return meta, arrays


def _read_pools(state: dict[str, Any], arrays: Arrays, group: int) -> Pools:
    samples = {sample.id: sample for sample in _read_samples(state["samples"], arrays)}
    groups = {
        g["id"]: OpenGroup(
            Problem(**g["problem"]),
            {m["id"]: Scored(samples.pop(m["id"]), m["reward"], m["text"]) for m in g["members"]},
        )
        for g in state["groups"]
    }
    return Pools(UnfinishedPool(samples.values()), ExperiencePool(group, groups))


def _read_samples(metas: Iterable[dict[str, Any]], arrays: Arrays) -> Iterable[Sample]:
    prompt_at = token_at = 0
    for meta in metas:
        segments = []
        for length, finish in meta["segments"]:
            part = slice(token_at, token_at + length)
            tokens, logprobs, versions = (arrays[name][part].copy() for name in ("tokens", "logprobs", "versions"))
            segments.append(Segment(meta["id"], tokens, logprobs, versions, Finish(finish)))
            token_at += length
        prompt = arrays["prompts"][prompt_at : prompt_at + meta["prompt"]].copy()
        prompt_at += meta["prompt"]
        yield Sample(meta["id"], meta["group"], prompt, tuple(segments), Status(meta["status"]))
    if token_at != len(arrays["tokens"]) or prompt_at != len(arrays["prompts"]):
        raise ValueError("the samples' lengths do not add up to the stored tokens")


def _joined(arrays: Iterable[NDArray[Any]], dtype: type) -> NDArray[Any]:
    parts = list(arrays)
    return np.concatenate(parts) if parts else np.empty(0, dtype)
