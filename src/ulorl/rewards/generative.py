"""The generative verifier (section 3.3): a model says whether the predicted answer is equivalent to the reference."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from ulorl.answers.extraction import PROSE, locate
from ulorl.clients.client import Cache, Prompt, identity, key_of
from ulorl.clients.daemon_pool import Background
from ulorl.clients.server_client import Endpoint
from ulorl.common.progress import Advance
from ulorl.config.reward_config import RewardConfig, VerifierConfig
from ulorl.errors import UserError
from ulorl.rewards.reward import Reward, RewardError, Verdict
from ulorl.rewards.rules import Ruled, by_rules
from ulorl.rewards.verdict_prompt import VerdictPrompt, load_prompt, parse_verdict, plain
from ulorl.types import Poll, Problem

if TYPE_CHECKING:
    from ulorl.clients.engine_client import EngineModel

Pair = tuple[str, str, str]  # question, reference, predicted answer
Rules = Callable[[str, str], Ruled]  # what rules say of reference and answer; raises when they fail

FOLDER_FILE = "verifier.json"  # in the folder of a trained verifier: how it was asked when it was trained
KEY = "reward.verifier"
POLL_SECONDS = 0.2
TRAINED_TOKENS = 16  # of a verdict that `ulorl verifier train` taught: a word and its end


@dataclass
class Tally:
    """What became of pairs and outputs since it was begun.

    pairs = repeated + by_rules + refused + cached + judged + unscored, and asked = judged + unreadable + failed.
    """

    pairs: int = 0
    repeated: int = 0  # equal to one that was being judged: it got the same verdict, or none
    by_rules: int = 0  # accepted by the rules, with rules_first
    refused: int = 0  # by the rules, with rules_refuse
    cached: int = 0
    judged: int = 0  # by an output of the model
    unscored: int = 0  # without a verdict
    asked: int = 0  # outputs
    unreadable: int = 0  # outputs without a verdict
    failed: int = 0  # requests without an output
    compared: int = 0  # pairs that both rules and model judged
    agreed: int = 0
    seconds: list[float] = field(default_factory=list)  # from asking to the output

    def metrics(self) -> dict[str, float | int | None]:
        """By the names of metrics.jsonl. A mean over nothing is None."""
        return {
            "verifier/pairs": self.pairs,
            "verifier/repeated": self.repeated,
            "verifier/accepted_by_rules": self.by_rules,
            "verifier/refused_by_rules": self.refused,
            "verifier/cache_hits": self.cached,
            "verifier/judged": self.judged,
            "verifier/unscored": self.unscored,
            "verifier/asked": self.asked,
            "verifier/unreadable_rate": self.unreadable / answered if (answered := self.asked - self.failed) else None,
            "verifier/failures": self.failed,
            "verifier/agreement_with_rules": self.agreed / self.compared if self.compared else None,
            "verifier/latency_mean": float(np.mean(self.seconds)) if self.seconds else None,
            "verifier/latency_p95": float(np.quantile(self.seconds, 0.95)) if self.seconds else None,
        }


@dataclass(eq=False)
class Case:
    """A pair that is being judged. The future raises RewardError when there is no verdict, UserError when there never
    will be one."""

    pair: Pair
    message: str  # what the model is asked
    verdict: Future[bool] = field(default_factory=Future)
    by_rules: Ruled | None = None  # None: they were not asked, or failed
    by_model: bool = False  # whether the verdict is the model's, now or in the cache

    def reason(self, right: bool) -> str:
        """Of a verdict, in words."""
        if self.by_model:
            return f"the verifier said {'yes' if right else 'no'}"
        return "accepted by the rules" if right else "refused by the rules: plain numbers that differ"


class Verifier:
    """Judges pairs: a server's requests run in threads from `begin` on; a model in this process is asked about all
    that have begun, in one batch, when the first verdict is waited for.

    A verdict is asked for greedily. One that cannot be read is asked for again `retries` times, at
    `settings.retry_temperature`; then the pair has none. Equal pairs get equal verdicts: each is asked about once, and
    what could be read is kept in `cache` (None: in memory) by model, weights, prompt and pair. Greedy decoding does not
    depend on what else is in a batch, but for rounding between nearly equal logits.

    rules: told what the model says beside them; with `settings.rules_first` and `settings.rules_refuse` they are asked
    before it.
    """

    def __init__(
        self,
        settings: VerifierConfig,
        *,
        retries: int = 2,
        cache: Path | None = None,
        rules: Rules | None = None,
        key: str = KEY,
    ) -> None:
        """key: of the settings in the configuration, for messages. Raises UserError for a prompt, model folder or
        setting that cannot be used, before any model is loaded."""
        self.settings, self.prompt = _as_trained(settings, key)
        self._retries, self._rules = retries, rules
        self._endpoint: Endpoint | None = None
        self._engine: EngineModel | None = None
        if self.settings.kind == "endpoint":
            self._endpoint = Endpoint(key, self.settings)
        else:
            from ulorl.clients.engine_client import EngineModel

            self._engine = EngineModel(key, self.settings, keep=True)
        self._identity = identity(self.settings)
        self._cache_path, self._cache = cache, None if cache else Cache(None)
        self._background = Background(self.settings.concurrency)
        self._lock = Lock()
        self._open: dict[Pair, Case] = {}  # without a verdict yet
        self._stopped: UserError | None = None
        self._tally = Tally()

    def begin(self, pair: Pair) -> Case:
        """Raises UserError when the model is known to judge no more."""
        if self._stopped:
            raise self._stopped
        with self._lock:
            self._tally.pairs += 1
            if (case := self._open.get(pair)) is not None:
                self._tally.repeated += 1
                return case
            case = self._open[pair] = Case(pair, self.prompt.render(*pair))
        if self._endpoint:
            self._background.start(partial(self._judge, case, self._endpoint))
        return case

    def wait(self, case: Case, poll: Poll = lambda: None) -> bool:
        """The verdict. Raises RewardError without one, UserError when there never will be one, and whatever `poll`
        raises; then what has not been asked yet is given up."""
        try:
            if self._engine and not case.verdict.done():
                self._judge_all(self._engine, poll)
            while not wait_for([case.verdict], POLL_SECONDS).done:
                poll()
                if self._open.get(case.pair) is not case and not case.verdict.done():
                    raise RewardError("the verdict was given up while another one was waited for")
        except BaseException:
            self._background.drop()
            with self._lock:
                self._open.clear()
            raise
        return case.verdict.result()

    def verdicts(self, pairs: Sequence[Pair], advance: Advance = lambda _: None) -> list[bool | None]:
        """Whether each pair is equivalent, None where there is no verdict. advance: called by any thread. Raises
        UserError as `wait`."""
        cases, verdicts = [self.begin(pair) for pair in pairs], list[bool | None]()
        for case in cases:
            case.verdict.add_done_callback(lambda _: advance(1))
        for case in cases:
            try:
                verdicts.append(self.wait(case))
            except RewardError:
                verdicts.append(None)
        return verdicts

    def tally(self) -> Tally:
        """The counts since the last call."""
        with self._lock:
            tally, self._tally = self._tally, Tally()
        return tally

    def close(self) -> None:
        """Give back the engine's memory; the next pair loads it anew."""
        if self._engine:
            self._engine.close()

    def _judge(self, case: Case, endpoint: Endpoint) -> None:
        """One pair, in a thread."""
        try:
            if self._known(case):
                return
            for sample in range(1 + self._retries):
                started = time.perf_counter()
                output = self._asked(endpoint, (case.message, sample))
                if self._heard(case, output, time.perf_counter() - started):
                    return
            self._fail(case, self._unreadable(output))
        except Exception as error:
            self._fail(case, error)

    def _judge_all(self, model: EngineModel, poll: Poll) -> None:
        """Every pair without a verdict, in one batch."""
        cases = list(self._open.values())
        for case in cases:
            poll()
            self._known(case)
        last = ""
        error: Exception | None = None
        try:
            for sample in range(1 + self._retries):
                left = [case for case in cases if not case.verdict.done()]
                started = time.perf_counter()
                for index, output in model.complete([(case.message, sample) for case in left], poll):
                    if output is None:
                        self._count(asked=1, failed=1)
                        self._fail(left[index], RewardError("the verifier's context has no room for this pair"))
                    elif not self._heard(left[index], output, time.perf_counter() - started):
                        last = output
        except Exception as told:
            error = told
        for case in cases:
            if not case.verdict.done():
                self._fail(case, error or self._unreadable(last))

    def _known(self, case: Case) -> bool:
        """Whether the pair has its verdict without the model: by the rules, or from the cache."""
        _, reference, answer = case.pair
        if self._rules:
            try:
                case.by_rules = self._rules(reference, answer)
            except RewardError:
                case.by_rules = None
        if case.by_rules is Ruled.EQUAL and self.settings.rules_first:
            self._count(by_rules=1)
            self._settle(case, True)
            return True
        if case.by_rules is Ruled.DIFFERENT and self.settings.rules_refuse:
            self._count(refused=1)
            self._settle(case, False)
            return True
        output = self._opened_cache().get(key_of(self._identity, (case.message, 0)))
        verdict = None if output is None else parse_verdict(output)
        if verdict is None:
            return False
        self._compare(case, verdict)
        self._count(cached=1)
        self._settle(case, verdict)
        return True

    def _asked(self, endpoint: Endpoint, prompt: Prompt) -> str:
        """An output; one that failed is counted, and raises."""
        try:
            return endpoint.ask(prompt)
        except Exception as error:
            self._count(asked=1, failed=1)
            if isinstance(error, UserError):
                raise
            raise RewardError(f"the verifier does not answer: {error}") from error

    def _heard(self, case: Case, output: str, seconds: float) -> bool:
        """Whether an output holds the verdict."""
        verdict = parse_verdict(output)
        self._count(asked=1, judged=verdict is not None, unreadable=verdict is None)
        with self._lock:
            self._tally.seconds.append(seconds)
        if verdict is None:
            return False
        self._opened_cache().put(key_of(self._identity, (case.message, 0)), output)
        self._compare(case, verdict)
        self._settle(case, verdict)
        return True

    def _compare(self, case: Case, verdict: bool) -> None:
        case.by_model = True
        if case.by_rules is not None:
            self._count(compared=1, agreed=bool(case.by_rules) is verdict)

    def _settle(self, case: Case, verdict: bool) -> None:
        case.verdict.set_result(verdict)
        self._closed(case)

    def _fail(self, case: Case, error: Exception) -> None:
        if isinstance(error, UserError):
            self._stopped = error
        self._count(unscored=1)
        told = error if isinstance(error, UserError | RewardError) else RewardError(f"{type(error).__name__}: {error}")
        case.verdict.set_exception(told)
        self._closed(case)

    def _unreadable(self, output: str) -> RewardError:
        said = f"at last: {output[-200:]!r}" if output else "at last without an end within max_tokens, or empty"
        return RewardError(f"the verifier's {1 + self._retries} outputs hold no readable verdict, {said}")

    def _closed(self, case: Case) -> None:
        with self._lock:
            if self._open.get(case.pair) is case:
                del self._open[case.pair]

    def _count(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self._tally, name, getattr(self._tally, name) + count)

    def _opened_cache(self) -> Cache:
        """Opened when it is needed: the run's folder may not be there before, and one is not made for it."""
        with self._lock:
            if self._cache is None:
                there = self._cache_path and self._cache_path.parent.is_dir()
                self._cache = Cache(self._cache_path if there else None)
            return self._cache


class GenerativeReward(Reward):
    """1.0 when the verifier finds the output's answer equivalent to `problem.answer`. An output without an answer is
    wrong, and so is an answer of more than `max_answer_chars` characters: the model is not asked."""

    def __init__(self, settings: RewardConfig, cache: Path | None = None) -> None:
        """cache: where verdicts are kept, unless `settings.verifier.cache` says where. Raises UserError as
        `Verifier`."""
        own = Path(settings.verifier.cache) if settings.verifier.cache else None
        if own and not own.parent.is_dir():
            raise UserError(f"{KEY}.cache={own}: there is no folder {own.parent}")
        self._settings = settings
        self._verifier = Verifier(
            settings.verifier,
            retries=settings.retries,
            cache=own or cache,
            rules=partial(by_rules, timeout=settings.timeout),
        )
        self._too_long = 0

    def __call__(self, problem: Problem, text: str) -> Verdict:
        return self.begin(problem, text)(lambda: None)

    def begin(self, problem: Problem, text: str) -> Callable[[Poll], Verdict]:
        found = locate(text, self._settings.answer)
        if found is None:
            searched = ", ".join(self._settings.answer.find or PROSE)
            return lambda _: Verdict(0.0, None, reason=f"no answer found in {searched}")
        answer, place = found.answer, found.place
        longest = max(self._settings.verifier.max_answer_chars, 2 * len(problem.answer))
        if len(answer) > longest:
            self._too_long += 1
            return lambda _: Verdict(0.0, answer, place, f"too long: more than {longest} characters")
        if not plain(answer):  # after the length: nested tags take time in its square
            return lambda _: Verdict(0.0, None, reason=f"nothing in {place} but what a prompt may not hold")
        case = self._verifier.begin((problem.prompt, problem.answer, answer))

        def verdict(poll: Poll) -> Verdict:
            right = self._verifier.wait(case, poll)
            return Verdict(float(right), answer, place, case.reason(right))

        return verdict

    def metrics(self) -> Mapping[str, float | int | None]:
        too_long, self._too_long = self._too_long, 0
        return {**self._verifier.tally().metrics(), "verifier/too_long": too_long}


def _as_trained(settings: VerifierConfig, key: str) -> tuple[VerifierConfig, VerdictPrompt]:
    """Settings and prompt. A folder that `ulorl verifier train` wrote says how it was asked, and is asked so, unless
    `settings.prompt` names another prompt; it may also name the folder, for a server that has loaded it."""
    named = settings.prompt or (settings.name if settings.kind == "engine" else "")
    path = Path(os.path.expanduser(named)) / FOLDER_FILE
    if not named or not path.is_file():
        return settings, load_prompt(settings.prompt or "judge", settings.question_chars)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        prompt = VerdictPrompt(str(told["prompt"]), int(told["question_chars"]))
        chat = "auto" if told["chat"] else "off"
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: not what `ulorl verifier train` writes ({type(error).__name__}: {error}); train it anew, or "
            f"give {key}.prompt"
        ) from error
    most = min(settings.max_tokens, TRAINED_TOKENS)
    return settings.model_copy(update={"chat": chat, "max_tokens": most}), prompt
