"""Whole runs on the shipped tiny reasoner: what a run leaves behind, and refusals."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import ulorl
from refusals import refused
from small_runs import config, lines, samples, timeline
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.policy_learner import PolicyLearner
from ulorl.models.tiny import model_path
from ulorl.report.html_report import write_report
from ulorl.runs.environment import read_environment
from ulorl.runs.problem_counts import read_counts
from ulorl.training import checkpoint, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> run.Result:
    return ulorl.train(config(tmp_path_factory.mktemp("runs") / "straight", "log.report=true"))


def test_a_run_leaves_what_it_promises(finished: run.Result) -> None:
    metrics = finished.metrics
    assert [m["step"] for m in metrics] == [0, 1, 2, 3, 4]
    assert [m["step"] for m in metrics if "eval/accuracy" in m] == [0, 2, 4]
    names = [
        "step", "version", "reward/mean", "entropy/mean", "mpt/fraction", "mpt/masked_fraction",
        "importance/ratio_mean", "importance/clip_fraction", "rollout/tokens", "rollout/finished", "rollout/carried",
        "rollout/truncated", "rollout/segments_mean", "train/samples", "train/tokens", "train/groups_dropped",
        "time/step", "time/rollout", "time/reward", "time/update",
    ]  # fmt: skip
    assert all(name in m for m in metrics[1:] for name in names)
    assert finished.before is not None
    assert finished.after is not None
    assert metrics[0]["eval/accuracy"] == finished.before.accuracy
    assert metrics[-1]["eval/accuracy"] == finished.after.accuracy
    for evaluation in (finished.before, finished.after):
        counts = read_counts(finished.dir, evaluation.step)
        assert counts is not None
        shares = [right / scored for right, scored in zip(counts.right, counts.scored, strict=True)]
        assert (np.mean(shares), len(set(counts.problems))) == (pytest.approx(evaluation.accuracy), 6)
        assert evaluation.interval is not None
        assert evaluation.interval.low <= evaluation.accuracy <= evaluation.interval.high
    assert (finished.before.step, finished.after.step) == (0, 4)
    assert json.loads((finished.dir / "config.json").read_text())["rollout"]["segments"] == 3
    assert 'id="data"' in (finished.dir / "report.html").read_text(encoding="utf-8")
    assert list((finished.dir / "tensorboard").glob("events*"))
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(finished.model),
        AutoTokenizer.from_pretrained(finished.model),
    )
    assert model.num_parameters() > 500_000
    assert tokenizer("7,2,7,2>10\n")["input_ids"]


def test_a_run_without_report_can_have_it_later(tmp_path: Path) -> None:
    quiet = ulorl.train(config(tmp_path / "r", "steps=1", "log.report=false"))
    assert (quiet.dir / "finished.json").exists()
    assert not (quiet.dir / "report.html").exists()
    assert 'id="data"' in write_report([quiet.dir]).read_text(encoding="utf-8")
    assert read_environment(quiet.dir)["ulorl"] == ulorl.__version__


def test_nothing_is_lost(finished: run.Result) -> None:
    """Every sample that entered is released (stored), waiting or unfinished, and the books of each step balance."""
    folder = checkpoint.latest(finished.dir)
    counters, pools = (saved := checkpoint.load(folder, 2)).counters, saved.pools
    stored = [json.loads(line) for text in samples(finished.dir).values() for line in text.splitlines()]
    ids = [s["sample"] for s in stored] + [s.id for s in pools.unfinished]
    ids += [i for g in pools.experience.open_groups.values() for i in g.members]
    assert sorted(ids) == list(range(4 * 8 * 2))  # steps x prompts x group
    assert counters.next_group == counters.cursor == 4 * 8
    carried = 0
    for m in finished.metrics[1:]:
        assert m["rollout/in_flight"] == carried + 16
        assert m["rollout/in_flight"] == m["rollout/finished"] + m["rollout/carried"]
        carried = m["rollout/carried"]


def test_versions_rise_along_stored_samples(finished: run.Result) -> None:
    stored = [json.loads(line) for text in samples(finished.dir).values() for line in text.splitlines()]
    spanning = [s for s in stored if len(s["segments"]) > 1]
    assert spanning
    for s in stored:
        versions = [segment["version"] for segment in s["segments"]]
        assert versions == sorted(versions)
        assert sum(segment["tokens"] for segment in s["segments"]) == s["tokens"]
        assert all(segment["tokens"] <= 32 for segment in s["segments"])  # 96 / 3
    assert any(s["segments"][-1]["version"] > s["segments"][0]["version"] for s in spanning)


def test_same_seed_same_run(finished: run.Result, tmp_path: Path) -> None:
    again = ulorl.train(config(tmp_path / "again"))
    assert lines(again.dir) == lines(finished.dir)
    assert samples(again.dir) == samples(finished.dir)
    assert timeline(again.dir) == timeline(finished.dir)
    other = ulorl.train(config(tmp_path / "other", "seed=1", "steps=1"))
    assert samples(other.dir) != {k: v for k, v in samples(finished.dir).items() if k in samples(other.dir)} or (
        lines(other.dir)[1] != lines(finished.dir)[1]
    )


def test_a_run_that_cannot_be_built_leaves_no_folder(tmp_path: Path) -> None:
    broken = tmp_path / "model"
    shutil.copytree(model_path(), broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with refused(ErrorCode.MODEL_WEIGHTS):
        ulorl.train(config(tmp_path / "runs" / "r", f"model.path={broken}"))
    assert not (tmp_path / "runs").exists()


def test_overwrite_spares_what_the_run_reads(finished: run.Result, tmp_path: Path) -> None:
    with refused(ErrorCode.RUN_FOLDER_TAKEN, key="model.path"):
        ulorl.train(config(finished.dir, f"model.path={finished.model}"), overwrite=True)
    shutil.copytree(finished.model, tmp_path / "model")
    with refused(ErrorCode.RUN_FOLDER_TAKEN, key="run.dir"):  # a model folder has a config.json too
        ulorl.train(config(tmp_path / "model"), overwrite=True)
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_one_segment_is_synchronous(tmp_path: Path) -> None:
    result = ulorl.train(config(tmp_path / "sync", "steps=2", "rollout.segments=1", "objective.importance=tois"))
    for m in result.metrics[1:]:
        assert m["rollout/carried"] == 0
        assert m["rollout/finished"] == 16
        if m["train/samples"]:  # engine and learner agree about the same weights
            assert m["rollout/staleness_mean"] == 0
            assert m["importance/ratio_mean"] == pytest.approx(1, abs=1e-4)


def test_checkpoints_rotate_and_partial_ones_do_not_count(tmp_path: Path) -> None:
    result = ulorl.train(config(tmp_path / "r", "run.checkpoint_every=1", "run.keep_last=1", "run.keep_every=3"))
    kept = sorted(p.name for p in (result.dir / "checkpoints").iterdir())
    assert kept == ["step_000003", "step_000004"]
    (result.dir / "checkpoints" / "step_000009.partial").mkdir()
    assert checkpoint.latest(result.dir).name == "step_000004"


def test_a_checkpoint_holds_every_field(finished: run.Result) -> None:
    pools = checkpoint.load(checkpoint.latest(finished.dir), 2).pools
    assert len(pools.unfinished) > 0
    for sample in pools.unfinished:
        assert len(sample.tokens) == len(sample.logprobs) == len(sample.versions) == 32 * len(sample.segments)
        assert (sample.logprobs <= 0).all()
        assert (np.diff(sample.versions) >= 0).all()
        assert sample.group_id == sample.id // 2


def test_refusals_name_code_and_place(finished: run.Result, tmp_path: Path) -> None:
    with refused(ErrorCode.RUN_FOLDER_TAKEN, file=finished.dir):
        ulorl.train(config(finished.dir))
    with refused(ErrorCode.RUN_FOLDER_TAKEN, file=finished.dir):
        ulorl.resume(finished.dir)
    with refused(ErrorCode.CONFIG_FIXED_ON_RESUME, key="rollout.group"):
        ulorl.resume(finished.dir, ["rollout.group=3"])
    with refused(ErrorCode.RUN_NOT_FOUND):
        ulorl.resume(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all my work")
    with refused(ErrorCode.RUN_FOLDER_TAKEN, key="run.dir"):
        ulorl.train(config(tmp_path / "mine"), overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    problems = tmp_path / "p.jsonl"
    problems.write_text('{"problem": "1,2,3>10", "answer": "10"}\n')
    overrides = ["data.kind=files", f"data.path={problems}", "reward.kind=math", "data.size=0"]
    leaking = config(tmp_path / "x", *overrides, 'eval.data={ path="' + str(problems) + '", size=0 }')
    with refused(ErrorCode.DATA_HELD_OUT, key="eval.data"):
        ulorl.train(leaking)
    damaged = checkpoint.latest(finished.dir) / "state.json"
    whole = damaged.read_text()
    try:
        damaged.write_text(whole[: len(whole) // 2])
        with refused(ErrorCode.CHECKPOINT_DAMAGED, file=damaged.parent):
            ulorl.resume(finished.dir, ["steps=9"])
        damaged.write_text(whole.replace('"format": 2', '"format": 99'))
        with refused(ErrorCode.CHECKPOINT_FORMAT, file=damaged.parent):
            ulorl.resume(finished.dir, ["steps=9"])
    finally:
        damaged.write_text(whole)


def test_what_is_not_finite_is_skipped_logged_and_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From version 2 on no loss is finite: two steps leave weights, version and engine alone, then the run stops and
    says how to resume; the command it prints works."""
    honest = PolicyLearner._loss_sum
    with monkeypatch.context() as patched:
        patched.setattr(
            PolicyLearner, "_loss_sum", lambda self, *a: honest(self, *a) * (np.nan if self.version >= 2 else 1.0)
        )
        with pytest.raises(UserError) as stopped:
            ulorl.train(config(tmp_path / "r", "steps=12", "optim.max_skipped=2", "run.checkpoint_every=1"))
    trained = [m for m in lines(tmp_path / "r")[1:] if m["train/samples"] or m["train/skipped"]]
    assert [(m["train/skipped"], m["train/updates"], m["version"]) for m in trained[-3:]] == [
        (0, 1, 2), (1, 0, 2), (1, 0, 2)
    ]  # fmt: skip
    skipping = trained[-1]
    assert (skipping["train/samples"], skipping["train/loss"], skipping["mismatch/probe_mean"]) == (0, None, None)
    ids = [
        json.loads(line)["sample"]
        for line in samples(tmp_path / "r")[f"step_{skipping['step']:06d}.jsonl"].splitlines()
    ]
    warning = re.search(
        rf"step {skipping['step']}: a mini-batch was skipped: the loss is nan, of samples (.*)", capsys.readouterr().out
    )
    assert warning
    named = [i for run in warning[1].split(", ") for i in range(int(run.split("-")[0]), int(run.split("-")[-1]) + 1)]
    assert named
    assert set(named) <= set(ids)

    message = str(stopped.value)
    newest = checkpoint.latest(tmp_path / "r")
    assert newest.name == f"step_{skipping['step'] - 1:06d}"
    assert f"step {skipping['step']}: 2 mini-batches in a row were skipped (optim.max_skipped)" in message
    assert f"{newest} with: ulorl train --resume {tmp_path / 'r'} optim.lr=" in message
    override = message.rpartition(" ")[2]
    resumed = ulorl.resume(tmp_path / "r", [override, f"steps={skipping['step']}"])
    assert resumed.metrics[-1]["train/skipped"] == 0
    assert resumed.metrics[-1]["version"] == 3
    assert f"optim.lr={json.loads((resumed.dir / 'config.json').read_text())['optim']['lr']:g}" == override


def test_a_run_without_checkpoint_that_diverges_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = PolicyLearner._loss_sum
    monkeypatch.setattr(PolicyLearner, "_loss_sum", lambda *arguments: honest(*arguments) * np.inf)
    with pytest.raises(UserError, match=r"start again with a lower optim\.lr: there is no checkpoint yet"):
        ulorl.train(config(tmp_path / "r", "optim.max_skipped=1", "eval.data={}", "run.checkpoint_every=0"))


@pytest.mark.parametrize(
    "overrides",
    [["optim.layout=packed"], ["optim.autocast=bfloat16"], ["optim.offload=true"], ["model.attention=eager"]],
)
def test_a_run_with_each_of_the_learners_options(tmp_path: Path, overrides: list[str], finished: run.Result) -> None:
    """Packed samples, another kernel and offloading leave the run as it is, up to rounding; autocast nearly so, and
    the weight check tolerates its rounding."""
    found = ulorl.train(config(tmp_path / "r", "steps=3", "eval.data={}", *overrides)).metrics
    assert found[-1]["train/samples"]
    for ours, theirs in zip(found, finished.metrics[1:4], strict=True):
        assert ours["train/samples"] == theirs["train/samples"]
        for name in ("train/loss", "train/grad_norm", "entropy/mean"):
            assert ours[name] == (
                theirs[name] if theirs[name] is None else pytest.approx(theirs[name], rel=2e-2, abs=1e-4)
            )


def test_prompt_and_output_must_fit_the_context(tmp_path: Path) -> None:
    with refused(ErrorCode.MODEL_CONTEXT, key="rollout.max_tokens"):
        ulorl.train(config(tmp_path / "long", "rollout.max_tokens=3000000"))
