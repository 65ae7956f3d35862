"""The folder of one evaluation, which a killed evaluation continues.

settings.json    what is evaluated and how; a folder holds one evaluation
evaluation.lock  empty; the operating system knows which process writes here
samples.jsonl    the answers, one JSON object a line, by problem and run
entropies/       a file for each block of problems: log-probs and entropies of all output tokens
results.json     the figures, when the evaluation is finished (`stored_results`)

Problems are answered in blocks. A block is decoded from an idle engine and written whole, and a resumed evaluation
begins at the first block that is not there: the engine meets the same batches, so that its answers are the same bit for
bit. Another batch would round differently.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ulorl.common import atomic_files, folder_lock
from ulorl.common.key_paths import flatten
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.evaluation.summary import Answer
from ulorl.types import LogProbs, Problem, Scored, Status

SETTINGS, SAMPLES, ENTROPIES, RESULTS = "settings.json", "samples.jsonl", "entropies", "results.json"
LOCK = "evaluation.lock"


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """What the model says of each output token of one answer, under softmax(logits / temperature): [T] each."""

    logprobs: LogProbs
    entropies: LogProbs  # in nats, over the full vocabulary


def locked(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock of the folder of an evaluation, as `folder_lock.locked` does. Raises UserError when another process
    has it, or the folder cannot be created."""
    busy = UserError(
        f"{folder}: another process writes this evaluation; wait for it, or choose another --out",
        code=ErrorCode.EVALUATION_LOCKED,
        file=folder,
    )
    return folder_lock.locked(folder / LOCK, busy=busy, fix="Choose another --out, or give permission")


def clear(folder: Path) -> None:
    """Remove the evaluation that a folder holds, but not its lock. The settings go last: a kill meanwhile leaves the
    old evaluation with less in it, never answers without the settings that decided them."""
    (folder / RESULTS).unlink(missing_ok=True)
    atomic_files.remove(folder / ENTROPIES)
    (folder / SAMPLES).unlink(missing_ok=True)
    (folder / SETTINGS).unlink(missing_ok=True)


@dataclass(frozen=True)
class StoredEvaluation:
    """The folder of one evaluation.

    problems: how many there are. samples: k. block: problems in a block; the last block may have fewer.
    """

    folder: Path
    problems: int
    samples: int
    block: int

    def open(self, settings: Mapping[str, Any]) -> None:
        """Begin the evaluation, or check that the folder holds this one. Drops a block that is not whole.

        settings: JSON values that decide the answers. Raises UserError when the folder holds another evaluation.
        """
        path, text = self.folder / SETTINGS, json.dumps(settings, indent=2)
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_files.write_text(path, text + "\n")
            return
        there, asked = flatten(_read_json(path)), flatten(json.loads(text))
        if differ := [key for key in sorted(there | asked) if there.get(key) != asked.get(key)]:
            first = differ[0]
            raise UserError(
                f"{self.folder} holds another evaluation: {first} is {there.get(first)!r} there and "
                f"{asked.get(first)!r} here{f', and {len(differ) - 1} more differ' if len(differ) > 1 else ''}. Choose "
                "another --out, or --overwrite to replace it",
                code=ErrorCode.EVALUATION_TAKEN,
                file=self.folder,
                key=first,
            )
        self._drop_incomplete()

    def blocks(self) -> Iterator[range]:
        """Yield the problems of each block, by index."""
        return (range(i, min(i + self.block, self.problems)) for i in range(0, self.problems, self.block))

    @property
    def answered(self) -> int:
        """The number of problems whose answers are stored."""
        path = self.folder / SAMPLES
        if not path.exists():
            return 0
        with path.open("rb") as lines:
            return sum(1 for _ in lines) // self.samples

    def append(self, scored: Sequence[Scored], problems: Sequence[Problem]) -> None:
        """Store the answers of the next block, flushed to the disk. problems: those of the block."""
        first = scored[0].sample.group_id
        text = "".join(_line(one, problems[one.sample.group_id - first], self.samples) for one in scored)
        with (self.folder / SAMPLES).open("a", encoding="utf-8", newline="\n") as lines:
            lines.write(text)
            lines.flush()
            os.fsync(lines.fileno())

    def answers(self) -> list[Answer]:
        """Return all stored answers."""
        return [
            Answer(
                np.array(line["tokens"], np.int32),
                truncated=line["status"] == Status.TRUNCATED,
                reward=line["reward"],
                answer=line["answer"],
            )
            for line in self._lines()
        ]

    def scored_blocks(self) -> set[int]:
        """Return the first problems of the blocks whose tokens are scored."""
        return {int(path.stem) for path in (self.folder / ENTROPIES).glob("*.npz")}

    def store_scores(self, problems: range, scores: Sequence[AnswerScores]) -> None:
        """Store the scores of a block's answers."""
        path = self._scores_of(problems)
        path.parent.mkdir(exist_ok=True)
        with atomic_files.replacing(path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                lengths=np.array([len(one.logprobs) for one in scores], np.int64),
                logprobs=np.concatenate([one.logprobs for one in scores]),
                entropies=np.concatenate([one.entropies for one in scores]),
            )

    def scores(self, problems: range) -> list[AnswerScores]:
        """Return the scores of a block's answers."""
        with np.load(self._scores_of(problems)) as file:
            ends = np.cumsum(file["lengths"])[:-1]
            pairs = zip(np.split(file["logprobs"], ends), np.split(file["entropies"], ends), strict=True)
            return [AnswerScores(logprobs, entropies) for logprobs, entropies in pairs]

    def _scores_of(self, problems: range) -> Path:
        return self.folder / ENTROPIES / f"{problems.start:06d}.npz"

    def _lines(self) -> Iterator[dict[str, Any]]:
        path = self.folder / SAMPLES
        if path.exists():
            with path.open(encoding="utf-8") as lines:
                yield from map(json.loads, lines)

    def _drop_incomplete(self) -> None:
        """Cut samples.jsonl behind the last whole block."""
        path = self.folder / SAMPLES
        if not path.exists():
            return
        end, count, position = 0, 0, 0
        with path.open("rb") as lines:
            for line in lines:
                count, position = count + line.endswith(b"\n"), position + len(line)
                if count % (self.block * self.samples) == 0 or count == self.problems * self.samples:
                    end = position if line.endswith(b"\n") else end
        if end < position:
            os.truncate(path, end)


def _line(scored: Scored, problem: Problem, samples: int) -> str:
    sample = scored.sample
    entry = {
        "problem": problem.id,
        "run": sample.id % samples,
        "reward": scored.reward,
        "answer": scored.answer,
        "reference": problem.answer,
        "status": sample.status.value,
        "length": len(sample),
        **({"error": scored.error} if scored.reward is None else {}),
        "output": scored.text,
        "tokens": sample.tokens.tolist(),
    }
    return json.dumps(entry, allow_nan=False) + "\n"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); choose another --out, or --overwrite to replace the evaluation",
            code=ErrorCode.EVALUATION_TAKEN,
            file=path,
        ) from error
    return found
