"""Every entry of the objective menu against an independent dense computation in float64, and against itself on other
splits of the tokens.

The dense computation takes one sample after another, with its whole [T, V] log-softmax, and writes each formula of
docs/objective.md out with autograd. It shares no code with the objective.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tiny_learner import GROUPS, learner, weights
from ulorl.cancellation import NEVER
from ulorl.learner.experience import Experience, minibatches, prepare
from ulorl.learner.policy_learner import PolicyLearner
from ulorl.learner.update_result import Skipped, UpdateSums
from ulorl.learner.update_start import UpdateStart

TEMPERATURE = 0.85
SAIS, POIS, DECOUPLED = {"importance": "sais"}, {"importance": "pois"}, {"importance": "decoupled"}
MPT = {"mpt": {"mask": "dynamic", "tau": 0.03, "sigma": 2.5}}  # of three right samples, two have an entropy below
NO_MPT = {"mpt": {"mask": "off"}}
NARROW = {"clip_low": 0.05, "clip_high": 0.1}  # geometric means of ratios are from .8 to 1.2


def entropy(**settings: Any) -> dict[str, Any]:
    return {"entropy": settings}


MENU: dict[str, dict[str, Any]] = {
    "ppo": {**SAIS, **NO_MPT},
    "ppo, DMMPTs": {**SAIS, **MPT},
    "clip-higher": {**SAIS, **NO_MPT, "clip_high": 0.6},
    "cispo": {**SAIS, **NO_MPT, "loss": "cispo", "clip_low": 1.0},
    "cispo, DMMPTs": {**SAIS, **MPT, "loss": "cispo"},
    "gspo": {**SAIS, **NO_MPT, **NARROW, "loss": "gspo"},
    "gspo, DMMPTs": {**SAIS, **MPT, **NARROW, "loss": "gspo"},
    "gspo, pois": {**POIS, **MPT, "loss": "gspo"},
    "truncated weights": {**POIS, **NO_MPT, "tis_cap": 1.2},
    "token mask": {**POIS, **MPT, "engine_mask": {"level": "token", "low": 0.6, "high": 1.6}},
    "icepop": {**POIS, **NO_MPT, "tis_cap": 1.6, "engine_mask": {"level": "token", "low": 0.6, "high": 1.6}},
    "sequence mask": {**POIS, **NO_MPT, "engine_mask": {"level": "sequence", "low": 0.5, "high": 2.0}},
    "mean mask": {**POIS, **NO_MPT, "loss": "gspo", "engine_mask": {"level": "sequence_mean", "low": 0.9, "high": 1.1}},
    "decoupled": {**DECOUPLED, **MPT},
    "decoupled, corrected": {
        **DECOUPLED,
        **NO_MPT,
        "tis_cap": 2.0,
        "engine_mask": {"level": "sequence_mean", "low": 0.8},
    },
    "decoupled, minpro": {**DECOUPLED, **NO_MPT, "min_prefix": True},
    "minpro": {**SAIS, **NO_MPT, "min_prefix": True},
    "minpro, cispo": {**SAIS, **NO_MPT, "min_prefix": True, "loss": "cispo"},
    "clip-cov": {**SAIS, **NO_MPT, **entropy(kind="clip_cov", share=1.0, low=0.6, high=2.0)},
    "kl-cov": {**SAIS, **MPT, **entropy(kind="kl_cov", share=0.3, coefficient=0.7)},
    "kl-cov, gspo": {**SAIS, **NO_MPT, **NARROW, "loss": "gspo", **entropy(kind="kl_cov", share=0.3)},
    "top entropy": {**SAIS, **MPT, **entropy(kind="top_entropy", share=0.2)},
    "bonus": {**POIS, **NO_MPT, **entropy(kind="bonus", coefficient=0.05, target=9.0)},
    "bonus, gspo": {**SAIS, **MPT, **NARROW, "loss": "gspo", **entropy(kind="bonus", coefficient=0.05, target=9.0)},
}


def sharp(optim: dict[str, object] | None = None, objective: dict[str, Any] | None = None) -> PolicyLearner:
    """A learner in float64 whose probabilities differ: entropies of samples from 2 to 3 nats."""
    of = learner({"grad_clip": 1e9, **(optim or {})}, objective, temperature=TEMPERATURE, cpu_kernels=False)
    of.model.double()
    with torch.no_grad():
        of.model.get_input_embeddings().weight.mul_(9)
    return of


def experience_of(of: PolicyLearner) -> list[Experience]:
    """The samples of GROUPS. Their recorded log-probs, of the engine and of the learner, are near those of the learner
    that trains: ratios from e^-1 to e."""
    experience = prepare(GROUPS, of.spec.objective, of.spec.max_tokens)[0]
    found = []
    for e, now in zip(experience, of.score(experience)[0], strict=True):
        engine, learned = np.random.default_rng(e.sample_id).normal(0, 0.5, (2, len(now)))
        row = replace(
            e.row,
            logprobs=(now + engine).astype(np.float32),
            learner_logprobs=(now + learned).astype(np.float32),
        )
        found.append(replace(e, row=row))
    return found


# The dense computation


def dense_scores(of: PolicyLearner, experience: list[Experience]) -> list[tuple[Tensor, Tensor]]:
    """Log-probs and entropies of each sample, with gradient, from whole log-softmaxes."""
    found = []
    for e in experience:
        ids = torch.tensor(np.concatenate([e.row.prompt, e.row.tokens])[None].astype(np.int64))
        logits_TV = of.model(ids).logits[0, len(e.row.prompt) - 1 : -1] / TEMPERATURE
        logprobs_TV = logits_TV.double().log_softmax(-1)
        chosen_T = torch.stack([row[token] for row, token in zip(logprobs_TV, e.row.tokens.tolist(), strict=True)])
        found.append((chosen_T, -(logprobs_TV.exp() * logprobs_TV).sum(-1)))
    return found


def chosen_tokens(control: Any, scores: list[tuple[Tensor, Tensor]], experience: list[Experience]) -> list[list[bool]]:
    """Which tokens the entropy control chooses, from plain Python numbers over all samples."""
    logprobs = [lp.tolist() for lp, _ in scores]
    flat, total = [x for row in logprobs for x in row], sum(map(len, logprobs))
    mean_lp = sum(flat) / total
    mean_a = sum(e.advantage * len(row) for e, row in zip(experience, logprobs, strict=True)) / total
    cov = [[(x - mean_lp) * (e.advantage - mean_a) for x in row] for e, row in zip(experience, logprobs, strict=True)]
    ranked = sorted((x for row in cov for x in row), reverse=True)
    if control.kind == "clip_cov":  # share 1: all candidates
        return [[control.low < x < control.high for x in row] for row in cov]
    if control.kind == "kl_cov":
        least = ranked[max(int(control.share * total), 1) - 1]
        return [[x >= least for x in row] for row in cov]
    entropies = sorted((h for _, hs in scores for h in hs.tolist()), reverse=True)
    least = entropies[int(np.ceil(control.share * total)) - 1]
    return [[h >= least for h in hs.tolist()] for _, hs in scores]


def dense_objective(of: PolicyLearner, experience: list[Experience]) -> Tensor:
    """The objective to minimise, of all samples as one mini-batch, token by token."""
    o = of.spec.objective
    scores = dense_scores(of, experience)
    tokens, samples = sum(len(lp) for lp, _ in scores), len(scores)
    chooses = o.entropy.kind in ("clip_cov", "kl_cov", "top_entropy")
    chosen = chosen_tokens(o.entropy, scores, experience) if chooses else [[False] * len(lp) for lp, _ in scores]
    loss = torch.zeros((), dtype=torch.float64)
    for e, (lp, h), choice in zip(experience, scores, chosen, strict=True):
        recorded = torch.from_numpy(e.row.logprobs).double()
        old = lp.detach() if o.importance == "pois" else recorded
        if o.importance == "decoupled":
            assert e.row.learner_logprobs is not None
            old = torch.from_numpy(e.row.learner_logprobs).double()
        engine_ratio = (old - recorded).exp()
        kept = [True] * len(lp)
        low, high = o.engine_mask.low, o.engine_mask.high
        for t in range(len(lp)):
            compared = {
                "off": (low + high) / 2, "token": float(engine_ratio[t]), "sequence": float(engine_ratio.prod()),
                "sequence_mean": float(engine_ratio.prod() ** (1 / len(lp))),
            }[o.engine_mask.level]  # fmt: skip
            mpt = e.correct and lp[t].item() >= np.log(o.mpt.tau) and h.mean().item() < o.mpt.sigma
            kept[t] = low <= compared <= high and not (o.mpt.mask == "dynamic" and mpt)
            if o.entropy.kind == "clip_cov":
                kept[t] &= not choice[t]
            if o.entropy.kind == "top_entropy":
                kept[t] &= choice[t]
        s = (lp - old).mean().exp()
        for t in (t for t in range(len(lp)) if kept[t]):
            r = (lp[t] - old[t]).exp()
            if o.min_prefix and t:
                r = r * min((lp[j] - old[j]).exp().item() for j in range(t))
            a = e.advantage * (min(float(engine_ratio[t]), o.tis_cap) if o.tis_cap else 1.0)
            bounds = (1 - o.clip_low, 1 + o.clip_high)
            if o.loss == "cispo":
                loss = loss - r.detach().clamp(*bounds) * a * lp[t] / tokens
            elif o.loss == "ppo":
                loss = loss - torch.minimum(r * a, r.clamp(*bounds) * a) / tokens
            else:  # GSPO-token: the value of s, the gradient of this token's log-prob
                st = s.detach() * (lp[t] - lp[t].detach()).exp()
                loss = loss - torch.minimum(st * a, st.clamp(*bounds) * a) / len(lp) / samples
            if o.entropy.kind == "kl_cov" and choice[t]:
                loss = loss + o.entropy.coefficient * (lp[t] - old[t]).abs() / tokens
        if o.entropy.kind == "bonus":
            loss = loss - o.entropy.coefficient * h.sum() / tokens
    return loss


# The learner


def gradients(of: PolicyLearner, experience: list[Experience]) -> tuple[UpdateSums, dict[str, Tensor]]:
    """The sums and the gradient before clipping of all samples as one mini-batch."""
    start = of._at_start(experience, NEVER)
    bonus, _ = of._bonus(start.entropy)
    sums = UpdateSums()
    assert isinstance(of._gradient(experience, start, sums, NEVER, bonus), float)
    return sums, {name: p.grad.clone() for name, p in of.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("entry", MENU)
def test_every_entry_equals_the_dense_computation_in_float64(entry: str) -> None:
    of = sharp(objective=MENU[entry])
    experience = experience_of(of)
    sums, found = gradients(of, experience)
    of.optimizer.zero_grad()
    loss = dense_objective(of, experience)
    loss.backward()
    assert sums.loss / sums.tokens == pytest.approx(loss.item(), rel=1e-6, abs=1e-9)
    largest = max(float(p.grad.abs().max()) for p in of.model.parameters() if p.grad is not None)
    assert largest > 1e-3
    for name, p in of.model.named_parameters():
        # recorded log-probs and advantages are float32: 1e-7 of a ratio
        torch.testing.assert_close(found[name], p.grad, rtol=1e-5, atol=1e-6 * largest)


def test_the_cases_of_the_menu_are_not_empty() -> None:
    """Each switch changes the gradient of what it is compared with."""
    off = {}
    for kind in (SAIS, POIS, DECOUPLED):
        of = sharp(objective={**kind, **NO_MPT})
        off[kind["importance"]] = gradients(of, experience_of(of))[1]
    for entry, objective in MENU.items():
        if entry in ("ppo", "gspo, pois"):
            continue
        of = sharp(objective=objective)
        found = gradients(of, experience_of(of))[1]
        plain = off[objective["importance"]]
        assert any(float((found[n] - plain[n]).abs().max()) > 1e-4 for n in found), entry


@pytest.mark.parametrize("entry", MENU)
def test_every_entry_is_the_same_on_any_split_into_microbatches(entry: str) -> None:
    one = sharp({"microbatch_tokens": 10_000, "layout": "packed"}, MENU[entry])
    many = sharp({"microbatch_tokens": 12}, MENU[entry])
    (first, whole), (second, split) = (gradients(of, experience_of(of)) for of in (one, many))
    assert first.means() == pytest.approx(second.means(), rel=1e-6)
    for name in whole:
        torch.testing.assert_close(whole[name], split[name], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("kind", ["clip_cov", "kl_cov", "top_entropy"])
def test_chosen_tokens_do_not_depend_on_the_cut_into_minibatches(kind: str) -> None:
    """Two mini-batches choose the tokens of the whole update, under the weights at its start."""
    share = {"share": 0.2, **({"low": -9.0, "high": 9.0} if kind == "clip_cov" else {})}
    objective = {**SAIS, **NO_MPT, "entropy": {"kind": kind, **share}}
    of = sharp({"minibatches": 2}, objective)
    experience = experience_of(of)
    seen: dict[int, list[bool]] = {}
    honest = of._gradient

    def noting(part: list[Experience], start: UpdateStart, *rest: Any) -> Any:
        assert start.chosen is not None
        seen.update({e.sample_id: c.tolist() for e, c in zip(part, start.chosen, strict=True)})
        return honest(part, start, *rest)

    of._gradient = noting  # type: ignore[method-assign,assignment]
    expected = {
        e.sample_id: c.tolist()
        for e, c in zip(experience, sharp(objective=objective)._at_start(experience, NEVER).chosen or (), strict=True)
    }
    means = of.update(GROUPS).means
    assert seen == expected
    assert len(minibatches([e.sample_id for e in experience], 2, seed=0)) == 2
    tokens = sum(map(len, expected.values()))
    assert means["entropy/chosen_fraction"] == pytest.approx(
        {"top_entropy": 9, "clip_cov": 8, "kl_cov": 8}[kind] / tokens
    )
    assert tokens == 43


def test_clip_cov_draws_other_tokens_for_another_seed() -> None:
    objective = {**SAIS, **NO_MPT, **entropy(kind="clip_cov", share=0.2, low=-9.0, high=9.0)}
    of = sharp(objective=objective)
    experience = experience_of(of)
    first = of._at_start(experience, NEVER).chosen
    of.spec = replace(of.spec, seed=1)
    second = of._at_start(experience, NEVER).chosen
    assert first is not None
    assert second is not None
    assert any((a != b).any() for a, b in zip(first, second, strict=True))


def test_clip_cov_also_draws_tokens_whose_gradient_the_clip_removes() -> None:
    """verl draws from the others only. With a recorded log-prob 1 lower every ratio is above 1.5 or so, and tokens of
    positive advantage are clipped, but the draw is the same."""
    objective = {**SAIS, **NO_MPT, **NARROW, **entropy(kind="clip_cov", share=1.0, low=-9.0, high=9.0)}
    of = sharp(objective=objective)
    experience = experience_of(of)
    clipped = [replace(e, row=replace(e.row, logprobs=e.row.logprobs - 1)) for e in experience]
    first, second = (of._at_start(rows, NEVER).chosen for rows in (experience, clipped))
    assert first is not None
    assert second is not None
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert all(chosen.all() for e, chosen in zip(clipped, second, strict=True) if e.advantage > 0)


# The adaptive coefficient


BONUS = {**POIS, **NO_MPT, **entropy(kind="bonus", coefficient=0.01, step=0.004, target=9.0, highest=0.016)}


def test_the_coefficient_follows_the_updates_and_a_checkpoint_keeps_it(tmp_path: Path) -> None:
    """Below the target it rises by .004 to .016 at most. The factor of an update is the coefficient before it."""
    of = learner({"lr": 1e-6}, BONUS)
    assert [of.update(GROUPS).means["entropy/bonus"] for _ in range(3)] == pytest.approx([0.01, 0.014, 0.016])
    assert of.entropy_coefficient == pytest.approx(0.016)
    target = of.spec.objective.entropy.model_copy(update={"target": 0.1})
    of.spec = replace(of.spec, objective=of.spec.objective.model_copy(update={"entropy": target}))
    assert of.update(GROUPS).means["entropy/bonus"] == 0.0  # the entropy, 3.4, is above the target
    assert of.entropy_coefficient == pytest.approx(0.012)
    of.save(tmp_path).result()
    again = learner({"lr": 1e-6}, BONUS)
    again.load(tmp_path)
    assert again.entropy_coefficient == of.entropy_coefficient
    assert again.updates == 4


def test_an_update_that_is_skipped_leaves_the_coefficient() -> None:
    of = learner(objective=BONUS)
    of._gradient = lambda *_: Skipped("a test", (0,))  # type: ignore[method-assign,assignment]
    of.update(GROUPS)
    assert of.entropy_coefficient == 0.01


def test_the_bonus_raises_the_entropy() -> None:
    plain = sharp({"lr": 1e-3}, {**POIS, **NO_MPT})
    bonus = sharp({"lr": 1e-3}, {**POIS, **NO_MPT, **entropy(kind="bonus", coefficient=1.0, target=9.0)})
    before = plain.score(experience_of(plain))[1]
    for _ in range(5):
        plain.update(GROUPS)
        bonus.update(GROUPS)
    after_plain, after_bonus = (of.score(experience_of(of))[1] for of in (plain, bonus))
    assert after_bonus > after_plain + 0.01
    assert after_bonus > before


def test_without_a_bonus_no_entropy_has_a_graph() -> None:
    of, bonus = learner(objective=NO_MPT), learner(objective=BONUS)
    for one, expected in ((of, False), (bonus, True)):
        (_, batch), *_ = one._batches(experience_of(one), NEVER)
        assert one.policy(batch)[1].requires_grad is expected
    assert weights(of).keys() == weights(bonus).keys()
