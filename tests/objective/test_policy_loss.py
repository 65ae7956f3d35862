from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ulorl.objective.importance import old_logprobs
from ulorl.objective.policy_loss import (
    LossSums,
    cispo_objective_sum,
    clipped_objective_sum,
    gspo_objective_sum,
)

# ratio   1.5   1.1   0.5   1.5   0.5   1.0   1.5
# A       2     2     2    -1    -1     0     2
# min()   2.4*  2.2   1.0  -1.5  -0.8*  0    masked      (* clipped: 1.2 * 2 and .8 * -1), sum 3.3
RATIOS = [1.5, 1.1, 0.5, 1.5, 0.5, 1.0, 1.5]
ADVANTAGES = torch.tensor([2.0, 2.0, 2.0, -1.0, -1.0, 0.0, 2.0])
KEPT = torch.tensor([True] * 6 + [False])


def run(
    logprobs: Tensor, old: Tensor, advantages: Tensor, kept: Tensor, low: float = 0.2, high: float = 0.2
) -> tuple[Tensor, LossSums]:
    return clipped_objective_sum(logprobs, old, advantages, kept, clip_low=low, clip_high=high)


def naive(logprobs: Tensor, old: Tensor, advantages: Tensor, kept: Tensor, low: float, high: float) -> Tensor:
    """Eq. 10's numerator as it is written."""
    ratio = torch.exp(logprobs - old)
    return -(torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages) * kept).sum()


def test_by_hand() -> None:
    logprobs = torch.tensor(RATIOS).log().requires_grad_()
    loss, sums = run(logprobs, torch.zeros(7), ADVANTAGES, KEPT)
    assert loss.item() == pytest.approx(-3.3, rel=1e-6)
    loss.backward()
    # -r A where neither clipped nor masked: 0, -2.2, -1, 1.5, 0, 0, 0
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, -2.2, -1.0, 1.5, 0.0, 0.0, 0.0]))
    assert (sums.clipped.item(), sums.tokens.item()) == (2, 6)
    assert sums.ratio.item() == pytest.approx(6.1, rel=1e-6)  # 1.5 + 1.1 + .5 + 1.5 + .5 + 1
    assert not any(s.requires_grad for s in (sums.ratio, sums.clipped, sums.tokens))


def test_clip_higher_by_hand() -> None:
    # clip_high .28 as in DAPO: the first becomes 1.28 * 2 = 2.56, sum 3.46
    loss, sums = run(torch.tensor(RATIOS).log(), torch.zeros(7), ADVANTAGES, KEPT, high=0.28)
    assert loss.item() == pytest.approx(-3.46, rel=1e-6)
    assert sums.clipped.item() == 2


def test_ratio_one_is_the_plain_policy_gradient() -> None:
    logprobs = torch.tensor([-0.1, -2.0, -3.0], requires_grad=True)
    advantages = torch.tensor([0.5, -1.5, 2.0])
    loss, sums = run(logprobs, logprobs.detach(), advantages, torch.ones(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == -1.0
    assert torch.equal(logprobs.grad, -advantages)
    assert (sums.ratio.item(), sums.clipped.item()) == (3.0, 0)


@given(st.data())
def test_equals_the_equation_as_written_with_its_gradient(data: st.DataObject) -> None:
    N = data.draw(st.integers(1, 12))

    def column(low: float, high: float) -> Tensor:
        values = st.lists(st.floats(low, high, allow_subnormal=False), min_size=N, max_size=N)
        return torch.tensor(data.draw(values), dtype=torch.float64)

    old, advantages = column(-5, 0), column(-2, 2)
    change = column(-1, 1)
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=N, max_size=N)))
    low, high = data.draw(st.floats(0.01, 0.9)), data.draw(st.floats(0.01, 0.9))
    ours, theirs = (old + change).requires_grad_(), (old + change).requires_grad_()
    loss, sums = run(ours, old, advantages, kept, low, high)
    expected = naive(theirs, old, advantages, kept, low, high)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    ratio = (ours.detach() - old).exp()
    clipped = [
        min(r * a, min(max(r, 1 - low), 1 + high) * a) != r * a
        for r, a, k in zip(ratio.tolist(), advantages.tolist(), kept.tolist(), strict=True)
        if k
    ]
    assert sums.clipped.item() == sum(clipped)
    assert sums.ratio.item() == pytest.approx(ratio[kept].sum().item())


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1e30, -1e30])
@pytest.mark.parametrize("where", ["logprobs", "old", "advantages"])
def test_left_out_tokens_add_exactly_nothing_for_any_values(bad: float, where: str) -> None:
    columns = {
        "logprobs": torch.tensor(RATIOS).log(),
        "old": torch.zeros(7),
        "advantages": ADVANTAGES.clone(),
    }
    columns[where][6] = bad
    logprobs = columns["logprobs"].requires_grad_()
    loss, sums = run(logprobs, columns["old"], columns["advantages"], KEPT)
    loss.backward()
    assert loss.item() == pytest.approx(-3.3, rel=1e-6)
    assert logprobs.grad[6].item() == 0.0
    assert torch.isfinite(logprobs.grad).all()
    assert sums.ratio.item() == pytest.approx(6.1, rel=1e-6)


def test_an_overflowing_ratio_that_is_clipped_has_a_zero_gradient() -> None:
    # exp(200) is inf in float32; A > 0 takes the clipped branch, 1.2 * 1, where naive autograd yields nan
    logprobs = torch.tensor([0.0], requires_grad=True)
    loss, sums = run(logprobs, torch.tensor([-200.0]), torch.ones(1), torch.ones(1, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(-1.2)
    assert logprobs.grad.tolist() == [0.0]
    assert sums.clipped.item() == 1


def batch(seed: int, N: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random numbers that are multiples of 1/8, so that sums are exact in any order when the ratios are 1."""
    rng = torch.Generator().manual_seed(seed)
    logprobs = -torch.randint(0, 40, (N,), generator=rng) / 8
    advantages = torch.randint(-16, 17, (N,), generator=rng) / 8
    return logprobs, logprobs + 0, advantages, torch.rand(N, generator=rng) < 0.7


def test_microbatch_sums_add_up_to_the_batch_exactly() -> None:
    columns = batch(0)
    whole, sums = run(*columns)
    parts = [run(*pieces) for pieces in zip(*(c.split([7, 1, 20, 12]) for c in columns), strict=True)]
    assert sum(loss for loss, _ in parts) == whole
    for name in ("ratio", "clipped", "tokens"):
        assert sum(getattr(s, name) for _, s in parts) == getattr(sums, name)


def test_accumulated_gradients_equal_one_batch_bit_for_bit() -> None:
    logprobs, _, advantages, kept = batch(1)
    old = logprobs + torch.linspace(-0.5, 0.5, 40)  # ratios on both sides of the clips
    whole, pieces = logprobs.clone().requires_grad_(), logprobs.clone().requires_grad_()
    (run(whole, old, advantages, kept)[0] / 40).backward()
    for rows in torch.arange(40).split(9):
        (run(pieces[rows], old[rows], advantages[rows], kept[rows])[0] / 40).backward()
    assert torch.equal(whole.grad, pieces.grad)
    assert (whole.grad != 0).any()


def test_order_of_tokens_does_not_matter() -> None:
    columns = batch(2)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    assert run(*columns)[0] == run(*(c[order] for c in columns))[0]


def test_tois_sais_and_pois_agree_when_the_recorded_are_the_current() -> None:
    logprobs, recorded, advantages, kept = batch(4)
    gradients = []
    for kind in ("tois", "sais", "pois"):
        now = logprobs.clone().requires_grad_()
        loss, sums = run(now, old_logprobs(kind, recorded, None, now), advantages, kept)
        loss.backward()
        gradients.append((loss.item(), sums.clipped.item(), now.grad.tolist()))
    assert gradients[0] == gradients[1] == gradients[2]


def test_cispo_by_hand() -> None:
    # ratio   1.5   1.1   0.5   1.5   0.5   1.0   masked, bounds .8 and 1.2: weights 1.2 1.1 .8 1.2 .8 1
    # gradient of the loss by log p: -weight * A = -2.4 -2.2 -1.6 1.2 .8 0, also where PPO's is cut to 0
    logprobs = torch.tensor(RATIOS).log().requires_grad_()
    loss, sums = cispo_objective_sum(logprobs, torch.zeros(7), ADVANTAGES, KEPT, clip_low=0.2, clip_high=0.2)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-2.4, -2.2, -1.6, 1.2, 0.8, 0.0, 0.0]))
    assert loss.item() == pytest.approx(
        -2.4 * math.log(1.5) - 2.2 * math.log(1.1) - 1.6 * math.log(0.5) + 1.2 * math.log(1.5) + 0.8 * math.log(0.5)
    )
    assert (sums.clipped.item(), sums.tokens.item()) == (4, 6)
    assert sums.ratio.item() == pytest.approx(6.1, rel=1e-6)


def test_cispo_without_a_lower_bound() -> None:
    """clip_low=1, as in MiniMax-M1: the third token keeps its ratio .5."""
    logprobs = torch.tensor(RATIOS).log().requires_grad_()
    cispo_objective_sum(logprobs, torch.zeros(7), ADVANTAGES, KEPT, clip_low=1.0, clip_high=0.2)[0].backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-2.4, -2.2, -1.0, 1.2, 0.5, 0.0, 0.0]))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1e30, -1e30])
def test_cispo_ignores_what_left_out_tokens_hold(bad: float) -> None:
    logprobs = torch.tensor([-1.0, bad], requires_grad=True)
    kept = torch.tensor([True, False])
    loss, _ = cispo_objective_sum(logprobs, torch.full((2,), -1.0), torch.ones(2), kept, clip_low=0.2, clip_high=0.2)
    loss.backward()
    assert loss.item() == 1.0
    assert logprobs.grad.tolist() == [-1.0, 0.0]


# Two samples. The first has ratios 2 and 8, geometric mean s = 4, A = 1; the second ratios .5, .5, .5, s = .5, A = -2.
SEQUENCE_RATIOS, SEQUENCE_OF = [2.0, 8.0, 0.5, 0.5, 0.5], torch.tensor([0, 0, 1, 1, 1])
SEQUENCE_ADVANTAGES = torch.tensor([1.0, 1.0, -2.0, -2.0, -2.0])


def gspo(kept: list[bool], low: float, high: float) -> tuple[Tensor, LossSums, list[float]]:
    logprobs = torch.tensor(SEQUENCE_RATIOS).log().requires_grad_()
    loss, sums = gspo_objective_sum(
        logprobs, torch.zeros(5), SEQUENCE_ADVANTAGES, torch.tensor(kept), SEQUENCE_OF, 2, clip_low=low, clip_high=high
    )
    loss.backward()
    return loss, sums, logprobs.grad.tolist()


def test_gspo_by_hand() -> None:
    """-(4 * 1 + .5 * -2) = -3. The gradient by the log-prob of a token is -s A / |o|: -4 / 2 and .5 * 2 / 3."""
    loss, sums, gradient = gspo([True] * 5, 0.9, 9.0)
    assert loss.item() == pytest.approx(-3.0, rel=1e-6)
    assert gradient == pytest.approx([-2.0, -2.0, 1 / 3, 1 / 3, 1 / 3], rel=1e-6)
    assert sums.ratio.item() == pytest.approx(4 + 4 + 0.5 * 3, rel=1e-6)
    assert sums.clipped.item() == 0


def test_gspo_clips_whole_samples() -> None:
    """min(4, 1.2) * 1 + max(.5, .8) * -2 = -.4: both are clipped, and nothing has a gradient."""
    loss, sums, gradient = gspo([True] * 5, 0.2, 0.2)
    assert loss.item() == pytest.approx(-(1.2 - 1.6), rel=1e-6)
    assert gradient == [0.0] * 5
    assert sums.clipped.item() == 5


def test_gspo_counts_left_out_tokens_in_ratio_and_length() -> None:
    """Without the second token the first sample's term is half of 4, and its gradient is the first token's."""
    loss, sums, gradient = gspo([True, False, True, True, True], 0.9, 9.0)
    assert loss.item() == pytest.approx(-(2.0 - 1.0), rel=1e-6)
    assert gradient == pytest.approx([-2.0, 0.0, 1 / 3, 1 / 3, 1 / 3], rel=1e-6)
    assert sums.tokens.item() == 4
