"""Weights and moments that several processes save, and another number of processes loads."""

from __future__ import annotations

import pickletools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from processes import run_processes
from sharded_models import Policy, full, load_sharded_model
from small_models import make
from ulorl.learner import sharded_state
from ulorl.learner.sharded_state import load_sharded, save_sharded, shard_of
from ulorl.models.agreement import raising_together
from ulorl.models.meta_loading import local_shard
from ulorl.models.model_source import ModelSource

MODELS = {"Qwen2": {}, "Qwen3": {"vocab_size": 101}, "Qwen3Moe": {"num_experts": 3}}  # tied, untied, experts
PLAIN = {"few": torch.arange(6.0).view(2, 3), "none": torch.tensor(7.0), "updates": torch.tensor(3)}
Tensors = dict[str, Tensor]


class Trained:
    """A model with AdamW, sharded when there is a process group."""

    def __init__(self, source: ModelSource) -> None:
        self.policy: Policy = load_sharded_model(source)
        self.named = dict(self.policy.model.named_parameters())
        self.adamw = torch.optim.AdamW(self.named.values(), lr=1e-2, fused=True)

    def step(self, number: int) -> Tensors:
        """Make one step, on the same tokens in every process; return the whole weights."""
        ids = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(number))
        self.policy(ids).log_softmax(-1)[..., 5].mean().backward()
        self.adamw.step()
        self.adamw.zero_grad()
        return {name: full(p).detach().clone() for name, p in self.named.items()}

    def state(self) -> Tensors:
        """Return weights and moments; the moments exist after the first step."""
        moments = {f"{n}/{key}": v for n, p in self.named.items() for key, v in self.adamw.state[p].items()}
        return {**{name: p.detach() for name, p in self.named.items()}, **moments}

    def make_moments(self) -> None:
        """Make moments with wrong numbers, which loading replaces."""
        for p in self.named.values():
            self.adamw.state[p] = {"step": torch.tensor(9.0)}
            self.adamw.state[p] |= {slot: torch.full_like(p, torch.nan) for slot in ("exp_avg", "exp_avg_sq")}


def scattered(tensors: Tensors) -> Tensors:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {n: distribute_tensor(t, mesh, [Shard(0)]) if t.dim() else t.clone() for n, t in tensors.items()}


def save(folder: Path) -> dict[str, Tensors]:
    """Save every model after one step; return the weights after the next one."""
    after: dict[str, Tensors] = {}
    for kind in MODELS:
        trained = Trained(ModelSource(str(folder / kind)))
        trained.step(1)
        save_sharded(folder / f"{kind}.saved", trained.state())
        after[kind] = trained.step(2)
    return after


def load(folder: Path, suffix: str) -> dict[str, Tensors]:
    """Load what `save` wrote; return the weights after the next step."""
    after: dict[str, Tensors] = {}
    for kind in MODELS:
        trained = Trained(ModelSource(str(folder / kind)))
        trained.make_moments()
        load_sharded(folder / f"{kind}{suffix}", trained.state())
        after[kind] = trained.step(2)
    return after


def save_and_load(folder: Path) -> tuple[dict[str, Tensors], dict[str, Tensors], list[str]]:
    """Save on these processes, load a checkpoint of one process, and meet all errors."""
    saved, loaded = save(folder), load(folder, ".single")
    errors = []
    for tensors in ({"other": torch.zeros(8)}, {"few": torch.zeros(4, 3)}):
        with pytest.raises(ValueError, match=r"no other|Size mismatch") as error:
            load_sharded(folder / "plain.single", scattered(tensors))
        errors.append(str(error.value))
    with pytest.raises(ValueError, match="SafetensorError"):
        load_sharded(folder / ("damaged" if dist.get_rank() else "plain.single"), scattered(PLAIN))
    for mine, of_others in ((FileNotFoundError, OSError), (UnicodeError, ValueError), (KeyError, RuntimeError)):
        with pytest.raises(mine if dist.get_rank() else of_others, match=r"^rank 1 failed: \w+: 7$|^7$"):
            fail_on_one_rank(mine(7))
    with pytest.raises(OSError, match="Not a directory") as refused:
        save_sharded(folder / ("file/a" if dist.get_rank() else "plain.ranks"), scattered(PLAIN))
    return saved, loaded, [*errors, type(refused.value).__name__]


def save_and_load_plain(folder: Path) -> dict[str, dict[str, Tensors]]:
    """Save and load where ranks have nothing of a tensor, and load what fewer ranks saved."""
    save_sharded(folder / "plain.ranks", scattered(PLAIN))
    into = scattered({name: torch.zeros_like(tensor) for name, tensor in PLAIN.items()})
    load_sharded(folder / "plain.ranks", into)
    check_parts_on_the_host()
    return {"plain": {"": {name: full(t) for name, t in into.items()}}, "models": load(folder, ".saved")}


def check_parts_on_the_host() -> None:
    """Parts in the CPU's memory of a tensor that is sharded over GPUs, which need not exist here, stay there."""
    ranks = dist.get_world_size()
    gpus = DeviceMesh("cuda", torch.arange(ranks), _init_backend=False)
    parameter = DTensor.from_local(
        torch.empty(2, 3, device="meta"), gpus, [Shard(0)], shape=torch.Size((2 * ranks, 3)), stride=(3, 1)
    )
    part = torch.ones(2, 3)
    moment = shard_of(part, parameter)
    assert moment.shape == parameter.shape
    local, begin = local_shard(moment)
    assert local.data_ptr() == part.data_ptr()
    assert begin == (2 * dist.get_rank(), 0)


def fail_on_one_rank(error: Exception) -> None:
    with raising_together():
        if dist.get_rank():
            raise error


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and checkpoints of a single process as `Optimizer.save` writes them."""
    folder = tmp_path_factory.mktemp("state")
    for kind, settings in MODELS.items():
        make(kind, **settings).save_pretrained(folder / kind)
        trained = Trained(ModelSource(str(folder / kind)))
        trained.step(1)
        (folder / f"{kind}.single").mkdir()
        state = trained.state()
        save_file({n: t for n, t in state.items() if "/" in n}, folder / f"{kind}.single" / "optimizer.safetensors")
        save_file({n: t for n, t in state.items() if "/" not in n}, folder / f"{kind}.single" / "weights.safetensors")
    (folder / "plain.single").mkdir()
    save_file(PLAIN, folder / "plain.single" / "all.safetensors")
    (folder / "file").touch()
    (folder / "damaged").mkdir()
    (folder / "damaged" / "all.safetensors").write_bytes(b"nothing of the kind")
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Tensors]:
    """The weights after two steps in one process."""
    after: dict[str, Tensors] = {}
    for kind in MODELS:
        trained = Trained(ModelSource(str(folder / kind)))
        trained.step(1)
        after[kind] = trained.step(2)
    return after


def check(found: dict[str, Tensors], expected: dict[str, Tensors], **tolerance: float) -> None:
    torch.testing.assert_close(found, expected, **(tolerance or {"atol": 0.0, "rtol": 0.0}))


@pytest.mark.slow
def test_saved_on_two_and_loaded_on_any_number(folder: Path, expected: dict[str, Tensors]) -> None:
    for saved, loaded, errors in run_processes(save_and_load, 2, folder, timeout=120):
        check(saved, expected, atol=1e-6, rtol=1e-5)
        check(loaded, saved, atol=1e-6, rtol=1e-5)  # the first step of `loaded` was made by one process
        assert "there is no other" in errors[0]
        assert "Size mismatch" in errors[1]
        assert errors[2] == "NotADirectoryError"
    assert_no_pickle(folder / "Qwen2.saved", files=2)
    check(load(folder, ".saved"), saved, atol=1e-6, rtol=1e-5)  # without a process group
    for world in (3, 4):
        for found in run_processes(save_and_load_plain, world, folder, timeout=120):
            check(found["plain"], {"": PLAIN})
            check(found["models"], saved, atol=1e-6, rtol=1e-5)
        assert_no_pickle(folder / "plain.ranks", files=world)
        plain = {name: torch.zeros_like(tensor) for name, tensor in PLAIN.items()}
        load_sharded(folder / "plain.ranks", plain)
        check({"": plain}, {"": PLAIN})
        remove_one(folder / "plain.ranks")


def remove_one(folder: Path) -> None:
    """A folder that lacks one rank's file is refused, and not loaded with holes."""
    files = sorted(folder.iterdir())
    files[0].unlink()
    with pytest.raises(ValueError, match="parts of few"):
        load_sharded(folder, {"few": torch.zeros(2, 3)})
    for file in files[1:]:
        file.unlink()


def assert_no_pickle(folder: Path, files: int) -> None:
    assert len(list(folder.iterdir())) == files
    for file in folder.iterdir():
        assert file.suffix == ".safetensors"
        with pytest.raises(ValueError, match=r"opcode|pickle|byte"):
            list(pickletools.genops(file.read_bytes()))


def test_one_process_saves_and_loads(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded_state, "FILE_BYTES", 10_000)
    trained = Trained(ModelSource(str(folder / "Qwen2")))
    trained.step(1)
    save_sharded(tmp_path, trained.state())
    assert_no_pickle(tmp_path, files=1 + sum(t.nbytes for t in trained.state().values()) // 10_000)
    again = Trained(ModelSource(str(folder / "Qwen2")))
    again.make_moments()
    load_sharded(tmp_path, again.state())
    check({"": again.step(2)}, {"": trained.step(2)})
