"""Problems as prompt tokens: the tokenizer's chat template where it has one, else the plain template text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ulorl.errors import UserError
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
    the problem when its prompt is empty, is longer than max_prompt_tokens, or leaves no room for max_tokens of output.
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
    for problem, prompt, user in zip(problems, prompts, users, strict=True):
        n = len(prompt)
        if not n or not user.strip():
            raise UserError(f"problem {problem.id}: its prompt is empty ({n} tokens)")
        if n > max_prompt_tokens:
            raise UserError(
                f"problem {problem.id}: its prompt has {n} tokens, data.max_prompt_tokens={max_prompt_tokens}"
            )
        if n + max_tokens > context:
            raise UserError(
                f"problem {problem.id}: its prompt of {n} tokens and an output of {max_tokens} do not fit the model's "
                f"context of {context}; lower rollout.max_tokens or leave out long prompts with data.max_prompt_tokens"
            )
    return prompts


def _chat_text(tokenizer: Any, user: str, system: str) -> str:
    import jinja2

    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as error:
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
