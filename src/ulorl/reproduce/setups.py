"""The models and engines that Table 1 is measured with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ulorl.config.engine_config import VllmConfig, VllmEngineConfig
from ulorl.engines.engine import Engine
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.models.cpu.linear_products import has_bfloat16
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import TINY, ModelSource
from ulorl.types import Sampling

SMOLLM2 = "smollm2-135m"  # its size; the weights are drawn at random
PROMPT_TOKENS = 16
_PROFILE_TOKENS = 16
Dtype = Literal["float32", "bfloat16"]
EngineKind = Literal["torch", "vllm"]


@dataclass(frozen=True)
class Setup:
    """A model with the sizes of its measurement: N = `prompts` groups a step of G = `group` samples of up to L =
    `max_tokens` output tokens, `slots` rows at once, prefill passes of at most `prefill_tokens` tokens."""

    model: str
    prompts: int
    group: int
    max_tokens: int
    slots: int
    prefill_tokens: int
    dtype: Dtype = "float32"
    engine: EngineKind = "torch"

    @property
    def longest(self) -> int:
        """Tokens of a prompt with its output, at most, and those that the profile decodes beyond."""
        return PROMPT_TOKENS + self.max_tokens + _PROFILE_TOKENS

    def sized(self, max_tokens: int | None, prompts: int | None, group: int | None, slots: int | None) -> Setup:
        """Return this set-up with other sizes, where they are given."""
        return replace(
            self,
            max_tokens=max_tokens or self.max_tokens,
            prompts=prompts or self.prompts,
            group=group or self.group,
            slots=slots or self.slots,
        )


# Few rows and long outputs, where a row is nearly free, and many rows, where it is not.
SMALL_BATCH = Setup(SMOLLM2, prompts=2, group=2, max_tokens=512, slots=32, prefill_tokens=512)
LARGE_BATCH = Setup(TINY, prompts=8, group=8, max_tokens=512, slots=256, prefill_tokens=1024)


@contextmanager
def model_source(setup: Setup) -> Iterator[ModelSource]:
    """Yield the source of a set-up's model; weights of `SMOLLM2` are drawn into a temporary folder.

    Raises UserError for a model that takes shorter rows, and for bfloat16 on a processor that multiplies it slowly.
    """
    if setup.dtype == "bfloat16" and not has_bfloat16():
        raise UserError(
            "--dtype bfloat16: this processor does not multiply bfloat16 natively (AVX512_BF16 or AMX), and each "
            "decode step would take several times as long as in float32; leave the option out",
            code=ErrorCode.BENCH_INPUT,
            key="--dtype",
        )
    with TemporaryDirectory() as folder:
        source = ModelSource(_smollm2(Path(folder)) if setup.model == SMOLLM2 else setup.model)
        takes = source.context_length or setup.longest
        if takes < setup.longest:
            most = takes - PROMPT_TOKENS - _PROFILE_TOKENS
            raise UserError(
                f"--tokens {setup.max_tokens}: {setup.model} has {takes} positions; give {most} at most",
                code=ErrorCode.BENCH_INPUT,
                key="--tokens",
            )
        yield source


def make_engine(setup: Setup, source: ModelSource) -> Engine:
    """Return an engine that never ends an output by itself. Raises UserError when vLLM is asked for and missing."""
    if setup.engine == "torch":
        model = load_model(source, dtype=getattr(torch, setup.dtype), device="cpu")
        return TorchEngine(
            model,
            eos_ids=(),
            slots=setup.slots,
            prefill_tokens=setup.prefill_tokens,
            max_length=setup.longest,
        )
    from ulorl.engines.vllm.vllm_engine import VllmEngine

    vllm = VllmEngineConfig(slots=setup.slots, prefill_tokens=setup.prefill_tokens, vllm=VllmConfig(eager=True))
    device = torch.device("cpu")
    spec = EngineSpec(engine=vllm, device=device, sampling=Sampling(), longest=setup.longest)
    return VllmEngine(spec, source, eos_ids=())


def _smollm2(folder: Path) -> str:
    """Write a model of SmolLM2-135M's shape (its config.json on the Hugging Face hub), and return the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0}, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        LlamaForCausalLM(shape).save_pretrained(folder)
    return str(folder)
