"""The arms of the paper's figures: which keys they set, and which runs figures share."""

from __future__ import annotations

from pathlib import Path

import pytest

from paths import COUNTDOWN
from ulorl.reproduce.arm_results import ArmResults
from ulorl.reproduce.arm_runs import Trainer
from ulorl.reproduce.arms import STALE, Arm, Subject, all_mpts, baseline
from ulorl.reproduce.experiments import EXPERIMENTS, Experiment
from ulorl.runs.saved_run import SavedRun
from ulorl.types import Metrics

SUBJECT = Subject((0.18, 0.24, 0.3), max_tokens=256, segments=2)
EVERY_ARM = [arm for experiment in EXPERIMENTS for arm in experiment.arms(SUBJECT).values()]


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    """Of the recipe of countdown with two keys of a user, one of which is a baseline's."""
    user = ("steps=7", "optim.minibatches=2")
    return Trainer((COUNTDOWN,), user, tmp_path, seeds=2, jobs=1)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_every_arm_is_a_configuration(experiment: Experiment, trainer: Trainer) -> None:
    """Each arm can be trained, with the steps of the user and the evaluation that all share; no two are equal."""
    configs = {label: trainer.config(arm) for label, arm in experiment.arms(SUBJECT).items()}
    for cfg in configs.values():
        assert (cfg.steps, cfg.eval.samples, cfg.eval.top_p) == (7, 8, 0.95)
    assert len({cfg.model_dump_json(exclude={"run"}) for cfg in configs.values()}) == len(configs)


def test_equal_names_are_equal_runs() -> None:
    """Figures 4 and 5 and both tables share their arms; all figures together train 20."""
    by_folder: dict[str, Arm] = {}
    for arm in EVERY_ARM:
        assert by_folder.setdefault(arm.folder, arm) == arm
    assert len(by_folder) == 20
    assert len(EVERY_ARM) == 5 + 3 + 4 + 2 + 4 + 7


def test_priority_of_keys(trainer: Trainer) -> None:
    """The user's keys replace those that arms share, and the key that makes an arm wins over all."""
    stale = trainer.config(baseline(STALE), seed=1)
    assert (stale.rollout.segments, stale.optim.minibatches, stale.seed) == (4, 2, 1)
    clipped = Trainer(trainer.recipes, ("objective.clip_high=0.25",), trainer.out, 1, 1).config(all_mpts())
    assert clipped.objective.clip_high == 0.25
    masked = Trainer(trainer.recipes, ("objective.mpt.mask=off",), trainer.out, 1, 1).config(all_mpts())
    assert masked.objective.mpt.mask == "all"
    assert trainer.config(all_mpts()).rollout.segments == 2  # of the recipe


def test_output_lengths_of_table3(trainer: Trainer) -> None:
    """Quarters of 256 tokens; the shortest has one segment; the longest is the run of table 2."""
    table3, table2 = (next(e for e in EXPERIMENTS if e.name == name).arms(SUBJECT) for name in ("table3", "table2"))
    configs = [trainer.config(arm).rollout for arm in table3.values()]
    assert [(cfg.max_tokens, cfg.segments) for cfg in configs] == [(64, 1), (128, 2), (192, 2), (256, 2)]
    assert table3["256 tokens"] == table2["UloRL"]


def run(entropies: list[float], segments: int) -> SavedRun:
    """Return a run with these entropies of steps 1, 2, ..., an evaluation before and after, and a step without."""
    steps: list[Metrics] = [{"step": n, "entropy/finished": value} for n, value in enumerate(entropies, 1)]
    ends: list[Metrics] = [{"step": 0, "eval/accuracy": 0.25}, {"step": len(steps), "eval/accuracy": 0.5}]
    return SavedRun(Path("run"), {"steps": len(steps), "rollout": {"segments": segments}}, (ends[0], *steps, ends[1]))


def test_start_and_end() -> None:
    """With two segments the start is steps 2 to 4: (6 + 5 + 4) / 3 = 5. The end is the last third of 7 steps, two:
    (2 + 1) / 2 = 1.5. Without a metric there is nothing."""
    results = ArmResults(baseline(), (run([9, 6, 5, 4, 3, 2, 1], 2), run([7.0] * 7, 1)))
    assert results.entropy_start.tolist() == [5, 7]
    assert results.entropy_end.tolist() == [1.5, 7]
    assert results.evaluation("eval/accuracy").tolist() == [0.5, 0.5]
    assert results.evaluation("eval/accuracy", before=True).tolist() == [0.25, 0.25]
    assert all(value != value for value in results.last_third("importance/clip_fraction"))
