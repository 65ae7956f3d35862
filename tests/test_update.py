"""The update on a small random Qwen3: gradients do not depend on how the tokens are split, and each switch does what
its section of the paper says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from ulorl import config
from ulorl.learner.update import Learner, prepare
from ulorl.types import Finish, Group, Problem, Sample, Scored, Segment, Status

V = 31


def tiny_model(seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip


def learner(
    optim: dict[str, object] | None = None, objective: dict[str, object] | None = None, **kwargs: object
) -> Learner:
    return Learner(
        tiny_model(),
        optim=config.Optim(**{"lr": 1e-2, **(optim or {})}),
        objective=config.Objective(**(objective or {})),
        temperature=kwargs.pop("temperature", 0.85),
        max_tokens=16,
        pad_id=0,
        **kwargs,
    )


def sample(id: int, lengths: list[int], status: Status = Status.COMPLETE) -> Sample:
    """Segments of these lengths, one version each, with made-up tokens and log-probs."""
    rng = np.random.default_rng(id)
    segments = tuple(
        Segment(
            id,
            rng.integers(1, V, n).astype(np.int32),
            (-rng.random(n) * 5).astype(np.float32),
            np.full(n, version, np.int32),
            Finish.LENGTH,
        )
        for version, n in enumerate(lengths)
    )
    return Sample(id, id // 4, rng.integers(1, V, 3 + id % 3).astype(np.int32), segments, status)


def group(id: int, rewards: list[float], lengths: list[list[int]]) -> Group:
    members = [Scored(sample(4 * id + i, n), r, "") for i, (r, n) in enumerate(zip(rewards, lengths, strict=True))]
    return Group(id, Problem(str(id), "?"), tuple(members))


GROUPS = [
    group(0, [1, 0, 0, 1], [[3], [5, 2], [1], [4, 4, 4]]),
    group(1, [0, 0, 0, 1], [[2], [6], [4, 1], [7]]),
]


def weights(of: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in of.weights()}


@pytest.mark.parametrize("mask", ["off", "all", "dynamic"])
@pytest.mark.parametrize("gate", ["sample", "batch"])
def test_any_split_into_microbatches_is_one_big_batch(mask: str, gate: str) -> None:
    """The denominator is the token count of the whole update, so splitting changes float noise only. tau and sigma are
    set so that the random model has MPTs: the entropies of right samples are 3.4266, 3.4261 and 3.4271, of the batch
    3.4267, so that DMMPTs mask two of three samples with the one gate and all with the other."""
    objective = {"mpt": {"mask": mask, "gate": gate, "tau": 0.02, "sigma": 3.42685}}
    one, many = learner({"microbatch_tokens": 10_000}, objective), learner({"microbatch_tokens": 12}, objective)
    first, second = one.update(GROUPS), many.update(GROUPS)
    assert first.means == pytest.approx(second.means, rel=1e-5)
    assert first.tokens == 3 + 7 + 1 + 12 + 2 + 6 + 5 + 7
    for name, tensor in many.weights():
        torch.testing.assert_close(tensor, dict(one.weights())[name], rtol=1e-4, atol=1e-6)
    if mask != "off":
        assert first.means["mpt/masked_fraction"] > 0  # the case is not empty


def test_pois_with_one_gradient_update_has_ratio_one() -> None:
    means = learner(objective={"importance": "pois"}).update(GROUPS).means
    assert means["importance/ratio_mean"] == 1.0  # exactly: old policy and new one are the same tensor
    assert means["importance/clip_fraction"] == 0.0


def test_sais_ratio_is_against_the_recorded_log_probs() -> None:
    of = learner(objective={"importance": "sais", "mpt": {"mask": "off"}})
    experience, _ = prepare(GROUPS, of.objective, of.max_tokens)
    current, _ = of.score(experience)
    ratio = np.concatenate([np.exp(now - e.row.logprobs) for now, e in zip(current, experience, strict=True)])
    assert of.update(GROUPS).means["importance/ratio_mean"] == pytest.approx(ratio.mean(), rel=1e-5)


def test_pois_with_several_gradient_updates_starts_at_one_and_moves() -> None:
    """The old policy is that of the update's start: the first mini-batch has ratio 1, the second sees moved weights."""
    of = learner({"minibatches": 2}, {"importance": "pois", "mpt": {"mask": "off"}})
    update = of.update(GROUPS)
    assert update.steps == 2
    assert of.version == 1  # one version a step, however many gradient updates
    experience, _ = prepare(GROUPS, of.objective, of.max_tokens)
    first = sum(len(e.row.tokens) for e in experience[:4])
    second = sum(len(e.row.tokens) for e in experience[4:])

    alone = learner({"minibatches": 1}, {"importance": "pois", "mpt": {"mask": "off"}})
    start, _ = alone.score(experience)
    alone._gradient_update(experience[:4], None, _sums())
    moved, _ = alone.score(experience)
    ratios = np.concatenate([np.exp(m - s) for m, s in zip(moved[4:], start[4:], strict=True)])
    expected = (first * 1.0 + ratios.sum()) / (first + second)
    assert abs(ratios - 1).max() > 1e-3
    assert update.means["importance/ratio_mean"] == pytest.approx(expected, rel=1e-5)


def _sums() -> object:
    from ulorl.learner.update import _Sums

    return _Sums()


def test_scored_log_probs_equal_the_models_own_at_the_rollout_temperature() -> None:
    of = learner(temperature=0.7)
    experience, _ = prepare(GROUPS, of.objective, of.max_tokens)
    found, entropy = of.score(experience)
    entropies = []
    for e, logprobs in zip(experience, found, strict=True):
        ids = torch.from_numpy(np.concatenate([e.row.prompt, e.row.tokens])).long()[None]
        with torch.no_grad():
            all_logprobs = (of.model(ids).logits[0] / 0.7).log_softmax(-1)
        at = torch.arange(len(e.row.prompt) - 1, ids.shape[1] - 1)
        torch.testing.assert_close(torch.from_numpy(logprobs), all_logprobs[at, ids[0, at + 1]], rtol=1e-4, atol=1e-5)
        entropies.append(-(all_logprobs[at].exp() * all_logprobs[at]).sum(-1))
    assert entropy == pytest.approx(torch.cat(entropies).mean().item(), rel=1e-5)


def test_masked_tokens_are_left_out_and_stay_in_the_denominator() -> None:
    """mask=all with tau low enough that every token of a right sample is an MPT: the gradient is that of the wrong
    samples alone, still divided by all tokens."""
    everything = learner(objective={"mpt": {"mask": "all", "tau": 1e-30}})
    means = everything.update(GROUPS).means
    right = 3 + 12 + 7  # tokens of the samples with reward 1
    assert means["mpt/fraction"] == means["mpt/masked_fraction"] == pytest.approx(right / 43)

    by_hand = learner()
    experience, _ = prepare(GROUPS, by_hand.objective, by_hand.max_tokens)
    by_hand._adamw.zero_grad()
    loss = torch.zeros(())
    for e in experience:
        if e.correct:
            continue
        ids = torch.from_numpy(np.concatenate([e.row.prompt, e.row.tokens])).long()[None]
        logprobs = (by_hand.model(ids).logits[0] / 0.85).log_softmax(-1)
        at = torch.arange(len(e.row.prompt) - 1, ids.shape[1] - 1)
        loss = loss - e.advantage * logprobs[at, ids[0, at + 1]].sum()  # the gradient of r * A at r = 1
    (loss / 43).backward()
    norm = torch.nn.utils.clip_grad_norm_(by_hand.model.parameters(), 1e9)
    assert means["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_dynamic_sampling_leaves_out_groups_without_contrast() -> None:
    same = [group(2, [1, 1, 1, 1], [[2]] * 4), group(3, [0, 0, 0, 0], [[2]] * 4)]
    update = learner().update([*same, GROUPS[0]])
    assert (update.groups_dropped, update.samples) == (2, 4)
    of = learner()
    before = weights(of)
    nothing = of.update(same)
    assert (nothing.steps, nothing.groups_dropped, nothing.means) == (0, 2, {})
    assert of.version == 0
    assert all(torch.equal(before[n], t) for n, t in of.weights())


def test_advantages_and_overlong_switches_by_hand() -> None:
    """Rewards 1 0 0 0: mean 1/4, deviations 3/4 -1/4 -1/4 -1/4, variance (9+1+1+1)/16/3 = 1/4, std 1/2: advantages
    1.5 and -0.5. Lengths 4, 12, 14, 16 of max 16, buffer 4: punishment 0, 0, -(14-12)/4 = -0.5, -1."""
    lengths = [[4], [12], [14], [16]]
    status = [Status.COMPLETE] * 3 + [Status.TRUNCATED]
    members = tuple(
        Scored(sample(i, n, s), float(i == 0), "") for i, (n, s) in enumerate(zip(lengths, status, strict=True))
    )
    groups = [Group(0, Problem("0", "?"), members)]

    rows, _ = prepare(groups, config.Objective(), 16)
    assert [e.advantage for e in rows] == pytest.approx([1.5, -0.5, -0.5, -0.5])
    assert [e.correct for e in rows] == [True, False, False, False]

    rows, _ = prepare(groups, config.Objective(overlong="filter"), 16)
    assert [e.advantage for e in rows] == pytest.approx([1.5, -0.5, -0.5])  # its 0 still counts in the group's mean

    # soft: rewards 1, 0, -0.5, -1: mean -0.125; squares 1.265625 + 0.015625 + 0.140625 + 0.765625 = 2.1875;
    # std sqrt(2.1875 / 3) = 0.853913; advantages 1.125, 0.125, -0.375, -0.875 over it
    rows, _ = prepare(groups, config.Objective(overlong="soft", overlong_buffer=4), 16)
    assert [e.advantage for e in rows] == pytest.approx([1.317465, 0.146385, -0.439155, -1.024695], rel=1e-5)


def test_an_update_raises_the_log_probs_of_right_outputs() -> None:
    of = learner({"lr": 1e-3})
    experience, _ = prepare(GROUPS, of.objective, of.max_tokens)
    before, _ = of.score(experience)
    of.update(GROUPS)
    after, _ = of.score(experience)
    gains = [(a - b).sum() * e.advantage for a, b, e in zip(after, before, experience, strict=True)]
    assert sum(gains) > 0


def test_warm_up_then_constant() -> None:
    of = learner({"lr": 1.0e-3, "warmup_steps": 4})
    rates = [of.update(GROUPS).means["train/lr"] for _ in range(6)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    of = learner()
    with torch.no_grad():
        of.model.model.norm.weight[0] = float("nan")
    before = weights(of)
    with pytest.raises(FloatingPointError, match="weights were not changed"):
        of.update(GROUPS)
    assert all(torch.equal(before[n], t) or t.isnan().any() for n, t in of.weights())
    assert (of.updates, of.version) == (0, 0)


def test_optimizer_state_survives_a_file(tmp_path) -> None:
    """Two updates in a row equal one update, a save, a load into new objects, and one more."""
    straight = learner()
    straight.update(GROUPS)
    straight.save_optimizer(tmp_path / "optimizer.safetensors")
    saved = weights(straight)

    restored = learner(version=straight.version)
    restored.model.load_state_dict(saved, strict=False)
    restored.load_optimizer(tmp_path / "optimizer.safetensors")
    assert straight.update(GROUPS).means == restored.update(GROUPS).means
    assert all(torch.equal(t, dict(restored.weights())[n]) for n, t in straight.weights())
    assert (straight.version, straight.updates) == (restored.version, restored.updates) == (2, 2)


def test_recomputed_activations_give_the_same_gradients() -> None:
    """And the layers do run a second time, in the backward pass."""
    weights, calls = {}, {}
    for recompute in (False, True):
        trained = learner({"recompute": recompute})
        seen: list[int] = []
        trained.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        trained.update([group(0, [1.0, 0.0, 0.0, 1.0], [[3], [4], [2], [5]])])
        weights[recompute], calls[recompute] = dict(trained.weights()), len(seen)
    assert calls == {False: 1, True: 2}
    for name, weight in weights[False].items():
        torch.testing.assert_close(weight, weights[True][name], rtol=0, atol=1e-7)
