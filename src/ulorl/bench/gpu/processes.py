"""Two processes: a process group (NCCL on GPUs, gloo on CPUs) and tensors that both share (CUDA IPC on a GPU)."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from ulorl.bench.gpu.case import Case, CheckError, Figures, NotPossibleError, Setting, require
from ulorl.learner.ranks import process_group

LIMIT = 40.0  # seconds for two processes to start, work and end


def cases(setting: Setting) -> list[Case]:
    """Return the cases: a group of one process, a group of two, a tensor shared by two."""
    backend = "nccl" if setting.on_gpu else "gloo"
    return [
        Case("tensors shared with another process", partial(_shared, setting)),
        Case(f"{backend}, one process", partial(_group, setting, backend, 1)),
        Case(f"{backend}, two processes", partial(_group, setting, backend, 2)),
    ]


def _run(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Run the function once for each tuple, each in a new process with a queue as first argument; return what each
    puts there, in the order of the tuples. Raises CheckError with the first error, or after `LIMIT` seconds."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_guarded, args=(function, queue, number, *given), daemon=True)
        for number, given in enumerate(arguments)
    ]
    deadline = time.monotonic() + LIMIT
    results: dict[int, Any] = {}
    try:
        for process in processes:
            process.start()
        while len(results) < len(processes):
            if time.monotonic() > deadline:
                raise CheckError(f"the processes did not end within {LIMIT:.0f} s")
            if queue.empty():
                if all(process.exitcode is not None for process in processes) and queue.empty():
                    codes = [process.exitcode for process in processes]
                    raise CheckError(f"the processes ended with exit codes {codes}")
                time.sleep(0.05)
                continue
            number, error, result = queue.get()
            if error:
                raise CheckError(error)
            results[number] = result
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [results[number] for number in range(len(processes))]


def _guarded(function: Callable[..., Any], queue: Any, number: int, *given: Any) -> None:
    """Put (number, error, result) into the queue."""
    try:
        queue.put((number, "", function(*given)))
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        queue.put((number, f"{type(error).__name__}: {' | '.join(lines[:3] + lines[-1:])}"[:600], None))


def _group(setting: Setting, backend: str, world: int) -> Figures:
    """Sum a tensor over the ranks of a group; on a GPU each rank takes one of its own where there are enough."""
    cards = torch.cuda.device_count() if setting.on_gpu else 0
    numbers = 1000 if setting.small else 2**26
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        devices = [f"cuda:{rank % cards}" if cards else "cpu" for rank in range(world)]
        try:
            found = _run(_rank, [(store, rank, world, devices[rank], numbers) for rank in range(world)])
        except CheckError as error:
            if setting.on_gpu and cards < world:
                raise NotPossibleError(f"{backend} refuses two ranks on one GPU: {error}") from None
            raise
    figures: Figures = {"world": world, "devices": devices, "bytes": 4 * numbers, "seconds": [f[1] for f in found]}
    expected = world * (world + 1) / 2
    require(all(total == expected for total, _ in found), "the sum over the ranks is wrong", figures)
    return figures


def _rank(store: str, rank: int, world: int, device: str, numbers: int) -> tuple[float, float]:
    """Return the sum over the ranks of rank + 1, and the seconds of a second all_reduce."""
    limit = timedelta(seconds=LIMIT / 2)
    with process_group(torch.device(device), rank=rank, world=world, init_method=store, timeout=limit):
        for _ in range(2):
            tensor = torch.full((numbers,), float(rank + 1), device=device)
            if device != "cpu":
                torch.cuda.synchronize()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            total = float(tensor[-1])  # waits for the device
            seconds = time.perf_counter() - started
        return total, round(seconds, 5)


def _shared(setting: Setting) -> Figures:
    """Let another process read and change a tensor of this one: on a GPU by a CUDA IPC handle, without a copy."""
    numbers = 1000 if setting.small else 2**26
    tensor = torch.arange(numbers, dtype=torch.float32, device=setting.device)
    if not setting.on_gpu:
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    handle = torch.multiprocessing.reductions.reduce_tensor(tensor)  # type: ignore[no-untyped-call]
    (found,) = _run(_reader, [(handle, setting.device)])
    figures: Figures = {"bytes": 4 * numbers, "seconds": found[1]}
    require(found[0] == float(numbers - 1), "the other process read another number", figures)
    require(float(tensor[0]) == -1.0, "what the other process wrote is not there", figures)
    return figures


def _reader(handle: tuple[Callable[..., torch.Tensor], tuple[Any, ...]], device: str) -> tuple[float, float]:
    """Rebuild the tensor from its handle, write -1 to its first entry, and return the last one and the seconds."""
    if device != "cpu":
        torch.cuda.init()  # type: ignore[no-untyped-call]
    rebuild, arguments = handle
    started = time.perf_counter()
    tensor = rebuild(*arguments)
    last = float(tensor[-1])
    tensor[0] = -1.0
    if device != "cpu":
        torch.cuda.synchronize()
    return last, round(time.perf_counter() - started, 5)
