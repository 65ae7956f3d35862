"""The old policy of the importance ratio: TOIS, SAIS (eq. 8), POIS (section 3.1). Shapes: N tokens of a batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Importance = Literal["tois", "sais", "pois"]


def old_logprobs(kind: Importance, recorded_N: Tensor, update_start_N: Tensor | None, current_N: Tensor) -> Tensor:
    """Return the log-probs of the tokens under the old policy, constants to the gradient.

    - `tois`, `sais`: as recorded at generation, each token under the version that generated it (eq. 8). The two
      differ only in that with TOIS (one segment) that version is the same for all tokens.
    - `pois`: under the newest weights, those at the start of the update.

    Args:
        kind: which importance sampling.
        recorded_N: log-probs recorded at generation [N].
        update_start_N: log-probs under the weights at the start of the update [N]; None when the current weights are
            those (one gradient update a step), and then the POIS ratio is exactly 1.
        current_N: log-probs under the weights being trained [N].

    Returns:
        old log-probs [N], detached.

    Raises:
        ValueError: unknown kind.
    """
    if kind == "pois":
        return (current_N if update_start_N is None else update_start_N).detach()
    if kind in ("tois", "sais"):
        return recorded_N.detach()
    raise ValueError(f"importance sampling is tois, sais or pois, found {kind!r}")


def engine_weights(old_N: Tensor, recorded_N: Tensor, cap: float) -> Tensor:
    """Return the weights of truncated importance sampling, min(pi_old / pi_engine, cap) for each token [N], constants
    to the gradient.

    POIS uses the newest policy as the old one, as if it had drawn the tokens. The engine drew them, and its recorded
    log-probs differ by kernels and dtype, and for tokens of earlier segments by the updates since. The truncation
    (Ionides 2008) bounds the variance. Yao et al. 2025 ("Your efficient RL framework secretly brings you off-policy RL
    training") weight the mismatch of engine and learner like this; Fu et al. 2025 (AReaL, arXiv 2505.24298, the
    decoupled objective) the staleness.
    """
    return torch.exp(old_N - recorded_N).clamp(max=cap).detach()


def ratios(logprobs_N: Tensor, old_N: Tensor) -> Tensor:
    """Return the importance ratios pi_theta / pi_old of the tokens [N], from their log-probs [N]."""
    return torch.exp(logprobs_N - old_N)
