"""Records the learner's own log-probs of new tokens, under the weights that generated them."""

from __future__ import annotations

from collections.abc import Sequence

from ulorl.cancellation import NEVER, CancelToken
from ulorl.learner.experience import Experience, row_of
from ulorl.learner.learner import Learner
from ulorl.types import Sample


def record_behaviour(learner: Learner, samples: Sequence[Sample], cancel: CancelToken = NEVER) -> list[Sample]:
    """Return the samples of a step with the learner's log-probs of their latest segments.

    The decoupled objective needs them. At the end of a rollout, before the update, the learner has the weights with
    which the engine decoded, so every segment is recorded under its own version, also of samples that are carried over:
    later those weights are gone ("missing old logits", arXiv 2605.12070). It costs a forward pass over all samples of
    the step, with their earlier segments.

    Raises RuntimeError when the latest segment of a sample is of another version than the learner's, and Cancelled.
    """
    if other := [s.id for s in samples if s.segments[-1].versions[-1] != learner.version]:
        raise RuntimeError(f"sample {other[0]} has new tokens of another version than the learner's {learner.version}")
    if not samples:
        return []
    rows = [Experience(row_of(sample), sample.id, advantage=0.0, correct=False) for sample in samples]
    logprobs, _ = learner.score(rows, cancel)
    return [
        sample.with_learner_logprobs(logprobs_T[-len(sample.segments[-1]) :].copy())
        for sample, logprobs_T in zip(samples, logprobs, strict=True)
    ]
