"""Reproduces figures and tables of the paper on one recipe: trains their arms, judges their claims, writes pages."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from ulorl.bench.machine_facts import facts
from ulorl.cancellation import NEVER, CancelToken
from ulorl.common import atomic_files
from ulorl.common.progress import SILENT, ProgressBars
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import ErrorCollector, UserError
from ulorl.reproduce import experiment_pages, screen, screen_tables
from ulorl.reproduce.arm_results import ArmResults
from ulorl.reproduce.arm_runs import Trainer
from ulorl.reproduce.arms import Arm, Subject, baseline
from ulorl.reproduce.claims import Claim
from ulorl.reproduce.experiments import EXPERIMENTS, Experiment
from ulorl.runs.saved_run import read_run

TARGET_SHARES = (0.8, 1.0, 1.2)  # of the entropy at the start; the paper's target is above its largest model's start
TARGETS, VERDICTS = "targets.json", "verdicts.md"


@dataclass(frozen=True)
class PaperFigures:
    """One recipe as the subject. sigmas: target entropies in nats, above 0; none: `TARGET_SHARES` of the baseline's
    entropy at the start, computed once, from its runs, before any arm with a target is trained."""

    trainer: Trainer
    sigmas: tuple[float, ...] = ()

    def run(
        self, names: Sequence[str], bars: ProgressBars = SILENT, cancel: CancelToken = NEVER
    ) -> dict[Experiment, list[Claim]]:
        """Train what the experiments `names` lack, and write the page of every experiment as soon as its arms are
        finished. Returns the judged claims of all experiments whose arms are finished.

        Raises UserError for an unusable recipe, before anything is trained, and, after all other experiments, for those
        with a run that failed; Cancelled: the same call continues.
        """
        chosen, errors = [experiment for experiment in EXPERIMENTS if experiment.name in names], ErrorCollector()
        cfg = self.trainer.config(baseline())
        self._check(chosen, cfg)
        if "screen" in names:
            self._screen(cfg, bars)
        found: dict[Experiment, list[Claim]] = {}
        for experiment in chosen:
            with errors:
                subject = self._subject(experiment, cfg, bars, cancel)
                self.trainer.train(list(experiment.arms(subject).values()), bars, cancel)
                found = self._write_finished(cfg)
        errors.raise_errors()
        return found

    def _check(self, chosen: Sequence[Experiment], cfg: Config) -> None:
        """Refuse what would fail only after some runs. Whatever the targets are, the same keys are set."""
        if not cfg.eval.data:
            raise UserError(
                "the arms are compared on held-out problems, and the recipe has none; set eval.data",
                code=ErrorCode.BENCH_INPUT,
                key="eval.data",
            )
        for experiment in chosen:
            seen: dict[str, str] = {}
            for label, arm in experiment.arms(Subject((0.1, 0.2, 0.3), *_lengths(cfg))).items():
                settings = self.trainer.config(arm).model_dump_json(exclude={"run"})
                if settings in seen:
                    raise UserError(
                        f"{experiment.name}: the arms {seen[settings]} and {label} have the same settings with this "
                        "recipe and these keys; leave out the key that makes them equal",
                        code=ErrorCode.BENCH_INPUT,
                        key=arm.own[-1].partition("=")[0] if arm.own else "",
                    )
                seen[settings] = label

    def _screen(self, cfg: Config, bars: ProgressBars) -> None:
        """Write the screen of the model and the task, which says before training what figure 4 can show."""
        page = self.trainer.out / "screen.md"
        if page.exists():
            return
        figures = screen.run(cfg, bars=bars)
        self.trainer.out.mkdir(parents=True, exist_ok=True)
        atomic_files.write_text(self.trainer.out / "screen.csv", screen_tables.as_csv(figures))
        atomic_files.write_text(page, f"# Can masking MPTs raise entropy?\n\n{screen_tables.page(figures)}\n")

    def _subject(self, experiment: Experiment, cfg: Config, bars: ProgressBars, cancel: CancelToken) -> Subject:
        """Return the subject, after training the baseline where its entropy decides the targets."""
        sigmas, stored = self.sigmas or self._stored_targets(), self.trainer.out / TARGETS
        if not sigmas and experiment.target_entropies(Subject((0.2,), *_lengths(cfg))):
            self.trainer.train([baseline()], bars, cancel)
            start = self._results(baseline()).entropy_start
            mean = float(start.mean())
            if not math.isfinite(mean):
                message = (
                    f"{cfg.steps} steps are too few to measure the entropy of the start; set steps, or give --sigma"
                )
                raise UserError(message, code=ErrorCode.BENCH_INPUT, key="steps")
            sigmas = tuple(float(f"{share * mean:.3g}") for share in TARGET_SHARES)
            atomic_files.write_text(stored, json.dumps({"sigmas": sigmas, "start_by_seed": start.tolist()}) + "\n")
        return Subject(tuple(sorted(sigmas)) or (0.2,), *_lengths(cfg))

    def _stored_targets(self) -> tuple[float, ...]:
        """Return the targets that were computed before: more seeds do not move them."""
        with suppress(FileNotFoundError):
            return tuple(json.loads((self.trainer.out / TARGETS).read_text(encoding="utf-8"))["sigmas"])
        return ()

    def _results(self, arm: Arm) -> ArmResults:
        seeds = range(self.trainer.seeds)
        return ArmResults(arm, tuple(read_run(self.trainer.run_dir(arm, seed)) for seed in seeds))

    def _write_finished(self, cfg: Config) -> dict[Experiment, list[Claim]]:
        """Write the pages of all experiments whose arms are finished, and all their verdicts. Returns the claims."""
        sigmas = tuple(sorted(self.sigmas)) or self._stored_targets() or (0.2,)
        subject, about = Subject(sigmas, *_lengths(cfg)), self._about(cfg)
        found = {}
        for experiment in EXPERIMENTS:
            with suppress(UserError):  # a folder with other settings: not of this call
                if not self.trainer.unfinished(list(experiment.arms(subject).values())):
                    found[experiment] = self._write(experiment, subject, about)
        atomic_files.write_text(self.trainer.out / VERDICTS, experiment_pages.summary(found, about))
        return found

    def _write(self, experiment: Experiment, subject: Subject, about: str) -> list[Claim]:
        arms = experiment.arms(subject)
        results = {label: self._results(arm) for label, arm in arms.items()}
        commands = [shlex.join(["ulorl", *self.trainer.command(arm, 0)]) for arm in arms.values()]
        return experiment_pages.write(self.trainer.out, experiment, results, subject, about, commands)

    def _about(self, cfg: Config) -> str:
        about, trainer = facts(), self.trainer
        recipe = " ".join(map(str, [*trainer.recipes, *map(shlex.quote, trainer.user)]))
        return (
            f"{cfg.model.path} with {recipe}: {cfg.steps} steps of {cfg.rollout.prompts} prompts x "
            f"{cfg.rollout.group} samples within {cfg.rollout.max_tokens} tokens, {trainer.seeds} seeds. "
            f"Written on {about['cores']} cores of {about['processor']} ({about['capability']}), {about['date']}, "
            f"ulorl {about['versions']['ulorl']}, torch {about['versions']['torch']}."
        )


def _lengths(cfg: Config) -> tuple[int, int]:
    return cfg.rollout.max_tokens, cfg.rollout.segments
