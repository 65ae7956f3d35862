"""One interface to all kinds of reference answers: what an answer is, its spellings, and how it can be changed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Any

from ulorl.verifier.transforms import algebra, compound_answers, question_form, rationals, spellings, text_changes
from ulorl.verifier.transforms.compound_answers import Parts, Spans
from ulorl.verifier.transforms.rationals import Number

OTHER = "other"  # another problem's answer
_FORM_ASKED = {  # kinds of which the question excludes the spelling: (what it says, the kinds)
    "algebra": re.compile(
        r"expand|factor|rationali[sz]e|simpl|lowest|reduced|in the form|partial frac|standard form|single|as a product"
    ),
    "number": re.compile(
        r"(?:write|express|convert|rewrite)\b(?! your| the answer| each answer| it| this).{0,80}\bas an?\b"
        r"|scientific notation|decimal (?:repr|exp|equiv|form)|as an? (?:decimal|mixed|percent)|\bbase \d"
    ),
}
_CONSTANTS = frozenset("cCkKnNmMABD")
_WORDS = ("yes", "no", "true", "false")
_LETTER = re.compile(r"\(?([A-Z])\)?")
_TEXT = re.compile(r"\\(?:text|mbox|textbf|mathrm|textrm)\s*\{\s*([^{}]*?)\s*\}")


@dataclass(frozen=True)
class Word:
    """Yes, No, True, False, or the letter of a choice."""

    text: str
    letter: bool


@dataclass(frozen=True)
class Expression:
    """An algebraic expression, as sympy has it."""

    value: Any


Value = Number | Word | Parts | Spans | Expression


@dataclass(frozen=True)
class Answer:
    """A reference and what it was read as."""

    text: str
    value: Value
    variable: str  # whose values the question asks for; "" where this is uncertain

    @property
    def type(self) -> str:
        """Return the name of the kind of value."""
        return type(self.value).__name__


def read(text: str, question: str) -> Answer | None:
    """Read a reference; None for a kind whose value could not be changed with certainty."""
    text = text.strip().strip("$").strip()
    if not text or len(text) > 120:
        return None
    value: Value | None = _word(text, question) or rationals.read(text, question) or _expression(text, question)
    value = value or compound_answers.read_spans(text, question) or compound_answers.read_parts(text, question)
    if value is None or question_form.several_right(question, vector=isinstance(value, Parts) and value.ordered):
        return None
    return Answer(text, value, question_form.variable(question))


def _word(text: str, question: str) -> Word | None:
    inside = _TEXT.fullmatch(text)
    bare = (inside[1] if inside else text).strip()
    if bare.lower() in _WORDS:
        return Word(bare.lower(), letter=False)
    letter = _LETTER.fullmatch(bare)
    choices = re.search(r"\(?A\)|\bA[.:]|\\text\{?\(?A\)?|\\textbf", question) and re.search(
        r"\(?B\)|\bB[.:]|\(B\)", question
    )
    return Word(letter[1], letter=True) if letter and letter[1] in "ABCDEF" and choices else None


def _expression(text: str, question: str) -> Expression | None:
    """None too where a letter in it may be an arbitrary constant, or any integer, because the question does not have
    it: with another sign or factor it may be the same answer."""
    value = algebra.parse(text)
    if value is None or value.is_Rational:
        return None
    names = {symbol.name for symbol in value.free_symbols} & _CONSTANTS
    return Expression(value) if all(question_form.mentions(question, name) for name in names) else None


def kinds(answer: Answer, question: str) -> list[str]:
    """Return the kinds of spelling that the answer can have, without those that would leave a form that the question
    asks for."""
    value, lowered = answer.value, question.lower()
    if isinstance(value, Number):
        bound = ("fraction", "decimal", "percent", "scientific") if _FORM_ASKED["number"].search(lowered) else ()
        if question_form.base(question):
            return ["same"]
        if question_form.measure(question):
            bound = (*bound, *(() if value.percent else ("percent",)))
        return [kind for kind in rationals.kinds(value) if kind not in bound]
    if isinstance(value, Parts):
        return ["same"] + ["tuple" if value.ordered else "set"] * 3
    if isinstance(value, Spans):
        return ["same"] + ["interval"] * 3
    if isinstance(value, Expression):
        found = ["same", "spelling"] if value.value.is_Symbol else ["same", "spelling", "plain_text", "algebra"]
        return found[: -1 if _FORM_ASKED["algebra"].search(lowered) and "algebra" in found else None]
    return ["same", "spelling"]


def spell(answer: Answer, kind: str, rng: Random) -> str | None:
    """Return the answer in a kind of spelling as text, None where it has none."""
    value, text = answer.value, None
    if kind == "same":
        return answer.text
    if isinstance(value, Number):
        text = spellings.spell(value, kind, rng)
    elif isinstance(value, Parts):
        text = compound_answers.spell_parts(value, rng, answer.variable)
    elif isinstance(value, Spans):
        text = compound_answers.spell_spans(value, rng, answer.variable)
    elif isinstance(value, Word):
        text = _spelled_word(value, rng)
    elif kind == "algebra":
        text = algebra.rewritten(value.value, rng)
    elif kind == "plain_text":
        text = algebra.plain(value.value, rng)
    else:
        text = text_changes.respelled(answer.text, rng)
        again = algebra.parse(text)
        text = None if again is not None and not algebra.equal(again, value.value) else text
    return text and text_changes.said(text, rng)


def _spelled_word(word: Word, rng: Random) -> str:
    if word.letter:
        return rng.choice(
            (word.text, f"({word.text})", f"\\text{{{word.text}}}", f"\\textbf{{({word.text})}}", f"{word.text})")
        )
    text = rng.choice((word.text, word.text.capitalize(), word.text.upper()))
    return rng.choice((text, f"\\text{{{text}}}", f"{text}."))


def changed(answer: Answer, kind: str, question: str, rng: Random) -> tuple[str, Answer] | None:
    """Return what was changed and an answer proven to be another, None where this attempt failed. Only `kind` of its
    spellings may be used."""
    value = answer.value
    if isinstance(value, Number) and kind != "same":
        how = rng.choice(rationals.changes(value, kind))
        new = rationals.change(value, how, rng)
        return None if new is None else (how, Answer(answer.text, new, answer.variable))
    if isinstance(value, Word):
        return "opposite" if not value.letter else "letter", _other_word(answer, value, rng)
    how, text = _changed_text(answer, rng)
    if text is None or text == answer.text:
        return None
    other = read(text, question)
    if other is None or not differ(answer, other):
        return None
    return how, other


def _changed_text(answer: Answer, rng: Random) -> tuple[str, str | None]:
    value = answer.value
    if isinstance(value, Parts) and rng.random() < 0.6:
        how = "swapped" if value.ordered else rng.choice(("missing", "extra"))
        new = compound_answers.change_parts(value, how, rng)
        return how, compound_answers.joined(new, value.ordered, answer.text) if new else None
    if isinstance(value, Spans) and rng.random() < 0.6:
        how = "missing" if len(value.spans) > 1 and rng.random() < 0.3 else "open_closed"
        return how, compound_answers.change_spans(value, how, rng)
    how = rng.choice(text_changes.CHANGES)
    return how, text_changes.changed(answer.text, how, rng)


def _other_word(answer: Answer, word: Word, rng: Random) -> Answer:
    opposites = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
    new = rng.choice([x for x in "ABCDE" if x != word.text]) if word.letter else opposites[word.text]
    styled = new if word.letter else new.capitalize() if word.text.capitalize() in answer.text else new
    old = re.search(rf"\b{word.text}\b", answer.text, re.IGNORECASE)
    assert old is not None
    return Answer(
        answer.text[: old.start()] + styled + answer.text[old.end() :], Word(new, word.letter), answer.variable
    )


def shape(answer: Answer) -> tuple[object, ...]:
    """Return what two answers must have in common for one to be mistaken for the other."""
    value = answer.value
    if isinstance(value, Number):
        return value.form, value.percent, value.named, value.unit
    if isinstance(value, Expression):
        return (len(value.value.free_symbols), value.value.is_Add)
    return (len(value.texts), value.ordered) if isinstance(value, Parts) else ()


def differ(left: Answer, right: Answer) -> bool:
    """Return whether two values are proven different; False where it is unknown, as between different types."""
    one, two = left.value, right.value
    if isinstance(one, Number) and isinstance(two, Number):
        factors = [side.value * (side.unit.factor if side.unit else 1) for side in (one, two)]
        return (
            abs(one.value - two.value) > one.error
            and factors[0] != factors[1]
            and abs(one.value) not in (abs(two.value) * 100, abs(two.value) / 100)
        )
    if isinstance(one, Expression) and isinstance(two, Expression):
        return algebra.different(one.value, two.value)
    if isinstance(one, Parts) and isinstance(two, Parts):
        return compound_answers.parts_differ(one, two)
    if isinstance(one, Spans) and isinstance(two, Spans):
        return bool(one.set != two.set)
    return isinstance(one, Word) and isinstance(two, Word) and one.letter == two.letter and one.text != two.text
