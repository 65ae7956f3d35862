"""vLLM in a process of its own: it can be killed, and an interrupt does not reach it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from paths import COUNTDOWN
from ulorl.engines.retrying import RetryingEngine
from ulorl.engines.segment_checks import SegmentChecks

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-engines` runs these")

from ulorl.engines.vllm.vllm_engine import VllmEngine
from vllm_engines import PARITY, VLLM, WARM, load, play, prompt, request, start, three_versions, transformers_logprobs


@pytest.mark.slow
def test_a_killed_process_is_restarted_with_the_weights_that_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights go through a file in memory. SIGKILL while 4 requests decode: eager decoding in float32, so the second
    process draws the first one's tokens. The environment is that of torchrun, which tells torch to look for every
    process group in torchrun's own store."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")

    def in_a_process() -> VllmEngine:
        return start(eos=(), process=True)

    first = in_a_process()
    retrying = RetryingEngine(
        first, remake=in_a_process, checks=SegmentChecks((), load().config.vocab_size, WARM),
        deadline=120,
    )  # fmt: skip
    assert first.transfer == "file"
    assert not hasattr(first._llm, "model_executor")  # which is in our process otherwise
    with closing(retrying):
        model = three_versions(retrying)
        requests = [request(index, 24) for index in range(4)]
        undisturbed = play(retrying, requests)
        for one in requests:
            retrying.add(one)
        ended = retrying.step()
        (process,) = first._llm.engine_core.resources.engine_manager.processes
        process.kill()
        while retrying.pending:
            ended += retrying.step()
        assert retrying.stats.faults == 1
        assert sorted(segment.sample_id for segment in ended) == [0, 1, 2, 3]
        for segment in ended:
            assert segment.tokens.tolist() == undisturbed[segment.sample_id].tokens.tolist()
            expected = transformers_logprobs(model, prompt(segment.sample_id), segment, 0.85)
            np.testing.assert_allclose(segment.logprobs, expected, atol=PARITY)
        for one in requests[:2]:
            retrying.add(one)
        retrying.step()
        assert sorted(segment.sample_id for segment in retrying.abort()) == [0, 1]


@pytest.mark.slow
def test_an_interrupt_of_the_whole_group_saves_first(tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches vLLM's processes too; they must not die of it before the run is saved."""
    arguments = [
        str(COUNTDOWN), *VLLM, "engine.vllm.process=true", "steps=20", "rollout.prompts=4", "data.size=40",
        "eval.problems=1", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "ulorl", "train", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            output.append(line)
            if line.split()[:1] == ["2"]:
                os.killpg(process.pid, signal.SIGINT)
    assert process.returncode == 130, "".join(output)
    assert "stopped after step" in output[-1] + output[-2] + output[-3]
    assert any((tmp_path / "run" / "checkpoints").iterdir())
