"""What stops a run before its last step, and how to go on. Ctrl-C and SIGTERM: the step in progress is finished and
saved. Losses that are not finite: the newest checkpoint is the place to go back to."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from ulorl import checkpoint
from ulorl.config import Config
from ulorl.errors import UserError
from ulorl.learner.update import Skipped


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The run was asked to stop; it is saved and can be resumed."""

    def __init__(self, run_dir: Path, step: int, signum: int) -> None:
        super().__init__(f"stopped after step {step}; everything is saved. Go on with: ulorl train --resume {run_dir}")
        self.exit_code = 128 + signum


@contextmanager
def interrupts() -> Iterator[Callable[[], int]]:
    """Turn the first SIGINT or SIGTERM into a wish to stop after this step (0: none yet); the second acts at once."""
    received = 0

    def on_signal(signum: int, _: FrameType | None) -> None:
        nonlocal received
        received = signum
        for which in previous:
            signal.signal(which, previous[which])

    try:
        previous = {which: signal.signal(which, on_signal) for which in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are the caller's business
        previous = {}
    try:
        yield lambda: received
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)


def diverged(cfg: Config, step: int, last: Skipped) -> UserError:
    """`optim.max_skipped` mini-batches in a row were skipped. Draws depend on the seed only, so resuming without a
    change would meet the same numbers: the command lowers the learning rate, which `run.MAY_CHANGE` allows."""
    run_dir, mend = Path(cfg.run.dir), "start again with a lower optim.lr: there is no checkpoint yet"
    with suppress(UserError):
        newest = checkpoint.latest(run_dir)
        mend = f"go back to {newest} with: ulorl train --resume {run_dir} optim.lr={cfg.optim.lr / 2:g}"
    if cfg.model.dtype == "bfloat16":
        mend = f"bfloat16 weights are often the cause (model.dtype=float32 with optim.autocast=bfloat16); or {mend}"
    return UserError(
        f"{run_dir}, step {step}: {cfg.optim.max_skipped} mini-batches in a row were skipped (optim.max_skipped), the "
        f"last because {last}. The weights did not change in them; {mend}"
    )
