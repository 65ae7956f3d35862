"""The learner shared by the processes that torchrun started.

The process of rank 0 runs the whole program: loop, engine, files. It sends each call of its learner to the other ranks,
which do nothing but take part in those calls (`serve`).
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from ulorl.cancellation import NEVER, Cancelled, CancelToken
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line
from ulorl.learner.experience import Experience
from ulorl.learner.learner import Weights
from ulorl.learner.make_learner import LearnerBuild, make_rank_learner, rank_device
from ulorl.learner.policy_learner import PolicyLearner
from ulorl.learner.ranks import MeshRanks, join_process_group
from ulorl.learner.sharding import require_sharding
from ulorl.learner.update_result import Update
from ulorl.types import Group, LogProbs

Call = Literal["make", "update", "score", "gather", "save", "export", "load", "stop"]
_IDLE = timedelta(days=365)  # how long a rank waits for its next call: a rollout may take any time
_RAISED_BY_ALL = (Cancelled, UserError, OSError)  # what no rank raises in a call while another one waits for it


def world_size() -> int:
    """Return the number of processes that torchrun started with this one, 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def is_worker() -> bool:
    """Return whether torchrun started this process to share the learner of another one, so that it should `serve`."""
    return world_size() > 1 and int(os.environ["RANK"]) > 0


def require_torchrun(ranks: int) -> None:
    """Raise UserError when this process is not one of `ranks` that torchrun started; 0: of any number."""
    start = f"torchrun --nproc-per-node {ranks or 'N'} -m ulorl train ..."
    if not dist.is_torchelastic_launched():
        problem = f"backend.kind=torchrun: torchrun did not start this process; start it with: {start}"
    elif ranks and ranks != world_size():
        problem = f"backend.ranks={ranks}, but torchrun started {world_size()} processes; start it with: {start}"
    else:
        return
    raise UserError(problem, code=ErrorCode.CONFIG_CONFLICT, key="backend.kind")


def serve() -> None:
    """Take part in the learner of rank 0 until it closes it: the work of every other rank.

    Signals are left to rank 0, because all ranks must stop at the same point. Raises what the learner raises, but for
    errors that rank 0 meets and reports itself, and SystemExit when rank 0 ended without a word.
    """
    calls = _Calls()
    # Not before: until rank 0 joins, it may refuse the run, and torchrun then ends the others by a signal.
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, signal.SIG_IGN)
    try:
        learner = _make(*calls.receive()[1:])
    except UserError:
        return  # rank 0 raises it too
    saving: Future[None] | None = None
    while (call := calls.receive()) != ("stop",):
        name, *arguments = call
        with suppress(*_RAISED_BY_ALL):
            if name == "save":
                wait([saving] if saving else [])
                saving = learner.save(arguments[0], background=arguments[1])  # rank 0 gets the errors of all ranks
            elif name == "gather":
                deque(learner.publish().tensors, maxlen=0)
            else:
                getattr(learner, name)(*arguments)
        del call, arguments  # the samples of an update, which would stay in memory during the next rollout
        torch.cuda.empty_cache()  # torch keeps memory that an engine on this GPU needs
    learner.close()
    calls.close()


def _make(build: LearnerBuild) -> PolicyLearner:
    if build.model.threads:
        torch.set_num_threads(build.model.threads)
    device, sequence = rank_device(build.model.device), build.spec.optim.sequence_parallel
    return make_rank_learner(build, device, MeshRanks(device.type, sequence))


class _Calls:
    """The calls that rank 0 sends to the other ranks.

    broken: a call ended with an error that the other ranks need not have met, so they may wait for rank 0 in it. No
    other call can follow.
    """

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        join_process_group(rank=int(os.environ["RANK"]), world=world_size())
        self._group = dist.new_group(backend="gloo", timeout=_IDLE)
        self.broken = False

    def send(self, name: Call, *arguments: Any) -> None:
        """Send a call to the other ranks. Raises UserError when one of them has ended."""
        try:
            dist.broadcast_object_list([(name, *arguments)], src=0, group=self._group)
        except RuntimeError as error:
            self.broken = True
            raise _lost(one_line(error)) from error

    def receive(self) -> tuple[Any, ...]:
        """Return the next call of rank 0. Raises SystemExit when it has ended: torchrun says how."""
        call: list[Any] = [None]
        try:
            dist.broadcast_object_list(call, src=0, group=self._group)
        except RuntimeError:
            raise SystemExit(f"rank {dist.get_rank()} ends, because the process of rank 0 has ended") from None
        return tuple(call[0])

    @contextmanager
    def making(self, name: Call, *arguments: Any) -> Iterator[None]:
        """Send a call, which the block makes on this rank. Raises UserError when the other ranks cannot take it."""
        if self.broken:
            raise _lost("a call before this one failed on some ranks")
        self.send(name, *arguments)
        self.broken = True
        try:
            yield
        except (*_RAISED_BY_ALL, GeneratorExit):  # a generator that was closed gathered the rest
            self.broken = False
            raise
        self.broken = False

    def close(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()


def _lost(why: str) -> UserError:
    return UserError(
        f"the processes that share the learner cannot continue: {why}. torchrun shows the cause; "
        "the same command resumes the run from its newest checkpoint",
        code=ErrorCode.LEARNER_LOST,
    )


class _Gathered:
    """Weights that all ranks gather at each iteration."""

    def __init__(self, gather: Callable[[], Iterator[tuple[str, Tensor]]]) -> None:
        self._gather = gather

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self._gather()


class TorchrunLearner:
    """The learner in the process of rank 0: every call is made on all ranks.

    Raises UserError when the model cannot be loaded or sharded.
    """

    def __init__(self, build: LearnerBuild) -> None:
        require_sharding()
        self._calls = _Calls()
        self._calls.send("make", build)
        self._own = _make(build)
        self._thread = ThreadPoolExecutor(1, "torchrun-learner")
        self._reading = self._gathered()  # the newest iteration over published weights, which begins when it is read

    @property
    def version(self) -> int:
        """The version number of the present weights."""
        return self._own.version

    @property
    def updates(self) -> int:
        """The gradient updates made since the run began."""
        return self._own.updates

    @property
    def skipped_in_row(self) -> int:
        """The mini-batches skipped in a row up to now."""
        return self._own.skipped_in_row

    def update(self, groups: Sequence[Group], cancel: CancelToken = NEVER) -> Update:
        """Train on the groups that are ready (`Learner.update`). Cancelling it cancels it on all ranks."""
        with self._making("update", groups):
            return self._own.update(groups, cancel)

    def begin(self, groups: Sequence[Group], cancel: CancelToken = NEVER) -> Future[Update]:
        """Start `update` in a thread."""
        return self._thread.submit(self.update, groups, cancel)

    def score(self, experience: Sequence[Experience], cancel: CancelToken = NEVER) -> tuple[list[LogProbs], float]:
        """Return log-probs and mean token entropy (`Learner.score`)."""
        with self._making("score", experience):
            return self._own.score(experience, cancel)

    def publish(self) -> Weights:
        """Return the present weights. All ranks gather them, one by one: with `rollout.overlap` now, for a copy in this
        process, otherwise whenever the caller iterates."""
        if self._own.spec.copy_published:
            with self._making("gather"):
                return self._own.publish()
        return Weights(self.version, _Gathered(self._read))

    def _making(self, name: Call, *arguments: Any) -> AbstractContextManager[None]:
        """Make a call on all ranks, after an iteration over weights that its reader left."""
        self._reading.close()
        return self._calls.making(name, *arguments)

    def _read(self) -> Iterator[tuple[str, Tensor]]:
        self._reading.close()
        self._reading = self._gathered()
        return self._reading

    def _gathered(self) -> Generator[tuple[str, Tensor]]:
        with self._calls.making("gather"):
            weights = iter(self._own.publish().tensors)
            try:
                for named in weights:  # noqa: UP028 - `yield from` would close `weights` when the caller stops early
                    yield named
            finally:
                deque(weights, maxlen=0)  # the other ranks gather all of them

    def save(self, folder: Path, *, background: bool = False) -> Future[None]:
        """Write weights and moments into a folder, each rank its shards."""
        with self._making("save", folder, background):
            return self._own.save(folder, background=background)

    def load(self, folder: Path) -> None:
        """Load the moments of what `save` wrote."""
        with self._making("load", folder):
            self._own.load(folder)

    def export(self, folder: Path) -> None:
        """Write a transformers folder, layer by layer."""
        with self._making("export", folder):
            self._own.export(folder)

    def close(self) -> None:
        """Let all ranks end. After an error in the middle of a call they wait in it until this process ends."""
        self._thread.shutdown()
        self._reading.close()
        if not self._calls.broken:
            self._calls.send("stop")
            self._own.close()
            self._calls.close()
