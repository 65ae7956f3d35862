"""Sends new weights to vLLM, and makes sure that vLLM uses them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from shutil import disk_usage
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ulorl.config.engine_config import VllmConfig
from ulorl.engines.vllm.transfer_client import TransferClient

Weights = Iterable[tuple[str, torch.Tensor]]
Transfer = Literal["direct", "file", "ipc", "nccl"]
_SHM = "/dev/shm"  # files in memory


def pick_transfer(settings: VllmConfig, device: torch.device, processes: int = 1) -> Transfer:
    """Return how new weights travel from the learner's `device` to vLLM.

    processes: those that share the learner. All of them would have to call vLLM's sender of CUDA IPC.
    """
    if settings.transfer != "auto":
        return settings.transfer
    if not settings.process and settings.tensor_parallel == 1:
        return "direct"
    if device.type != "cuda":
        return "file"
    gpus = settings.devices or range(settings.tensor_parallel)
    if (device.index or 0) not in gpus:
        return "nccl"  # NCCL refuses two ranks on one GPU
    alone = settings.tensor_parallel == 1 and processes == 1  # the learner has handles only of its own GPU
    return "ipc" if alone else "file"


def sender(llm: Any, transfer: Transfer, device: torch.device) -> Callable[[Weights], None]:
    """Return a function that loads weights, which are on the learner's `device`, into vLLM's running model.

    The weights can be iterated several times. No more than a layer of them, or a buffer, is held at once on the GPU.
    """
    if transfer == "direct":
        return lambda weights: llm.collective_rpc("ulorl_load", args=(weights,))
    if transfer == "file":
        return lambda weights: _send_file(llm, weights)
    return _Trainer(llm, transfer, device).send


def _send_file(llm: Any, weights: Weights) -> None:
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in weights}  # clone: views may share a storage
    size = sum(tensor.nbytes for tensor in tensors.values())
    memory = os.access(_SHM, os.W_OK) and disk_usage(_SHM).free > 1.1 * size  # containers often have 64 MB of it
    with tempfile.TemporaryDirectory(prefix="ulorl-", dir=_SHM if memory else None) as folder:
        path = Path(folder) / "weights.safetensors"
        save_file(tensors, path)
        llm.collective_rpc("ulorl_load_file", args=(str(path),))


class WeightLoader:
    """Methods that vLLM's workers get (`worker_extension_cls`)."""

    model_runner: Any
    reload_weights: Any

    def ulorl_load(self, weights: Weights) -> None:
        """Load weights into the running model, in place."""
        self.reload_weights(weights_iterator=iter(weights))
        self._ulorl_repack()

    def ulorl_load_file(self, path: str) -> None:
        """Load the weights of a safetensors file into the running model, in place."""
        with safe_open(path, framework="pt", device="cpu") as file:
            self.ulorl_load((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    def _ulorl_repack(self) -> None:
        """Pack the matrices again that vLLM multiplies with on a CPU.

        Reloading packs linear layers again. It leaves embeddings and heads, which also keep their plain matrix, with
        the packed matrix of the old weights, and experts unpacked.
        """
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.platforms import current_platform

        for module in self.model_runner.get_model().modules():
            if hasattr(module, "cpu_linear") and module.weight.numel():
                dispatch_cpu_unquantized_gemm(module, remove_weight=False)
            kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
            if kernel is not None and current_platform.is_cpu():
                kernel.fused_experts.process_weights_after_loading(module)


class _Trainer:
    """The trainer's end of vLLM's weight transfer, nccl or ipc.

    It follows vLLM's documentation ("Weight transfer"), needs GPUs, and was not run here.
    """

    def __init__(self, llm: Any, backend: str, device: torch.device) -> None:
        self._backend, self._device = backend, device
        workers = llm.vllm_config.parallel_config.world_size
        self._client = TransferClient([lambda name, kwargs: llm.collective_rpc(name, kwargs=kwargs)], workers)
        self._source: Any = None
        self._trainer: Any = None

    def send(self, weights: Weights) -> None:
        with torch.cuda.device(self._device):  # vLLM uses the current device
            torch.cuda.current_stream().synchronize()  # it reads on other streams, which do not wait for AdamW's step
            if self._trainer is None:
                self._trainer = self._connect(weights)
            self._source.use(weights)
            self._trainer.send_weights()
            self._source.use(())  # holds no copy until the next update

    def _connect(self, weights: Weights) -> Any:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES
        from vllm.utils.network_utils import get_open_port

        from ulorl.engines.vllm.weight_source import StreamedWeights

        self._source = StreamedWeights(weights)
        if self._backend == "ipc":
            # vLLM refuses a tensor that is larger than its buffer, as embeddings in float32 are from 1.7B on.
            size = max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, self._source.largest)
            info: Any = IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=size)
        else:
            info = NCCLTrainerInitInfo("127.0.0.1", get_open_port(), world_size=self._client.world_size, rank=0)
        return WeightTransferTrainerFactory.trainer_init(info, client=self._client, source=self._source)
