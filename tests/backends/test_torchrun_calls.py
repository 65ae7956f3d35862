"""What rank 0 does to the other ranks between and within calls (real gloo, without torchrun)."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import run_processes
from rank_learner import Case, save_models
from refusals import refused
from tiny_learner import GROUPS
from ulorl.backends import torchrun
from ulorl.cancellation import Cancelled, CancelToken
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

pytestmark = pytest.mark.slow


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def in_rank(rank_folders: Path, case: Case, models: Path) -> str:
    """Rank 0 drives; rank 1 serves until rank 0 has gone."""
    rank = torch.distributed.get_rank()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    torchrun.join_process_group = lambda **_: None  # type: ignore[assignment]  # there is one
    (rank_folders / f"{rank}").mkdir()
    os.chdir(rank_folders / f"{rank}")
    if rank:
        synced = os.fsync
        os.fsync = lambda file: full() if Path("full").exists() else synced(file)
        try:
            torchrun.serve()
        except RuntimeError:
            return "lost"
        return "stopped"
    learner = torchrun.TorchrunLearner(case.build(models))
    disturb(learner, rank_folders)
    return ""


def disturb(learner: torchrun.TorchrunLearner, folders: Path) -> None:
    left = iter(learner.publish().tensors)
    whole = [next(left)]  # an engine that failed in the middle of a load, whose frame is alive
    again = list(learner.publish().tensors)
    assert list(left) == []
    assert [name for name, _ in again[:1]] == [name for name, _ in whole]
    left = iter(learner.publish().tensors)
    next(left)
    assert learner.update(GROUPS).steps == 1
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        learner.update(GROUPS, cancel)

    checkpoint = folders / "checkpoint"
    for background in (False, True):  # the disk of rank 0 is full, then that of rank 1, then there is space
        (checkpoint / "shards").mkdir(parents=True)
        (checkpoint / "model").write_text("no folder")
        with pytest.raises(NotADirectoryError):
            learner.save(checkpoint, background=background).result(60)
        (checkpoint / "model").unlink()
        (folders / "1" / "full").touch()
        with pytest.raises(OSError, match="space") as found:
            learner.save(checkpoint, background=background).result(60)
        assert found.value.errno == errno.ENOSPC
        (folders / "1" / "full").unlink()
        learner.save(checkpoint, background=background).result(60)
        checkpoint.rename(folders / f"good {background}")
    Path("own").mkdir()  # the folder of this rank only
    with refused(ErrorCode.FILE_NOT_WRITABLE, key="run.dir"):
        learner.save(Path("own")).result(60)
    assert learner.update(GROUPS).steps == 1

    learner._own.score = lambda *_: 1 / 0  # type: ignore[method-assign,assignment]  # on this rank only
    with pytest.raises(ZeroDivisionError):
        learner.score([])
    with pytest.raises(UserError) as lost:  # at once: the other rank waits in `score`
        learner.save(checkpoint)
    assert lost.value.code is ErrorCode.LEARNER_LOST
    learner.close()


def test_errors_of_one_rank_and_readers_that_stop_early(tmp_path: Path) -> None:
    save_models(tmp_path)
    found: list[Any] = run_processes(in_rank, 2, tmp_path, Case(optim={"sequence_parallel": 1}), tmp_path, timeout=60)
    assert found == ["", "lost"]
