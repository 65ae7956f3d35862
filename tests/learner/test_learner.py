"""The update on a small random Qwen3: gradients do not depend on how the tokens are split, and each switch does what
its section of the paper says."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import current_thread

import numpy as np
import pytest
import torch

from tiny_learner import GROUPS, MODELS, gradient, group, learner, sample, weights
from ulorl.config.training_config import ObjectiveConfig
from ulorl.learner.age_names import AGES
from ulorl.learner.experience import minibatches, prepare
from ulorl.learner.logprobs import token_logprobs
from ulorl.learner.policy_learner import PolicyLearner, _use_device
from ulorl.learner.update_result import Skipped, UpdateSums
from ulorl.learner.update_start import UpdateStart
from ulorl.models.head import Head
from ulorl.types import Group, Problem, Scored, Status


@pytest.mark.parametrize("mask", ["off", "all", "dynamic"])
@pytest.mark.parametrize("gate", ["sample", "batch"])
def test_any_split_into_microbatches_is_one_big_batch(mask: str, gate: str) -> None:
    """The denominator is the token count of the whole update, so splitting changes float noise only. tau and sigma are
    set so that the random model has MPTs: the entropies of right samples are 3.4266, 3.4261 and 3.4271, of the batch
    3.4267, so that DMMPTs mask two of three samples with the one gate and all with the other. AdamW's first step is
    lr g / (|g| + eps), with lr = 1e-2: eps = 1e-3 makes of float noise of 1e-9 in a gradient, as with AVX-512, no more
    than 1e-8 of its weight (1e-8, the default, would make 1e-3), and shows a gradient of another size, which the
    default hides."""
    objective = {"mpt": {"mask": mask, "gate": gate, "tau": 0.02, "sigma": 3.42685}}
    one = learner({"microbatch_tokens": 10_000, "layout": "packed", "eps": 1e-3}, objective)
    many = learner({"microbatch_tokens": 12, "eps": 1e-3}, objective)
    first, second = one.update(GROUPS), many.update(GROUPS)
    assert first.means == pytest.approx(second.means, rel=1e-5)
    assert first.tokens == 3 + 7 + 1 + 12 + 2 + 6 + 5 + 7
    for name, tensor in many.publish().tensors:
        torch.testing.assert_close(tensor, dict(one.publish().tensors)[name], rtol=1e-4, atol=1e-7)
    if mask != "off":
        assert first.means["mpt/masked_fraction"] > 0  # the case is not empty


def test_pois_with_one_gradient_update_has_ratio_one() -> None:
    means = learner(objective={"importance": "pois"}).update(GROUPS).means
    assert means["importance/ratio_mean"] == 1.0  # exactly: old policy and new one are the same tensor
    assert means["importance/clip_fraction"] == 0.0


def test_sais_ratio_is_against_the_recorded_log_probs() -> None:
    of = learner(objective={"importance": "sais", "mpt": {"mask": "off"}})
    experience, _ = prepare(GROUPS, of.spec.objective, of.spec.max_tokens)
    current, _ = of.score(experience)
    ratio = np.concatenate([np.exp(now - e.row.logprobs) for now, e in zip(current, experience, strict=True)])
    assert of.update(GROUPS).means["importance/ratio_mean"] == pytest.approx(ratio.mean(), rel=1e-5)


def test_pois_with_several_gradient_updates_starts_at_one_and_moves() -> None:
    """The old policy is that of the update's start: the first mini-batch has ratio 1, the second sees moved weights."""
    of = learner({"minibatches": 2}, {"importance": "pois", "mpt": {"mask": "off"}})
    update = of.update(GROUPS)
    assert update.steps == 2
    assert of.version == 1  # one version a step, however many gradient updates
    experience, _ = prepare(GROUPS, of.spec.objective, of.spec.max_tokens)
    parts = [[experience[i] for i in part] for part in minibatches(range(8), 2, seed=0)]
    first, second = (sum(len(e.row.tokens) for e in part) for part in parts)

    alone = learner({"minibatches": 1}, {"importance": "pois", "mpt": {"mask": "off"}})
    start, _ = alone.score(parts[1])
    alone._gradient(parts[0], UpdateStart(), UpdateSums())
    alone.optimizer.step()
    moved, _ = alone.score(parts[1])
    ratios = np.concatenate([np.exp(m - s) for m, s in zip(moved, start, strict=True)])
    expected = (first * 1.0 + ratios.sum()) / (first + second)
    assert abs(ratios - 1).max() > 1e-3
    assert update.means["importance/ratio_mean"] == pytest.approx(expected, rel=1e-5)


def test_mini_batches_are_of_one_size_and_hold_every_sample_once() -> None:
    for n, number in ((8, 2), (10, 4), (3, 5), (400, 3)):
        parts = minibatches(range(100, 100 + n), number, seed=1)
        assert sorted(np.concatenate(parts).tolist()) == list(range(n))
        assert len(parts) == min(n, number)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [part.tolist() for part in minibatches([7, 3, 5], 1, seed=1)] == [[0, 1, 2]]


def test_older_samples_do_not_gather_in_the_first_mini_batch() -> None:
    """400 samples in the order of their ids, older before newer: the mean index of a mini-batch of 100 is 199.5 with a
    standard error of 10 (400 / sqrt(12 * 100), 3/4 of the samples not being in it). Cut in order it would be 49.5."""
    parts = minibatches(range(400), 4, seed=0)
    assert [part.mean() for part in parts] == pytest.approx([199.5] * 4, abs=40)


def test_the_cut_into_mini_batches_is_of_the_seed_and_the_sample_ids() -> None:
    """Not of the version, or of what else is there: two samples keep their order in any batch."""
    cut = [part.tolist() for part in minibatches(range(16), 2, seed=0)]
    assert cut == [part.tolist() for part in minibatches(range(16), 2, seed=0)]
    assert cut != [part.tolist() for part in minibatches(range(16), 2, seed=1)]
    assert cut != [part.tolist() for part in minibatches(range(16, 32), 2, seed=0)]

    def ids(of: PolicyLearner) -> list[tuple[int, ...]]:
        seen: list[tuple[int, ...]] = []
        honest = of._gradient
        of._gradient = lambda e, *rest: (seen.append(tuple(x.sample_id for x in e)), honest(e, *rest))[1]  # type: ignore[method-assign]
        of.update(GROUPS)
        return seen

    assert ids(learner({"minibatches": 1})) == [tuple(range(8))]
    assert sorted(sum(ids(learner({"minibatches": 2}, seed=5)), ())) == list(range(8))
    assert ids(learner({"minibatches": 2}, seed=5)) != ids(learner({"minibatches": 2}, seed=6))


@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("below", [True, False])
def test_the_batch_gate_is_the_mean_entropy_of_the_whole_update(number: int, below: bool) -> None:
    """A sigma between the update's mean entropy and that of one mini-batch: all of them mask, or none does."""
    scored = learner()
    experience, _ = prepare(GROUPS, scored.spec.objective, scored.spec.max_tokens)
    _, mean = scored.score(experience)
    own = [scored.score([experience[i] for i in part])[1] for part in minibatches(range(8), number, seed=0)]
    sigma = mean + (1e-6 if below else -1e-6)
    assert number == 1 or min(own) < sigma < max(own)
    means = (
        learner(
            {"minibatches": number, "lr": 1e-6},
            {"mpt": {"mask": "dynamic", "gate": "batch", "tau": 0.02, "sigma": sigma}},
        )
        .update(GROUPS)
        .means
    )
    assert means["mpt/fraction"] > 0
    assert means["mpt/masked_fraction"] == (means["mpt/fraction"] if below else 0)


def test_staleness_is_that_of_the_trained_tokens() -> None:
    """Segments have versions 0, 1, 2, and the update starts from 3. Of group 0, 3 + 5 + 1 + 4 tokens are 3 versions
    old, 2 + 4 are 2, 4 are 1: (39 + 12 + 4) / 23. From version 9 they are 9, 8 and 7 versions old. A group that
    dynamic sampling drops, one that is not scored and a truncated sample that is left out do not count."""
    dropped = group(1, [1, 1, 1, 1], [[20], [20], [20], [20]])
    unscored = group(2, [1, 0, 0, None], [[9], [9], [9], [9]])  # type: ignore[list-item]
    for groups in ([GROUPS[0]], [GROUPS[0], dropped, unscored]):
        means = learner(version=3).update(groups).means
        assert means["rollout/staleness_mean"] == pytest.approx(55 / 23)
        assert [means[age] for age in AGES] == pytest.approx([0, 4 / 23, 6 / 23, 13 / 23, 0])
    assert learner(version=9).update([GROUPS[0]]).means[AGES[-1]] == 1
    *others, last = GROUPS[0].members
    cut = Scored(replace(last.sample, status=Status.TRUNCATED), last.reward, "")
    found = learner(objective={"overlong": "filter"}, version=3).update([replace(GROUPS[0], members=(*others, cut))])
    assert found.means["rollout/staleness_mean"] == pytest.approx((9 * 3 + 2 * 2) / 11)


def test_scored_log_probs_equal_the_models_own_at_the_rollout_temperature() -> None:
    of = learner(temperature=0.7)
    experience, _ = prepare(GROUPS, of.spec.objective, of.spec.max_tokens)
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
    experience, _ = prepare(GROUPS, by_hand.spec.objective, by_hand.spec.max_tokens)
    by_hand.model.zero_grad()
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
    assert all(torch.equal(before[n], t) for n, t in of.publish().tensors)


def test_advantages_and_overlong_switches_by_hand() -> None:
    """Rewards 1 0 0 0: mean 1/4, deviations 3/4 -1/4 -1/4 -1/4, variance (9+1+1+1)/16/3 = 1/4, std 1/2: advantages
    1.5 and -0.5. Lengths 4, 12, 14, 16 of max 16, buffer 4: punishment 0, 0, -(14-12)/4 = -0.5, -1."""
    lengths = [[4], [12], [14], [16]]
    status = [Status.COMPLETE] * 3 + [Status.TRUNCATED]
    members = tuple(
        Scored(sample(i, n, s), float(i == 0), "") for i, (n, s) in enumerate(zip(lengths, status, strict=True))
    )
    groups = [Group(0, Problem("0", "?"), members)]

    rows, _ = prepare(groups, ObjectiveConfig(), 16)
    assert [e.advantage for e in rows] == pytest.approx([1.5, -0.5, -0.5, -0.5])
    assert [e.correct for e in rows] == [True, False, False, False]

    rows, _ = prepare(groups, ObjectiveConfig(overlong="filter"), 16)
    assert [e.advantage for e in rows] == pytest.approx([1.5, -0.5, -0.5])  # its 0 still counts in the group's mean

    # soft: rewards 1, 0, -0.5, -1: mean -0.125; squares 1.265625 + 0.015625 + 0.140625 + 0.765625 = 2.1875;
    # std sqrt(2.1875 / 3) = 0.853913; advantages 1.125, 0.125, -0.375, -0.875 over it
    rows, _ = prepare(groups, ObjectiveConfig(overlong="soft", overlong_buffer=4), 16)
    assert [e.advantage for e in rows] == pytest.approx([1.317465, 0.146385, -0.439155, -1.024695], rel=1e-5)


def test_an_update_raises_the_log_probs_of_right_outputs() -> None:
    of = learner({"lr": 1e-3})
    experience, _ = prepare(GROUPS, of.spec.objective, of.spec.max_tokens)
    before, _ = of.score(experience)
    of.update(GROUPS)
    after, _ = of.score(experience)
    gains = [(a - b).sum() * e.advantage for a, b, e in zip(after, before, experience, strict=True)]
    assert sum(gains) > 0


def test_warm_up_then_constant() -> None:
    of = learner({"lr": 1.0e-3, "warmup_steps": 4})
    rates = [of.update(GROUPS).means["train/lr"] for _ in range(6)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


def poisoned(of: PolicyLearner, monkeypatch: pytest.MonkeyPatch, *, when: Callable[[int], bool], into: str) -> None:
    """Put an infinity into the loss, or into the gradient alone, of the mini-batches (counted from 0) that `when`
    names. Needs one micro-batch a mini-batch, so packed ones."""
    honest, calls = of._loss_sum, itertools.count()

    def loss_sum(*arguments: object) -> torch.Tensor:
        found = honest(*arguments)
        if when(next(calls)):
            if into == "gradient":
                found.register_hook(lambda grad: grad * float("inf"))
            else:
                found = found * float("inf")
        return found

    monkeypatch.setattr(of, "_loss_sum", loss_sum)


@pytest.mark.parametrize("into", ["loss", "gradient"])
def test_what_is_not_finite_is_skipped_and_leaves_no_trace(into: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of four mini-batches is skipped: weights, moments, count of updates and means are those of training
    on the other three."""
    optim = {"minibatches": 4, "warmup_steps": 5, "layout": "packed"}
    of, others = learner(optim), learner(optim)
    poisoned(of, monkeypatch, when=lambda i: i == 1, into=into)
    update = of.update(GROUPS)
    left_out = tuple(minibatches(range(8), 4, seed=0)[1].tolist())
    lengths = [len(member.sample) for group in GROUPS for member in group.members]
    assert (update.steps, update.samples, update.tokens) == (3, 6, 43 - sum(lengths[i] for i in left_out))
    assert (of.optimizer.updates, of.version, of.skipped_in_row) == (3, 1, 0)
    (skipped,) = update.skipped
    assert skipped.sample_ids == left_out
    assert re.fullmatch(r"the (loss is -?inf|gradient's norm is (inf|nan)), of samples \d(-|, )\d", str(skipped))

    honest = others._gradient
    calls = itertools.count()
    monkeypatch.setattr(others, "_gradient", lambda *a: Skipped("", left_out) if next(calls) == 1 else honest(*a))
    assert others.update(GROUPS).means == update.means
    for name, tensor in others.publish().tensors:
        assert torch.equal(tensor, dict(of.publish().tensors)[name])
    for name, p in of.model.named_parameters():
        moments, expected = of.optimizer._adamw.state[p], others.optimizer._adamw.state[dict(others._named)[name]]
        assert all(torch.equal(moments[slot], expected[slot]) for slot in ("exp_avg", "exp_avg_sq", "step"))


def test_when_every_mini_batch_is_skipped_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    of = learner({"minibatches": 2, "max_skipped": 5, "layout": "packed"})
    poisoned(of, monkeypatch, when=lambda i: i < 2, into="gradient")
    before = weights(of)
    nothing = of.update(GROUPS)
    assert (nothing.steps, nothing.samples, nothing.tokens, nothing.means) == (0, 0, 0, {})
    assert [s.sample_ids for s in nothing.skipped] == [tuple(part) for part in minibatches(range(8), 2, seed=0)]
    assert (of.version, of.optimizer.updates, of.skipped_in_row) == (0, 0, 2)
    assert all(torch.equal(before[n], t) for n, t in of.publish().tensors)
    assert not of.optimizer._adamw.state
    assert of.update(GROUPS).steps == 2  # one that is finite ends the row
    assert of.skipped_in_row == 0


def test_no_mini_batch_is_tried_after_max_skipped_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    of = learner({"minibatches": 4, "max_skipped": 2, "layout": "packed"})
    poisoned(of, monkeypatch, when=lambda i: i != 0, into="loss")
    update = of.update(GROUPS)
    assert (update.steps, len(update.skipped), of.skipped_in_row) == (1, 2, 2)


def test_a_loss_that_is_not_finite_names_the_micro_batch() -> None:
    """A recorded log-prob of minus infinity makes the ratio of SAIS infinite; only its micro-batch is named."""
    broken = group(0, [0, 0, 0, 1], [[3], [5, 2], [1], [4, 4, 4]])
    broken.members[1].sample.segments[1].logprobs[0] = -np.inf
    update = learner({"microbatch_tokens": 10}, {"importance": "sais"}).update([broken])
    (skipped,) = update.skipped
    assert str(skipped) == "the loss is inf, of samples 1"


def test_ids_are_written_as_ranges() -> None:
    assert str(Skipped("the loss is nan", (9, 3, 4, 5, 7))) == "the loss is nan, of samples 3-5, 7, 9"


def test_optimizer_state_survives_a_file(tmp_path) -> None:
    """Two updates in a row equal one update, a save, a load into new objects, and one more."""
    straight = learner()
    straight.update(GROUPS)
    straight.save(tmp_path)
    saved = weights(straight)

    restored = learner(version=straight.version)
    restored.model.load_state_dict(saved, strict=False)
    restored.load(tmp_path)
    assert straight.update(GROUPS).means == restored.update(GROUPS).means
    assert all(torch.equal(t, dict(restored.publish().tensors)[n]) for n, t in straight.publish().tensors)
    assert (straight.version, straight.optimizer.updates) == (restored.version, restored.optimizer.updates) == (2, 2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("budget", [10_000, 20, 12])  # 12: the longest sample, of 17 tokens, is alone in both layouts
def test_packed_samples_give_the_loss_and_gradient_of_padded_ones(model: str, attention: str, budget: int) -> None:
    objective = {"importance": "sais", "mpt": {"mask": "off"}}
    found = []
    for layout in ("padded", "packed"):
        of = learner(
            {"layout": layout, "microbatch_tokens": budget, "grad_clip": 1e9}, objective, model=model, temperature=1.0
        )
        of.model.set_attn_implementation(attention)
        found.append((gradient(of), of.score(prepare(GROUPS, of.spec.objective, 16)[0])))
    (padded, (scored, entropy)), (packed, (scored_packed, entropy_packed)) = found
    assert packed[0] == pytest.approx(padded[0], rel=1e-5)
    for name, expected in padded[1].items():
        torch.testing.assert_close(packed[1][name], expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for ours, theirs in zip(scored_packed, scored, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert entropy_packed == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recompute", [False, True])
def test_autocast_rounds_the_products_and_nothing_that_is_kept(model: str, recompute: bool) -> None:
    """Gradients point where the float32 ones do; weights, gradients and moments are float32; the layers and the head
    do get bfloat16."""
    objective = {"importance": "sais", "mpt": {"mask": "off"}}
    exact, exact_grad = gradient(learner({"grad_clip": 1e9}, objective, model=model))
    of = learner({"grad_clip": 1e9, "autocast": "bfloat16", "recompute": recompute}, objective, model=model)
    seen = []
    of.model.model.layers[1].self_attn.q_proj.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    loss, grad = gradient(of)
    assert set(seen) == {torch.bfloat16}
    assert loss == pytest.approx(exact, rel=1e-2)
    assert loss != exact  # it was rounded
    flat, exact_flat = (torch.cat([g[name].flatten() for name in g]) for g in (grad, exact_grad))
    assert float(torch.cosine_similarity(flat, exact_flat, dim=0)) > 0.999
    of.update(GROUPS)
    for p in of.model.parameters():
        assert p.dtype == torch.float32
        assert {v.dtype for v in of.optimizer._adamw.state[p].values()} == {torch.float32}
    assert all(g.dtype == torch.float32 for g in grad.values())


def test_the_head_multiplies_bfloat16_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU then multiplies bfloat16 into float32 logits (learner/logprobs.py); off, it is float32 throughout."""
    seen = []

    def watched(
        hidden: torch.Tensor, head: Head, *rest: object, **options: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((hidden.dtype, head.weight_VH.dtype))
        return token_logprobs(hidden, head, *rest, **options)

    monkeypatch.setattr("ulorl.learner.policy.token_logprobs", watched)
    learner({"autocast": "bfloat16"}).update(GROUPS)
    learner().update(GROUPS)
    assert list(dict.fromkeys(seen)) == [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)]


def test_recomputed_activations_give_the_same_gradients() -> None:
    """And the layers do run a second time, in the backward pass."""
    weights, calls = {}, {}
    for recompute in (False, True):
        trained = learner({"recompute": recompute})
        seen: list[int] = []
        trained.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        trained.update([group(0, [1.0, 0.0, 0.0, 1.0], [[3], [4], [2], [5]])])
        weights[recompute], calls[recompute] = dict(trained.publish().tensors), len(seen)
    assert calls == {False: 1, True: 2}
    for name, weight in weights[False].items():
        torch.testing.assert_close(weight, weights[True][name], rtol=0, atol=1e-7)


def test_threads_of_the_learner_have_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new thread has GPU 0: writing a checkpoint there would open a CUDA context on the GPU of another rank."""
    chosen: list[tuple[torch.device, str]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append((device, current_thread().name)))
    with ThreadPoolExecutor(1, "writer", initializer=_use_device, initargs=(torch.device("cuda", 3),)) as threads:
        threads.submit(int).result()
    assert chosen == [(torch.device("cuda", 3), "writer_0")]
    trained = learner()
    assert trained._threads._initializer is _use_device
    assert trained._threads._initargs == (torch.device("cpu"),)
    assert trained.begin(GROUPS).result().steps == 1  # a CPU needs nothing
    assert len(chosen) == 1
