"""An engine in a Ray actor, which decodes by itself, and the `EngineWorker` that calls it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import ray

from ulorl.backends.ray.cluster import GPUS, Places
from ulorl.backends.ray.process_ends import end_with_parent
from ulorl.backends.ray.ray_calls import DEATHS, answered, cause_of
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.factory import make_engine, own_process_spec
from ulorl.engines.thread_worker import ThreadWorker
from ulorl.engines.worker import Progress
from ulorl.models.model_source import ModelSource
from ulorl.types import Request

if TYPE_CHECKING:
    from torch import Tensor

START_SECONDS = 1800.0  # for making an engine


class EngineActor:
    """The process of an engine.

    visible: CUDA_VISIBLE_DEVICES, where Ray does not set it. `ready` raises what the constructor raised: Ray would only
    pass its text on.
    """

    def __init__(self, spec: EngineSpec, source: ModelSource, visible: str) -> None:
        end_with_parent()
        self._failed: Exception | None = None
        if visible:
            os.environ[GPUS] = visible
        try:
            self._worker = ThreadWorker(make_engine(spec, source))
        except Exception as error:
            self._failed = error

    def ready(self) -> int:
        """Return the id of the process, once the engine is made."""
        if self._failed:
            raise self._failed
        return os.getpid()

    @ray.method(concurrency_group="collect")  # type: ignore[untyped-decorator]
    def collect(self) -> bytes:
        """Wait for the next report and return it pickled."""
        # Arrays that Ray itself passes on would hold memory of the object store as long as the samples live.
        return pickle.dumps(self._worker.collect().result(), pickle.HIGHEST_PROTOCOL)

    def call(self, name: str, *arguments: Any) -> None:
        """Make a call of `EngineWorker` and wait for its end."""
        getattr(self._worker, name)(*arguments).result()


_ACTOR = ray.remote(concurrency_groups={"collect": 1})(EngineActor)


class RayEngineWorker:
    """`EngineWorker` in an actor, with the engine of `spec` and `source`, at a place of the cluster.

    Returns when the engine is made. Raises what making it raises, and RuntimeError when its process dies.
    """

    def __init__(self, spec: EngineSpec, source: ModelSource, places: Places, index: int) -> None:
        self._dead = False
        self._actor = _ACTOR.options(**places.engine(index)).remote(
            own_process_spec(spec, gpu=places.needs.gpus), source, places.visible(index)
        )
        try:
            self.pid = int(ray.get(self._actor.ready.remote(), timeout=START_SECONDS))
        except Exception as error:
            self.kill()
            raise cause_of(error) from None

    def decode(self, requests: Sequence[Request]) -> Future[None]:
        """Queue requests."""
        return self._call("decode", requests)

    def collect(self) -> Future[Progress]:
        """Return the segments that ended since the last report, as soon as there is one."""
        return self._watched(answered(self._actor.collect.remote(), pickle.loads))

    def abort(self) -> Future[None]:
        """Stop every pending request; `collect` returns the partial segments."""
        return self._call("abort")

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> Future[None]:
        """Load weights, which the actor reads from the object store."""
        return self._call("load_weights", weights, version)

    def sleep(self) -> Future[None]:
        """Release memory until the next `decode` or `load_weights`."""
        return self._call("sleep")

    def close(self) -> Future[None]:
        """Release memory and processes. The actor ends with the last reference to this worker."""
        return self._call("close")

    def died(self) -> bool:
        """Return whether a call, of which there is always one, has found the process dead."""
        return self._dead

    def kill(self) -> None:
        """End the actor's process."""
        ray.kill(self._actor)

    def _call(self, name: str, *arguments: Any) -> Future[None]:
        return self._watched(answered(self._actor.call.remote(name, *arguments)))

    def _watched(self, future: Future[Any]) -> Future[Any]:
        def done(future: Future[Any]) -> None:
            self._dead = self._dead or isinstance(future.exception(), DEATHS)

        future.add_done_callback(done)
        return future
