"""TRL's SFTTrainer for verdicts, with the head on trained tokens only, a time limit, and copies of the model on the
way.

Shapes: B pairs of a batch, T tokens of a pair, N trained tokens of a batch, H hidden.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from ulorl.common.progress import ProgressBars
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.logprobs import token_logprobs
from ulorl.models.head import head_of, hidden_states
from ulorl.verifier.verifier_card import TrainingProgress
from ulorl.verifier.verifier_config import VerifierTrainingConfig

LINES = 20  # of progress that are printed where there is no terminal for a bar
_HALF = math.log(0.5)


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Sequence[list[int]],
    labels: Sequence[list[int]],
    settings: VerifierTrainingConfig,
    save: Callable[[TrainingProgress], None],
) -> tuple[TrainingProgress, bool]:
    """Train on examples of equal importance. Returns what was done, and whether it was interrupted.

    labels: -100 for tokens that are not trained on. save: is called on the way, at the end and when interrupted.
    Raises UserError when the loss is not finite; the copy that was saved last stays.
    """
    monitor = _Monitor(settings, save)
    data = Dataset.from_dict({"input_ids": input_ids, "labels": labels})
    interrupted = False
    with TemporaryDirectory() as unused, monitor.bars:  # nothing is written there: `save` writes whole models
        trainer = _Trainer(
            monitor,
            model=model,
            args=_arguments(settings, unused),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[monitor],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        except KeyboardInterrupt:
            interrupted = True
        save(monitor.progress)
    return monitor.progress, interrupted


def _arguments(settings: VerifierTrainingConfig, folder: str) -> SFTConfig:
    with warnings.catch_warnings():  # transformers renamed TRL's gradient_checkpointing
        warnings.simplefilter("ignore", FutureWarning)
        return _config(settings, folder)


def _config(settings: VerifierTrainingConfig, folder: str) -> SFTConfig:
    return SFTConfig(
        output_dir=folder,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch,
        train_sampling_strategy="group_by_length",  # little padding
        learning_rate=settings.lr,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=False,  # `compute_loss` does it: accelerate wraps `forward` only
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        max_length=None,
        seed=settings.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


class _Monitor(TrainerCallback):  # type: ignore[misc]
    """Counts and shows the progress, saves copies, and ends the training in time."""

    def __init__(self, settings: VerifierTrainingConfig, save: Callable[[TrainingProgress], None]) -> None:
        self._settings, self._save = settings, save
        self.bf16 = settings.bf16
        self._console = Console(stderr=True)
        self.bars = ProgressBars(self._console)
        self._bar = self.bars.add("verifier")
        self.progress = TrainingProgress()
        self._steps = 1
        self._recent: deque[tuple[float, float]] = deque(maxlen=1)  # loss and share of right verdicts, of each step
        self._started = self._saved = time.monotonic()
        self._pairs = self._tokens = 0

    def share(self, step: int) -> float:
        """Return how much of the training is done: the share of its steps or of its minutes, whichever is larger."""
        limit = self._settings.minutes
        return max(step / self._steps, (time.monotonic() - self._started) / 60 / limit if limit else 0.0)

    def rate(self, step: int) -> float:
        """Return the share of the learning rate at a step: it rises in the warm-up, then falls to 0."""
        share, warmup = self.share(step), self._settings.warmup
        rising = (step + 1) / (warmup * self._steps) if warmup else 1.0
        return min(1.0, rising, max(0.0, (1 - share) / (1 - warmup)))

    def count(self, loss: float, right: float, pairs: int, tokens: int) -> None:
        """Add the numbers of a batch: its loss, its share of right verdicts, its pairs and tokens."""
        self._recent.append((loss, right))
        self._pairs += pairs
        self._tokens += tokens

    def begin(self, steps: int) -> None:
        """Start the clocks of a training of so many steps."""
        self._steps, self._recent = steps, deque(maxlen=max(1, steps // 10))
        self._started = self._saved = time.monotonic()
        self._bar.show(total=steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        now = time.monotonic()
        minutes = (now - self._started) / 60
        loss, right = (sum(values) / len(self._recent) for values in zip(*self._recent, strict=True))
        self.progress = TrainingProgress(state.global_step, self._pairs, self._tokens, minutes, loss, right)
        status = f"loss {loss:.3f}, {right:.1%} right"
        self._bar.show(completed=state.global_step, status=status)
        every = max(1, self._steps // LINES)
        if not self.bars.shown and state.global_step % every == 0:
            rate = self._tokens / max(60 * minutes, 1e-9)
            step = f"step {state.global_step} of {self._steps}"
            self._console.print(f"{step}, {minutes:.1f} minutes, {status}, {rate:.0f} tokens a second", highlight=False)
        if self._settings.minutes and minutes >= self._settings.minutes:
            control.should_training_stop = True
        if self._settings.save_minutes and now - self._saved >= 60 * self._settings.save_minutes:
            self._save(self.progress)
            self._saved = time.monotonic()


class _Trainer(SFTTrainer):  # type: ignore[misc]
    def __init__(self, monitor: _Monitor, **arguments: Any) -> None:
        self._monitor = monitor
        super().__init__(**arguments)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:  # noqa: ARG002
        """Return the mean negative log-likelihood of the trained tokens. TRL's method applies head and softmax to every
        token where there is no Triton, which takes half of the time with a large vocabulary and two trained tokens for
        each pair."""
        model = self.accelerator.unwrap_model(model)
        mask_BT = inputs["attention_mask"]
        with torch.autocast(mask_BT.device.type, torch.bfloat16, enabled=self._monitor.bf16):
            hidden_BTH = hidden_states(model, inputs["input_ids"], mask_BT, None)
        targets_BT: Tensor = inputs["labels"][:, 1:]
        rows_N, places_N = torch.nonzero(targets_BT >= 0, as_tuple=True)
        chosen_NH = hidden_BTH[rows_N, places_N]
        logprobs_N, _entropy = token_logprobs(chosen_NH, head_of(model), targets_BT[rows_N, places_N], 1.0)
        loss = -logprobs_N.mean()
        if not torch.isfinite(loss):
            message = f"the loss is {loss.item()} after {self._monitor.progress.steps} steps; lower --lr"
            raise UserError(message, code=ErrorCode.VERIFIER_TRAINING, key="--lr")
        verdicts_B = torch.zeros(len(mask_BT)).index_add(0, rows_N.cpu(), logprobs_N.detach().float().cpu())
        right = (verdicts_B > _HALF).float().mean().item()
        self._monitor.count(loss.item(), right, len(mask_BT), int(mask_BT.sum()))
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self._monitor.begin(num_training_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self._monitor.rate)
        return self.lr_scheduler
