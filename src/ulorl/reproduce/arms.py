"""The arms of the paper's figures: a recipe, with one setting changed. Arms with the same name are the same runs, which
several figures share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Every arm is evaluated alike, before and after training: 8 answers, so that there is a pass@8.
MEASURED = (
    "eval.samples=8",
    "eval.temperature=1.0",
    "eval.top_p=0.95",
    "eval.top_k=0",
    "log.progress=false",
    "log.report=false",
)
STALE = ("rollout.segments=4", "optim.minibatches=4")  # tokens of several versions, and ratios that are not 1
_PLAIN = ("objective.mpt.mask=off", "objective.entropy.kind=off")


@dataclass(frozen=True)
class Arm:
    """One line of a figure. own: the keys that make it, which win over everything else. stale: it has `STALE` too,
    which the user's own keys may replace."""

    name: str
    own: tuple[str, ...]
    stale: bool = False

    @property
    def folder(self) -> str:
        """The beginning of the names of its run folders."""
        name = f"{self.name} stale" if self.stale else self.name
        return "".join(c if c.isalnum() or c == "." else "-" for c in name.lower()).replace("--", "-")

    def overrides(self, user: Sequence[str], seed: int, run_dir: str) -> list[str]:
        """Return all keys of one run, in rising priority. user: those of the command line."""
        base = (*MEASURED, *(STALE if self.stale else ()))
        return [*base, *user, *self.own, f"seed={seed}", f"run.dir={run_dir}"]


@dataclass(frozen=True)
class Targets:
    """What arms depend on. sigmas: target entropies in nats, rising; the middle one is `sigma`, that of every arm with
    only one. max_tokens, segments: of the recipe."""

    sigmas: tuple[float, ...]
    max_tokens: int
    segments: int

    @property
    def sigma(self) -> float:
        """The target entropy of arms outside figure 5."""
        return self.sigmas[len(self.sigmas) // 2]


def nothing(*, stale: bool = False) -> Arm:
    """Return the baseline: all tokens train. Stale, it is also the arm POIS, the paper's default."""
    return Arm("all tokens", ("objective.importance=pois", *_PLAIN), stale)


def all_mpts() -> Arm:
    """Return the arm that masks all MPTs (eq. 9)."""
    return Arm("MPTs masked", ("objective.mpt.mask=all", "objective.entropy.kind=off"))


def dmmpts(sigma: float, *, stale: bool = False) -> Arm:
    """Return the arm that masks MPTs below a target entropy (eq. 10)."""
    own = ("objective.mpt.mask=dynamic", f"objective.mpt.sigma={sigma:g}", "objective.entropy.kind=off")
    return Arm(f"DMMPTs {sigma:g}", own, stale)


def old_policies() -> dict[str, Arm]:
    """Return the arms of figure 2 by the name of their old policy, and what was published since."""
    sais = ("objective.importance=sais", *_PLAIN)
    return {
        "TOIS": Arm("TOIS", ("objective.importance=tois", "rollout.segments=1", *_PLAIN), stale=True),
        "POIS": nothing(stale=True),
        "SAIS": Arm("SAIS", sais, stale=True),
        "decoupled": Arm("decoupled", ("objective.importance=decoupled", *_PLAIN), stale=True),
        "SAIS, MinPRO": Arm("MinPRO", (*sais, "objective.min_prefix=true"), stale=True),
        "POIS, truncated weights": Arm(
            "truncated weights", ("objective.importance=pois", "objective.tis_cap=2", *_PLAIN), stale=True
        ),
    }


def shorter(targets: Targets) -> dict[str, Arm]:
    """Return the arms of table 3 by their maximum output length: quarters of the recipe's. The shortest has one
    segment, as in the paper."""
    arms = dict[str, Arm]()
    full = dmmpts(targets.sigma)
    for quarters in (1, 2, 3):
        tokens = targets.max_tokens * quarters // 4
        segments = 1 if quarters == 1 or tokens % targets.segments else targets.segments
        keys = (f"rollout.max_tokens={tokens}", f"rollout.segments={segments}")
        arms[f"{tokens} tokens"] = Arm(f"{full.name} within {tokens} tokens", (*full.own, *keys))
    return arms | {f"{targets.max_tokens} tokens": full}


def entropy_controls(targets: Targets) -> dict[str, Arm]:
    """Return DMMPTs beside the controls of other frameworks, with the values of their papers. All have several
    mini-batches: with one, clip-higher and KL-Cov have no effect.

    Clip-Cov and KL-Cov get the largest share of their paper, because batches are small here: 2e-3.
    """

    def control(name: str, *keys: str) -> Arm:
        return Arm(name, ("objective.mpt.mask=off", *keys), stale=True)

    return {
        "all tokens": nothing(stale=True),
        "DMMPTs": dmmpts(targets.sigma, stale=True),
        "Clip-Cov": control("Clip-Cov", "objective.entropy={kind='clip_cov', share=2e-3}"),
        "KL-Cov": control(
            "KL-Cov", "objective.entropy={kind='kl_cov', share=2e-3}", "objective.clip_low=1", "objective.clip_high=1e6"
        ),
        "clip-higher": control("clip-higher", "objective.entropy.kind=off", "objective.clip_high=0.28"),
        "adaptive bonus": control("adaptive bonus", f"objective.entropy={{kind='bonus', target={targets.sigma:g}}}"),
        "top entropy": control("top entropy", "objective.entropy={kind='top_entropy', share=0.2}"),
    }
