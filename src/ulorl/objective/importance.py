"""The old policy of the importance ratio: TOIS, SAIS (eq. 8), POIS (section 3.1), decoupled. Shapes: N tokens of a
batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Importance = Literal["tois", "sais", "pois", "decoupled"]


def old_logprobs(
    kind: Importance,
    recorded_N: Tensor,
    update_start_N: Tensor | None,
    current_N: Tensor,
    learner_N: Tensor | None = None,
) -> Tensor:
    """Return the log-probs of the tokens under the old policy, constants to the gradient.

    - `tois`, `sais`: as recorded at generation, each token under the version that generated it (eq. 8). The two
      differ only in that with TOIS (one segment) that version is the same for all tokens.
    - `pois`: under the newest weights, those at the start of the update.
    - `decoupled`: as the learner computed them under the version that generated each token (Guan et al. 2026, "Missing
      Old Logits", arXiv 2605.12070). The ratio pi_theta / pi_old is then staleness alone, which is clipped, and
      pi_old / pi_engine is the mismatch of engine and learner alone, which `engine_weights` and `engine_kept` correct.

    Args:
        kind: which importance sampling.
        recorded_N: log-probs recorded at generation [N].
        update_start_N: log-probs under the weights at the start of the update [N]; None when the current weights are
            those (one gradient update a step), and then the POIS ratio is exactly 1.
        current_N: log-probs under the weights being trained [N].
        learner_N: the learner's log-probs under the version that generated each token [N], for `decoupled`.

    Returns:
        old log-probs [N], detached.

    Raises:
        ValueError: unknown kind, or `decoupled` without the learner's log-probs.
    """
    if kind == "pois":
        return (current_N if update_start_N is None else update_start_N).detach()
    if kind in ("tois", "sais"):
        return recorded_N.detach()
    if kind != "decoupled":
        raise ValueError(f"importance sampling is tois, sais, pois or decoupled, found {kind!r}")
    if learner_N is None:
        raise ValueError("decoupled needs the learner's log-probs under the versions that generated the tokens")
    return learner_N.detach()


def ratios(logprobs_N: Tensor, old_N: Tensor) -> Tensor:
    """Return the importance ratios pi_theta / pi_old of the tokens [N], from their log-probs [N]."""
    return torch.exp(logprobs_N - old_N)
