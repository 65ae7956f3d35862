"""The conversion between a model's parameters and the tensors of its files, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from live_tensors import LiveTensors
from small_models import KINDS, make
from ulorl.models.weight_conversion import WeightConversion


@pytest.mark.parametrize("kind", [*KINDS, "Mixtral"])
def test_layer_by_layer_gives_what_the_whole_model_gives_and_places_invert_it(kind: str) -> None:
    model = make(kind)
    named = {name: p.detach() for name, p in model.named_parameters()}
    conversion = WeightConversion(model)
    found = dict(conversion.convert(named.items()))
    expected = revert_weight_conversion(model, dict(named))
    assert {name: (t.dtype, t.shape) for name, t in conversion.stored().items()} == {
        name: (t.dtype, t.shape) for name, t in expected.items()
    }
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    places = conversion.places()
    assert places is not None
    for name, tensor in named.items():
        filled = torch.full_like(tensor, torch.nan)
        for place in places[name]:
            filled.as_strided(place.size, place.stride, place.offset).copy_(found[place.stored])
        assert torch.equal(filled, tensor)


def test_names_may_come_in_any_order_but_must_be_known_and_all_there() -> None:
    model = make("Qwen3Moe")
    named = list(model.named_parameters())
    conversion = WeightConversion(model)
    forwards, backwards = dict(conversion.convert(named)), dict(conversion.convert(named[::-1]))
    assert forwards.keys() == backwards.keys()
    with pytest.raises(ValueError, match=r"unknown model\.layers\.7"):
        list(conversion.convert([*named, ("model.layers.7.mlp.weight", torch.zeros(1))]))
    with pytest.raises(ValueError, match=r"missing model\.norm\.weight"):
        list(conversion.convert((name, p) for name, p in named if name != "model.norm.weight"))


def test_a_conversion_across_layers_takes_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should transformers ever join tensors of several layers, the result is still its own."""

    def joined(_model: object, named: dict[str, Tensor]) -> dict[str, Tensor]:
        norms = [tensor for name, tensor in named.items() if name.endswith("input_layernorm.weight")]
        rest = {name: tensor for name, tensor in named.items() if not name.endswith("input_layernorm.weight")}
        return rest | ({"norms": torch.stack(norms)} if norms else {})

    monkeypatch.setattr("ulorl.models.weight_conversion.revert_weight_conversion", joined)
    model = make("Qwen3")
    conversion = WeightConversion(model)
    assert dict(conversion.convert(model.named_parameters()))["norms"].shape == (2, 16)
    assert conversion.places() is None


@pytest.mark.parametrize("kind", ["Qwen3", "Qwen3Moe"])
def test_at_most_two_layers_and_the_root_are_alive(kind: str) -> None:
    with torch.device("meta"):
        model = make(kind, num_hidden_layers=12)
    sizes = {name: p.nbytes for name, p in model.named_parameters()}
    layer = sum(size for name, size in sizes.items() if name.startswith("model.layers.0."))
    root = sum(size for name, size in sizes.items() if ".layers." not in name)

    def gathered() -> Iterator[tuple[str, Tensor]]:
        for name, p in model.named_parameters():
            yield name, torch.zeros(p.shape)

    conversion = WeightConversion(model)
    with LiveTensors() as live:
        for _ in conversion.convert(gathered()):
            pass
    assert layer < live.peak < 2 * layer + root
