"""Suites with the shipped tiny model: killed evaluations, shorter lengths, and several models in one table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from refusals import refused
from ulorl.cancellation import NEVER, Cancelled, CancelToken
from ulorl.cli.suite_plan import plan_evaluations
from ulorl.config.loading import build
from ulorl.error_codes import ErrorCode
from ulorl.evaluation.result_tables import SuiteResult, differences
from ulorl.training.suite_evaluation import SuiteEvaluation

# 10 problems x 2 answers in blocks of 4 x 2 slots / 2 answers = 4 problems
SMALL = ["data.size=10", "eval.samples=2", "eval.temperature=1.0", "engine.slots=2", "model.threads=1"]


def planned(out: Path, *arguments: str, lengths: tuple[int, ...] = (48,), entropy: bool = True) -> SuiteEvaluation:
    (one,) = plan_evaluations(["ulorl:tiny", *SMALL, *arguments], ["countdown"], lengths, [], out, entropy=entropy)
    return one


def evaluated(evaluation: SuiteEvaluation, cancel: CancelToken = NEVER) -> list[SuiteResult]:
    return evaluation.run(evaluation.check(), cancel=cancel)


def stored(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class CancelledAt(CancelToken):
    """Is cancelled at its n-th check: the first 150 or so are decode steps, the last three are of the entropy."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def check(self) -> None:
        self.left -= 1
        if not self.left:
            self.cancel()
        super().check()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[SuiteResult], dict[str, bytes]]:
    evaluation = planned(tmp_path_factory.mktemp("whole"))
    return evaluated(evaluation), stored(evaluation.folder)


@pytest.mark.parametrize("kills", [(1,), (400,), (250, 250), (-2,)])
def test_a_killed_evaluation_continues_to_the_same_bits(
    kills: tuple[int, ...], whole: tuple[list[SuiteResult], dict[str, bytes]], tmp_path: Path
) -> None:
    counting = CancelledAt(10**9)
    if kills[0] < 0:  # counted from the end
        evaluated(planned(tmp_path / "counted"), counting)
        kills = (10**9 - counting.left + kills[0] + 1,)
    evaluation = planned(tmp_path / "killed")
    for kill in kills:
        with pytest.raises(Cancelled):
            evaluated(evaluation, CancelledAt(kill))
    assert evaluated(evaluation) == whole[0]
    assert stored(evaluation.folder) == whole[1]


def test_what_is_stored_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluated(planned(tmp_path, entropy=False))
    monkeypatch.setattr("ulorl.training.suite_evaluation.evaluation_engine", None)  # making one would fail
    assert evaluated(planned(tmp_path, entropy=False)) == first
    scored = evaluated(planned(tmp_path))  # the entropy can be measured later
    assert scored[0].entropy is not None
    assert replace(scored[0], entropy=None) == first[0]
    with refused(ErrorCode.EVALUATION_TAKEN, key="eval.temperature"):
        evaluated(planned(tmp_path, "eval.temperature=0.7"))


def test_models_are_compared_on_the_same_problems_whatever_their_prompts(tmp_path: Path) -> None:
    """Another template stands for another tokenizer: other token ids, the same problems."""
    few, other = ("data.size=3", "eval.samples=1"), 'data.template="{question}\\n\\n"'
    (one,) = evaluated(planned(tmp_path / "one", *few, entropy=False))
    (two,) = evaluated(planned(tmp_path / "two", *few, other, entropy=False))
    assert len(differences([one, two])) == 1
    with refused(ErrorCode.EVALUATION_TAKEN, key="problems"):
        evaluated(planned(tmp_path / "one", *few, other, entropy=False))


def test_a_reward_that_fails_gives_no_advice_to_resume_training(tmp_path: Path) -> None:
    (tmp_path / "broken_of_suites.py").write_text("def f(problem, text):\n    raise ValueError('no')\n")
    reward = ["reward.kind=function", "reward.function=broken_of_suites:f", "reward.retries=0", "reward.max_unscored=1"]
    with refused(ErrorCode.REWARD_FAILED) as caught:
        evaluated(planned(tmp_path / "out", *reward, entropy=False))
    assert "ulorl train" not in str(caught.value)


def test_a_shorter_length_is_read_off_the_longer_outputs(tmp_path: Path) -> None:
    """Outputs at 24 tokens are the first 24 tokens of those at 48: what an evaluation at 24 tokens draws itself."""
    short, long = evaluated(planned(tmp_path / "both", lengths=(48, 24)))
    (alone,) = evaluated(planned(tmp_path / "alone", lengths=(24,)))
    assert (short.max_tokens, long.max_tokens) == (24, 48)
    assert short.summary == alone.summary
    assert short.summary.truncated > long.summary.truncated
    assert short.entropy is not None
    assert alone.entropy is not None
    assert short.entropy.mean == pytest.approx(alone.entropy.mean, rel=1e-4)


def test_the_figures_are_those_of_the_stored_lines(
    whole: tuple[list[SuiteResult], dict[str, bytes]],
) -> None:
    (result,), files = whole
    lines = [json.loads(line) for line in files["samples.jsonl"].splitlines()]
    assert [(line["problem"], line["run"]) for line in lines[::2]] == [(line["problem"], 0) for line in lines[::2]]
    assert result.summary.answers == len(lines) == 20
    assert result.summary.accuracy == pytest.approx(sum(line["reward"] for line in lines) / 20)
    assert result.summary.lengths.mean == pytest.approx(sum(line["length"] for line in lines) / 20)
    assert result.summary.truncated == pytest.approx(sum(line["status"] == "truncated" for line in lines) / 20)
    assert result.entropy is not None
    assert 0 < result.entropy.mean < 2


def test_the_plan_of_a_command_line(tmp_path: Path) -> None:
    ropes = ["none", "1.5x512"]
    found = plan_evaluations(
        ["ulorl:tiny", "seed=3"], ["countdown", "aime25=a.jsonl"], [64, 32], ropes, tmp_path, entropy=False
    )
    assert [(one.model, one.suite) for one in found] == [
        ("ulorl:tiny", "countdown"), ("ulorl:tiny", "aime25"),
        ("ulorl:tiny YaRN 1.5x512", "countdown"), ("ulorl:tiny YaRN 1.5x512", "aime25"),
    ]  # fmt: skip
    assert len({one.folder for one in found}) == 4
    assert all(one.lengths == (32, 64) and one.config.eval.max_tokens == 64 for one in found)
    assert [one.config.model.rope.type for one in found] == ["none", "none", "yarn", "yarn"]
    assert found[0].config.seed == 3


def test_a_recipe_says_how_and_a_run_says_what(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[data]\nkind="files"\npath="train.jsonl"\nquestion="q"\n[engine]\nslots=5\n[eval]\nsamples=3\n')
    (one,) = plan_evaluations([str(recipe), "model.path=m"], ["aime25=a.jsonl"], [], [], tmp_path, entropy=False)
    assert (one.config.engine.slots, one.config.eval.samples, one.config.model.path) == (5, 32, "m")
    assert one.config.data.question == "problem"  # type: ignore[union-attr]
    run = tmp_path / "run"
    run.mkdir()
    trained = {"model": {"path": "start", "threads": 1}, "rollout": {"max_tokens": 96, "segments": 3}, "seed": 9}
    saved = build({"data": {"kind": "countdown", "size": 8}, "reward": {"kind": "countdown"}, **trained})
    (run / "config.json").write_text(saved.model_dump_json())
    (one,) = plan_evaluations([str(run)], ["countdown"], [], [], tmp_path, entropy=False)
    assert (one.config.model.path, one.config.model.threads, one.config.seed) == (str(run / "model"), 1, 9)
    assert one.lengths == (96,)


@pytest.mark.parametrize(
    ("arguments", "ropes", "key"),
    [
        (["eval.samples=2"], [], ""),
        (["ulorl:tiny", "rollout.prompts=3"], [], "rollout.prompts"),
        (["ulorl:tiny"], ["1.5"], "--rope"),
        (["ulorl:tiny", "ulorl:tiny"], [], ""),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], ropes: list[str], key: str, tmp_path: Path) -> None:
    with refused(ErrorCode.COMMAND_LINE, key=key):
        plan_evaluations(arguments, ["countdown"], [], ropes, tmp_path, entropy=True)
