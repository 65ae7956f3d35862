"""Counter-based randomness: a draw is a pure function of (run seed, sample id, position).

Batch order, the engine that serves a sample, or a restart cannot change a draw, because there is no state to change.
The mixing function is SplitMix64's finaliser (Steele, Lea, Flood 2014), applied once a word that is mixed in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import Enum

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Stream(Enum):
    """The purpose of a draw: draws of two streams are independent under the same seed.

    A number is mixed into the seed of every sample (`sample_seed`). A text begins the seed of one sequential generator
    (`generator`), for data that is made once. A value is never changed: it would change all draws of its stream.
    """

    TRAINING = 0
    EVALUATION = 1
    CHAT = 2
    PROBE = 3  # the greedy check of the engine's weights
    COMPLETIONS = 4  # outputs of models that answer prompts
    MINIBATCHES = 5  # the order of samples in an update
    LENGTHS = 6  # output lengths that the rollout planner draws
    COVARIANCE = 7  # which tokens Clip-Cov leaves out, and which of equal ones KL-Cov penalises
    COUNTDOWN = "countdown problems"
    TASK = "task problems"  # of tasks that draw their problems one at a time
    WARM_UP = "warm-up"  # batches of the tiny model's warm-up
    MADE_PAIRS = ""  # the pairs that are made of one problem; its seed holds the problem's id
    TRAINED_PAIRS = "verifier pairs"  # the pairs that a verifier is trained on, and their order
    MEASURED_PAIRS = "verifier bench"  # the pairs that judges are measured on


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample_seed(run_seed: int, sample_id: int, stream: Stream = Stream.TRAINING) -> int:
    """Return the 64-bit seed of one sample in a numbered stream."""
    return sample_seeds(run_seed, [sample_id], stream)[0]


def sample_seeds(run_seed: int, sample_ids: Sequence[int], stream: Stream = Stream.TRAINING) -> list[int]:
    """Return the 64-bit seeds of many samples in a numbered stream, 50 times as fast as one by one."""
    state = np.zeros(len(sample_ids), dtype=np.uint64)
    for word in ([run_seed], [stream.value], sample_ids):
        state = _mix(state + _GOLDEN + np.array(word, dtype=np.int64).astype(np.uint64))
    seeds: list[int] = state.tolist()
    return seeds


def uniforms(seeds_B: NDArray[np.uint64], positions_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each (seed, position) of B samples, [B], with 53 random bits."""
    bits = _mix(_mix(seeds_B + _GOLDEN) + _GOLDEN * (positions_B.astype(np.uint64) + np.uint64(1)))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return the order of n problems in one epoch, [n]: a function of (seed, epoch) only."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))).permutation(n)


def segment_seed(seed: int, output_length: int) -> int:
    """Return the seed, below 2^63, of the segment that begins at output index `output_length` of the sample with
    `seed`, for an engine that draws by itself (vLLM keeps seeds as int64)."""
    words = np.array([seed, output_length], dtype=np.uint64)
    return int(_mix(_mix(words[:1] + _GOLDEN) + _GOLDEN * (words[1:] + np.uint64(1)))[0] >> np.uint64(1))


def generator(stream: Stream, *seeds: object) -> random.Random:
    """Return a sequential generator of a named stream: the same stream and seeds give the same sequence."""
    return random.Random(" ".join(str(part) for part in (stream.value, *seeds) if part != ""))
