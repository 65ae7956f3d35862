"""[data]: where the problems come from and how they become prompts."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ulorl.config.fields import Natural, Positive, StrictConfig


class DataConfig(StrictConfig):
    kind: Literal["files", "hub", "reasoning_gym", "countdown"] = Field(
        default="files", description="JSONL or Parquet files; a hub dataset; or problems made by a generator"
    )
    path: str = Field(default="", description="files: a file, or a glob pattern; hub: the dataset's name")
    split: str = Field(default="train", description="hub: which split")
    subset: str = Field(default="", description="hub: which configuration of the dataset")
    question: str = Field(default="problem", description="the field that holds the question")
    answer: str = Field(default="answer", description="the field that holds the reference answer")
    answer_after: str = Field(default="", description="the reference is what follows the last of these, e.g. ####")
    bad: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="files and hub: what to do about bad records, prompts that are too long among them",
    )
    keep: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="further fields that a reward finds in problem.meta: yours, or options, for reward.kind=choice",
    )
    task: str = Field(default="", description="reasoning_gym: the task's name")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="generators: their settings by name; {} drops a recipe's"
    )
    size: Natural = Field(default=0, description="problems to take or make; 0: all there are (files and hub only)")
    seed: int = Field(default=0, description="of generators")
    template: str = Field(default="{question}", description="the user's message; {question} is the problem")
    system: str = Field(default="", description="a system message, where the chat template takes one")
    chat: Literal["auto", "off"] = Field(default="auto", description="auto: apply the tokenizer's chat template")
    max_prompt_tokens: Positive = Field(default=2048, description="a problem with a longer prompt is bad")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind in ("files", "hub") and not self.path:
            raise ValueError(f"data.path is missing: data.kind={self.kind} needs one")
        if self.kind == "reasoning_gym" and not self.task:
            raise ValueError("data.task is missing: data.kind=reasoning_gym needs the name of a task")
        if self.kind in ("reasoning_gym", "countdown") and not self.size:
            raise ValueError(f"data.size is missing: data.kind={self.kind} needs the number of problems to make")
        if "{question}" not in self.template:
            raise ValueError("data.template must contain {question}")
        return self
