"""The memory of one rank of the learner, by phase of an update.

A rank holds its part of weights, gradients and AdamW's moments throughout (FSDP2 shards every parameter over all
ranks). What comes on top differs from phase to phase: forward pass, head, backward pass of a layer, end of the backward
pass. The peak is the largest phase, not the sum of the largest parts, because the head's memory is free again when the
layers' backward passes begin. All numbers are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ulorl.planning.layer_memory import (
    FLOAT,
    HeadBytes,
    Precision,
    head_bytes,
    precision_of,
    saved_bytes,
    transient_bytes,
)
from ulorl.planning.model_sizes import ModelSizes


@dataclass(frozen=True)
class LearnerSetting:
    """How the learner trains, as far as memory depends on it.

    ranks: the processes that share the learner, one GPU each. sequence: how many share each sequence. longest:
    tokens of the longest prompt with its output. outputs: its output tokens. microbatch_tokens: of one process.
    lora_rank: 0 when all weights are trained. cpu: the learner computes on a CPU, where tiles of logits are smaller.
    """

    ranks: int
    sequence: int
    dtype: Literal["float32", "bfloat16"]
    autocast: bool
    offload: bool
    recompute: bool
    longest: int
    outputs: int
    microbatch_tokens: int
    lora_rank: int = 0
    cpu: bool = False

    @property
    def precision(self) -> Precision:
        """Return the bytes of one number in the places where it occurs."""
        return precision_of(self.dtype, autocast=self.autocast, sharded=self.ranks > 1)

    @property
    def tokens(self) -> int:
        """The tokens of a process's largest micro-batch: its part of the longest sample, or a full micro-batch."""
        return max(-(-self.longest // self.sequence), self.microbatch_tokens)

    @property
    def output_tokens(self) -> int:
        """The output tokens among `tokens`."""
        return -(-self.tokens * self.outputs // self.longest)


@dataclass(frozen=True)
class Phase:
    """What a rank holds in one phase of an update beyond its state, in bytes.

    gathered: weights of all ranks, or their bfloat16 copies. in_flight: gradients before they are reduced over the
    ranks. checkpoints: saved inputs of layers. activations: everything else that autograd and the kernels hold.
    """

    name: str
    gathered: int
    in_flight: int
    checkpoints: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return self.gathered + self.in_flight + self.checkpoints + self.activations


@dataclass(frozen=True)
class LearnerMemory:
    """The memory of one rank, in bytes: its state, what each phase adds, and what it holds in the machine's memory."""

    parameters: int
    gradients: int
    moments: int
    phases: tuple[Phase, ...]
    host: int

    @property
    def state(self) -> int:
        """Weights, gradients and AdamW's moments."""
        return self.parameters + self.gradients + self.moments

    @property
    def largest(self) -> Phase:
        """The phase that needs the most memory."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def peak(self) -> int:
        """State and the largest phase."""
        return self.state + self.largest.total

    def part(self, name: str) -> int:
        """Return the most of one part of `Phase` over all phases."""
        return max(int(getattr(phase, name)) for phase in self.phases)


def learner_memory(sizes: ModelSizes, setting: LearnerSetting) -> LearnerMemory:
    """Return the memory of one rank for the longest sample, with the gradients of earlier micro-batches in place.

    Terms that the table in docs/cluster.md shows: state 16 N / W bytes for N float32 parameters on W ranks, 8 N / W
    without the moments; layer inputs; activations of the largest layer; the head.
    """
    master, ranks = setting.precision.master, setting.ranks
    adapters = setting.lora_rank * sizes.adapter_width
    trained, width = (adapters, FLOAT) if adapters else (sizes.parameters, master)
    stepped = -(-trained // ranks)
    parameters = -(-sizes.parameters // ranks) * master + (FLOAT * stepped if adapters else 0)
    return LearnerMemory(
        parameters=parameters,
        gradients=width * stepped,
        moments=0 if setting.offload else 2 * width * stepped,
        phases=_sharded(sizes, setting) if ranks > 1 else _alone(sizes, setting),
        host=4 * width * stepped if setting.offload else 0,  # copies of weights and gradients, two moments
    )


def _sharded(sizes: ModelSizes, setting: LearnerSetting) -> tuple[Phase, ...]:
    """Return the phases of a rank among several.

    FSDP2 gathers a unit into a buffer and copies it out; the buffer of the last unit lives through the head's forward
    pass. In the backward pass the next layer is gathered while one computes, and a layer's gradients are copied into
    a buffer to be reduced, which lives until the next layer's. Embedding, norm and head of a tied model are one unit,
    which is gathered throughout and reduced at the end. The head of other models is reduced before the layers.
    """
    gathered, layer = setting.precision.product, max(sizes.layers)
    trained = not setting.lora_rank
    unit = sizes.outside if sizes.tied else sizes.head + sizes.hidden
    kept = sizes.outside if sizes.tied else 0
    head, (whole, layers) = _head(sizes, setting), _activations(sizes, setting)
    gradient, waiting = gathered * (kept or sizes.head), max(layer, 0 if sizes.tied else unit)
    stream = setting.tokens * setting.precision.stream * sizes.hidden
    phases = [
        Phase("head, forward", gathered * (unit + (layer if sizes.tied else unit)), 0, whole, head.forward),
        Phase("head, backward", gathered * (unit + layer), trained * gradient, whole, head.backward),
        Phase(
            "layer, backward",
            gathered * (2 * layer + kept),
            trained * (gathered * (layer + kept) + setting.precision.reduced * (waiting + -(-layer // setting.ranks))),
            whole,
            layers,
        ),
        Phase("end", gathered * unit, trained * (gathered * unit + _reduced(setting, unit, unit)), 0, stream),
    ]
    if not sizes.tied:
        reduced = trained * (gathered * unit + _reduced(setting, unit, unit))
        phases.insert(2, Phase("head, reduced", gathered * layer, reduced, whole, stream))
    return tuple(phases)


def _reduced(setting: LearnerSetting, waiting: int, unit: int) -> int:
    """Return the bytes of the gradients while they are reduced, and of a rank's part of the sum. gloo copies them."""
    return setting.precision.reduced * (waiting * (2 if setting.cpu else 1) + -(-unit // setting.ranks))


def _alone(sizes: ModelSizes, setting: LearnerSetting) -> tuple[Phase, ...]:
    """Return the phases of a learner in one process.

    torch.autocast makes a bfloat16 copy of a weight, which lives until the backward pass; with recomputed activations
    only those of one layer exist. A gradient exists once more until it is added to those of earlier micro-batches.
    """
    precision, layer = setting.precision, max(sizes.layers)
    copied = 2 if precision.product < precision.master else 0
    copies = copied * (layer if setting.recompute else sum(sizes.layers))
    trained = not setting.lora_rank
    head, (whole, layers) = _head(sizes, setting), _activations(sizes, setting)
    gradient = precision.product * sizes.head + (precision.master * sizes.head if copied else 0)
    before = 0 if setting.recompute else copies
    return (
        Phase("head, forward", before + copied * sizes.head, 0, whole, head.forward),
        Phase("head, backward", before + copied * sizes.head, trained * gradient, whole, head.backward),
        Phase("layer, backward", copies, trained * precision.master * layer // 2, whole, layers),
        Phase("end", 0, trained * precision.master * sizes.head, 0, 0),
    )


def _activations(sizes: ModelSizes, setting: LearnerSetting) -> tuple[int, int]:
    """Return what is saved for all layers, and what one layer adds in its backward pass."""
    precision, tokens, count = setting.precision, setting.tokens, len(sizes.layers)
    saved = saved_bytes(sizes, precision, setting.sequence, cpu=setting.cpu)
    if setting.lora_rank:
        saved += lora_bytes(sizes, precision)
    stream = precision.stream * sizes.hidden  # a layer's input, or the gradient of its output
    extra = transient_bytes(sizes, precision) + stream
    if setting.recompute:
        return tokens * count * stream, tokens * (saved + extra)
    return tokens * count * (saved + stream), tokens * extra


def lora_bytes(sizes: ModelSizes, precision: Precision) -> int:
    """Return the bytes that adapters save in one layer for each token, at most: a float32 copy of every product's input
    when the weights are bfloat16."""
    if precision.product == FLOAT:
        return 0
    A, width = sizes.query_heads * sizes.head_dim, max(sizes.active, 1) * sizes.intermediate
    return FLOAT * (5 * sizes.hidden + A + width)


def _head(sizes: ModelSizes, setting: LearnerSetting) -> HeadBytes:
    return head_bytes(sizes, setting.precision, setting.tokens, setting.output_tokens, cpu=setting.cpu)
