"""What the trainer's end of vLLM's weight transfer is started with and given, without a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-engines` runs these")

from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

from ulorl.engines.vllm.weight_transfer import sender

GPU = torch.device("cuda:1")
EMBEDDING = (151_936, 2_048)  # of Qwen3-1.7B: 1,244,659,712 bytes in float32


class Started:
    """Takes the place of vLLM's trainer, which needs CUDA, and of the functions of torch.cuda around it.

    events: what happened, in order. info: what vLLM's trainer was started with. sent: names and first numbers of each
    update, as vLLM reads them.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.info: Any = None
        self.sent: list[list[tuple[str, float]]] = []
        self._source: Any = None
        stream = SimpleNamespace(synchronize=lambda: self.events.append("synchronize"))
        patch.setattr(WeightTransferTrainerFactory, "trainer_init", self._start)
        patch.setattr(torch.cuda, "device", self._device)
        patch.setattr(torch.cuda, "current_stream", lambda: stream)

    def sender(self, transfer: Any) -> Any:
        workers = SimpleNamespace(parallel_config=SimpleNamespace(world_size=1))
        return sender(SimpleNamespace(vllm_config=workers), transfer, GPU)

    def send_weights(self) -> None:
        self.events.append("send")
        checked = NCCLTrainerWeightTransferEngine._checked_iter(self._source, self._source.metadata())
        self.sent.append([(name, float(tensor.flatten()[0])) for name, tensor in checked])

    def _start(self, info: Any, *, client: Any, source: Any) -> Started:  # noqa: ARG002 - vLLM's names
        self.info, self._source = info, source
        return self

    def _device(self, device: torch.device) -> Started:
        self.events.append(str(device))
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    return Started(monkeypatch)


@pytest.mark.parametrize(
    ("shape", "dtype", "size"),
    [
        (EMBEDDING, torch.float32, 151_936 * 2_048 * 4),
        (EMBEDDING, torch.bfloat16, 2**30),  # 622,329,856 bytes: vLLM's own size
        ((4, 4), torch.float32, 2**30),
    ],
)
def test_the_buffer_of_cuda_ipc_holds_the_largest_tensor(
    started: Started, shape: tuple[int, ...], dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's packed_ipc_producer raises for a tensor larger than its buffer."""
    monkeypatch.setattr(Started, "send_weights", lambda _: None)  # these have no numbers
    weights = [("norm", torch.empty(8, dtype=dtype)), ("embedding", torch.empty(shape, dtype=dtype, device="meta"))]
    started.sender("ipc")(weights)
    assert started.info.packed
    assert started.info.packed_buffer_size_bytes == size


@pytest.mark.parametrize("transfer", ["ipc", "nccl"])
def test_the_senders_streams_wait_for_the_learners(started: Started, transfer: str) -> None:
    """AdamW's step runs asynchronously on the learner's stream of its GPU; vLLM packs on streams of its own."""
    send = started.sender(transfer)
    for _ in range(2):
        send([("a", torch.zeros(2))])
    assert started.events == ["cuda:1", "synchronize", "send"] * 2


@pytest.mark.parametrize("transfer", ["ipc", "nccl"])
def test_weights_are_made_one_at_a_time_and_read_once_more_for_names(started: Started, transfer: str) -> None:
    """vLLM compares each with what the workers expect; the newest ones are sent."""
    made, alive = list[str](), list[int]()

    class Gathered:
        def __init__(self, number: float) -> None:
            self._number = number

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            held: list[weakref.ref[torch.Tensor]] = []
            for name in "abcd":
                alive.append(sum(ref() is not None for ref in held))
                made.append(name)
                tensor = torch.full((3,), self._number)
                held.append(weakref.ref(tensor))
                yield name, tensor
                del tensor

    send = started.sender(transfer)
    for number in (1.0, 2.0):
        send(Gathered(number))
    assert started.sent == [[(name, number) for name in "abcd"] for number in (1.0, 2.0)]
    assert made == list("abcd") * 3
    assert max(alive) <= 1  # the one before, which the reader still has
