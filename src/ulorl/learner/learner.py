"""Line 11 of Algorithm 1: update the model on the experience that is ready.

Groups become rows with their advantages; rows become micro-batches; each micro-batch adds its share of the objective's
token sum, divided by the token count of the whole mini-batch, so that any split gives the gradient of one big batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ulorl.cancellation import NEVER, CancelToken
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.learner.batching import Batch, Row, collate, microbatches
from ulorl.learner.logprobs import token_logprobs
from ulorl.learner.optimizer import Optimizer
from ulorl.models.cpu.linear_products import use_onednn
from ulorl.models.head import head_of, hidden_states
from ulorl.models.lora import plain_weights, save_merged
from ulorl.models.model_loading import recompute_activations
from ulorl.objective.advantage import group_advantages, is_informative, soft_overlong_penalty
from ulorl.objective.importance import engine_weights, old_logprobs
from ulorl.objective.mismatch import mismatch
from ulorl.objective.mpt import masked_tokens, mpt_tokens
from ulorl.objective.policy_loss import clipped_objective_sum
from ulorl.rng import Stream, sample_seed
from ulorl.types import Group, LogProbs, Status


@dataclass(frozen=True)
class Experience:
    """One sample as the update sees it."""

    row: Row
    sample_id: int
    advantage: float
    correct: bool  # reward 1: its tokens can be MPTs (eq. 9)


@dataclass(frozen=True)
class Skipped:
    """A mini-batch whose loss or gradient was not finite: it changed neither the weights nor AdamW's moments."""

    cause: str
    sample_ids: tuple[int, ...]  # of the micro-batch with that loss; of the whole mini-batch for a gradient

    def __str__(self) -> str:
        return f"{self.cause}, of samples {_ranges(self.sample_ids)}"


@dataclass(frozen=True)
class Update:
    """What one update did. Without a group to train on, and when every mini-batch was skipped, nothing changes:
    `steps` is 0 and the means are absent. Samples, tokens and means are those of the mini-batches that were trained."""

    steps: int = 0  # gradient updates
    samples: int = 0
    tokens: int = 0
    groups_dropped: int = 0  # by dynamic sampling
    groups_unscored: int = 0  # left out, because a member has no reward
    means: dict[str, float] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()


@dataclass
class _Sums:
    """Sums over the update's tokens."""

    tokens: int = 0
    kept: int = 0  # tokens in the loss
    loss: float = 0.0
    entropy: float = 0.0
    mpts: int = 0
    masked: int = 0
    staleness: int = 0  # versions between a token's and the update's start
    ratio: float = 0.0
    clipped: int = 0
    tis: float | None = None  # of truncated importance weights, when they are used
    updates: int = 0  # gradient updates made so far
    newest: list[tuple[LogProbs, LogProbs]] = field(default_factory=list)  # engine's and learner's, same weights

    def means(self) -> dict[str, float]:
        """By metric name; those of the importance ratio are over the tokens in the loss, those of the mismatch over
        tokens that the engine drew with the weights of the update's start; absent without any."""
        means = {
            "train/loss": self.loss / self.tokens,
            "entropy/mean": self.entropy / self.tokens,
            "mpt/fraction": self.mpts / self.tokens,
            "mpt/masked_fraction": self.masked / self.tokens,
            "rollout/staleness_mean": self.staleness / self.tokens,
        }
        if self.kept:
            means |= {
                "importance/ratio_mean": self.ratio / self.kept,
                "importance/clip_fraction": self.clipped / self.kept,
            }
            if self.tis is not None:
                means["importance/tis_mean"] = self.tis / self.kept
        engine, learner = (np.concatenate(parts) for parts in zip(*self.newest, strict=True))
        if apart := mismatch(engine, learner):
            means |= {"mismatch/mean": apart.mean, "mismatch/max": apart.max, "mismatch/kl": apart.kl}
        return means


class Learner:
    """The policy that trains: a transformers model, AdamW, and the number of its present version.

    temperature: the rollout's; log-probs and entropies are those of softmax(logits / temperature).
    max_tokens: the global maximum output length, for soft overlong punishment.
    seed: the run's, for the cut into mini-batches.
    cpu_kernels: whether it multiplies through oneDNN where that is faster on a CPU.
    skipped_in_row: mini-batches skipped in a row up to now, from a checkpoint.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        optim: OptimConfig,
        objective: ObjectiveConfig,
        temperature: float,
        max_tokens: int,
        pad_id: int,
        version: int = 0,
        seed: int = 0,
        cpu_kernels: bool = True,
        skipped_in_row: int = 0,
    ) -> None:
        self.model = model
        self.optim = optim
        self.objective = objective
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.pad_id = pad_id
        self.version = version
        self.seed = seed
        self.skipped_in_row = skipped_in_row
        self._cpu_kernels = cpu_kernels
        if cpu_kernels:
            use_onednn(model)
        if optim.recompute:
            recompute_activations(model)
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = Optimizer(self._named, optim)

    def update(self, groups: Sequence[Group], cancel: CancelToken = NEVER) -> Update:
        """Train on the groups that are ready: one gradient update for each mini-batch.

        A mini-batch whose loss or gradient is not finite is skipped. After `optim.max_skipped` skipped mini-batches in
        a row (`skipped_in_row`) the update ends, and the caller should stop the run. Raises Cancelled before a
        micro-batch as long as no gradient update was made; an update that has changed the weights is finished first.
        """
        scored = [group for group in groups if not group.unscored]
        unscored = len(groups) - len(scored)
        experience, dropped = prepare(scored, self.objective, self.max_tokens)
        if not experience:
            return Update(groups_dropped=dropped, groups_unscored=unscored)
        start, entropy = self._at_start(experience, cancel)
        sums, norms, skipped = _Sums(), list[float](), list[Skipped]()
        samples, lr = 0, 0.0
        for part in minibatches([e.sample_id for e in experience], self.optim.minibatches, self.seed):
            chosen, before = [experience[i] for i in part], replace(sums, newest=[*sums.newest])
            at_start = [start[i] for i in part] if start else None
            norm = self._gradient(chosen, at_start, sums, entropy, NEVER if norms else cancel)
            if isinstance(norm, Skipped):
                sums = before
                skipped.append(norm)
                self.skipped_in_row += 1
                if self.skipped_in_row >= self.optim.max_skipped:
                    break
                continue
            lr = self.optimizer.step()
            norms.append(norm)
            samples += len(part)
            sums.updates += 1
            self.skipped_in_row = 0
        self.optimizer.zero_grad()
        if not norms:
            return Update(groups_dropped=dropped, groups_unscored=unscored, skipped=tuple(skipped))
        self.version += 1
        means = sums.means() | {"train/grad_norm": float(np.mean(norms)), "train/lr": lr}
        return Update(len(norms), samples, sums.tokens, dropped, unscored, means, tuple(skipped))

    def _at_start(
        self, experience: Sequence[Experience], cancel: CancelToken
    ) -> tuple[Sequence[LogProbs] | None, float | None]:
        """Log-probs and mean token entropy under the weights of the update's start, each where the objective needs it:
        POIS with several gradient updates takes these weights as the old policy; `gate="batch"` compares the entropy
        of the whole update with sigma, the same number for every mini-batch."""
        mpt = self.objective.mpt
        old_policy = self.optim.minibatches > 1 and self.objective.importance == "pois"
        gate = mpt.mask == "dynamic" and mpt.gate == "batch"
        if not (old_policy or gate):
            return None, None
        logprobs, entropy = self.score(experience, cancel)
        return logprobs if old_policy else None, entropy if gate else None

    @torch.no_grad()
    def score(self, experience: Sequence[Experience], cancel: CancelToken = NEVER) -> tuple[list[LogProbs], float]:
        """Return the log-probs of every row's tokens under the present weights, [T] each, and the mean token entropy.
        Raises Cancelled before a micro-batch."""
        logprobs: list[LogProbs] = [np.empty(0, np.float32)] * len(experience)
        entropy = 0.0
        for indices, batch in self._batches(experience, cancel):
            logprobs_N, entropy_N = self._forward(batch)
            entropy += float(entropy_N.double().sum())
            lengths = [len(experience[i].row.tokens) for i in indices]
            for i, part in zip(indices, torch.split(logprobs_N.cpu(), lengths), strict=True):
                logprobs[i] = part.numpy()
        return logprobs, entropy / sum(len(e.row.tokens) for e in experience)

    def _gradient(
        self,
        experience: Sequence[Experience],
        start: Sequence[LogProbs] | None,
        sums: _Sums,
        update_entropy: float | None = None,
        cancel: CancelToken = NEVER,
    ) -> float | Skipped:
        """One mini-batch: forward, objective, backward, clip. Returns the gradient's norm before clipping, or what was
        not finite."""
        total = sum(len(e.row.tokens) for e in experience)  # eq. 10: all tokens, masked ones included
        self.optimizer.zero_grad()
        for indices, batch in self._batches(experience, cancel):
            start_N = np.concatenate([start[i] for i in indices]) if start else None
            together = [experience[i] for i in indices]
            loss_sum = self._loss_sum(batch, together, start_N, update_entropy, sums)
            if not loss_sum.isfinite():
                return Skipped(f"the loss is {loss_sum.item()}", tuple(sorted(e.sample_id for e in together)))
            (loss_sum / total).backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(self._named.values(), self.optim.grad_clip))
        if not np.isfinite(norm):
            return Skipped(f"the gradient's norm is {norm}", tuple(e.sample_id for e in experience))
        return norm

    def _loss_sum(
        self,
        batch: Batch,
        experience: Sequence[Experience],
        start_N: LogProbs | None,
        update_entropy: float | None,
        sums: _Sums,
    ) -> Tensor:
        """The objective's token sum over one micro-batch (eq. 10)."""
        device, objective, mpt = batch.input_ids.device, self.objective, self.objective.mpt
        logprobs_N, entropy_N = self._forward(batch)
        correct_B = torch.tensor([e.correct for e in experience], device=device)
        at_start_N = torch.from_numpy(start_N).to(device) if start_N is not None else None
        old_N = old_logprobs(
            objective.importance, recorded_N=batch.recorded_N, update_start_N=at_start_N, current_N=logprobs_N
        )
        advantages_N = torch.tensor([e.advantage for e in experience], device=device)[batch.sample_N]
        weights_N = engine_weights(old_N, batch.recorded_N, objective.tis_cap) if objective.tis_cap else None
        if weights_N is not None:
            advantages_N = advantages_N * weights_N
        left_out_N = masked_tokens(
            logprobs_N, entropy_N, batch.sample_N, correct_B,
            mask=mpt.mask, tau=mpt.tau, sigma=mpt.sigma, batch_entropy=update_entropy,
        )  # fmt: skip
        loss_sum, seen = clipped_objective_sum(
            logprobs_N, old_N, advantages_N, ~left_out_N,
            clip_low=objective.clip_low, clip_high=objective.clip_high,
        )  # fmt: skip
        sums.tokens += len(logprobs_N)
        sums.kept += int(seen.tokens)
        sums.loss += float(loss_sum.detach())
        sums.entropy += float(entropy_N.double().sum())
        sums.mpts += int(mpt_tokens(logprobs_N, correct_B[batch.sample_N], mpt.tau).sum())
        sums.masked += int(left_out_N.sum())
        sums.staleness += int((self.version - batch.versions_N).sum())
        sums.ratio += float(seen.ratio)
        sums.clipped += int(seen.clipped)
        if weights_N is not None:
            sums.tis = (sums.tis or 0.0) + float(weights_N[~left_out_N].double().sum())
        if at_start_N is not None or not sums.updates:
            newest_N = batch.versions_N == self.version
            learned_N = (at_start_N if at_start_N is not None else logprobs_N.detach())[newest_N]
            sums.newest.append((batch.recorded_N[newest_N].cpu().numpy(), learned_N.cpu().numpy()))
        return loss_sum

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probs (with gradient) and entropies of the micro-batch's output tokens, [N] each."""
        # No mask: padding stands on the right, where causal attention never looks, and a mask would take S x S memory.
        # transformers tells packed samples apart by their positions (learner/attention.py).
        autocast = self.optim.autocast == "bfloat16"
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=autocast):
            hidden_BSH = hidden_states(self.model, batch.input_ids, None, batch.position_ids)
        hidden_NH, head = hidden_BSH.flatten(0, 1)[batch.source_N], head_of(self.model)
        if autocast:  # the last norm gives float32: the head, a tenth of a model's arithmetic, would be too
            hidden_NH, head = hidden_NH.bfloat16(), replace(head, weight_VH=head.weight_VH.bfloat16())
        return token_logprobs(hidden_NH, head, batch.targets_N, self.temperature, cpu_kernels=self._cpu_kernels)

    def _batches(self, experience: Sequence[Experience], cancel: CancelToken) -> Iterator[tuple[list[int], Batch]]:
        rows = [e.row for e in experience]
        lengths = [len(row.prompt) + len(row.tokens) for row in rows]
        for indices in microbatches(lengths, self.optim.microbatch_tokens, self.optim.layout):
            cancel.check()
            yield indices, collate([rows[i] for i in indices], self.pad_id, self.model.device, self.optim.layout)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The present weights by the plain model's parameter names, for the engine; LoRA's adapters are merged in."""
        return plain_weights(self.model)

    def save_model(self, folder: Path) -> None:
        """A transformers folder; LoRA's adapters are merged in."""
        save_merged(self.model, folder)

    def save_optimizer(self, path: Path) -> None:
        self.optimizer.save(path)

    def load_optimizer(self, path: Path) -> None:
        """AdamW's moments as `save_optimizer` wrote them; the weights are loaded with the model."""
        self.optimizer.load(path)


def prepare(groups: Sequence[Group], objective: ObjectiveConfig, max_tokens: int) -> tuple[list[Experience], int]:
    """Scored groups to rows with advantages (eq. 4), and the number of groups that dynamic sampling left out.

    Rewards are {0, 1}; a truncated sample has 0 already. `overlong=filter` leaves truncated samples out of the loss
    (their 0 still counts in the group's mean, as in DAPO); `overlong=soft` adds DAPO's length punishment to the reward.
    """
    rows: list[Experience] = []
    dropped = 0
    for group in groups:
        rewards_G = torch.tensor([member.reward for member in group.members], dtype=torch.float64)
        if objective.dynamic_sampling and not is_informative(rewards_G):
            dropped += 1
            continue
        if objective.overlong == "soft":
            lengths = [len(member.sample) for member in group.members]
            penalties = [soft_overlong_penalty(n, max_tokens, objective.overlong_buffer) for n in lengths]
            rewards_G = rewards_G + torch.tensor(penalties, dtype=torch.float64)
        for member, advantage in zip(group.members, group_advantages(rewards_G).tolist(), strict=True):
            if objective.overlong == "filter" and member.sample.status is Status.TRUNCATED:
                continue
            sample = member.sample
            row = Row(sample.prompt, sample.tokens, sample.logprobs, sample.versions)
            rows.append(Experience(row, sample.id, advantage, correct=member.reward == 1.0))
    return rows, dropped


def minibatches(sample_ids: Sequence[int], number: int, seed: int) -> list[NDArray[np.int64]]:
    """Cuts samples into at most `number` mini-batches of equal size, as indices in rising order.

    Several are cut from a shuffled order: samples come in the order of their groups, so that otherwise the older and
    longer ones would all be in the first. A sample's place in that order is drawn from (seed, sample id), so that a
    resumed run cuts the same."""
    number = min(number, len(sample_ids))
    keys = [sample_seed(seed, id, Stream.MINIBATCHES) for id in sample_ids] if number > 1 else [0] * len(sample_ids)
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    return [np.sort(part) for part in np.array_split(order, number)]


def _ranges(ids: Sequence[int]) -> str:
    """3 4 5 9 as "3-5, 9"."""
    runs: list[list[int]] = []
    for id in sorted(ids):
        if runs and runs[-1][-1] == id - 1:
            runs[-1][1:] = [id]
        else:
            runs.append([id])
    return ", ".join("-".join(map(str, run)) for run in runs)
