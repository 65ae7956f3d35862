"""The embedded engine against transformers: same greedy tokens and log-probs, independent of the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from refusals import refused
from ulorl.data.countdown import problems
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.error_codes import ErrorCode
from ulorl.models.cpu.fused_decode import entries_read, row_blocks
from ulorl.models.tiny import model_path
from ulorl.rng import sample_seed
from ulorl.types import Finish, Request, Sampling, Segment

V = 60
SHAPE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # large, so that greedy outputs are not one repeated token
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SHAPE, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    ),
}
LENGTHS = (1, 40, 3, 11, 2, 25, 7)


def make(family: str = "qwen3", seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return FAMILIES[family]().eval()


def engine_of(model: PreTrainedModel, eos: Sequence[int] = (), slots: int = 3, prefill_tokens: int = 16) -> TorchEngine:
    """Few slots and a small prefill budget, so that refill, compaction and chunks happen."""
    return TorchEngine(model, eos_ids=eos, slots=slots, prefill_tokens=prefill_tokens)


def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, V, size=length).astype(np.int32) for length in LENGTHS]


def request(index: int, prompt: np.ndarray, budget: int, how: Sampling, output: np.ndarray | None = None) -> Request:
    return Request(index, prompt, budget, how, sample_seed(1, index), output=() if output is None else (output,))


def play(engine: TorchEngine, requests: Sequence[Request]) -> dict[int, Segment]:
    for one in requests:
        engine.add(one)
    ended: dict[int, Segment] = {}
    while engine.pending:
        for segment in engine.step():
            assert segment.sample_id not in ended
            ended[segment.sample_id] = segment
    return ended


def reference_logprobs(
    model: PreTrainedModel, prompt: np.ndarray, output: np.ndarray, temperature: float
) -> np.ndarray:
    """Of the output tokens, from one full forward without a cache."""
    ids = torch.from_numpy(np.concatenate([prompt, output])).long()[None]
    with torch.no_grad():
        logprobs = (model(ids).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return logprobs.gather(-1, ids[0, len(prompt) :, None])[:, 0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_alone(family: str) -> None:
    """7 prompts of other lengths and budgets through 3 slots; the longest prompt takes 3 prefill chunks."""
    model = make(family)
    budgets = [20, 5, 12, 33, 1, 20, 9]
    requests = [request(i, p, b, Sampling(0.0)) for i, (p, b) in enumerate(zip(prompts(), budgets, strict=True))]
    engine = engine_of(model)
    ended = play(engine, requests)
    different = set()
    for one in requests:
        ids = torch.from_numpy(one.tokens).long()[None]
        mask = torch.ones_like(ids)
        expected = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=one.max_new_tokens)
        segment = ended[one.sample_id]
        assert segment.tokens.tolist() == expected[0, ids.shape[1] :].tolist()
        assert segment.finish is Finish.LENGTH
        np.testing.assert_allclose(
            segment.logprobs, reference_logprobs(model, one.tokens, segment.tokens, 1.0), atol=1e-4
        )
        different |= set(segment.tokens.tolist())
    assert len(different) > 8  # the test means something
    assert engine.stats.decode_tokens == sum(budgets)
    assert engine.stats.prefill_tokens == sum(LENGTHS) - len(LENGTHS)
    assert engine.stats.decode_steps < sum(budgets) / 2  # 3 slots were kept busy


def test_the_shipped_reasoner_decodes_like_generate() -> None:
    """With its own EOS: some answer at once, some search on to the budget; more requests than slots."""
    model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    questions = [np.array(tokenizer(p.prompt).input_ids, dtype=np.int32) for p in problems(12, 3)]
    engine = engine_of(model, eos=[tokenizer.eos_token_id], slots=5)
    ended = play(engine, [request(i, q, 60, Sampling(0.0)) for i, q in enumerate(questions)])
    for index, question in enumerate(questions):
        ids = torch.from_numpy(question).long()[None]
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=60)
        assert ended[index].tokens.tolist() == expected[0, ids.shape[1] :].tolist()
        assert (ended[index].finish is Finish.EOS) == (ended[index].tokens[-1] == tokenizer.eos_token_id)
    assert {segment.finish for segment in ended.values()} == {Finish.EOS, Finish.LENGTH}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_sampled_logprobs_equal_a_full_forward(family: str, temperature: float) -> None:
    model = make(family)
    requests = [request(i, p, 30, Sampling(temperature, top_p=0.9)) for i, p in enumerate(prompts())]
    for index, segment in play(engine_of(model), requests).items():
        expected = reference_logprobs(model, requests[index].tokens, segment.tokens, temperature)
        np.testing.assert_allclose(segment.logprobs, expected, atol=1e-4)


def test_tokens_do_not_depend_on_the_batch() -> None:
    """Alone, among others with other sampling, and with as many slots as requests: the same tokens."""
    model = make()
    how = [
        Sampling(),
        Sampling(0.0),
        Sampling(0.7, top_p=0.8),
        Sampling(1.3, top_k=5),
        Sampling(),
        Sampling(),
        Sampling(),
    ]
    requests = [request(i, p, 25, how[i]) for i, p in enumerate(prompts())]
    together = play(engine_of(model), requests)
    roomy = play(engine_of(model, slots=16, prefill_tokens=1000), requests[::-1])
    for one in requests:
        alone = play(engine_of(model, slots=1), [one])[one.sample_id]
        for other in (together[one.sample_id], roomy[one.sample_id]):
            assert other.tokens.tolist() == alone.tokens.tolist()
            np.testing.assert_allclose(other.logprobs, alone.logprobs, atol=1e-5)


def test_segments_continue_as_if_never_cut() -> None:
    """30 tokens in one go equal 7 + 1 + 22 in three requests that carry the output so far."""
    model = make()
    whole = play(engine_of(model), [request(i, p, 30, Sampling()) for i, p in enumerate(prompts())])
    output = {i: np.zeros(0, np.int32) for i in range(len(LENGTHS))}
    logprobs = {i: np.zeros(0, np.float32) for i in range(len(LENGTHS))}
    engine = engine_of(model)
    for budget in (7, 1, 22):
        parts = play(engine, [request(i, p, budget, Sampling(), output[i]) for i, p in enumerate(prompts())])
        for index, part in parts.items():
            output[index] = np.concatenate([output[index], part.tokens])
            logprobs[index] = np.concatenate([logprobs[index], part.logprobs])
    for index, segment in whole.items():
        assert output[index].tolist() == segment.tokens.tolist()
        np.testing.assert_allclose(logprobs[index], segment.logprobs, atol=1e-5)


def test_outputs_longer_than_every_first_buffer() -> None:
    """200 tokens pass two growths of the keys and values (64, 128) and of the token buffers, shorter rows beside."""
    model = make()
    requests = [
        request(0, prompts()[0], 200, Sampling()),
        *(request(i, prompts()[i], 20 * i, Sampling()) for i in (2, 4)),
    ]
    for index, segment in play(engine_of(model), requests).items():
        one = next(r for r in requests if r.sample_id == index)
        assert len(segment) == one.max_new_tokens
        expected = reference_logprobs(model, one.tokens, segment.tokens, 1.0)
        np.testing.assert_allclose(segment.logprobs, expected, atol=1e-4)


def test_eos_ends_a_segment_also_on_the_last_token_of_its_budget() -> None:
    model = make()
    prompt = prompts()[3]
    free = play(engine_of(model), [request(0, prompt, 20, Sampling())])[0].tokens.tolist()
    at = next(i for i in range(4, 20) if free[i] not in free[:i])  # first appearance of this token
    eos = [free[at], V - 1 if free[at] != V - 1 else 0]
    eos = [token for token in eos if token not in free[:at]]
    for budget, length, finish in ((at, at, Finish.LENGTH), (at + 1, at + 1, Finish.EOS), (20, at + 1, Finish.EOS)):
        segment = play(engine_of(model, eos), [request(0, prompt, budget, Sampling())])[0]
        assert segment.tokens.tolist() == free[:length]
        assert segment.finish is finish


@pytest.mark.parametrize("names", ["state_dict", "named_parameters"])
def test_new_weights_are_those_of_a_fresh_engine(names: str) -> None:
    """The Qwen3 model ties its embeddings: state_dict names them twice, named_parameters once."""
    new = make(seed=5)
    requests = [request(i, p, 10, Sampling()) for i, p in enumerate(prompts())]
    expected = play(engine_of(make(seed=5)), requests)
    engine = engine_of(make(seed=0))
    before = play(engine, requests)
    weights = new.state_dict().items() if names == "state_dict" else new.named_parameters()
    engine.load_weights(iter(weights), version=3)
    after = play(engine, requests)
    assert any(before[i].tokens.tolist() != after[i].tokens.tolist() for i in before)
    for index in expected:
        assert after[index].tokens.tolist() == expected[index].tokens.tolist()
        assert after[index].logprobs.tolist() == expected[index].logprobs.tolist()
        assert (before[index].versions == 0).all()
        assert (after[index].versions == 3).all()


def test_wrong_weights_are_refused() -> None:
    model, engine = make("llama", seed=1), engine_of(make("llama"))
    weights = dict(model.named_parameters())
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=f"missing {name}"):
        engine.load_weights(((n, w) for n, w in weights.items() if n != name), 1)
    with pytest.raises(ValueError, match="unknown name 'other'"):
        engine.load_weights([("other", weights[name])], 1)
    with pytest.raises(ValueError, match=rf"{name} is \(32, 48\), the model's \(48, 32\)"):
        engine.load_weights([(name, weights[name].T)], 1)
    assert engine.version == 0
    engine.add(request(0, prompts()[1], 5, Sampling()))
    with pytest.raises(RuntimeError, match="1 requests pending"):
        engine.load_weights(weights.items(), 1)


def after_nine_steps(model: PreTrainedModel, requests: Sequence[Request]) -> TorchEngine:
    """An engine in which none of the requests has ended."""
    engine = engine_of(model)
    for one in requests:
        engine.add(one)
    for _ in range(9):
        assert engine.step() == []
    return engine


def test_abort_returns_what_was_drawn_and_leaves_a_clean_engine() -> None:
    model = make()
    requests = [request(i, p, 30, Sampling()) for i, p in enumerate(prompts())]
    whole = play(engine_of(model), requests)
    engine = after_nine_steps(model, requests)
    assert engine.pending == len(requests)
    partial = {segment.sample_id: segment for segment in engine.abort()}
    assert engine.pending == 0
    assert engine.step() == []
    assert sorted(len(segment) for segment in partial.values()) == [0, 0, 0, 0, 9, 9, 9]
    for index, segment in partial.items():
        assert segment.finish is Finish.ABORT
        assert segment.tokens.tolist() == whole[index].tokens[: len(segment)].tolist()
    again = play(engine, requests)
    assert [again[i].tokens.tolist() for i in range(7)] == [whole[i].tokens.tolist() for i in range(7)]


def test_some_requests_are_stopped_and_the_others_draw_the_same_tokens() -> None:
    """Three slots: sample 0 is in a row, 5 waits, 99 was never added. The slot of 0 is free for a waiting one."""
    model = make()
    requests = [request(i, p, 30, Sampling()) for i, p in enumerate(prompts())]
    whole = play(engine_of(model), requests)
    engine = after_nine_steps(model, requests)
    stopped = {segment.sample_id: segment for segment in engine.abort_some([0, 5, 99])}
    assert {id: (len(segment), segment.finish) for id, segment in stopped.items()} == {
        0: (9, Finish.ABORT), 5: (0, Finish.ABORT),
    }  # fmt: skip
    assert stopped[0].tokens.tolist() == whole[0].tokens[:9].tolist()
    assert engine.pending == len(requests) - 2
    before = engine.stats.decode_tokens
    engine.step()
    assert engine.stats.decode_tokens == before + 3
    rest = play(engine, [])
    assert {id: segment.tokens.tolist() for id, segment in rest.items()} == {
        id: segment.tokens.tolist() for id, segment in whole.items() if id not in (0, 5)
    }


def test_requests_that_cannot_be_served_are_refused() -> None:
    engine = TorchEngine(make(), eos_ids=(), slots=2, prefill_tokens=8, max_length=50)
    prompt = np.arange(40, dtype=np.int32)
    engine.add(request(0, prompt, 10, Sampling()))  # exactly the context
    for bad, message in (
        (request(0, prompt, 11, Sampling()), "40 tokens and a budget of 11 exceed the engine's context length of 50"),
        (request(0, prompt[:0], 5, Sampling()), "must not be empty"),
        (request(0, prompt, 0, Sampling()), "max_new_tokens=0"),
        (request(0, prompt + V, 5, Sampling()), f"0..{V - 1}, found {V}..{V + 39}"),
        (request(0, prompt, 5, Sampling(-1.0)), "temperature >= 0"),
        (request(0, prompt, 5, Sampling(1.0, top_p=0.0)), "top_p"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.add(bad)
    assert engine.pending == 1


def test_models_it_cannot_decode_exactly_are_refused() -> None:
    def refuses(model: PreTrainedModel, named: str, **settings: int) -> None:
        with refused(ErrorCode.ENGINE_MODEL) as error:
            TorchEngine(model, eos_ids=(), slots=2, prefill_tokens=8, **settings)
        assert named in str(error.value)

    window = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=32))
    refuses(window, "layer 0 is sliding_attention with a window of 32")
    TorchEngine(window, eos_ids=(), slots=2, prefill_tokens=8, max_length=32)  # within the window it is full attention
    refuses(MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=1)), "max_position_embeddings")
    refuses(
        MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=1)),
        "linear_attention",
        max_length=64,
    )
    encoder = T5ForConditionalGeneration(
        T5Config(vocab_size=V, d_model=32, d_ff=32, num_layers=1, num_heads=2, d_kv=16)
    )
    refuses(encoder, "encoder-decoder", max_length=64)
    refuses(make(), "max_length=257", max_length=257)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    refuses(LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope)), "rope_type=dynamic")


def test_a_model_whose_cached_pass_disagrees_with_its_own_forward_is_refused() -> None:
    """A model that looks at more than tokens, positions and mask: this one's output depends on the pass's width."""
    model = make()
    norm = model.model.norm.forward
    model.model.norm.forward = lambda hidden: norm(hidden) * hidden.shape[1]
    with refused(ErrorCode.ENGINE_MODEL):
        engine_of(model)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_both_attention_implementations(implementation: str) -> None:
    model = make()
    model.set_attn_implementation(implementation)
    requests = [request(i, p, 12, Sampling()) for i, p in enumerate(prompts())]
    for index, segment in play(engine_of(model), requests).items():
        expected = reference_logprobs(model, requests[index].tokens, segment.tokens, 1.0)
        np.testing.assert_allclose(segment.logprobs, expected, atol=1e-4)


def test_bfloat16_decodes_close_to_its_own_forward() -> None:
    model = make().to(torch.bfloat16)
    requests = [request(i, p, 12, Sampling()) for i, p in enumerate(prompts())]
    for index, segment in play(engine_of(model), requests).items():
        expected = reference_logprobs(model.float(), requests[index].tokens, segment.tokens, 1.0)
        assert np.abs(segment.logprobs - expected).mean() < 0.2
        model.to(torch.bfloat16)


def test_siblings_share_the_prefill_of_their_prompt() -> None:
    """8 samples of each of 2 prompts: each prompt is prefilled once, and every sample is what it is alone."""
    own = prompts()[1], prompts()[3]
    requests = [
        Request(
            i,
            own[i % 2],
            12,
            Sampling(),
            sample_seed(0, i),
        )
        for i in range(16)
    ]
    for model in (make("qwen3"), make("qwen3_moe")):  # fused and generic decoding
        together = engine_of(model, slots=16)
        found = play(together, requests)
        assert together.stats.prefill_tokens == len(own[0]) - 1 + len(own[1]) - 1
        assert len({tuple(s.tokens.tolist()) for s in found.values()}) > 8
        for request in requests:
            alone = play(engine_of(model, slots=1), [request])[request.sample_id]
            assert found[request.sample_id].tokens.tolist() == alone.tokens.tolist()
            np.testing.assert_allclose(found[request.sample_id].logprobs, alone.logprobs, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("small", [0, 2**20], ids=["packed", "plain"])
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_fused_and_generic_decoding_agree(family: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of very different lengths (several attention blocks), refilled slots, new weights in between; products by
    oneDNN (all of them) and by torch.mm."""

    def make(family: str, seed: int = 0) -> PreTrainedModel:
        model = globals()["make"](family, seed)
        for name, parameter in model.named_parameters():
            if "norm" in name:  # they begin as ones, which anything would get right
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        return model

    monkeypatch.setattr("ulorl.models.cpu.fused_decode.small_packed_product", lambda _: small)
    rng = np.random.default_rng(0)
    mixed = [rng.integers(0, V, size=int(n)).astype(np.int32) for n in rng.integers(1, 150, 90)]
    requests = [request(i, p, int(rng.integers(1, 60)), Sampling()) for i, p in enumerate(mixed)]
    model, newer = make(family), make(family, seed=3)
    fused = engine_of(model, slots=70)
    assert fused._fused is not None
    monkeypatch.setattr("ulorl.engines.torch.torch_engine.can_fuse", lambda _: False)
    generic = engine_of(make(family), slots=70)
    assert generic._fused is None
    for version in range(2):
        a, b = play(fused, requests), play(generic, requests)
        for i in a:
            same = np.flatnonzero(a[i].tokens != b[i].tokens)
            until = int(same[0]) if len(same) else len(a[i])  # a draw on the edge of two tokens may fall either way
            np.testing.assert_allclose(a[i].logprobs[:until], b[i].logprobs[:until], atol=1e-4)
        assert sum(a[i].tokens.tolist() == b[i].tokens.tolist() for i in a) >= 88
        for engine in (fused, generic):
            engine.load_weights(newer.named_parameters(), version + 1)


def test_joining_matrices_leaves_the_model_what_it_was() -> None:
    model = make("qwen2")
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = model(ids).logits
        engine_of(model)
        torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=1e-6)
    projections = model.model.layers[0].self_attn
    assert projections.k_proj.weight.data_ptr() == (
        projections.q_proj.weight.data_ptr() + projections.q_proj.weight.nbytes
    )


def test_row_blocks_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions 9 9 99 99 (10 10 100 100 entries): whole 4 x 100; split in the middle 2 x 10 + 2 x 100 saves 180. The
    other way round the same; alternating, the best split saves one short row at an end, 90."""
    for saved, positions, rows, entries in (
        (180, [9, 9, 99, 99], [slice(0, 2), slice(2, 4)], 220),
        (181, [9, 9, 99, 99], [slice(0, 4)], 400),
        (180, [99, 99, 9, 9], [slice(0, 2), slice(2, 4)], 220),
        (90, [9, 99, 9, 99], [slice(0, 1), slice(1, 4)], 310),
        (91, [9, 99, 9, 99], [slice(0, 4)], 400),
        (1, [5], [slice(0, 1)], 6),
        (1, [0, 1, 3], [slice(0, 1), slice(1, 2), slice(2, 3)], 1 + 2 + 4),
    ):
        monkeypatch.setattr("ulorl.models.cpu.fused_decode._SPLIT", saved)
        assert row_blocks(np.array(positions)) == rows
        assert entries_read(np.array(positions)) == entries


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=80))
def test_row_blocks_hold_every_row_once(positions: list[int]) -> None:
    own = np.array(positions)
    blocks = row_blocks(own)
    assert np.array_equal(np.concatenate([np.arange(len(own))[rows] for rows in blocks]), np.arange(len(own)))
    assert (own + 1).sum() <= entries_read(own) <= len(own) * (own.max() + 1)
    for rows in blocks:  # no split of a block saves enough
        part = own[rows] + 1
        for at in range(1, len(part)):
            halves = at * part[:at].max() + (len(part) - at) * part[at:].max()
            assert len(part) * part.max() - halves < 512


def test_when_rows_are_sorted_does_not_depend_on_what_was_decoded_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run has a new engine and the log-probs of the run that was not stopped, to the bit. So its rows have
    the same order at every decode step."""
    monkeypatch.setattr("ulorl.engines.torch.torch_engine.SORT_EVERY", 8)

    def sorted_at(before: int) -> list[int]:
        engine, steps = engine_of(make()), list[int]()
        play(engine, [request(0, prompts()[0], before, Sampling())])
        start = engine.stats.decode_steps
        monkeypatch.setattr(engine, "_sort", lambda: steps.append(engine.stats.decode_steps - start))
        play(engine, [request(1, prompts()[1], 20, Sampling())])
        return steps

    assert sorted_at(1) == sorted_at(13) == [0, 8, 16]


def test_rows_are_sorted_while_they_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that come and go in any order, sorted at every step: the same tokens, and fewer entries read."""
    monkeypatch.setattr("ulorl.models.cpu.fused_decode._SPLIT", 200)
    rng = np.random.default_rng(3)
    mixed = [rng.integers(0, V, size=int(n)).astype(np.int32) for n in rng.integers(1, 150, 40)]
    requests = [request(i, p, int(rng.integers(20, 60)), Sampling()) for i, p in enumerate(mixed)]
    found, read = [], []
    for every in (10**9, 1):
        monkeypatch.setattr("ulorl.engines.torch.torch_engine.SORT_EVERY", every)
        engine = engine_of(make(), slots=20)
        entries = 0
        for one in requests:
            engine.add(one)
        ended: dict[int, Segment] = {}
        while engine.pending:
            ended |= {segment.sample_id: segment for segment in engine.step()}
            if n := len(engine._requests):
                entries += entries_read(engine._rows["position"][:n])
        found.append(ended)
        read.append(entries)
    assert read[1] < 0.95 * read[0]
    for i, segment in found[0].items():
        assert segment.tokens.tolist() == found[1][i].tokens.tolist()
        np.testing.assert_allclose(segment.logprobs, found[1][i].logprobs, atol=1e-4)


def test_keys_and_values_grow_to_the_end_of_the_budget() -> None:
    """40 tokens and 30 more need 69 entries, which are there at once: capacities are a multiple of 64, plus 16. With
    200 more, 80 are there at first, then twice the 144, cut at 239."""
    capacities = []
    for budget in (30, 200):
        engine = engine_of(make(), slots=2)
        engine.add(request(0, np.arange(40, dtype=np.int32), budget, Sampling()))
        found = []
        while engine.pending:
            engine.step()
            found.append(engine._cache.capacity)
        capacities.append(sorted(set(found)))
    assert capacities == [[144], [144, 272]]


@pytest.mark.parametrize("fused", [True, False])
def test_memory_that_is_missing_for_some_layers_leaves_a_usable_engine(
    fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffers of the second layer cannot grow. Then the requests are added again, as after any fault."""
    monkeypatch.setattr("ulorl.engines.torch.torch_engine.can_fuse", lambda _: fused)
    model, again = make(), [request(i, prompts()[i], 150, Sampling()) for i in (0, 2)]
    expected, engine = play(engine_of(model), again), engine_of(model)
    assert (engine._fused is not None) == fused
    for one in again:
        engine.add(one)
    engine.step()
    assert engine._cache.capacity < 100
    honest = engine._cache.layers[1].grow
    monkeypatch.setattr(engine._cache.layers[1], "grow", no_memory)
    with pytest.raises(MemoryError):
        deque(iter(engine.step, None), maxlen=0)
    monkeypatch.setattr(engine._cache.layers[1], "grow", honest)
    engine.abort()
    for index, segment in play(engine, again).items():
        assert segment.tokens.tolist() == expected[index].tokens.tolist()
        np.testing.assert_allclose(segment.logprobs, expected[index].logprobs, atol=1e-6)


def no_memory() -> None:
    raise MemoryError


def test_the_shortest_row_takes_the_place_of_an_ended_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 15 to 1 times 10 tokens; that of 30 ends. With the longest last, a short block would get a long row."""
    monkeypatch.setattr("ulorl.models.cpu.fused_decode._SPLIT", 150)
    engine = engine_of(make(), slots=15)
    for length in range(10, 160, 10):
        engine.add(request(length, np.arange(length, dtype=np.int32) % V, 1 if length == 30 else 9, Sampling()))
    assert [segment.sample_id for segment in engine.step()] == [30]
    positions = engine._rows["position"][:14]
    assert positions.tolist() == [*range(150, 30, -10), 10, 20]
    assert entries_read(positions) < entries_read(np.array([10, 20, 150, *range(40, 150, 10)]))
