"""Step `normalise`: one spelling of characters and spaces, without what a prompt template or an export left behind."""

from __future__ import annotations

import re
import unicodedata

from ulorl.cleaning.record import Drop, Item, Outcome

NAME = "normalise"
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060\ufeff\u00ad\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SPACES = re.compile(r"[ \t\u00a0\u2000-\u200a\u202f\u3000]+")
_BLANK_LINES = re.compile(r"\n(?:[ ]*\n){2,}")
# a newline that was escaped twice; no command of LaTeX begins so
_ESCAPED_NEWLINE = re.compile(r"(?<!\\)\\n(?![a-z]|Rightarrow|Leftarrow|Leftrightarrow|Vdash|VDash)")
_MANGLED = (
    re.compile(  # \text, \frac and others whose first two characters an export took for an escape: tab, form feed
        r"\t(?=ext|imes|heta|au\b|frac|riangle|ilde)|\x0c(?=rac|orall)|\x08(?=egin|inom|eta|ar\b|oxed|ig)"
        r"|\r(?=ight|ho\b|angle|m\b)|\x0b(?=ec|dots|ert)|\x07(?=lpha|ngle|pprox|rc)"
    )
)
_ESCAPES = {"\t": "\\t", "\x0c": "\\f", "\x08": "\\b", "\r": "\\r", "\x0b": "\\v", "\x07": "\\a"}
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
    """Unicode NFC, which leaves x² as it is; plain spaces; no prompt template. Empty questions and answers go."""
    question, answer = spelled(item.question), spelled(item.answer)
    for template in _TEMPLATE:
        question = template.sub("", question)
    if not question.strip():
        return Drop("empty question")
    if not answer:
        return Drop("empty answer")
    return item.changed(NAME, question=question.strip(), answer=answer)


def spelled(text: str) -> str:
    """One spelling of the same text; applied twice it changes nothing more."""
    text = _MANGLED.sub(lambda found: _ESCAPES[found[0]], text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    text = _SPACES.sub(" ", _ESCAPED_NEWLINE.sub("\n", text))
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", lines).strip()
