"""Transformers folders written layer by layer, against those of `save_pretrained`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from live_tensors import LiveTensors
from small_models import make
from ulorl.models.meta_loading import make_empty_model
from ulorl.models.model_loading import check_model, load_model
from ulorl.models.model_source import ModelSource
from ulorl.models.streamed_export import export_streamed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "tied"), [("Qwen3", False), ("Qwen2", True), ("Qwen3Moe", False), ("Qwen3Moe", True)])
def test_the_folder_is_that_of_save_pretrained(kind: str, tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    make(kind, tie_word_embeddings=tied).save_pretrained(tmp_path / "source")
    source = ModelSource(str(tmp_path / "source"))
    model = load_model(source, dtype=dtype, device="cpu")
    model.save_pretrained(tmp_path / "whole")
    named = model.state_dict() if tied else dict(model.named_parameters())
    export_streamed(named.items(), make_empty_model(source, dtype), tmp_path / "streamed")
    names = ["config.json", "generation_config.json", "model.safetensors"]
    for folder in ("whole", "streamed"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
    for name in names[:2]:
        assert (tmp_path / "streamed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    whole, streamed = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "streamed"))
    assert whole.keys() == streamed.keys()
    assert ("lm_head.weight" in streamed) is not tied
    assert all(torch.equal(streamed[n], t) and streamed[n].dtype == t.dtype for n, t in whole.items())


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3Moe"])
def test_several_files_and_an_index(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    model.save_pretrained(tmp_path / "source")
    empty = make_empty_model(ModelSource(str(tmp_path / "source")), torch.float32)
    export_streamed(model.named_parameters(), empty, tmp_path / "cut", shard_bytes=5000)
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "cut").glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    sizes = {file.name: sum(t.nbytes for t in load_file(file).values()) for file in files}
    assert all(size <= 5000 or len(load_file(tmp_path / "cut" / name)) == 1 for name, size in sizes.items())
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert {n: f.name for f in files for n in load_file(f)} == index["weight_map"]
    check_model(ModelSource(str(tmp_path / "cut")))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", dtype=torch.float32).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_memory_and_errors(tmp_path: Path) -> None:
    model = make("Qwen3Moe", num_hidden_layers=12)
    model.save_pretrained(tmp_path / "source")
    empty = make_empty_model(ModelSource(str(tmp_path / "source")), torch.float32)
    sizes = {name: p.nbytes for name, p in empty.named_parameters()}
    layer = sum(size for name, size in sizes.items() if name.startswith("model.layers.0."))
    root = sum(size for name, size in sizes.items() if ".layers." not in name)
    taken: list[str] = []

    def gathered(wrong: str = "") -> Iterator[tuple[str, Tensor]]:
        for name, p in empty.named_parameters():
            taken.append(name)
            yield name, torch.zeros(3 if name == wrong else p.shape)

    with LiveTensors() as live:
        export_streamed(gathered(), empty, tmp_path / "streamed")
    assert layer < live.peak < 2 * layer + root

    taken.clear()
    with pytest.raises(ValueError, match=r"model\.layers\.3\.self_attn\.q_norm\.weight is torch\.float32 \[3\]"):
        export_streamed(gathered("model.layers.3.self_attn.q_norm.weight"), empty, tmp_path / "wrong")
    assert taken == list(sizes)  # other ranks wait for this one to gather them all
    taken.clear()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        export_streamed(gathered(), empty, tmp_path / "file" / "folder")
    assert taken == list(sizes)
    with pytest.raises(ValueError, match="missing"):
        export_streamed(list(gathered())[:-1], empty, tmp_path / "missing")
