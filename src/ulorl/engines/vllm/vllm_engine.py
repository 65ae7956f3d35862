"""Rollout on vLLM. Only this folder imports vllm.

vLLM's own request interface does the work: add, step, abort with the partial outputs, token ids in and out. It runs as
a library in this process, or in another process. This file adds the contract of `Engine`: log-probs of the right
distribution, a seed for each segment, versions, and new weights that are really used.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from ulorl.engines.engine import EngineStats, require_idle
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.segment_checks import check_request
from ulorl.engines.vllm.vllm_arguments import check_arguments, engine_arguments, longest_request, vllm_error
from ulorl.engines.vllm.weight_transfer import pick_transfer, sender
from ulorl.error_codes import ErrorCode
from ulorl.models.meta_model import checkpoint_names
from ulorl.models.model_source import ModelSource
from ulorl.rng import segment_seed
from ulorl.types import Finish, Request, Sampling, Segment, Versions

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput, RequestOutput

_FINISH = {"stop": Finish.EOS, "length": Finish.LENGTH, "abort": Finish.ABORT}


class VllmEngine:
    """An `Engine` on vLLM.

    The temperature of `spec.sampling` decides vLLM's `logprobs_mode`: `raw_logprobs` (before temperature) when it is 1,
    else `processed_logprobs` (after temperature, top-k and top-p). Log-probs that this mode gets wrong (another
    temperature than 1 under the first, top-p or top-k under the second) are NaN, never something else.

    Raises UserError when vLLM is missing, unsupported, or does not start with these settings; RuntimeError for a
    second engine in our process while the first is open.
    """

    _in_our_process = False  # vLLM's process groups are the whole process's: closing one engine would stop another

    def __init__(self, spec: EngineSpec, source: ModelSource, *, eos_ids: Sequence[int] | None = None) -> None:
        """eos_ids: the tokens that end an output; None: those of `source`."""
        assert spec.engine.kind == "vllm"
        settings = spec.engine.vllm
        self.max_length = longest_request(settings, spec.longest, source.context_length)
        check_arguments(settings)
        if VllmEngine._in_our_process and not settings.process:
            raise RuntimeError(
                "one vLLM engine at a time can run in a process; close it, or set engine.vllm.process=true"
            )
        self.stats = EngineStats()
        self.version = spec.version
        self.logprobs_mode = "raw_logprobs" if spec.sampling.temperature == 1 else "processed_logprobs"
        processes = dist.get_world_size() if dist.is_initialized() else 1
        self.transfer = pick_transfer(settings, spec.device, processes)
        self._eos = sorted(set(source.eos_ids if eos_ids is None else eos_ids))
        self._requests: dict[str, Request] = {}  # by sample id, until their segment is returned
        self._internal: dict[str, str] = {}  # vLLM's own ids of them
        self._decoded = 0  # tokens of segments returned
        self._sleeps, self._sleeping = settings.sleep, False
        arguments = engine_arguments(spec, source, self.max_length, self.logprobs_mode, self.transfer)
        self._checkpoint_names = checkpoint_names(source)
        self._llm = _start(arguments, process=settings.process, ipc=self.transfer == "ipc")
        self._process = settings.process
        VllmEngine._in_our_process |= not settings.process
        self._vocabulary: int = self._llm.model_config.get_vocab_size()
        self._send = sender(self._llm, self.transfer, spec.device)

    @property
    def pending(self) -> int:
        """The number of requests added and not yet returned as a segment."""
        return len(self._requests)

    @property
    def kv_tokens(self) -> int:
        """The tokens whose keys and values fit into memory at once."""
        return int(self._llm.vllm_config.cache_config.kv_cache_size_tokens)

    @property
    def prefill_tokens(self) -> int:
        """The most tokens of one prefill pass."""
        return int(self._llm.vllm_config.scheduler_config.max_num_batched_tokens)

    def add(self, request: Request) -> None:
        """Queue one request. Raises ValueError when it is empty, does not fit the context or cannot be sampled."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        check_request(request, vocabulary=self._vocabulary, max_length=self.max_length)
        self._wake()
        params = SamplingParams(
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            top_k=request.sampling.top_k,
            seed=segment_seed(request.seed, request.output_length),
            max_tokens=request.max_new_tokens,
            stop_token_ids=self._eos,
            ignore_eos=True,  # vLLM's own EOS
            logprobs=0 if self._exact(request.sampling) else None,  # 0: of the chosen token only
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        id = str(request.sample_id)
        self._internal[id] = self._llm.add_request(id, tokens_input(request.tokens.tolist()), params)
        self._requests[id] = request

    def step(self) -> list[Segment]:
        """Run one step of vLLM's scheduler (prefill, one token for each running row); return segments that ended."""
        if not self._requests:
            return []
        segments = [self._segment(output.request_id, output) for output in self._llm.step()]
        self.stats.decode_steps += 1
        self._count()
        return segments

    def abort(self) -> list[Segment]:
        """Stop everything and return what was decoded of each request, in the order they were added."""
        return self.abort_some({request.sample_id for request in self._requests.values()})

    def abort_some(self, sample_ids: Collection[int]) -> list[Segment]:
        """Stop the requests of these samples and return what was decoded of each, in the order they were added."""
        from vllm.v1.engine import FinishReason

        # LLMEngine drops an aborted request's output, so it is read first, as vLLM's async engine does.
        states = self._llm.output_processor.request_states
        outputs = {
            id: states[internal].make_request_output([], None, FinishReason.ABORT, None)
            for id, internal in self._internal.items()
            if self._requests[id].sample_id in sample_ids
        }
        self._llm.abort_request(list(outputs))
        segments = [self._segment(id, output) for id, output in outputs.items()]
        self._count()
        return segments

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Load new weights by transformers' parameter names, and drop keys and values of the old ones.

        weights: can be iterated several times. Raises RuntimeError while requests are pending, ValueError for an
        unknown name or a missing parameter; after a ValueError the weights are partly new and must be loaded again.
        """
        require_idle(self, "load_weights")
        self._wake("weights")
        self._send(self._checkpoint_names(weights))
        self._wake()
        if not self._llm.reset_prefix_cache():
            raise RuntimeError(
                "vLLM did not clear its prefix cache: keys and values of old weights would be used again"
            )
        self._llm.set_weight_version(str(version))
        self.version = version

    def sleep(self) -> None:
        """Move weights to the host's memory and drop keys and values until the next add or load, with sleep mode on."""
        require_idle(self, "sleep")
        if self._sleeps and not self._sleeping:
            self._llm.sleep(level=1)
            self._sleeping = True

    def close(self) -> None:
        """Stop vLLM's processes. In our process its memory is freed with the last reference."""
        try:
            self._llm.engine_core.shutdown()
        finally:
            if not self._process:
                VllmEngine._in_our_process = False

    def died(self) -> bool:
        """Return whether vLLM's process ended without being closed."""
        return self._process and bool(self._llm.engine_core.resources.engine_dead)

    def kill(self) -> bool:
        """End vLLM's process and make its client, which would wait without end, raise; False without a process."""
        if not self._process:
            return False
        from vllm.v1.engine.exceptions import EngineDeadError

        core = self._llm.engine_core
        core.resources.engine_dead = True
        if manager := core.resources.engine_manager:
            for process in manager.processes:
                process.kill()
        core.outputs_queue.put_nowait(EngineDeadError())
        for future in list(core.utility_results.values()):
            if not future.done():
                future.set_exception(EngineDeadError())
        return True

    def _wake(self, *tags: str) -> None:
        """Wake all, or only `tags`: weights can be loaded before keys and values occupy memory again."""
        if self._sleeping:
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.empty_cache()  # torch keeps memory of the learner that vLLM needs
            self._llm.wake_up(list(tags) or None)
            self._sleeping = bool(tags)

    def _exact(self, sampling: Sampling) -> bool:
        """Return whether vLLM's log-probs are those of softmax(logits / temperature) over the full vocabulary."""
        if self.logprobs_mode == "raw_logprobs":
            return sampling.temperature in (0, 1)
        return sampling.top_p == 1 and sampling.top_k == 0

    def _segment(self, id: str, output: RequestOutput) -> Segment:
        request = self._requests.pop(id)
        del self._internal[id]
        (completion,) = output.outputs
        if completion.finish_reason not in _FINISH:
            raise RuntimeError(f"sample {request.sample_id}: vLLM ended it with {completion.finish_reason!r}")
        tokens = np.array(completion.token_ids, dtype=np.int32)
        logprobs = np.full(len(tokens), np.nan, dtype=np.float32)
        if completion.logprobs is not None:
            logprobs = np.array(completion.logprobs.logprobs, dtype=np.float32)  # flat: one number for each token
        self._decoded += len(tokens)
        if len(tokens):
            self.stats.prefill_tokens += request.length - (output.num_cached_tokens or 0)
        finish = _FINISH[completion.finish_reason]
        return Segment(request.sample_id, tokens, logprobs, self._versions(completion, len(tokens)), finish)

    def _versions(self, completion: CompletionOutput, tokens: int) -> Versions:
        """The versions that drew the tokens; vLLM records them once it was given a version."""
        versions = np.full(tokens, self.version, dtype=np.int32)
        for span in completion.weight_versions or ():
            if span.version.isdecimal():
                versions[span.start : span.end] = int(span.version)
        return versions

    def _count(self) -> None:
        states = self._llm.output_processor.request_states
        running = sum(states[id].detokenizer.num_output_tokens() for id in self._internal.values())
        self.stats.decode_tokens = self._decoded + running


def _start(arguments: dict[str, Any], *, process: bool, ipc: bool) -> Any:
    """Start vLLM's LLMEngine. Raises UserError, with vLLM's reason, when it does not start."""
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    if ipc:  # memory handles of CUDA IPC cross the process border as pickles, which only our processes write
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    try:
        with _start_environment(process), _interrupts_are_ours():
            return LLMEngine.from_engine_args(EngineArgs(**arguments), enable_multiprocessing=process)
    except (ValueError, RuntimeError, OSError, ImportError, AssertionError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()
        problem = f"vLLM does not start with {arguments['model']}: {' '.join(reason[:3])}"
        raise vllm_error(problem, ErrorCode.ENGINE_SETTING) from error


@contextmanager
def _start_environment(process: bool) -> Iterator[None]:
    """Set the environment for vLLM's start, and restore torch.set_num_threads, which it disables in our process.

    Under torchrun, torch looks for the store of every process group in torchrun's; vLLM's processes make their own.
    """
    wanted = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1" if process else "0", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    before, set_num_threads = {name: os.environ.get(name) for name in wanted}, torch.set_num_threads
    os.environ |= wanted
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_are_ours() -> Iterator[None]:
    """Start processes that never see SIGINT; a SIGINT that arrives while they start is delivered at the end.

    Ctrl-C in a terminal reaches the whole process group, and the run needs its engine to finish and save the step.
    """
    resource_tracker.ensure_running()  # else multiprocessing starts it here, and unblocks SIGINT when it has
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
