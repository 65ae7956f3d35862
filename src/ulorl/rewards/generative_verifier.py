"""The generative verifier's shell: threads, futures, cache and retries around `verdict_policy`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ulorl.cancellation import NEVER, CancelToken
from ulorl.clients.client import model_identity
from ulorl.clients.daemon_pool import DaemonPool
from ulorl.clients.output_cache import OutputCache, output_key
from ulorl.clients.server_client import ServerClient
from ulorl.common.progress import Advance
from ulorl.config.reward_config import VerifierConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards.reward import RewardError
from ulorl.rewards.rules import RulesVerdict
from ulorl.rewards.verdict_parsing import parse_verdict
from ulorl.rewards.verdict_policy import AnswerPair, PairVerdict, RulesFirst, Tally
from ulorl.rewards.verdict_prompt import FOLDER_FILE, VerdictPrompt, load_prompt

if TYPE_CHECKING:
    from ulorl.clients.engine_client import EngineClient

CompareByRules = Callable[[str, str], RulesVerdict]  # of reference and answer; raises RewardError when it fails

KEY = "reward.verifier"
TRAINED_TOKENS = 16  # of a verdict that `ulorl verifier train` taught: a word and its end


@dataclass(eq=False)
class _Judging:
    """A pair without a verdict yet. The future raises RewardError when there is none, UserError when there never will
    be one."""

    pair: AnswerPair
    message: str  # what the model is asked
    future: Future[PairVerdict] = field(default_factory=Future)
    by_rules: RulesVerdict | None = None  # None: they were not asked, or failed


class Verifier:
    """Judges pairs of reference and answer with a model.

    A server's requests run in threads from `submit` on. A model in this process is asked by `run_pending`, about all
    pairs that were submitted, in one batch.

    A verdict is asked for greedily. One that cannot be read is asked for again `retries` times, at
    `settings.retry_temperature`; then the pair has none. Equal pairs get equal verdicts: each is asked about once, and
    what could be read is kept in `cache` (None: in memory) by model, weights, prompt and pair. Greedy decoding does not
    depend on the rest of a batch, except for rounding between nearly equal logits.

    rules: compared with what the model says; with `settings.rules_first` and `settings.rules_refuse` they decide first.
    """

    def __init__(
        self,
        settings: VerifierConfig,
        *,
        retries: int = 2,
        cache: Path | None = None,
        rules: CompareByRules | None = None,
        key: str = KEY,
    ) -> None:
        """key: of the settings in the configuration, for messages. Raises UserError for a prompt, model folder or
        setting that cannot be used, before any model is loaded."""
        self.settings, self.prompt = _as_trained(settings, key)
        self._retries, self._rules = retries, rules
        self._rules_first = RulesFirst(accept=settings.rules_first, refuse=settings.rules_refuse)
        self._server: ServerClient | None = None
        self._engine: EngineClient | None = None
        threads = 1
        if self.settings.kind == "endpoint":
            threads = self.settings.concurrency
            self._server = ServerClient(key, self.settings, retry_temperature=settings.retry_temperature)
        else:
            from ulorl.clients.engine_client import EngineClient

            self._engine = EngineClient(self.settings, keep=True, retry_temperature=settings.retry_temperature)
        self._identity = model_identity(self.settings)
        self._cache_path, self._cache = cache, None if cache else OutputCache(None)
        self._pool = DaemonPool(threads)
        self._lock = Lock()
        self._pending: dict[AnswerPair, _Judging] = {}
        self._stopped: UserError | None = None
        self._tally = Tally()

    def submit(self, pair: AnswerPair) -> Future[PairVerdict]:
        """Begin to judge a pair. Its future raises RewardError when there is no verdict, and UserError when there never
        will be one. Raises that UserError itself once it is known."""
        if self._stopped:
            raise self._stopped
        with self._lock:
            self._tally.pairs += 1
            if (judging := self._pending.get(pair)) is not None:
                self._tally.repeated += 1
                return judging.future
            judging = self._pending[pair] = _Judging(pair, self.prompt.render(*pair))
        if self._server:
            self._pool.submit(partial(self._ask_server, judging, self._server))
        return judging.future

    def run_pending(self, cancel: CancelToken = NEVER) -> None:
        """Ask a model in this process about every pair without a verdict, in one batch. A server's requests need no
        such call. Raises Cancelled; then the pairs stay without a verdict."""
        if self._engine:
            self._ask_engine(self._engine, cancel)

    def drop_pending(self) -> None:
        """Give up the pairs without a verdict: requests that have not started are never sent, and every future raises
        RewardError."""
        self._pool.drop()
        with self._lock:
            given_up, self._pending = list(self._pending.values()), {}
        for judging in given_up:
            judging.future.set_exception(RewardError("the verdict was given up while another one was waited for"))

    def verdicts(self, pairs: Sequence[AnswerPair], advance: Advance = lambda _: None) -> list[bool | None]:
        """Return for each pair whether it is equivalent, None where there is no verdict. advance: called with 1 for
        every pair that is done, from any thread. Raises UserError when there never will be a verdict."""
        futures = [self.submit(pair) for pair in pairs]
        for future in futures:
            future.add_done_callback(lambda _: advance(1))
        try:
            self.run_pending()
            return [self._equivalent(future) for future in futures]
        except BaseException:
            self.drop_pending()
            raise

    def take_tally(self) -> Tally:
        """Return the counts since the last call."""
        with self._lock:
            tally, self._tally = self._tally, Tally()
        return tally

    def close(self) -> None:
        """Release the engine's memory; the next pair loads the model again."""
        if self._engine:
            self._engine.close()

    @staticmethod
    def _equivalent(future: Future[PairVerdict]) -> bool | None:
        try:
            return future.result().equivalent
        except RewardError:
            return None

    def _ask_server(self, judging: _Judging, server: ServerClient) -> None:
        """Judge one pair, in a thread."""
        try:
            if self._decided_without_model(judging):
                return
            for sample in range(1 + self._retries):
                started = time.perf_counter()
                try:
                    output = server.ask((judging.message, sample))
                except Exception as error:
                    with self._lock:
                        self._tally.count_failure()
                    if isinstance(error, UserError):
                        raise
                    raise RewardError(f"the verifier does not answer: {error}") from error
                if self._read(judging, output, time.perf_counter() - started):
                    return
            raise self._unreadable(output)
        except Exception as error:
            self._fail(judging, error)

    def _ask_engine(self, engine: EngineClient, cancel: CancelToken) -> None:
        """Judge every pair without a verdict, in one batch."""
        batch = list(self._pending.values())
        for judging in batch:
            cancel.check()
            self._decided_without_model(judging)
        last, failure = "", None
        try:
            for sample in range(1 + self._retries):
                left = [judging for judging in batch if not judging.future.done()]
                started = time.perf_counter()
                for index, output in engine.complete([(judging.message, sample) for judging in left], cancel):
                    if output is None:
                        with self._lock:
                            self._tally.count_failure()
                        self._fail(left[index], RewardError("the pair does not fit the verifier's context"))
                    elif not self._read(left[index], output, time.perf_counter() - started):
                        last = output
        except Exception as error:
            failure = error
        for judging in batch:
            if not judging.future.done():
                self._fail(judging, failure or self._unreadable(last))

    def _decided_without_model(self, judging: _Judging) -> bool:
        """Settle the pair by the rules or from the cache, if either gives its verdict."""
        if self._rules:
            try:
                judging.by_rules = self._rules(judging.pair.reference, judging.pair.answer)
            except RewardError:
                judging.by_rules = None
        if (by_rules := self._rules_first.decide(judging.by_rules)) is not None:
            with self._lock:
                self._tally.count_decided_by_rules(by_rules)
            self._settle(judging, by_rules)
            return True
        output = self._opened_cache().get(output_key(self._identity, judging.message, 0))
        verdict = None if output is None else parse_verdict(output)
        if verdict is None:
            return False
        with self._lock:
            self._tally.count_agreement(judging.by_rules, verdict)
            self._tally.cached += 1
        self._settle(judging, PairVerdict(verdict, by_model=True))
        return True

    def _read(self, judging: _Judging, output: str, seconds: float) -> bool:
        """Settle the pair by a model's output, if it holds a verdict."""
        verdict = parse_verdict(output)
        with self._lock:
            self._tally.count_output(verdict, seconds)
        if verdict is None:
            return False
        self._opened_cache().put(output_key(self._identity, judging.message, 0), output)
        with self._lock:
            self._tally.count_agreement(judging.by_rules, verdict)
        self._settle(judging, PairVerdict(verdict, by_model=True))
        return True

    def _settle(self, judging: _Judging, verdict: PairVerdict) -> None:
        if self._taken(judging):
            judging.future.set_result(verdict)

    def _fail(self, judging: _Judging, error: Exception) -> None:
        if isinstance(error, UserError):
            self._stopped = error
        elif not isinstance(error, RewardError):
            error = RewardError(f"{type(error).__name__}: {error}")
        if self._taken(judging):
            with self._lock:
                self._tally.unscored += 1
            judging.future.set_exception(error)

    def _taken(self, judging: _Judging) -> bool:
        """Take a pair out of those without a verdict. False when it was given up meanwhile."""
        with self._lock:
            mine = self._pending.get(judging.pair) is judging
            if mine:
                del self._pending[judging.pair]
        return mine

    def _unreadable(self, output: str) -> RewardError:
        said = f"at last: {output[-200:]!r}" if output else "at last without an end within max_tokens, or empty"
        return RewardError(f"the verifier's {1 + self._retries} outputs hold no readable verdict, {said}")

    def _opened_cache(self) -> OutputCache:
        """Open the cache when it is needed: before that the run's folder may not exist, and it is not made for it."""
        with self._lock:
            if self._cache is None:
                exists = self._cache_path and self._cache_path.parent.is_dir()
                self._cache = OutputCache(self._cache_path if exists else None)
            return self._cache


def _as_trained(settings: VerifierConfig, key: str) -> tuple[VerifierConfig, VerdictPrompt]:
    """Return settings and prompt. A folder that `ulorl verifier train` wrote says how it was asked, and is asked so,
    unless `settings.prompt` names another prompt; it may also name the folder, for a server that has loaded it."""
    named = settings.prompt or (settings.name if settings.kind == "engine" else "")
    path = Path(os.path.expanduser(named)) / FOLDER_FILE
    if not named or not path.is_file():
        return settings, load_prompt(settings.prompt or "judge", settings.question_chars, key=f"{key}.prompt")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        prompt = VerdictPrompt(str(card["prompt"]), int(card["question_chars"]))
        chat = "auto" if card["chat"] else "off"
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: not what `ulorl verifier train` writes ({type(error).__name__}: {error}); train it again, or "
            f"give {key}.prompt",
            code=ErrorCode.VERIFIER_PROMPT,
            file=path,
            key=f"{key}.prompt",
        ) from error
    most = min(settings.max_tokens, TRAINED_TOKENS)
    trained = {"max_tokens": most, **({"chat": chat} if settings.kind == "engine" else {})}
    return settings.model_copy(update=trained), prompt
