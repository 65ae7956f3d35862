"""Loading models of transformers, and the parity of our log-probs with their own logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from refusals import refused
from small_models import KINDS, SMALL, V, make, make_tokenizer
from ulorl.error_codes import ErrorCode
from ulorl.learner.logprobs import token_logprobs
from ulorl.learner.model_checks import check_head
from ulorl.models.head import head_of, hidden_states
from ulorl.models.model_loading import check_model, load_model
from ulorl.models.model_source import SHIPPED, ModelSource, context_length


def load(folder: Path | str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return load_model(ModelSource(str(folder)), dtype=dtype, device="cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "qwen3"
    make("Qwen3").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_equal_the_models_own_logits_also_when_padded(kind: str, tmp_path: Path) -> None:
    made = make(kind)
    made.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert not model.training
    check_head(model)

    lengths, S = [11, 7, 3], 11
    ids_BS = torch.randint(3, V, (3, S), generator=torch.Generator().manual_seed(1))
    mask_BS = (torch.arange(S) < torch.tensor(lengths)[:, None]).long()
    padded_BS = ids_BS * mask_BS
    positions_BS = torch.arange(S).expand(3, S)
    hidden_BSH = hidden_states(model, padded_BS, mask_BS, positions_BS)
    for b, length in enumerate(lengths):  # against the model as it was made, alone and without padding
        with torch.no_grad():
            logits = made.eval()(input_ids=ids_BS[b : b + 1, :length]).logits[0, :-1].double() / 0.85
        expected_TV = logits.log_softmax(-1)
        targets = ids_BS[b, 1:length]
        logprobs, entropy = token_logprobs(hidden_BSH[b, : length - 1], head_of(model), targets, 0.85, chunk_tokens=4)
        torch.testing.assert_close(
            logprobs.double(), expected_TV.gather(1, targets[:, None])[:, 0], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(entropy.double(), -(expected_TV.exp() * expected_TV).sum(-1), atol=1e-5, rtol=1e-5)


KINDS_OF_HEADS = ["Qwen3", "Qwen2", "Gemma2", "Cohere", "Qwen3Moe"]  # untied, tied, capped, scaled, above experts


@pytest.mark.parametrize("kind", KINDS_OF_HEADS)
def test_gradients_of_all_parameters_equal_those_through_the_models_logits(kind: str) -> None:
    model = make(kind).eval()
    ids = torch.randint(3, V, (2, 9), generator=torch.Generator().manual_seed(1))
    weights = torch.linspace(-1, 1, 16)  # a different upstream gradient for each token

    hidden = hidden_states(model, ids, None, None)[:, :-1].reshape(16, -1)
    (token_logprobs(hidden, head_of(model), ids[:, 1:].flatten(), 0.85, chunk_tokens=5)[0] * weights).sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    naive = (model(ids).logits[:, :-1] / 0.85).log_softmax(-1).gather(2, ids[:, 1:, None]).flatten()
    (naive * weights).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_bf16_model_is_close_to_its_float32_self(saved: Path) -> None:
    half, full = load(saved, torch.bfloat16), load(saved)
    check_head(half)
    full.load_state_dict({k: v.float() for k, v in half.state_dict().items()})
    ids = torch.arange(3, 20)[None]
    hidden = hidden_states(half, ids, None, None)[0, :-1]
    assert hidden.dtype == torch.bfloat16
    logprobs, _ = token_logprobs(hidden, head_of(half), ids[0, 1:], 1.0)
    expected, _ = token_logprobs(hidden.float(), head_of(full), ids[0, 1:], 1.0)
    assert torch.equal(logprobs, expected)  # the same bf16 numbers, multiplied in float32: nothing is lost in the head


def test_check_head_refuses_what_it_does_not_know() -> None:
    model = make("Qwen3")
    model.lm_head.register_forward_hook(lambda _module, _args, logits: logits + logits.square())
    with refused(ErrorCode.MODEL_UNSUPPORTED):
        check_head(model)


def test_check_head_refuses_a_forgotten_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ulorl.models.head._scale", lambda _config: 1.0)
    with refused(ErrorCode.MODEL_UNSUPPORTED):
        check_head(make("Granite"))


def test_a_head_with_a_bias_passes_the_check() -> None:
    phi = make("Phi", partial_rotary_factor=0.5)  # its head has a bias
    with torch.no_grad():
        phi.lm_head.bias.normal_()
    assert head_of(phi).bias_V is phi.lm_head.bias
    check_head(phi)


def test_tied_weights_are_not_missing_and_stay_tied(tmp_path: Path) -> None:
    make("Qwen2").save_pretrained(tmp_path)
    model = load(tmp_path)
    assert head_of(model).weight_VH is model.get_input_embeddings().weight


def test_dropout_is_off(tmp_path: Path) -> None:
    make("Qwen3", attention_dropout=0.5).save_pretrained(tmp_path)
    model, ids = load(tmp_path), torch.arange(3, 12)[None]
    assert torch.equal(hidden_states(model, ids, None, None), hidden_states(model, ids, None, None))


# What a user gets wrong: each message names the folder and says what is the matter.


def load_refused(path: Path | str, code: ErrorCode, *says: str) -> None:
    """`says`: the names that the message must give."""
    with refused(code, file=path) as error:
        load(path)
    for text in says:
        assert text in str(error.value)


def test_missing_folder(tmp_path: Path) -> None:
    load_refused(tmp_path / "nowhere", ErrorCode.MODEL_NOT_FOUND)


def test_hub_name_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    load_refused("nobody/nothing", ErrorCode.MODEL_NOT_FOUND, "in the cached files.)")  # a whole sentence


def test_a_file_is_not_a_folder(saved: Path) -> None:
    load_refused(saved / "model.safetensors", ErrorCode.MODEL_NOT_FOUND)


def test_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    load_refused(folder, ErrorCode.MODEL_NOT_FOUND, "config.json")


@pytest.mark.parametrize("text", ["{", '{"model_type": "no_such_model"}', "[]", "{}"])
def test_damaged_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    load_refused(folder, ErrorCode.MODEL_CONFIG, "config.json")


def test_weights_missing_from_the_folder(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.unlink()
    load_refused(folder, ErrorCode.MODEL_WEIGHTS, "no *.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    load_refused(folder, ErrorCode.MODEL_WEIGHTS, "pytorch_model.bin")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_weights(folder: Path, keep: float) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    load_refused(folder, ErrorCode.MODEL_WEIGHTS)


def test_weights_that_are_not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00not safetensors at all" * 100)
    load_refused(folder, ErrorCode.MODEL_WEIGHTS)


def test_missing_shard(tmp_path: Path) -> None:
    make("Qwen3").save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    shards[0].unlink()
    load_refused(tmp_path, ErrorCode.MODEL_WEIGHTS)


def test_missing_tensor_is_refused_not_drawn_at_random(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_refused(folder, ErrorCode.MODEL_WEIGHTS, "lack 1 of", "model.layers.1.mlp.up_proj.weight")


def test_weights_of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    load_refused(folder, ErrorCode.MODEL_WEIGHTS, "6 tensors", "down_proj.weight: [16, 24] in the file, [16, 32]")


def test_weights_of_more_layers_than_the_config(folder: Path) -> None:
    """transformers would load the first layers and forget the others."""
    config = json.loads((folder / "config.json").read_text())
    del config["layer_types"]
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    load_refused(folder, ErrorCode.MODEL_WEIGHTS, "11 tensors", "model.layers.1.", "num_hidden_layers")


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers(folder: Path, bad: float) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = bad
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_refused(folder, ErrorCode.MODEL_WEIGHTS, "model.layers.1.mlp.up_proj.weight")


# The same without reading weights: headers against a model on the meta device.


def checked(folder: Path | str) -> PreTrainedModel:
    return check_model(ModelSource(str(folder)))


@pytest.mark.parametrize("kind", KINDS)
def test_headers_of_a_whole_folder_pass(kind: str, tmp_path: Path) -> None:
    made = make(kind)
    made.save_pretrained(tmp_path, max_shard_size="10KB")
    model = checked(tmp_path)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in made.named_parameters()}
    assert all(p.is_meta for p in model.parameters())


def test_a_base_model_without_its_head_passes_when_the_head_is_tied(tmp_path: Path) -> None:
    made = make("Qwen2")
    made.model.save_pretrained(tmp_path)  # names without `model.`
    made.config.architectures = None
    made.config.save_pretrained(tmp_path)
    checked(tmp_path)
    load(tmp_path)


def header_refused(path: Path, code: ErrorCode, *says: str) -> None:
    with refused(code, file=path) as error:
        checked(path)
    for text in says:
        assert text in str(error.value)


def test_headers_show_what_loading_would(folder: Path, saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights, settings = folder / "model.safetensors", json.loads((saved / "config.json").read_text())
    whole = weights.read_bytes()
    for cut in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:cut])
        header_refused(folder, ErrorCode.MODEL_WEIGHTS, "model.safetensors")
    weights.write_bytes(whole)
    (folder / "config.json").write_text(json.dumps({**settings, "intermediate_size": 32}))
    header_refused(folder, ErrorCode.MODEL_WEIGHTS, "6 tensors", "[16, 24] in the file, [16, 32] by config.json")
    (folder / "config.json").write_text(json.dumps({**settings, "num_attention_heads": 0}))
    header_refused(folder, ErrorCode.MODEL_CONFIG, "config.json")
    (folder / "config.json").write_text(json.dumps(settings))
    tensors = load_file(saved / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n != "model.norm.weight"}, weights, metadata={"format": "pt"})
    header_refused(folder, ErrorCode.MODEL_WEIGHTS, "lack 1 of", "(model.norm.weight)")
    save_file({f"h.{n}": t for n, t in enumerate(tensors.values())}, weights, metadata={"format": "pt"})
    header_refused(folder, ErrorCode.MODEL_WEIGHTS)
    weights.unlink()
    header_refused(folder, ErrorCode.MODEL_WEIGHTS, "no *.safetensors")


def test_headers_of_shards(tmp_path: Path) -> None:
    make("Qwen3").save_pretrained(tmp_path, max_shard_size="10KB")
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    index.write_text(json.dumps({**whole, "weight_map": {**whole["weight_map"], "model.more": "lost.safetensors"}}))
    header_refused(tmp_path, ErrorCode.MODEL_WEIGHTS, "lost.safetensors")
    first = next(iter(whole["weight_map"].values()))
    index.write_text(json.dumps({**whole, "weight_map": {**whole["weight_map"], "model.more": first}}))
    header_refused(tmp_path, ErrorCode.MODEL_WEIGHTS, f"{first} lacks model.more")
    index.write_text("{")
    header_refused(tmp_path, ErrorCode.MODEL_WEIGHTS, "model.safetensors.index.json")


def test_classifier_is_not_a_causal_lm(tmp_path: Path) -> None:
    config = transformers.Qwen3Config(**SMALL, tie_word_embeddings=True)
    transformers.Qwen3ForSequenceClassification(config).save_pretrained(tmp_path)
    load_refused(tmp_path, ErrorCode.MODEL_UNSUPPORTED, "Qwen3ForSequenceClassification")


def test_encoder_decoder_is_not_a_causal_lm(tmp_path: Path) -> None:
    transformers.T5Config(vocab_size=V).save_pretrained(tmp_path)
    load_refused(tmp_path, ErrorCode.MODEL_UNSUPPORTED, "t5")


def test_remote_code_is_refused_unless_asked_for(folder: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('remote code was run')")
    load_refused(folder, ErrorCode.MODEL_REMOTE_CODE)


def test_missing_or_damaged_tokenizer(folder: Path) -> None:
    tokenizer = ModelSource(str(folder)).tokenizer
    assert tokenizer.encode("a b") == [3, 4]
    (folder / "tokenizer.json").write_text("{")
    with refused(ErrorCode.MODEL_TOKENIZER, file=folder):
        _ = ModelSource(str(folder)).tokenizer
    (folder / "tokenizer.json").unlink()
    with refused(ErrorCode.MODEL_TOKENIZER, file=folder):
        _ = ModelSource(str(folder)).tokenizer
    (folder / "tokenizer_config.json").unlink()
    with refused(ErrorCode.MODEL_TOKENIZER, file=folder):
        _ = ModelSource(str(folder)).tokenizer


def test_names_of_shipped_models_resolve_to_folders(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    for name, task in SHIPPED.items():
        folder = Path(ModelSource(name).location)
        assert (folder.name, (folder / "model.safetensors").is_file()) == (task, True)
    monkeypatch.setattr("ulorl.models.tiny.model_path", lambda _: saved)
    assert load("ulorl:tiny-maze").config.vocab_size == V


def test_an_unknown_shipped_model_is_refused_with_those_that_there_are() -> None:
    with refused(ErrorCode.MODEL_NOT_FOUND, file="ulorl:huge") as caught:
        _ = ModelSource("ulorl:huge").location
    assert "ulorl:tiny (countdown), ulorl:tiny-maze (maze)" in str(caught.value)


@pytest.mark.parametrize(
    ("generation", "model_config", "tokenizer", "expected"),
    [([6, 5], 2, 2, (2, 5, 6)), (6, None, 2, (2, 6)), (None, 4, None, (4,)), (None, None, 2, (2,))],
)
def test_eos_ids_are_the_union(
    generation: int | list[int] | None,
    model_config: int | None,
    tokenizer: int | None,
    expected: tuple[int, ...],
    tmp_path: Path,
) -> None:
    model, words = make("Qwen3"), make_tokenizer()
    model.generation_config.eos_token_id, model.config.eos_token_id = generation, model_config
    model.config.save_pretrained(tmp_path)
    model.generation_config.save_pretrained(tmp_path)
    words.eos_token = None if tokenizer is None else words.convert_ids_to_tokens(tokenizer)
    words.save_pretrained(tmp_path)
    assert ModelSource(str(tmp_path)).eos_ids == expected


def test_no_eos_at_all_is_refused(tmp_path: Path) -> None:
    """Here without a generation_config.json."""
    model, words = make("Qwen3"), make_tokenizer()
    model.config.eos_token_id = words.eos_token = None
    model.config.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with refused(ErrorCode.MODEL_TOKENIZER, file=tmp_path):
        _ = ModelSource(str(tmp_path)).eos_ids


@pytest.mark.parametrize("text", ["{", "\xff", '{"eos_token_id": "</s>"}', '{"eos_token_id": [-2]}'])
def test_bad_eos_is_refused(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text, encoding="latin-1")
    with refused(ErrorCode.MODEL_CONFIG, file=folder):
        _ = ModelSource(str(folder)).eos_ids


def test_eos_beyond_the_vocabulary_ends_nothing(folder: Path) -> None:
    """Of the model's 97 tokens none is one of these; the tokenizer is another model's."""
    for file in ("config.json", "generation_config.json"):
        settings = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**settings, "eos_token_id": 500}))
    words = make_tokenizer()
    words.eos_token = None
    words.save_pretrained(folder)
    with refused(ErrorCode.MODEL_TOKENIZER, file=folder):
        _ = ModelSource(str(folder)).eos_ids


def test_loaded_weights_are_aligned_as_torch_aligns_them(folder: Path) -> None:
    """In the file they begin behind a header of any length, here at 24 and 56 bytes past such an address."""
    loaded = load_model(ModelSource(str(folder)), dtype=torch.float32, device="cpu")
    assert {parameter.data_ptr() % 64 for parameter in loaded.parameters()} == {0}


def test_context_length() -> None:
    assert context_length(make("Qwen3")) == 64
    # YaRN as in the paper's section 4.1, but small: factor 1.5 on 32 original positions is 48, above the 40 configured
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 1.5, "original_max_position_embeddings": 32}
    assert context_length(make("Qwen3", rope_parameters=rope, max_position_embeddings=40)) == 48
