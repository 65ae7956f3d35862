"""Line 11 of Algorithm 1: update the model on the experience that is ready.

Groups become rows with their advantages; rows become micro-batches; each micro-batch adds its share of the objective's
token sum, divided by the token count of the whole mini-batch, so that any split gives the gradient of one big batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from ulorl import config
from ulorl.learner.batching import Batch, Row, collate, microbatches
from ulorl.learner.logprobs import token_logprobs
from ulorl.learner.model import head_of, hidden_states, recompute_activations
from ulorl.objective.advantage import group_advantages, is_informative, soft_overlong_penalty
from ulorl.objective.importance import engine_weights, old_logprobs
from ulorl.objective.loss import clipped_objective_sum
from ulorl.objective.mismatch import mismatch
from ulorl.objective.mpt import masked_tokens, mpt_tokens
from ulorl.types import Group, LogProbs, Status


@dataclass(frozen=True)
class Experience:
    """One sample as the update sees it."""

    row: Row
    advantage: float
    correct: bool  # reward 1: its tokens can be MPTs (eq. 9)


@dataclass(frozen=True)
class Update:
    """What one update did. Without a group to train on nothing changes: `steps` is 0 and the means are absent."""

    steps: int = 0  # gradient updates
    samples: int = 0
    tokens: int = 0
    groups_dropped: int = 0  # by dynamic sampling
    means: dict[str, float] = field(default_factory=dict)


@dataclass
class _Sums:
    """Sums over the update's tokens."""

    tokens: int = 0
    kept: int = 0  # tokens in the loss
    loss: float = 0.0
    entropy: float = 0.0
    mpts: int = 0
    masked: int = 0
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
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        optim: config.Optim,
        objective: config.Objective,
        temperature: float,
        max_tokens: int,
        pad_id: int,
        version: int = 0,
    ) -> None:
        self.model = model
        self.optim = optim
        self.objective = objective
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.pad_id = pad_id
        self.version = version
        self.updates = 0  # gradient updates made; drives the warm-up
        if optim.recompute:
            recompute_activations(model)
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._adamw = torch.optim.AdamW(
            self._named.values(),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )

    @property
    def learning_rate(self) -> float:
        """Of the next gradient update: linear warm-up, then constant (section 4.1)."""
        return self.optim.lr * min(1.0, (self.updates + 1) / max(1, self.optim.warmup_steps))

    def update(self, groups: Sequence[Group]) -> Update:
        """One step's training on the groups that are ready. Raises FloatingPointError when the loss or the gradient
        is not finite; the weights are then those of before the mini-batch."""
        experience, dropped = prepare(groups, self.objective, self.max_tokens)
        if not experience:
            return Update(groups_dropped=dropped)
        several = self.optim.minibatches > 1
        # POIS with several gradient updates: the old policy is the weights at the start of the update.
        start = self.score(experience)[0] if several and self.objective.importance == "pois" else None
        sums, norms = _Sums(), []
        parts = np.array_split(np.arange(len(experience)), min(self.optim.minibatches, len(experience)))
        for part in parts:
            chosen = [experience[i] for i in part]
            norms.append(self._gradient_update(chosen, [start[i] for i in part] if start else None, sums))
        self.version += 1
        means = sums.means() | {"train/grad_norm": float(np.mean(norms)), "train/lr": self._adamw.param_groups[0]["lr"]}
        return Update(len(parts), len(experience), sums.tokens, dropped, means)

    @torch.no_grad()
    def score(self, experience: Sequence[Experience]) -> tuple[list[LogProbs], float]:
        """Log-probs of every row's tokens under the present weights, [T] each, and the mean token entropy."""
        logprobs: list[LogProbs] = [np.empty(0, np.float32)] * len(experience)
        entropy = 0.0
        for indices, batch in self._batches(experience):
            logprobs_N, entropy_N = self._forward(batch)
            entropy += float(entropy_N.double().sum())
            lengths = [len(experience[i].row.tokens) for i in indices]
            for i, part in zip(indices, torch.split(logprobs_N.cpu(), lengths), strict=True):
                logprobs[i] = part.numpy()
        return logprobs, entropy / sum(len(e.row.tokens) for e in experience)

    def _gradient_update(
        self, experience: Sequence[Experience], start: Sequence[LogProbs] | None, sums: _Sums
    ) -> float:
        """One mini-batch: forward, objective, backward, clip, step. Returns the gradient norm before clipping."""
        mpt = self.objective.mpt
        total = sum(len(e.row.tokens) for e in experience)  # eq. 10: all tokens, masked ones included
        batch_entropy = self.score(experience)[1] if mpt.mask == "dynamic" and mpt.gate == "batch" else None
        self._adamw.zero_grad(set_to_none=True)
        for indices, batch in self._batches(experience):
            start_N = np.concatenate([start[i] for i in indices]) if start else None
            loss_sum = self._loss_sum(batch, [experience[i] for i in indices], start_N, batch_entropy, sums)
            (loss_sum / total).backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(self._named.values(), self.optim.grad_clip))
        if not np.isfinite(norm):
            raise FloatingPointError(
                f"the gradient norm of update {self.updates + 1} is {norm}; the weights were not changed. "
                "A lower optim.lr or model.dtype=float32 usually mends this"
            )
        for parameters in self._adamw.param_groups:
            parameters["lr"] = self.learning_rate
        self._adamw.step()
        self.updates += 1
        sums.updates += 1
        return norm

    def _loss_sum(
        self,
        batch: Batch,
        experience: Sequence[Experience],
        start_N: LogProbs | None,
        batch_entropy: float | None,
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
            mask=mpt.mask, tau=mpt.tau, sigma=mpt.sigma, gate=mpt.gate, batch_entropy=batch_entropy,
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
        hidden_BSH = hidden_states(self.model, batch.input_ids, None, batch.position_ids)
        hidden_NH = hidden_BSH.flatten(0, 1)[batch.source_N]
        return token_logprobs(hidden_NH, head_of(self.model), batch.targets_N, self.temperature)

    def _batches(self, experience: Sequence[Experience]) -> Iterator[tuple[list[int], Batch]]:
        rows = [e.row for e in experience]
        lengths = [len(row.prompt) + len(row.tokens) for row in rows]
        for indices in microbatches(lengths, self.optim.microbatch_tokens):
            yield indices, collate([rows[i] for i in indices], self.pad_id, self.model.device)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The present weights by parameter name, for the engine."""
        for name, parameter in self.model.named_parameters():
            yield name, parameter.detach()

    def save_model(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def save_optimizer(self, path: Path) -> None:
        state = {
            f"{name}/{key}": value for name, p in self._named.items() for key, value in self._adamw.state[p].items()
        }
        save_file({**state, "updates": torch.tensor(self.updates)}, path)

    def load_optimizer(self, path: Path) -> None:
        """AdamW's moments as `save_optimizer` wrote them; the weights are loaded with the model."""
        tensors = load_file(path)
        self.updates = int(tensors.pop("updates"))
        for key, value in tensors.items():
            name, _, slot = key.rpartition("/")
            self._adamw.state[self._named[name]][slot] = value.to(self.model.device)  # fused: `step` too


def prepare(groups: Sequence[Group], objective: config.Objective, max_tokens: int) -> tuple[list[Experience], int]:
    """Groups to rows with advantages (eq. 4), and the number of groups that dynamic sampling left out.

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
            rows.append(Experience(row, advantage, correct=member.reward == 1.0))
    return rows, dropped
