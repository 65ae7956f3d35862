"""The embedded engine: continuous batching over preallocated KV slots with any causal language model of transformers.

A step admits waiting requests into free slots, computes keys and values of all their tokens but the last (prefill), and
then decodes one token for every active row. A new row's last prompt token is its first decode input, so that only the
decode step draws. Active rows stay 0..n-1: when one ends, the last row moves into its place.

Shapes: B = n active rows, V vocabulary, Q queries of a forward pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ulorl.engines.engine import EngineStats, empty_segment, require_idle
from ulorl.engines.padding import CPU_PADDING, GPU_PADDING, SORT_ABOVE, SORT_EVERY, padded_passes
from ulorl.engines.segment_checks import check_request
from ulorl.engines.torch.sampling import draw
from ulorl.engines.torch.supported_models import cache_argument, check_decoding, full_attention_layers, longest_row
from ulorl.models.cpu.fused_decode import FusedDecoder, can_fuse, entries_read
from ulorl.models.cpu.linear_products import use_onednn
from ulorl.models.kv_cache import Place, SlotCache
from ulorl.rng import uniforms
from ulorl.types import Finish, Request, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_READ_ROUND = 16  # attention reads a multiple of this many entries: CUDA kernels want the mask aligned
_MASK_ENTRIES = 2**26  # largest mask of a prefill pass: long carried samples are prefilled in chunks that keep below it
_ROW = np.dtype(
    [
        ("seed", np.uint64),
        ("token", np.int64),  # the next input
        ("position", np.int64),  # of the next input, in prompt and output
        ("output", np.int64),  # output index of the next token drawn
        ("drawn", np.int64),  # tokens of this segment
        ("budget", np.int64),
        ("temperature", np.float64),
        ("top_p", np.float64),
        ("top_k", np.int64),
    ]
)


class TorchEngine:
    """An `Engine` around `model`, which it owns from now on, on the model's device and in its dtype.

    `slots` rows decode at the same time. A prefill pass has at most `prefill_tokens` tokens, padding included.
    `max_length` bounds prompt + output (default and limit: the model's `max_position_embeddings`). `cpu_kernels` allows
    oneDNN products and the fused decode step on a CPU. Keys and values take slots x longest row x layers x 2 x KV heads
    x head dimension numbers.

    Raises UserError when the model cannot be decoded exactly this way: sliding-window, linear or hybrid attention,
    encoder-decoders, and models that fail a small comparison with their own forward pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_ids: Sequence[int],
        slots: int,
        prefill_tokens: int,
        version: int = 0,
        max_length: int | None = None,
        cpu_kernels: bool = True,
    ) -> None:
        if slots < 1 or prefill_tokens < 1:
            raise ValueError(f"slots={slots} and prefill_tokens={prefill_tokens} must be at least 1")
        self.max_length = longest_row(model, max_length)
        self.version = version
        self._model = model.eval()
        self._cache_argument = cache_argument(model)
        if cpu_kernels:
            use_onednn(model)
        fused = cpu_kernels and can_fuse(model)
        self._cache = SlotCache(full_attention_layers(model, self.max_length), slots, transposed_keys=fused)
        self._fused = FusedDecoder(model, self._cache, slots, self.max_length) if fused else None
        self._slots, self._prefill_tokens = slots, prefill_tokens
        self._eos = np.array(sorted(set(eos_ids)), dtype=np.int32)
        self._vocabulary: int = model.get_input_embeddings().num_embeddings
        self._waiting: deque[Request] = deque()
        self._requests: list[Request] = []  # of rows 0..n-1
        self._steps_since_idle = 0  # not of the engine's whole life: a resumed run sorts at the same steps
        self._rows = np.zeros(slots, dtype=_ROW)
        self._tokens = np.zeros((slots, 64), dtype=np.int32)  # drawn in this segment, grown by doubling
        self._logprobs = np.zeros((slots, 64), dtype=np.float32)
        self.stats = EngineStats()
        with torch.inference_mode():
            check_decoding(model, slots, self._prefill, self._decode)
        self._cache.clear()
        self.stats = EngineStats()  # without the work of the comparison

    @property
    def pending(self) -> int:
        """The number of requests added and not yet returned as a segment."""
        return len(self._waiting) + len(self._requests)

    def add(self, request: Request) -> None:
        """Queue one request. Raises ValueError when it is empty, does not fit the context or cannot be sampled."""
        check_request(request, vocabulary=self._vocabulary, max_length=self.max_length)
        self._waiting.append(request)

    @torch.inference_mode()
    def step(self) -> list[Segment]:
        """Fill free slots, decode one token for every active row, return the segments that ended."""
        if not self._requests:
            self._steps_since_idle = 0
        if self._waiting:
            self._admit()
        if self._fused and self._steps_since_idle % SORT_EVERY == 0:
            self._sort()
        n = len(self._requests)
        if not n:
            return []
        rows = self._rows[:n]
        logits_BV = self._decode(rows["token"], rows["position"])
        uniform = uniforms(rows["seed"], rows["output"])
        tokens, logprobs = draw(logits_BV, uniform, rows["temperature"], rows["top_p"], rows["top_k"])
        self._record(tokens, logprobs)
        self._steps_since_idle += 1
        self.stats.decode_steps += 1
        self.stats.decode_tokens += n

        is_eos = (tokens[:, None] == self._eos).any(axis=1)
        ended = np.flatnonzero(is_eos | (rows["drawn"] == rows["budget"]))
        segments = [self._segment(int(row), Finish.EOS if is_eos[row] else Finish.LENGTH) for row in ended]
        self._release(ended)
        return segments

    def abort(self) -> list[Segment]:
        """Stop everything and return what each active row drew so far, then empty segments for waiting requests."""
        segments = [self._segment(int(row), Finish.ABORT) for row in range(len(self._requests))]
        segments += map(empty_segment, self._waiting)
        self._requests.clear()
        self._waiting.clear()
        return segments

    @torch.inference_mode()
    def abort_some(self, sample_ids: Collection[int]) -> list[Segment]:
        """Stop the requests of these samples, which frees their slots, and return the partial segments."""
        stopped = [request for request in self._waiting if request.sample_id in sample_ids]
        self._waiting = deque(request for request in self._waiting if request.sample_id not in sample_ids)
        rows = np.array([row for row, one in enumerate(self._requests) if one.sample_id in sample_ids], dtype=np.int64)
        segments = [self._segment(int(row), Finish.ABORT) for row in rows]
        self._release(rows)
        return [*segments, *map(empty_segment, stopped)]

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Copy new weights in place, by the names of `state_dict()` or `named_parameters()` (tied ones once or twice).

        Raises RuntimeError while requests are pending, and ValueError for an unknown name, another shape or a missing
        parameter; after a ValueError the weights are partly new and must be loaded again.
        """
        require_idle(self, "load_weights")
        own = self._model.state_dict(keep_vars=True)
        missing = {id(parameter): name for name, parameter in self._model.named_parameters()}
        for name, tensor in weights:
            if name not in own:
                raise ValueError(f"weights: unknown name {name!r}")
            if own[name].shape != tensor.shape:
                raise ValueError(f"weights: {name} is {tuple(tensor.shape)}, the model's {tuple(own[name].shape)}")
            own[name].copy_(tensor)
            missing.pop(id(own[name]), None)
        if missing:
            raise ValueError(f"weights: missing {', '.join(sorted(missing.values()))}")
        if self._fused:
            self._fused.refresh()
        self.version = version

    def sleep(self) -> None:
        """Release the keys and values; rows allocate them again as they grow."""
        require_idle(self, "sleep")
        self._cache.clear()
        torch.cuda.empty_cache()  # torch would keep the memory for this process, and the learner may be another one

    def close(self) -> None:
        """Release the keys and values; the engine is not used again."""
        self._cache.clear()

    def _admit(self) -> None:
        """Move waiting requests into free slots, longest first, so that a prefill pass pads little.

        The samples of a group start with the same prompt: it is prefilled once, and its keys and values are copied.
        """
        free = self._slots - len(self._requests)
        new = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        if not new:
            return
        families: dict[bytes, list[Request]] = {}
        for request in sorted(new, key=lambda request: -request.length):
            families.setdefault(request.tokens.tobytes(), []).append(request)
        distinct = [family[0] for family in families.values()]
        self._reserve(new)
        padding = CPU_PADDING if self._model.device.type == "cpu" else GPU_PADDING
        for rows in padded_passes([request.length - 1 for request in distinct], self._prefill_tokens, padding):
            batch, first = distinct[rows], len(self._requests)
            for request in batch:
                self._enter(request)
            self._prefill(first, [request.tokens[:-1] for request in batch])
        first = len(self._requests) - len(distinct)
        for row, family in enumerate(families.values(), start=first):
            if siblings := family[1:]:
                targets = torch.arange(len(self._requests), len(self._requests) + len(siblings))
                for request in siblings:
                    self._enter(request)
                sources = torch.full_like(targets, row)
                self._cache.copy(self._to(sources), self._to(targets), family[0].length - 1)

    def _reserve(self, new: Sequence[Request]) -> None:
        """Provide memory for new rows at once: for all their tokens if they are few, else for as many again."""
        longest = max(request.length for request in new)
        most = max(request.length + request.max_new_tokens - 1 for request in new)
        self._cache.reserve(len(self._requests) + len(new), min(2 * longest, most), max(most, self._most_entries()))

    def _most_entries(self) -> int:
        """Return the entries of the longest row when all rows have ended, if none ends early."""
        rows = self._rows[: len(self._requests)]
        return int((rows["position"] + rows["budget"] - rows["drawn"]).max(initial=0))

    def _enter(self, request: Request) -> None:
        """Make a request the next row."""
        how, last = request.sampling, request.length - 1
        start = (request.seed, request.tokens[-1], last, request.output_length, 0, request.max_new_tokens)
        self._rows[len(self._requests)] = (*start, how.temperature, how.top_p, how.top_k)
        self._requests.append(request)

    def _to(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._model.device)

    def _prefill(self, first: int, sequences: Sequence[np.ndarray]) -> None:
        """Compute keys and values of whole sequences for rows first, first + 1, ..., in chunks when they are long.

        Shorter ones are padded on the right, which causal attention does not see.
        """
        longest = max(map(len, sequences))
        padded = np.zeros((len(sequences), longest), dtype=np.int64)
        for row, sequence in zip(padded, sequences, strict=True):
            row[: len(sequence)] = sequence
        self._cache.reserve(first + len(sequences), longest, longest)
        start = 0
        while start < longest:
            chunk = max(1, self._prefill_tokens // len(sequences))
            if start:
                chunk = max(1, min(chunk, _MASK_ENTRIES // longest))
            end = min(longest, start + chunk)
            place = Place(slice(first, first + len(sequences)), start, end)
            positions = torch.arange(start, end, device=self._model.device)
            # from position 0 on, plain causal attention needs no mask
            mask = self._mask(positions, end)[None, None] if start else None
            self._forward(
                place, torch.from_numpy(padded[:, start:end]), positions[None].expand(len(sequences), -1), mask
            )
            self.stats.prefill_tokens += sum(
                min(len(sequence), end) - min(len(sequence), start) for sequence in sequences
            )
            start = end

    def _decode(self, tokens: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        """Logits after one more token for rows 0..n-1, [n, V]."""
        n, longest = len(tokens), int(positions.max()) + 1
        if longest > self._cache.capacity:
            self._cache.reserve(n, longest, self._most_entries())
        if self._fused:
            return self._fused(tokens, positions)
        length = min(-(-longest // _READ_ROUND) * _READ_ROUND, self._cache.capacity)
        at = torch.from_numpy(positions).to(self._model.device)
        place = Place(slice(0, n), longest - 1, length, at, torch.arange(n, device=at.device))
        return self._forward(
            place, torch.from_numpy(tokens)[:, None], at[:, None], self._mask(at, length)[:, None, None]
        )

    def _mask(self, positions: torch.Tensor, length: int) -> torch.Tensor:
        """0 for entries that a query at each of `positions` [Q] may see, -inf for later ones, [Q, length]."""
        later = torch.arange(length, device=positions.device) > positions[:, None]
        mask = torch.zeros(later.shape, dtype=self._model.dtype, device=positions.device)
        return mask.masked_fill_(later, float("-inf"))

    def _forward(
        self, place: Place, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits of the last column, [rows, V]; the LM head computes only these."""
        output = self._model(
            input_ids=tokens.to(self._model.device),
            position_ids=positions,
            attention_mask=mask,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: self._cache.at(place)},
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _record(self, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Append one token to every active row and make it the row's next input."""
        n = len(tokens)
        rows, index = self._rows[:n], np.arange(n)
        if int(rows["drawn"].max()) == self._tokens.shape[1]:
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)], axis=1)
            self._logprobs = np.concatenate([self._logprobs, np.zeros_like(self._logprobs)], axis=1)
        self._tokens[index, rows["drawn"]] = tokens
        self._logprobs[index, rows["drawn"]] = logprobs
        rows["token"] = tokens
        for field in ("position", "output", "drawn"):
            rows[field] += 1

    def _segment(self, row: int, finish: Finish) -> Segment:
        drawn = int(self._rows["drawn"][row])
        tokens, logprobs = self._tokens[row, :drawn].copy(), self._logprobs[row, :drawn].copy()
        versions = np.full(drawn, self.version, dtype=np.int32)
        return Segment(self._requests[row].sample_id, tokens, logprobs, versions, finish)

    def _sort(self) -> None:
        """Order the rows by length if attention then reads a tenth fewer entries.

        Longest first: the row that takes the place of an ended one is the last, so it hardly makes its block longer.
        """
        n = len(self._requests)
        positions = self._rows["position"][:n]
        order = np.argsort(-positions, kind="stable")
        if n and entries_read(positions) > SORT_ABOVE * entries_read(positions[order]):
            moved = np.flatnonzero(order != np.arange(n))
            self._move(order[moved], moved)

    def _move(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Copy rows `sources` to the places `targets`, [m] each."""
        longest, drawn = int(self._rows["position"][sources].max()), int(self._rows["drawn"][sources].max())
        self._cache.copy(self._to(torch.from_numpy(sources)), self._to(torch.from_numpy(targets)), longest)
        self._rows[targets] = self._rows[sources]
        self._tokens[targets, :drawn] = self._tokens[sources, :drawn]
        self._logprobs[targets, :drawn] = self._logprobs[sources, :drawn]
        requests = [self._requests[source] for source in sources]
        for target, request in zip(targets, requests, strict=True):
            self._requests[target] = request

    def _release(self, ended: np.ndarray) -> None:
        """Free rows and close the gaps with the last rows, so that the active ones stay 0..n-1."""
        if not len(ended):
            return
        n = len(self._requests) - len(ended)
        targets = ended[ended < n]
        sources = np.setdiff1d(np.arange(n, len(self._requests)), ended)
        if len(sources):
            self._move(sources, targets)
        del self._requests[n:]
