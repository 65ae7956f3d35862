"""A model source reads each of its small files once, and its models have copies of what it has read."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from ulorl.config.model_config import RopeConfig
from ulorl.models.meta_model import checkpoint_names
from ulorl.models.model_loading import check_model, load_model
from ulorl.models.model_source import TINY, ModelSource


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kind of file is read."""
    counter: Counter[str] = Counter()

    def counted(kind: Any) -> None:
        read = kind.from_pretrained

        def from_pretrained(*args: object, **keys: object) -> object:
            counter[kind.__name__] += 1
            return read(*args, **keys)

        monkeypatch.setattr(kind, "from_pretrained", from_pretrained)

    for kind in (AutoConfig, AutoTokenizer, GenerationConfig):
        counted(kind)
    return counter


def test_each_file_is_read_once(reads: Counter[str]) -> None:
    """transformers' AutoTokenizer reads config.json as well."""
    source = ModelSource(TINY)
    for _ in range(2):
        check_model(source)
        checkpoint_names(source)
        assert source.eos_ids == (1,)
        assert (source.context_length, source.vocabulary) == (1024, len(source.tokenizer))
    assert dict(reads) == {"AutoConfig": 2, "AutoTokenizer": 1, "GenerationConfig": 1}
    load_model(source, dtype=torch.float32, device="cpu")
    assert (reads["AutoConfig"], reads["AutoTokenizer"]) == (2, 1)


def test_a_models_configuration_is_a_copy() -> None:
    source = ModelSource(TINY)
    for model in (check_model(source), load_model(source, dtype=torch.float32, device="cpu")):
        model.config.max_position_embeddings = 7
        model.set_attn_implementation("eager")
    assert source.context_length == 1024
    assert load_model(source, dtype=torch.float32, device="cpu").config._attn_implementation == "sdpa"


def test_yarn_is_in_everything_that_the_source_gives() -> None:
    source = ModelSource(TINY, rope=RopeConfig(type="yarn", factor=2, original_max_position_embeddings=1024))
    assert source.context_length == check_model(source).config.max_position_embeddings == 2048


def test_another_process_reads_the_files_itself() -> None:
    """Objects of a model's own Python code could not be unpickled there."""
    source = ModelSource(TINY, rope=RopeConfig(type="yarn", factor=2, original_max_position_embeddings=1024))
    assert source.tokenizer
    assert source.config
    sent = pickle.loads(pickle.dumps(source))
    assert sent == source
    assert not {"tokenizer", "config"} & vars(sent).keys()
