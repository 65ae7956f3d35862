"""Certainly bad model and run folders, beside the configurations of `bad_inputs` and the data of `bad_files`."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

from bad_files import good_data, parquet
from bad_inputs import COUNTDOWN, Case, Mutation
from ulorl.config.loading import load
from ulorl.models.tiny import model_path

# Model folders


def model_case(folder: Path, model: Path, *says: str, overrides: tuple[str, ...] = ()) -> Case:
    return Case((*good_data(folder), f"model.path={model}", *overrides), says)


def copy_model(folder: Path, *, weights: bool = True) -> Path:
    """The tiny model; its weights are a link, to be replaced and not written to."""
    target = folder / "model"
    target.mkdir()
    for file in model_path().iterdir():
        if file.suffix == ".json":
            shutil.copy(file, target)
        elif weights:
            os.symlink(file, target / file.name)
    return target


def changed_config(folder: Path, **changes: Any) -> Path:
    """None leaves a key out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def missing_model_file(rng: random.Random, folder: Path) -> Case:
    model = copy_model(folder)
    name, says = rng.choice([
        ("config.json", "no config.json"), ("model.safetensors", "no *.safetensors"), ("tokenizer.json", "tokenizer")
    ])  # fmt: skip
    (model / name).unlink()
    if rng.random() < 0.3:
        (model / "pytorch_model.bin").write_bytes(b"\x80\x04")
    return model_case(folder, model, str(model), says)


def no_model_folder(rng: random.Random, folder: Path) -> Case:
    (folder / "file").write_text("x")
    (folder / "empty").mkdir()
    name = rng.choice(["nowhere", "file", "empty", "file/below", "n" * 300, "a b/c"])
    return model_case(folder, folder / name, str(folder / name))


def broken_json(rng: random.Random, folder: Path) -> Case:
    """A JSON file of the model folder that ends early, is not UTF-8, or holds something else."""
    model = copy_model(folder)
    name = rng.choice(["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
    raw = (model / name).read_bytes()
    cut = raw[: rng.randrange(1, len(raw) - 2)]
    (model / name).write_bytes(rng.choice([cut, cut, cut, b"", b"[]", b"\xff" + raw, rng.randbytes(100), b"3"]))
    said = {"config.json": "config.json", "generation_config.json": "generation_config.json"}.get(name, "tokenizer")
    return model_case(folder, model, str(model), said)


SIZES: list[dict[str, Any]] = [
    {"hidden_size": 64}, {"hidden_size": 256}, {"hidden_size": 0}, {"hidden_size": "128"}, {"intermediate_size": 383},
    {"intermediate_size": -1}, {"vocab_size": 110}, {"vocab_size": 112}, {"vocab_size": 0}, {"vocab_size": 1.5},
    {"num_attention_heads": 8}, {"num_attention_heads": 0}, {"num_key_value_heads": 1}, {"num_key_value_heads": 3},
    {"head_dim": 16}, {"head_dim": 31}, {"head_dim": 0}, {"num_hidden_layers": 3}, {"num_hidden_layers": 5},
    {"num_hidden_layers": 3, "layer_types": None}, {"num_hidden_layers": 5, "layer_types": None},
    {"num_hidden_layers": 1, "layer_types": None}, {"model_type": "gpt2"}, {"model_type": "no_such"},
    {"model_type": "t5"}, {"model_type": 3}, {"model_type": None}, {"model_type": "llama", "attention_bias": True},
    {"architectures": ["Qwen3ForSequenceClassification"]}, {"hidden_act": "nothing"}, {"hidden_act": 3},
    {"rope_parameters": 3}, {"rope_parameters": {"rope_type": "odd"}}, {"tie_word_embeddings": False},
    {"max_position_embeddings": "long"}, {"max_position_embeddings": 16}, {"eos_token_id": "x"},
    {"layer_types": ["full"] * 4}, {"layer_types": ["sliding_attention"] * 4, "sliding_window": 8},
    {"rms_norm_eps": "small"}, {"dtype": "float99"},
]  # fmt: skip


def config_against_weights(rng: random.Random, folder: Path) -> Case:
    return model_case(folder, changed_config(copy_model(folder), **rng.choice(SIZES)), str(folder / "model"))


def damaged_weights(rng: random.Random, folder: Path) -> Case:
    model = copy_model(folder, weights=False)
    raw = (model_path() / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    spoilt = rng.choice([
        raw[: rng.randrange(len(raw))],
        raw[: rng.randrange(header)],
        raw[:-1],
        raw + b"\0",
        b"",
        rng.randbytes(1000),
        (2**62).to_bytes(8, "little") + raw[8:],
        (header - 20).to_bytes(8, "little") + raw[8:],
        raw[:8] + b"\xff" * 50 + raw[58:],
        raw[:header].replace(b"F32", b"F16") + raw[header:],
        raw[:header].replace(b"data_offsets", b"data_offfets", 1) + raw[header:],
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3213032\n",
    ])  # fmt: skip
    (model / "model.safetensors").write_bytes(spoilt)
    return model_case(folder, model, str(model), "model.safetensors: the weights cannot be loaded")


def other_tensors(rng: random.Random, folder: Path) -> Case:
    from safetensors.numpy import load_file, save_file

    model = copy_model(folder, weights=False)
    tensors = load_file(model_path() / "model.safetensors")
    name = rng.choice([n for n in tensors if not n.startswith("lm_head")])
    kind = rng.choice(["gone", "renamed", "shape", "layer"])
    if kind == "shape":
        tensors[name] = tensors[name][:-1].copy()
    elif kind == "layer":
        name = rng.choice([n for n in tensors if ".3." in n])
        tensors[name.replace(".3.", ".4.")] = tensors[name]
        name = name.replace(".3.", ".4.")
    else:
        value = tensors.pop(name)
        tensors |= {f"{name}s": value} if kind == "renamed" else {}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model_case(folder, model, str(model), name)


def bad_index(rng: random.Random, folder: Path) -> Case:
    model = copy_model(folder)
    name = "model-00001-of-00001.safetensors"
    (model / "model.safetensors").rename(model / name)
    index, says = rng.choice([
        ({"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}, "model-00002-of-00002.safetensors"),
        ({"weight_map": {"model.norms.weight": name}}, "model.norms.weight"),
        ({"weight_map": []}, "index.json"),
        ({}, "index.json"),
        ([], "index.json"),
        ({"weight_map": {"model.norm.weight": 3}}, "3"),
    ])  # fmt: skip
    (model / "model.safetensors.index.json").write_text(json.dumps(index)[rng.choice([0, 0, 0, 1]) :])
    broken = (model / "model.safetensors.index.json").read_text() != json.dumps(index)
    return model_case(folder, model, str(model), "index.json" if broken else says)


def foreign_tokenizer(rng: random.Random, folder: Path) -> Case:
    """One whose ids go beyond the model's embedding."""
    model, shift = copy_model(folder), rng.randrange(200, 5000)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["id"] += shift
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: id + shift for token, id in vocabulary.items()}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    return model_case(folder, model, str(model), "vocab_size is 111")


def model_and_settings(rng: random.Random, folder: Path) -> Case:
    override, says = rng.choice([
        ("model.lora={ rank = 4, targets = ['query'] }", "model.lora.targets"),
        ("model.lora={ rank = 4, targets = ['q_proj', 'w_proj'] }", "w_proj"),
        ("model.rope={ type = 'yarn', factor = 1.5, original_max_position_embeddings = 100 }", "model.rope"),
        ("rollout.max_tokens=2048", "rollout.max_tokens=2048"),
        ("eval.max_tokens=2048 eval.data={question='problem'}", "eval.max_tokens=2048"),
    ])  # fmt: skip
    return model_case(
        folder, copy_model(folder), says, overrides=tuple(override.split(" ")) if "eval" in override else (override,)
    )


# Run folders


def bad_run_dir(rng: random.Random, folder: Path) -> Case:
    (folder / "file").write_text("x")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("x")
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(load([COUNTDOWN], [f"seed={rng.randrange(1, 9)}"]).model_dump_json())
    (folder / "damaged").mkdir()
    (folder / "damaged" / "config.json").write_text("{")
    name = rng.choice(["file", "file/below", "full", "run", "damaged", "n" * 300])
    return Case((*good_data(folder), f"run.dir={folder / name}"), (str(folder / name)[:200],))


def bad_run(rng: random.Random, folder: Path) -> Case:
    """Commands that are given a folder that is no run's, or a damaged one's."""
    whole = load([COUNTDOWN]).model_dump_json()
    saved = rng.choice(
        [None, "", "{", "[]", "3", whole[: rng.randrange(1, len(whole) - 1)], '{"steps": 0}', "[" * 10**5]
    )
    name = rng.choice(["run", "nowhere"])
    (folder / "run").mkdir()
    if saved is not None:
        (folder / "run" / "config.json").write_text(saved)
    command = rng.choice([("train", "--resume"), ("eval",), ("report",), ("chat",), ("compare",)])
    return Case((*command, str(folder / name)), (str(folder / name),))


def bad_checkpoint(rng: random.Random, folder: Path) -> Case:
    tiny = ("steps=1", "data.size=20", "eval.data={}", "rollout.prompts=1", "rollout.max_tokens=2")
    (folder / "config.json").write_text(load([COUNTDOWN], tiny).model_dump_json())
    checkpoint = folder / "checkpoints" / "step_000002"
    checkpoint.mkdir(parents=True)
    for name in ("state.json", "pools.safetensors"):
        if rng.random() < 0.7:
            damaged = [b"", b"{}", b"[]", b"\xff\xfe", rng.randbytes(50), b'{"format": 99}']
            (checkpoint / name).write_bytes(rng.choice(damaged))
    return Case(("train", "--resume", str(folder)), (str(folder),))


MODELS: list[Mutation] = [
    missing_model_file, no_model_folder, broken_json, broken_json, config_against_weights, config_against_weights,
    damaged_weights, other_tensors, bad_index, foreign_tokenizer, model_and_settings, bad_checkpoint, parquet,
    bad_run_dir, bad_run,
]  # fmt: skip
