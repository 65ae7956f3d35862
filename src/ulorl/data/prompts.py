"""Turns problems into prompt tokens, through the tokenizer's chat template if it has one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, listing
from ulorl.types import Problem, Tokens


@dataclass(frozen=True)
class PromptFormat:
    """How a problem becomes text.

    template: the user's message, with `{question}` where the problem's text goes. system: a system message, which only
    chat templates take. chat: `auto` applies the tokenizer's chat template if it has one, `off` never does.
    """

    template: str = "{question}"
    system: str = ""
    chat: Literal["auto", "off"] = "auto"

    def user_message(self, problem: Problem) -> str:
        """Return the text of the user's message."""
        return self.template.replace("{question}", problem.prompt)  # not str.format: LaTeX is full of braces

    def is_chat(self, tokenizer: Any) -> bool:
        """Return whether prompts use the tokenizer's chat template. Raises UserError for an unused system message."""
        chat = self.chat == "auto" and bool(getattr(tokenizer, "chat_template", None))
        if self.system and not chat:
            why = "data.chat=off" if self.chat == "off" else "the tokenizer has no chat template"
            raise _system_error(f"data.system is given but {why}; put its text into data.template")
        return chat


@dataclass(frozen=True)
class PromptLimits:
    """The limits that a prompt must fit into.

    max_prompt_tokens: the longest prompt. context: tokens that the model can hold, prompt and output together.
    max_tokens: the output's share of the context. vocabulary: rows of the model's embedding.
    """

    max_prompt_tokens: int = sys.maxsize
    context: int = sys.maxsize
    max_tokens: int = 0
    vocabulary: int = sys.maxsize

    def problem_with(self, prompt: Tokens) -> tuple[str, ErrorCode] | None:
        """Return why a prompt cannot be used, with the error's code; None for a prompt that can."""
        n = len(prompt)
        if (largest := int(prompt.max())) >= self.vocabulary:
            return (
                f"its prompt has token id {largest}, but the model's vocab_size is {self.vocabulary}: the tokenizer in "
                "the folder is another model's",
                ErrorCode.MODEL_TOKENIZER,
            )
        if n > self.max_prompt_tokens:
            text = f"its prompt has {n} tokens, data.max_prompt_tokens={self.max_prompt_tokens}"
            return text, ErrorCode.PROMPT_UNUSABLE
        if n + self.max_tokens > self.context:
            return (
                f"its prompt of {n} tokens and an output of {self.max_tokens} do not fit the model's context of "
                f"{self.context}; lower rollout.max_tokens, or leave out long prompts with data.max_prompt_tokens and "
                "data.bad=skip",
                ErrorCode.PROMPT_UNUSABLE,
            )
        return None


def encode_prompts(
    problems: Sequence[Problem], tokenizer: Any, prompt_format: PromptFormat, limits: PromptLimits
) -> list[Tokens]:
    """Return the token ids of each problem's prompt, in the order of `problems`, each with at most one BOS.

    Raises UserError, naming the problems, when prompts are empty or exceed `limits`, or when the format does not suit
    the tokenizer.
    """
    encoded = encode_each(problems, tokenizer, prompt_format, limits)
    if faults := [e for e in encoded if isinstance(e, UserError)]:
        first = faults[0]
        text = f"{len(faults)} bad prompts:\n{listing(faults)}"
        raise first if len(faults) == 1 else UserError(text, code=first.code, record=first.record)
    return [e for e in encoded if not isinstance(e, UserError)]


def encode_each(
    problems: Sequence[Problem],
    tokenizer: Any,
    prompt_format: PromptFormat,
    limits: PromptLimits,
    places: Mapping[str, str] = MappingProxyType({}),
) -> list[Tokens | UserError]:
    """Return each problem's prompt as `encode_prompts` does, or the UserError that says why it cannot be used.

    places: each problem's place in its file, by id, for messages. Raises UserError when the format does not suit the
    tokenizer.
    """
    chat = prompt_format.is_chat(tokenizer)
    users = [prompt_format.user_message(problem) for problem in problems]
    texts = [_chat_text(tokenizer, user, prompt_format.system) if chat else user for user in users]
    encoded = tokenizer(texts, add_special_tokens=not chat)["input_ids"] if texts else []
    result: list[Tokens | UserError] = []
    for problem, ids, user in zip(problems, encoded, users, strict=True):
        prompt = np.array(_one_bos_no_eos(ids, tokenizer, closed=not chat), dtype=np.int32)
        empty = not len(prompt) or not user.strip()
        wrong = (f"its prompt is empty ({len(prompt)} tokens)", ErrorCode.PROMPT_UNUSABLE) if empty else None
        if wrong := wrong or limits.problem_with(prompt):
            place = places.get(problem.id, problem.id)
            named = f"problem {problem.id}" + (f" ({place})" if place != problem.id else "")
            result.append(UserError(f"{named}: {wrong[0]}", code=wrong[1], record=place))
        else:
            result.append(prompt)
    return result


def encode_messages(messages: Sequence[Mapping[str, str]], tokenizer: Any, *, chat: Literal["auto", "off"]) -> Tokens:
    """Return the token ids of a conversation up to the answer of the assistant, as `encode_prompts` encodes a system
    message and a user's message.

    messages: each with `role` and `content`. chat: as of `PromptFormat`. Raises UserError for a prompt without text,
    for a conversation that the chat template refuses, and without a template for one that is no single message of the
    user.
    """
    with_template = PromptFormat(chat=chat).is_chat(tokenizer)
    if not with_template and [message["role"] for message in messages] != ["user"]:
        why = "chat=off" if chat == "off" else "the tokenizer has no chat template"
        raise UserError(f"{why}: give a single message, of the user", code=ErrorCode.CHAT_TEMPLATE)
    text = _rendered(tokenizer, messages) if with_template else messages[0]["content"]
    ids = tokenizer([text], add_special_tokens=not with_template)["input_ids"][0]
    prompt = np.array(_one_bos_no_eos(ids, tokenizer, closed=not with_template), dtype=np.int32)
    if not len(prompt) or not any(message["content"].strip() for message in messages):
        raise UserError("the messages hold no text", code=ErrorCode.PROMPT_UNUSABLE)
    return prompt


def _chat_text(tokenizer: Any, user: str, system: str) -> str:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    fix = "; it may take no system message: move data.system into data.template" if system else ""
    text = _rendered(tokenizer, messages, fix)
    if system.strip() not in text:
        raise _system_error("the tokenizer's chat template leaves data.system out; put its text into data.template")
    return text


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], fix: str = "") -> str:
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja2 and the template's code raise many types
        raise UserError(f"the tokenizer's chat template fails: {error}{fix}", code=ErrorCode.CHAT_TEMPLATE) from error
    return text


def _system_error(text: str) -> UserError:
    return UserError(text, code=ErrorCode.CHAT_TEMPLATE, key="data.system")


def _one_bos_no_eos(ids: list[int], tokenizer: Any, closed: bool) -> list[int]:
    """Drop a second BOS, which the text may hold beside the tokenizer's, and an EOS at the end of a plain text.

    Some tokenizers close a plain text (`closed`) with EOS, after which there is nothing to continue.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids[:-1] if closed and eos is not None and ids[-1:] == [eos] else ids
