"""Calls of actors as futures, with the errors that the actor raised, not Ray's wrappers around them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ray.exceptions import NodeDiedError, RayActorError, RayTaskError, WorkerCrashedError

DEATHS = (RayActorError, WorkerCrashedError, NodeDiedError)  # what a call raises whose process ended


def cause_of(error: BaseException) -> BaseException:
    """Return the exception that an actor raised, or Ray's when its process died."""
    return error.cause if isinstance(error, RayTaskError) and error.cause else error


def answered(reference: Any, convert: Callable[[Any], Any] = lambda value: value) -> Future[Any]:
    """Return the result of an actor's call as a future. `convert` changes the result, in a thread of Ray."""
    future: Future[Any] = Future()

    def done(result: Future[Any]) -> None:
        if error := result.exception():
            future.set_exception(cause_of(error))
            return
        try:
            value = convert(result.result())
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    reference.future().add_done_callback(done)
    return future
