"""What the trainer's end of vLLM's weight transfer is started with and given, without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-engines` runs these")

from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

from ulorl.engines.vllm.weight_transfer import sender

GPU = torch.device("cuda:1")
EMBEDDING = (151_936, 2_048)  # of Qwen3-1.7B: 1,244,659,712 bytes in float32


class Started:
    """Takes the place of vLLM's trainer, which needs CUDA, and of the functions of torch.cuda around it.

    events: what happened, in order. info: what vLLM's trainer was started with.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.info: Any = None
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
    started: Started, shape: tuple[int, ...], dtype: torch.dtype, size: int
) -> None:
    """vLLM's packed_ipc_producer raises for a tensor larger than its buffer."""
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
