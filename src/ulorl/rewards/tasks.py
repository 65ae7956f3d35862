"""Rewards of generated tasks and of users: reasoning-gym's scorer, chain countdown, the checker of a task definition,
and a function that the recipe names."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from ulorl.answers.extraction import Found, locate
from ulorl.clients.daemon_pool import DaemonPool
from ulorl.config.reward_config import AnswerConfig
from ulorl.data.countdown import score as countdown
from ulorl.data.task_lookup import find_task
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards.answer_reward import AnswerReward
from ulorl.rewards.reward import Reward, RewardError, Verdict
from ulorl.rewards.sandbox import SECONDS, SandboxPool, shared_sandbox
from ulorl.types import Problem

_NUMBER = re.compile(r"(?<![\d.])-?\d+(?:,\d{3})*(?:\.\d+)?")


class ReasoningGymReward(AnswerReward):
    """1.0 when reasoning-gym gives the output's answer its full score, else 0.0: partial credit counts as wrong."""

    def __init__(self, answer: AnswerConfig | None = None, timeout: float = SECONDS, workers: int = 1) -> None:
        """answer: where the answer is looked for. timeout: seconds by the clock that judging one answer may take.
        workers: processes.

        Raises UserError without the package reasoning-gym.
        """
        super().__init__(answer)
        self._timeout, self._workers, self.threads = timeout, workers, DaemonPool(workers)
        if importlib.util.find_spec("reasoning_gym") is None:
            raise UserError(
                'reward.kind=reasoning_gym needs reasoning-gym: pip install "ulorl[tasks]"',
                code=ErrorCode.EXTRA_MISSING,
                key="reward.kind",
            )

    def check(self, problem: Problem) -> None:
        """Check that the problem is one of reasoning-gym. Raises UserError."""
        _need(problem, "reasoning_gym", "task", "settings", "entry")

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Judge one output. Raises UserError for a problem that is none of reasoning-gym."""
        self.check(problem)
        found = locate_task_answer(text, problem.answer, self._answer)
        if found is None:
            return Verdict(0.0, None, reason="no answer found")
        meta = problem.meta
        settings = json.dumps(meta["settings"], sort_keys=True)
        task = shared_sandbox("task", self._timeout, self._workers)
        score = task.score(task=meta["task"], settings=settings, entry=meta["entry"], answer=found.answer)
        reason = f"the task's scorer gives {'its full score' if score == 1.0 else 'less than its full score'}"
        return Verdict(score, found.answer, found.place, reason)


def locate_task_answer(text: str, reference: str, settings: AnswerConfig | None = None) -> Found | None:
    """Return the answer in an output to a reasoning-gym problem, None when there is none.

    Where `settings.find` names nothing: the last `<answer>...</answer>`; else the last box; else, when the reference is
    a number, the last number of the text; else the last line that is not empty. An answer that is nothing but a
    number loses its thousands separators.
    """
    is_number = _NUMBER.fullmatch(reference)
    found = locate(text, settings, ("tags", "boxed", "last_number" if is_number else "line"))
    if found and is_number and _NUMBER.fullmatch(found.answer):
        return found._replace(answer=found.answer.replace(",", ""))
    return found


class CountdownReward(Reward):
    """1.0 when the output's last line is a correct chain of countdown, as `data.countdown.score` says, else 0.0."""

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Judge one output."""
        score = countdown(problem, text)
        reason = "a right chain" if score == 1.0 else "no right chain that ends in the target"
        return Verdict(score, text.rpartition("\n")[2] or None, "line", reason)


class TaskReward(Reward):
    """1.0 when the checker of the problem's task definition accepts the output, else 0.0.

    The checker runs in this process without a time limit, as the task's generator does.
    """

    def check(self, problem: Problem) -> None:
        """Check that the problem names its task. Raises UserError."""
        _need(problem, "task", "task")

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Judge one output. Raises UserError when the problem has no task, or the checker returns no bool."""
        self.check(problem)
        right: object = find_task(problem.meta["task"]).check(problem.prompt, text)
        if not isinstance(right, bool):
            message = f"task {problem.meta['task']}: check returned {right!r} for {problem.prompt!r}, expected a bool"
            raise UserError(message, code=ErrorCode.REWARD_FUNCTION, key="reward.kind", record=problem.id)
        return Verdict(float(right), reason=f"the task's checker {'accepts' if right else 'refuses'} it")


class FunctionReward(Reward):
    """The user's function `module:name`, called with the problem, the text and the keyword arguments of the recipe;
    what it returns must be 0 or 1.

    The function runs in processes of its own, with this one's import path and working folder.
    """

    def __init__(
        self, path: str, timeout: float = SECONDS, arguments: Mapping[str, Any] | None = None, workers: int = 1
    ) -> None:
        """Start a process. arguments: keyword arguments, JSON only. workers: processes; further ones start when they
        are needed. Raises UserError when the module or the function does not exist, or does not take the arguments."""
        module, colon, name = path.partition(":")
        if not (colon and module and name):
            raise _bad_function(path, "expected module:name, for example my_rewards:exact")
        if module == "__main__":
            raise _bad_function(path, "runs in another process; put it into a module of its own")
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)  # an installed command does not look into the folder it is started in
        self.threads, self._sandboxes = DaemonPool(workers), SandboxPool(workers, "function", timeout, path, arguments)
        try:
            self._sandboxes.start()
        except RewardError as error:
            raise _bad_function(path, str(error)) from None

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Call the function. Raises RewardError when it raises, hangs or dies, UserError when it returns neither 0 nor
        1."""
        fields = {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer, "meta": dict(problem.meta)}
        score = self._sandboxes.score(problem=fields, text=text)
        return Verdict(score, reason=f"your function returned {score:g}")


def _need(problem: Problem, kind: str, *fields: str) -> None:
    """Refuse a problem whose meta lacks fields that the generator of `data.kind` gives it."""
    missing = set(fields) - problem.meta.keys()
    if missing:
        raise UserError(
            f"problem {problem.id}: reward.kind={kind} needs problems of data.kind={kind} "
            f"(its meta lacks {', '.join(sorted(missing))})",
            code=ErrorCode.REWARD_PROBLEM,
            key="reward.kind",
            record=problem.id,
        )


def _bad_function(path: str, message: str) -> UserError:
    return UserError(f"reward.function={path}: {message}", code=ErrorCode.REWARD_FUNCTION, key="reward.function")
