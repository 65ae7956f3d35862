"""Line 11 of Algorithm 1: update the model on the experience that is ready.

Groups become rows with their advantages; rows become micro-batches; each micro-batch adds its share of the objective's
token sum, divided by the token count of the whole mini-batch, so that any split gives the gradient of one big batch.

Shapes: T tokens of a sample, N output tokens of a micro-batch, B its samples, S its row length, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulorl.cancellation import NEVER, CancelToken
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.learner.batching import Batch, collate, microbatches
from ulorl.learner.experience import Experience, minibatches, prepare
from ulorl.learner.logprobs import token_logprobs
from ulorl.learner.optimizer import Optimizer
from ulorl.learner.update_result import Skipped, Update, UpdateSums
from ulorl.models.cpu.linear_products import use_onednn
from ulorl.models.head import head_of, hidden_states
from ulorl.models.lora import plain_weights, save_merged
from ulorl.models.model_loading import recompute_activations
from ulorl.objective.importance import engine_weights, old_logprobs
from ulorl.objective.mpt import masked_tokens, mpt_tokens
from ulorl.objective.policy_loss import clipped_objective_sum
from ulorl.types import Group, LogProbs


@dataclass(frozen=True)
class LearnerSpec:
    """Everything that decides how a learner trains, apart from the model.

    temperature: the rollout's; log-probs and entropies are those of softmax(logits / temperature). max_tokens: the
    global maximum output length, for soft overlong punishment. pad_id: the token for padding, which is masked
    everywhere. seed: the run's, for the cut into mini-batches. cpu_kernels: whether the model multiplies through oneDNN
    where that is faster on a CPU.
    """

    optim: OptimConfig
    objective: ObjectiveConfig
    temperature: float
    max_tokens: int
    pad_id: int
    seed: int = 0
    cpu_kernels: bool = True


class Learner:
    """The policy that trains: a transformers model, AdamW, and the version number of the present weights.

    version, skipped_in_row: the version of the weights, and the mini-batches skipped in a row up to now, of a run that
    resumes.
    """

    def __init__(self, model: PreTrainedModel, spec: LearnerSpec, *, version: int = 0, skipped_in_row: int = 0) -> None:
        self.model, self.spec = model, spec
        self.version, self.skipped_in_row = version, skipped_in_row
        if spec.cpu_kernels:
            use_onednn(model)
        if spec.optim.recompute:
            recompute_activations(model)
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = Optimizer(self._named, spec.optim)

    def update(self, groups: Sequence[Group], cancel: CancelToken = NEVER) -> Update:
        """Train on the groups that are ready: one gradient update for each mini-batch.

        A mini-batch whose loss or gradient is not finite is skipped. After `optim.max_skipped` skipped mini-batches in
        a row (`skipped_in_row`) the update ends, and the caller should stop the run. Raises Cancelled before a
        micro-batch as long as no gradient update was made; an update that has changed the weights is finished first.
        """
        scored = [group for group in groups if not group.unscored]
        unscored = len(groups) - len(scored)
        experience, dropped = prepare(scored, self.spec.objective, self.spec.max_tokens)
        if not experience:
            return Update(groups_dropped=dropped, groups_unscored=unscored)
        start, entropy = self._at_start(experience, cancel)
        sums, norms, skipped = UpdateSums(), list[float](), list[Skipped]()
        samples, lr = 0, 0.0
        for part in minibatches([e.sample_id for e in experience], self.spec.optim.minibatches, self.spec.seed):
            chosen, before = [experience[i] for i in part], replace(sums, newest=[*sums.newest])
            at_start = [start[i] for i in part] if start else None
            norm = self._gradient(chosen, at_start, sums, entropy, NEVER if norms else cancel)
            if isinstance(norm, Skipped):
                sums = before
                skipped.append(norm)
                self.skipped_in_row += 1
                if self.skipped_in_row >= self.spec.optim.max_skipped:
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
        """Return log-probs and mean token entropy under the weights at the update's start, each if the objective needs
        it. POIS with several gradient updates takes these weights as the old policy; `gate="batch"` compares the
        entropy of the whole update with sigma, the same number for every mini-batch."""
        mpt = self.spec.objective.mpt
        old_policy = self.spec.optim.minibatches > 1 and self.spec.objective.importance == "pois"
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
        sums: UpdateSums,
        update_entropy: float | None = None,
        cancel: CancelToken = NEVER,
    ) -> float | Skipped:
        """Compute the clipped gradient of one mini-batch. Return its norm before clipping, or what was not finite."""
        total = sum(len(e.row.tokens) for e in experience)  # eq. 10: all tokens, masked ones included
        self.optimizer.zero_grad()
        for indices, batch in self._batches(experience, cancel):
            start_N = np.concatenate([start[i] for i in indices]) if start else None
            together = [experience[i] for i in indices]
            loss_sum = self._loss_sum(batch, together, start_N, update_entropy, sums)
            if not loss_sum.isfinite():
                return Skipped(f"the loss is {loss_sum.item()}", tuple(sorted(e.sample_id for e in together)))
            (loss_sum / total).backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(self._named.values(), self.spec.optim.grad_clip))
        if not np.isfinite(norm):
            return Skipped(f"the gradient's norm is {norm}", tuple(e.sample_id for e in experience))
        return norm

    def _loss_sum(
        self,
        batch: Batch,
        experience: Sequence[Experience],
        start_N: LogProbs | None,
        update_entropy: float | None,
        sums: UpdateSums,
    ) -> Tensor:
        """Return the objective's token sum over one micro-batch (eq. 10), and add its numbers to `sums`."""
        device, objective, mpt = batch.input_ids.device, self.spec.objective, self.spec.objective.mpt
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
        """Return log-probs (with gradient) and entropies of the micro-batch's output tokens, [N] each."""
        # No mask: padding is on the right, where causal attention never looks, and a mask would take S x S memory.
        # transformers separates packed samples by their positions (models/attention.py).
        autocast = self.spec.optim.autocast == "bfloat16"
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=autocast):
            hidden_BSH = hidden_states(self.model, batch.input_ids, None, batch.position_ids)
        hidden_NH, head = hidden_BSH.flatten(0, 1)[batch.source_N], head_of(self.model)
        if autocast:  # the last norm gives float32: the head, a tenth of a model's arithmetic, would be too
            hidden_NH, head = hidden_NH.bfloat16(), replace(head, weight_VH=head.weight_VH.bfloat16())
        return token_logprobs(
            hidden_NH, head, batch.targets_N, self.spec.temperature, cpu_kernels=self.spec.cpu_kernels
        )

    def _batches(self, experience: Sequence[Experience], cancel: CancelToken) -> Iterator[tuple[list[int], Batch]]:
        rows = [e.row for e in experience]
        lengths = [len(row.prompt) + len(row.tokens) for row in rows]
        for indices in microbatches(lengths, self.spec.optim.microbatch_tokens, self.spec.optim.layout):
            cancel.check()
            yield (
                indices,
                collate([rows[i] for i in indices], self.spec.pad_id, self.model.device, self.spec.optim.layout),
            )

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the present weights by the plain model's parameter names, for the engine; LoRA adapters are merged."""
        return plain_weights(self.model)

    def save_model(self, folder: Path) -> None:
        """Write a transformers folder; LoRA adapters are merged into the weights."""
        save_merged(self.model, folder)

    def save_optimizer(self, path: Path) -> None:
        """Write AdamW's moments and the count of updates as safetensors."""
        self.optimizer.save(path)

    def load_optimizer(self, path: Path) -> None:
        """Load what `save_optimizer` wrote; the weights are loaded with the model."""
        self.optimizer.load(path)
