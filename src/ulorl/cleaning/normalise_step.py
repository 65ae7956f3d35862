"""Step `normalise`: cleans characters, removes prompt templates, and drops empty questions and answers."""

from __future__ import annotations

import re

from ulorl.answers.normalisation import clean_characters
from ulorl.cleaning.items import Drop, Item, Outcome

NAME = "normalise"
_TEMPLATES = (  # of prompts, not of the problem
    r"^solve the following math problem step by step\. the last line of your response.*?\n\n",
    r"\n+remember to put your answer on its own line after \"answer:\"\.?\s*$",
    r"\s*(?:let'?s think step by step and |please )?(?:reason step by step,? and )?"
    r"(?:put|output|place|give) (?:your|the) final answer (?:with)?in \\+boxed\{\}\.?\s*$",
    r"\s*让我们一步一步地思考。请以.{0,40}的格式输出最终答案。.*$",
    r"\s*请逐步推理.{0,30}\\+boxed\{\}.{0,10}$",
    r"\s*(?:\\[(\[]|\$)\s*\\boxed\{\s*(?:\?|\\text\{answer\}|\\,|\\quad)?\s*\}\s*(?:\\[)\]]|\$)\s*$",
)
_TEMPLATE = tuple(re.compile(pattern, re.I | re.S) for pattern in _TEMPLATES)


def normalise(item: Item) -> Outcome:
    """Return the item with clean characters (x² stays x²) and without prompt templates; drop it if a part is empty."""
    question, answer = clean_characters(item.question), clean_characters(item.answer)
    for template in _TEMPLATE:
        question = template.sub("", question)
    if not question.strip():
        return Drop("empty question")
    if not answer:
        return Drop("empty answer")
    return item.with_changes(NAME, question=question.strip(), answer=answer)
