"""The figures and tables of the paper that a small model can show: their arms, and their claims.

An arm is compared with another one seed by seed: runs of one seed have the same problems in the same order. Accuracies
are compared problem by problem too. "Entropy at the start" and "at the end" are defined in `arm_results`. The bounds of
the claims were written before any arm was trained: a fall "by half" and "within 20% of the target" are those of the
project's plan, and two curves "overlap" when they differ by at most 20%.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ulorl.common.intervals import Interval, mean_interval
from ulorl.reproduce import arms
from ulorl.reproduce.arm_results import ArmResults
from ulorl.reproduce.arms import Arm, Subject
from ulorl.reproduce.claims import Claim, above, below, compared, held, within
from ulorl.reproduce.held_out_scores import ACCURACY, Scores

NEAR = 0.2  # how far from a target, or from another curve, counts as there, as a share of it

Results = Mapping[str, ArmResults]  # by the label of the arm in the figure


@dataclass(frozen=True)
class Experiment:
    """A figure or a table. paper: what the paper shows there, in words. arms: by their labels. target_entropies: those
    that its arms have."""

    name: str
    title: str
    paper: str
    arms: Callable[[Subject], dict[str, Arm]]
    claims: Callable[[Results, Subject], list[Claim]]
    target_entropies: Callable[[Subject], Sequence[float]] = lambda subject: [subject.sigma]


def _of_fig4(subject: Subject) -> dict[str, Arm]:
    masks = arms.baseline(), arms.all_mpts(), arms.dmmpts(subject.sigma)
    return dict(zip(("all tokens", "MPTs masked", "DMMPTs"), masks, strict=True))


def _of_fig5(subject: Subject) -> dict[str, Arm]:
    return {"all tokens": arms.baseline()} | {_aim(s): arms.dmmpts(s) for s in subject.sigmas}


def _of_table2(subject: Subject) -> dict[str, Arm]:
    return {"without DMMPTs": arms.baseline(), "UloRL": arms.dmmpts(subject.sigma)}


def _aim(sigma: float) -> str:
    return f"DMMPTs, {sigma:g} nats"


def _fig4_claims(results: Results, _: Subject) -> list[Claim]:
    plain, masked, dynamic = (results[name] for name in ("all tokens", "MPTs masked", "DMMPTs"))
    over = "entropy at the end over that at the start"
    return [
        below("Training on all tokens, entropy falls by at least half", over, _kept(plain), bound=0.5),
        above("With all MPTs masked, entropy rises", over, _kept(masked), bound=1.0),
        _higher_entropy("With all MPTs masked, entropy ends higher than with all tokens", masked, plain),
        _higher_entropy("With DMMPTs, entropy ends higher than with all tokens", dynamic, plain),
    ]


def _kept(results: ArmResults) -> Interval:
    return mean_interval(results.entropy_end / results.entropy_start)


def _higher_entropy(text: str, one: ArmResults, other: ArmResults) -> Claim:
    return above(text, "difference at the end", mean_interval(one.entropy_end - other.entropy_end), unit="nats")


def _held(text: str, results: ArmResults, plain: ArmResults, sigma: float) -> Claim:
    end, without = (mean_interval(one.entropy_end / sigma) for one in (results, plain))
    return held(text, "entropy at the end over the target", end, without, 1 - NEAR, 1 + NEAR)


def _fig5_claims(results: Results, subject: Subject) -> list[Claim]:
    plain, sigmas = results["all tokens"], subject.sigmas
    holds = [_held(f"DMMPTs hold entropy within 20% of {s:g} nats", results[_aim(s)], plain, s) for s in sigmas]
    return holds + [
        _higher_entropy(
            f"A target of {more:g} nats ends higher than {less:g}", results[_aim(more)], results[_aim(less)]
        )
        for less, more in pairwise(sigmas)
    ]


def _fig2_claims(results: Results, _: Subject) -> list[Claim]:
    tois, pois, sais = (results[name] for name in ("TOIS", "POIS", "SAIS"))
    near = NEAR * float(np.mean(tois.entropy_end))

    def entropy(one: ArmResults, other: ArmResults) -> Interval:
        return mean_interval(one.entropy_end - other.entropy_end)

    return [
        within(
            "The entropies of POIS and TOIS overlap (within 20%)",
            "POIS less TOIS at the end", entropy(pois, tois), -near, near, unit="nats",
        ),
        _points(
            within, "POIS is as accurate as TOIS (within 3 points)", "POIS less TOIS", _gain(pois, tois), -0.03, 0.03
        ),
        below("SAIS ends with less entropy than POIS", "SAIS less POIS", entropy(sais, pois), unit="nats"),
        below("SAIS ends with less entropy than TOIS", "SAIS less TOIS", entropy(sais, tois), unit="nats"),
        _points(below, "SAIS is less accurate than POIS", "SAIS less POIS", _gain(sais, pois)),
    ]  # fmt: skip


def _gain(one: ArmResults, other: ArmResults) -> Scores:
    return one.scores(ACCURACY) - other.scores(ACCURACY)


def _points(judge: Callable[..., Claim], text: str, quantity: str, scores: Scores, *bounds: float) -> Claim:
    """Return a claim about accuracy, which says what its interval counts. judge: a function of `claims`."""
    return replace(judge(text, quantity, scores.interval, *bounds, unit="points"), over=scores.over)


def _table2_claims(results: Results, _: Subject) -> list[Claim]:
    full, without = results["UloRL"], results["without DMMPTs"]
    gain = full.scores(ACCURACY) - full.scores(ACCURACY, before=True)
    return [
        _points(above, "UloRL raises accuracy", "after less before training", gain),
        _points(above, "DMMPTs raise it further", "with less without", _gain(full, without)),
    ]


def _table3_claims(results: Results, _: Subject) -> list[Claim]:
    labels = list(results)
    return [
        _points(
            above,
            f"{longer} are more accurate than {shorter}",
            "difference after training",
            _gain(results[longer], results[shorter]),
        )
        for shorter, longer in pairwise(labels)
    ]


def _entropy_claims(results: Results, subject: Subject) -> list[Claim]:
    (_, plain), *controls = results.items()
    found = []
    for name, arm in controls:
        more = mean_interval(arm.entropy_end - plain.entropy_end)
        found.append(compared(f"{name}, entropy at the end", "less that of all tokens", more, "nats"))
        found.append(_points(compared, f"{name}, accuracy", "less that of all tokens", _gain(arm, plain)))
    for name in ("DMMPTs", "adaptive bonus"):
        found.append(_held(f"{name}, entropy held within 20% of its target", results[name], plain, subject.sigma))
    return found


EXPERIMENTS = (
    Experiment(
        "fig2",
        "Figure 2: the old policy of samples from several versions",
        "At 4k, 32k and 64k tokens the curves of POIS and TOIS nearly overlap; SAIS loses entropy fast (0.10 to 0.02 "
        "within 800 steps at 4k) and ends with a lower accuracy. MinPRO (2601.22718) and truncated weights (AReaL's "
        "decoupled objective, 2505.24298) are of others. Here: 4 segments, and 4 mini-batches a step, so that ratios "
        "are not 1; TOIS has one segment.",
        lambda _: arms.old_policies(),
        _fig2_claims,
        target_entropies=lambda _: [],
    ),
    Experiment(
        "fig4",
        "Figure 4: masking well-mastered positive tokens",
        "Training on all tokens, entropy falls (30B: 0.15 to 0.04 in 300 steps); with all MPTs masked it rises without "
        "end (30B: 0.17 to 0.33). DMMPTs are the method that follows from it.",
        _of_fig4,
        _fig4_claims,
    ),
    Experiment(
        "fig5",
        "Figure 5: DMMPTs hold entropy at its target",
        "With a target of 0.2, above the 30B model's start of 0.15 to 0.17, entropy settles at 0.20 to 0.22 on all "
        "three models.",
        _of_fig5,
        _fig5_claims,
        target_entropies=lambda subject: subject.sigmas,
    ),
    Experiment(
        "table2",
        "Table 2: what UloRL gains, and what DMMPTs add",
        "AIME-2025 / BeyondAIME, avg@32: Qwen3-30B-A3B 70.9 / 50.7 before training; UloRL at 128k 82.8 / 60.2; without "
        "DMMPTs 78.6 / 57.1.",
        _of_table2,
        _table2_claims,
    ),
    Experiment(
        "table3",
        "Table 3: accuracy against output length",
        "AIME-2025 / BeyondAIME, avg@32, by the output length of training and evaluation: 32k 73.5 / 52.3; 64k 79.9 / "
        "58.5; 96k 81.6 / 59.4; 128k 82.8 / 60.2.",
        arms.shorter,
        _table3_claims,
    ),
    Experiment(
        "entropy",
        "DMMPTs beside the entropy controls of other frameworks",
        "The paper compares with none of them. Here: the same steps, prompts and rate, and 4 mini-batches a step: "
        "clip-higher and KL-Cov have no effect on the first update of a step.",
        arms.entropy_controls,
        _entropy_claims,
    ),
)
