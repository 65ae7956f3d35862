"""The numbers of a model that its memory depends on, read from config.json; no weights are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.models.meta_model import make_meta_model
from ulorl.models.model_source import ModelSource, text_config

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # names of different families


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a causal language model.

    layers: the parameters of each decoder layer. outside: those of embedding, last norm and head. intermediate: the
    width of a dense MLP, or of one expert. experts, active: the experts of a layer and those that one token uses; both
    are 0 for a dense model. qk_norm: whether queries and keys are normalised. adapter_width: the parameters that LoRA
    adds to all linear layers and experts inside the layers for each unit of its rank; peft adds fewer to models whose
    experts it leaves out, as Qwen2-MoE's.
    """

    layers: tuple[int, ...]
    outside: int
    tied: bool
    hidden: int
    vocabulary: int
    query_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    experts: int
    active: int
    qk_norm: bool
    adapter_width: int

    @property
    def parameters(self) -> int:
        """The number of parameters, a tied head counted once."""
        return sum(self.layers) + self.outside

    @property
    def head(self) -> int:
        """The number of parameters of the head, [vocabulary, hidden], which a tied model shares with its embedding."""
        return self.vocabulary * self.hidden

    @property
    def cache_values(self) -> int:
        """The numbers that the keys and values of one token take in all layers."""
        return 2 * len(self.layers) * self.kv_heads * self.head_dim


def read_sizes(source: ModelSource) -> ModelSizes:
    """Return the sizes of the model of a source's config.json, counted on torch's meta device.

    Raises UserError when config.json cannot be read, or describes a model whose memory cannot be planned: one without
    decoder layers, or with keys and values of another form than heads x head dimension.
    """
    model = make_meta_model(source)
    config = text_config(source.config)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or hasattr(config, "kv_lora_rank") or not hasattr(config, "num_attention_heads"):
        raise UserError(
            f"{source.path}: plan memory knows models that are decoder layers with attention heads, as Llama, Qwen3 or "
            f"Qwen3-MoE; {type(model).__name__} is of another form",
            code=ErrorCode.MODEL_UNSUPPORTED,
            file=source.path,
        )
    inside = tuple(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers)
    experts = next((int(getattr(config, name)) for name in _EXPERTS if getattr(config, name, None)), 0)
    width = getattr(config, "moe_intermediate_size", None) if experts else None
    return ModelSizes(
        layers=inside,
        outside=model.num_parameters() - sum(inside),
        tied=_is_tied(model),
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        query_heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        intermediate=width or _width(config),
        experts=experts,
        active=config.num_experts_per_tok if experts else 0,
        qk_norm=any(name.endswith("q_norm.weight") for name, _ in model.named_parameters()),
        adapter_width=sum(map(_adapter_width, layers)),
    )


def _is_tied(model: PreTrainedModel) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is embedding.weight


def _width(config: Any) -> int:
    return int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)


def _adapter_width(layer: nn.Module) -> int:
    """Rank-1 adapters of [out, in], the router's included, take out + in parameters. Experts are [experts, out, in];
    their gate and up projections are one parameter, whose adapters peft makes of twice the rank."""
    weights = dict(layer.named_parameters())
    width = sum(sum(p.shape) for p in weights.values() if p.ndim == 2)
    for name, p in weights.items():
        if p.ndim == 3:
            width += p.shape[0] * (p.shape[1] + p.shape[2]) * (2 if name.endswith("gate_up_proj") else 1)
    return width
