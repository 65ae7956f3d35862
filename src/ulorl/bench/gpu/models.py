"""Qwen3 models with random weights, made on the device: no file and no network is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen3 model, as in the config.json of the published ones."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocabulary: int = 151_936
    tied: bool = True

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads) + 2 * self.head_dim
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden + (1 if self.tied else 2) * self.vocabulary * self.hidden


SHAPES = {
    "Qwen3-8B": Shape(4096, 12288, 36, 32, 8, tied=False),
    "Qwen3-4B": Shape(2560, 9728, 36, 32, 8),
    "Qwen3-1.7B": Shape(2048, 6144, 28, 16, 8),
    "Qwen3-0.6B": Shape(1024, 3072, 28, 16, 8),
    "small": Shape(32, 64, 2, 4, 2, head_dim=8, vocabulary=199),
}


def random_model(name: str, *, dtype: torch.dtype, device: str, positions: int) -> PreTrainedModel:
    """Return a model of `SHAPES` with seeded random weights in eval mode. positions: its longest context."""
    shape = SHAPES[name]
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=positions,
        tie_word_embeddings=shape.tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    torch.manual_seed(0)
    with torch.device(device), _default_dtype(dtype):
        model: PreTrainedModel = Qwen3ForCausalLM(config)
    return model.eval()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors in this dtype, so that a large model is never there in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
