"""Runs a function in several processes that form one gloo process group."""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# The fork server imports these once, which saves every process several seconds.
PRELOAD = ["torch", "torch.distributed", "transformers", "transformers.modeling_utils", "ulorl.learner.make_learner"]


def run_processes(function: Callable[..., Any], world: int, *args: Any, timeout: float = 120) -> list[Any]:
    """Return what `function(*args)` returns in each of `world` processes, by rank.

    In each process `torch.distributed` is initialised with gloo and torch computes with one thread. `function` is at
    the top level of its module; arguments and results are pickled. Environment variables are those of the first call.

    Raises:
        AssertionError: with its traceback where a process fails, or after `timeout` seconds; all processes are killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        where = (inspect.getfile(function), function.__module__, function.__qualname__)
        task = (*where, pickle.dumps(args), f"{folder}/store", timeout)
        with _started(world, task) as processes:
            return _results(processes, time.monotonic() + timeout)


@contextmanager
def _started(world: int, task: tuple[Any, ...]) -> Iterator[dict[Connection, tuple[int, BaseProcess]]]:
    """Start the processes, and kill those that are left in the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    processes: dict[Connection, tuple[int, BaseProcess]] = {}
    try:
        for rank in range(world):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(sender, rank, world, *task), daemon=True)
            process.start()
            sender.close()  # so that the receiver sees the end of the process
            processes[receiver] = (rank, process)
        yield processes
    finally:
        for receiver, (_, process) in processes.items():
            process.kill()
            process.join()
            receiver.close()


def _results(processes: dict[Connection, tuple[int, BaseProcess]], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    waiting = dict(processes)
    while waiting:
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"ranks {sorted(rank for rank, _ in waiting.values())} ran past the time limit")
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank, process = waiting.pop(receiver)
            try:
                good, value = pickle.loads(receiver.recv_bytes())
            except EOFError:
                process.join()
                raise AssertionError(f"rank {rank} ended with exit code {process.exitcode}") from None
            if not good:
                raise AssertionError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in sorted(results)]


def _run(
    sender: Connection,
    rank: int,
    world: int,
    file: str,
    module: str,
    name: str,
    args: bytes,
    store: str,
    timeout: float,
) -> None:
    """Run the function in a process of its own, and send its result or its traceback."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=timeout)
        )
        function = _function(Path(file), module, name)
        report = pickle.dumps((True, function(*pickle.loads(args))))
    except BaseException:
        report = pickle.dumps((False, traceback.format_exc()))
    sender.send_bytes(report)
    sender.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def _function(file: Path, module: str, name: str) -> Callable[..., Any]:
    """Import a test's module from its file, under the name that pytest gave it, which the pickled arguments use."""
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    function: Any = sys.modules[module]
    for part in name.split("."):
        function = getattr(function, part)
    return function
