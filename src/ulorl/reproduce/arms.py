"""The arms of the paper's figures: the paper's objective on a recipe, with one setting changed. Arms with the same name
are the same runs, which several figures share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# What all arms have in common, whatever the recipe says; the user's own keys may replace it. They are evaluated alike,
# before and after training: 8 answers, so that there is a pass@8. Their objective is the paper's without a mask.
COMMON = (
    "eval.samples=8",
    "eval.temperature=1.0",
    "eval.top_p=0.95",
    "eval.top_k=0",
    "log.progress=false",
    "log.report=false",
    "objective.loss=ppo",
    "objective.importance=pois",
    "objective.clip_low=0.2",
    "objective.clip_high=0.2",
    "objective.tis_cap=0",
    "objective.engine_mask.level=off",
    "objective.min_prefix=false",
    "objective.overlong=wrong",
    "objective.mpt.mask=off",
    "objective.entropy.kind=off",
)


@dataclass(frozen=True)
class Setup:
    """Keys that all arms of an experiment have besides `COMMON`, and what they add to the names of run folders."""

    suffix: str
    keys: tuple[str, ...]


PLAIN = Setup("", ())
MINIBATCHES = Setup(" minibatches", ("optim.minibatches=4",))  # ratios that are not 1
STALE = Setup(" stale", ("rollout.segments=4", "optim.minibatches=4"))  # tokens of several versions too


@dataclass(frozen=True)
class Arm:
    """One line of a figure. own: the keys that make it, which win over everything else; the user's own keys may replace
    those of the set-up."""

    name: str
    own: tuple[str, ...] = ()
    setup: Setup = PLAIN

    @property
    def folder(self) -> str:
        """The beginning of the names of its run folders."""
        name = self.name + self.setup.suffix
        return "".join(c if c.isalnum() or c == "." else "-" for c in name.lower()).replace("--", "-")

    def overrides(self, user: Sequence[str], seed: int, run_dir: str) -> list[str]:
        """Return all keys of one run, in rising priority. user: those of the command line."""
        return [*COMMON, *self.setup.keys, *user, *self.own, f"seed={seed}", f"run.dir={run_dir}"]


@dataclass(frozen=True)
class Subject:
    """What arms depend on. sigmas: target entropies in nats, rising; the middle one is `sigma`, that of every arm with
    only one. max_tokens, segments: of the recipe."""

    sigmas: tuple[float, ...]
    max_tokens: int
    segments: int

    @property
    def sigma(self) -> float:
        """The target entropy of arms outside figure 5."""
        return self.sigmas[len(self.sigmas) // 2]


def baseline(setup: Setup = PLAIN) -> Arm:
    """Return the arm in which all tokens train."""
    return Arm("all tokens", setup=setup)


def all_mpts() -> Arm:
    """Return the arm that masks all MPTs (eq. 9)."""
    return Arm("MPTs masked", ("objective.mpt.mask=all",))


def dmmpts(sigma: float, setup: Setup = PLAIN) -> Arm:
    """Return the arm that masks MPTs below a target entropy (eq. 10)."""
    return Arm(f"DMMPTs {sigma:g}", ("objective.mpt.mask=dynamic", f"objective.mpt.sigma={sigma:g}"), setup)


def old_policies() -> dict[str, Arm]:
    """Return the arms of figure 2 by the name of their old policy, and two corrections.

    `objective.importance=decoupled` is no arm: with an engine in the learner's precision it is SAIS up to rounding.
    """
    sais = "objective.importance=sais"
    return {
        "TOIS": Arm("TOIS", ("objective.importance=tois", "rollout.segments=1"), STALE),
        "POIS": baseline(STALE),
        "SAIS": Arm("SAIS", (sais,), STALE),
        "SAIS, MinPRO": Arm("MinPRO", (sais, "objective.min_prefix=true"), STALE),
        "POIS, truncated weights": Arm("truncated weights", ("objective.tis_cap=2",), STALE),
    }


def shorter(subject: Subject) -> dict[str, Arm]:
    """Return the arms of table 3 by their maximum output length: quarters of the recipe's, each evaluated at its own.

    The shortest has one segment, as in the paper; the others as many of the recipe's as divide their length.
    """
    arms = dict[str, Arm]()
    full = dmmpts(subject.sigma)
    for quarters in (1, 2, 3):
        tokens = max(1, subject.max_tokens * quarters // 4)
        most = 1 if quarters == 1 else subject.segments
        segments = max(count for count in range(1, most + 1) if tokens % count == 0)
        keys = (f"rollout.max_tokens={tokens}", f"rollout.segments={segments}", "eval.max_tokens=0")
        arms[f"{tokens} tokens"] = Arm(f"{full.name} within {tokens} tokens", (*full.own, *keys))
    return arms | {f"{subject.max_tokens} tokens": full}


def entropy_controls(subject: Subject) -> dict[str, Arm]:
    """Return DMMPTs beside the controls of other frameworks. All have several mini-batches: with one, clip-higher and
    KL-Cov have no effect. Their segments are the recipe's, so that age is not what differs.

    Clip-Cov and KL-Cov choose 2e-3 of an update's tokens, the largest share that KL-Cov's authors use. They use 2e-4
    for Clip-Cov, which is a single token of an update of 5,000.
    """

    def control(name: str, *keys: str) -> Arm:
        return Arm(name, keys, MINIBATCHES)

    return {
        "all tokens": baseline(MINIBATCHES),
        "DMMPTs": dmmpts(subject.sigma, MINIBATCHES),
        "Clip-Cov": control("Clip-Cov", "objective.entropy={kind='clip_cov', share=2e-3}"),
        "KL-Cov": control(
            "KL-Cov", "objective.entropy={kind='kl_cov', share=2e-3}", "objective.clip_low=1", "objective.clip_high=1e6"
        ),
        "clip-higher": control("clip-higher", "objective.clip_high=0.28"),
        "adaptive bonus": control(
            f"adaptive bonus {subject.sigma:g}", f"objective.entropy={{kind='bonus', target={subject.sigma:g}}}"
        ),
        "top entropy": control("top entropy", "objective.entropy={kind='top_entropy', share=0.2}"),
    }
