"""A learner's processes give the memory that torch keeps back after each call, for an engine on the same GPU.

torch.cuda.empty_cache does nothing without a GPU, so these tests count its calls.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rank_learner import CPU, Case, small_model
from tiny_learner import GROUPS
from ulorl.backends import torchrun
from ulorl.backends.ray import rank_actor
from ulorl.learner.experience import prepare
from ulorl.learner.make_learner import LearnerBuild, make_learner


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls, and requests to give memory back, in order."""
    found: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: found.append("emptied"))
    return found


@pytest.fixture
def build(tmp_path: Path) -> LearnerBuild:
    small_model("tied").save_pretrained(tmp_path / "tied")
    return Case().build(tmp_path)


def test_after_every_call_of_a_rank_on_ray(
    events: list[str], build: LearnerBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_actor, "end_with_parent", lambda: None)
    monkeypatch.setattr(rank_actor, "store_weights", lambda tensors: [name for name, _ in tensors])
    experience, _ = prepare(GROUPS, build.spec.objective, build.spec.max_tokens)
    actor = rank_actor.RankActor(build, rank_actor.RankPlace(0, 1, "", gpu=False, timeout=1.0))
    for number, (name, *arguments) in enumerate([("update", GROUPS), ("score", experience), ("publish",)], start=1):
        events.append(name)
        actor.call(name, number, pickle.dumps(arguments))
    with pytest.raises(AttributeError):  # a call that fails, out of memory for example
        actor.call("missing", 4, pickle.dumps([]))
    assert events == ["update", "emptied", "score", "emptied", "publish", "emptied", "emptied"]


def test_after_every_call_of_a_rank_of_torchrun(
    events: list[str], build: LearnerBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calls() -> Iterator[tuple[Any, ...]]:
        yield ("make", build)
        for call in (("update", GROUPS), ("gather",), ("stop",)):
            events.append(call[0])
            yield call

    class FromRank0:
        def __init__(self) -> None:
            self._calls = calls()

        def receive(self) -> tuple[Any, ...]:
            return next(self._calls)

        def close(self) -> None: ...

    monkeypatch.setattr(torchrun, "_Calls", FromRank0)
    monkeypatch.setattr(torchrun, "_make", lambda of: make_learner(of, CPU))
    monkeypatch.setattr(torchrun.signal, "signal", lambda *_: None)
    torchrun.serve()
    assert events == ["update", "emptied", "gather", "emptied", "stop"]
