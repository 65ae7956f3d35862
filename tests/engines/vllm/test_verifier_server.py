"""The generative verifier with a real OpenAI-compatible server: vLLM's, on loopback (see `make test-engines`)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import ulorl
from paths import ROOT, SMOLLM2
from refusals import refused
from ulorl.clients.engine_client import EngineClient
from ulorl.clients.server_client import ServerClient
from ulorl.config.reward_config import EndpointVerifierConfig, EngineVerifierConfig, VerifierConfig
from ulorl.error_codes import ErrorCode
from ulorl.rewards.generative_verifier import Verifier
from ulorl.rewards.verdict_policy import AnswerPair

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-engines` runs these")

START_SECONDS = 300
PROMPT = "Are the two answers equal? Reply with exactly one word: yes or no.\nFirst: {reference}\nSecond: {answer}"
ASKED = [
    *(f"Is {answer} the same number as 7? Reply only yes or no." for answer in ("7", "8", "seven", "14/2", "7 cm")),
    *(PROMPT.format(reference="1/2", answer=answer) for answer in ("0.5", "50%", "one half", "-1/2")),
    "Name three colours.",
    "What is 12 + 30? Reply with the number.",
]
PAIRS = [AnswerPair("", "1/2", answer) for answer in ("0.5", "50%", "one half", "-1/2", "2", r"\frac12", "x")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL. The server and its processes end with the tests."""
    if not SMOLLM2.is_dir():
        pytest.skip(f"{SMOLLM2} is missing; `make test-engines` makes it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "host": "127.0.0.1", "port": port, "served-model-name": "judge", "dtype": "float32", "max-model-len": 1024,
        "max-num-seqs": 8, "max-num-batched-tokens": 1024, "generation-config": "vllm", "api-key": "sk-loopback",
    }  # fmt: skip
    # not `vllm serve`: it asks for the version of a package named vllm, and the CPU build has another name
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(SMOLLM2), "--enforce-eager"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    log = tmp_path_factory.mktemp("server") / "log"
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }  # fmt: skip
    with log.open("w") as written:
        process = subprocess.Popen(command, stdout=written, stderr=written, env=environment, start_new_session=True)
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signum)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        if process.poll() is not None:
            pytest.fail(f"vLLM's server ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        time.sleep(0.5)
    pytest.fail(f"vLLM's server is not ready after {START_SECONDS} seconds:\n{log.read_text()[-3000:]}")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPBACK_KEY", "sk-loopback")


def served(url: str, **more: Any) -> VerifierConfig:
    return EndpointVerifierConfig(
        name="judge", base_url=url, api_key_env="LOOPBACK_KEY", max_tokens=24, concurrency=8, **more
    )


def own(**more: Any) -> VerifierConfig:
    return EngineVerifierConfig(name=str(SMOLLM2), max_tokens=24, **more)


@pytest.mark.slow
def test_the_server_says_what_our_engine_says(server: str) -> None:
    """Greedy, float32: the same texts through the chat template, an output that was cut is "" from both."""
    prompts = [(text, 0) for text in ASKED]
    theirs = dict(ServerClient("reward.verifier", served(server)).complete(prompts))
    ours = dict(EngineClient(own()).complete(prompts))
    assert theirs == ours
    assert "" in theirs.values()
    assert len(set(theirs.values())) > 3


def test_equal_verdicts(server: str, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(PROMPT)
    theirs = Verifier(served(server, prompt=str(prompt)), cache=tmp_path / "v.sqlite")
    verdicts = theirs.verdicts(PAIRS)
    assert Verifier(own(prompt=str(prompt)), cache=tmp_path / "v.sqlite").verdicts(PAIRS) == verdicts
    assert any(verdict is not None for verdict in verdicts)
    assert theirs.take_tally().failed == 0
    again = Verifier(served(server, prompt=str(prompt)), cache=tmp_path / "v.sqlite")
    again.verdicts(PAIRS)
    assert again.take_tally().cached == sum(verdict is not None for verdict in verdicts)


@pytest.mark.parametrize(("change", "status"), [({"name": "other"}, "404"), ({"api_key_env": "NO_KEY"}, "401")])
def test_what_the_server_refuses_stops_the_run(server: str, change: dict[str, str], status: str) -> None:
    verifier = Verifier(served(server).model_copy(update=change))
    with refused(ErrorCode.SERVER_FAILED, key="reward.verifier") as error:
        verifier.verdicts(PAIRS[:1])
    assert status in str(error.value)


def test_training(server: str, tmp_path: Path) -> None:
    """Three steps of the tiny reasoner, judged by the server: every finished sample is counted once."""
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(PROMPT)
    small = [
        "steps=3", "rollout.prompts=6", "rollout.group=2", "rollout.max_tokens=192", "rollout.segments=2",
        "data.size=40", "eval.data={}", "run.checkpoint_every=0", "model.threads=1", "log.progress=false",
        "log.report=false",
        "reward.kind=generative", "reward.verifier.name=judge", f"reward.verifier.base_url={server}",
        "reward.verifier.api_key_env=LOOPBACK_KEY", f"reward.verifier.prompt={prompt}", "reward.max_unscored=1000",
        "reward.verifier.max_tokens=24", "reward.verifier.rules_first=true", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    result = ulorl.train(ulorl.load([ROOT / "recipes" / "countdown.toml"], small))
    total = {name: sum(line[f"verifier/{name}"] or 0 for line in result.metrics) for name in COUNTS}
    complete = sum((line["rollout/finished"] or 0) - (line["rollout/truncated"] or 0) for line in result.metrics)
    assert total["pairs"] == complete - sum(line["reward/no_answer"] or 0 for line in result.metrics)
    assert total["pairs"] == sum(total[name] for name in COUNTS[1:])
    assert total["judged"] > 0
    assert sum(line["verifier/failures"] or 0 for line in result.metrics) == 0
    assert (tmp_path / "run" / "verifier.sqlite").is_file()


COUNTS = ("pairs", "repeated", "accepted_by_rules", "cache_hits", "judged", "unscored")
