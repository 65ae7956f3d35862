"""Engines and learner of a run on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from ulorl.backends.ray.cluster import Needs, Places, cluster_gpus, connected
from ulorl.backends.ray.engine_actor import RayEngineWorker
from ulorl.backends.ray.ray_learner import RayLearner
from ulorl.config.backend_config import RayBackendConfig
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.fleet import EngineFleet, FleetSettings
from ulorl.engines.segment_checks import SegmentChecks
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.make_learner import LearnerBuild
from ulorl.models.model_source import ModelSource


class RayBackend:
    """Makes the engines and the learner of a run, each process at a place that the run has reserved."""

    def __init__(self, settings: RayBackendConfig, places: Places) -> None:
        self._settings, self._places = settings, places

    def fleet(
        self, spec: EngineSpec, source: ModelSource, settings: FleetSettings, on_fault: Callable[[str], None]
    ) -> EngineFleet:
        """Make the engines, with the weights of `source`, which have the version of `spec`."""

        def make(index: int) -> RayEngineWorker:
            return RayEngineWorker(spec, source, self._places, index)

        number = self._places.needs.engines
        with ThreadPoolExecutor(number) as threads:
            workers = list(threads.map(make, range(number)))
        return EngineFleet(
            workers,
            remake=make,
            checks=SegmentChecks(source.eos_ids, source.vocabulary, spec.sampling),
            settings=replace(settings, colocated=self._places.needs.colocate),
            version=spec.version,
            on_fault=on_fault,
        )

    def learner(self, build: LearnerBuild) -> RayLearner:
        """Make the learner. Raises UserError when the model cannot be loaded or trained."""
        return RayLearner(build, self._places, deadline=self._settings.deadline)


@contextmanager
def opened(
    settings: RayBackendConfig, *, device: str, engine_gpus: int, threads: int, learner: bool = True
) -> Iterator[RayBackend]:
    """Join or start a cluster, and reserve what a run needs until the end of the block, when all of its actors end.

    device: `model.device`. engine_gpus: of each engine. threads: CPUs of each process. learner: whether places for its
    ranks are reserved too. Raises UserError.
    """
    ranks = settings.ranks if learner else 0
    with connected(settings, cpus=(settings.engines + ranks) * max(threads, 1)):
        there = cluster_gpus()
        if device.startswith("cuda") and not there:
            raise UserError(
                f"model.device={device}: the Ray cluster has no GPU; use auto or cpu",
                code=ErrorCode.DEVICE_UNAVAILABLE,
                key="model.device",
            )
        needs = Needs(
            engines=settings.engines,
            ranks=ranks,
            engine_gpus=engine_gpus,
            threads=max(threads, 1),
            gpus=device != "cpu" and there > 0,
            colocate=settings.colocate and learner,
        )
        places = Places(needs)
        try:
            yield RayBackend(settings, places)
        finally:
            places.close()
