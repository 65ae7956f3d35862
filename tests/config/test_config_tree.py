"""Recipes: layering, overrides, and messages that name the key."""

from __future__ import annotations

import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from paths import ROOT
from refusals import refused
from ulorl.config.data_config import FilesDataConfig
from ulorl.config.loading import build, load, load_saved, with_overrides
from ulorl.config.reward_config import NumericRewardConfig
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
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


def test_segments_divide_the_output_only_where_they_are_used() -> None:
    rollout = {"max_tokens": 100, "segments": 8}
    assert build(DATA | {"rollout": rollout | {"schedule": {"kind": "refill"}}}).rollout.max_tokens == 100
    with refused(CONFLICT, key="rollout.segments"):
        build(DATA | {"rollout": rollout})


def test_recipes_layer_left_to_right_then_overrides(tmp_path: Path) -> None:
    a, b = tmp_path / "a.toml", tmp_path / "b.toml"
    a.write_text('steps = 5\n[data]\nkind = "countdown"\nsize = 10\n[optim]\nlr = 1e-3\ngrad_clip = 2.0\n')
    b.write_text("[optim]\nlr = 2e-3\n")
    cfg = load([a, b], ["objective.mpt.tau=0.9", "run.dir=runs/x y", "eval.data={ seed = 7 }", "log.progress=false"])
    assert (cfg.steps, cfg.optim.lr, cfg.optim.grad_clip) == (5, 2e-3, 2.0)
    assert (cfg.objective.mpt.tau, cfg.run.dir, cfg.log.progress) == (0.9, "runs/x y", False)
    assert cfg.eval_data().seed == 7
    assert cfg.eval_data().size == 10


UNKNOWN, VALUE, CONFLICT = ErrorCode.CONFIG_UNKNOWN_KEY, ErrorCode.CONFIG_BAD_VALUE, ErrorCode.CONFIG_CONFLICT
MISSING, COMMAND = ErrorCode.CONFIG_MISSING_KEY, ErrorCode.COMMAND_LINE


@pytest.mark.parametrize(
    ("override", "code", "key"),
    [
        ("rollot.group=4", UNKNOWN, "rollot"),
        ("objective.mpt.sigm=0.1", UNKNOWN, "objective.mpt.sigm"),
        ("rollout.group=1", VALUE, "rollout.group"),
        ("rollout.segments=7", CONFLICT, "rollout.segments"),
        ("objective.mpt.tau=0", VALUE, "objective.mpt.tau"),
        ("objective.mpt.tau=1.5", VALUE, "objective.mpt.tau"),
        ("objective.importance=ppo", VALUE, "objective.importance"),
        ("objective.importance=tois", CONFLICT, "objective.importance"),
        ("objective.overlong=soft", CONFLICT, "objective.overlong_buffer"),
        ("optim.lr=fast", VALUE, "optim.lr"),
        ("optim.lr=nan", VALUE, "optim.lr"),
        ("optim.lr=-1e-3", VALUE, "optim.lr"),
        ("steps=0", VALUE, "steps"),
        ("data.kind=countdown", MISSING, "data.size"),
        ("data.template=solve it", VALUE, "data.template"),
        ("reward.kind=function", MISSING, "reward.function"),
        ("reward.kind=generative", MISSING, "reward.verifier.name"),
        ("reward.function=a:b", UNKNOWN, "reward.function"),
        ("reward.tolerance=0.1", UNKNOWN, "reward.tolerance"),
        ("reward.verifier.base_url=http://x", UNKNOWN, "reward.verifier.base_url"),
        ("data.task=x", UNKNOWN, "data.task"),
        ("eval.data.sizes=3", UNKNOWN, "eval.data.sizes"),
        ("eval.data.split=test", UNKNOWN, "eval.data.split"),
        ("engine.kind=sglang", VALUE, "engine.kind"),
        ("engine.kind=3", VALUE, "engine.kind"),
        ("engine=3", VALUE, "engine"),
        ("engine.vllm.eager=true", UNKNOWN, "engine.vllm.eager"),
        ("reward.kind=[1]", VALUE, "reward.kind"),
        ("model.device=gpu", VALUE, "model.device"),
        ("reward.kind=countdown", CONFLICT, "reward.kind"),
        ("reward.answer.find=['math_verify']", None, ""),
        ("reward={kind='exact', answer={find=['math_verify']}}", CONFLICT, "reward.answer.find"),
        ("model.attention=flash_attention_2", CONFLICT, "model.attention"),
        ("optim.max_skipped=0", VALUE, "optim.max_skipped"),
        ("steps", COMMAND, "steps"),
        ("=3", COMMAND, ""),
        ("steps.deep=3", VALUE, "steps"),
        ("steps=3.0", VALUE, "steps"),
        ('steps="3"', VALUE, "steps"),
        ("steps=true", VALUE, "steps"),
        ("log.progress=1", VALUE, "log.progress"),
        ("optim=3", VALUE, "optim"),
        ("model.lora.targets=3", VALUE, "model.lora.targets"),
        ("seed=9223372036854775808", VALUE, "seed"),
        (f"seed={'9' * 5000}", VALUE, "seed"),
        ("run.dir='a\0b'", VALUE, "run.dir"),
        ("run.dir=\udcff", VALUE, "run.dir"),
        ("optim.minibatches=1025", CONFLICT, "optim.minibatches"),
        ("objective.overlong_buffer=131072", CONFLICT, "objective.overlong_buffer"),
        ("eval.data={ kind='reasoning_gym' }", MISSING, "eval.data.task"),
        ("seed=1\nsteps=2", VALUE, "seed"),
        ("model.rope.factor=2", CONFLICT, "model.rope.type"),
        ("model.lora.targets=[]", VALUE, "model.lora.targets"),
    ],
)
def test_bad_keys_and_values_are_named(tmp_path: Path, override: str, code: ErrorCode | None, key: str) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[data]\nkind = "files"\npath = "p.jsonl"\n')
    with refused(code, key=key, file="") if code else nullcontext():
        load([recipe], [override])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("rollot.group=4", "rollot: unknown key; did you mean rollout?"),
        ("lr=1e-4", "lr: unknown key; did you mean optim.lr?"),
        ("rollout.factor=2", "rollout.factor: unknown key; did you mean rollout.schedule.factor?"),
        ("rollout.group=1", "rollout.group: Input should be greater than or equal to 2, found 1"),
        ("reward.tolerance=0.1", "reward.tolerance: goes with reward.kind=numeric only, found reward.kind=math"),
        (
            "data.seed=1",
            "data.seed: goes with data.kind=reasoning_gym or countdown or task only, found data.kind=files",
        ),
        ("optim=3", "optim: expected a table of keys, found 3"),
        ("engine.kind=x", "engine.kind: expected torch or vllm, found 'x'"),
        ("data.kind=hub", "data.path: missing; the name of the dataset"),
    ],
)
def test_messages(tmp_path: Path, override: str, line: str) -> None:
    """The wording itself."""
    recipe = tmp_path / "r.toml"
    recipe.write_text('[data]\nkind = "files"\nquestion = "q"\n')
    with pytest.raises(UserError) as caught:
        load([recipe], [*([] if "hub" in override else ["data.path=p.jsonl"]), override])
    assert line in [text.strip() for text in str(caught.value).splitlines()]


def test_an_error_names_the_recipe_that_set_the_key(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text('steps = 0\n[data]\nkind = "countdown"\n[optim]\nlr = 1\neps = -1\n')
    second.write_text("[optim]\nlr = -1\n")
    for code, key, file in (
        (VALUE, "steps", first), (MISSING, "data.size", first), (VALUE, "optim.lr", second), (VALUE, "optim.eps", ""),
    ):  # fmt: skip
        with refused(code, key=key, file=file) as caught:
            load([first, second], ["optim.eps=-2"])
    assert str(caught.value).splitlines()[0] == f"{first} + {second} + optim.eps=-2:"
    assert len(str(caught.value).splitlines()) == 5


def recipes(folder: Path, *texts: str) -> list[Path]:
    paths = [folder / f"{number}.toml" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


NUMERIC = '[data]\npath = "p"\n[reward]\nkind = "numeric"\ntolerance = 0.1\nretries = 5\n'


def test_another_kind_drops_the_keys_of_the_earlier_one(tmp_path: Path) -> None:
    reward = load(recipes(tmp_path, NUMERIC, '[reward]\nkind = "exact"\n')).reward
    assert (reward.kind, reward.retries) == ("exact", 5)
    assert load(recipes(tmp_path, NUMERIC), ["reward.kind=exact"]).reward == reward
    back = load(recipes(tmp_path, NUMERIC), ["reward.kind=exact", "reward.kind=numeric"]).reward
    assert isinstance(back, NumericRewardConfig)
    assert back.tolerance == 0.1  # all overrides are one layer


@pytest.mark.parametrize(
    "overrides", [["reward.kind=exact", "reward.units=strict"], ["reward.units=strict", "reward.kind=exact"]]
)
def test_keys_of_the_layer_that_chooses_the_kind_must_apply(tmp_path: Path, overrides: list[str]) -> None:
    with refused(UNKNOWN, key="reward.units", file=""):
        load(recipes(tmp_path, NUMERIC), overrides)
    [_, second] = paths = recipes(tmp_path, NUMERIC, '[reward]\nkind = "exact"\nunits = "strict"\n')
    with refused(UNKNOWN, key="reward.units", file=second):
        load(paths)
    with refused(UNKNOWN, key="reward.units", file=""):
        load(recipes(tmp_path, NUMERIC, '[reward]\nkind = "exact"\n'), ["reward.units=strict"])


def test_nested_kinds_are_dropped_too(tmp_path: Path) -> None:
    """A verifier behind a server becomes one in our engine, on vLLM, and that one a run on the embedded engine."""
    server = '[data]\npath = "p"\n[reward]\nkind = "generative"\n[reward.verifier]\nname = "v"\nbase_url = "http://x"\n'
    vllm = '[reward.verifier]\nkind = "engine"\nengine = { kind = "vllm", slots = 7, vllm = { eager = true } }\n'
    verifier = load(recipes(tmp_path, server, vllm), ["reward.verifier.engine.kind=torch"]).reward.model_dump()[
        "verifier"
    ]
    assert (verifier["kind"], verifier["name"], "base_url" in verifier) == ("engine", "v", False)
    assert (verifier["engine"]["slots"], "vllm" in verifier["engine"]) == (7, False)


def test_held_out_problems_of_another_kind(tmp_path: Path) -> None:
    hub = '[data]\nkind = "hub"\npath = "h"\nsubset = "main"\nquestion = "q"\n[eval]\ndata = { split = "test" }\n'
    config = load(recipes(tmp_path, hub))
    assert config.eval_data().model_dump() == {**config.data.model_dump(), "split": "test"}
    files = "eval.data={ kind = 'files', path = 'x.jsonl' }"
    for overrides in (
        [files],
        ["data.kind=files", "data.path=p", files],
        ["data.kind=files", "eval.data.path=x.jsonl"],
    ):
        config = load(recipes(tmp_path, hub), overrides)
        assert config.eval_data() == FilesDataConfig(path="x.jsonl", question="q")
    with refused(UNKNOWN, key="eval.data.split"):
        load(recipes(tmp_path, hub), ["data.kind=files", "eval.data.split=test"])


def test_flash_attention_takes_long_packed_rows_and_bfloat16() -> None:
    flash = ["model.attention=flash_attention_2", "optim.layout=packed", "optim.microbatch_tokens=131072"]
    recipe = ROOT / "recipes" / "countdown.toml"
    assert load([recipe], [*flash, "optim.autocast=bfloat16"]).learner_dtype == "bfloat16"
    assert load([recipe], [*flash, "model.dtype=bfloat16"]).learner_dtype == "bfloat16"
    assert load([recipe]).learner_dtype == "float32"
    shared = ["optim.layout=packed", "optim.microbatch_tokens=131072", "backend.kind=torchrun"]
    assert load([recipe], [*shared, "optim.sequence_parallel=2"]).model.attention == "sdpa"  # makes no mask


def test_an_empty_table_replaces(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[data]\nkind = "countdown"\nsize = 10\nsettings = { numbers = [3] }\n[eval]\ndata = { seed = 1 }\n'
    )
    assert load([recipe], ["eval.data.size=5"]).eval.data == {"seed": 1, "size": 5}
    assert load([recipe], ["eval.data={}"]).eval.data == {}
    assert load([recipe], ["data.settings={}"]).data.settings == {}


def test_bad_files_are_named(tmp_path: Path) -> None:
    with refused(ErrorCode.RECIPE_NOT_FOUND, file=tmp_path / "none.toml"):
        load([tmp_path / "none.toml"])
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = \n")
    with refused(ErrorCode.RECIPE_UNREADABLE, file=broken):
        load([broken])
    broken.write_bytes(b"\xff\xfe\x00")
    with refused(ErrorCode.RECIPE_UNREADABLE, file=broken):
        load([broken])
    with refused(ErrorCode.RECIPE_UNREADABLE, file=tmp_path):
        load([tmp_path])
    with refused(MISSING, key="data"):
        build({})


def test_a_resumed_run_may_change_only_what_does_not_change_it() -> None:
    saved = build({**DATA, "steps": 10})
    longer = with_overrides(saved, ["steps=20", "log.progress=false"], allowed=("steps", "log"), purpose="a run")
    assert (longer.steps, longer.log.progress) == (20, False)
    with refused(ErrorCode.CONFIG_FIXED_ON_RESUME, key="optim.lr"):
        with_overrides(saved, ["optim.lr=1"], allowed=("steps", "log"), purpose="a run")


def test_saved_configuration_is_read_back(tmp_path: Path) -> None:
    cfg = build({**DATA, "eval": {"data": {"seed": 3}}})
    path = tmp_path / "config.json"
    path.write_text(cfg.model_dump_json())
    assert load_saved(path) == cfg
    path.write_text("{")
    with refused(ErrorCode.RECIPE_UNREADABLE, file=path):
        load_saved(path)
    with refused(ErrorCode.RUN_NOT_FOUND, file=tmp_path / "no.json"):
        load_saved(tmp_path / "no.json")


def test_the_reference_page_is_current() -> None:
    maker = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == maker["page"]()


@pytest.mark.parametrize(
    ("name", "gpus", "heads"), [("qwen3_4b", 8, 32), ("qwen3_8b", 8, 32), ("qwen3_30b_a3b", 32, 32)]
)
def test_gpu_recipes_keep_the_papers_values(name: str, gpus: int, heads: int) -> None:
    """Section 4.1, except for the prompts a step that one node cannot hold."""
    cfg = load([ROOT / "recipes" / f"{name}.toml"])
    assert cfg.rollout.prompts == (128 if gpus == 32 else 32)
    assert (cfg.rollout.max_tokens, cfg.rollout.segments, cfg.rollout.group) == (131_072, 8, 8)
    assert (cfg.rollout.temperature, cfg.rollout.top_p, cfg.rollout.top_k) == (0.85, 1.0, 0)
    assert (cfg.optim.lr, cfg.optim.minibatches) == (1e-6, 1)
    assert (cfg.objective.importance, cfg.objective.mpt.mask) == ("pois", "dynamic")
    assert (cfg.objective.mpt.tau, cfg.objective.mpt.sigma) == (0.99, 0.2)
    assert (cfg.model.rope.factor, cfg.model.rope.original_max_position_embeddings) == (1.5, 95_232)
    assert (cfg.eval.samples, cfg.eval.temperature, cfg.eval.top_p, cfg.eval.top_k) == (32, 0.85, 0.95, 20)
    assert (cfg.engine.kind, cfg.engine_dtype, cfg.model.dtype) == ("vllm", "bfloat16", "float32")
    assert cfg.backend.kind == "ray"
    assert cfg.backend.ranks + cfg.backend.engines * cfg.engine.vllm.tensor_parallel == gpus
    assert heads % cfg.optim.sequence_parallel == 0
    longest = cfg.data.max_prompt_tokens + cfg.rollout.max_tokens
    assert longest <= cfg.optim.microbatch_tokens * cfg.optim.sequence_parallel  # a whole sample fits a micro-batch
    assert longest <= cfg.model.rope.length


@pytest.mark.parametrize(
    ("overrides", "code", "key"),
    [
        ("engine.kind=vllm engine.vllm.process=true engine.vllm.transfer=direct", CONFLICT, "engine.vllm.transfer"),
        ("engine.kind=vllm engine.vllm.transfer=ipc", CONFLICT, "engine.vllm.transfer"),
        ("engine.kind=vllm engine.vllm.transfer=nccl", CONFLICT, "engine.vllm.transfer"),
        ("engine.kind=vllm engine.vllm.tensor_parallel=2 engine.vllm.devices=[1]", CONFLICT, "engine.vllm.devices"),
        ("engine.kind=vllm rollout.temperature=0.85 rollout.top_p=0.9", CONFLICT, "engine.kind"),
        ("engine.kind=vllm rollout.temperature=0.85 rollout.top_k=9", CONFLICT, "engine.kind"),
        ("objective.tis_cap=2 objective.importance=sais", CONFLICT, "objective.tis_cap"),
        ("objective.engine_mask.level=token objective.importance=sais", CONFLICT, "objective.engine_mask.level"),
        ("objective.engine_mask.low=6", CONFLICT, "objective.engine_mask.low"),
        ("objective.min_prefix=true", CONFLICT, "objective.min_prefix"),
        ("objective.importance=decoupled rollout.overlap=true", CONFLICT, "rollout.overlap"),
        ("objective.min_prefix=true objective.importance=sais objective.loss=gspo", CONFLICT, "objective.min_prefix"),
        ("objective.entropy.kind=kl_cov", CONFLICT, "objective.entropy.kind"),
        ("objective.entropy.kind=clip_cov objective.entropy.low=5", CONFLICT, "objective.entropy.low"),
        ("objective.entropy.kind=bonus objective.entropy.step=0", CONFLICT, "objective.entropy.step"),
        ("objective.entropy.kind=bonus objective.entropy.coefficient=2", CONFLICT, "objective.entropy.coefficient"),
        ("objective.entropy.kind=clip_cov objective.entropy.target=1", UNKNOWN, "objective.entropy.target"),
        ("engine.kind=vllm engine.vllm.tensor_paralel=2", UNKNOWN, "engine.vllm.tensor_paralel"),
        ("optim.autocast=bfloat16 model.dtype=bfloat16", CONFLICT, "optim.autocast"),
        ("optim.layout=packed optim.microbatch_tokens=20000", CONFLICT, "optim.layout"),
    ],
)
def test_impossible_engine_and_learner_settings_are_refused(overrides: str, code: ErrorCode, key: str) -> None:
    with refused(code, key=key):
        load([ROOT / "recipes" / "countdown.toml"], overrides.split())


@pytest.mark.parametrize(
    "overrides",
    [
        "objective.loss=cispo objective.clip_low=1.0",
        "objective.loss=gspo objective.tis_cap=2 objective.engine_mask.level=sequence_mean",
        "objective.importance=sais objective.min_prefix=true objective.entropy.kind=kl_cov",
        "objective.entropy.kind=kl_cov optim.minibatches=2 objective.mpt.mask=off",
        "objective.entropy.kind=bonus objective.loss=gspo",
        "objective.importance=decoupled objective.tis_cap=2 objective.min_prefix=true",
        "objective.entropy.kind=top_entropy objective.importance=sais",
    ],
)
def test_entries_of_the_objective_menu_that_compose(overrides: str) -> None:
    load([ROOT / "recipes" / "countdown.toml"], overrides.split())


def test_all_impossible_combinations_are_reported_at_once() -> None:
    overrides = ["objective.importance=tois", "optim.minibatches=999", "eval.data.size=x", "model.dtype=bfloat16"]
    with pytest.raises(UserError) as caught:
        load([ROOT / "recipes" / "countdown.toml"], [*overrides, "optim.autocast=bfloat16", "eval.data.sed=1"])
    keys = ["objective.importance", "optim.autocast", "optim.minibatches", "eval.data.size", "eval.data.sed"]
    assert [error.key for error in caught.value.each()] == keys
    assert [line.split()[0] for line in str(caught.value).splitlines()[1:]] == [f"{key}:" for key in keys]


def test_damaged_saved_configurations_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text, code in [
        ("[]", VALUE),
        ("[" * 100_000, ErrorCode.RECIPE_UNREADABLE),
        ("3" * 5000, ErrorCode.RECIPE_UNREADABLE),
    ]:
        path.write_text(text)
        with refused(code, file=path):
            load_saved(path)
    with refused(ErrorCode.RUN_NOT_FOUND, file=path / "below"):
        load_saved(path / "below")


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('\ufeffsteps = 7\ndata = { kind = "countdown", size = 10 }\n', encoding="utf-8")
    assert load([tmp_path / "r.toml"]).steps == 7
