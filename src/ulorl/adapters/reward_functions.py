"""Our rewards as functions that other trainers call: `reward_function` for TRL, `compute_score` for verl.

Both judge as `ulorl train` does, with the same retries. Only TRL says which outputs were truncated (`eos_token_id`); in
verl they are judged by their text. A process makes each reward once, at its first use, so the functions can be pickled
and called in pools of processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ulorl.adapters.reward_judge import judge_of, resolved_settings
from ulorl.data.record_files import decimal, is_number
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards.reward import Verdict
from ulorl.types import Metrics, Problem

_WITHOUT_REFERENCE = ("countdown", "task", "function")  # kinds that can judge without a reference answer
_NEEDED = {"task": ("task",), "reasoning_gym": ("task", "settings", "entry")}  # fields of meta, by kind
_TAKEN = {"choice": ("options", "choices")}  # that are taken where they exist


def reward_function(
    reward: str = "math",
    *,
    answer_column: str = "answer",
    answer_after: str = "",
    question_column: str = "",
    columns: Sequence[str] = (),
    eos_token_id: int | Sequence[int] = (),
    name: str = "",
    **settings: Any,
) -> RewardFunction:
    r"""Return a reward as a function for `reward_funcs` of TRL's GRPOTrainer.

    reward: a kind (math, numeric, exact, choice, rules, reasoning_gym, countdown, task, function, generative), or a
    recipe whose [reward] counts: its path, or its name in the package. settings: keys of [reward], over the recipe:
    `reward_function("numeric", tolerance=0.01, answer={"find": ["boxed"]})`. answer_column: the column of the dataset
    with the reference answers, which only countdown, task and function can do without. answer_after: the reference is
    the text after the last such mark (`####` in GSM8K). question_column: the column with the question; "": the last
    message of the user, or the prompt where it is text. columns: further ones that the reward reads as
    `problem.meta` (`data.keep` of a recipe). eos_token_id: the tokens that end an output, as in
    `model.generation_config`: a completion that does not end with one was truncated and gets 0.0, as in the paper
    (section 3.5); without them it is judged by its text. name: by which TRL logs the reward; "": `math_reward` for the
    kind math.

    Raises UserError for an unknown reward or setting, a missing extra, or a function that cannot be used.
    """
    resolved = resolved_settings(reward, json.dumps(_plain(settings), sort_keys=True))
    judge_of(resolved, os.getpid())  # whatever is wrong with it shows now
    ends = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
    return RewardFunction(resolved, answer_column, answer_after, question_column, tuple(columns), ends, name)


class RewardFunction:
    """A reward with the signature of TRL's reward functions; `reward_function` makes one."""

    def __init__(
        self,
        resolved: str,
        answer_column: str,
        answer_after: str,
        question_column: str,
        columns: tuple[str, ...],
        ends: tuple[int, ...],
        name: str,
    ) -> None:
        """resolved: what `resolved_settings` returned. ends: EOS tokens. The others: as of `reward_function`."""
        self._kind = str(json.loads(resolved)["kind"])
        self.__name__ = name or f"{self._kind}_reward"
        self._resolved, self._answer, self._after = resolved, answer_column, answer_after
        self._question, self._ends = question_column, ends
        self._needed, self._taken = (*_NEEDED.get(self._kind, ()), *columns), _TAKEN.get(self._kind, ())

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return 1.0 for each completion that answers its prompt correctly, 0.0 for any other.

        prompts, completions: texts, or conversations as lists of messages; of a completion the last message of the
        assistant counts. columns: one value for each completion, and what TRL adds (`trainer_state`, `log_extra`,
        `log_metric`). None, which TRL leaves out of the reward, where the reward failed, and where the row's answer or
        task is None, so that datasets of several tasks can be mixed.

        Raises UserError naming the column that the dataset lacks or that has an unusable value, and when the reward
        failed `max_unscored` times in a row.
        """
        problems = [self._problem(i, prompt, columns) for i, prompt in enumerate(prompts)]
        texts = [None if self._truncated(i, columns) else _said(said) for i, said in enumerate(completions)]
        outputs = [(p, t) for p, t in zip(problems, texts, strict=True) if p is not None and t is not None]
        judge = judge_of(self._resolved, os.getpid())
        judged = iter(judge.verdicts(outputs))
        verdicts = [
            None if problem is None else Verdict(0.0) if text is None else next(judged)
            for problem, text in zip(problems, texts, strict=True)
        ]
        if log_extra := columns.get("log_extra"):
            log_extra(f"{self.__name__}/extracted", [verdict.answer if verdict else None for verdict in verdicts])
        if log_metric := columns.get("log_metric"):
            scored = [verdict for verdict in verdicts if verdict]
            counts: Metrics = {
                "reward/unscored": sum(problem is not None for problem in problems) - len(scored),
                "reward/no_answer": sum(verdict.answer is None for verdict in scored),
            }
            for name, value in {**counts, **judge.metrics()}.items():
                if value is not None:
                    log_metric(name, value)
        return [verdict.reward if verdict else None for verdict in verdicts]

    def _problem(self, row: int, prompt: Any, columns: Mapping[str, Any]) -> Problem | None:
        """Return the problem of a completion; None where its row has no reference, or not what its kind needs."""
        meta = {name: self._value("columns", name, row, columns) for name in self._needed}
        answer = self._answer_of(row, columns)
        if answer is None or any(meta[name] is None for name in _NEEDED.get(self._kind, ())):
            return None
        question = self._value("question_column", self._question, row, columns) if self._question else _asked(prompt)
        meta |= {name: columns[name][row] for name in self._taken if name in columns}
        return Problem(f"of completion {row}", str(question), answer, meta)

    def _answer_of(self, row: int, columns: Mapping[str, Any]) -> str | None:
        """Return the reference answer of a row, None where it lacks one that its kind needs."""
        if self._kind in _WITHOUT_REFERENCE:
            return _text(columns[self._answer][row]) if self._answer in columns else ""
        value = self._value("answer_column", self._answer, row, columns)
        return None if value is None else _reference(value, f"column {self._answer!r}", self._after)

    def _truncated(self, row: int, columns: Mapping[str, Any]) -> bool:
        if not self._ends:
            return False
        ids = self._value("eos_token_id", "completion_ids", row, columns)
        return not ids or ids[-1] not in self._ends

    def _value(self, argument: str, column: str, row: int, columns: Mapping[str, Any]) -> Any:
        if column not in columns:
            found = ", ".join(name for name, values in columns.items() if isinstance(values, list | tuple)) or "none"
            raise UserError(
                f"{self.__name__}: the dataset has no column {column!r} ({argument}); besides the prompt it has "
                f"{found}. Name the right column, or add it to the dataset",
                code=ErrorCode.REWARD_PROBLEM,
                key=argument,
            )
        return columns[column][row]


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    reward: str = "math",
    columns: Sequence[str] = (),
    **settings: Any,
) -> float:
    """Return 1.0 when an output answers its problem correctly, else 0.0: the `custom_reward_function` of verl.

    verl imports it with `reward.custom_reward_function.path=pkg://ulorl.adapters.reward_functions`, and passes
    `custom_reward_function.reward_kwargs` on: `reward`, `columns` and keys of [reward], all as of `reward_function`.
    The question is `extra_info["question"]`, "" where there is none; `columns` and what a task needs are fields of
    `extra_info` too.

    verl requires a number for each output. An output that the reward failed to judge, after its retries, therefore gets
    0.0 and a warning in the log `ulorl.adapters`. After `max_unscored` of them in a row UserError is raised. Raises
    UserError also for unusable settings, for a missing field of `extra_info`, and for a `ground_truth` that is neither
    text nor a number.
    """
    for name in ("reward_router_address", "reward_model_tokenizer"):  # which verl adds where it serves a reward model
        settings.pop(name, None)
    resolved = resolved_settings(reward, json.dumps(_plain(settings), sort_keys=True))
    kind, info = str(json.loads(resolved)["kind"]), extra_info or {}
    needed = (*_NEEDED.get(kind, ()), *columns)
    if missing := [name for name in needed if name not in info]:
        raise UserError(
            f"compute_score: extra_info of {data_source!r} has no field {missing[0]!r}; it has "
            f"{', '.join(map(str, info)) or 'none'}. Add it when the data set is made",
            code=ErrorCode.REWARD_PROBLEM,
            key="columns",
        )
    kept = (*needed, *(name for name in _TAKEN.get(kind, ()) if name in info))
    optional = kind in _WITHOUT_REFERENCE
    answer = _text(ground_truth) if optional else _reference(ground_truth, f"ground_truth of {data_source!r}")
    meta = {name: _plain(info[name]) for name in kept}
    problem = Problem(f"of {data_source}", str(info.get("question") or ""), answer, meta)
    (verdict,) = judge_of(resolved, os.getpid()).verdicts([(problem, solution_str)])
    return verdict.reward if verdict else 0.0


def _plain(value: Any) -> Any:
    """Return mappings and lists of other kinds, such as OmegaConf's, as dicts and lists."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value


def _text(value: Any) -> str:
    """Return a value that may be missing as text."""
    return "" if value is None else str(value)


def _reference(value: Any, place: str, after: str = "") -> str:
    """Return a reference answer as text; after: a mark that it stands behind. Raises UserError naming the place."""
    if not (isinstance(value, str) or is_number(value)):
        problem = f"is {str(value)[:80]!r}, expected text or a number"
    else:
        text = value if isinstance(value, str) else decimal(value)
        _, mark, answer = text.rpartition(after) if after else ("", "", text)
        if mark == after and answer.strip():
            return answer.strip()
        problem = f"lacks {after!r} (answer_after)" if mark != after else "holds no text"
    raise UserError(f"{place} {problem}", code=ErrorCode.REWARD_PROBLEM, key="answer_column")


def _asked(prompt: Any) -> str:
    """Return the question of a prompt: the text, or of a conversation the last message of the user."""
    return prompt if isinstance(prompt, str) else _last(prompt, "user")


def _said(completion: Any) -> str:
    """Return the text of a completion: of a conversation, the last message of the assistant."""
    return completion if isinstance(completion, str) else _last(completion, "assistant")


def _last(messages: Any, role: str) -> str:
    for message in reversed(messages):
        if message["role"] == role:
            content = message["content"] or ""
            parts = [{"text": content}] if isinstance(content, str) else content
            return "".join(part.get("text") or "" for part in parts)
    return ""
