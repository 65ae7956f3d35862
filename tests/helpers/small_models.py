"""Small random models of several families, and a tokenizer of six words."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedModel, PreTrainedTokenizerFast

V = 97
SMALL: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,  # logits far enough from zero for caps and scales to matter
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 1}
KINDS: dict[str, dict[str, Any]] = {
    "Qwen3": {},
    "Qwen2": {"tie_word_embeddings": True},
    "Llama": {},
    "Gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "Granite": {"logits_scaling": 8.0},
    "Cohere": {"logit_scale": 0.25},
    "Qwen3Moe": MOE,
}


def make(kind: str, **settings: Any) -> PreTrainedModel:
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **KINDS.get(kind, {}), **settings})
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({"<pad>": 0, "<bos>": 1, "<eos>": 2, "a": 3, "b": 4, "?": 5}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="?")
