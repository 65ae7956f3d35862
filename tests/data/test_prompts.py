"""Prompts as tokens, with small tokenizers whose ids are worked out by hand: a word is an id."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from refusals import refused
from ulorl.data.prompts import PromptFormat, PromptLimits, encode_each, encode_messages, encode_prompts
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.types import Problem

#         0       1      2      3       4       5     6    7    8    9
WORDS = ["<unk>", "<s>", "</s>", "user", "system", "bot", "a", "b", "be", "brief"]
TURNS = "{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"
CHAT = TURNS + "{% if add_generation_prompt %}bot{% endif %}"
PROBLEMS = [Problem("p1", "a b"), Problem("p2", "b")]


def tokenizer(chat_template: str | None = None, add: str = "<s> $A") -> Any:
    """Adds `add` around plain text: a BOS as Llama does, or an EOS as well."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single=add, special_tokens=[("<s>", 1), ("</s>", 2)])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = chat_template
    return made


def encode(
    tokenizer: Any, problems: Any = PROBLEMS, *, max_prompt_tokens: int = 16, max_tokens: int = 0, **keys: Any
) -> list[list[int]]:
    limits = PromptLimits(max_prompt_tokens, context=32, max_tokens=max_tokens)
    return [prompt.tolist() for prompt in encode_prompts(problems, tokenizer, PromptFormat(**keys), limits)]


def test_plain_text_takes_the_tokenizers_bos() -> None:
    assert encode(tokenizer()) == [[1, 6, 7], [1, 7]]
    assert encode(tokenizer(), template="be {question}") == [[1, 8, 6, 7], [1, 8, 7]]


def test_a_chat_template_is_applied_with_the_generation_prompt_and_adds_no_bos_of_its_own() -> None:
    assert encode(tokenizer(CHAT)) == [[3, 6, 7, 5], [3, 7, 5]]
    assert encode(tokenizer(CHAT), system="be brief")[1] == [4, 8, 9, 3, 7, 5]
    assert encode(tokenizer(CHAT), chat="off") == encode(tokenizer())


def test_a_conversation_is_encoded_as_the_prompt_that_it_is() -> None:
    """With a template, earlier turns are part of it; without one there is a single message, of the user."""
    user, system = {"role": "user", "content": "b"}, {"role": "system", "content": "be brief"}
    assert encode_messages([user], tokenizer(CHAT), chat="auto").tolist() == encode(tokenizer(CHAT))[1]
    assert encode_messages([system, user], tokenizer(CHAT), chat="auto").tolist() == [4, 8, 9, 3, 7, 5]
    assert encode_messages([user, user], tokenizer(CHAT), chat="auto").tolist() == [3, 7, 3, 7, 5]
    assert encode_messages([user], tokenizer(CHAT), chat="off").tolist() == encode(tokenizer())[1]
    for bad in ([system, user], [user, user]):
        with refused(ErrorCode.CHAT_TEMPLATE):
            encode_messages(bad, tokenizer(), chat="auto")
    with refused(ErrorCode.PROMPT_UNUSABLE):
        encode_messages([{"role": "user", "content": " "}], tokenizer(CHAT), chat="auto")


@pytest.mark.parametrize("template", ["<s> {question}", "{question}"])
def test_one_bos_not_two(template: str) -> None:
    assert encode(tokenizer(), template=template)[1] == [1, 7]
    assert encode(tokenizer("{{ bos_token + ' ' }}" + CHAT))[1] == [1, 3, 7, 5]


def test_an_eos_that_closes_plain_text_is_dropped() -> None:
    assert encode(tokenizer(add="<s> $A </s>"))[1] == [1, 7]


def test_a_template_that_ends_the_users_turn_with_eos_keeps_it() -> None:
    assert encode(tokenizer("{{ messages[0].content + ' </s>' }}"))[1] == [7, 2]


def test_latex_braces_in_template_and_question_are_left_alone() -> None:
    seen: list[str] = []
    made = tokenizer()
    made_call = made.__call__

    class Spy:
        chat_template, bos_token_id, eos_token_id = None, 1, 2

        def __call__(self, texts: list[str], **keys: Any) -> Any:
            seen.extend(texts)
            return made_call(texts, **keys)

    encode(Spy(), [Problem("p", r"\frac{a}{b}")], template=r"{question} in \boxed{}")
    assert seen == [r"\frac{a}{b} in \boxed{}"]


def test_too_long_empty_and_not_fitting_prompts_are_named() -> None:
    with refused(ErrorCode.PROMPT_UNUSABLE, record="p1"):
        encode(tokenizer(), max_prompt_tokens=2)
    with refused(ErrorCode.PROMPT_UNUSABLE, record="p1"):
        encode(tokenizer(), max_tokens=30)
    assert len(encode(tokenizer(), max_tokens=29)) == 2
    with refused(ErrorCode.PROMPT_UNUSABLE, record="p0"):
        encode(tokenizer(), [Problem("p0", " ")])


def test_an_unused_system_message_is_refused() -> None:
    with refused(ErrorCode.CHAT_TEMPLATE, key="data.system"):
        encode(tokenizer(), system="be brief")
    with refused(ErrorCode.CHAT_TEMPLATE, key="data.system"):
        encode(tokenizer(CHAT), system="be brief", chat="off")
    with refused(ErrorCode.CHAT_TEMPLATE, key="data.system"):
        encode(tokenizer("{{ messages[-1].content }}"), system="be brief")


def test_a_template_that_refuses_a_system_message_says_so() -> None:
    gemma = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
    with refused(ErrorCode.CHAT_TEMPLATE):
        encode(tokenizer(gemma), system="be brief")
    assert encode(tokenizer(gemma))[1] == [3, 7]


def test_each_bad_prompt_is_returned_in_its_place() -> None:
    """A model of 8 tokens: `be` is token 8. With its BOS the third prompt has 4 tokens."""
    problems = [Problem("p1", "b"), Problem("p2", "a be"), Problem("p3", "a a a")]
    limits = PromptLimits(max_prompt_tokens=3, context=100, max_tokens=10, vocabulary=8)
    places = {"p1": "f.jsonl:1", "p3": "f.jsonl:9"}
    good, foreign, long = encode_each(problems, tokenizer(), PromptFormat(), limits, places)
    assert not isinstance(good, UserError)
    assert good.tolist() == [1, 7]
    assert isinstance(foreign, UserError)
    assert (foreign.code, foreign.record) == (ErrorCode.MODEL_TOKENIZER, "p2")
    assert isinstance(long, UserError)
    assert (long.code, long.record) == (ErrorCode.PROMPT_UNUSABLE, "f.jsonl:9")
    assert str(long) == "problem p3 (f.jsonl:9): its prompt has 4 tokens, data.max_prompt_tokens=3"


def test_all_bad_prompts_are_reported_together() -> None:
    problems = [Problem(f"p{n}", "a " * n) for n in range(1, 16)]
    with pytest.raises(UserError) as caught:
        encode_prompts(problems, tokenizer(), PromptFormat(), PromptLimits(max_prompt_tokens=3, context=100))
    lines = str(caught.value).splitlines()
    assert lines[0] == "13 bad prompts:"
    assert lines[1] == "  problem p3: its prompt has 4 tokens, data.max_prompt_tokens=3"
    assert lines[-1] == "  and 3 more"
