"""What `ulorl data clean` can be told: sources, steps with their thresholds, models. No torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ulorl.config.client_config import ClientConfig
from ulorl.config.fields import Natural, Positive, Share, StrictConfig


class SourceSettings(StrictConfig):
    """One source: where it is, and which fields hold what. Empty field names are found by their usual names."""

    path: str = Field(
        default="", description="a file or a glob pattern, or a hub dataset's name; else the table's name"
    )
    kind: Literal["auto", "files", "hub"] = Field(
        default="auto", description="auto: files if there are any by this name, else the hub if it looks like one's"
    )
    subset: str = Field(default="", description="hub: which configuration of the dataset")
    split: str = Field(default="train", description="hub: which split")
    question: str = Field(default="", description="the field that holds the question; dots lead into nested records")
    answer: str = Field(default="", description="the field that holds the reference")
    choices: str = Field(
        default="",
        description="the field that holds the options of multiple choice; else choices, options, or A, B, ...",
    )
    first_choice: Literal[0, 1] = Field(
        default=0, description="the number of the first option, where the reference is an option's number"
    )
    id: str = Field(default="", description="the field that names a record; without one, its place does")
    answer_after: str = Field(default="", description="the reference is what follows the last of these, e.g. ####")
    keep: tuple[str, ...] = Field(
        default=(), strict=False, description="further fields to carry along, as JSON in meta"
    )


class Switch(StrictConfig):
    """A step that can be left out."""

    enabled: bool = Field(default=True, description="false leaves the step out")


class TrueFalse(Switch):
    plain: Literal["drop", "yes_no"] = Field(
        default="drop",
        description="what no model turns: drop, or ask for Yes or No, which a guess answers right half the time",
    )


class ShortAnswers(Switch):
    max_chars: Positive = Field(
        default=64, description="of a reference without spaces and sizing commands; longer ones are deleted"
    )
    matrices: Literal["drop", "keep"] = Field(default="drop", description="references that are matrices or tables")


class Lengths(Switch):
    min_chars: Positive = Field(default=5, description="of a question, spaces and signs not counted")
    max_chars: Positive = Field(default=4000, description="of a question")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"lengths.min_chars={self.min_chars} is more than lengths.max_chars={self.max_chars}")
        return self


class Language(Switch):
    allowed: tuple[str, ...] = Field(default=("en", "zh"), strict=False, description="ISO 639-1 codes")
    min_words: Positive = Field(
        default=8, description="of prose that a Latin-script language is told from, else it passes"
    )
    confidence: Share = Field(default=0.95, description="with which another language is told, else the question passes")


class Duplicates(Switch):
    similarity: Share = Field(
        default=0.8,
        description="Jaccard, of a question's runs of words: from this on two questions are near-duplicates",
    )
    run: Positive = Field(default=3, description="words of a run (Chinese: characters)")
    permutations: Positive = Field(default=128, description="of MinHash")
    seed: Natural = Field(default=1, description="of MinHash")


class Contamination(Switch):
    against: tuple[str, ...] = Field(
        default=(), strict=False, description="evaluation sets: sources like those to clean; none switches the step off"
    )
    run: Positive = Field(default=13, description="words in a row that a question shares with an evaluation problem")
    run_han: Positive = Field(default=20, description="characters in a row, for Chinese questions")
    share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="of the shorter of the two that such runs must cover; 0: any one run is enough",
    )
    short: Natural = Field(
        default=20, description="evaluation problems of fewer words are also looked for in other words; 0: none"
    )
    similarity: Share = Field(
        default=0.6,
        description="Jaccard of two short questions with the same numbers; less is enough if these are rare, more is "
        "needed if they come in another order",
    )
    common: Positive = Field(
        default=10,
        description="a run that stands in more questions than this is a phrase, not a copy, and does not count",
    )


class Convert(StrictConfig):
    model: str = Field(default="", description="of [models]: rewrites what rules cannot; none: those are deleted")


class WrongReferences(StrictConfig):
    models: tuple[str, ...] = Field(default=(), strict=False, description="of [models]; none switches the step off")
    samples: Positive = Field(default=4, description="answers of each model")
    agreement: Annotated[float, Field(gt=0.5, le=1)] = Field(
        default=0.75,
        description="share of all answers that must be the same, and not the reference, for it to be wrong",
    )


class TooEasy(StrictConfig):
    model: str = Field(default="", description="of [models], the one training starts from; none switches the step off")
    samples: Positive = Field(default=8, description="a problem of which all these are right is deleted (paper: 8)")


class Clean(StrictConfig):
    """The pipeline of section 3.4, in the order of its steps."""

    sources: dict[str, SourceSettings] = Field(
        default_factory=dict, description="by name: a file's name without its ending, or any with a path"
    )
    models: dict[str, ClientConfig] = Field(default_factory=dict, description="by name, for the steps that take one")
    unreadable: Literal["refuse", "drop"] = Field(
        default="refuse", description="records that cannot be read: stop and name them, or drop them with the reason"
    )
    examples: Natural = Field(default=3, description="records shown in the report for each reason")
    normalise: Switch = Switch()
    answers: Switch = Switch()
    subquestions: Switch = Switch()
    multiple_choice: Switch = Switch()
    true_false: TrueFalse = TrueFalse()
    proof: Switch = Switch()
    convert: Convert = Convert()
    short_answers: ShortAnswers = ShortAnswers()
    lengths: Lengths = Lengths()
    language: Language = Language()
    duplicates: Duplicates = Duplicates()
    contamination: Contamination = Contamination()
    wrong_references: WrongReferences = WrongReferences()
    too_easy: TooEasy = TooEasy()

    @model_validator(mode="after")
    def _models_known(self) -> Self:
        asked = {"convert.model": self.convert.model, "too_easy.model": self.too_easy.model}
        asked |= {f"wrong_references.models.{i}": name for i, name in enumerate(self.wrong_references.models)}
        lines = [
            f"{key}={name}: there is no [models.{name}]; those there are: {', '.join(self.models) or 'none'}"
            for key, name in asked.items()
            if name and name not in self.models
        ]
        if lines:
            raise ValueError("\n".join(lines))
        return self
