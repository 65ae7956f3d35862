"""Rewards that raise, hang or die: asked again, then unscored. Never a silent 0."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ulorl
from paths import COUNTDOWN
from refusals import refused
from ulorl.algorithm import ulorl_step
from ulorl.config.reward_config import FunctionRewardConfig
from ulorl.config.training_config import ObjectiveConfig
from ulorl.engines.scripted import ScriptedEngine
from ulorl.error_codes import ErrorCode
from ulorl.evaluation.avg_at_k import EvaluationSettings, evaluate
from ulorl.learner.experience import prepare
from ulorl.learner.learner import Weights
from ulorl.learner.update_result import Update
from ulorl.rewards.factory import make_reward
from ulorl.rewards.reward import Reward, RewardError, Verdict
from ulorl.rewards.sandbox import Sandbox
from ulorl.rewards.scorer import Scorer
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import SegmentSchedule
from ulorl.runs.samples import write_samples
from ulorl.training.measured_step import measured_step
from ulorl.training.step_metrics import evaluation_metrics, step_metrics
from ulorl.types import Finish, Group, Problem, Sample, Sampling, Scored, Segment, Status

pytestmark = pytest.mark.slow

EOS = 0
PROMPT = np.array([7], np.int32)
P = Problem("p1", "?", "7", {"k": [1]})
MODULE = """
import os, sys, time
from ulorl.types import Problem

calls = 0

def flaky(problem, text):
    global calls
    calls += 1
    if calls % 3:
        raise ConnectionError("the grader is away\\nfor now")
    return text == problem.answer and problem.meta == {"k": [1]} and isinstance(problem, Problem)

def raising(problem, text):
    raise ValueError("no such key")

def hanging(problem, text):
    if text == "hang":
        time.sleep(600)
    if text == "spin":
        while True:
            pass
    return text == problem.answer

def dying(problem, text):
    if text == "die":
        os._exit(7)
    if text == "leave":
        sys.exit(0)
    return text == problem.answer

def talking(problem, text):
    print("1.0")
    os.write(1, b"1.0\\n")
    return text == problem.answer

def meeting(problem, text):
    open(text, "w").close()
    while not (os.path.exists("7") and os.path.exists("8")):
        time.sleep(0.01)
    return 1

def process(problem, text):
    open("pid", "w").write(str(os.getpid()))
    return 1
"""


class Letters:
    """A tokenizer for the scorer: token 65 is A."""

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(t) for t in tokens if t != EOS)


def sample(text: str, id: int = 0, status: Status = Status.COMPLETE) -> Sample:
    tokens = np.array([*map(ord, text), EOS], np.int32)
    n = len(tokens)
    segment = Segment(id, tokens, np.full(n, -1, np.float32), np.zeros(n, np.int32), Finish.EOS)
    return Sample(id, id // 2, PROMPT, (segment,), status)


class Of(Reward):
    """A reward that is a function."""

    def __init__(self, function: Callable[[Problem, str], float]) -> None:
        self.function = function

    def __call__(self, problem: Problem, text: str) -> Verdict:
        return Verdict(self.function(problem, text))


def scorer(reward: Reward | Callable[[Problem, str], float], **settings: Any) -> Scorer:
    of = reward if isinstance(reward, Reward) else Of(reward)
    return Scorer(of, Letters(), **{"pause": 0.0, **settings})  # type: ignore[arg-type]


def function(path: str, timeout: float = 120.0, workers: int = 1) -> Reward:
    return make_reward(FunctionRewardConfig(function=path, timeout=timeout, workers=workers))


def scored(by: Scorer, sample: Sample) -> Scored:
    return next(by.wait([by.submit(P, sample)]))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "ulorl_faulty_rewards.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])  # left as it was
    return "ulorl_faulty_rewards"


def test_a_function_that_raises_is_asked_again(module: str) -> None:
    """It raises twice of three times, and 2 retries are enough; with 1 the sample is unscored, and says why."""
    score = scorer(function(f"{module}:flaky"))
    assert [(scored(score, sample(text)).reward, scored(score, sample(text)).error) for text in "78"] == [
        (1.0, ""),
        (0.0, ""),
    ]
    unscored = scored(scorer(function(f"{module}:flaky"), retries=1), sample("7"))
    assert unscored.reward is None
    assert unscored.error == "RewardError: ConnectionError: the grader is away\nfor now"
    assert unscored.text == "7"


def test_a_function_that_hangs_is_stopped(module: str) -> None:
    """Whether it sleeps or computes, from the main thread or another; the next sample is judged as if nothing were."""
    score = scorer(function(f"{module}:hanging", timeout=1.0), retries=1)
    started = time.monotonic()
    for text in ("hang", "spin"):
        assert scored(score, sample(text)).error == "RewardError: no answer within 1 seconds"
        assert scored(score, sample("7")).reward == 1.0
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(scored(score, sample("hang")).reward))
    thread.start()
    thread.join()
    assert found == [None]
    assert time.monotonic() - started < 30
    assert scored(score, sample("hang", status=Status.TRUNCATED)).reward == 0.0  # the reward was not asked


def test_a_function_that_ends_its_process_is_asked_again(module: str) -> None:
    score = scorer(function(f"{module}:dying"))
    for text, code in (("die", 7), ("leave", 0)):
        assert scored(score, sample(text)).error == f"RewardError: the reward's process ended with code {code}"
        assert scored(score, sample("7")).reward == 1.0


def test_what_a_function_prints_is_no_answer(module: str) -> None:
    assert [function(f"{module}:talking")(P, text).reward for text in "7878"] == [1, 0, 1, 0]


def test_the_process_of_a_function_ends_with_its_reward(module: str) -> None:
    reward = function(f"{module}:process")
    assert reward(P, "").reward == 1
    pid = int(Path("pid").read_text())
    assert pid != os.getpid()
    del reward
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


LEAVES = """
import os
from ulorl.rewards.tasks import FunctionReward
from ulorl.types import Problem
reward = FunctionReward("ulorl_faulty_rewards:unending")
reward.submit(Problem("p", "?", "7"), "7")
while not (os.path.exists("pid") and os.path.getsize("pid")):  # the file exists before its text does
    pass
"""


def test_a_process_that_ends_does_not_wait_for_its_reward(module: str) -> None:
    """It ends in the middle of a request that has no end, and kills the process that computes it."""
    script = Path(f"{module}.py")
    script.write_text(
        MODULE + "def unending(problem, text):\n    process(problem, text)\n    while True:\n        pass\n"
    )
    subprocess.run([sys.executable, "-c", LEAVES], check=True, timeout=100)
    pid = int(Path("pid").read_text())
    for _ in range(1000):  # a killed process stays until its new parent has asked for its exit code
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("the process of the function goes on")


def test_workers_judge_at_once(module: str) -> None:
    """The function waits for its second call before it answers the first."""
    score = scorer(function(f"{module}:meeting", workers=2))
    futures = [score.submit(P, sample(text)) for text in "78"]
    assert [one.reward for one in score.wait(futures)] == [1.0, 1.0]


def test_a_function_judges_while_other_samples_are_decoded(module: str) -> None:
    """Sample 0 ends with its first token. The engine decodes the last token of sample 1 when the function, called for
    sample 0, has written a file: a step that judged after its last segment would never end."""

    class Waiting(ScriptedEngine):
        def step(self) -> list[Segment]:
            if self.stats.decode_steps == 2:
                for _ in range(6000):
                    if Path("pid").exists():
                        break
                    time.sleep(0.01)
                else:
                    pytest.fail("no reward before the last segment")
            return super().step()

    engine = Waiting({0: [ord("7"), EOS], 1: [ord("7"), ord("7"), EOS]}, EOS)
    scheduler = Scheduler(SegmentSchedule(prompts=1, group=2, tokens=4), max_tokens=4, sampling=Sampling(), seed=0)
    score = scorer(function(f"{module}:process"))
    step = ulorl_step(scheduler, engine, score, Learner(), [(P, PROMPT)])
    assert [scored.reward for scored in step.finished] == [1.0, 1.0]


def test_a_reward_that_never_works_stops_the_run(module: str) -> None:
    """Truncated samples say nothing about it; one that is scored restarts the count."""
    score = scorer(
        function(f"{module}:hanging", timeout=0.7),
        retries=0,
        max_unscored=3,
    )
    for text in ("hang", "hang", "7", "hang", "hang"):
        scored(score, sample(text))
    scored(score, sample("hang", status=Status.TRUNCATED))
    with refused(ErrorCode.REWARD_FAILED, key="reward.max_unscored", record="p1"):
        scored(score, sample("hang"))


def test_ctrl_c_during_an_answer_mixes_nothing_up(module: str) -> None:
    """What the first request would have been answered must not be taken for the second one's answer."""
    reward = function(f"{module}:hanging")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            reward(P, "hang")
    finally:
        signal.signal(signal.SIGINT, before)
    assert reward(P, "7").reward == 1.0


# Our sandboxes


def test_a_sandbox_that_dies_is_no_wrong_answer() -> None:
    sandbox = Sandbox("math")
    sandbox.start()
    assert sandbox._process is not None
    worker = sandbox._process
    killer = threading.Timer(0.5, worker.kill)
    killer.start()
    with pytest.raises(RewardError) as caught:
        sandbox.score(reference="7", answer="10^{10^{10}}")  # computes for four seconds
    assert caught.value.exit_code == -signal.SIGKILL
    assert sandbox.score(reference="7", answer="7") == 1
    assert sandbox._process is not worker


@pytest.mark.skipif(not hasattr(signal, "SIGXCPU"), reason="the system has no limits on CPU time")
def test_an_answer_that_used_up_the_cpu_time_is_wrong() -> None:
    """The system's own limit, for what no exception reaches: it would end the next worker too."""
    sandbox = Sandbox("math")
    sandbox.start()
    assert sandbox._process is not None
    threading.Timer(0.5, sandbox._process.send_signal, [signal.SIGXCPU]).start()
    assert sandbox.score(reference="7", answer="10^{10^{10}}") == 0


@pytest.mark.skipif(not hasattr(signal, "SIGXCPU"), reason="the system has no limits on CPU time")
@pytest.mark.parametrize(
    "system",
    [
        "def refuse(*_): raise ValueError\nresource.setrlimit = refuse",  # macOS: RLIMIT_AS
        "for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU): resource.setrlimit(kind, (3 << 30, 3 << 30))",
    ],
)
def test_limits_of_the_system_itself_fail_no_reward(system: str) -> None:
    """One that cannot be set, and hard ones, which only root may raise again."""
    judge = "from ulorl.rewards.sandbox_worker import limited_answer\nprint(limited_answer(lambda: 1.0, {}))"
    run = [sys.executable, "-c", f"import resource\n{system}\n{judge}"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "{'score': 1.0}\n"


def test_a_process_that_starts_while_its_sandbox_ends_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox, started, popen = Sandbox("math"), list[subprocess.Popen[str]](), subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        started.append(popen(*arguments, **options))
        sandbox.end()  # in another thread, at this moment
        return started[0]

    monkeypatch.setattr("ulorl.rewards.sandbox.subprocess.Popen", start)
    with pytest.raises(RewardError, match="this process ends"):
        sandbox.start()
    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_a_sandbox_that_does_not_start_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(3)\n")
    monkeypatch.setattr("ulorl.rewards.sandbox.sandbox_worker.__file__", str(broken))
    with pytest.raises(RewardError) as caught:
        Sandbox("math").score(reference="7", answer="7")
    assert caught.value.exit_code == 3
    assert "broken.py math" in str(caught.value)


# What becomes of an unscored sample


class Learner:
    """Trains nothing, and leaves out what a learner leaves out."""

    version = 0

    def update(self, groups: Sequence[Group], _: object = None) -> Update:
        return Update(groups_unscored=sum(group.unscored for group in groups))

    def publish(self) -> Weights:
        return Weights(self.version, ())


def failing_for(*texts: str) -> Any:
    def reward(problem: Problem, text: str) -> float:
        if text in texts:
            raise OSError("disk gone")
        return float(text == problem.answer)

    return reward


def test_a_group_with_an_unscored_sample_is_released_whole_counted_and_stored(tmp_path: Path) -> None:
    """Two groups of two; sample 3 fails. Its group leaves the pool, with its text and error, and is not trained."""
    scripts = {i: [ord(letter), EOS] for i, letter in enumerate("7897")}
    engine = ScriptedEngine(scripts, EOS)
    scheduler = Scheduler(SegmentSchedule(prompts=2, group=2, tokens=4), max_tokens=4, sampling=Sampling(), seed=0)
    new = [(P, PROMPT), (Problem("p2", "?", "9"), PROMPT)]
    calls: list[str] = []

    def reward(problem: Problem, text: str) -> float:
        calls.append(problem.id)
        return failing_for("7")(problem, text) if problem.id == "p2" else failing_for()(problem, text)

    measured = measured_step(
        lambda recorder: ulorl_step(scheduler, recorder, scorer(reward), Learner(), new),
        engine,
        Learner(),  # type: ignore[arg-type]
    )
    step = measured.step
    assert calls == ["p1", "p1", "p2", "p2", "p2", "p2"]  # 2 retries
    assert [[m.reward for m in group.members] for group in step.groups] == [[1.0, 0.0], [1.0, None]]
    assert [group.unscored for group in step.groups] == [False, True]
    assert (len(scheduler.experience), scheduler.in_flight) == (0, 0)

    metrics = step_metrics(1, measured, scheduler, 0, slots=8)
    assert metrics["reward/unscored"] == metrics["train/groups_unscored"] == 1
    assert metrics["reward/mean"] == pytest.approx(2 / 3)  # of the three that were scored
    assert metrics["train/groups"] == 2

    path = write_samples(tmp_path, 1, step.groups, lambda tokens: Letters().decode(tokens, skip_special_tokens=True))
    stored = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(s["reward"], s.get("error"), s["output"]) for s in stored] == [
        (1.0, None, "7"), (0.0, None, "8"), (1.0, None, "9"), (None, "OSError: disk gone", "7"),
    ]  # fmt: skip


def test_the_learner_leaves_the_whole_group_out(tmp_path: Path) -> None:
    """Three groups: one informative, one unscored, one of equal rewards: 2 samples train."""
    from ulorl.training.build import build
    from ulorl.training.preflight import load_inputs

    recipe = COUNTDOWN
    cfg = ulorl.load([recipe], ["model.threads=1", "data.size=4", "eval.data={}", f"run.dir={tmp_path / 'r'}"])
    parts = build(cfg, load_inputs(cfg))
    score = scorer(failing_for("8"), retries=0)
    texts = ("79", "78", "77")
    groups = [
        Group(g, P, tuple(scored(score, sample(text, 2 * g + i)) for i, text in enumerate(pair)))
        for g, pair in enumerate(texts)
    ]
    update = parts.learner.update(groups)
    assert (update.samples, update.groups_dropped, update.groups_unscored) == (2, 1, 1)
    none = parts.learner.update(groups[1:2])
    assert (none.steps, none.groups_dropped, none.groups_unscored) == (0, 0, 1)
    with pytest.raises((TypeError, RuntimeError)):
        prepare(groups[1:2], ObjectiveConfig(), 16)  # None is no number: it cannot slip in as a 0
    parts.engine.close()


def test_evaluation_states_what_could_not_be_scored() -> None:
    """3 problems x 2: right and wrong; right and unscored; both unscored. Shares 1/2, 1/1, none: accuracy 0.75, its
    standard error sqrt(2 x 0.25^2 / 1) / sqrt(2) = 0.25."""
    engine = ScriptedEngine({i: [ord(letter), EOS] for i, letter in enumerate("797888")}, EOS)
    result = evaluate(
        engine, scorer(failing_for("8"), retries=0), [(P, PROMPT)] * 3,
        EvaluationSettings(samples=2, sampling=Sampling(), max_tokens=4, seed=0),
    )  # fmt: skip
    assert result.by_problem == (0.5, 1.0, None)
    assert (result.accuracy, result.stderr) == pytest.approx((0.75, 0.25))
    assert result.unscored == 3
    metrics = evaluation_metrics(result, 1.0)
    assert (metrics["eval/unscored"], metrics["eval/problems"]) == (3, 3)
    none = evaluate(
        ScriptedEngine({0: [ord("8"), EOS]}, EOS), scorer(failing_for("8"), retries=0), [(P, PROMPT)],
        EvaluationSettings(samples=1, sampling=Sampling(), max_tokens=4, seed=0),
    )  # fmt: skip
    assert np.isnan(none.accuracy)
    json.dumps(evaluation_metrics(none, 1.0), allow_nan=False)


def test_one_failure_that_siblings_share_counts_once() -> None:
    """8 equal answers wait for one verdict: that it fails says no more than if one of them had waited."""
    shared = RewardError("no readable verdict")

    def reward(_: Problem, text: str) -> float:
        raise shared if text == "7" else RewardError("another")

    score = scorer(reward, retries=0, max_unscored=3)
    assert [scored(score, sample("7")).reward for _ in range(8)] == [None] * 8
    assert scored(score, sample("8")).error == "RewardError: another"  # the second in a row
    with refused(ErrorCode.REWARD_FAILED):
        scored(score, sample("8"))
