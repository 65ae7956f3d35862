"""[reward]: where an answer is looked for, and what judges it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ulorl.config.client_config import ClientConfig
from ulorl.config.fields import Natural, Positive, StrictConfig


class VerifierConfig(ClientConfig):
    """The model of reward.kind=generative (section 3.3)."""

    name: str = Field(
        default="", description="endpoint: the model's name there; engine: a transformers folder or hub name"
    )
    timeout: float = Field(default=120, gt=0, description="endpoint: seconds a request may take")
    retries: Natural = Field(
        default=8,
        description="endpoint: after time-outs, 408, 409, 429 and 5xx, with back-off: a server may be away for 40 s",
    )
    temperature: float = Field(default=0.0, ge=0, description="of the first verdict on a pair; 0 is greedy")
    retry_temperature: float = Field(
        default=0.6, gt=0, description="of the next ones, when the first cannot be read (reward.retries)"
    )
    max_tokens: Positive = Field(default=2048, description="of an output, its reasoning included")
    prompt: str = Field(
        default="",
        description="a text file with {question}, {reference} and {answer}; judge or short, which are shipped; or the "
        "folder of a trained verifier; empty: the model folder's own (ulorl verifier train writes one), else judge",
    )
    question_chars: Natural = Field(
        default=0, description="with reward.verifier.prompt: of longer questions only the end is shown; 0: all"
    )
    rules_first: bool = Field(default=False, description="what the rules accept is right; only the rest is asked")
    rules_refuse: bool = Field(
        default=False, description="plain numbers in like units that differ are wrong, and not asked about"
    )
    max_answer_chars: Positive = Field(
        default=500, description="a longer answer (and twice as long as the reference) is wrong, and not asked about"
    )
    cache: str = Field(
        default="", description="a file of verdicts that runs can share; empty: verifier.sqlite in run.dir"
    )


Place = Literal["boxed", "tags", "phrase", "expression", "last_number", "quantity", "line", "math_verify"]


class AnswerConfig(StrictConfig):
    """Where in an output its answer is looked for (rewards/answer.py)."""

    find: tuple[Place, ...] = Field(
        default=(),
        strict=False,
        description="places, first to last: boxed, tags, phrase, expression, last_number, quantity, line, "
        "math_verify (its own search; kind=math only); empty: those that fit reward.kind (docs/rewards.md)",
    )
    tag: str = Field(default="answer", pattern=r"^\w[\w-]*$", description="tags: their name, as in <answer>7</answer>")
    thinking: Literal["auto", "required", "off"] = Field(
        default="auto",
        description="only what follows the last closing think tag counts: where there is one; always, and an output "
        "without one has no answer; off: the whole output counts",
    )
    think_tag: str = Field(default="think", pattern=r"^\w[\w-]*$", description="the name of that tag, as in </think>")


class RewardConfig(StrictConfig):
    kind: Literal["math", "numeric", "exact", "choice", "reasoning_gym", "countdown", "function", "generative"] = Field(
        default="math",
        description="math-verify; numbers with units; the same text; multiple choice; reasoning-gym's scorer; chain "
        "countdown; your function; or the model of reward.verifier (paper: section 3.3)",
    )
    answer: AnswerConfig = AnswerConfig()
    tolerance: float = Field(default=0, ge=0, lt=1, description="numeric: relative to the reference, 0.01 is 1%")
    absolute_tolerance: float = Field(default=0, ge=0, description="numeric: in the reference's unit")
    units: Literal["lenient", "strict"] = Field(
        default="lenient",
        description="numeric: a unit that one side only names is not compared; strict: an answer must name the "
        "reference's",
    )
    function: str = Field(default="", description="module:name of f(problem, text) -> 0 or 1, for kind=function")
    timeout: float = Field(
        default=120, gt=0, description="seconds by the clock that an answer may take, before it is tried again"
    )
    retries: Natural = Field(
        default=2, description="after a failure or time-out; then the sample is unscored, and its group is not trained"
    )
    max_unscored: Positive = Field(default=16, description="unscored samples in a row, then the run stops")
    verifier: VerifierConfig = VerifierConfig()

    @model_validator(mode="after")
    def _verifier_named(self) -> Self:
        if self.kind == "generative" and not self.verifier.name:
            raise ValueError(
                "reward.verifier.name is missing, which reward.kind=generative needs: the model's name at the server "
                "reward.verifier.base_url, or with reward.verifier.kind=engine a model folder"
            )
        return self

    @model_validator(mode="after")
    def _searched_by_math_verify(self) -> Self:
        if self.kind != "math" and "math_verify" in self.answer.find:
            raise ValueError(
                f"reward.answer.find: math_verify goes with reward.kind=math only, found reward.kind={self.kind}; "
                "choose another place"
            )
        return self

    @model_validator(mode="after")
    def _function_given(self) -> Self:
        if (self.kind == "function") != bool(self.function):
            raise ValueError("reward.function=module:name goes with reward.kind=function, and only with it")
        return self

    @model_validator(mode="after")
    def _numeric_only(self) -> Self:
        if self.kind != "numeric" and (self.tolerance or self.absolute_tolerance or self.units != "lenient"):
            raise ValueError(
                "reward.tolerance, reward.absolute_tolerance and reward.units go with reward.kind=numeric only, found "
                f"reward.kind={self.kind}"
            )
        return self
