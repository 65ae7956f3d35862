"""A tiny llama is written as GGUF the way llama.cpp's converter does it, imported, and compared with its original."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from refusals import refused
from ulorl.error_codes import ErrorCode
from ulorl.models.gguf import import_gguf

CHAT = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
SPECIAL = ["<|user|>", "<|end|>", "<|eot|>"]  # ids 256, 257, 258
PAIRS = ["Ċ Ċ", "1 2"]  # merges: two newlines are a token (259), and so is 12 (260)
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=261,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_theta=5000.0,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(path: Path, model: LlamaForCausalLM, *, pre: str = "smollm", eos: int | None = 257) -> Path:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer, pre, eos)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            writer.add_tensor(gguf_name(name), llama_cpp_layout(name, tensor, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: Any, pre: str, eos: int | None) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    merged = [pair.replace(" ", "") for pair in PAIRS]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*sorted(ByteLevel.alphabet()), *SPECIAL, *merged])
    writer.add_token_types([1] * 256 + [3] * 3 + [1] * 2)  # 1 normal, 3 control
    writer.add_token_merges(PAIRS)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)
    if eos is not None:
        writer.add_eos_token_id(eos)
        writer.add_eot_token_id(258)


def gguf_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def llama_cpp_layout(name: str, tensor: torch.Tensor, config: LlamaConfig) -> np.ndarray[Any, Any]:
    """llama.cpp interleaves the two halves of each query and key head (its rotary embedding turns neighbours)."""
    array = tensor.detach().numpy()
    for proj, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if proj in name:
            rows, columns = array.shape
            array = array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return np.ascontiguousarray(array)


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="module")
def imported(original: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    file = write_gguf(folder / "tiny.gguf", original)
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(file, "tiny/tiny.gguf")
        wheel.writestr("tiny/__init__.py", "")
    return import_gguf(folder / "tiny-1.0-py3-none-any.whl", folder / "models" / "tiny")


def test_logits_are_the_originals(original: LlamaForCausalLM, imported: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(imported)
    tokens = torch.arange(1, 40).unsqueeze(0)
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens).logits, original(tokens).logits, rtol=1e-5, atol=1e-6)
    assert model.config.to_dict().get("quantization_config") is None
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32


def test_tokenizer_splits_digits_and_keeps_the_chat_template(imported: Path) -> None:
    """smollm splits digits one by one: 12 is not merged, the newlines before it are; gpt-2 does the opposite."""
    tokenizer = AutoTokenizer.from_pretrained(imported)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12")["input_ids"]) == ["a", "ĊĊ", "1", "2"]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], return_dict=True)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(prompt) == ["<|user|>", "a", "<|end|>"]
    assert tokenizer.decode(prompt, skip_special_tokens=True) == "a"
    assert tokenizer.eos_token_id == 257


def test_a_gpt2_split_merges_digits(original: LlamaForCausalLM, tmp_path: Path) -> None:
    folder = import_gguf(write_gguf(tmp_path / "a.gguf", original, pre="gpt-2"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12")["input_ids"]) == ["a", "Ċ", "Ċ", "12"]


def test_every_token_that_ends_a_turn_ends_generation(imported: Path) -> None:
    assert GenerationConfig.from_pretrained(imported).eos_token_id == [257, 258]


@pytest.mark.parametrize(
    ("keys", "named"),
    [({"pre": "no-such-split"}, "tokenizer.ggml.pre='no-such-split'"), ({"eos": None}, "eos_token_id")],
)
def test_a_file_that_cannot_be_imported_rightly_leaves_nothing(
    original: LlamaForCausalLM, tmp_path: Path, keys: dict[str, Any], named: str
) -> None:
    file = write_gguf(tmp_path / "a.gguf", original, **keys)
    with refused(ErrorCode.MODEL_UNSUPPORTED, file=file) as error:
        import_gguf(file, tmp_path / "out")
    assert named in str(error.value)
    assert list(tmp_path.iterdir()) == [file]


def test_bad_sources_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(ErrorCode.MODEL_UNSUPPORTED, file=tmp_path / "none.gguf"):
        import_gguf(tmp_path / "none.gguf", tmp_path / "out")
    (tmp_path / "a.gguf").write_bytes(b"not one")
    with refused(ErrorCode.MODEL_UNSUPPORTED, file=tmp_path / "a.gguf"):
        import_gguf(tmp_path / "a.gguf", tmp_path / "out")
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    with refused(ErrorCode.MODEL_UNSUPPORTED, file=tmp_path / "b.gguf"):
        import_gguf(tmp_path / "b.gguf", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "c.whl", "w") as wheel:
        wheel.writestr("a.gguf", "")
        wheel.writestr("b.gguf", "")
    with refused(ErrorCode.MODEL_UNSUPPORTED, file=tmp_path / "c.whl"):
        import_gguf(tmp_path / "c.whl", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with refused(ErrorCode.OUTPUT_EXISTS, file=tmp_path / "out"):
        import_gguf(tmp_path / "a.gguf", tmp_path / "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with refused(ErrorCode.EXTRA_MISSING):
        import_gguf(tmp_path / "a.gguf", tmp_path / "new")
