"""Checkpoints: the whole state of a run between two steps (weights, optimizer, both pools, counters, data cursor).

    checkpoints/step_000010/
        model/, ...             weights and moments as the learner wrote them (`Learner.save`); model/ has the tokenizer
        pools.safetensors       tokens, log-probs and versions of every sample held, end to end
        state.json              counters, and what each sample is

Draws are counter-based, so no generator state is kept. Nothing is pickled. A checkpoint is written to a folder
`.partial`, flushed to the disk together with the logs that belong to it, and renamed when it is complete. Only the
state.json of a checkpoint that was saved within an evaluation is written again, atomically, after that evaluation.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any, Self

from safetensors.numpy import load_file, save_file
from transformers import PreTrainedTokenizerBase

from ulorl.common import atomic_files
from ulorl.config.training_config import RunConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.learner import Learner
from ulorl.learner.learner_files import reading
from ulorl.rollout import pool_io
from ulorl.rollout.pool_io import Pools
from ulorl.runs.saved_run import METRICS, SAMPLES, sample_files
from ulorl.runs.timeline import TIMELINE
from ulorl.types import Metrics

FORMAT = 2
STATE = "state.json"


@dataclass(frozen=True)
class Counters:
    """The counters of a run: its state besides weights, moments and pools."""

    step: int = 0  # steps done
    version: int = 0  # of the weights
    cursor: int = 0  # problems issued
    next_group: int = 0
    skipped_in_row: int = 0  # mini-batches whose loss or gradient was not finite
    problems: str = ""  # `problem_fingerprint` of the training problems that the cursor indexes
    logged: int = 0  # bytes of metrics.jsonl
    timeline: int = 0  # bytes of timeline.jsonl
    length_bias: tuple[float, ...] = ()  # state of `LengthBias`
    pending: Metrics | None = None  # metrics of this step, which are logged after its evaluation, not done yet


NEW_RUN = Counters()


@dataclass(frozen=True)
class Boundary:
    """The state of a run between two steps. The weights and moments that belong to it are those of the learner, as long
    as no further gradient update was made."""

    counters: Counters
    pools: Pools
    updates: int  # gradient updates made so far


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run in a checkpoint; the learner reads its own files from `folder`."""

    folder: Path
    counters: Counters
    pools: Pools


class CheckpointWriter:
    """Writes the checkpoints of a run and removes old ones. With `run.async_checkpoint` it copies weights and moments
    and writes in a thread; the next checkpoint, and the end of the `with` block, wait for it.

    Raises UserError when the disk is full or the folder cannot be written; an error of the thread is raised by the next
    call. An incomplete checkpoint is removed; earlier checkpoints stay.
    """

    def __init__(self, run_dir: Path, tokenizer: PreTrainedTokenizerBase, run: RunConfig) -> None:
        self.run_dir, self.tokenizer, self.run = run_dir, tokenizer, run
        self._thread = ThreadPoolExecutor(1, "checkpoint") if run.async_checkpoint else None
        self._job: Future[None] | None = None
        self._metrics: Metrics = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._thread.shutdown()

    def save(self, boundary: Boundary, learner: Learner) -> None:
        """Write a checkpoint, unless one of this step exists: a resumed run would write the same. Of one that was saved
        within the evaluation of its step, which is done now, only the counters change."""
        started = time.perf_counter()
        self.wait()
        final = folder(self.run_dir, boundary.counters.step)
        if final.exists():
            self._complete(final, boundary.counters)
            return
        unfinished = final.with_name(final.name + atomic_files.PARTIAL)
        begun = time.perf_counter()
        with self._writing(unfinished):
            rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            learner_files = learner.save(unfinished, background=self._thread is not None)
        job = partial(self._write, boundary, learner_files, unfinished, final, begun)
        if self._thread:
            self._job = self._thread.submit(job)
        else:
            job()
        self._metrics["checkpoint/seconds"] = time.perf_counter() - started

    def wait(self) -> None:
        """Wait until nothing is being written. Raises UserError when the write failed."""
        if self._job:
            job, self._job = self._job, None
            job.result()

    def metrics(self) -> Metrics:
        """Return the metrics of the checkpoint written since the last call: its step, its bytes, the seconds that the
        run waited and those of writing. Empty without one, or while it is still being written. Raises UserError when
        the write failed."""
        if self._job and not self._job.done():
            return {}
        self.wait()
        metrics, self._metrics = self._metrics, {}
        return metrics

    def _write(
        self, boundary: Boundary, learner_files: Future[None], unfinished: Path, final: Path, begun: float
    ) -> None:
        """Write what is not the learner's, wait for the learner's files, and publish the checkpoint. begun: when the
        learner began to write, on the clock of `time.perf_counter`."""
        with self._writing(unfinished):
            learner_files.result()
            self.tokenizer.save_pretrained(unfinished / "model")
            meta, arrays = pool_io.dump(boundary.pools)
            save_file(arrays, unfinished / "pools.safetensors")
            state = {"format": FORMAT, "counters": asdict(boundary.counters), **meta}
            (unfinished / STATE).write_text(json.dumps(state), encoding="utf-8")
            size = sum(path.stat().st_size for path in unfinished.rglob("*") if path.is_file())
            self._sync_logs()
            atomic_files.publish(unfinished, final)
            self._drop_old()
        seconds = time.perf_counter() - begun
        self._metrics |= {
            "checkpoint/step": boundary.counters.step, "checkpoint/bytes": size, "checkpoint/write_seconds": seconds
        }  # fmt: skip

    def _complete(self, final: Path, counters: Counters) -> None:
        """Take note in a checkpoint that its step was evaluated and logged, so that no resumed run does it again."""
        state = _state(final)
        if counters.pending is None and state["counters"].get("pending") is not None:
            with writing(self.run_dir):
                self._sync_logs()
                atomic_files.write_text(final / STATE, json.dumps(state | {"counters": asdict(counters)}))

    @contextmanager
    def _writing(self, unfinished: Path) -> Iterator[None]:
        """Turn an error of the block into a UserError with advice, and remove the unfinished folder after it."""
        try:
            with atomic_files.writing(unfinished, lambda: advice(self.run_dir)):
                yield
        except UserError:
            rmtree(unfinished, ignore_errors=True)  # it takes space that is missing
            raise

    def _sync_logs(self) -> None:
        """Flush everything logged since the checkpoint before this one."""
        before = max((step_of(path) for path in _all(self.run_dir)), default=-1)
        samples = [path for step, path in sample_files(self.run_dir) if step > before]
        named = [self.run_dir / name for name in (METRICS, TIMELINE, SAMPLES)]
        for path in [*samples, *named, self.run_dir]:
            if path.exists():
                atomic_files.sync(path)

    def _drop_old(self) -> None:
        """Remove old checkpoints, and what a process left that was killed while it wrote or removed one."""
        for suffix in (atomic_files.PARTIAL, atomic_files.REMOVED):
            for leftover in (self.run_dir / "checkpoints").glob(f"*{suffix}"):
                rmtree(leftover)
        for old in _all(self.run_dir)[: -self.run.keep_last]:
            if not (step_of(old) and self.run.keep_every and step_of(old) % self.run.keep_every == 0):
                atomic_files.remove(old)


def folder(run_dir: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps."""
    return run_dir / "checkpoints" / f"step_{step:06d}"


def newest(run_dir: Path) -> Path | None:
    """Return the newest complete checkpoint, None without one. Raises UserError when this version cannot read it."""
    found = _all(run_dir)
    if not found:
        return None
    with reading(found[-1]):
        _state(found[-1])
    return found[-1]


def latest(run_dir: Path) -> Path:
    """Return the newest complete checkpoint. Raises UserError without one, or when this version cannot read it."""
    found = newest(run_dir)
    if found is None:
        raise UserError(f"{run_dir}: there is no checkpoint yet", code=ErrorCode.CHECKPOINT_MISSING, file=run_dir)
    return found


def load(folder: Path, group: int) -> Checkpoint:
    """Read the counters and pools of a checkpoint of a run with `group` samples a problem. Raises UserError when it is
    damaged or has another format."""
    with reading(folder):
        state = _state(folder)
        pools = pool_io.read(state, load_file(folder / "pools.safetensors"), group)
        return Checkpoint(folder, Counters(**state["counters"]), pools)


def resume_command(run_dir: Path) -> str:
    """Return the command that resumes a run."""
    return f"ulorl train --resume {shlex.quote(str(run_dir))}"


def advice(run_dir: Path) -> str:
    """Return what a user can do when a file of a run could not be written."""
    found = _all(run_dir)
    kept = f"{found[-1]} is complete" if found else "There is no checkpoint yet"
    return f"{kept}. Free space or give permission, then resume with: {resume_command(run_dir)}"


@contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission, met while a file of the run is written, into a UserError."""
    with atomic_files.writing(run_dir, lambda: advice(run_dir)):
        yield


def _state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if (found := state["format"]) != FORMAT:
        age = "an older" if isinstance(found, int) and found < FORMAT else "another"
        raise UserError(
            f"{folder}: checkpoint format {found}, of {age} version of ulorl; this one reads format {FORMAT}. Resume "
            f"with that version, or start a new run from these weights: model.path={folder / 'model'}, another run.dir",
            code=ErrorCode.CHECKPOINT_FORMAT,
            file=folder,
        )
    return state


def _all(run_dir: Path) -> list[Path]:
    found = (run_dir / "checkpoints").glob("step_*")
    return sorted((p for p in found if p.name.removeprefix("step_").isdecimal()), key=step_of)


def step_of(folder: Path) -> int:
    """Return the number of steps that were done when a checkpoint was written, from its name."""
    return int(folder.name.removeprefix("step_"))
