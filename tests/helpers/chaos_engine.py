"""A scripted engine whose calls fail at random, as an engine in a process of its own may."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ulorl.engines.engine import Engine
from ulorl.engines.forwarding import ForwardingEngine
from ulorl.types import Finish, Request, Segment

KINDS = ("raises", "hangs", "dies", "twice", "lost", "foreign", "version", "token", "aborted")
HANG_SECONDS = 30.0


class ChaosEngine(ForwardingEngine):
    """Fails with `chance` at each call, in one of the ways `kinds`, drawn from `draws`; an `OwnProcess`."""

    def __init__(self, engine: Engine, draws: random.Random, chance: float, kinds: Iterable[str] = KINDS) -> None:
        super().__init__(engine)
        self._draws, self._chance, self._kinds = draws, chance, tuple(kinds)
        self._killed = threading.Event()
        self._dead = False
        self.hangs = threading.Event()  # set when a call hangs

    def add(self, request: Request) -> None:
        self._fail(("raises", "hangs", "dies"), 0.1)
        super().add(request)

    def step(self) -> list[Segment]:
        segments = super().step()
        return self._altered(self._fail(self._kinds, 1.0), segments)

    def abort(self) -> list[Segment]:
        self._fail(("raises", "hangs", "dies"), 1.0)
        return super().abort()

    def load_weights(self, weights: Iterable[tuple[str, Any]], version: int) -> None:
        self._fail(("raises", "hangs", "dies"), 3.0)
        super().load_weights(weights, version)

    def sleep(self) -> None:
        self._fail(("raises", "hangs", "dies"), 3.0)
        super().sleep()

    def died(self) -> bool:
        return self._dead

    def kill(self) -> bool:
        self._killed.set()
        return True

    def _fail(self, kinds: tuple[str, ...], weight: float) -> str:
        """Raise or hang, or return what is to be wrong about the segments."""
        if self._draws.random() >= self._chance * weight:
            return ""
        kind = self._draws.choice([kind for kind in kinds if kind in self._kinds] or [""])
        if kind in ("hangs", "dies"):
            self._dead = kind == "dies"
            self.hangs.set()
            self._killed.wait(HANG_SECONDS)
        if kind in ("raises", "hangs", "dies"):
            raise OSError(f"chaos: {kind}")
        return kind

    @staticmethod
    def _altered(kind: str, segments: list[Segment]) -> list[Segment]:
        if not segments or not kind:
            return segments
        first = segments[0]
        changed = {
            "twice": [*segments, first],
            "lost": segments[1:],
            "foreign": [replace(first, sample_id=first.sample_id + 1000), *segments[1:]],
            "version": [*segments[1:], replace(first, versions=first.versions + 1)],
            "token": [replace(first, tokens=np.full_like(first.tokens, 10**6)), *segments[1:]],
            "aborted": [*segments[1:], replace(first, finish=Finish.ABORT)],
        }
        return changed[kind]
