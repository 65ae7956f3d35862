"""Demonstrations of a task as batches for supervised training.

Shapes: B samples, T tokens of a sample.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ulorl.data.task_definition import TaskDefinition, calling, checked_text, task_fault
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.warmup.warm_up_config import WarmUpConfig
from ulorl.warmup.word_tokenizer import EOS

PROMPT_END = "\n"  # of the prompts of all tasks
CHUNK = 512  # demonstrations that are sorted by length together, so that batches contain little padding
CHECKED = 100  # demonstrations that are checked before the training
IGNORED = -100  # label of a token that is not trained on

Example = tuple[Tensor, Tensor]  # tokens and labels, [T] each


def check_demonstrations(
    task: TaskDefinition, tokenizer: PreTrainedTokenizerBase, config: WarmUpConfig, rng: random.Random
) -> None:
    """Check that demonstrations consist of the task's words, that its checker accepts them, and that some are not too
    long. Raises UserError with the first that is wrong, and when a method of the task fails."""
    too_long = 0
    for problem in task.training_problems(CHECKED, rng, **config.settings):
        output = _demonstration(task, problem, rng)
        text = problem + PROMPT_END + output
        if tokenizer.unk_token_id in tokenizer(text)["input_ids"]:
            raise _refusal(f"{text!r} has words that the task does not list")
        with calling(task, "check"):
            right: object = task.check(problem, output)
        if not isinstance(right, bool):
            raise task_fault(task, "check", f"returned {right!r:.100}")
        if not right:
            raise _refusal(f"its checker refuses its own demonstration {output!r} for {problem!r}")
        too_long += _example(problem, output, tokenizer, config) is None
    if too_long == CHECKED:
        raise _refusal("all demonstrations are too long; raise longest_output and context")


def training_batches(
    task: TaskDefinition, tokenizer: PreTrainedTokenizerBase, config: WarmUpConfig, rng: random.Random
) -> Iterator[Example]:
    """Yield tokens and labels, [B, T] each, without end. They are padded on the right; only outputs are trained on."""
    while True:
        examples = [
            _example(problem, _demonstration(task, problem, rng), tokenizer, config)
            for problem in task.training_problems(CHUNK, rng, **config.settings)
        ]
        cut: list[list[Example]] = [[]]
        for example in sorted((e for e in examples if e is not None), key=lambda e: len(e[0])):
            if cut[-1] and (len(cut[-1]) + 1) * len(example[0]) > config.batch_tokens:
                cut.append([])
            cut[-1].append(example)
        rng.shuffle(cut)
        for batch in filter(None, cut):
            tokens, labels = ([example[part] for example in batch] for part in (0, 1))
            yield pad_sequence(tokens, True, tokenizer.pad_token_id), pad_sequence(labels, True, IGNORED)


def _demonstration(task: TaskDefinition, problem: str, rng: random.Random) -> str:
    with calling(task, "demonstrate"):
        return checked_text(task, "demonstrate", task.demonstrate(problem, rng))


def _example(
    problem: str, output_text: str, tokenizer: PreTrainedTokenizerBase, config: WarmUpConfig
) -> Example | None:
    """Tokens and labels of a demonstration; None when it is too long."""
    prompt, output = tokenizer([problem + PROMPT_END, output_text + EOS])["input_ids"]
    if len(output) > config.longest_output or len(prompt) + len(output) > config.context:
        return None
    return torch.tensor(prompt + output), torch.tensor([IGNORED] * len(prompt) + output)


def _refusal(why: str) -> UserError:
    return UserError(f"the task's demonstrations: {why}", code=ErrorCode.DATA_GENERATOR, key="TASK")
