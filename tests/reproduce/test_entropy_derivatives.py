"""What a token adds to the change of entropy: by hand on two parameters, and against a real step in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tiny_learner import V, tiny_model
from ulorl.learner.batching import Batch, Row
from ulorl.learner.experience import Experience
from ulorl.learner.policy import Policy
from ulorl.reproduce.entropy_derivatives import EntropyDerivatives, adam_scaled, step_for


class Coins(nn.Module):
    """Two coins: coin i shows word 1 with the probability sigmoid(log_odds[i]). The prompt is the coin."""

    def __init__(self) -> None:
        super().__init__()
        self.log_odds = nn.Parameter(torch.tensor([math.log(3), 0.0], dtype=torch.float64))  # 3/4 and 1/2

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        odds_N = self.log_odds[batch.input_ids.flatten()[batch.source_N]]
        logprobs_N2 = torch.stack([-odds_N, odds_N], 1).sigmoid().log()
        entropy_N = -(logprobs_N2.exp() * logprobs_N2).sum(1)
        return logprobs_N2.gather(1, batch.targets_N[:, None])[:, 0], entropy_N


def row(prompt: list[int], tokens: list[int]) -> Row:
    n = len(tokens)
    return Row(np.array(prompt, np.int32), np.array(tokens, np.int32), np.zeros(n, np.float32), np.zeros(n, np.int32))


HEADS_0, TAILS_0, HEADS_1, TAILS_1 = (row([coin], [word]) for coin in (0, 1) for word in (1, 0))


@pytest.fixture
def coins() -> EntropyDerivatives:
    return EntropyDerivatives(Coins(), pad_id=0, microbatch_tokens=4)


def test_two_parameters_by_hand(coins: EntropyDerivatives) -> None:
    """dH/dx = -x p (1 - p) for log-odds x: -3/16 ln 3 and 0, each half in a mean of two tokens. d log p/dx is 1 - p for
    word 1, -p for word 0. So heads of coin 0 add 1/4 * -3/32 ln 3, tails -3/4 * -3/32 ln 3, and coin 1 nothing."""
    gradient, scores = coins.of_entropy([HEADS_0, TAILS_1])
    assert gradient["log_odds"].tolist() == pytest.approx([-3 / 32 * math.log(3), 0])
    assert [float(np.exp(one.logprobs[0])) for one in scores] == pytest.approx([0.75, 0.5])
    assert float(scores[1].entropies[0]) == pytest.approx(math.log(2))
    found = coins.along(gradient, 1e-3, [HEADS_0, TAILS_0, HEADS_1])
    assert np.concatenate(found) == pytest.approx([-3 / 128 * math.log(3), 9 / 128 * math.log(3), 0], rel=1e-6)


def test_objective_by_hand(coins: EntropyDerivatives) -> None:
    """Two groups, 4 tokens. Coin 0: (1/4 + 3/4) / 4 = 1/4, and coin 1 alike. As a batch of its own, the first group has
    2 * 1/4, squared and averaged with the other group's 0: 1/8. Adam's direction is the gradient / sqrt(1/8), and 0
    where no group has a gradient."""
    groups = [
        [Experience(heads, 0, 1.0, correct=True), Experience(tails, 1, -1.0, correct=False)]
        for heads, tails in ((HEADS_0, TAILS_0), (HEADS_1, TAILS_1))
    ]
    objective, squares = coins.of_objective(groups)
    assert objective["log_odds"].tolist() == pytest.approx([1 / 4, 1 / 4])
    assert squares["log_odds"].tolist() == pytest.approx([1 / 8, 1 / 8])
    gradient = {"log_odds": torch.tensor([2.0, 3.0], dtype=torch.float64)}
    one_coin = {"log_odds": squares["log_odds"] * torch.tensor([1.0, 0.0])}
    assert adam_scaled(gradient, one_coin, 0.0)["log_odds"].tolist() == pytest.approx([2 * math.sqrt(8), 0])


def test_step_by_hand() -> None:
    """The slope along (2, 0) of something with the gradient (3, 4) is 6, so 0.3 needs a step of 0.05."""
    gradient, direction = {"x": torch.tensor([3.0, 4.0])}, {"x": torch.tensor([2.0, 0.0])}
    assert step_for(gradient, direction, 0.3) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="above 0"):
        step_for(gradient, {"x": torch.zeros(2)}, 0.3)


def float64_model() -> PreTrainedModel:
    """A small model that computes in float64 throughout: transformers' RMS norms compute in float32."""
    model = tiny_model().double()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, nn.RMSNorm(len(child.weight), eps=1e-6, dtype=torch.float64))
    return model


def dense(model: PreTrainedModel, one: Row, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of a row's tokens from whole logits."""
    ids = torch.from_numpy(np.concatenate([one.prompt, one.tokens]).astype(np.int64))[None]
    logprobs_TV = (model(input_ids=ids).logits[0, len(one.prompt) - 1 : -1] / temperature).log_softmax(-1)
    targets_T1 = torch.from_numpy(one.tokens.astype(np.int64))[:, None]
    return logprobs_TV.gather(1, targets_T1)[:, 0], -(logprobs_TV.exp() * logprobs_TV).sum(-1)


@pytest.mark.parametrize("step", ["SGD", "Adam"])
def test_prediction_equals_the_change_by_a_real_step(step: str) -> None:
    """For classes of tokens that add up: the predicted change per unit of learning rate is that of a dense model whose
    weights make a tiny step on the objective restricted to the class; the classes' changes add up to that of all."""
    model, temperature, rng = float64_model(), 0.85, np.random.default_rng(0)
    rows = [
        row(rng.integers(1, V, p).tolist(), rng.integers(1, V, t).tolist()) for p, t in ((3, 7), (5, 1), (2, 9), (4, 6))
    ]
    trained, held_out, advantages = rows[:2], rows[2:], (0.7, -1.3)
    policy = Policy(model, temperature, autocast=False, cpu_kernels=True, entropy_gradient=True)
    derivatives = EntropyDerivatives(policy, pad_id=0, microbatch_tokens=16)
    gradient, _ = derivatives.of_entropy(held_out)
    groups = [[Experience(one, i, advantages[i], correct=not i)] for i, one in enumerate(trained)]
    scale = {name: torch.ones_like(change) for name, change in gradient.items()}
    if step == "Adam":
        scale = adam_scaled(scale, derivatives.of_objective(groups)[1], 1e-3)
    direction = {name: change * scale[name] for name, change in gradient.items()}
    found = derivatives.along(direction, step_for(gradient, direction, 1e-5), trained)
    changes_N = np.concatenate([a * of_T / 8 for a, of_T in zip(advantages, found, strict=True)])

    def held_out_entropy() -> float:
        with torch.no_grad():
            return float(torch.cat([dense(model, one, temperature)[1] for one in held_out]).mean())

    named = {f"model.{name}": p for name, p in model.named_parameters()}
    parts = (np.arange(8) < 3, (np.arange(8) >= 3) & (np.arange(8) < 7), np.arange(8) == 7, np.ones(8, bool))
    for of_N in parts:
        logprobs_N = torch.cat(
            [a * dense(model, one, temperature)[0] for a, one in zip(advantages, trained, strict=True)]
        )
        (logprobs_N[torch.from_numpy(of_N)].sum() / 8).backward()
        predicted, ends = changes_N[of_N].sum(), []
        step_size = 1e-6 / abs(predicted)  # a change of 1e-6 nats
        for rate in (step_size, -2 * step_size, step_size):  # there, to the other side, and back
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter += rate * scale[name] * parameter.grad
            ends.append(held_out_entropy())
        model.zero_grad()
        assert predicted == pytest.approx((ends[0] - ends[1]) / (2 * step_size), rel=1e-4)
