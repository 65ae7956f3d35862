from __future__ import annotations

import pytest
import torch

from ulorl.objective.importance import old_logprobs, ratios

NOW = torch.tensor([0.6, 0.2, 0.9]).log()
RECORDED = torch.tensor([0.5, 0.4, 0.9]).log()
START = torch.tensor([0.3, 0.2, 0.6]).log()


@pytest.mark.parametrize(
    ("kind", "start", "expected"),
    [
        ("tois", None, [1.2, 0.5, 1.0]),  # .6 / .5, .2 / .4, .9 / .9
        ("sais", None, [1.2, 0.5, 1.0]),
        ("sais", START, [1.2, 0.5, 1.0]),
        ("pois", START, [2.0, 1.0, 1.5]),  # .6 / .3, .2 / .2, .9 / .6
    ],
)
def test_ratios_by_hand(kind: str, start: torch.Tensor | None, expected: list[float]) -> None:
    old = old_logprobs(kind, RECORDED, start, NOW)  # type: ignore[arg-type]
    torch.testing.assert_close(ratios(NOW, old), torch.tensor(expected))


def test_pois_with_one_update_has_ratio_exactly_one_and_a_gradient() -> None:
    now = NOW.clone().requires_grad_()
    old = old_logprobs("pois", RECORDED, None, now)
    ratio = ratios(now, old)
    assert ratio.tolist() == [1.0, 1.0, 1.0]
    ratio.sum().backward()
    assert now.grad is not None
    assert now.grad.tolist() == [1.0, 1.0, 1.0]  # d exp(x - c) / dx = ratio


@pytest.mark.parametrize("kind", ["tois", "sais", "pois"])
def test_the_old_policy_is_a_constant(kind: str) -> None:
    leaf = RECORDED.clone().requires_grad_()
    assert not old_logprobs(kind, leaf * 1, leaf * 1, leaf * 1).requires_grad  # type: ignore[arg-type]


def test_all_kinds_agree_when_the_recorded_are_the_current() -> None:
    for kind in ("tois", "sais", "pois"):
        assert torch.equal(old_logprobs(kind, NOW, None, NOW), NOW)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="tois, sais, pois or decoupled, found 'gspo'"):
        old_logprobs("gspo", RECORDED, None, NOW)  # type: ignore[arg-type]
