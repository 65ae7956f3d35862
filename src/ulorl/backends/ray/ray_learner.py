"""The learner whose ranks are Ray actors: every call goes to all ranks, and the answer of rank 0 counts."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from ulorl.backends.ray.cluster import Places
from ulorl.backends.ray.rank_actor import Answer, RankActor, RankPlace
from ulorl.backends.ray.ray_calls import DEATHS, cause_of
from ulorl.cancellation import NEVER, Cancelled, CancelToken
from ulorl.errors import first_line
from ulorl.learner.experience import Experience
from ulorl.learner.learner import LearnerLost, Weights
from ulorl.learner.make_learner import LearnerBuild
from ulorl.learner.update_result import Update
from ulorl.types import Group, LogProbs

POLL_SECONDS = 0.1  # between looks at cancellation and at ranks that answer nothing
GRACE_SECONDS = 20.0  # for the other ranks to answer, after one has raised
START_SECONDS = 1800.0  # for making a learner, while ranks that started sooner wait for the others
CLOSE_SECONDS = 30.0
_ACTOR = ray.remote(concurrency_groups={"control": 1, "files": 1})(RankActor)


class RayLearner:
    """`Learner` over actors, which are made at their places of the cluster.

    deadline: seconds after which a process that does not answer counts as hanging; 0: no limit. Every method raises
    LearnerLost when a rank dies or hangs; all ranks are killed then. Making it raises UserError when the model cannot
    be loaded or trained.
    """

    def __init__(self, build: LearnerBuild, places: Places, *, deadline: float) -> None:
        needs = places.needs
        self._deadline = deadline
        self._lost: LearnerLost | None = None
        self._number = 0  # calls so far
        self._threads = ThreadPoolExecutor(2, "ray-learner")  # an update in the background, and a save
        address = places.rendezvous() if needs.ranks > 1 else ""
        self._actors = [
            _ACTOR.options(**places.rank(rank)).remote(
                build, RankPlace(rank, needs.ranks, address, needs.gpus, max(deadline, START_SECONDS))
            )
            for rank in range(needs.ranks)
        ]
        try:
            self._state: Answer = self._wait([actor.ready.remote() for actor in self._actors], START_SECONDS)
        except BaseException:
            self._kill()
            raise

    @property
    def version(self) -> int:
        """The version number of the present weights."""
        return self._state.version

    @property
    def updates(self) -> int:
        """The gradient updates made since the run began."""
        return self._state.updates

    @property
    def skipped_in_row(self) -> int:
        """The mini-batches skipped in a row up to now."""
        return self._state.skipped_in_row

    def update(self, groups: Sequence[Group], cancel: CancelToken = NEVER) -> Update:
        """Train on the groups that are ready (`Learner.update`)."""
        update: Update = self._call("update", list(groups), cancel=cancel)
        return update

    def begin(self, groups: Sequence[Group], cancel: CancelToken = NEVER) -> Future[Update]:
        """Start `update` in a thread."""
        return self._threads.submit(self.update, groups, cancel)

    def score(self, experience: Sequence[Experience], cancel: CancelToken = NEVER) -> tuple[list[LogProbs], float]:
        """Return log-probs and mean token entropy (`Learner.score`)."""
        logprobs, entropy = self._call("score", list(experience), cancel=cancel)
        return [row.copy() for row in logprobs], entropy  # those in the object store are read-only

    def publish(self) -> Weights:
        """Put the present weights into the object store, where they stay unchanged as long as somebody refers to
        them."""
        weights: Weights = self._call("publish")
        return weights

    def save(self, folder: Path, *, background: bool = False) -> Future[None]:
        """Write weights and moments into a folder that all ranks reach, each rank its shards."""
        self._call("save", folder, background)
        if background:
            return self._threads.submit(self._wait_written)
        self._wait_written()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def load(self, folder: Path) -> None:
        """Load the moments of what `save` wrote."""
        self._call("load", folder)

    def export(self, folder: Path) -> None:
        """Write a transformers folder, layer by layer."""
        self._call("export", folder)

    def close(self) -> None:
        """End all ranks."""
        self._threads.shutdown()
        if not self._lost:
            with suppress(Exception):  # they are killed next
                ray.wait([actor.call.remote("close", 0, pickle.dumps(())) for actor in self._actors],
                         num_returns=len(self._actors), timeout=CLOSE_SECONDS)  # fmt: skip
        self._kill()

    def _call(self, name: str, *arguments: Any, cancel: CancelToken = NEVER) -> Any:
        """Make a call on all ranks and return the result of rank 0. Raises what a rank raises."""
        if self._lost:
            raise self._lost
        cancel.check()
        self._number += 1
        # Arguments are pickled and stored once; a rank on another machine gets them through the object store.
        sent = ray.put(pickle.dumps(arguments, pickle.HIGHEST_PROTOCOL))
        calls = [actor.call.remote(name, self._number, sent) for actor in self._actors]
        try:
            answer = self._wait(calls, self._deadline, cancel, self._number)
        except LearnerLost:
            raise
        except Exception:  # an update that failed may have changed the weights before
            self._state = self._wait([actor.ready.remote() for actor in self._actors], self._deadline)
            raise
        self._state = replace(answer, result=None)
        if answer.cancelled:
            raise Cancelled
        return answer.result

    def _wait_written(self) -> None:
        self._wait([actor.written.remote() for actor in self._actors], self._deadline)

    def _wait(self, calls: Sequence[Any], deadline: float, cancel: CancelToken = NEVER, number: int = 0) -> Any:
        """Wait until every rank has answered, and return the answer of rank 0.

        Raises LearnerLost when a rank died, did not answer the question whether it is alive for `deadline` seconds, or
        did not answer soon after another one had raised. Raises what the first rank raised when all have answered.
        """
        pending, failed = {call: rank for rank, call in enumerate(calls)}, dict[int, BaseException]()
        signs, asked, until = _SignsOfLife(self._actors, deadline), False, 0.0
        while pending:
            for call in ray.wait(list(pending), num_returns=len(pending), timeout=POLL_SECONDS)[0]:
                rank = pending.pop(call)
                if error := _error_of(call):
                    failed[rank] = error
                    until = until or time.monotonic() + GRACE_SECONDS
                    if isinstance(error, DEATHS):
                        raise self._lose(f"the process of rank {rank} died", error)
            if cancel.cancelled and not asked:
                asked = True
                for actor in self._actors:
                    actor.cancel.remote(number)
            if failed and pending and time.monotonic() > until:
                rank, error = next(iter(failed.items()))
                raise self._lose(f"rank {rank} failed ({first_line(error)}), and other ranks wait for it", error)
            if silent := signs.missing(pending.values()):
                raise self._lose(f"the process of rank {silent[0]} gave no sign of life for {deadline:g} seconds")
        if failed:
            raise failed[min(failed)]
        return ray.get(calls[0])

    def _lose(self, why: str, error: BaseException | None = None) -> LearnerLost:
        self._lost = LearnerLost(f"the learner was lost: {why}")
        self._lost.__cause__ = error
        self._kill()
        return self._lost

    def _kill(self) -> None:
        self._lost = self._lost or LearnerLost("the learner is closed")
        for actor in self._actors:
            ray.kill(actor)


class _SignsOfLife:
    """Asks ranks whether they are alive. deadline: seconds without an answer after which one is missing; 0: never."""

    def __init__(self, actors: Sequence[Any], deadline: float) -> None:
        self._actors, self._deadline = actors, deadline
        self._asked: dict[int, tuple[Any, float]] = {}  # by rank: the question, and when it was asked

    def missing(self, ranks: Any) -> list[int]:
        """Return the ranks that have not answered in time, and ask the others again."""
        now, missing = time.monotonic(), []
        for rank in ranks if self._deadline else ():
            question, since = self._asked.get(rank, (None, 0.0))
            if question is None or (now - since > 1 and ray.wait([question], timeout=0)[0]):
                self._asked[rank] = self._actors[rank].alive.remote(), now
            elif now - since > self._deadline:
                missing.append(rank)
        return missing


def _error_of(call: Any) -> BaseException | None:
    try:
        ray.get(call)
    except Exception as error:
        return cause_of(error)
    return None
