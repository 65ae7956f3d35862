"""The folder of an evaluation: what is whole stays, what is cut is dropped."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from refusals import refused
from ulorl.error_codes import ErrorCode
from ulorl.evaluation import stored_evaluation
from ulorl.evaluation.stored_evaluation import ENTROPIES, LOCK, SAMPLES, AnswerScores, StoredEvaluation, clear, locked
from ulorl.types import Finish, Problem, Sample, Scored, Segment, Status

SETTINGS = {"suite": "s", "eval": {"temperature": 0.85}}
PROBLEMS = [Problem(str(n), "?", str(n)) for n in range(5)]


def scored(id: int, reward: float | None = 1.0) -> Scored:
    n = id % 3 + 1
    segment = Segment(id, np.arange(n, dtype=np.int32), np.zeros(n, np.float32), np.zeros(n, np.int32), Finish.EOS)
    return Scored(Sample(id, id // 2, np.zeros(1, np.int32), (segment,), Status.COMPLETE), reward, "t", "", str(id))


def opened(folder: Path) -> StoredEvaluation:
    """5 problems x 2 answers in blocks of 2 problems."""
    stored = StoredEvaluation(folder, problems=5, samples=2, block=2)
    stored.open(SETTINGS)
    return stored


def append(stored: StoredEvaluation, block: range) -> None:
    ids = range(block.start * 2, block.stop * 2)
    stored.append([scored(id) for id in ids], PROBLEMS[block.start : block.stop])


def test_what_is_stored_reads_back(tmp_path: Path) -> None:
    stored = opened(tmp_path / "e")
    assert (stored.answered, stored.answers()) == (0, [])
    assert list(stored.blocks()) == [range(2), range(2, 4), range(4, 5)]
    for block in stored.blocks():
        append(stored, block)
    assert opened(tmp_path / "e").answered == 5
    answers = stored.answers()
    assert [one.tokens.tolist() for one in answers[:3]] == [[0], [0, 1], [0, 1, 2]]
    assert [one.answer for one in answers] == [str(n) for n in range(10)]
    line = json.loads((tmp_path / "e" / SAMPLES).read_text().splitlines()[3])
    assert (line["problem"], line["run"], line["reference"], line["length"]) == ("1", 1, "1", 1)


@pytest.mark.parametrize("left", [0, 1, 40, 1000])  # bytes of the second block that a kill left
def test_a_block_that_was_cut_is_dropped(left: int, tmp_path: Path) -> None:
    stored = opened(tmp_path)
    append(stored, range(2))
    whole = (tmp_path / SAMPLES).read_bytes()
    append(stored, range(2, 4))
    both = (tmp_path / SAMPLES).read_bytes()
    (tmp_path / SAMPLES).write_bytes(both[: min(len(whole) + left, len(both) - 1)])
    again = opened(tmp_path)
    assert again.answered == 2
    assert (tmp_path / SAMPLES).read_bytes() == whole
    append(again, range(2, 4))
    append(again, range(4, 5))  # the last block is shorter
    assert opened(tmp_path).answered == 5


def test_another_evaluation_is_refused(tmp_path: Path) -> None:
    opened(tmp_path)
    with refused(ErrorCode.EVALUATION_TAKEN, file=tmp_path, key="eval.temperature") as caught:
        StoredEvaluation(tmp_path, 5, 2, 2).open({"suite": "s", "eval": {"temperature": 1.0}})
    assert "0.85 there and 1.0 here" in str(caught.value)
    (tmp_path / "settings.json").write_text("{")
    with refused(ErrorCode.EVALUATION_TAKEN, file=tmp_path / "settings.json"):
        opened(tmp_path)


def test_scores_read_back(tmp_path: Path) -> None:
    stored, rng = opened(tmp_path), np.random.default_rng(0)
    scores = [AnswerScores(rng.random(n).astype(np.float32), rng.random(n).astype(np.float32)) for n in (1, 2, 3, 1)]
    assert stored.scored_blocks() == set()
    stored.store_scores(range(2, 4), scores)
    assert stored.scored_blocks() == {2}
    for one, other in zip(stored.scores(range(2, 4)), scores, strict=True):
        assert (one.logprobs == other.logprobs).all()
        assert (one.entropies == other.entropies).all()


@pytest.mark.parametrize(
    ("killed_at", "left"),
    [
        (SAMPLES, {LOCK, SAMPLES, stored_evaluation.SETTINGS}),
        (stored_evaluation.SETTINGS, {LOCK, stored_evaluation.SETTINGS}),
        ("", {LOCK}),
    ],
)
def test_a_kill_while_an_evaluation_is_removed_leaves_no_answers_without_settings(
    killed_at: str, left: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, unlink = tmp_path / "e", Path.unlink
    append(opened(folder), range(2))
    (folder / ENTROPIES).mkdir()

    def killed(path: Path, *, missing_ok: bool = False) -> None:
        if path.name == killed_at:
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with locked(folder):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt) if killed_at else nullcontext():
            patched.setattr(Path, "unlink", killed)
            clear(folder)
        assert {path.name for path in folder.iterdir()} == left
        with refused(ErrorCode.EVALUATION_LOCKED, file=folder), locked(folder):
            pass
