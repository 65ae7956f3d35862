"""AdamW with its state on the device or on the CPU. Without a GPU both are the CPU: what is tested is that the copies
change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import Linear, Parameter

from ulorl.config.training_config import OptimConfig
from ulorl.learner.learner_files import load_moments
from ulorl.learner.optimizer import Optimizer
from ulorl.learner.sharded_state import save_sharded


def linear() -> Linear:
    torch.manual_seed(0)
    return Linear(5, 3)


def optimizer(model: Linear, **optim: object) -> Optimizer:
    return Optimizer(dict(model.named_parameters()), OptimConfig(**{"lr": 1e-2, "weight_decay": 0.1, **optim}))


def train(model: Linear, of: Optimizer, steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        of.zero_grad()
        model(torch.randn(7, 5, generator=generator)).square().sum().backward()
        of.step()


def test_a_step_by_hand() -> None:
    """Gradients 0.5 and -2, betas (0.9, 0.999): m = 0.1 g, v = 0.001 g^2; corrected by 1 - 0.9 and 1 - 0.999 they are g
    and g^2, so the first step is lr * sign(g), 0.01, for every g, and weight decay takes lr * 0.1 * w = 0.001 w."""
    weight = Parameter(torch.tensor([1.0, 3.0]))
    of = Optimizer({"w": weight}, OptimConfig(lr=1e-2, weight_decay=0.1))
    weight.grad = torch.tensor([0.5, -2.0])
    assert of.step() == 1e-2
    torch.testing.assert_close(weight.detach(), torch.tensor([1 - 0.001 - 0.01, 3 - 0.003 + 0.01]))
    of.zero_grad()
    assert weight.grad is None


@pytest.mark.parametrize("offload", [False, True])
def test_warm_up_is_linear_then_constant(offload: bool) -> None:
    model = linear()
    of = optimizer(model, lr=8e-3, warmup_steps=4, offload=offload)
    rates = []
    for _ in range(6):
        model(torch.ones(1, 5)).sum().backward()
        rates.append(of.step())
    assert rates == [2e-3, 4e-3, 6e-3, 8e-3, 8e-3, 8e-3]


def test_offloading_is_the_same_arithmetic() -> None:
    here, there = linear(), linear()
    train(here, optimizer(here), steps=5)
    of = optimizer(there, offload=True)
    train(there, of, steps=5)
    assert all(torch.equal(a, b) for a, b in zip(here.parameters(), there.parameters(), strict=True))
    assert not torch.equal(here.weight, linear().weight)
    # the moments belong to copies: nothing of AdamW hangs on the model's own parameters
    assert not set(map(id, of._adamw.state)) & set(map(id, there.parameters()))
    assert len(of._adamw.state) == 2


def test_offloading_sees_weights_changed_from_outside() -> None:
    here, there = linear(), linear()
    pair = [(here, optimizer(here)), (there, optimizer(there, offload=True))]
    for model, of in pair:
        train(model, of, steps=1)
        with torch.no_grad():
            model.weight.mul_(2)
        train(model, of, steps=1, seed=2)
    assert torch.equal(here.weight, there.weight)


@pytest.mark.parametrize("offload", [False, True])
def test_parameters_without_gradient_stay(offload: bool) -> None:
    model = linear()
    of = optimizer(model, offload=offload)
    model.weight.grad = torch.ones_like(model.weight)
    of.step()
    assert torch.equal(model.bias, linear().bias)
    assert not torch.equal(model.weight, linear().weight)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("loaded", [False, True])
def test_state_survives_a_file_with_and_without_offloading(tmp_path: Path, saved: bool, loaded: bool) -> None:
    """Three steps in a row equal two, a file, and one more, also when the run before it kept its state elsewhere."""
    straight, before, after = linear(), linear(), linear()
    first = optimizer(straight, warmup_steps=10)
    train(straight, first, steps=2)
    train(straight, first, steps=1, seed=2)

    writer = optimizer(before, warmup_steps=10, offload=saved)
    train(before, writer, steps=2)
    save_file(writer.state(), tmp_path / "o.safetensors")
    assert set(load_file(tmp_path / "o.safetensors")) == {
        *(f"{name}/{slot}" for name in ("weight", "bias") for slot in ("exp_avg", "exp_avg_sq", "step")), "updates",
    }  # fmt: skip
    after.load_state_dict(before.state_dict())
    reader = optimizer(after, warmup_steps=10, offload=loaded)
    reader.load_state(load_file(tmp_path / "o.safetensors"))
    train(after, reader, steps=1, seed=2)
    assert reader.updates == 3
    assert torch.equal(after.weight, straight.weight)


def test_a_parameter_without_gradients_has_no_moments_in_a_sharded_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    first, second = ({"used": Parameter(torch.ones(3)), "unused": Parameter(torch.ones(2))} for _ in range(2))
    saved, loaded = (Optimizer(named, OptimConfig(lr=1e-2)) for named in (first, second))
    first["used"].grad = torch.tensor([1.0, 2.0, 3.0])
    saved.step()
    save_sharded(tmp_path / "shards", saved.state())
    load_moments(loaded, tmp_path)
    assert loaded.state().keys() == saved.state().keys()
    assert all(torch.equal(value, loaded.state()[name]) for name, value in saved.state().items())
    cut = {name: value for name, value in saved.state().items() if name != "used/exp_avg"}
    (tmp_path / "cut" / "shards").mkdir(parents=True)
    save_sharded(tmp_path / "cut" / "shards", cut)
    with pytest.raises(ValueError, match="used/exp_avg"):
        load_moments(loaded, tmp_path / "cut")
