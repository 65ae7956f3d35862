"""How far the engine's log-probs are from the learner's, for the same tokens under the same weights.

Another kernel, dtype or order of summation makes them differ a little, which biases every ratio; stale weights or a
stale KV cache make them differ a lot, which ruins a run without an error. Shapes: N tokens of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ulorl.types import LogProbs


@dataclass(frozen=True)
class Mismatch:
    """The differences of log-probs over `tokens` tokens, in nats."""

    tokens: int
    mean: float  # of |log p_learner - log p_engine|
    max: float
    kl: float  # estimate of KL(engine || learner)


def logprob_mismatch(engine_N: LogProbs, learner_N: LogProbs) -> Mismatch | None:
    """Compare the engine's log-probs of tokens that it drew [N] with the learner's [N]; None without tokens.

    The estimate of KL(engine || learner) is the mean of r - 1 - log r, r = p_learner / p_engine: unbiased for tokens
    drawn from the engine's whole distribution (no top-p or top-k), never negative, and of less variance than -log r
    (Schulman 2020, "Approximating KL divergence", its k3). Values that are not finite pass through.
    """
    if not len(engine_N):
        return None
    log_ratio_N = np.asarray(learner_N, np.float64) - np.asarray(engine_N, np.float64)
    apart_N = np.abs(log_ratio_N)
    with np.errstate(over="ignore", invalid="ignore"):
        kl = np.mean(np.expm1(log_ratio_N) - log_ratio_N)
    return Mismatch(len(engine_N), float(apart_N.mean()), float(apart_N.max()), float(kl))
