"""A model folder whose next token depends on the last one alone, so that a test can say what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, END, UNKNOWN = "<pad>", "<eos>", "?"


def save_bigram_model(folder: Path, following: Mapping[str, str]) -> Path:
    """Write a model that says `following[word]` after `word`, and ends its output after any other word.

    Attention and the feed-forward layer add nothing, the embeddings of the words are orthogonal, and the head gives the
    following word a logit that is larger by about 100.
    """
    words = [PAD, END, UNKNOWN, *sorted({*following, *following.values()})]
    size = max(16, len(words))
    config = Qwen3Config(
        vocab_size=len(words), hidden_size=size, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=256, eos_token_id=1, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(words), size))
        model.lm_head.weight.zero_()
        for index, word in enumerate(words):
            model.lm_head.weight[words.index(following.get(word, END)), index] = 25.0  # times sqrt(size) by RMSNorm
    model.save_pretrained(folder)
    vocabulary = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    vocabulary.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, eos_token=END, pad_token=PAD, unk_token=UNKNOWN
    ).save_pretrained(folder)
    return folder
