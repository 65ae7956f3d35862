"""Problems as prompt tokens: the tokenizer's chat template where it has one, else the plain template text."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from ulorl.errors import UserError, listing
from ulorl.types import Problem, Tokens


def encode_prompts(
    problems: Sequence[Problem],
    tokenizer: Any,
    *,
    template: str = "{question}",
    system: str = "",
    chat: Literal["auto", "off"] = "auto",
    max_prompt_tokens: int,
    context: int,
    max_tokens: int = 0,
) -> list[Tokens]:
    """Token ids of each problem's prompt, in the order of `problems`; every prompt begins with at most one BOS.

    template: the user's message, `{question}` in it. system: a system message; only chat templates take one. context:
    tokens the model can hold, prompt and output together; max_tokens: the output's share of it. Raises UserError naming
    the problems whose prompt is empty, is longer than max_prompt_tokens, or leaves no room for max_tokens of output.
    """
    encoded = encode_each(
        problems,
        tokenizer,
        template=template,
        system=system,
        chat=chat,
        max_prompt_tokens=max_prompt_tokens,
        context=context,
        max_tokens=max_tokens,
    )
    if faults := [e for e in encoded if isinstance(e, UserError)]:
        raise faults[0] if len(faults) == 1 else UserError(f"{len(faults)} bad prompts:\n{listing(faults)}")
    return [e for e in encoded if not isinstance(e, UserError)]


def encode_each(
    problems: Sequence[Problem],
    tokenizer: Any,
    *,
    template: str,
    system: str,
    chat: Literal["auto", "off"],
    max_prompt_tokens: int,
    context: int,
    max_tokens: int,
    vocabulary: int = sys.maxsize,
    places: Mapping[str, str] = MappingProxyType({}),
) -> list[Tokens | UserError]:
    """As `encode_prompts`, with the UserError in the place of a prompt that cannot be used. vocabulary: rows of the
    model's embedding; places: where problems stand, by id, for messages. Raises UserError when the template is wrong.
    """
    templated = chat == "auto" and bool(getattr(tokenizer, "chat_template", None))
    if system and not templated:
        why = "data.chat=off" if chat == "off" else "the tokenizer has no chat template"
        raise UserError(f"data.system is given but {why}; put its text into data.template")
    users = [template.replace("{question}", problem.prompt) for problem in problems]  # LaTeX is full of braces
    texts = [_chat_text(tokenizer, user, system) if templated else user for user in users]
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=not templated)["input_ids"]
    prompts = [np.array(_one_bos_no_eos(ids, tokenizer, closed=not templated), dtype=np.int32) for ids in encoded]

    def fault(prompt: Tokens, user: str) -> str | None:
        n = len(prompt)
        if not n or not user.strip():
            return f"its prompt is empty ({n} tokens)"
        if (largest := int(prompt.max())) >= vocabulary:
            return (
                f"its prompt has token id {largest}, but the model's vocab_size is {vocabulary}: the tokenizer in the "
                "folder is another model's"
            )
        if n > max_prompt_tokens:
            return f"its prompt has {n} tokens, data.max_prompt_tokens={max_prompt_tokens}"
        if n + max_tokens > context:
            return (
                f"its prompt of {n} tokens and an output of {max_tokens} do not fit the model's context of {context}; "
                "lower rollout.max_tokens, or leave out long prompts with data.max_prompt_tokens and data.bad=skip"
            )
        return None

    result: list[Tokens | UserError] = []
    for problem, prompt, user in zip(problems, prompts, users, strict=True):
        what = fault(prompt, user)
        place = places.get(problem.id, problem.id)
        named = f"problem {problem.id}" + (f" ({place})" if place != problem.id else "")
        result.append(UserError(f"{named}: {what}") if what else prompt)
    return result


def _chat_text(tokenizer: Any, user: str, system: str) -> str:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja2's, and whatever the template's own code comes up with
        mend = "; it may take no system message: move data.system into data.template" if system else ""
        raise UserError(f"the tokenizer's chat template fails: {error}{mend}") from error
    if system.strip() not in text:
        raise UserError("the tokenizer's chat template leaves data.system out; put its text into data.template")
    return text


def _one_bos_no_eos(ids: list[int], tokenizer: Any, closed: bool) -> list[int]:
    """A text may hold the BOS that the tokenizer adds too. Some tokenizers close a plain text (`closed`) with EOS, and
    after it there is nothing to continue."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids[:-1] if closed and eos is not None and ids[-1:] == [eos] else ids
