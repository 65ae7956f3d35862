"""The benchmark compares equal work."""

from __future__ import annotations

import numpy as np

from ulorl.bench.engine import long_tail, run


def test_lengths_have_the_stated_quantiles() -> None:
    lengths = np.array(long_tail(20_000, 10_000).lengths)
    assert abs(np.quantile(lengths, 0.5) / 70 - 1) < 0.05
    assert abs(np.quantile(lengths, 0.9) / 310 - 1) < 0.05
    assert max(long_tail(200, 64).lengths) == 64


def test_rates_are_tokens_over_median_seconds() -> None:
    """`run` itself raises when the three decode different numbers of tokens."""
    figures = run(batches=(3,), max_tokens=6, repeats=3)
    equal, tail = figures["results"]
    assert (equal["tokens"], tail["requests"]) == (18, 6)
    for result in (equal, tail):
        rates = result["tokens_per_second"]
        for who, seconds in result["seconds"].items():
            assert len(seconds) == 3
            np.testing.assert_allclose(rates[who], result["tokens"] / np.median(seconds), rtol=0.05)
        np.testing.assert_allclose(result["ratio_to_static"], rates["engine"] / rates["generate_static"], atol=0.01)
