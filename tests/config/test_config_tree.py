"""Recipes: layering, overrides, and messages that name the key."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT
from ulorl.config.loading import build, from_json, load, overridden
from ulorl.config.tree import Config
from ulorl.errors import UserError

DATA = {"data": {"kind": "countdown", "size": 10}}


def test_importing_the_configuration_pulls_in_no_torch() -> None:
    code = (
        "import sys, ulorl, ulorl.cli.main, ulorl.rollout.scheduler; print({'torch', 'vllm', 'ray'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("recipes/*.toml")), ids=lambda p: p.name)
def test_every_shipped_recipe_is_valid(recipe: Path) -> None:
    cfg = load([recipe])
    assert cfg.eval.data  # every recipe measures held-out problems
    assert Config.model_validate_json(cfg.model_dump_json()) == cfg


def test_defaults_are_the_papers_section_4_1() -> None:
    cfg = build(DATA)
    assert (cfg.rollout.prompts, cfg.rollout.group, cfg.rollout.temperature) == (128, 8, 0.85)
    assert (cfg.rollout.max_tokens, cfg.rollout.segments, cfg.rollout.segment_tokens) == (131072, 8, 16384)
    assert (cfg.rollout.top_p, cfg.rollout.top_k) == (1.0, 0)
    assert (cfg.optim.lr, cfg.optim.minibatches, cfg.optim.warmup_steps) == (1e-6, 1, 0)
    assert cfg.objective.importance == "pois"
    assert cfg.objective.mpt.model_dump() == {"mask": "dynamic", "tau": 0.99, "sigma": 0.2, "gate": "sample"}


def test_recipes_layer_left_to_right_then_overrides(tmp_path: Path) -> None:
    a, b = tmp_path / "a.toml", tmp_path / "b.toml"
    a.write_text('steps = 5\n[data]\nkind = "countdown"\nsize = 10\n[optim]\nlr = 1e-3\ngrad_clip = 2.0\n')
    b.write_text("[optim]\nlr = 2e-3\n")
    cfg = load([a, b], ["objective.mpt.tau=0.9", "run.dir=runs/x y", "eval.data={ seed = 7 }", "log.progress=false"])
    assert (cfg.steps, cfg.optim.lr, cfg.optim.grad_clip) == (5, 2e-3, 2.0)
    assert (cfg.objective.mpt.tau, cfg.run.dir, cfg.log.progress) == (0.9, "runs/x y", False)
    assert cfg.eval_data().seed == 7
    assert cfg.eval_data().size == 10


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollot.group=4", r"rollot: unknown key; did you mean rollout\?"),
        ("objective.mpt.sigm=0.1", r"objective\.mpt\.sigm: unknown key; did you mean sigma\?"),
        ("rollout.group=1", r"rollout\.group: .*greater than or equal to 2, found 1"),
        ("rollout.segments=7", r"rollout\.segments=7 does not divide rollout\.max_tokens=131072"),
        ("objective.mpt.tau=0", r"objective\.mpt\.tau: .*greater than 0"),
        ("objective.mpt.tau=1.5", r"objective\.mpt\.tau: .*less than or equal to 1"),
        ("objective.importance=ppo", r"objective\.importance: .*'tois', 'sais' or 'pois'"),
        ("objective.importance=tois", r"tois needs rollout\.segments=1 \(found 8\)"),
        ("objective.overlong=soft", r"soft needs 0 < objective\.overlong_buffer"),
        ("optim.lr=fast", r"optim\.lr: .*valid number.*found 'fast'"),
        ("optim.lr=nan", r"optim\.lr: .*found nan"),
        ("optim.lr=-1e-3", r"optim\.lr: .*greater than 0"),
        ("steps=0", r"steps: .*greater than 0"),
        ("data.kind=countdown", r"data\.size is missing"),
        ("data.template=solve it", r"data\.template must contain \{question\}"),
        ("reward.kind=function", r"reward\.function=module:name goes with"),
        ("reward.function=a:b", r"reward\.function=module:name goes with"),
        ("eval.data.sizes=3", r"eval\.data\.sizes: unknown key; did you mean size\?"),
        ("engine.kind=sglang", r"engine\.kind: "),
        ("model.device=gpu", r"model\.device: .*found 'gpu'"),
        ("reward.kind=countdown", r"only, found data\.kind=files"),
        ("model.attention=flash_attention_2", r"needs bfloat16: optim\.autocast=bfloat16, or model\.dtype=bfloat16"),
        ("optim.max_skipped=0", r"optim\.max_skipped: .*greater than 0"),
        ("steps", r"'steps': expected key=value"),
        ("=3", r"'=3': expected key=value"),
        ("steps.deep=3", r"steps: .*valid integer"),
        ("steps=3.0", r"steps: .*valid integer, found 3\.0"),
        ('steps="3"', r"steps: .*valid integer, found '3'"),
        ("steps=true", r"steps: .*valid integer, found True"),
        ("log.progress=1", r"log\.progress: .*valid boolean, found 1"),
        ("optim=3", r"optim: expected a table of keys, found 3"),
        ("model.lora.targets=3", r"model\.lora\.targets: .*found 3"),
        ("seed=9223372036854775808", r"seed: expected a number of at most 64 bits"),
        (f"seed={'9' * 5000}", r"seed: .*valid integer, found '9{70,80}"),
        ("run.dir='a\0b'", r"run\.dir: holds a NUL character at position 3"),
        ("run.dir=\udcff", r"run\.dir: is not Unicode text"),
        ("optim.minibatches=1025", r"optim\.minibatches=1025 is more than rollout\.prompts x rollout\.group = 1024"),
        ("objective.overlong_buffer=131072", r"objective\.overlong_buffer must be less than rollout\.max_tokens"),
        ("eval.data={ kind='reasoning_gym' }", r"eval\.data: data\.task is missing"),
        ("seed=1\nsteps=2", r"seed: .*valid integer, found '1\\nsteps=2'"),
    ],
)
def test_bad_keys_and_values_are_named(tmp_path: Path, override: str, message: str) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[data]\nkind = "files"\npath = "p.jsonl"\n')
    with pytest.raises(UserError, match=message):
        load([recipe], [override])


def test_flash_attention_takes_long_packed_rows_and_bfloat16() -> None:
    flash = ["model.attention=flash_attention_2", "optim.layout=packed", "optim.microbatch_tokens=131072"]
    recipe = ROOT / "recipes" / "quickstart.toml"
    assert load([recipe], [*flash, "optim.autocast=bfloat16"]).learner_dtype == "bfloat16"
    assert load([recipe], [*flash, "model.dtype=bfloat16"]).learner_dtype == "bfloat16"
    assert load([recipe]).learner_dtype == "float32"


def test_an_empty_table_replaces(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[data]\nkind = "countdown"\nsize = 10\nsettings = { numbers = [3] }\n[eval]\ndata = { seed = 1 }\n'
    )
    assert load([recipe], ["eval.data.size=5"]).eval.data == {"seed": 1, "size": 5}
    assert load([recipe], ["eval.data={}"]).eval.data == {}
    assert load([recipe], ["data.settings={}"]).data.settings == {}


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml: no such recipe"):
        load([tmp_path / "none.toml"])
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = \n")
    with pytest.raises(UserError, match=r"broken\.toml: not valid TOML.*line 1"):
        load([broken])
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"broken\.toml: cannot be read as a UTF-8"):
        load([broken])
    with pytest.raises(UserError, match="cannot be read"):
        load([tmp_path])
    with pytest.raises(UserError, match="data: missing"):
        build({})


def test_a_resumed_run_may_change_only_what_does_not_change_it() -> None:
    saved = build({**DATA, "steps": 10})
    longer = overridden(saved, ["steps=20", "log.progress=false"], may_change=("steps", "log"))
    assert (longer.steps, longer.log.progress) == (20, False)
    with pytest.raises(UserError, match=r"optim\.lr: a resumed run may change steps, log only"):
        overridden(saved, ["optim.lr=1"], may_change=("steps", "log"))


def test_saved_configuration_is_read_back(tmp_path: Path) -> None:
    cfg = build({**DATA, "eval": {"data": {"seed": 3}}})
    path = tmp_path / "config.json"
    path.write_text(cfg.model_dump_json())
    assert from_json(path) == cfg
    path.write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        from_json(path)
    with pytest.raises(UserError, match="not found"):
        from_json(tmp_path / "no.json")


def test_the_reference_page_is_current() -> None:
    maker = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == maker["page"]()


@pytest.mark.parametrize("name", ["qwen3_4b", "qwen3_8b"])
def test_gpu_recipes_keep_the_papers_values(name: str) -> None:
    """Section 4.1, except what one node cannot hold: prompts a step and output length."""
    cfg = load([ROOT / "recipes" / f"{name}.toml"])
    assert (cfg.optim.lr, cfg.optim.minibatches, cfg.rollout.group) == (1e-6, 1, 8)
    assert (cfg.rollout.temperature, cfg.rollout.top_p, cfg.rollout.top_k) == (0.85, 1.0, 0)
    assert (cfg.objective.importance, cfg.objective.mpt.mask) == ("pois", "dynamic")
    assert (cfg.objective.mpt.tau, cfg.objective.mpt.sigma) == (0.99, 0.2)
    assert (cfg.eval.samples, cfg.eval.temperature, cfg.eval.top_p, cfg.eval.top_k) == (32, 0.85, 0.95, 20)
    assert (cfg.engine.kind, cfg.engine_dtype, cfg.model.dtype) == ("vllm", "bfloat16", "float32")
    assert 0 not in cfg.engine.vllm.devices  # the learner's
    longest = cfg.data.max_prompt_tokens + cfg.rollout.max_tokens
    assert longest <= cfg.optim.microbatch_tokens  # a whole sample fits a micro-batch
    assert longest <= 40960  # Qwen3's max_position_embeddings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.vllm.process=true", "engine.vllm.transfer=direct"], "engine.vllm.transfer=direct needs"),
        (["engine.vllm.transfer=ipc"], "transfer=ipc needs engine.vllm.process=true"),
        (["engine.vllm.transfer=nccl"], "transfer=nccl needs engine.vllm.process=true"),
        (["engine.vllm.tensor_parallel=2", "engine.vllm.devices=[1]"], "engine.vllm.devices names 1 GPUs"),
        (["engine.kind=vllm", "rollout.temperature=0.85", "rollout.top_p=0.9"], "needs rollout.top_p=1"),
        (["engine.kind=vllm", "rollout.temperature=0.85", "rollout.top_k=9"], "rollout.top_k=0"),
        (["objective.tis_cap=2", "objective.importance=sais"], "objective.tis_cap=2.0 goes with .*pois"),
        (["engine.vllm.tensor_paralel=2"], "did you mean tensor_parallel"),
        (["optim.autocast=bfloat16", "model.dtype=bfloat16"], "optim.autocast=bfloat16 goes with model.dtype=float32"),
        (["optim.layout=packed", "optim.microbatch_tokens=20000"], "optim.microbatch_tokens <= 16384 .found 20000."),
    ],
)
def test_impossible_engine_and_learner_settings_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load([ROOT / "recipes" / "quickstart.toml"], overrides)


def test_all_impossible_combinations_are_told_at_once() -> None:
    overrides = ["objective.importance=tois", "optim.minibatches=999", "eval.data.size=x", "model.dtype=bfloat16"]
    with pytest.raises(UserError) as caught:
        load([ROOT / "recipes" / "quickstart.toml"], [*overrides, "optim.autocast=bfloat16", "eval.data.sed=1"])
    lines = str(caught.value).splitlines()[1:]
    assert [line.split()[0] for line in lines] == [
        "objective.importance=tois",
        "optim.autocast=bfloat16",
        "optim.minibatches=999",
        "eval.data.size:",
        "eval.data.sed:",
    ]


def test_damaged_saved_configurations_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text, message in [
        ("[]", "expected a table"),
        ("[" * 100_000, "not valid JSON"),
        ("3" * 5000, "not valid JSON"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=rf"config\.json: {message}"):
            from_json(path)
    with pytest.raises(UserError, match=r"config\.json/below: cannot be read \(Not a directory\)"):
        from_json(path / "below")


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('\ufeffsteps = 7\ndata = { kind = "countdown", size = 10 }\n', encoding="utf-8")
    assert load([tmp_path / "r.toml"]).steps == 7
