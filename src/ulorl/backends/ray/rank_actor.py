"""One rank of the learner in a Ray actor."""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch

from ulorl.backends.ray.process_ends import end_with_parent
from ulorl.backends.ray.stored_weights import store_weights
from ulorl.cancellation import Cancelled, CancelToken
from ulorl.learner.learner import Weights
from ulorl.learner.make_learner import LearnerBuild, make_learner, make_rank_learner
from ulorl.learner.policy_learner import PolicyLearner
from ulorl.learner.ranks import MeshRanks, join_process_group
from ulorl.learner.sharding import require_sharding

CANCELLABLE = ("update", "score")


@dataclass(frozen=True)
class RankPlace:
    """The place of a rank among the `world` ranks of a learner.

    address: where they meet. gpu: whether the rank has one. timeout: seconds that it waits for another rank.
    """

    rank: int
    world: int
    address: str
    gpu: bool
    timeout: float


@dataclass(frozen=True)
class Answer:
    """What a call of a rank returned, of rank 0 with the result, and the state of the learner after the call."""

    version: int
    updates: int
    skipped_in_row: int
    result: Any = None
    cancelled: bool = False


class RankActor:
    """The process of a rank. Every method but those of the groups is called on all ranks, in the same order.

    What the constructor raises is raised by `ready`: Ray would only pass its text on.
    """

    def __init__(self, build: LearnerBuild, place: RankPlace) -> None:
        end_with_parent()
        self._place = place
        self._tokens: dict[int, CancelToken] = {}  # by the number of the call, of calls that are not done
        self._done = 0  # the number of the last call that is done
        self._lock = threading.Lock()  # guards the two fields above
        self._saving: Future[None] | None = None
        self._failed: Exception | None = None
        try:
            self._learner = _make(build, place)
        except Exception as error:
            self._failed = error

    def ready(self) -> Answer:
        """Return the state of the learner once it is made."""
        if self._failed:
            raise self._failed
        return self._answer()

    def call(self, name: str, number: int, pickled: bytes) -> Answer:
        """Make a call of `Learner` with arguments that Ray did not unpickle: its arrays would be read-only.

        number: of this call, from 1, which `cancel` names.
        """
        arguments = pickle.loads(pickled)
        if name in CANCELLABLE:
            arguments = (*arguments, self._token(number))
        try:
            own: dict[str, Callable[..., Any]] = {"save": self._save, "publish": self._publish}
            result = (own.get(name) or getattr(self._learner, name))(*arguments)
        except Cancelled:  # Ray would take it for the end of the process
            return self._answer(cancelled=True)
        finally:
            torch.cuda.empty_cache()  # torch keeps memory that an engine on this GPU needs
            with self._lock:
                self._done = number
                self._tokens.pop(number, None)
        return self._answer(result if self._place.rank == 0 else None)

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def cancel(self, number: int) -> None:
        """Cancel a call, which may not have begun yet."""
        with self._lock:
            if number > self._done:
                self._tokens.setdefault(number, CancelToken()).cancel()

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def alive(self) -> None:
        """Return at once: the process runs."""

    @ray.method(concurrency_group="files")  # type: ignore[untyped-decorator]
    def written(self) -> None:
        """Wait until the files of the last `save` are written, and raise what writing them raised."""
        if self._saving:
            self._saving.result()

    def _save(self, folder: Any, background: bool) -> None:
        self._saving = self._learner.save(folder, background=background)

    def _publish(self) -> Weights | None:
        """Put the weights into the object store. All ranks gather them, tensor by tensor."""
        tensors = self._learner.publish().tensors
        if self._place.rank:
            deque(tensors, maxlen=0)
            return None
        return Weights(self._learner.version, store_weights(tensors))

    def _token(self, number: int) -> CancelToken:
        with self._lock:
            return self._tokens.setdefault(number, CancelToken())

    def _answer(self, result: Any = None, *, cancelled: bool = False) -> Answer:
        learner = self._learner
        return Answer(learner.version, learner.updates, learner.skipped_in_row, result, cancelled)


def _make(build: LearnerBuild, place: RankPlace) -> PolicyLearner:
    if build.model.threads:
        torch.set_num_threads(build.model.threads)
    torch.manual_seed(build.spec.seed)  # of new adapters
    device = torch.device("cuda", 0) if place.gpu else torch.device("cpu")  # the only GPU that Ray lets it see
    if place.world == 1:
        return make_learner(build, device)
    require_sharding()
    join_process_group(
        rank=place.rank, world=place.world, init_method=place.address, timeout=timedelta(seconds=place.timeout)
    )
    return make_rank_learner(build, device, MeshRanks(device.type, build.spec.optim.sequence_parallel))
