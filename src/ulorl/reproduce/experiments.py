"""The figures and tables of the paper that a small model can show: their arms, and their claims.

An arm is compared with another one seed by seed: runs of one seed have the same problems in the same order. "Entropy at
the start" and "at the end" are defined in `arm_results`. The bounds of the claims were written before any arm was
trained: a fall "by half" and "within 20% of the target" are those of the project's plan, and two curves "overlap" when
they differ by at most 20%.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ulorl.common.intervals import Interval
from ulorl.reproduce import arms
from ulorl.reproduce.arm_results import ArmResults
from ulorl.reproduce.arms import Arm, Targets
from ulorl.reproduce.claims import Claim, above, below, over_seeds, within

NEAR = 0.2  # how far from a target, or from another curve, counts as there, as a share of it
ACCURACY, PASS = "eval/accuracy", "eval/pass_at_k"

Results = Mapping[str, ArmResults]  # by the label of the arm in the figure


@dataclass(frozen=True)
class Experiment:
    """A figure or a table. paper: what the paper shows there, in words. arms: by their labels. aims: the target
    entropies that its arms have."""

    name: str
    title: str
    paper: str
    arms: Callable[[Targets], dict[str, Arm]]
    claims: Callable[[Results, Targets], list[Claim]]
    aims: Callable[[Targets], Sequence[float]] = lambda targets: [targets.sigma]


def _of_fig4(targets: Targets) -> dict[str, Arm]:
    masks = arms.nothing(), arms.all_mpts(), arms.dmmpts(targets.sigma)
    return dict(zip(("all tokens", "MPTs masked", "DMMPTs"), masks, strict=True))


def _of_fig5(targets: Targets) -> dict[str, Arm]:
    return {"all tokens": arms.nothing()} | {f"DMMPTs, {s:g} nats": arms.dmmpts(s) for s in targets.sigmas}


def _of_table2(targets: Targets) -> dict[str, Arm]:
    return {"without DMMPTs": arms.nothing(), "UloRL": arms.dmmpts(targets.sigma)}


def _fig4_claims(results: Results, targets: Targets) -> list[Claim]:
    plain, masked, dynamic = (results[name] for name in ("all tokens", "MPTs masked", "DMMPTs"))
    kept = over_seeds(masked.entropy_end - plain.entropy_end)
    return [
        below("Training on all tokens, entropy falls by at least half", *_end_of_start(plain), bound=0.5),
        above("With all MPTs masked, entropy rises", *_end_of_start(masked), bound=1.0),
        above("Masking all MPTs keeps entropy above that of all tokens", "difference at the end", kept, unit="nats"),
        _held("DMMPTs hold entropy within 20% of the target", dynamic, targets.sigma),
        above(
            "DMMPTs reach a higher accuracy than all tokens",
            "difference after training",
            over_seeds(dynamic.evaluation(ACCURACY) - plain.evaluation(ACCURACY)),
            unit="%",
        ),
    ]


def _end_of_start(results: ArmResults) -> tuple[str, Interval]:
    return "entropy at the end over that at the start", over_seeds(results.entropy_end / results.entropy_start)


def _held(text: str, results: ArmResults, sigma: float) -> Claim:
    return within(
        text, "entropy at the end over the target", over_seeds(results.entropy_end / sigma), 1 - NEAR, 1 + NEAR
    )


def _fig5_claims(results: Results, targets: Targets) -> list[Claim]:
    return [
        _held(f"DMMPTs hold entropy within 20% of {s:g} nats", results[f"DMMPTs, {s:g} nats"], s)
        for s in targets.sigmas
    ]


def _fig2_claims(results: Results, _: Targets) -> list[Claim]:
    tois, pois, sais = (results[name] for name in ("TOIS", "POIS", "SAIS"))
    near = NEAR * float(np.mean(tois.entropy_end))
    apart = over_seeds(pois.entropy_end - tois.entropy_end)
    accuracy = over_seeds(pois.evaluation(ACCURACY) - tois.evaluation(ACCURACY))
    return [
        within(
            "The entropies of POIS and TOIS overlap (within 20%)",
            "POIS less TOIS at the end", apart, -near, near, unit="nats",
        ),
        within(
            "POIS is as accurate as TOIS (within 3 points)",
            "POIS less TOIS", accuracy, -0.03, 0.03, unit="%",
        ),
        below(
            "SAIS loses entropy faster than POIS",
            "SAIS less POIS at the end", over_seeds(sais.entropy_end - pois.entropy_end), unit="nats",
        ),
        below(
            "SAIS is less accurate than POIS",
            "SAIS less POIS", over_seeds(sais.evaluation(ACCURACY) - pois.evaluation(ACCURACY)), unit="%",
        ),
    ]  # fmt: skip


def _table2_claims(results: Results, _: Targets) -> list[Claim]:
    full, without = results["UloRL"].evaluation(ACCURACY), results["without DMMPTs"].evaluation(ACCURACY)
    start = results["UloRL"].evaluation(ACCURACY, before=True)
    return [
        above("UloRL raises accuracy", "after less before training", over_seeds(full - start), unit="%"),
        above("DMMPTs raise it further", "with less without", over_seeds(full - without), unit="%"),
    ]


def _table3_claims(results: Results, _: Targets) -> list[Claim]:
    labels = list(results)
    after = [results[label].evaluation(ACCURACY) for label in labels]
    return [
        above(
            f"Training with {longer} is more accurate than with {shorter}",
            "difference after training",
            over_seeds(more - less),
            unit="%",
        )
        for shorter, longer, less, more in zip(labels, labels[1:], after, after[1:], strict=False)
    ]


def _entropy_claims(results: Results, targets: Targets) -> list[Claim]:
    plain = results["all tokens"]
    found = []
    for name, arm in results.items():
        if arm is plain:
            continue
        more = over_seeds(arm.entropy_end - plain.entropy_end)
        found.append(above(f"{name} keeps entropy above that of all tokens", "difference", more, unit="nats"))
    held = [_held(f"{name} holds it within 20% of its target", results[name], targets.sigma) for name in _TARGETED]
    return [*found, *held]


_TARGETED = ("DMMPTs", "adaptive bonus")

EXPERIMENTS = (
    Experiment(
        "fig2",
        "Figure 2: the old policy of samples from several versions",
        "At 4k, 32k and 64k tokens the curves of POIS and TOIS nearly overlap; SAIS loses entropy fast (0.10 to 0.02 "
        "within 800 steps at 4k) and ends with a lower accuracy. The decoupled objective and MinPRO were published "
        "later. Here: 4 segments, and 4 mini-batches a step, so that ratios are not 1; TOIS has one segment.",
        lambda _: arms.old_policies(),
        _fig2_claims,
        aims=lambda _: [],
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
        "With a target of 0.2 entropy settles at 0.20 to 0.22 on all three models.",
        _of_fig5,
        _fig5_claims,
        aims=lambda targets: targets.sigmas,
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
        "The paper compares with none of them. Here: the same steps, prompts and rate; 4 segments, and 4 mini-batches "
        "a step, because clip-higher and KL-Cov have no effect on the first update of a step.",
        arms.entropy_controls,
        _entropy_claims,
    ),
)
