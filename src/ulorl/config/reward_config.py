"""[reward]: where an answer is looked for, and how it is judged."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import ConfigDict, Field, JsonValue, model_validator

from ulorl.config.client_config import EndpointClientConfig, EngineClientConfig
from ulorl.config.fields import MAY_CHANGE, Finding, Natural, Positive, RefusedKeys, StrictConfig
from ulorl.config.unions import ByKind


class BaseVerifierConfig(StrictConfig):
    """The keys of every generative verifier, besides those of its client."""

    temperature: float = Field(
        default=0.0, ge=0, description="the sampling temperature of the first verdict on an answer; 0 is greedy"
    )
    retry_temperature: float = Field(
        default=0.6, gt=0, description="the temperature of the retries (reward.retries) after an unreadable verdict"
    )
    max_tokens: Positive = Field(default=2048, description="the longest output, its reasoning included")
    prompt: str = Field(
        default="",
        description="a text file with {question}, {reference} and {answer}; judge or short, which are shipped; or the "
        "folder of a trained verifier. Empty: the prompt in the model folder (ulorl verifier train writes one), else "
        "judge",
    )
    question_chars: Natural = Field(
        default=0,
        description="with reward.verifier.prompt: of a longer question only its last characters are shown; 0: all",
    )
    rules_first: bool = Field(
        default=False, description="what the rules accept is right; the model judges only the other answers"
    )
    rules_refuse: bool = Field(
        default=False, description="plain numbers in like units that differ are wrong; the model does not judge them"
    )
    max_answer_chars: Positive = Field(
        default=500,
        description="an answer that is longer, and more than twice as long as the reference, is wrong; the model does "
        "not judge it",
    )
    cache: str = Field(
        default="",
        description="a file of verdicts that several runs can share; empty: verifier.sqlite in run.dir",
        json_schema_extra=MAY_CHANGE,
    )


class EndpointVerifierConfig(BaseVerifierConfig, EndpointClientConfig):
    """A verifier behind an OpenAI-compatible server."""

    timeout: float = Field(
        default=120, gt=0, description="seconds that a request may take", json_schema_extra=MAY_CHANGE
    )
    retries: Natural = Field(
        default=8,
        description="retries of a request, with back-off, after a time-out or the status 408, 409, 429 or 5xx: the "
        "server may be away for 40 s",
        json_schema_extra=MAY_CHANGE,
    )


class EngineVerifierConfig(BaseVerifierConfig, EngineClientConfig):
    """A verifier that our own rollout engine decodes in this process."""


VerifierConfig: TypeAlias = Annotated[
    EndpointVerifierConfig | EngineVerifierConfig,
    ByKind("endpoint: an OpenAI-compatible server; engine: our own rollout engine in this process"),
]

Place = Literal["boxed", "tags", "phrase", "expression", "last_number", "quantity", "line", "math_verify"]


class AnswerConfig(StrictConfig):
    """[reward.answer]: where in an output its answer is looked for (answers/extraction.py)."""

    find: tuple[Place, ...] = Field(
        default=(),
        strict=False,
        description="the places, in the order in which they are searched: boxed, tags, phrase, expression, "
        "last_number, quantity, line, math_verify (math-verify's search; reward.kind=math only); empty: those that fit "
        "reward.kind (docs/rewards.md)",
    )
    tag: str = Field(
        default="answer", pattern=r"^\w[\w-]*$", description="the name of the answer tags, as in <answer>7</answer>"
    )
    thinking: Literal["auto", "required", "off"] = Field(
        default="auto",
        description="auto: after a closing think tag only the text behind the last one counts; required: an output "
        "without the tag has no answer; off: the whole output counts",
    )
    think_tag: str = Field(default="think", pattern=r"^\w[\w-]*$", description="the name of that tag, as in </think>")


class BaseRewardConfig(StrictConfig):
    """The keys of every reward: what happens when it fails."""

    timeout: float = Field(
        default=120,
        gt=0,
        description="seconds (wall clock) that the judging of one answer may take before it is retried",
        json_schema_extra=MAY_CHANGE,
    )
    retries: Natural = Field(
        default=2,
        description="retries after a failure or a time-out; after them the sample is unscored, and its group is not "
        "trained",
        json_schema_extra=MAY_CHANGE,
    )
    max_unscored: Positive = Field(
        default=16, description="the run stops after so many unscored samples in a row", json_schema_extra=MAY_CHANGE
    )


class SandboxedRewardConfig(BaseRewardConfig):
    """The keys of rewards that judge in processes of their own."""

    workers: Positive = Field(
        default=1,
        description="processes that judge at once, while other samples are decoded; each starts when all others are "
        "busy and has its own memory",
        json_schema_extra=MAY_CHANGE,
    )


class AnswerRewardConfig(BaseRewardConfig):
    """The keys of every reward that looks for an answer in the output."""

    kind: str
    answer: AnswerConfig = AnswerConfig()

    @model_validator(mode="after")
    def _searched_by_math_verify(self) -> Self:
        if self.kind != "math" and "math_verify" in self.answer.find:
            raise RefusedKeys(
                Finding(
                    "answer.find", f"math_verify goes with kind=math only, found kind={self.kind}; choose another place"
                )
            )
        return self


class MathRewardConfig(AnswerRewardConfig, SandboxedRewardConfig):
    """math-verify compares the answer with the reference."""

    kind: Literal["math"] = "math"


class NumericRewardConfig(AnswerRewardConfig, SandboxedRewardConfig):
    """Numbers with units are compared within a tolerance."""

    kind: Literal["numeric"] = "numeric"
    tolerance: float = Field(
        default=0, ge=0, lt=1, description="the largest difference, relative to the reference: 0.01 is 1%"
    )
    absolute_tolerance: float = Field(default=0, ge=0, description="the largest difference in the reference's unit")
    units: Literal["lenient", "strict"] = Field(
        default="lenient",
        description="lenient: a unit that only one side names is not compared; strict: the answer must name the unit "
        "of the reference",
    )


class ExactRewardConfig(AnswerRewardConfig):
    """The answer must be the same text as the reference."""

    kind: Literal["exact"] = "exact"


class ChoiceRewardConfig(AnswerRewardConfig):
    """The answer must be the right option of a multiple-choice question."""

    kind: Literal["choice"] = "choice"


class ReasoningGymRewardConfig(AnswerRewardConfig, SandboxedRewardConfig):
    """The scorer of the reasoning-gym task judges the answer."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"


class CountdownRewardConfig(BaseRewardConfig):
    """The last line of the output must be a right chain of the chain countdown."""

    kind: Literal["countdown"] = "countdown"


class TaskRewardConfig(BaseRewardConfig):
    """The checker of the task that `data.task` names judges the whole output."""

    kind: Literal["task"] = "task"


class FunctionRewardConfig(SandboxedRewardConfig):
    """A Python function of yours judges the whole output."""

    kind: Literal["function"] = "function"
    function: str = Field(min_length=1, description="module:name of a function f(problem, text) that returns 0 or 1")
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict, description="keyword arguments that the function is called with as well"
    )


class GenerativeRewardConfig(AnswerRewardConfig):
    """A generative verifier judges the answer (section 3.3)."""

    kind: Literal["generative"] = "generative"
    verifier: VerifierConfig = Field(default_factory=dict, validate_default=True)


RewardConfig: TypeAlias = Annotated[
    MathRewardConfig
    | NumericRewardConfig
    | ExactRewardConfig
    | ChoiceRewardConfig
    | ReasoningGymRewardConfig
    | CountdownRewardConfig
    | TaskRewardConfig
    | FunctionRewardConfig
    | GenerativeRewardConfig,
    ByKind(
        "math: math-verify; numeric: numbers with units; exact: the same text; choice: multiple choice; "
        "reasoning_gym, countdown and task: the scorer of these tasks; function: your own; generative: the model of "
        "reward.verifier (section 3.3 of the paper)"
    ),
]


class RewardRecipe(StrictConfig):
    """The section [reward] of a recipe. The other sections are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)
    reward: RewardConfig = MathRewardConfig()
