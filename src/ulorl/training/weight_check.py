"""The weight check: after every load of weights, engine and learner must give the same tokens the same log-probs.

An engine that keeps old weights, old packed copies of them, or old keys and values continues to decode without an
error. Therefore the engine decodes a few tokens as in a rollout, and the learner computes their log-probs too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ulorl.engines.decode import rollout
from ulorl.engines.engine import Engine
from ulorl.error_codes import ErrorCode
from ulorl.errors import EngineMismatch
from ulorl.learner.batching import Row
from ulorl.learner.experience import Experience
from ulorl.learner.learner import Learner
from ulorl.objective.mismatch import Mismatch, logprob_mismatch
from ulorl.rng import Stream, sample_seed
from ulorl.types import Finish, LogProbs, Request, Sampling, Segment, Tokens

PROMPTS = 4
SEGMENT_TOKENS = 8  # of each of two segments: the second one prefills what the first one decoded
# Of an output that is judged alone, the largest differences are left out, one token in so many: where rounding chooses
# another expert, one token may be 0.8 nats apart in a right engine, 0.05 of the mean of 16; wrong weights move most.
OUTLIERS = 8

# Nats, mean over the decoded tokens. float32 on two CPU engines differs by 1e-6; a head one step of 1e-4 old by 1e-3.
# bfloat16 rounds logits near 20 to multiples of 0.125, and engines sum in different orders.
# One step often changes log-probs by less than that: an engine that keeps the weights of the step before may pass.
TOLERANCE = {"float32": 2e-4, "bfloat16": 0.05}


class WeightCheck:
    """Compares the log-probs of engine and learner. Prompts and draws are the same at every call, so that a prefix
    cache that should be empty is noticed.

    tolerance: of the mean difference, in nats. sampling, max_tokens: the rollout's; outputs are no longer than
    max_tokens, because every prompt is known to fit the model's context with so long an output. seed: of the run.
    engines: the engines of a fleet, which gives idle engines one request each: there are at least as many prompts,
    repeated where there are too few, and the tolerance holds for each output alone too, without its largest
    differences, so that the others do not hide one wrong engine.
    """

    def __init__(
        self,
        prompts: Sequence[Tokens],
        sampling: Sampling,
        *,
        seed: int,
        tolerance: float,
        max_tokens: int = 2 * SEGMENT_TOKENS,
        engines: int = 1,
    ) -> None:
        self.tolerance = tolerance
        self._sampling, self._engines = sampling, engines
        first = min(SEGMENT_TOKENS, -(-max_tokens // 2))
        self._segments = [tokens for tokens in (first, min(SEGMENT_TOKENS, max_tokens - first)) if tokens]
        self._prompts = [prompts[i % len(prompts)] for i in range(max(min(PROMPTS, len(prompts)), engines))]
        # The version of the last check, and for each output its tokens and the learner's log-probs of them.
        self._checked: tuple[int, list[tuple[Tokens, LogProbs]]] | None = None
        self._seeds = [sample_seed(seed, index, Stream.PROBE) for index in range(len(self._prompts))]

    def __call__(self, engine: Engine, learner: Learner) -> Mismatch:
        """Return how far engine and learner differ over all tokens. Raises EngineMismatch when the mean difference, or
        with a fleet that of one output, is above the tolerance or not a number."""
        rows = self._decode(engine)
        learned, _ = learner.score([Experience(row, i, advantage=0.0, correct=False) for i, row in enumerate(rows)])
        found = logprob_mismatch(np.concatenate([row.logprobs for row in rows]), np.concatenate(learned))
        assert found is not None  # every output has at least one token
        outputs = zip(rows, learned, strict=True) if self._engines > 1 else ()
        for apart in (found, *(_without_outliers(row.logprobs, logprobs) for row, logprobs in outputs)):
            if apart and not apart.mean <= self.tolerance:
                raise _mismatch(
                    f"engine and learner disagree about version {learner.version}: their log-probs of {apart.tokens} "
                    f"tokens are {apart.mean:.2g} nats apart on average (largest {apart.max:.2g}), tolerated are "
                    f"{self.tolerance:.2g} (engine.tolerance)"
                )
        self._checked = learner.version, [(row.tokens, logprobs) for row, logprobs in zip(rows, learned, strict=True)]
        return found

    def replacement(self, engine: Engine, version: int, learner: Learner) -> None:
        """Check an engine that replaces another one, perhaps while the learner trains (`rollout.overlap`).

        When the weights of `version` were checked before, the learner is not asked: the engine has to give the tokens
        of then the learner's log-probs of then. Tokens after the first one that differs have other contexts and are
        not compared; rounding rarely changes a token, so half of all tokens must remain. Otherwise the learner must be
        idle. Raises EngineMismatch.
        """
        if self._checked is None or self._checked[0] != version:
            self(engine, learner)
            return
        decoded, learned, total = list[LogProbs](), list[LogProbs](), 0
        for row, (tokens, logprobs) in zip(self._decode(engine), self._checked[1], strict=True):
            same = _common_length(row.tokens, tokens)
            decoded.append(row.logprobs[:same])
            learned.append(logprobs[:same])
            total += len(tokens)
        found = logprob_mismatch(np.concatenate(decoded), np.concatenate(learned))
        if found is None or 2 * found.tokens < total or not found.mean <= self.tolerance:
            apart = f", and their log-probs are {found.mean:.2g} nats apart on average" if found else ""
            raise _mismatch(
                f"an engine that replaces another one does not have the weights of version {version}: it gives "
                f"{found.tokens if found else 0} of the {total} tokens of the last weight check{apart}; tolerated are "
                f"{self.tolerance:.2g} (engine.tolerance)"
            )

    def _decode(self, engine: Engine) -> list[Row]:
        """Return the output for each prompt."""
        outputs: list[list[Segment]] = [[] for _ in self._prompts]
        for tokens in self._segments:
            requests = [
                Request(
                    index,
                    prompt,
                    tokens,
                    self._sampling,
                    self._seeds[index],
                    output=tuple(segment.tokens for segment in outputs[index]),
                )
                for index, prompt in enumerate(self._prompts)
                if not outputs[index] or outputs[index][-1].finish is Finish.LENGTH
            ]
            for segment in rollout(engine, requests):
                outputs[segment.sample_id].append(segment)
        return [
            Row(
                prompt,
                np.concatenate([s.tokens for s in segments]),
                np.concatenate([s.logprobs for s in segments]),
                np.concatenate([s.versions for s in segments]),
            )
            for prompt, segments in zip(self._prompts, outputs, strict=True)
        ]


def _without_outliers(engine_T: LogProbs, learner_T: LogProbs) -> Mismatch | None:
    """Compare the log-probs of one output's tokens, without the largest differences."""
    kept = len(engine_T) - len(engine_T) // OUTLIERS
    index = np.argsort(np.abs(learner_T - engine_T))[:kept]
    return logprob_mismatch(engine_T[index], learner_T[index])


def _common_length(one: Tokens, other: Tokens) -> int:
    """Return the number of tokens before the first difference."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if differ.size else length


def _mismatch(what: str) -> EngineMismatch:
    return EngineMismatch(
        f"{what}. The engine decodes with other weights, another dtype or another context scaling than the learner "
        "trains; continuing would train on wrong log-probs",
        code=ErrorCode.ENGINE_MISMATCH,
        key="engine.tolerance",
    )
