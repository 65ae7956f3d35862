"""Reproduces figures and tables of the paper on one recipe: trains their arms, judges their claims, writes pages."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ulorl.bench.machine_facts import facts
from ulorl.cancellation import NEVER, CancelToken
from ulorl.common import atomic_files
from ulorl.common.progress import SILENT, ProgressBars
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.reproduce import experiment_pages, screen, screen_tables
from ulorl.reproduce.arm_results import ArmResults, start_entropy
from ulorl.reproduce.arm_runs import Trainer
from ulorl.reproduce.arms import Arm, Targets, nothing
from ulorl.reproduce.claims import Claim
from ulorl.reproduce.experiments import EXPERIMENTS, Experiment
from ulorl.runs.saved_run import read_run

TARGET_SHARES = (0.6, 0.8, 1.0)  # of the entropy at the start
SUMMARY = "verdicts.md"


@dataclass(frozen=True)
class PaperFigures:
    """One recipe as the subject. sigmas: target entropies in nats; none: `TARGET_SHARES` of the baseline's entropy at
    the start, which are computed from its runs before any other arm is trained."""

    trainer: Trainer
    sigmas: tuple[float, ...] = ()

    def run(
        self, names: Sequence[str], bars: ProgressBars = SILENT, cancel: CancelToken = NEVER
    ) -> dict[str, list[Claim]]:
        """Train what is not trained yet, and write the pages of the experiments `names`. Returns their judged claims.

        Raises UserError for an unusable recipe, before anything is trained, and when a run fails; Cancelled: the same
        call continues.
        """
        chosen = [experiment for experiment in EXPERIMENTS if experiment.name in names]
        cfg = self.trainer.config(nothing())
        self._check(chosen, cfg)
        if "screen" in names:
            self._screen(cfg, bars)
        targets = self._targets(chosen, cfg, bars, cancel)
        arms = dict.fromkeys(arm for experiment in chosen for arm in experiment.arms(targets).values())
        self.trainer.train(list(arms), bars, cancel)
        claims = {experiment.name: self._write(experiment, targets, cfg) for experiment in chosen}
        titles = {experiment.name: experiment.title for experiment in chosen}
        text = experiment_pages.summary(claims, titles, self._about(cfg))
        atomic_files.write_text(self.trainer.out / SUMMARY, text)
        return claims

    def _check(self, chosen: Sequence[Experiment], cfg: Config) -> None:
        """Refuse what would fail only after some runs. Whatever the targets are, the same keys are set."""
        if not cfg.eval.data:
            raise UserError(
                "the arms are compared on held-out problems, and the recipe has none; set eval.data",
                code=ErrorCode.BENCH_INPUT,
                key="eval.data",
            )
        probe = Targets((0.1, 0.2, 0.3), cfg.rollout.max_tokens, cfg.rollout.segments)
        for experiment in chosen:
            for arm in experiment.arms(probe).values():
                self.trainer.config(arm)

    def _screen(self, cfg: Config, bars: ProgressBars) -> None:
        """Write the screen of the model and the task, which says before training what figure 4 can show."""
        page = self.trainer.out / "screen.md"
        if page.exists():
            return
        figures = screen.run(cfg, bars=bars)
        self.trainer.out.mkdir(parents=True, exist_ok=True)
        atomic_files.write_text(self.trainer.out / "screen.csv", screen_tables.as_csv(figures))
        atomic_files.write_text(page, f"# Can masking MPTs raise entropy?\n\n{screen_tables.page(figures)}\n")

    def _targets(self, chosen: Sequence[Experiment], cfg: Config, bars: ProgressBars, cancel: CancelToken) -> Targets:
        """Return the target entropies, after training the baseline where they depend on it."""
        sigmas, lengths = self.sigmas, (cfg.rollout.max_tokens, cfg.rollout.segments)
        if not sigmas and any(experiment.aims(Targets((0.2,), *lengths)) for experiment in chosen):
            self.trainer.train([nothing()], bars, cancel)
            start = float(np.mean(start_entropy(self._results(nothing()).runs)))
            sigmas = tuple(round(share * start, 3) for share in TARGET_SHARES)
        return Targets(tuple(sorted(sigmas)) or (0.2,), *lengths)

    def _results(self, arm: Arm) -> ArmResults:
        seeds = range(self.trainer.seeds)
        return ArmResults(arm, tuple(read_run(self.trainer.run_dir(arm, seed)) for seed in seeds))

    def _write(self, experiment: Experiment, targets: Targets, cfg: Config) -> list[Claim]:
        arms = experiment.arms(targets)
        results = {label: self._results(arm) for label, arm in arms.items()}
        commands = [shlex.join(["ulorl", *self.trainer.command(arm, 0)]) for arm in arms.values()]
        return experiment_pages.write(self.trainer.out, experiment, results, targets, self._about(cfg), commands)

    def _about(self, cfg: Config) -> str:
        about, trainer = facts(), self.trainer
        recipe = " ".join(map(str, [*trainer.recipes, *map(shlex.quote, trainer.user)]))
        return (
            f"{cfg.model.path} with {recipe}: {cfg.steps} steps of {cfg.rollout.prompts} prompts x "
            f"{cfg.rollout.group} samples within {cfg.rollout.max_tokens} tokens, {trainer.seeds} seeds. "
            f"{about['cores']} cores of {about['processor']} ({about['capability']}), {about['date']}, "
            f"ulorl {about['versions']['ulorl']}, torch {about['versions']['torch']}."
        )
