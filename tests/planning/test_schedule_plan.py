"""Plans of rollout schedules: figures by hand, the paper's speed-ups, the bound, limits and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paths import COUNTDOWN
from refusals import refused
from ulorl.cli.main import app
from ulorl.config.loading import load
from ulorl.error_codes import ErrorCode
from ulorl.planning.group_lengths import log_normal_lengths
from ulorl.planning.latency_profile import SOURCED, LatencyProfile, TokenTable, Workload, linear_decode, write_profile
from ulorl.planning.schedule_figures import figures_of
from ulorl.planning.schedule_inputs import choices_of, lengths_source, read_inputs, workload_of
from ulorl.planning.schedule_plan import (
    CHOICES,
    Choice,
    LengthFacts,
    PlanSetting,
    SchedulePlan,
    bound_of,
    plan_schedules,
)
from ulorl.planning.schedule_plan_text import recipe_lines, schedule_plan_text
from ulorl.planning.simulated_engine import EngineFigures
from ulorl.planning.simulated_step import Samples, SimulatedStep
from ulorl.training.specifications import rollout_schedule

SMALL = LatencyProfile(
    name="small",
    decode=linear_decode(10e-3, 2e-4, 1e-7, rows=32, context=1024),
    prefill=TokenTable(tokens=(64, 512), seconds=(3e-3, 10e-3)),
    learner=TokenTable(tokens=(1000,), seconds=(0.1,)),
    sync_seconds=0.2,
    slots=32,
    engines=2,
    kv_tokens=12_000,
    workload=Workload(prompts=8, group=4, max_tokens=512, prompt_tokens=20, mean=120, p95=400, correlation=0.5),
    sources=dict.fromkeys([*SOURCED, "workload"], "assumption"),
)


def setting(**changes: object) -> PlanSetting:
    fields = {"prompts": 8, "group": 4, "max_tokens": 512, "prompt_tokens": 20, "steps": 60, "profile": SMALL}
    return PlanSetting(source=log_normal_lengths(120, 400, 512, 0.5), **(fields | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plan() -> SchedulePlan:
    return plan_schedules(setting())


def step(groups: int, carried: int, age_tokens: int = 0) -> SimulatedStep:
    """10 s of rollout, 3 of update, 1 of sync on two engines: 4 and 9 s of decoding, 1 of prefill; 80 row seconds."""
    return SimulatedStep(
        carried=carried,
        started_samples=8,
        started_tokens=800,
        groups=groups,
        trained=Samples(groups * 4, groups * 400, groups * 6, 3),
        age_tokens=age_tokens,
        rollout_seconds=10,
        learner_seconds=3,
        sync_seconds=1,
        engines=(EngineFigures(50, 90, 4, 20, 30), EngineFigures(70, 99, 9, 60, 70, 1, 25, 2, 6000)),
    )


def test_figures_by_hand() -> None:
    """The second half trains 1 + 3 groups in 2 x 14 s, with 1,600 tokens; 8 steps carry 9, 10 or 0 samples."""
    steps = [step(0, 0), step(1, 8), step(1, 9, 50), step(3, 10, 350)]
    f = figures_of(steps, SMALL, prompts=2)
    assert (f.groups_a_second, f.rollout_groups_a_second) == (4 / 28, 4 / 20)
    assert (f.tokens_a_second, f.step_seconds, f.rollout_seconds) == (1600 / 28, 14, 10)
    assert f.decode_steps == 1000 * 240 / 1600
    assert (f.prefill, f.again) == (200 / 1600, 50 / 1600)
    assert f.idle == pytest.approx(1 - 28 / 40)
    assert f.prefill_time == 2 / 40
    assert (f.rows, f.occupancy, f.kv_peak, f.preemptions) == (160 / 40, 4 / 32, 0.5, 2)
    assert (f.age, f.versions, f.most_versions) == (400 / 1600, 1.5, 3)
    assert (f.bias, f.first_bias) == (1.0, 1.0)
    assert (f.batch, f.growth, f.ramp) == (1.0, 3.0, 2)  # 9 is the first of at least .9 x 9.5


def test_the_paper_preset_gives_its_speed_ups_within_a_tenth() -> None:
    """Table 1: 1240, 774 and 601 s a step. N new prompts enter every step, so groups a second have the same ratios."""
    profile, _ = read_inputs("paper", [])
    workload = workload_of(profile)
    source = lengths_source(workload, None, 1.0)
    size = {name: getattr(workload, name) for name in ("prompts", "group", "max_tokens", "prompt_tokens")}
    paper = plan_schedules(
        PlanSetting(profile=profile, source=source, steps=16, **size), [CHOICES[i] for i in (0, 1, 2)]
    )
    one, two, four = (planned.figures for planned in paper.planned)
    assert one.step_seconds == pytest.approx(1240, rel=0.05)
    assert one.step_seconds / two.step_seconds == pytest.approx(1240 / 774, rel=0.1)
    assert one.step_seconds / four.step_seconds == pytest.approx(1240 / 601, rel=0.1)
    assert paper.speed(four) == pytest.approx(1240 / 601, rel=0.1)


def test_no_schedule_is_faster_than_the_bound(plan: SchedulePlan) -> None:
    shares = {one.choice.name: plan.of_bound(one.figures) for one in plan.planned}
    assert max(shares.values()) < 1
    assert plan.of_bound(plan.fastest.figures) == max(shares.values()) > 0.6
    assert plan.speed(plan.baseline) == plan.rollout_speed(plan.baseline) == 1


def test_bounds_by_hand() -> None:
    """400 tokens a step on 2 engines, 10 ms + .2 ms a row, .05 ms a prefilled token, 1 prompt of 19 tokens to prefill.

    32 rows: 400 x (10 / 32 + .2) = 205 ms, prompt .95 ms, of which an engine has half: 102.975 ms. Carried samples add
    70 tokens x .05 = 3.5 ms a row: 2000 / r + 40 + 3.5 r has its least value at r = sqrt(2000 / 3.5) = 23.9. At 24, it
    is 83.333 + 40 + 84 = 207.333 ms, and the prompt adds .475 ms.
    """
    decode = linear_decode(10e-3, 2e-4, 0.0, rows=32, context=1024)
    prefill = TokenTable(tokens=(100, 200), seconds=(5e-3, 10e-3))
    changes = {"decode": decode.model_dump(), "prefill": prefill.model_dump(), "kv_tokens": 0}
    profile = LatencyProfile(**(SMALL.model_dump() | changes))
    one = setting(profile=profile, prompts=1, group=4)
    lengths = LengthFacts(mean=100, p95=100, cut=0, context=70)
    free, carried = (bound_of(one, lengths, carried=carried) for carried in (False, True))
    assert (free.rows, carried.rows) == (32, 24)
    assert free.rollout_groups_a_second == pytest.approx(1 / 0.102975)
    assert carried.rollout_groups_a_second == pytest.approx(1 / 0.207808, rel=1e-5)
    update_and_sync = 0.1 * 400 / 1000 + 0.2
    assert free.groups_a_second == pytest.approx(1 / (0.102975 + update_and_sync))


def test_the_recommendation_keeps_the_limits(plan: SchedulePlan) -> None:
    best = plan.recommended
    assert best
    assert best.figures.age <= 2
    allowed = [one.figures for one in plan.planned if one.figures.age <= 2 and one.figures.kv_peak <= 0.9]
    assert best.figures.groups_a_second >= 0.98 * max(f.groups_a_second for f in allowed)
    text = schedule_plan_text(plan)
    assert f"Recommended: {best.choice.name}, " in text
    assert recipe_lines(best.choice, plan.setting) in text
    none = plan_schedules(setting(kv_limit=0.01, steps=12), CHOICES[:2])
    assert none.recommended is None
    assert "segment 1: keys and values reach" in schedule_plan_text(none)


def test_every_schedule_keeps_a_limit_on_versions() -> None:
    planned = plan_schedules(setting(max_versions=2, steps=30), [CHOICES[0], CHOICES[3], CHOICES[-1]]).planned
    assert [one.figures.most_versions for one in planned] == [1, 2, 2]
    assert any("the batch grows" in reason for reason in planned[-1].reasons)


@pytest.mark.parametrize("choice", CHOICES[1::3])
def test_recipe_lines_choose_the_schedule_that_was_simulated(choice: Choice, tmp_path: Path) -> None:
    file = tmp_path / "schedule.toml"
    sizes = load([COUNTDOWN]).rollout
    machine = setting(
        prompts=sizes.prompts, group=sizes.group, max_tokens=sizes.max_tokens, max_versions=3, window=9, order="longest"
    )
    file.write_text(recipe_lines(choice, machine))
    config = load([COUNTDOWN, file])
    rollout = config.rollout
    assert rollout_schedule(rollout) == choice.schedule(machine)
    assert choices_of(config, rollout.max_tokens).count(choice) == 1


def test_a_recipe_and_changes_of_keys_replace_the_workload(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    write_profile(SMALL, file)
    recipe = str(COUNTDOWN)
    profile, config = read_inputs(str(file), [recipe, "rollout.prompts=5", "engines=3", "workload.mean=77"])
    assert config
    workload = workload_of(profile)
    assert (workload.prompts, workload.group, workload.mean) == (5, config.rollout.group, 77)
    assert (profile.engines, profile.slots, profile.sync_seconds) == (3, config.engine.slots, 0.2)
    with refused(ErrorCode.PLAN_INPUT, key="slots"):
        read_inputs(str(file), ["slots=0"])
    with refused(ErrorCode.PLAN_INPUT, key="workload"):
        workload_of(SMALL.model_copy(update={"workload": None}))
    with refused(ErrorCode.PLAN_INPUT, key="--lengths"):
        lengths_source(Workload(prompts=1, group=1, max_tokens=1), None, 1.0)


def test_plans_that_are_not_possible_are_refused() -> None:
    with refused(ErrorCode.PLAN_INPUT, key="kv_tokens"):
        plan_schedules(setting(profile=SMALL.model_copy(update={"kv_tokens": 500})))
    with refused(ErrorCode.PLAN_INPUT, key="--max-versions"):
        plan_schedules(setting(max_versions=1))
    with refused(ErrorCode.PLAN_INPUT, key="--steps"):
        plan_schedules(setting(steps=3))


def test_the_command_prints_a_plan_and_writes_its_numbers_and_its_picture(tmp_path: Path) -> None:
    profile, lengths, out, picture = (tmp_path / name for name in ("p.json", "l.csv", "out.json", "t.svg"))
    write_profile(SMALL, profile)
    lengths.write_text("problem,tokens\n" + "".join(f"{i % 7},{40 + 31 * i % 500}\n" for i in range(60)))
    command = ["plan", "rollout", "--profile", str(profile), "--lengths", str(lengths), "--steps", "12"]
    result = CliRunner().invoke(app, [*command, "--json", str(out), "--picture", str(picture)])
    assert result.exit_code == 0, result.output
    numbers = json.loads(out.read_text())
    assert [one["name"] for one in numbers["schedules"]] == [choice.name for choice in CHOICES]
    assert numbers["schedules"][0]["speed"] == 1
    assert f"Recommended: {numbers['recommended']}, " in result.output
    assert "<svg" in picture.read_text()
    assert CliRunner().invoke(app, [*command, "--kv-limit", "0"]).exit_code == 1


def test_the_recipes_window_and_order_hold_for_every_schedule(tmp_path: Path) -> None:
    profile, out = tmp_path / "p.json", tmp_path / "out.json"
    write_profile(SMALL, profile)
    kept = ["rollout.prompts=4", "rollout.schedule.window=16", "rollout.schedule.order=longest"]
    command = ["plan", "rollout", str(COUNTDOWN), *kept, "--profile", str(profile), "--steps", "8", "--json", str(out)]
    result = CliRunner().invoke(app, [*command, "workload.mean=60", "workload.p95=150"])
    assert result.exit_code == 0, result.output
    numbers = json.loads(out.read_text())["setting"]
    assert (numbers["prompts"], numbers["window"], numbers["order"]) == (4, 16, "longest")
    assert 'window = 16\norder = "longest"' in result.output
    assert "Not simulated" not in result.output
