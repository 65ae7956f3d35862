"""Line 11 of Algorithm 1: update the model on the experience that is ready.

Groups become rows with their advantages; rows become micro-batches; each micro-batch adds its share of the objective's
token sum, divided by the token count of the whole mini-batch, so that any split gives the gradient of one big batch.

Shapes: T tokens of a sample, N output tokens of a micro-batch, B its samples, S its row length, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ulorl.cancellation import NEVER, Cancelled, CancelToken
from ulorl.config.entropy_config import EntropyBonusConfig
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.learner import learner_files
from ulorl.learner.batching import PLACEHOLDER, Batch, collate, share_of_microbatches
from ulorl.learner.experience import Experience, minibatches, prepare
from ulorl.learner.learner import Weights
from ulorl.learner.microbatch_loss import microbatch_loss
from ulorl.learner.observed import observed_samples
from ulorl.learner.optimizer import Optimizer, gradient_norm
from ulorl.learner.policy import Policy
from ulorl.learner.ranks import ONE_RANK, Ranks
from ulorl.learner.update_result import Skipped, Update, UpdateSums
from ulorl.learner.update_start import TokenScores, UpdateStart, at_update_start
from ulorl.models.cpu.linear_products import use_onednn
from ulorl.models.lora import CopiedWeights, PlainWeights, save_merged, whole
from ulorl.models.model_loading import recompute_activations
from ulorl.models.streamed_export import export_streamed
from ulorl.objective.entropy_control import adapted_coefficient, entropy_bonus
from ulorl.types import Group, LogProbs


@dataclass(frozen=True)
class LearnerSpec:
    """Everything that decides how a learner trains, apart from the model.

    temperature: the rollout's; log-probs and entropies are those of softmax(logits / temperature). max_tokens: the
    global maximum output length, for soft overlong punishment. pad_id: the token for padding, which is masked
    everywhere. seed: the run's, for the cut into mini-batches, the draws of an entropy control, and new adapters of a
    rank of its own. cpu_kernels: whether the model multiplies through oneDNN
    where that is faster on a CPU. copy_published: whether `publish` copies the weights, for engines that need them
    while the next update runs. token_samples: of how many samples an update returns values of single tokens.
    """

    optim: OptimConfig
    objective: ObjectiveConfig
    temperature: float
    max_tokens: int
    pad_id: int
    seed: int = 0
    cpu_kernels: bool = True
    copy_published: bool = False
    token_samples: int = 0


class PolicyLearner:
    """A learner: a policy, AdamW, and the version number of the present weights. With several `ranks` it is the part of
    one rank, and every method is called on all of them, with the same arguments.

    version, skipped_in_row: the version of the weights, and the mini-batches skipped in a row up to now, of a run that
    resumes.
    """

    def __init__(
        self,
        policy: Policy,
        spec: LearnerSpec,
        *,
        ranks: Ranks = ONE_RANK,
        version: int = 0,
        skipped_in_row: int = 0,
    ) -> None:
        self.policy, self.spec, self.ranks = policy, spec, ranks
        self.version, self.skipped_in_row = version, skipped_in_row
        control = spec.objective.entropy
        self.entropy_coefficient = control.coefficient if isinstance(control, EntropyBonusConfig) else None
        self._named = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
        self.optimizer = Optimizer(self._named, spec.optim)
        # An update, and what is being written.
        self._threads = ThreadPoolExecutor(2, "learner", initializer=_use_device, initargs=(policy.device,))
        self._files = dist.new_group(backend="gloo") if ranks.world > 1 else None

    @property
    def updates(self) -> int:
        """The gradient updates made since the run began."""
        return self.optimizer.updates

    @property
    def model(self) -> PreTrainedModel:
        """The model that trains."""
        return self.policy.model

    def begin(self, groups: Sequence[Group], cancel: CancelToken = NEVER) -> Future[Update]:
        """Start `update` in a thread."""
        return self._threads.submit(self.update, groups, cancel)

    def update(self, groups: Sequence[Group], cancel: CancelToken = NEVER) -> Update:
        """Train on the groups that are ready: one gradient update for each mini-batch (`Learner.update`)."""
        scored = [group for group in groups if not group.unscored]
        unscored = len(groups) - len(scored)
        experience, dropped = prepare(scored, self.spec.objective, self.spec.max_tokens)
        if not experience:
            return Update(groups_dropped=dropped, groups_unscored=unscored)
        start = self._at_start(experience, cancel)
        bonus, next_coefficient = self._bonus(start.entropy)
        sums = UpdateSums(observe=observed_samples(experience, self.spec.token_samples))
        norms, skipped = list[float](), list[Skipped]()
        samples, lr = 0, 0.0
        for part in minibatches([e.sample_id for e in experience], self.spec.optim.minibatches, self.spec.seed):
            chosen, before = [experience[i] for i in part], sums.copy()
            norm = self._gradient(chosen, start.of(part.tolist()), sums, NEVER if norms else cancel, bonus)
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
        self.entropy_coefficient = next_coefficient
        sums = UpdateSums.total(self.ranks.gather_shares(sums))
        means = sums.means() | {"train/grad_norm": float(np.mean(norms)), "train/lr": lr}
        if next_coefficient is not None:
            means["entropy/bonus"] = bonus
        advantages = {one.sample_id: one.advantage for one in experience}
        return Update(
            len(norms), samples, sums.tokens, dropped, unscored, means, tuple(skipped), advantages, sums.observed
        )

    def _at_start(self, experience: Sequence[Experience], cancel: CancelToken) -> UpdateStart:
        """Return what the objective needs from a pass under the weights at the update's start, if it needs one."""
        return at_update_start(
            self.spec.objective,
            experience,
            lambda: self._scores(experience, cancel),
            minibatches=self.spec.optim.minibatches,
            seed=self.spec.seed,
        )

    def _bonus(self, entropy: float | None) -> tuple[float, float | None]:
        """Return the factor of the mean token entropy in this update's objective, and the coefficient of the next
        update. entropy: the update's mean, in nats."""
        control, coefficient = self.spec.objective.entropy, self.entropy_coefficient
        if not isinstance(control, EntropyBonusConfig) or coefficient is None or entropy is None:
            return 0.0, None
        following = adapted_coefficient(
            coefficient, entropy, target=control.target, step=control.step, highest=control.highest
        )
        return entropy_bonus(coefficient, entropy, control.target), following

    def score(self, experience: Sequence[Experience], cancel: CancelToken = NEVER) -> tuple[list[LogProbs], float]:
        """Return the log-probs of every row's tokens under the present weights, [T] each, and the mean token entropy.
        Raises Cancelled before a micro-batch."""
        scores = self._scores(experience, cancel)
        return list(scores.logprobs), scores.mean_entropy

    @torch.no_grad()
    def _scores(self, experience: Sequence[Experience], cancel: CancelToken) -> TokenScores:
        own: dict[int, tuple[LogProbs, NDArray[np.float32]]] = {}
        for indices, batch in self._batches(experience, cancel):
            logprobs_N, entropy_N = self.policy(batch)
            self.policy.free_gathered()
            lengths = [len(experience[i].row.tokens) for i in indices]
            if indices:
                parts = (torch.split(values_N.cpu(), lengths) for values_N in (logprobs_N, entropy_N))
                own |= {i: (p.numpy(), h.numpy()) for i, p, h in zip(indices, *parts, strict=True)}
        found = {i: values for rows in self.ranks.gather_shares(own) for i, values in rows.items()}
        logprobs, entropies = zip(*(found[i] for i in range(len(experience))), strict=True)
        return TokenScores(logprobs, entropies)

    def _gradient(
        self,
        experience: Sequence[Experience],
        start: UpdateStart,
        sums: UpdateSums,
        cancel: CancelToken = NEVER,
        bonus: float = 0.0,
    ) -> float | Skipped:
        """Compute the clipped gradient of one mini-batch. Return its norm before clipping, or what was not finite.

        start: the values of its samples at the update's start. bonus: the factor of the mean token entropy.
        """
        total = sum(len(e.row.tokens) for e in experience)  # eq. 10: all tokens, masked ones included
        self.optimizer.zero_grad()
        for indices, batch in self._batches(experience, cancel):
            together = [experience[i] for i in indices]
            if indices:
                loss_sum = self._loss_sum(batch, together, start.of(indices), total / len(experience), bonus, sums)
            else:  # nothing to add, but the other ranks wait for this one in every layer
                loss_sum = 0.0 * self.policy(batch)[0].sum()
            finite = bool(loss_sum.isfinite())
            (infinite_anywhere,) = self.ranks.any(not finite)
            if infinite_anywhere:
                ids = tuple(sorted(e.sample_id for e in together))
                self.policy.free_gathered()
                return next(filter(None, self.ranks.gather(_infinite(loss_sum, ids))))
            (loss_sum / total).backward()  # type: ignore[no-untyped-call]
        norm = gradient_norm(self._named.values(), self.spec.optim.grad_clip)
        if not np.isfinite(norm):
            return Skipped(f"the gradient's norm is {norm}", tuple(e.sample_id for e in experience))
        return norm

    def _loss_sum(
        self,
        batch: Batch,
        experience: Sequence[Experience],
        start: UpdateStart,
        mean_length: float,
        bonus: float,
        sums: UpdateSums,
    ) -> Tensor:
        """Return the objective's token sum over one micro-batch (`microbatch_loss`), and add its numbers to `sums`."""
        scored = self.policy(batch)
        loss = microbatch_loss(
            self.spec.objective, batch, experience, start, scored, mean_length=mean_length, bonus=bonus
        )
        sums.add(batch, loss, scored[0].detach(), self.version)
        sums.observe_tokens(loss, experience)
        return loss.loss_sum

    def _batches(self, experience: Sequence[Experience], cancel: CancelToken) -> Iterator[tuple[list[int], Batch]]:
        """Yield this rank's micro-batches and the indices of their samples. Every rank yields the same number; one
        without samples has no indices and a batch that counts for nothing."""
        rows = [e.row for e in experience]
        optim, device = self.spec.optim, self.policy.device
        plan = share_of_microbatches(
            list(map(len, rows)),
            optim.microbatch_tokens * self.ranks.sequence,
            optim.layout,
            shares=self.ranks.data,
            index=self.ranks.data_index,
        )
        for indices in plan:
            (cancelled,) = self.ranks.any(cancel.cancelled)
            if cancelled:
                raise Cancelled
            yield indices, collate([rows[i] for i in indices] or [PLACEHOLDER], self.spec.pad_id, device, optim.layout)

    def publish(self) -> Weights:
        """Return the present weights by the plain model's parameter names; LoRA adapters are merged. Of a sharded model
        every rank calls this and iterates over them, because they are gathered one by one. With `copy_published` they
        are a copy, which only the first rank has."""
        weights = PlainWeights(self.model)
        if self.spec.copy_published:
            return Weights(self.version, CopiedWeights(weights, keep=not self.ranks.rank))
        return Weights(self.version, weights)

    def save(self, folder: Path, *, background: bool = False) -> Future[None]:
        """Write weights and moments into a folder; in the background, from a copy of now."""
        if self._files is None:
            write = learner_files.writer(self.model, self.optimizer, self.entropy_coefficient, copy=background)
        else:
            state = (self.model, self.optimizer, self._files, self.entropy_coefficient)
            write = learner_files.sharded_writer(*state, copy=background)
        if background:
            return self._threads.submit(write, folder)
        done: Future[None] = Future()
        try:
            write(folder)
        except Exception as error:  # raised by the future, as in the background
            done.set_exception(error)
        else:
            done.set_result(None)
        return done

    def load(self, folder: Path) -> None:
        """Load the moments that `save` wrote, and the coefficient of the entropy bonus; the weights are loaded with the
        model."""
        learner_files.load_moments(self.optimizer, folder)
        if self.entropy_coefficient is not None:
            self.entropy_coefficient = learner_files.load_coefficient(folder)

    def export(self, folder: Path) -> None:
        """Write a transformers folder; LoRA adapters are merged into the weights."""
        if self._files is None:
            save_merged(self.model, folder)
            return
        tensors = whole(learner_files.saved_tensors(self.model).items())
        if self.ranks.rank:
            deque(tensors, maxlen=0)  # gather with the first rank, which writes
        else:
            export_streamed(tensors, self.model, folder)

    def close(self) -> None:
        """Wait for what is being written, and release the threads."""
        self._threads.shutdown()


def one_device_learner(
    model: PreTrainedModel, spec: LearnerSpec, *, version: int = 0, skipped_in_row: int = 0
) -> PolicyLearner:
    """Return a learner that trains a model on its device, in this process alone."""
    return PolicyLearner(make_policy(model, spec), spec, version=version, skipped_in_row=skipped_in_row)


def make_policy(model: PreTrainedModel, spec: LearnerSpec) -> Policy:
    """Return the module that a learner of `spec` trains, on one device."""
    if spec.cpu_kernels:
        use_onednn(model)
    if spec.optim.recompute:
        recompute_activations(model)
    autocast = spec.optim.autocast == "bfloat16"
    return Policy(
        model,
        spec.temperature,
        autocast=autocast,
        cpu_kernels=spec.cpu_kernels,
        entropy_gradient=spec.objective.entropy.kind == "bonus",
    )


def _use_device(device: torch.device) -> None:
    """Make a GPU the current one of this thread: a new thread has GPU 0, which may be another rank's."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _infinite(loss_sum: Tensor, ids: tuple[int, ...]) -> Skipped | None:
    return None if loss_sum.isfinite() else Skipped(f"the loss is {loss_sum.item()}", ids)
