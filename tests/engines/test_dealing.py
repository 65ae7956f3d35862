"""Who gets which request: longest first, to the least loaded engine, siblings apart."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ulorl.engines.dealing import Dealer
from ulorl.types import Request, Sampling

PROMPT = np.array([7], np.int32)


def request(id: int, budget: int = 8, expected: int = 0) -> Request:
    return Request(id, PROMPT, budget, Sampling(), id, expected)


def ids(dealt: dict[int, list[Request]]) -> dict[int, list[int]]:
    return {engine: [r.sample_id for r in requests] for engine, requests in dealt.items()}


def test_longest_first_to_the_least_loaded_engine() -> None:
    dealer = Dealer[Request](2, slots=4, group=1)
    for id, budget in enumerate((1, 5, 3, 2)):
        dealer.add(request(id, budget))
    assert ids(dealer.deal([0, 1])) == {0: [1, 0], 1: [2, 3]}  # 5 and 3 + 2, then the first


def test_an_estimate_replaces_the_budget() -> None:
    dealer = Dealer[Request](1, slots=1, group=1)
    dealer.add(request(0, 9, expected=3))
    dealer.add(request(1, 5))
    assert ids(dealer.deal([0])) == {0: [1]}


def test_requests_wait_for_free_slots_of_engines_that_are_ready() -> None:
    dealer = Dealer[Request](3, slots=2, group=1)
    for id in range(5):
        dealer.add(request(id))
    assert ids(dealer.deal([2])) == {2: [0, 1]}
    assert dealer.deal([2]) == {}
    assert dealer.waiting == 3
    dealer.returned(1)
    assert ids(dealer.deal([2])) == {2: [2]}
    assert ids(dealer.deal([0, 1, 2])) == {0: [3], 1: [4]}
    assert dealer.waiting == 0


@pytest.mark.parametrize(("engines", "group"), [(4, 4), (3, 8), (8, 3), (1, 4)])
def test_siblings_are_dealt_across_engines(engines: int, group: int) -> None:
    """With any budgets, no engine has two more samples of a problem than another one with a free slot."""
    dealer, random_ = Dealer[Request](engines, slots=100, group=group), random.Random(0)
    for id in range(20 * group):
        dealer.add(request(id, random_.randint(1, 50)))
    dealt = ids(dealer.deal(range(engines)))
    for problem in range(20):
        counts = [sum(id // group == problem for id in dealt[engine]) for engine in range(engines)]
        assert max(counts) - min(counts) <= 1, counts
    loads = [load.tokens for load in dealer._loads]
    assert max(loads) - min(loads) <= 2 * 50


def test_loads_are_exact_after_any_moves() -> None:
    dealer, random_, held = Dealer[Request](5, slots=7, group=3), random.Random(1), dict[int, tuple[int, Request]]()
    for id in range(300):
        dealer.add(request(id, random_.randint(1, 9)))
        ready = [engine for engine in range(5) if random_.random() < 0.7]
        for engine, requests in dealer.deal(ready).items():
            assert engine in ready
            held |= {r.sample_id: (engine, r) for r in requests}
        for back in random_.sample(sorted(held), k=min(len(held), random_.randint(0, 2))):
            dealer.returned(back)
            if random_.random() < 0.3:
                dealer.add(held[back][1])
            del held[back]
        for engine, load in enumerate(dealer._loads):
            mine = [r for where, r in held.values() if where == engine]
            assert load.free == 7 - len(mine) >= 0
            assert load.tokens == sum(r.max_new_tokens for r in mine)
            groups = [r.sample_id // 3 for r in mine]
            assert load.siblings == {group: groups.count(group) for group in groups}
