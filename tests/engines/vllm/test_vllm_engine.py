"""The vLLM engine keeps the contract of the embedded engine, with real vLLM (`make test-engines` installs it)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from refusals import refused
from ulorl.error_codes import ErrorCode
from ulorl.rng import sample_seed
from ulorl.types import Finish, Request, Sampling

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-engines` runs these")

from ulorl.engines.vllm.vllm_engine import VllmEngine
from vllm_engines import EOS, PARITY, WARM, load, play, prompt, request, start, transformers_logprobs


@pytest.fixture(scope="class")
def warm() -> Iterator[VllmEngine]:
    """Temperature .85: vLLM's processed log-probs."""
    with closing(start()) as engine:
        yield engine


class TestOneEngine:
    """These share an engine, as each start of vLLM takes seconds; it ends with them, as only one can live here."""

    def test_logprobs_are_those_of_the_sampling_distribution(self, warm: VllmEngine) -> None:
        requests = [request(i, 24) for i in range(20)]  # more than slots: refilled while others decode
        found = play(warm, requests)
        assert warm.logprobs_mode == "processed_logprobs"
        assert sorted(found) == list(range(20))
        model = load()
        for r in requests:
            expected = transformers_logprobs(model, r.tokens, found[r.sample_id], 0.85)
            assert np.abs(found[r.sample_id].logprobs - expected).max() < PARITY
        lengths = [len(s) for s in found.values()]
        assert sum(lengths) > 100
        assert all((s.finish is Finish.EOS) == (s.tokens[-1] == EOS) for s in found.values())
        assert all(len(s) == 24 for s in found.values() if s.finish is Finish.LENGTH)
        assert all(s.tokens.dtype == np.int32 and (s.versions == warm.version).all() for s in found.values())

    def test_logprobs_that_the_mode_gets_wrong_are_no_numbers(self, warm: VllmEngine) -> None:
        found = play(warm, [request(0, 8, Sampling(0.85, top_p=0.9)), request(1, 8)])
        assert np.isnan(found[0].logprobs).all()
        assert not np.isnan(found[1].logprobs).any()

    def test_the_same_seed_draws_the_same_and_another_position_another(self, warm: VllmEngine) -> None:
        first, again = (play(warm, [request(i, 30) for i in range(6)]) for _ in range(2))
        alone = play(warm, [request(3, 30)])
        assert all(first[i].tokens.tolist() == again[i].tokens.tolist() for i in first)
        assert alone[3].tokens.tolist() == first[3].tokens.tolist()
        same_prompt = [Request(i, prompt(0), 30, WARM, sample_seed(0, i)) for i in range(6)]
        assert len({tuple(s.tokens.tolist()) for s in play(warm, same_prompt).values()}) > 3

    def test_eos_on_the_last_token_of_the_budget_completes(self, warm: VllmEngine) -> None:
        found = play(warm, [request(i, 200) for i in range(30)])
        index, whole = next((i, s) for i, s in found.items() if s.finish is Finish.EOS and len(s) > 2)
        exact = play(warm, [request(index, len(whole))])[index]
        assert exact.finish is Finish.EOS
        assert exact.tokens.tolist() == whole.tokens.tolist()
        short = play(warm, [request(index, len(whole) - 1)])[index]
        assert short.finish is Finish.LENGTH
        assert short.tokens.tolist() == whole.tokens[:-1].tolist()

    def test_abort_returns_what_was_decoded_and_leaves_a_clean_engine(self, warm: VllmEngine) -> None:
        greedy = [request(i, 60, Sampling(0.0)) for i in range(12)]
        whole = play(warm, greedy)
        before = warm.stats.decode_tokens
        for r in greedy:
            warm.add(r)
        ended = [segment for _ in range(5) for segment in warm.step()]
        decoded = warm.stats.decode_tokens - before  # counted while they run
        partial = warm.abort()
        assert warm.pending == 0
        assert warm.step() == []
        assert len(ended) + len(partial) == 12
        assert decoded == sum(map(len, (*ended, *partial))) == warm.stats.decode_tokens - before
        assert {len(s) for s in partial} >= {0, 5}  # some waited for a slot
        for segment in partial:
            assert segment.finish is Finish.ABORT
            assert segment.tokens.tolist() == whole[segment.sample_id].tokens[: len(segment)].tolist()
            assert len(segment.logprobs) == len(segment.versions) == len(segment)
        assert play(warm, greedy)[11].tokens.tolist() == whole[11].tokens.tolist()

    def test_some_requests_are_stopped_and_the_others_draw_the_same_tokens(self, warm: VllmEngine) -> None:
        greedy = [request(i, 60, Sampling(0.0)) for i in range(12)]
        whole = play(warm, greedy)
        for r in greedy:
            warm.add(r)
        ended = [segment for _ in range(5) for segment in warm.step()]
        running = [r.sample_id for r in greedy if r.sample_id not in {s.sample_id for s in ended}]
        stopped = running[0], running[-1]
        partial = warm.abort_some([*stopped, 99])
        assert [(s.sample_id, s.finish) for s in partial] == [(id, Finish.ABORT) for id in stopped]
        assert partial[0].tokens.tolist() == whole[stopped[0]].tokens[:5].tolist()
        while warm.pending:
            ended += warm.step()
        assert {s.sample_id: s.tokens.tolist() for s in ended} == {
            id: segment.tokens.tolist() for id, segment in whole.items() if id not in stopped
        }

    def test_requests_that_cannot_be_served_are_refused(self, warm: VllmEngine) -> None:
        with pytest.raises(ValueError, match="exceed the engine's context length of 320"):
            warm.add(request(0, 320))
        with pytest.raises(ValueError, match=r"token ids must lie in 0\.\.110, found"):
            warm.add(request(0, 8, tokens=np.append(prompt(0), 111)))  # the last one is of its output so far
        assert warm.pending == 0
        warm.add(request(0, 312))  # exactly the context
        with pytest.raises(RuntimeError, match="load_weights with 1 requests pending"):
            warm.load_weights([], 1)
        warm.abort()

    def test_one_engine_at_a_time_lives_in_our_process(self, warm: VllmEngine) -> None:
        """vLLM's process groups are the process's: closing one engine would end those of the other. The next test
        starts an engine after this one is closed."""
        with pytest.raises(RuntimeError, match=r"one vLLM engine at a time.*process=true"):
            start()
        assert len(play(warm, [request(0, 4)])) == 1


def test_raw_logprobs_are_taken_at_temperature_1_with_any_truncation() -> None:
    truncated = Sampling(1.0, top_p=0.7, top_k=5)
    with closing(start(temperature=1.0)) as engine:
        assert engine.logprobs_mode == "raw_logprobs"
        found = play(engine, [request(i, 16, truncated) for i in range(8)])
        greedy = play(engine, [request(0, 16, Sampling(0.0))])[0]
        other = play(engine, [request(0, 16, Sampling(0.5))])[0]
    model = load()
    for i, segment in found.items():
        expected = transformers_logprobs(model, prompt(i), segment, 1.0)  # over the full vocabulary
        assert np.abs(segment.logprobs - expected).max() < PARITY
    assert np.abs(greedy.logprobs - transformers_logprobs(model, prompt(0), greedy, 1.0)).max() < PARITY
    assert np.isnan(other.logprobs).all()  # never a number of another distribution


def test_wrong_settings_are_refused_before_anything_starts() -> None:
    for vllm, key in (
        ({"args": {"max_num_seq": 4}}, "args.max_num_seq"),
        ({"args": {"model": "x"}}, "args.model"),
        ({"sleep": True}, "sleep"),
    ):
        with refused(ErrorCode.ENGINE_SETTING, key=f"engine.vllm.{key}"):
            start(**vllm)


def test_what_vllm_refuses_is_said_in_one_line() -> None:
    with refused(ErrorCode.ENGINE_SETTING, key="engine.kind") as error:
        start(args={"kv_cache_memory_bytes": 1})
    assert "\n" not in str(error.value)
