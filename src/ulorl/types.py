"""The plain values that the components exchange: problems, requests, segments, samples, groups.

They are immutable, need neither torch nor a configuration, and can be pickled. Token ids, log-probs and versions are
numpy arrays of one length, which is checked wherever they are joined.

Shapes: T output tokens of a sample, G group size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar, dataclass_transform

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
LogProbs = NDArray[np.float32]
Versions = NDArray[np.int32]
_T = TypeVar("_T")
Metrics = dict[str, float | int | None]  # by name; None: there is no such number


@dataclass_transform(frozen_default=True, eq_default=False)
def _value(cls: type[_T]) -> type[_T]:
    """Make a dataclass whose fields the type checker lets nobody set. A frozen dataclass, which refuses that at run
    time too, takes four times as long to make, and every step makes several for each sample."""
    return dataclass(eq=False, slots=True)(cls)


class Finish(StrEnum):
    """Why an engine stopped decoding a request."""

    EOS = "eos"  # the model ended its output; the EOS token is the segment's last token
    LENGTH = "length"  # the request's `max_new_tokens` were decoded
    ABORT = "abort"  # stopped from outside; the tokens so far are returned


@dataclass(frozen=True)
class Problem:
    """A question with what its reward needs to judge an answer."""

    id: str
    prompt: str  # as the dataset has it; `data.prompts` applies the chat template
    answer: str = ""  # the reference answer
    meta: Mapping[str, Any] = field(default_factory=dict)  # further values for the reward, JSON only


Prompted = tuple[Problem, Tokens]  # a problem and its encoded prompt


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Log-probs are those of softmax(logits / temperature) over the full vocabulary, before top-p
    and top-k, so that engine and learner use the same distribution. Temperature 0 is greedy decoding, with the
    log-probs of temperature 1.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 is off


@_value
class Request:
    """One segment of one sample for an engine to decode.

    `max_new_tokens` is the segment's budget, at most the sample's remaining one. The draw of the output token at index
    i (0 is the first after the prompt) depends on (`seed`, i) only. `expected_tokens` is an estimate of how many of
    them the segment will have, for engines that balance load. `output` are the tokens of the earlier segments: those
    of the sample itself, so that a request costs the same however long its sample is.
    """

    sample_id: int
    prompt: Tokens
    max_new_tokens: int
    sampling: Sampling
    seed: int  # of this sample, 64 bits: `rng.sample_seed(run seed, sample id)`
    expected_tokens: int = 0  # 0: unknown
    output: tuple[Tokens, ...] = ()

    @property
    def tokens(self) -> Tokens:
        """Return the prompt and all output so far, which the engine prefills: a copy."""
        return np.concatenate([self.prompt, *self.output])

    @property
    def output_length(self) -> int:
        """Return the number of output tokens decoded before this request."""
        return sum(map(len, self.output))

    @property
    def length(self) -> int:
        """Return the number of tokens of the prompt and all output so far."""
        return len(self.prompt) + self.output_length


@_value
class Segment:
    """The result of one request: the new tokens, each with its log-prob and the version that generated it.

    `learner_logprobs` are the learner's log-probs of the tokens under that version, which only the decoupled objective
    needs; None: not recorded.
    """

    sample_id: int
    tokens: Tokens
    logprobs: LogProbs
    versions: Versions
    finish: Finish
    learner_logprobs: LogProbs | None = None

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.logprobs) == len(self.versions):
            raise ValueError(
                f"segment of sample {self.sample_id}: {len(self.tokens)} tokens, {len(self.logprobs)} log-probs, "
                f"{len(self.versions)} versions; the three must have one length"
            )
        if self.learner_logprobs is not None and len(self.learner_logprobs) != len(self.tokens):
            raise ValueError(
                f"segment of sample {self.sample_id}: {len(self.tokens)} tokens, but {len(self.learner_logprobs)} "
                "log-probs of the learner"
            )

    def __len__(self) -> int:
        return len(self.tokens)


class Status(StrEnum):
    """The state of a sample after its latest segment (Algorithm 1, from line 9)."""

    UNFINISHED = "unfinished"  # continues in the next step, with the newest weights
    COMPLETE = "complete"  # ended by EOS
    TRUNCATED = "truncated"  # reached the global maximum output length


@_value
class Sample:
    """One output, finished or not: segments [seg_1; ...; seg_t], each from its own policy version."""

    id: int
    group_id: int
    prompt: Tokens
    segments: tuple[Segment, ...] = ()
    status: Status = Status.UNFINISHED

    @property
    def tokens(self) -> Tokens:
        """Return all output tokens, [T]."""
        return _joined([s.tokens for s in self.segments], np.int32)

    @property
    def logprobs(self) -> LogProbs:
        """Return the log-prob of each output token under the version that generated it, [T]."""
        return _joined([s.logprobs for s in self.segments], np.float32)

    @property
    def versions(self) -> Versions:
        """Return the version that generated each output token, [T]."""
        return _joined([s.versions for s in self.segments], np.int32)

    @property
    def learner_logprobs(self) -> LogProbs | None:
        """Return the learner's log-prob of each output token under the version that generated it, [T]; None when a
        segment lacks them."""
        recorded = [s.learner_logprobs for s in self.segments if s.learner_logprobs is not None]
        return _joined(recorded, np.float32) if len(recorded) == len(self.segments) else None

    def with_learner_logprobs(self, logprobs: LogProbs) -> Sample:
        """Return the sample with the learner's log-probs of its latest segment."""
        *before, last = self.segments
        last = Segment(last.sample_id, last.tokens, last.logprobs, last.versions, last.finish, logprobs)
        return Sample(self.id, self.group_id, self.prompt, (*before, last), self.status)

    @property
    def version_count(self) -> int:
        """Return how many versions drew the output tokens. A segment has one."""
        return len({segment.versions.item(-1) for segment in self.segments})

    def __len__(self) -> int:
        """Return the number of output tokens so far."""
        tokens = 0
        for segment in self.segments:  # every step asks all samples, and `sum` over their `len` takes twice as long
            tokens += len(segment.tokens)
        return tokens


@_value
class Scored:
    """A finished sample with its reward in {0, 1} and the decoded text that was judged."""

    sample: Sample
    reward: float | None  # None: unscored, because the reward failed
    text: str
    error: str = ""  # why it is unscored
    answer: str | None = ""  # that was judged; "": the reward does not say; None: the output has no answer


@_value
class Group:
    """The G finished samples of one problem, in the order of their ids, which GRPO compares (eq. 4)."""

    id: int
    problem: Problem
    members: tuple[Scored, ...]

    @property
    def unscored(self) -> bool:
        """Return whether a member has no reward; no member is trained then, because they cannot be compared."""
        return any(member.reward is None for member in self.members)


def _joined(arrays: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)
