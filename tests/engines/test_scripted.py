"""The scripted engine keeps the contract of `engines.base` to the letter, so that tests built on it mean something."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ulorl.engines.scripted import ScriptedEngine
from ulorl.types import Finish, Request, Sampling, Segment

EOS = 9


def request(sample_id: int, budget: int, output: list[int] | None = None) -> Request:
    prompt, drawn = np.array([5, 6], np.int32), np.array(output or [], np.int32)
    return Request(sample_id, prompt, budget, Sampling(), seed=0, output=(drawn,))


def play(engine: ScriptedEngine) -> dict[int, Segment]:
    ended = {}
    while engine.pending:
        ended |= {segment.sample_id: segment for segment in engine.step()}
    return ended


def test_ends_by_eos_and_by_budget_and_eos_wins_on_the_last_token() -> None:
    engine = ScriptedEngine({0: [1, EOS], 1: [1, 2, 3, 4], 2: [1, 2, EOS]}, EOS)
    for sample in range(3):
        engine.add(request(sample, budget=3))
    ended = play(engine)
    assert {i: (s.tokens.tolist(), s.finish) for i, s in ended.items()} == {
        0: ([1, EOS], Finish.EOS),
        1: ([1, 2, 3], Finish.LENGTH),
        2: ([1, 2, EOS], Finish.EOS),
    }


def test_one_token_a_row_a_step_and_waiting_rows_enter_freed_slots() -> None:
    engine = ScriptedEngine(lambda sample: [sample] * 4 + [EOS], EOS, slots=2)
    for sample, budget in ((0, 1), (1, 3), (2, 2), (3, 1)):
        engine.add(request(sample, budget))
    # steps: {0,1} -> 0 ends; {1,2}; {1,2} -> both end; {3} -> 3 ends
    assert [[s.sample_id for s in engine.step()] for _ in range(5)] == [[0], [], [1, 2], [3], []]
    assert (engine.stats.decode_steps, engine.stats.decode_tokens, engine.stats.prefill_tokens) == (4, 7, 8)
    assert engine.pending == 0


def test_a_continued_sample_continues_its_script_under_the_new_version() -> None:
    engine = ScriptedEngine({0: [1, 2, 3, EOS]}, EOS, version=3)
    engine.add(request(0, 2))
    first = play(engine)[0]
    engine.load_weights(iter(()), version=4)
    engine.add(request(0, 2, first.tokens.tolist()))
    second = play(engine)[0]
    assert second.tokens.tolist() == [3, EOS]
    assert (first.versions.tolist(), second.versions.tolist()) == ([3, 3], [4, 4])
    # log-probs by hand, -(1 + version) / (2 + index): -4/2, -4/3 | -5/4, -5/5
    np.testing.assert_allclose(np.concatenate([first.logprobs, second.logprobs]), [-2, -4 / 3, -1.25, -1], rtol=1e-6)
    assert [r.tokens.tolist() for r in engine.requests] == [[5, 6], [5, 6, 1, 2]]


def test_abort_returns_partial_and_empty_segments() -> None:
    engine = ScriptedEngine({0: [1, 2, EOS], 1: [EOS]}, EOS, slots=1)
    engine.add(request(0, 3))
    engine.add(request(1, 3))
    engine.step()
    assert [(s.sample_id, s.tokens.tolist(), s.finish) for s in engine.abort()] == [
        (0, [1], Finish.ABORT),
        (1, [], Finish.ABORT),
    ]
    assert engine.pending == 0


def test_what_breaks_the_contract_is_refused() -> None:
    engine = ScriptedEngine({0: [1, 2, 3], 1: [1, EOS]}, EOS)
    with pytest.raises(ValueError, match="not an unfinished beginning"):
        engine.add(request(0, 1, [2]))
    with pytest.raises(ValueError, match="not an unfinished beginning"):
        engine.add(request(1, 1, [1, EOS]))
    with pytest.raises(ValueError, match="has 3 and no EOS"):
        engine.add(request(0, 3, [1]))
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        engine.add(request(0, 0))
    engine.add(request(0, 3))
    with pytest.raises(RuntimeError, match="1 requests pending"):
        engine.load_weights(iter(()), version=1)


def test_it_imports_no_torch() -> None:
    code = "import sys, ulorl.engines.scripted; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
