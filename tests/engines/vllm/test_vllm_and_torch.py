"""vLLM and the embedded engine on the countdown recipe's model and problems: the same outputs, lengths and rewards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import torch

import ulorl
from paths import COUNTDOWN
from ulorl.engines.engine import Engine
from ulorl.engines.factory import make_engine
from ulorl.evaluation.avg_at_k import Evaluation, EvaluationSettings, evaluate
from ulorl.training.preflight import Inputs, load_inputs
from ulorl.training.specifications import engine_spec
from ulorl.types import Sampling

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-engines` runs these")

from vllm_engines import ENGINES, agree_after_every_update, load, train

Asked = tuple[Inputs, dict[str, Engine]]


@pytest.fixture(scope="class")
def asked() -> Iterator[Asked]:
    """The countdown recipe's problems, and an engine of each kind."""
    engines: dict[str, Engine] = {}
    with ExitStack() as stack:
        for kind, overrides in ENGINES.items():
            cfg = ulorl.load([COUNTDOWN], overrides)
            inputs = load_inputs(cfg)
            engine = make_engine(engine_spec(cfg, longest=inputs.longest(cfg)), inputs.source)
            engines[kind] = stack.enter_context(closing(engine))
        yield inputs, engines


def answers(asked: Asked, kind: str, sampling: Sampling, problems: int) -> Evaluation:
    inputs, engines = asked
    settings = EvaluationSettings(1, sampling, max_tokens=256, seed=0)
    return evaluate(engines[kind], inputs.scorer, inputs.held_out[:problems], settings)


class TestTheSameQuestions:
    """These share the engines."""

    def test_greedy_tokens_are_those_of_the_embedded_engine(self, asked: Asked) -> None:
        """On 200 problems; where they part, the two best tokens are a tie (closer than the engines' rounding)."""
        ours, theirs = (answers(asked, kind, Sampling(0.0), 200) for kind in ("torch", "vllm"))
        model, ties = load(), 0
        for (_, own), a, b in zip(asked[0].held_out[:200], ours.scored, theirs.scored, strict=True):
            one, two = a.sample.tokens, b.sample.tokens
            if one.tolist() == two.tolist():
                continue
            n = min(len(one), len(two))
            at = int(np.flatnonzero(one[:n] != two[:n])[0])
            ids = torch.tensor(np.concatenate([own, one[:at]])[None].astype(np.int64))
            with torch.no_grad():
                best = model(ids).logits[0, -1].log_softmax(-1).topk(2)
            assert {int(one[at]), int(two[at])} == set(best.indices.tolist())
            assert float(best.values[0] - best.values[1]) < 1e-4
            ties += 1
        assert ties <= 4
        print(f"greedy: {200 - ties} of 200 outputs the same, {ties} part at a tie")

    def test_sampled_lengths_and_rewards_agree_with_the_embedded_engine(self, asked: Asked) -> None:
        """On 1,000 problems, within three standard errors of the difference."""
        numbers = {}
        for kind in ("torch", "vllm"):
            found = answers(asked, kind, Sampling(1.0), 1000)
            lengths = np.array([len(s.sample) for s in found.scored])
            numbers[kind] = [(found.accuracy, found.stderr), (lengths.mean(), lengths.std(ddof=1) / np.sqrt(1000))]
        print(f"sampled (reward, mean length), each with its standard error: {numbers}")
        for (a, a_error), (b, b_error) in zip(numbers["torch"], numbers["vllm"], strict=True):
            assert abs(a - b) < 3 * np.hypot(a_error, b_error)


@pytest.mark.slow
def test_the_countdown_recipe_learns_as_with_the_embedded_engine(tmp_path: Path) -> None:
    seven = ["steps=7", "eval.problems=1", "run.checkpoint_every=0"]
    runs = {kind: train(tmp_path / kind, *seven, kind=kind) for kind in ("vllm", "torch")}
    rewards = {kind: [m["reward/mean"] for m in metrics[2:]] for kind, metrics in runs.items()}
    print(f"mean reward of steps 2 to 7: {rewards}")
    for kind, metrics in runs.items():
        agree_after_every_update(metrics, updates=6)
        assert np.mean(rewards[kind][-3:]) > np.mean(rewards[kind][:3]), kind
        assert any(m["rollout/multi_segment_fraction"] > 0.3 for m in metrics[2:])
    assert abs(np.mean(rewards["vllm"]) - np.mean(rewards["torch"])) < 0.08  # 6 steps of about 250 samples each
    books = [m["rollout/tokens"] for m in runs["vllm"][1:]], [m["rollout/decode_steps"] for m in runs["vllm"][1:]]
    assert all(tokens > 10_000 and 128 <= steps < 600 for tokens, steps in zip(*books, strict=True))
