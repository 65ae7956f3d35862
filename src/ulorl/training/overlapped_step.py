"""A step of Algorithm 1 whose update runs while the engine decodes (`rollout.overlap`, one step off).

Step n trains the groups that step n - 1 released. Meanwhile the engine decodes with the weights that it has, those of
step n - 1; at the end of the step it loads the new ones. Step 1 trains nothing, and the groups that the last step
releases stay in its checkpoint, as unfinished samples do: a run of more steps trains them. So a run of n steps makes
n - 1 updates, and extending a run gives the same weights as a longer run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace

from ulorl.algorithm import SampleScorer, Step, ulorl_step
from ulorl.cancellation import NEVER, Cancelled, CancelToken
from ulorl.engines.engine import Engine
from ulorl.learner.learner import Learner, Weights
from ulorl.learner.update_result import Update
from ulorl.rollout.scheduler import Scheduler
from ulorl.types import Group, Prompted


def overlapped_step(
    scheduler: Scheduler,
    engine: Engine,
    scorer: SampleScorer,
    learner: Learner,
    problems: Iterable[Prompted],
    cancel: CancelToken = NEVER,
    on_late_cancel: Callable[[], None] = lambda: None,
) -> Step:
    """Make one step: begin the update on the groups kept by the step before, roll out, then wait for the update.

    The update is over when this function returns or raises. Raises Cancelled as long as the update has not changed the
    weights. After that, `on_late_cancel` is called and the step is finished, rollout included, because the boundary
    before it exists no more. An error of the update is raised at the next decode step.
    """
    trained = scheduler.experience.take_released()
    stop = CancelToken(cancel)
    pending = learner.begin(trained, stop)
    try:
        step = ulorl_step(
            scheduler,
            engine,
            scorer,
            _BegunUpdate(learner, pending),
            problems,
            _RolloutCancel(cancel, pending, on_late_cancel),
        )
    except BaseException:
        stop.cancel()
        wait([pending])  # until then nobody may use the learner
        raise
    scheduler.experience.keep(step.groups)
    return replace(step, groups=tuple(trained), released=step.groups)


class _BegunUpdate:
    """The update that began with the step, at its place in Algorithm 1. The groups that the step releases are trained
    in the next one."""

    def __init__(self, learner: Learner, pending: Future[Update]) -> None:
        self._learner, self._pending = learner, pending

    def update(self, _: Sequence[Group], __: CancelToken = NEVER) -> Update:
        """Wait for the update."""
        return self._pending.result()

    def publish(self) -> Weights:
        """Return the new weights."""
        return self._learner.publish()


class _RolloutCancel(CancelToken):
    """Cancels the rollout with `cancel`, unless its update has changed the weights. Once cancelled, it waits for the
    update, which ends before its next micro-batch as long as the weights are the old ones."""

    def __init__(self, cancel: CancelToken, pending: Future[Update], on_late_cancel: Callable[[], None]) -> None:
        super().__init__()
        self._cancel, self._pending, self._on_late_cancel = cancel, pending, on_late_cancel
        self._late = False

    @property
    def cancelled(self) -> bool:
        """Whether the rollout should stop."""
        if not self._cancel.cancelled or self._late:
            return False
        wait([self._pending])
        self._late = self._pending.exception() is None and self._pending.result().steps > 0
        if self._late:
            self._on_late_cancel()
        return not self._late

    def check(self) -> None:
        """Raise Cancelled when the rollout should stop, and the error of an update that failed."""
        if self._pending.done() and (error := self._pending.exception()) and not isinstance(error, Cancelled):
            raise error
        super().check()
