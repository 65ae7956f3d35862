"""The endpoint client against a server that misbehaves: no wrong decision, no hang, every failure counted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fake_server import Server, completion, serving
from refusals import refused
from ulorl.cancellation import Cancelled, CancelToken
from ulorl.clients.client import CachedClient
from ulorl.clients.output_cache import OutputCache
from ulorl.clients.server_client import ServerClient
from ulorl.config.client_config import EndpointClientConfig
from ulorl.error_codes import ErrorCode

KEY = "sk-very-secret"


class Faulty(Server):
    """Behaves as the user's message says; `429`, `500`, `cut`, `slow` and `drip` only the first time."""

    def answer(self, said: str, time_of: int) -> None:
        assert self.headers["Authorization"] == f"Bearer {KEY}"
        kind, _, rest = said.partition(" ")
        now = time_of == 1 or rest == "always"
        if kind in ("429", "500", "400", "401", "404") and now:
            self.send(int(kind), f'{{"error": {{"message": "no, {KEY}"}}}}'.encode())
        elif kind == "cut" and now:
            self.cut()
        elif kind == "slow" and now:
            self.sleep(1.5)
        elif kind == "drip" and now:
            self.drip(3)
        elif kind == "garbage":
            self.send(200, rest.encode())
        elif kind == "none":
            self.send(200, completion(None))
        elif kind == "long":
            self.send(200, completion("half an ans", "length"))
        elif kind == "filtered":
            self.send(200, completion("half", "content_filter"))
        else:
            time.sleep(0.02)
            self.send(200, completion(f"answer to {said}"))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> EndpointClientConfig:
    monkeypatch.setenv("TEST_KEY", KEY)
    return EndpointClientConfig(
        name="m", base_url="", api_key_env="TEST_KEY", timeout=0.5, retries=2, concurrency=4, max_failures=100
    )


def ask(url: str, settings: EndpointClientConfig, *prompts: str) -> list[str | None]:
    endpoint = ServerClient("models.judge", settings.model_copy(update={"base_url": url}))
    answers = dict(endpoint.complete([(prompt, 0) for prompt in prompts]))
    return [answers[index] for index in range(len(prompts))]


def test_it_recovers(settings: EndpointClientConfig) -> None:
    """Once 429, 500, a cut connection or a time-out: the second try answers. Never more than 4 at once."""
    prompts = ["429 a", "500 b", "cut c", "slow d", "drip e", *(f"plain {n}" for n in range(20))]
    settings = settings.model_copy(update={"timeout": 1.2})  # a plain answer takes half a second on a loaded machine
    with serving(Faulty) as (url, server):
        assert ask(url, settings, *prompts) == [f"answer to {prompt}" for prompt in prompts]
        assert [server.seen[prompt] for prompt in prompts] == [2] * 5 + [1] * 20
        assert 2 <= server.most <= 6  # the client gives up two connections before the server notices


def test_what_fails_for_good_fails_alone(settings: EndpointClientConfig) -> None:
    prompts = [
        "429 always", "500 always", "cut always", "400 x", "garbage <html>", "garbage {}", 'garbage {"choices": []}',
        'garbage {"choices": [{}]}', "garbage [1]", "garbage null", "none", "filtered", "plain",
    ]  # fmt: skip
    with serving(Faulty) as (url, _):
        assert ask(url, settings, *prompts) == [None] * 12 + ["answer to plain"]


def test_cut_at_the_length_limit_is_an_output_without_an_end(settings: EndpointClientConfig) -> None:
    with serving(Faulty) as (url, _):
        assert ask(url, settings, "long") == [""]


@pytest.mark.slow
def test_no_hang(settings: EndpointClientConfig) -> None:
    """Half a second and 2 retries: within seconds, for every behaviour of the server."""
    started = time.monotonic()
    with serving(Faulty) as (url, _):
        assert ask(url, settings, "slow always", "drip always") == [None, None]
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("status", ["401", "404"])
def test_what_no_retry_fixes_stops_at_once(settings: EndpointClientConfig, status: str) -> None:
    with serving(Faulty) as (url, server), refused(ErrorCode.SERVER_FAILED, key="models.judge") as caught:
        ask(url, settings, f"{status} x")
    assert server.seen[f"{status} x"] == 1
    assert KEY not in str(caught.value)


def test_too_many_failures_stop_the_run_and_lose_nothing(settings: EndpointClientConfig, tmp_path: Path) -> None:
    one = settings.model_copy(update={"max_failures": 3, "concurrency": 1, "retries": 0})
    prompts = [(f"plain {n}", 0) for n in range(5)] + [(f"garbage {n}", 0) for n in range(9)]
    with serving(Faulty) as (url, server):
        there = one.model_copy(update={"base_url": url})
        model = CachedClient("m", lambda: ServerClient("models.judge", there), OutputCache(tmp_path / "cache.sqlite"))
        with refused(ErrorCode.SERVER_FAILED, key="models.judge"):
            model.complete(prompts)
        assert (model.asked, model.failed) == (8, 3)
        assert model.complete(prompts[:5]) == [f"answer to plain {n}" for n in range(5)]  # from the cache
        assert server.seen["plain 0"] == 1


def test_no_server_answers(settings: EndpointClientConfig) -> None:
    assert ask("http://127.0.0.1:9/v1", settings.model_copy(update={"retries": 0}), "x") == [None]


def test_the_key_is_asked_for(monkeypatch: pytest.MonkeyPatch, settings: EndpointClientConfig) -> None:
    monkeypatch.delenv("TEST_KEY")
    with refused(ErrorCode.API_KEY_MISSING, key="models.judge.api_key_env"):
        ServerClient("models.judge", settings)


def test_cancelled_requests_are_not_sent(settings: EndpointClientConfig) -> None:
    """Two run, the others never start."""
    cancel = CancelToken()
    with serving(Faulty) as (url, server):
        slow = settings.model_copy(update={"base_url": url, "concurrency": 2, "retries": 0})
        outputs = ServerClient("models.judge", slow).complete([(f"slow {n}", 0) for n in range(20)], cancel)
        cancel.cancel()
        with pytest.raises(Cancelled):
            next(outputs)
        time.sleep(0.3)
        assert server.seen.total() <= 2
