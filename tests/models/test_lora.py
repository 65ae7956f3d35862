"""LoRA: adapters alone train, everyone else sees plain merged weights, and a resumed run has them bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import ulorl
from paths import COUNTDOWN
from refusals import refused
from small_models import V, make
from ulorl.config.loading import load
from ulorl.config.model_config import LoraConfig
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.error_codes import ErrorCode
from ulorl.learner.logprobs import token_logprobs
from ulorl.learner.model_checks import check_head
from ulorl.models.head import head_of, hidden_states
from ulorl.models.lora import ADAPTERS, PlainWeights, add_lora, save_exact, save_merged
from ulorl.models.meta_model import checkpoint_names
from ulorl.models.model_loading import load_model, recompute_activations
from ulorl.models.model_source import ModelSource
from ulorl.models.tiny import model_path
from ulorl.training import checkpoint, run
from ulorl.training.preflight import load_inputs

RECIPE = COUNTDOWN
IDS = torch.randint(3, V, (2, 9), generator=torch.Generator().manual_seed(1))
KINDS = ["Qwen3", "Qwen2", "Llama", "Phi", "Qwen3Moe"]  # Qwen2 is tied, Phi has biases, Qwen3Moe experts and router


def adapted(kind: str, seed: int | None = 1) -> PreTrainedModel:
    """With adapters that change something; with `seed` None as they begin."""
    model = make(kind).eval()
    add_lora(model, LoraConfig(rank=3, alpha=6))
    if seed is not None:
        torch.manual_seed(seed)
        for parameter in trained(model).values():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def trained(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_the_plain_models_and_compute_what_the_adapted_model_does(kind: str) -> None:
    plain, begun, model = make(kind).eval(), adapted(kind, None), adapted(kind)
    before = dict(plain.named_parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in PlainWeights(begun))  # B is 0: nothing changes yet
    after = dict(PlainWeights(model))
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if after[name].ndim > 1 and not ("embed" in name or "lm_head" in name)}
    apart = (logits(model) - logits(plain)).abs().max()
    plain.load_state_dict(after, strict=False)
    assert apart > 0.1
    torch.testing.assert_close(logits(plain), logits(model), atol=5e-5, rtol=1e-4)
    check_head(model)


def test_a_merged_weight_by_hand() -> None:
    model = adapted("Qwen3")
    q = model.model.layers[1].self_attn.q_proj
    merged = dict(PlainWeights(model))["model.layers.1.self_attn.q_proj.weight"]
    by_hand = q.base_layer.weight + 6 / 3 * q.lora_B.default.weight @ q.lora_A.default.weight  # alpha / rank
    torch.testing.assert_close(merged, by_hand.detach())


def test_merging_leaves_the_base_as_it_was() -> None:
    """A thousand updates later W is still W: nothing was merged in and out of it."""
    model, base = adapted("Qwen3"), dict(make("Qwen3").named_parameters())
    begun = [p.detach().clone() for p in trained(model).values()]
    for step in range(20):
        for parameter in trained(model).values():
            parameter.data.add_(0.1 * (-1) ** step)
        list(PlainWeights(model))
    for parameter, start in zip(trained(model).values(), begun, strict=True):
        parameter.data.copy_(start)
    assert all(
        torch.equal(p, base[name.replace(".base_layer", "")])
        for name, p in model.named_parameters()
        if name not in trained(model)
    )
    again = dict(PlainWeights(model))
    assert all(torch.equal(tensor, again[name]) for name, tensor in PlainWeights(adapted("Qwen3")))


@pytest.mark.parametrize("kind", ["Qwen3", "Qwen3Moe"])
def test_only_adapters_have_gradients_and_recomputation_keeps_them(kind: str) -> None:
    found = []
    for recompute in (False, True):
        model = adapted(kind)
        if recompute:
            recompute_activations(model)
        hidden = hidden_states(model, IDS, None, None)[:, :-1].reshape(16, -1)
        logprobs, _ = token_logprobs(hidden, head_of(model), IDS[:, 1:].flatten(), 0.85, chunk_tokens=5)
        (logprobs * torch.linspace(-1, 1, 16)).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert found[-1].keys() == trained(model).keys()
        assert all(".lora_" in name and grad.abs().max() > 0 for name, grad in found[-1].items())
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_adapters_of_a_bfloat16_model_are_float32() -> None:
    model = make("Qwen3").eval().to(torch.bfloat16)
    add_lora(model, LoraConfig(rank=3))
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    assert {tensor.dtype for _, tensor in PlainWeights(model)} == {torch.bfloat16}
    assert hidden_states(model, IDS, None, None).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_saved_folders(kind: str, tmp_path: Path) -> None:
    """The merged one is a plain model with the learner's logits; the exact one has base and adapters, bit for bit."""
    make(kind).save_pretrained(tmp_path / "base")
    source = load_model(ModelSource(str(tmp_path / "base")), dtype=torch.float32, device="cpu")
    add_lora(source, LoraConfig(rank=3, alpha=6))
    for parameter in trained(source).values():
        torch.nn.init.normal_(parameter, std=0.1)
    save_merged(source, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), logits(source), atol=5e-5, rtol=1e-4)
    files = [load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "merged")]
    assert files[0].keys() == files[1].keys()
    to_files = checkpoint_names(ModelSource(str(tmp_path / "base")))
    assert dict(to_files(PlainWeights(source))).keys() >= files[0].keys()

    save_exact(source, tmp_path / "exact")
    again = load_model(ModelSource(str(tmp_path / "exact" / "model")), dtype=torch.float32, device="cpu")
    assert torch.equal(logits(again), logits(make(kind).eval()))
    add_lora(again, LoraConfig(rank=3, alpha=6), checkpoint=tmp_path / "exact")
    assert torch.equal(logits(again), logits(source))
    with refused(ErrorCode.MODEL_ADAPTERS, key="model.lora"):
        add_lora(make(kind), LoraConfig(rank=2), checkpoint=tmp_path / "exact")


def test_the_engine_takes_merged_weights() -> None:
    model = adapted("Qwen3Moe")
    engine = TorchEngine(make("Qwen3Moe"), eos_ids=(), slots=2, prefill_tokens=16)
    engine.load_weights(PlainWeights(model), 1)
    torch.testing.assert_close(logits(engine._model), logits(model), atol=5e-5, rtol=1e-4)


# Whole runs on the tiny reasoner


def recipe(run_dir: Path, *overrides: str) -> ulorl.Config:
    small = [
        "steps=4", "rollout.prompts=8", "rollout.group=2", "rollout.max_tokens=96", "rollout.segments=3",
        "data.size=40", "eval.data={}", "run.checkpoint_every=2", "model.threads=1", "optim.lr=1e-2",
        "log.report=false",
        'model.lora={rank=4, alpha=8, targets=["q_proj", "down_proj"]}',
    ]  # fmt: skip
    return ulorl.load([RECIPE], [*small, f"run.dir={run_dir}", *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> run.Result:
    return ulorl.train(recipe(tmp_path_factory.mktemp("lora") / "straight"))


def test_engine_and_learner_agree_after_every_update(finished: run.Result) -> None:
    probed = [m["mismatch/probe_max"] for m in finished.metrics if m.get("train/samples")]
    assert len(probed) >= 2
    assert max(probed) < 1e-4


def test_a_run_trains_adapters_and_saves_plain_weights(finished: run.Result) -> None:
    base, merged = (load_file(folder / "model.safetensors") for folder in (model_path(), finished.model))
    assert base.keys() == merged.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {name for name in base if "q_proj" in name or "down_proj" in name}
    folder = checkpoint.latest(finished.dir)
    kept = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(kept[name], base[name]) for name in base)
    assert all(".lora_" in name for name in load_file(folder / ADAPTERS))
    assert all(".lora_" in name for name in load_file(folder / "optimizer.safetensors") if name != "updates")


def test_a_resumed_run_is_the_run_that_never_stopped(finished: run.Result, tmp_path: Path) -> None:
    ulorl.train(recipe(tmp_path / "cut", "steps=2"))
    resumed = ulorl.resume(tmp_path / "cut", ["steps=4"])
    for name in (ADAPTERS, "optimizer.safetensors", "pools.safetensors", "model/model.safetensors"):
        ours, theirs = (load_file(checkpoint.latest(r.dir) / name) for r in (resumed, finished))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    ours, theirs = (load_file(r.model / "model.safetensors") for r in (resumed, finished))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


# What a user gets wrong


@pytest.mark.parametrize(
    ("kind", "targets", "message"),
    [
        ("Qwen3", ["absent"], "absent"),
        ("Qwen3", ["q_proj", "absent"], "Qwen3ForCausalLM has no linear layer absent"),
        ("Qwen3", ["lm_head"], "lm_head of Qwen3ForCausalLM cannot be adapted"),
        ("Qwen3", ["embed_tokens"], "model.embed_tokens of Qwen3ForCausalLM cannot be adapted"),
        ("Qwen3", ["input_layernorm"], "Qwen3RMSNorm"),
        ("Qwen3Moe", ["gate_proj"], "without also targeting up_proj"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(kind: str, targets: list[str], message: str) -> None:
    with refused(ErrorCode.MODEL_ADAPTERS, key="model.lora.targets") as error:
        add_lora(make(kind), LoraConfig(rank=3, targets=tuple(targets)))
    assert message in str(error.value)


def test_missing_peft_is_one_line_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ulorl.models.lora.find_spec", lambda _name: None)
    with refused(ErrorCode.EXTRA_MISSING, key="model.lora.rank") as error:
        load_inputs(recipe(tmp_path, "model.path=nowhere"))
    assert "\n" not in str(error.value)
    load_inputs(recipe(tmp_path, "model.lora={}"))  # only adapters need it
    held_out = ["eval.data={seed=2}", "eval.problems=2", "eval.max_tokens=8"]
    assert run.evaluate_config(recipe(tmp_path, *held_out)).samples == 1  # and no trained model, which has them merged


@pytest.mark.parametrize(
    ("table", "code", "key"),
    [
        ("{rank=4, targets=[]}", ErrorCode.CONFIG_BAD_VALUE, "targets"),
        ("{rank=4, targets='q_proj'}", ErrorCode.CONFIG_BAD_VALUE, "targets"),
        ("{rank=-1}", ErrorCode.CONFIG_BAD_VALUE, "rank"),
        ("{rank=4, alpha=0}", ErrorCode.CONFIG_BAD_VALUE, "alpha"),
        ("{r=4}", ErrorCode.CONFIG_UNKNOWN_KEY, "r"),
    ],
)
def test_wrong_settings_are_refused_with_the_key(table: str, code: ErrorCode, key: str) -> None:
    with refused(code, key=f"model.lora.{key}"):
        load([RECIPE], [f"model.lora={table}"])
