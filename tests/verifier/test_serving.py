"""`ulorl verifier serve` over real HTTP on loopback, asked by the official client and by our own reward."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest
from typer.testing import CliRunner

from bigram_model import save_bigram_model
from refusals import refused
from small_models import make_tokenizer
from ulorl.cli.main import app
from ulorl.clients.engine_client import EngineClient
from ulorl.clients.shared_engine import SharedEngine
from ulorl.config.client_config import EngineClientConfig
from ulorl.config.reward_config import EndpointVerifierConfig, GenerativeRewardConfig
from ulorl.engines.scripted import ScriptedEngine
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards.factory import make_reward
from ulorl.rewards.reward import wait_for_verdict
from ulorl.types import Problem, Request, Segment
from ulorl.verifier.chat_app import ChatModel
from ulorl.verifier.chat_format import ApiError, parse_request
from ulorl.verifier.serving import bind, load, make_server, run_arguments
from ulorl.verifier.serving_config import ServingConfig, api_key, is_loopback

LONGEST = 48  # tokens of an output
PROBLEMS = ["7,2,7,2>10", "3,5,7>15", "2,4,1>8", "9,1,1>11"]  # of which two end by then


@contextmanager
def serving(path: str, key: str = "", **settings: Any) -> Iterator[tuple[str, Any]]:
    """The base URL of a served model, and its engine."""
    model, engine = load(path, "verifier", ServingConfig(**settings))
    with listening_to(model, key) as url:
        yield url, engine
    engine.close()


@contextmanager
def listening_to(model: ChatModel, key: str = "") -> Iterator[str]:
    """The base URL of a model. At the end the server stops as Ctrl-C stops it."""
    with bind("127.0.0.1", 0) as listening:
        server = make_server(model, key)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def tiny() -> Iterator[tuple[str, Any]]:
    with serving("ulorl:tiny", max_tokens=LONGEST) as served:
        yield served


@lru_cache
def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def ask(url: str, text: str, **more: Any) -> Any:
    given: dict[str, Any] = {"model": "verifier", "messages": [{"role": "user", "content": text}], **more}
    return client_of(url).chat.completions.create(**given)


def text_of(url: str, text: str, **more: Any) -> str:
    return str(ask(url, text, **more).choices[0].message.content)


def test_concurrent_requests_get_what_our_engine_says(tiny: tuple[str, Any]) -> None:
    """Greedy: 24 requests of 8 threads get the outputs of our engine client, and share decode steps."""
    url, engine = tiny
    prompts = [(PROBLEMS[i % 4], 0) for i in range(24)]
    ours = dict(
        EngineClient(EngineClientConfig(name="ulorl:tiny", max_tokens=LONGEST, temperature=0)).complete(prompts)
    )
    assert len(set(ours.values())) > 2
    stats = engine._worker._engine.stats
    before = stats.decode_steps, stats.decode_tokens
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: ask(url, prompt[0]), prompts))
    for i, answer in enumerate(answers):
        (choice,) = answer.choices
        assert (choice.message.content if choice.finish_reason == "stop" else "") == ours[i]
        assert (choice.finish_reason == "length") is (answer.usage.completion_tokens == LONGEST)
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    stats = engine._worker._engine.stats
    decoded = stats.decode_tokens - before[1]
    assert decoded == sum(answer.usage.completion_tokens for answer in answers)
    assert stats.decode_steps - before[0] < decoded / 2  # else they would be as many
    assert len({answer.id for answer in answers}) == 24


def test_parameters_are_honoured(tiny: tuple[str, Any]) -> None:
    url, _ = tiny
    greedy = text_of(url, PROBLEMS[0])
    assert text_of(url, PROBLEMS[0], temperature=2, top_p=1e-9) == greedy  # the most probable token alone is kept
    drawn = [text_of(url, PROBLEMS[0], temperature=2, seed=seed) for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert len({text_of(url, PROBLEMS[0], temperature=2) for _ in range(4)}) > 1  # without a seed: another draw
    short = ask(url, PROBLEMS[0], max_completion_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    stopped = ask(url, PROBLEMS[0], stop=["@", greedy[2]]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (greedy[: greedy.index(greedy[2])], "stop")
    assert [model.id for model in client_of(url).models.list()] == ["verifier"]


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"model": "gpt-x"}, openai.NotFoundError, "model"),
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "tools"),
        ({"messages": [{"role": "system", "content": "Judge."}]}, openai.BadRequestError, "messages"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "messages"),
    ],
)
def test_what_is_not_supported_is_refused(
    tiny: tuple[str, Any], change: dict[str, Any], error: type[openai.APIStatusError], param: str
) -> None:
    with pytest.raises(error) as caught:
        ask(tiny[0], PROBLEMS[0], **change)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def status_of(url: str, path: str, sent: bytes | None = None, **headers: str) -> int:
    """The status of a raw request. headers: in place of what a client sends, with _ for -."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, sent, given), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        failed = error
    assert json.load(failed)["error"]["type"] == "invalid_request_error"
    return failed.code


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost", 200), ("LOCALHOST:80", 200), ("[::1]:8000", 200), ("[::1]", 200),
        ("attacker.example:8000", 421), ("localhost.attacker.example", 421), ("127.0.0.1.attacker.example", 421),
        ("localhost:8000@attacker.example", 421), ("192.168.0.7:8000", 421), ("[::]:80", 421), ("", 421),
    ],
)  # fmt: skip
def test_without_a_key_only_this_machines_names_are_answered(tiny: tuple[str, Any], host: str, status: int) -> None:
    """A web page that gives its own name this address (DNS rebinding) sends that name as Host."""
    assert status_of(tiny[0], "/models", Host=host) == status


def test_a_body_must_be_declared_as_json(tiny: tuple[str, Any]) -> None:
    """A web page can send text/plain to any address without asking the server first; JSON it cannot."""
    sent = body(model="verifier", max_tokens=1)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "text/plain; a=application/json"):
        assert status_of(tiny[0], "/chat/completions", sent, Content_Type=kind) == 415
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        assert status_of(tiny[0], "/chat/completions", sent, Content_Type=kind) == 200


def body(**change: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "7"}], **change}).encode()


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (b"{", None), (b"[1]", None), (b"\xff", None), (b"[" * 100_000, None),
        (body(stream=True), "stream"), (body(logprobs=True), "logprobs"), (body(best_of=4), "best_of"),
        (body(response_format={"type": "json_object"}), "response_format"), (body(n=0), "n"),
        (body(temperature=-1), "temperature"), (body(temperature="0"), "temperature"),
        (body(temperature=9), "temperature"),
        (body(top_p=0), "top_p"), (body(max_tokens=0), "max_tokens"), (body(max_tokens=1.5), "max_tokens"),
        (body(max_tokens=1, max_completion_tokens=2), "max_tokens"), (body(seed=2**63), "seed"),
        (body(stop=[""]), "stop.0"), (body(stop=["a"] * 5), "stop"), (body(messages=[]), "messages"),
        (body(messages=[{"role": "tool", "content": "7"}]), "messages.0.role"),
        (body(messages=[{"role": "user", "content": "\ud800"}]), "messages.0.content"), (b"{}", "model"),
    ],
)  # fmt: skip
def test_a_bad_request_names_its_parameter(given: bytes, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        parse_request(given)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_neutral_values_are_accepted() -> None:
    """What frameworks send without asking for anything, and a text in parts."""
    parts = [{"type": "text", "text": "1/2"}, {"type": "text", "text": " and 0.5"}]
    sent = body(
        n=1, stream=False, tools=None, logit_bias={}, presence_penalty=0.0, response_format={"type": "text"}, user="me",
        stop=None, messages=[{"role": "user", "content": parts}],
    )  # fmt: skip
    request = parse_request(sent)
    assert request.messages[0].as_text() == {"role": "user", "content": "1/2 and 0.5"}
    assert (request.temperature, request.stop, request.max_tokens) == (0.0, [], None)


def test_our_reward_asks_the_server(tmp_path: Path) -> None:
    """A model that answers yes after the word half and no after third, behind a key, judges for
    `reward.kind=generative`; with a wrong key the run would stop. The key is in no output of the server."""
    says = {"half": "yes", "third": "no"}
    folder = save_bigram_model(tmp_path / "model", says)
    (tmp_path / "prompt.txt").write_text("{question} {reference} {answer}")
    with serving(str(folder), "sk-secret") as (url, _), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIGHT", "sk-secret")
        patch.setenv("WRONG", "sk-other")

        def reward(variable: str) -> Any:
            verifier = EndpointVerifierConfig(
                name="verifier", base_url=url, api_key_env=variable, prompt=str(tmp_path / "prompt.txt"), max_tokens=8
            )
            return make_reward(GenerativeRewardConfig(verifier=verifier))

        judge, problem = reward("RIGHT"), Problem("1", "Which?", "one half")
        outputs = [r"\boxed{one half}", r"\boxed{one third}", r"\boxed{half}"]
        futures = [judge.submit(problem, text) for text in outputs]
        assert [wait_for_verdict(judge, future).reward for future in futures] == [1.0, 0.0, 1.0]
        with refused(ErrorCode.SERVER_FAILED):
            wait_for_verdict(other := reward("WRONG"), other.submit(problem, outputs[0]))
        with urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=30) as answer:  # needs no key
            assert json.load(answer) == {"status": "ok"}
        for path, status in (("/models", 401), ("/completions", 404), ("/chat/completions", 405)):
            assert status_of(url, path) == status
        assert status_of(url, "/models", Host="models.example", Authorization="Bearer sk-secret") == 200  # by a proxy


def test_an_engine_that_fails_is_reported(tmp_path: Path) -> None:
    folder = save_bigram_model(tmp_path / "model", {"half": "yes"})
    with serving(str(folder)) as (url, engine):
        engine._worker.kill()
        with pytest.raises(openai.InternalServerError):
            ask(url, "half")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=30)
        assert caught.value.code == 503


class Silent(ScriptedEngine):
    """Never ends an output."""

    def __init__(self) -> None:
        super().__init__({}, 1)
        self.asked = threading.Event()

    def add(self, request: Request) -> None:
        self.requests.append(request)
        self.asked.set()

    @property
    def pending(self) -> int:
        return len(self.requests)

    def step(self) -> list[Segment]:
        time.sleep(0.01)
        return []


def test_a_request_in_progress_learns_that_the_server_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ulorl.verifier.serving.GRACE", 0)
    shared = SharedEngine(silent := Silent())
    with ThreadPoolExecutor(1) as pool:
        with listening_to(ChatModel("verifier", shared, make_tokenizer())) as url:
            asked = pool.submit(ask, url, "a b")
            assert silent.asked.wait(30)
        with pytest.raises(openai.InternalServerError, match="the server stops") as caught:
            asked.result(30)
    assert caught.value.status_code == 503
    shared.close()


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_requests_beyond_the_limit_are_refused_and_those_of_callers_that_left_are_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One slot, two requests at once: the first is decoded for ever, the second waits, and a third gets 503. When the
    second caller leaves, its place is free again, and its request has never come to the engine."""
    monkeypatch.setattr("ulorl.verifier.serving.GRACE", 0)
    shared = SharedEngine(silent := Silent(), slots=1)
    model = ChatModel("verifier", shared, make_tokenizer(), max_requests=2)
    with ThreadPoolExecutor(2) as pool:
        with listening_to(model) as url:
            asked = pool.submit(ask, url, "a b")
            assert silent.asked.wait(30)
            leaves = HTTPConnection(url.split("/")[2], timeout=30)
            sent = body(model="verifier", messages=[{"role": "user", "content": "c"}])
            leaves.request("POST", "/v1/chat/completions", sent, {"Content-Type": "application/json"})
            wait_until(lambda: len(shared._waiting) == 2)
            with pytest.raises(openai.InternalServerError, match="max_requests") as caught:
                ask(url, "d")
            assert caught.value.status_code == 503
            leaves.close()
            wait_until(lambda: model._present == 1)
            assert len(silent.requests) == 1
            assert shared._waiting[1].cancelled()
        with pytest.raises(openai.InternalServerError, match="the server stops"):
            asked.result(60)
    shared.close()


def test_a_request_whose_caller_leaves_while_it_is_decoded_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slot, a real model and an output of 900 tokens: the caller leaves when 6 are drawn, where the engine waits
    until the server saw it, and the next caller gets the slot at once. Nothing else is decoded of it."""
    with serving("ulorl:tiny", engine={"kind": "torch", "slots": 1}) as (url, shared):
        engine = shared._worker._engine
        step, paused, go_on = engine.step, threading.Event(), threading.Event()

        def step_until_six() -> list[Segment]:
            ended: list[Segment] = step()
            if engine.stats.decode_tokens == 6:
                paused.set()
                assert go_on.wait(30)
            return ended

        monkeypatch.setattr(engine, "step", step_until_six)
        leaves = HTTPConnection(url.split("/")[2], timeout=30)
        endless = body(model="verifier", messages=[{"role": "user", "content": PROBLEMS[0]}], max_tokens=900)
        leaves.request("POST", "/v1/chat/completions", endless, {"Content-Type": "application/json"})
        assert paused.wait(30)
        leaves.close()
        wait_until(lambda: not shared._worker._calls.empty())  # the call that stops it
        go_on.set()
        wait_until(lambda: not shared._given)
        assert ask(url, PROBLEMS[0], max_tokens=4).usage.completion_tokens == 4
        assert engine.stats.decode_tokens == 6 + 4
        longer = ask(url, PROBLEMS[0], max_tokens=20)
        assert longer.usage.completion_tokens == 20  # the output would not have ended by itself


def test_long_texts_do_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """/health answers while a text is being encoded."""
    encoding, go_on = threading.Event(), threading.Event()

    def encode(*_: Any, **__: Any) -> Any:
        encoding.set()
        assert go_on.wait(30)
        raise UserError("the prompt is empty", code=ErrorCode.PROMPT_UNUSABLE)

    monkeypatch.setattr("ulorl.verifier.chat_app.encode_messages", encode)
    shared = SharedEngine(Silent())
    with ThreadPoolExecutor(1) as pool, listening_to(ChatModel("verifier", shared, make_tokenizer())) as url:
        asked = pool.submit(ask, url, "a b")
        assert encoding.wait(30)
        assert status_of(url.removesuffix("/v1"), "/health") == 200
        go_on.set()
        with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
            asked.result(30)
    shared.close()


def test_only_loopback_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")] == [False] * 5
    monkeypatch.setenv("SERVED_KEY", "sk-1")
    assert api_key("0.0.0.0", "SERVED_KEY") == api_key("127.0.0.1", "SERVED_KEY") == "sk-1"
    with bind("127.0.0.1", 0) as taken:
        cases = [
            (["--host", "0.0.0.0"], ErrorCode.COMMAND_LINE, "--host"),
            (["--api-key-env", "NO_SUCH"], ErrorCode.API_KEY_MISSING, "--api-key-env"),
            (["--port", str(taken.getsockname()[1])], ErrorCode.ADDRESS_UNAVAILABLE, "--port"),
            (["engine.slot=4"], ErrorCode.CONFIG_UNKNOWN_KEY, "engine.slot"),
            (["--port", "0", "context=1000000"], ErrorCode.MODEL_CONTEXT, "context"),
        ]
        for arguments, code, key in cases:
            result = CliRunner().invoke(app, ["verifier", "serve", "ulorl:tiny", *arguments])
            with refused(code, key=key):
                assert result.exception
                raise result.exception


def test_the_printed_arguments_name_the_prompt_of_a_trained_verifier(tmp_path: Path) -> None:
    (tmp_path / "verifier.json").write_text("{}")
    assert run_arguments("http://127.0.0.1:8000/v1", "verifier", str(tmp_path)).endswith(f"prompt={tmp_path}")
    assert "prompt" not in run_arguments("http://127.0.0.1:8000/v1", "verifier", "owner/name")


def test_a_port_is_taken_while_the_model_is_loaded() -> None:
    with bind("127.0.0.1", 0) as first, refused(ErrorCode.ADDRESS_UNAVAILABLE, key="--port"):
        bind("127.0.0.1", first.getsockname()[1]).close()


@pytest.mark.slow
def test_ctrl_c_stops_the_command(tmp_path: Path) -> None:
    """The command in a process of its own: it answers, and SIGINT ends it with code 0."""
    command = [sys.executable, "-m", "ulorl", "verifier", "serve", "ulorl:tiny", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+/v1", process.stdout.readline())
            assert found
            assert ask(found[0], PROBLEMS[0], max_tokens=4).usage.completion_tokens <= 4
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert said.rstrip().endswith("stopped; requests answered: 1")
    assert "Traceback" not in said
