"""The client of a model that our own rollout engine decodes in this process."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ulorl.cancellation import NEVER, CancelToken
from ulorl.clients.client import Prompt, model_identity
from ulorl.config.client_config import EngineClientConfig
from ulorl.data.prompts import PromptFormat, PromptLimits, encode_each
from ulorl.engines.decode import rollout
from ulorl.engines.engine import Engine
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.factory import make_retrying_engine, pick_device
from ulorl.errors import UserError
from ulorl.models.model_source import ModelSource
from ulorl.rng import Stream, sample_seed
from ulorl.types import Finish, Problem, Request, Sampling, Tokens

MIN_KEPT = 2048  # tokens of prompt and output that a kept engine is made for at least


class EngineClient:
    """Decodes outputs with its own engine. Prompts go through the tokenizer's chat template, where it has one.

    A draw depends on (seed, prompt, sample) only, so that a run that resumes from the cache gets the same outputs as an
    uninterrupted one.
    """

    def __init__(
        self, settings: EngineClientConfig, *, keep: bool = False, retry_temperature: float | None = None
    ) -> None:
        """keep: whether to keep the engine between calls. retry_temperature: of all samples of a prompt but the first;
        None: as of the first. Raises UserError for a model folder that cannot be used."""
        self._settings, self._keep = settings, keep
        self._retry_temperature = settings.temperature if retry_temperature is None else retry_temperature
        self._engine: Engine | None = None
        self._longest = 0  # tokens that the engine was made for
        self._source = ModelSource(settings.name)
        self._tokenizer = self._source.tokenizer
        self._context = self._source.context_length or sys.maxsize
        self.identity = model_identity(settings)

    def complete(self, prompts: Sequence[Prompt], cancel: CancelToken = NEVER) -> Iterator[tuple[int, str | None]]:
        """Yield outputs as `ModelClient.complete`: None for a prompt that does not fit into the model's context."""
        encoded = self._encoded(prompts)
        for index, tokens in enumerate(encoded):
            if isinstance(tokens, UserError):
                yield index, None
        requests = [self._request(i, t, prompts[i]) for i, t in enumerate(encoded) if not isinstance(t, UserError)]
        if not requests:
            return
        longest = max(request.length for request in requests) + self._settings.max_tokens
        with self._decoding(longest) as engine:
            for segment in rollout(engine, requests, cancel):
                text = str(self._tokenizer.decode(segment.tokens.tolist(), skip_special_tokens=True))
                yield segment.sample_id, text if segment.finish is Finish.EOS else ""

    def close(self) -> None:
        """Release the engine's memory; the next call makes another engine."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    @contextmanager
    def _decoding(self, longest: int) -> Iterator[Engine]:
        """Yield an engine for prompts and outputs of `longest` tokens. An exception closes it, because it still has
        requests."""
        if self._engine is None or longest > self._longest:
            self.close()
            kept = max(MIN_KEPT, 1 << (longest - 1).bit_length())  # the next call may need more
            self._longest = min(kept, self._context) if self._keep else longest
            spec = EngineSpec(
                engine=self._settings.engine,
                device=pick_device(self._settings.device),
                sampling=Sampling(self._settings.temperature or 1.0, self._settings.top_p),
                longest=self._longest,
            )
            self._engine = make_retrying_engine(spec, self._source)
        finished = False
        try:
            yield self._engine
            finished = True
        finally:
            if finished and self._keep:
                self._engine.sleep()
            else:
                self.close()

    def _request(self, index: int, tokens: Tokens, prompt: Prompt) -> Request:
        settings = self._settings
        digest = int.from_bytes(hashlib.sha256(prompt[0].encode()).digest()[:6])
        of_text = sample_seed(settings.seed, digest, Stream.COMPLETIONS) >> 1
        seed = sample_seed(of_text, prompt[1], Stream.COMPLETIONS)
        return Request(
            index,
            tokens,
            settings.max_tokens,
            Sampling(self._retry_temperature if prompt[1] else settings.temperature, settings.top_p),
            seed,
        )

    def _encoded(self, prompts: Sequence[Prompt]) -> list[Tokens | UserError]:
        return encode_each(
            [Problem(str(index), text) for index, (text, _) in enumerate(prompts)],
            self._tokenizer,
            PromptFormat(system=self._settings.system, chat=self._settings.chat),
            PromptLimits(context=self._context, max_tokens=self._settings.max_tokens),
        )
