"""The configuration of `ulorl data clean`: sources, steps with their thresholds, and models."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ulorl.config.client_config import ClientConfig
from ulorl.config.fields import Finding, Natural, Positive, RefusedKeys, Share, StrictConfig


class SourceConfig(StrictConfig):
    """One source: where it is, and which fields hold what. Fields that are not named are found by their usual names."""

    path: str = Field(
        default="",
        description="a file, a glob pattern, or the name of a hub dataset; empty: the name of this table",
    )
    kind: Literal["auto", "files", "hub"] = Field(
        default="auto",
        description="auto: files if the path names some, else the hub if it looks like the name of a dataset",
    )
    subset: str = Field(default="", description="hub: the configuration of the dataset")
    split: str = Field(default="train", description="hub: the split of the dataset")
    question: str = Field(default="", description="the field that holds the question; dots lead into nested records")
    answer: str = Field(default="", description="the field that holds the reference answer")
    choices: str = Field(
        default="",
        description="the field that holds the options of multiple choice; empty: choices, options, or A, B, ...",
    )
    first_choice: Literal[0, 1] = Field(
        default=0, description="the number of the first option, where the reference is the number of an option"
    )
    id: str = Field(default="", description="the field that holds the id of a record; empty: its place is its id")
    answer_after: str = Field(
        default="", description="the reference is the text after the last occurrence of this mark, for example ####"
    )
    keep: tuple[str, ...] = Field(
        default=(), strict=False, description="further fields to keep, as JSON in the field meta"
    )


class StepConfig(StrictConfig):
    """A step that can be switched off."""

    enabled: bool = Field(default=True, description="false switches the step off")


class TrueFalseConfig(StepConfig):
    """The step that rewrites or deletes true-or-false questions."""

    plain: Literal["drop", "yes_no"] = Field(
        default="drop",
        description="questions that no model rewrites: drop deletes them; yes_no asks for Yes or No, which a guess "
        "answers correctly half the time",
    )


class ShortAnswersConfig(StepConfig):
    """The step that deletes problems whose reference is long."""

    max_chars: Positive = Field(
        default=64, description="the longest reference that is kept, without spaces and sizing commands"
    )
    matrices: Literal["drop", "keep"] = Field(
        default="drop", description="what happens to references that are matrices or tables"
    )


class LengthsConfig(StepConfig):
    """The step that deletes very short and very long questions."""

    min_chars: Positive = Field(
        default=5, description="the shortest question that is kept, without spaces and punctuation"
    )
    max_chars: Positive = Field(default=4000, description="the longest question that is kept")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_chars > self.max_chars:
            raise RefusedKeys(Finding("min_chars", f"{self.min_chars} is more than max_chars={self.max_chars}"))
        return self


class LanguageConfig(StepConfig):
    """The step that deletes questions in other languages."""

    allowed: tuple[str, ...] = Field(
        default=("en", "zh"), strict=False, description="the ISO 639-1 codes of the languages that are kept"
    )
    min_words: Positive = Field(
        default=8,
        description="how many words of prose a question in Latin script needs for its language to be recognised; "
        "shorter ones are kept",
    )
    confidence: Share = Field(
        default=0.95, description="a question is deleted only if its language is recognised with this confidence"
    )


class DuplicatesConfig(StepConfig):
    """The step that deletes near-duplicates."""

    similarity: Share = Field(
        default=0.8,
        description="two questions with at least this Jaccard similarity of their runs of words are near-duplicates",
    )
    run: Positive = Field(default=3, description="how many words (Chinese: characters) a run has")
    permutations: int = Field(default=128, ge=16, description="how many permutations MinHash takes, 16 at least")
    seed: int = Field(default=1, ge=0, lt=2**32, description="the seed of MinHash")


class ContaminationConfig(StepConfig):
    """The step that deletes problems of evaluation sets."""

    against: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="the evaluation sets, named as the sources to clean; empty: the step is switched off",
    )
    run: Positive = Field(
        default=13, description="how many words in a row a question shares with a problem of an evaluation set"
    )
    run_han: Positive = Field(default=20, description="how many characters in a row, for Chinese questions")
    share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="the share of the shorter question that such runs must cover; 0: a single run is enough",
    )
    short: Natural = Field(
        default=20,
        description="evaluation problems with fewer words than this are also found in other wordings; 0: none",
    )
    similarity: Share = Field(
        default=0.6,
        description="the Jaccard similarity at which two short questions with the same numbers are the same problem; "
        "with rare numbers less is enough, in another order more is needed",
    )
    common: Positive = Field(
        default=10, description="a run that occurs in more questions than this is a phrase, and does not count"
    )


class ConvertConfig(StrictConfig):
    """The step that lets a model rewrite what rules cannot."""

    model: str = Field(
        default="", description="a name of [models]; empty: problems that rules cannot rewrite are deleted"
    )


class WrongReferencesConfig(StrictConfig):
    """The step that deletes problems whose reference is wrong according to models."""

    models: tuple[str, ...] = Field(
        default=(), strict=False, description="names of [models]; empty: the step is switched off"
    )
    samples: Positive = Field(default=4, description="how many answers each model gives")
    agreement: Annotated[float, Field(gt=0.5, le=1)] = Field(
        default=0.75,
        description="a reference is wrong if this share of all answers agree with each other and not with it",
    )


class TooEasyConfig(StrictConfig):
    """The step that deletes problems that the starting model always solves."""

    model: str = Field(
        default="",
        description="a name of [models]: the model that training starts from; empty: the step is switched off",
    )
    samples: Positive = Field(
        default=8, description="a problem is deleted if so many answers are all right (the paper takes 8)"
    )


class CleaningConfig(StrictConfig):
    """The pipeline of section 3.4, in the order of its steps."""

    sources: dict[str, SourceConfig] = Field(
        default_factory=dict,
        description="sources by name: the name of a file without its extension, or any name together with a path",
    )
    models: dict[str, ClientConfig] = Field(
        default_factory=dict, description="models by name, for the steps that take one"
    )
    unreadable: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="unreadable records: refuse stops and lists them; drop deletes them and gives the reason",
    )
    examples: Natural = Field(default=3, description="how many records the report shows for each reason")
    normalise: StepConfig = StepConfig()
    answers: StepConfig = StepConfig()
    subquestions: StepConfig = StepConfig()
    multiple_choice: StepConfig = StepConfig()
    true_false: TrueFalseConfig = TrueFalseConfig()
    proof: StepConfig = StepConfig()
    convert: ConvertConfig = ConvertConfig()
    short_answers: ShortAnswersConfig = ShortAnswersConfig()
    lengths: LengthsConfig = LengthsConfig()
    language: LanguageConfig = LanguageConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    contamination: ContaminationConfig = ContaminationConfig()
    wrong_references: WrongReferencesConfig = WrongReferencesConfig()
    too_easy: TooEasyConfig = TooEasyConfig()

    @model_validator(mode="after")
    def _models_known(self) -> Self:
        asked = {"convert.model": self.convert.model, "too_easy.model": self.too_easy.model}
        asked |= {f"wrong_references.models.{i}": name for i, name in enumerate(self.wrong_references.models)}
        there = ", ".join(self.models) or "none"
        found = [
            Finding(key, f"there is no [models.{name}]; the models are: {there}")
            for key, name in asked.items()
            if name and name not in self.models
        ]
        if found:
            raise RefusedKeys(*found)
        return self
