"""Rules of the steps `subquestions`, `multiple_choice`, `true_false` and `proof`: short-answer forms of questions.

A rule changes a question only where nothing can be lost by it. Everything else is `Pending`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ulorl.answers.normalisation import comparable_answer
from ulorl.cleaning.items import Drop, Item
from ulorl.cleaning.labelled_lists import LabelledList
from ulorl.cleaning.question_shapes import YES_NO, Shape, option_letter, option_list, question_shape
from ulorl.cleaning.question_text import DRAWING, prose


@dataclass(frozen=True)
class Pending:
    """An item that no rule converts: a model may rewrite it; without a model it is dropped for this reason."""

    reason: str


def convert(item: Item, found: Shape, *, yes_no: bool) -> Item | Pending | Drop:
    """Return the question in short-answer form if a plain rule gives it, else why no rule does.

    found: the question's shape. yes_no: true/false questions ask for Yes or No.
    """
    if found is Shape.SUBQUESTIONS:
        return Drop("several sub-questions")
    if found is Shape.MULTIPLE_CHOICE:
        return from_choice(item)
    if found is Shape.TRUE_FALSE:
        return from_true_false(item) if yes_no else Pending("true or false")
    return from_proof(item)


# Multiple choice

_NEEDS_OPTIONS = re.compile(  # in the sentence that asks
    r"\b(?:which|following|closest|nearest|approximately|best|could be|can be|(?:is|be|are|a) possible|must be|may be|"
    r"not|except|whether|true|false|correct|options?|choose|select|choice|letter|nature|either|conclude|described?|"
    r"(?:about|between|approximate)\s*$)\b"
    r"|下列|以下|选项|可能|不|近似|最接近",
    re.I,
)
_POINTS_AT_OPTIONS = re.compile(  # in any sentence
    r"\b(?:of|among|from|between) (?:the )?(?:following|these|those|answers|ones|numbers below)\b"
    r"|\b(?:options|choices)\b|这些|下列|以下|选项",
    re.I,
)
_KIND = (
    r"(?:number|integer|value|example|factor|divisor|multiple|root|solution|point|prime|term|element|equation|function|"
    r"expression|vector|matrix|pair|set)"
)
_ANY_ONE = re.compile(  # many answers would do
    rf"(?:\b(?:what|find|name|give)(?: is| are)?|^|[.;:?] ) *(?:an?|one of(?: the| its)?) (?:\w+ )?{_KIND}s?\b"
    rf"(?![^.?]*,)[^.?]*[.?]?\s*$|\bequivalent to\b|\bexample of\b|\b(?:could|might) (?:be|equal|have)\b"
    rf"|\b(?:what|which) {_KIND} (?:divides|satisfies|is divisible|makes)\b|\babout\s*[?.]?\s*$",
    re.I,
)
_LAST_SENTENCE = re.compile(r"[^.?!。？！]*[.?!。？！]?\s*$")
_CHOOSE_SENTENCE = re.compile(
    r"(?:,? and )?(?:please )?(?:choose|select|pick|mark|identify) (?:the |from |one )[^.:?]{0,60}"
    r"(?:option|answer|choice|following)s?[^.:?]{0,40}[.:]?\s*$|\(?enter the letter[^.]*\.?\)?|options\s*:\s*$",
    re.I | re.M,
)
_BLANK = re.compile(r"[(（]\s*[)）]\s*$|_{2,}\s*$")
_ENDS_OPEN = re.compile(r"(?:\b(?:is|are|equals?|by|was)|=|为|是|等于|于)\s*(\$|\\\))?\s*[:：]?\s*$")
_ASKS = re.compile(
    r"[?？]\s*$|\b(?:find|determine|compute|calculate|evaluate|solve|simplify|express|what|how|求)\b", re.I
)
_OPENS = re.compile(  # a formula or environment that holds the options only
    r"(?:\\\(|\\\[|\$|\\begin\{(?:array|center|tabular|aligned)\}(?:\{[^}]*\})?|\\(?:text|mathrm|textbf)\s*\{?|\\\\|\s)+$"
)
_NO_OPTION = re.compile(r"\b(?:none|all|both|neither|other|cannot|not|impossible|undetermined|above)\b|以上|都", re.I)
_BOUND = re.compile(r"[<>]|\\(?:geq?|leq?|neq?|geqslant|leqslant)(?![A-Za-z])")  # holds of more than one value
_WORDS = re.compile(r"[A-Za-z ,'-]{2,}")
_NAMED = re.compile(r"\b(?:what|who|curve|locus|shape|figure)\b", re.I)  # what words alone can answer
_INSTRUCTION = re.compile(r"\b(?:answer|please|provide|express|enter|form)\b|请|答案", re.I)
_SPACING = re.compile(
    r"(?:\\(?:qquad|quad|newline|hfill)(?![A-Za-z])|\\hspace\{[^}]*\}|\\\\|\\(?=\s|$)|~|[;,；，。]|\s)+"
)


def from_choice(item: Item) -> Item | Pending:
    """Return the question without its options, with the text of the right option as its answer.

    A question that makes no sense without its options is left alone.
    """
    drawings: list[str] = []
    found = option_list(DRAWING.sub(lambda drawing: _put_by(drawing[0], drawings), item.question), item.answer)
    if found is None or found.style not in ("A", "a"):
        return Pending("multiple choice without lettered options")
    if found.tail.strip() and _INSTRUCTION.search(_CHOOSE_SENTENCE.sub("", found.tail)):
        return Pending("multiple choice with instructions after the options")
    if any(_INSTRUCTION.search(prose(body)) or len(prose(body).split()) > 12 for body in found.bodies):
        return Pending("multiple choice whose options are sentences")
    stem = _closed(_CHOOSE_SENTENCE.sub("", _OPENS.sub("", found.stem)).rstrip())
    asks = _LAST_SENTENCE.search(prose(stem))
    if _POINTS_AT_OPTIONS.search(prose(stem)) or (asks and any(p.search(asks[0]) for p in (_NEEDS_OPTIONS, _ANY_ONE))):
        return Pending("multiple choice that needs its options")
    question = _standing_alone(stem)
    if question is None:
        return Pending("multiple choice without a question before the options")
    answer = _chosen(item.answer, found)
    if answer is None:
        return Pending("multiple choice whose answer is no option's value")
    if (
        (option_letter(item.answer) or answer == item.answer)
        and _WORDS.fullmatch(answer)
        and not _NAMED.search(prose(stem))
    ):
        return Pending("multiple choice between descriptions")
    for number, drawing in enumerate(drawings):
        question = question.replace(f"⟦{number}⟧", drawing)
    return item.with_changes(Shape.MULTIPLE_CHOICE, question=question, answer=answer)


def _put_by(drawing: str, drawings: list[str]) -> str:
    drawings.append(drawing)
    return f"⟦{len(drawings) - 1}⟧"


def _standing_alone(stem: str) -> str | None:
    """The stem as a question: with its own question mark or verb, or with a blank to fill; else None."""
    if _BLANK.search(stem):
        return _BLANK.sub("____.", stem).strip()
    if _ENDS_OPEN.search(prose(stem)) or _ENDS_OPEN.search(stem):
        return re.sub(r"\s*[:：]\s*$", "", stem) + " ____."
    return stem if _ASKS.search(prose(stem)) else None


def _chosen(answer: str, found: LabelledList) -> str | None:
    """The text of the option that the answer names by its letter; an answer that is a value stays as it is."""
    labels = [name.upper() for name in found.labels]
    texts = [comparable_answer(option_text(body)) for body in found.bodies]
    said = comparable_answer(answer)
    label = option_letter(answer) or (labels[texts.index(said)] if said in texts else "")
    if label and label in labels:
        body = found.bodies[labels.index(label)]
        text = option_text(body)
        if len(prose(body).split()) > 5 or text.count("$") % 2:
            return None
        return None if not text or _NO_OPTION.search(prose(text)) or _BOUND.search(text) else text
    value = re.sub(r"^\s*\\?(?:text|textbf|mathrm)?\s*\{?\s*\(?[A-J]\)\s*\}?\s*", "", answer)
    if label or not value or re.fullmatch(r"[A-J](?:\s*,\s*[A-J])*", comparable_answer(value).upper()):
        return None
    return option_text(value) or value


def option_text(body: str) -> str:
    """Return an option without what separates it from the next one.

    That is spaces and punctuation, enclosing dollar signs, and a brace or formula that is left open.
    """
    text = re.sub(r"\\\(\s*(?:\\q?quad\s*)*(?:\\\)\s*)?$", "", body).strip()
    if first := _SPACING.match(text):
        text = text[first.end() :]
    while (ends := list(_SPACING.finditer(text))) and ends[-1].end() == len(text):
        text = text[: ends[-1].start()]
    if text.count("$") % 2:
        text = text.strip("$") if text.startswith("$") ^ text.endswith("$") else text.replace("$", "")
    for left, right in ((r"\(", r"\)"), (r"\[", r"\]")):
        if text.count(left) != text.count(right):
            text = text.replace(left, "").replace(right, "")
    while text.count("}") > text.count("{") and text.rstrip().endswith("}"):
        text = text.rstrip()[:-1]
    if text.count("{") != text.count("}"):
        return ""
    text = text.strip().rstrip(".").strip()
    inner = re.fullmatch(r"\$([^$]+)\$|\\\((.+)\\\)", text, re.S)
    return (inner[1] or inner[2]).strip() if inner else text


def _closed(stem: str) -> str:
    """The stem with the dollar sign that was removed from its end together with that of the options."""
    return stem + "$" if len(re.findall(r"(?<!\\)\$", stem)) % 2 else stem


# True or false


def from_true_false(item: Item) -> Item | Pending:
    """Return the question with the request for Yes or No, if the reference is one of them or means it."""
    answer = comparable_answer(item.answer)
    if not YES_NO.fullmatch(answer):
        return Pending("true or false with another reference")
    right = answer in ("yes", "true", "是", "对", "正确")
    question = item.question.rstrip()
    if not re.search(r"answer\W+(?:with )?\W*yes\W+or\W+no", question, re.I):
        question += "\nAnswer Yes or No."
    return item.with_changes(Shape.TRUE_FALSE, question=question, answer="Yes" if right else "No")


# Proof

_TO_SHOW = re.compile(
    r"(?P<lead>(?:^|(?<=[.;:\n])|(?<=, ))\s*)(?P<verb>[Pp]rove|[Ss]how|[Vv]erify) that (?P<claim>[^\n]+?)\s*\.?\s*$"
)
_SIDE = r"(?:(?!\\[()\[\]])[^=<>$])+?"  # one formula, one relation
_FORMULA = re.compile(rf"(?:\$\$?|\\\(|\\\[)\s*(?P<left>{_SIDE})\s*=\s*(?P<right>{_SIDE})\s*(?:\$\$?|\\\)|\\\])")
_PHRASE = re.compile(
    r"(?P<left>the [^.,]+?) (?:is equal to|equals|is) (?:\$|\\\()?(?P<right>[^$.,]+?)(?:\$|\\\))?", re.S
)
_CONSTANT = re.compile(r"[-+]?(?:\d|\\(?:d?frac|sqrt|pi|infty|cdot)|[{}()^/.\s*+-]|\b[ei]\b)+")
_RELATIONS = re.compile(r"\\(?:leq?|geq?|neq?|in|subset|iff|equiv|approx|sim|to|forall|exists|mid)(?![A-Za-z])")


_SHOWN = re.compile(
    r"(?P<asks>.*[?.])\s*(?:Show|Prove|Verify|Demonstrate|Confirm) (?:that )?(?:it|this|the (?:answer|value|result)) "
    r"(?:is|equals|is equal to) (?P<value>[^?]+?)\s*\.?\s*",
    re.S,
)


def _given_away(item: Item) -> str:
    """Return the first sentence of "What is X? Show that it is 588.", if 588 is the reference and the sentence asks."""
    found = _SHOWN.fullmatch(item.question)
    if not found or question_shape(found["asks"], item.answer) is not None or not _ASKS.search(prose(found["asks"])):
        return ""
    value = comparable_answer(found["value"].strip("$"))
    return found["asks"] if value == comparable_answer(item.answer) else ""


def from_proof(item: Item) -> Item | Pending:
    """Return `Find X.` for `Show that X = c.`

    c must be a constant and the reference, and the claim must consist of this equation only.
    """
    if asked := _given_away(item):
        return item.with_changes(Shape.PROOF, question=asked)
    claim = _TO_SHOW.search(item.question)
    found = claim and (_FORMULA.fullmatch(claim["claim"]) or _PHRASE.fullmatch(claim["claim"]))
    if not claim or not found:
        return Pending("proof")
    left, right = found["left"].strip(), found["right"].strip()
    said = comparable_answer(right) == comparable_answer(item.answer) and _CONSTANT.fullmatch(right)
    if not said or _RELATIONS.search(left) or re.fullmatch(r"\w", left):
        return Pending("proof")
    asked = left if left.startswith("the ") else f"${left}$"
    verb = "find" if claim["verb"][0].islower() else "Find"
    question = f"{item.question[: claim.start()]}{claim['lead']}{verb} {asked}."
    return item.with_changes(Shape.PROOF, question=question)
