"""The warm-up is reproducible and learns every task, and the shipped models are what their documents say."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

import ulorl
from refusals import refused
from ulorl.config.loading import load_class
from ulorl.data.task_lookup import find_task
from ulorl.error_codes import ErrorCode
from ulorl.models.model_source import SHIPPED
from ulorl.models.tiny import model_path
from ulorl.warmup.demonstrations import IGNORED, training_batches
from ulorl.warmup.make_tiny import WarmUpResult, build_model, evaluate_held_out, make_tiny, warm_up
from ulorl.warmup.warm_up_config import WarmUpConfig
from ulorl.warmup.word_tokenizer import build_tokenizer

SMALL = WarmUpConfig(steps=6, eval_problems=8, eval_tokens=16)
USERS = """
from ulorl.data.task_definition import DrawnTask

class Echo(DrawnTask):
    words = "ab"

    def draw(self, rng, length=6):
        return "".join(rng.choice("ab") for _ in range(length))

    def demonstrate(self, problem, rng):
        return problem

    def check(self, problem, output):
        return output == problem
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[WarmUpResult, Path]:
    out = tmp_path_factory.mktemp("made") / "model"
    return make_tiny("countdown", out, SMALL, progress=False), out


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return weights


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(made: tuple[WarmUpResult, Path], tmp_path: Path) -> None:
    first, folder = made
    again = make_tiny("countdown", tmp_path / "again", SMALL, progress=False)
    other = make_tiny("countdown", tmp_path / "other", SMALL.model_copy(update={"seed": 1, "steps": 1}), progress=False)
    assert again.loss == first.loss
    assert again.tokens == first.tokens
    assert again.evaluation.by_problem == first.evaluation.by_problem
    theirs = _weights(tmp_path / "again")
    assert all(torch.equal(value, theirs[name]) for name, value in _weights(folder).items())
    assert not torch.equal(
        _weights(tmp_path / "other")["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"]
    )
    assert other.tokens != first.tokens


@pytest.mark.slow
def test_countdown_is_demonstrated_as_it_was_to_the_shipped_model() -> None:
    """The digest of the first 100 batches was recorded at commit 1bf752d, where countdown was the only task."""
    task = find_task("countdown")
    data = training_batches(task, build_tokenizer(task.words), WarmUpConfig(), random.Random(0))
    digest = hashlib.sha256()
    for _ in range(100):
        for part in next(data):
            digest.update(part.numpy().tobytes())
    assert digest.hexdigest() == "94cee9217cf702cb65bf191cd01ed378d03fde1ab16c8400ec058e348728eb54"


@pytest.mark.slow
def test_the_loss_falls() -> None:
    task, config = find_task("countdown"), WarmUpConfig(steps=30, schedule=700)
    tokenizer = build_tokenizer(task.words)
    batches = training_batches(task, tokenizer, config, random.Random(0))
    losses = [loss for loss, _ in warm_up(build_model(tokenizer, config), batches, config)]
    assert losses[0] == pytest.approx(np.log(111), abs=0.15)  # an untrained model guesses among 111 tokens
    assert np.mean(losses[-5:]) < 3.6


@pytest.mark.parametrize("name", ["sorting", "maze"])
def test_prompts_and_padding_are_not_trained_on(name: str) -> None:
    task, config = find_task(name), WarmUpConfig(batch_tokens=1000)
    tokenizer = build_tokenizer(task.words)
    data = training_batches(task, tokenizer, config, random.Random(0))
    for _ in range(20):
        tokens, labels = next(data)
        assert tokens.numel() <= 1000
        for row, label in zip(tokens, labels, strict=True):
            text = tokenizer.decode(row[row != tokenizer.pad_token_id])
            prompt, _, output = text.partition("\n")
            assert tokenizer.decode(label[label != IGNORED]) == output
            assert output.endswith("<eos>")
            assert task.check(prompt, output.removesuffix("<eos>"))
            trained = label != IGNORED
            assert torch.equal(row[trained], label[trained])
            assert int(trained.nonzero()[0]) == len(tokenizer(prompt + "\n")["input_ids"])


@pytest.mark.slow
def test_a_users_task_is_learnt_and_then_trained_by_its_checker(tmp_path: Path) -> None:
    """Copying eight letters is learnt in part, and a run with the data and the reward of the task starts."""
    (tmp_path / "echo.py").write_text(USERS)
    settings = ["steps=60", "hidden=64", "layers=2", "eval_problems=40", "eval_tokens=12", "settings.length=8"]
    config = load_class(WarmUpConfig, [], settings)
    result = make_tiny("echo.py", tmp_path / "model", config, progress=False)
    assert result.evaluation.accuracy > 0.3  # 1/256 by guessing
    assert result.cpu_seconds > 0
    run = {
        "steps": 1, "seed": 0, "run": {"dir": str(tmp_path / "run")}, "model": {"path": str(tmp_path / "model")},
        "data": {"kind": "task", "task": "echo.py", "size": 20, "settings": {"length": 8}},
        "reward": {"kind": "task"}, "rollout": {"prompts": 4, "group": 4, "max_tokens": 12, "segments": 1},
        "eval": {"problems": 10},
    }  # fmt: skip
    (step,) = [m for m in ulorl.train(ulorl.build(run)).metrics if m.get("rollout/tokens")]
    assert step["reward/mean"] > 0.1


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refused(ErrorCode.OUTPUT_EXISTS, file=tmp_path):
        make_tiny("countdown", tmp_path, SMALL)
    with refused(ErrorCode.DATA_GENERATOR, key="TASK"):
        make_tiny("none", tmp_path / "new", SMALL)


@pytest.mark.parametrize(
    ("line", "instead", "longest"),
    [
        ('words = "ab"', 'words = "a"', 512),
        ("return output == problem", "return False", 512),
        ("length=6", "length=60", 20),
    ],
)
def test_wrong_demonstrations_are_refused(line: str, instead: str, longest: int, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(USERS.replace(line, instead))
    find_task.cache_clear()
    with refused(ErrorCode.DATA_GENERATOR, key="TASK"):
        make_tiny("wrong.py", tmp_path / "new", SMALL.model_copy(update={"longest_output": longest}), progress=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        (
            "return problem",
            "return None",
            "Echo.demonstrate (wrong.py, line 10) returned None; it must return an output",
        ),
        ("return problem", "return rng[0]", "Echo.demonstrate (wrong.py, line 10) raised TypeError: "),
        ("return output == problem", "return ''[3]", "Echo.check (wrong.py, line 13) raised IndexError: "),
        ("return output == problem", "return 'yes'", "Echo.check (wrong.py, line 13) returned 'yes'; it must return"),
        ('return "".join', "return print", "Echo.draw (wrong.py, line 7) returned None; it must return the text of a"),
    ],
)
def test_a_method_that_fails_is_refused_with_its_line(line: str, instead: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(USERS.replace(line, instead))
    find_task.cache_clear()
    with refused(ErrorCode.DATA_GENERATOR, key="TASK", file=tmp_path / "wrong.py") as caught:
        make_tiny("wrong.py", tmp_path / "new", SMALL, progress=False)
    assert said in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_too_few_held_out_problems_are_refused_before_the_training(tmp_path: Path) -> None:
    """There are 32 words of five letters, some of them to train on."""
    (tmp_path / "few.py").write_text(USERS.replace("length=6", "length=5"))
    with refused(ErrorCode.DATA_TOO_FEW, key="eval_problems"):
        make_tiny("few.py", tmp_path / "new", SMALL.model_copy(update={"eval_problems": 32}), progress=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("line", "instead", "settings", "code", "key"),
    [
        ("length=6", "length=6", {"length": "six"}, ErrorCode.DATA_GENERATOR, "settings"),
        ("length=6", "length=6", {"size": 6}, ErrorCode.DATA_GENERATOR, "settings.size"),
        ("length=6", "length=0", {}, ErrorCode.DATA_TOO_FEW, "settings"),  # only one problem: it is of one side
        ("(self, rng, length=6)", "(self)", {}, ErrorCode.DATA_GENERATOR, "TASK"),
        ("length=6", "length=60", {}, ErrorCode.PROMPT_UNUSABLE, "context"),
        ("length=6", "length=4", {}, ErrorCode.DATA_TOO_FEW, "eval_problems"),
    ],
)
def test_refusals_name_no_key_of_a_recipe(
    line: str, instead: str, settings: dict[str, object], code: ErrorCode, key: str, tmp_path: Path
) -> None:
    """They come before the training: the folder is not made."""
    (tmp_path / "mine.py").write_text(USERS.replace(line, instead))
    find_task.cache_clear()
    config = SMALL.model_copy(update={"context": 130, "eval_tokens": 100, "settings": settings})
    with refused(code, key=key) as caught:
        make_tiny("mine.py", tmp_path / "new", config, progress=False)
    assert not re.search(r"(data|reward|rollout)\.|\bsize=", str(caught.value))
    assert not (tmp_path / "new").exists()


def test_a_checker_that_fails_is_the_fault_of_the_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It fails on what an untrained model writes, not on the demonstrations."""
    monkeypatch.setattr("ulorl.rewards.reward.time.sleep", lambda _: None)
    check = "return output == problem or 1 / (len(output) > 99)"
    (tmp_path / "fails.py").write_text(USERS.replace("length=6", "length=9").replace("return output == problem", check))
    find_task.cache_clear()
    config = SMALL.model_copy(update={"steps": 1, "eval_problems": 40, "eval_tokens": 400})
    with refused(ErrorCode.REWARD_FAILED, key="TASK") as caught:
        make_tiny("fails.py", tmp_path / "new", config, progress=False)
    assert "ZeroDivisionError" in str(caught.value)
    assert "reward." not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("steps=0", "steps"),
        ("schedule=5", "schedule"),
        ("hidden=100", "hidden"),
        ("kv_heads=3", "kv_heads"),
        ("longest_output=1024", "longest_output"),
        ("eval_tokens=2000", "eval_tokens"),
    ],
)
def test_impossible_settings_are_refused(override: str, key: str) -> None:
    with pytest.raises(ulorl.UserError) as caught:
        load_class(WarmUpConfig, [], [override])
    assert [error.key for error in caught.value.each()] == [key]


def test_the_rates_rise_and_fall() -> None:
    config = WarmUpConfig(steps=400, schedule=700)
    # 1 / 20 and 20 / 20 of the rise; then 1 - 0.9 x step / 700
    assert [config.rate(step) for step in (0, 350, 700, 900)] == pytest.approx([0.05, 0.55, 0.1, 0.1])
    assert config.rate(19) == pytest.approx(1 - 0.9 * 19 / 700)
    assert WarmUpConfig(steps=200).rate(100) == pytest.approx(0.55)


@pytest.mark.slow
@pytest.mark.parametrize("task", SHIPPED.values())
def test_the_shipped_folders_are_small_and_complete(task: str, made: tuple[WarmUpResult, Path], tmp_path: Path) -> None:
    shipped, again = model_path(task), made[1]
    if task != "countdown":
        again = tmp_path / task
        make_tiny(task, again, SMALL.model_copy(update={"steps": 1}), progress=False)
    assert sum(file.stat().st_size for file in shipped.iterdir()) < 5 * 2**20
    assert {file.name for file in shipped.iterdir()} == {file.name for file in again.iterdir()}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (shipped, again))
        for content in (ours, theirs):
            content.pop("transformers_version", None)
        assert ours == theirs, f"{name}: make the shipped model again"


def shipped_answers(task: str, tokens: int) -> tuple[float, NDArray[np.int64]]:
    """The accuracy of a shipped model on 96 held-out problems, and the lengths of its answers in tokens."""
    model = AutoModelForCausalLM.from_pretrained(model_path(task))
    tokenizer = AutoTokenizer.from_pretrained(model_path(task))
    assert isinstance(model, Qwen3ForCausalLM)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id == 1
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 0
    evaluation = evaluate_held_out(task, model, tokenizer, WarmUpConfig(eval_problems=96, eval_tokens=tokens))
    return evaluation.accuracy, np.array([len(answer.sample) for answer in evaluation.scored])


@pytest.mark.slow
def test_the_shipped_countdown_model_reasons_as_documented() -> None:
    accuracy, lengths = shipped_answers("countdown", 256)
    # 0.42 (95%: 0.39 to 0.45) on 1,000 problems when it was made; one standard error on 96 problems is 0.05.
    assert 0.25 <= accuracy <= 0.60
    assert (lengths <= 64).mean() > 0.2  # long-tailed: many end early,
    assert (lengths == 256).mean() > 0.2  # and many do not end in time


@pytest.mark.slow
def test_the_shipped_maze_model_reasons_as_documented() -> None:
    accuracy, lengths = shipped_answers("maze", 48)
    # 0.39 on 1,000 problems, mean of three run seeds (docs/experiments.md); one standard error on 96 is 0.05.
    assert 0.20 <= accuracy <= 0.60
    assert (lengths <= 24).mean() > 0.2  # many end in one segment of the quickstart,
    assert (lengths > 24).mean() > 0.25  # and many need the second
