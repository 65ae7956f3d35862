from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ulorl import rng


def test_splitmix64_reference_values() -> None:
    """SplitMix64 seeded with 0 gives these numbers first (Vigna's reference implementation, splitmix64.c): its n-th
    output is the finaliser of n times the golden constant."""
    with np.errstate(over="ignore"):
        states = rng._GOLDEN * np.arange(1, 4, dtype=np.uint64)
    assert [hex(int(x)) for x in rng._mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**20)), min_size=1, max_size=20))
def test_a_draw_does_not_depend_on_its_batch(pairs: list[tuple[int, int]]) -> None:
    seeds = np.array([s for s, _ in pairs], np.uint64)
    positions = np.array([p for _, p in pairs], np.int64)
    together = rng.uniforms(seeds, positions)
    assert ((together >= 0) & (together < 1)).all()
    alone = [rng.uniforms(seeds[i : i + 1], positions[i : i + 1])[0] for i in range(len(pairs))]
    assert together.tolist() == alone


def test_draws_are_uniform_and_uncorrelated() -> None:
    """100,000 draws over 100 samples x 1,000 positions: mean 1/2 (standard error 0.0009), each tenth holds 10% (0.3 of
    a point of error), neighbours along a sample and across samples are uncorrelated (0.003)."""
    seeds = np.array([rng.sample_seed(3, i) for i in range(100)], np.uint64)
    u = rng.uniforms(np.repeat(seeds, 1000), np.tile(np.arange(1000), 100)).reshape(100, 1000)
    assert abs(u.mean() - 0.5) < 0.004
    assert abs(np.histogram(u, 10, (0, 1))[0] / u.size - 0.1).max() < 0.005
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 0.015
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.015


def test_seeds_differ_by_run_sample_and_stream() -> None:
    numbered = [stream for stream in rng.Stream.__members__.values() if isinstance(stream.value, int)]
    seeds = {rng.sample_seed(r, s, stream) for r in range(10) for s in range(100) for stream in numbered}
    assert len(seeds) == 1000 * len(numbered)  # two names for one number would be one stream


def test_named_streams_are_texts() -> None:
    """The texts are those of earlier versions: made data stays the same."""
    for stream, seeds, text in (
        (rng.Stream.COUNTDOWN, (3,), "countdown problems 3"),
        (rng.Stream.MEASURED_PAIRS, (), "verifier bench"),
        (rng.Stream.MADE_PAIRS, ("0 id answer",), "0 id answer"),
    ):
        assert rng.generator(stream, *seeds).random() == random.Random(text).random()


def test_permutation_is_of_seed_and_epoch() -> None:
    assert sorted(rng.permutation(1, 0, 50)) == list(range(50))
    assert rng.permutation(1, 0, 50).tolist() == rng.permutation(1, 0, 50).tolist()
    assert len({tuple(rng.permutation(s, e, 50)) for s in range(3) for e in range(3)}) == 9
