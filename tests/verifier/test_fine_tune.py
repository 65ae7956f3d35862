"""`ulorl verifier train`: TRL's own trainer on a tiny model learns a verdict that a letter gives away."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from refusals import refused
from ulorl.clients.engine_client import EngineClient
from ulorl.config.reward_config import EngineVerifierConfig
from ulorl.error_codes import ErrorCode
from ulorl.rewards.generative_verifier import Verifier
from ulorl.rewards.verdict_prompt import VerdictPrompt
from ulorl.verifier import fine_tune as module
from ulorl.verifier.fine_tune import encode, set_chat, subset, train
from ulorl.verifier.pairs import Pair
from ulorl.verifier.verifier_card import TrainingProgress
from ulorl.verifier.verifier_config import VerifierTrainingConfig

pytest.importorskip("trl", reason="verifier train needs TRL (extra verifier)")
from ulorl.verifier import verdict_trainer

pytestmark = pytest.mark.slow
PROMPT = "{question}{reference}={answer}?"
QUICK = VerifierTrainingConfig(batch=16, lr=2e-2, max_tokens=64, save_minutes=0, epochs=4)


def pair(number: int, *, equivalent: bool) -> Pair:
    """Equivalent answers end in x, others in z: nothing else distinguishes them."""
    return Pair("", f"{number}", f"{number}{'x' if equivalent else 'z'}", equivalent, "k", "", "s", str(number))


def pairs(count: int, first: int = 0) -> list[Pair]:
    return [pair(number, equivalent=number % 3 > 0) for number in range(first, first + count)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(make_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, eos_token_id=1, pad_token_id=0,
        bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "prompt.txt").write_text(PROMPT)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "verifier"
    done = train(pairs(192), str(base), out, quick(base, epochs=12))
    assert (done.progress.steps, done.progress.pairs, done.too_long, done.interrupted) == (144, 2304, 0, False)
    assert done.progress.right > 0.95
    return out


def quick(base: Path, **changes: object) -> VerifierTrainingConfig:
    return replace(QUICK, **{"prompt": str(base / "prompt.txt"), **changes})  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_reward_takes_the_folder_and_judges_new_pairs_right(trained: Path) -> None:
    verifier = Verifier(EngineVerifierConfig(name=str(trained), max_tokens=8), retries=0)
    assert verifier.prompt == VerdictPrompt(PROMPT, 120)
    new = pairs(40, first=1000)
    asked = [(p.question, p.reference, p.answer) for p in new]
    assert verifier.verdicts(asked) == [p.equivalent for p in new]


def test_the_card_tells_what_the_verifier_is_made_of(trained: Path, base: Path) -> None:
    card = json.loads((trained / "verifier.json").read_text())
    assert (card["prompt"], card["question_chars"], card["chat"]) == (PROMPT, 120, True)
    assert (card["base"], card["pairs"]["count"], card["pairs"]["equivalent"]) == (base.name, 192, 128)
    assert card["training"]["steps"] == 144


def test_training_and_engine_ask_with_the_same_tokens(trained: Path) -> None:
    tokenizer = make_tokenizer()
    set_chat(tokenizer, "plain", "base")
    some = pairs(3)
    examples = encode(some, tokenizer, VerdictPrompt(PROMPT), 64, lead=" ")
    engine = EngineClient(EngineVerifierConfig(name=str(trained), max_tokens=8))
    asked = engine._encoded([(VerdictPrompt(PROMPT).render(p.question, p.reference, p.answer), 0) for p in some])
    for ids, labels, prompt, p in zip(examples.input_ids, examples.labels, asked, some, strict=True):
        verdict = [*tokenizer(" yes" if p.equivalent else " no")["input_ids"], tokenizer.eos_token_id]
        assert ids == [*prompt.tolist(), *verdict]  # type: ignore[union-attr]
        assert labels == [-100] * len(prompt) + verdict  # type: ignore[arg-type]


def test_same_seed_same_weights_and_another_seed_others(base: Path, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in "abc"]
    for out, seed in zip(runs, (1, 1, 2), strict=True):
        train(pairs(32), str(base), out, quick(base, seed=seed, epochs=1))
    first, again, other = map(weights, runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_loss_is_that_of_transformers(base: Path) -> None:
    """One step over one batch: the reported loss is the one before the step."""
    tokenizer = make_tokenizer()
    set_chat(tokenizer, "plain", "base")
    examples = encode(pairs(12, first=95), tokenizer, VerdictPrompt(PROMPT), 64, lead=" ")  # of two lengths
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    width = max(map(len, examples.input_ids))
    rows = zip(examples.input_ids, examples.labels, strict=True)
    ids, labels = zip(*[(i + [0] * (width - len(i)), n + [-100] * (width - len(n))) for i, n in rows], strict=True)
    expected = model(input_ids=torch.tensor(ids), labels=torch.tensor(labels)).loss.item()
    settings = replace(QUICK, batch=12, epochs=1)
    done, _ = verdict_trainer.fit(model, tokenizer, examples.input_ids, examples.labels, settings, lambda _: None)
    assert done.steps == 1
    assert done.loss == pytest.approx(expected, rel=1e-5)
    assert done.tokens == sum(map(len, examples.input_ids))


def test_only_the_upper_layers_train(base: Path, tmp_path: Path) -> None:
    train(pairs(32), str(base), tmp_path / "v", quick(base, layers=1, epochs=1))
    before, after = weights(base), weights(tmp_path / "v")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("model.layers.1.")}


def test_adapters_are_merged_into_a_plain_folder(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    train(pairs(32), str(base), tmp_path / "v", quick(base, lora_rank=4, epochs=1))
    before, after = weights(base), weights(tmp_path / "v")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("proj.weight")}


def test_an_interrupted_training_leaves_a_usable_folder(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = verdict_trainer._Monitor.count

    def interrupted(self: verdict_trainer._Monitor, *args: object) -> None:
        if self.progress.steps == 2:
            raise KeyboardInterrupt
        count(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(verdict_trainer._Monitor, "count", interrupted)
    done = train(pairs(192), str(base), tmp_path / "v", quick(base))
    assert (done.interrupted, done.progress.steps) == (True, 2)
    assert json.loads((tmp_path / "v" / "verifier.json").read_text())["training"]["steps"] == 2
    Verifier(EngineVerifierConfig(name=str(tmp_path / "v")))
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_minutes_end_the_training_and_saves_come_on_the_way(base: Path) -> None:
    tokenizer, saved = make_tokenizer(), list[TrainingProgress]()
    set_chat(tokenizer, "plain", "base")
    examples = encode(pairs(64), tokenizer, VerdictPrompt(PROMPT), 64, lead=" ")
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = replace(QUICK, minutes=1e-6, save_minutes=1e-6)
    done, interrupted = verdict_trainer.fit(
        model, tokenizer, examples.input_ids, examples.labels, settings, saved.append
    )
    assert (done.steps, interrupted) == (1, False)
    assert [progress.steps for progress in saved] == [1, 1]


def test_the_rate_rises_then_falls_to_nothing() -> None:
    monitor = verdict_trainer._Monitor(replace(QUICK, warmup=0.1), lambda _: None)
    monitor.begin(100)
    assert [monitor.rate(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert monitor.rate(55) == pytest.approx(0.45 / 0.9)  # (1 - 0.55) / (1 - 0.1)
    assert monitor.rate(100) == 0


def test_pairs_are_drawn_with_the_seed() -> None:
    some = pairs(50)
    drawn = subset(some, VerifierTrainingConfig(max_pairs=10))
    assert (
        drawn
        == subset(some, VerifierTrainingConfig(max_pairs=10))
        != subset(some, VerifierTrainingConfig(max_pairs=10, seed=1))
    )
    assert len(set(drawn) & set(some)) == 10


@pytest.mark.parametrize(
    ("given", "changes", "code", "key"),
    [
        ([], {}, ErrorCode.VERIFIER_TRAINING, ""),
        ([pair(1, equivalent=True)] * 3, {}, ErrorCode.VERIFIER_TRAINING, ""),
        ([pair(1, equivalent=False)] * 3, {}, ErrorCode.VERIFIER_TRAINING, ""),
        (pairs(4), {"max_tokens": 5}, ErrorCode.VERIFIER_TRAINING, "--max-tokens"),
        (pairs(4), {"chat": "own"}, ErrorCode.CHAT_TEMPLATE, "--chat"),
        (pairs(4), {"layers": 3}, ErrorCode.VERIFIER_TRAINING, "--layers"),
        (pairs(4), {"layers": 1, "lora_rank": 1}, ErrorCode.CONFIG_CONFLICT, "--layers"),
        (pairs(4), {"prompt": "nowhere.txt"}, ErrorCode.VERIFIER_PROMPT, None),
    ],
)
def test_bad_input_is_refused(
    base: Path, tmp_path: Path, given: list[Pair], changes: dict[str, object], code: ErrorCode, key: str | None
) -> None:
    with refused(code, key=key):
        train(given, str(base), tmp_path / "v", quick(base, **changes))
    assert not list(tmp_path.iterdir())


def test_folders_are_not_overwritten_unasked(base: Path, trained: Path, tmp_path: Path) -> None:
    with refused(ErrorCode.OUTPUT_EXISTS, file=trained, key="--out"):
        train(pairs(4), str(base), trained, quick(base))
    (tmp_path / "thesis.txt").write_text("mine")
    with refused(ErrorCode.OUTPUT_EXISTS, file=tmp_path, key="--out"):
        train(pairs(4), str(base), tmp_path, quick(base), overwrite=True)


def test_without_trl_the_extra_is_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with refused(ErrorCode.EXTRA_MISSING):
        train(pairs(4), str(base), tmp_path / "v", quick(base))


def test_the_ends_of_the_ranges_that_help_states_are_accepted(base: Path, tmp_path: Path) -> None:
    """One step of one pair, with a learning rate of 0: the weights stay as they were."""
    least = {"epochs": 0.01, "batch": 1, "lr": 0.0, "question_chars": 0, "seed": 2**32 - 1, "max_pairs": 2}
    done = train(pairs(8), str(base), tmp_path / "v", quick(base, **least))
    assert (done.progress.steps, done.progress.pairs) == (1, 1)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "v"))
    assert all(torch.equal(after[name], weight) for name, weight in before.items() if name in after)
