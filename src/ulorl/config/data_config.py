"""[data]: where the problems come from, and how they become prompts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from ulorl.config.fields import Finding, Natural, Positive, RefusedKeys, StrictConfig
from ulorl.config.unions import ByKind
from ulorl.error_codes import ErrorCode


class BaseDataConfig(StrictConfig):
    """The keys of every source: prompts, and what happens to unusable problems."""

    bad: Literal["refuse", "skip"] = Field(
        default="refuse", description="bad records and prompts that are too long stop the run, or are skipped"
    )
    template: str = Field(default="{question}", description="the user message; {question} is replaced by the problem")
    system: str = Field(default="", description="the system message, if the chat template has one; empty: none")
    chat: Literal["auto", "off"] = Field(
        default="auto", description="auto: apply the chat template of the tokenizer, if it has one"
    )
    max_prompt_tokens: Positive = Field(default=2048, description="a problem with a longer prompt is bad")

    @model_validator(mode="after")
    def _template_holds_the_question(self) -> Self:
        if "{question}" not in self.template:
            raise RefusedKeys(Finding("template", "must contain {question}", ErrorCode.CONFIG_BAD_VALUE))
        return self


class RecordsDataConfig(BaseDataConfig):
    """The keys of sources that consist of records: which fields hold what."""

    question: str = Field(default="problem", description="the field that holds the question")
    answer: str = Field(default="answer", description="the field that holds the reference answer")
    answer_after: str = Field(
        default="", description="the reference is the text after the last occurrence of this mark, for example ####"
    )
    keep: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="further fields that a reward finds in problem.meta: your own, or options for reward.kind=choice",
    )
    size: Natural = Field(default=0, description="how many problems to take; 0: all")


class FilesDataConfig(RecordsDataConfig):
    """JSONL, JSON, CSV or Parquet files."""

    kind: Literal["files"] = "files"
    path: str = Field(min_length=1, description="a file, or a glob pattern")


class HubDataConfig(RecordsDataConfig):
    """A dataset of the hub."""

    kind: Literal["hub"] = "hub"
    path: str = Field(min_length=1, description="the name of the dataset")
    split: str = Field(default="train", description="the split of the dataset")
    subset: str = Field(default="", description="the configuration of the dataset; empty: the default one")
    revision: str = Field(default="", description="the commit, tag or branch of the dataset; empty: the newest one")


class GeneratorDataConfig(BaseDataConfig):
    """The keys of problem generators."""

    settings: dict[str, Any] = Field(
        default_factory=dict, description="the generator's settings by name; {} drops those of earlier recipes"
    )
    size: Positive = Field(description="how many problems to generate")
    seed: int = Field(default=0, description="the seed of the generator")


class ReasoningGymDataConfig(GeneratorDataConfig):
    """Problems of a task of reasoning-gym."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    task: str = Field(min_length=1, description="the name of the task")


class CountdownDataConfig(GeneratorDataConfig):
    """Problems of the chain countdown, the task of the tiny reasoner ulorl:tiny."""

    kind: Literal["countdown"] = "countdown"


class TaskDataConfig(GeneratorDataConfig):
    """Problems of a task of the package or of yours (docs/own_task.md)."""

    kind: Literal["task"] = "task"
    template: str = Field(default="{question}\n", description="the user message; {question} is replaced by the problem")
    task: str = Field(
        min_length=1,
        description="countdown, sorting or maze; of yours: module:Class, or a Python file (docs/own_task.md)",
    )


DataConfig: TypeAlias = Annotated[
    FilesDataConfig | HubDataConfig | ReasoningGymDataConfig | CountdownDataConfig | TaskDataConfig,
    ByKind("JSONL, JSON, CSV or Parquet files; a dataset of the hub; or problems that a generator makes"),
]
