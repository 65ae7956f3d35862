"""The warm-up is reproducible and learns, and the shipped model is what its documents say."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from refusals import refused
from ulorl.error_codes import ErrorCode
from ulorl.models.tiny import model_path
from ulorl.warmup import make_tiny
from ulorl.warmup.countdown_tokenizer import build_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[make_tiny.WarmUpResult, Path]:
    out = tmp_path_factory.mktemp("made") / "model"
    return make_tiny.make_tiny(out, steps=6, problems=8, max_tokens=16, progress=False), out


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return weights


def test_the_same_seed_gives_the_same_weights(made: tuple[make_tiny.WarmUpResult, Path], tmp_path: Path) -> None:
    first, folder = made
    again = make_tiny.make_tiny(tmp_path / "again", steps=6, problems=8, max_tokens=16, progress=False)
    other = make_tiny.make_tiny(tmp_path / "other", seed=1, steps=1, problems=8, max_tokens=16, progress=False)
    assert again.loss == first.loss
    assert again.tokens == first.tokens
    assert again.evaluation.by_problem == first.evaluation.by_problem
    theirs = _weights(tmp_path / "again")
    assert all(torch.equal(value, theirs[name]) for name, value in _weights(folder).items())
    assert not torch.equal(
        _weights(tmp_path / "other")["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"]
    )
    assert other.tokens != first.tokens


def test_the_loss_falls() -> None:
    tokenizer = build_tokenizer()
    steps = make_tiny.warm_up(
        make_tiny.build_model(tokenizer, 0), make_tiny.training_batches(tokenizer, random.Random(0)), 30
    )
    losses = [loss for loss, _ in steps]
    assert losses[0] == pytest.approx(np.log(111), abs=0.15)  # an untrained model guesses among 111 tokens
    assert np.mean(losses[-5:]) < 3.6


def test_prompts_and_padding_are_not_trained_on() -> None:
    tokenizer = build_tokenizer()
    data = make_tiny.training_batches(tokenizer, random.Random(0))
    for _ in range(20):
        tokens, labels = next(data)
        assert tokens.numel() <= make_tiny.BATCH_TOKENS or len(tokens) == 1
        for row, label in zip(tokens, labels, strict=True):
            text = tokenizer.decode(row[row != tokenizer.pad_token_id])
            prompt, _, output = text.partition("\n")
            assert tokenizer.decode(label[label != make_tiny.IGNORED]) == output
            assert output.endswith("<eos>")
            trained = label != make_tiny.IGNORED
            assert torch.equal(row[trained], label[trained])
            assert int(trained.nonzero()[0]) == len(tokenizer(prompt + "\n")["input_ids"])


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refused(ErrorCode.OUTPUT_EXISTS, file=tmp_path):
        make_tiny.make_tiny(tmp_path, steps=1)
    with refused(ErrorCode.COMMAND_LINE, key="--steps"):
        make_tiny.make_tiny(tmp_path / "new", steps=0)


def test_the_shipped_folder_is_small_and_complete(made: tuple[make_tiny.WarmUpResult, Path]) -> None:
    shipped = model_path()
    assert sum(file.stat().st_size for file in shipped.iterdir()) < 5 * 2**20
    assert {file.name for file in shipped.iterdir()} == {file.name for file in made[1].iterdir()}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (shipped, made[1]))
        for content in (ours, theirs):
            content.pop("transformers_version", None)
        assert ours == theirs, f"{name}: make the shipped model again"


def test_the_shipped_model_reasons_as_documented() -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path())
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    assert isinstance(model, Qwen3ForCausalLM)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == 1
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 0
    evaluation = make_tiny.evaluate_held_out(model, tokenizer, 96, 256)
    # 0.42 (95%: 0.39 to 0.45) on 1,000 problems when it was made; one standard error on 96 problems is 0.05.
    assert 0.25 <= evaluation.accuracy <= 0.60
    lengths = np.array([len(answer.sample) for answer in evaluation.scored])
    assert (lengths <= 64).mean() > 0.2  # long-tailed: many end early,
    assert (lengths == 256).mean() > 0.2  # and many do not end in time
