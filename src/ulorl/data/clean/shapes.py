"""Which questions have no single short answer: several sub-questions, multiple choice, true or false, proof.

Rules over the prose and the labelled lists, one function a shape. They look for who asks what: a labelled list alone
says nothing, conditions and cases are labelled too.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise

from ulorl.data.clean.labels import Labelled, bullets, labelled_lists
from ulorl.data.clean.text import HAN, MATH, comparable_answer, prose

YES_NO = re.compile(r"yes|no|true|false|是|否|对|错|正确|错误")


class Shape(StrEnum):
    SUBQUESTIONS = "subquestions"
    MULTIPLE_CHOICE = "multiple_choice"
    TRUE_FALSE = "true_false"
    PROOF = "proof"


@lru_cache(maxsize=1 << 17)
def shape(question: str, answer: str = "") -> Shape | None:
    """The first shape that a question has, None for one that asks for a short answer.

    answer: its reference, if there is one: an option's letter, or Yes, tells the shape where the question does not.
    """
    if has_parts(question):
        return Shape.SUBQUESTIONS
    if is_multiple_choice(question, answer):
        return Shape.MULTIPLE_CHOICE
    if has_subquestions(question):
        return Shape.SUBQUESTIONS
    if YES_NO.fullmatch(comparable_answer(answer)) or is_true_false(question):
        return Shape.TRUE_FALSE
    return Shape.PROOF if is_proof(question) else None


_VERBS = (
    "find|determine|compute|calculate|evaluate|solve|simplify|factor|express|estimate|count|derive|obtain|state|give|"
    "write|sketch|show|prove"
)
_WH = r"what|how (?:many|much|long|far|old|fast|high|tall|large|big|often|likely)|which|who|when|where"
_START = r"(?:^|(?<=[.;:!?。；：！？\n])|(?<=, )|(?<=\bthen )|(?<=\bhence )|(?<=\band )|(?<=\balso )|(?<=\bplease ))\s*"
_ASK = re.compile(
    rf"{_START}(?:(?:then|also|hence|next|finally|now|please|and|thus|so),? +)*(?:{_VERBS})\b(?! +that it)"
    rf"|\b(?:{_WH})\b[^.?]*\?"
    rf"|\b(?:what|which) (?:is|are|was|were|will be)\b|求|计算|是多少|有多少|多少|几个|为何值|写出|=\s*\?"
    r"|(?:_{2,}|\\underline|\\qquad\s*[.。])",
    re.I,
)
_YES_NO = r"(?:is|are|does|do|did|can|could|must|will|would|has|have|should|was|were)"

# Sub-questions

_ONE_ANSWER = re.compile(  # of several parts after all
    r"(?:sum|product|total|difference) of (?:the |all |both |your |these )*(?:two |three )?"
    r"(?:parts?\b.*answers?|answers?|results)"
    r"|\b(?:answers?|results?) (?:to|for|of|from) (?:both |all )?(?:the )?(?:parts?|\(a\)|\(1\)|a\))"
    r"|please (?:provide|give|submit|answer|output)|the final answer is"
    r"|请(?:提供|给出|回答|计算|输出)|答案之和",
    re.I,
)
_EACH = re.compile(  # right before the list
    rf"\b(?:{_VERBS}|answer|complete|do)\b[^.?]*"
    r"\b(?:each of (?:the following|these)|in each case|(?:tasks|questions|parts) below"
    r"|the following (?:questions|problems|tasks|exercises|integrals|limits|equations|expressions|sums|derivatives|"
    r"quantities|values))\b[^.?]{0,60}[:：.]?\s*$",
    re.I,
)
_MORE = re.compile(
    r"[.?!;]\s*(?:also|additionally|moreover|furthermore|in addition|secondly|second)\b,? +"
    rf"(?:{_VERBS}|what (?:is|are)|how (?:many|much))\b",
    re.I,
)
_SAME_AGAIN = re.compile(
    r"\b(?:in other words|that is|specifically|formally|equivalently|namely|if the (?:answer|result)|i\.e"
    r"|express(?:ed)?|form\b|written as|lowest terms|round)",
    re.I,
)
_HOW = r"(?:how (?:many|much|long|far|old|fast|high|tall|large|big|often)|what (?:is|are|was|were|will|would))"
_TWO_IN_ONE = re.compile(rf"\b{_HOW}\b[^.?]*,? and {_HOW}\b[^.?]*\?", re.I)
_QUESTION = re.compile(
    rf"(?:(?:^|[.,!;:\n]\s*|\b(?:and|so|in|by|at|to|of|on|for|with|from) ){_HOW}\b[^.?]*[?]|多少[^。]*[?？])$", re.I
)
_OF_THE_FIRST = re.compile(rf"^if\b.*\bwhat is (?:the value of )?{MATH}", re.I | re.S)  # of an answer's parts
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|``[^']*''")


def has_subquestions(question: str) -> bool:
    """Several things are asked, and no single one of all of them at the end."""
    return has_parts(question) or _asks_again(question)


def has_parts(question: str) -> bool:
    """The parts of a list ask, each for itself."""
    if _ONE_ANSWER.search(prose(question)):
        return False
    if any(_asks_each(found) for found in labelled_lists(question)):
        return True
    return sum(bool(_ASK.search(prose(line))) for line in bullets(question)) > 1


def _asks_each(found: Labelled) -> bool:
    asks = [bool(_ASK.search(prose(body).strip())) for body in found.bodies]
    if asks[0] and sum(asks) >= 2:
        return True
    return found.style != "A" and bool(_EACH.search(prose(found.stem))) and not _ASK.search(prose(found.tail))


def _asks_again(question: str) -> bool:
    """In running text: another question that is not the first one in other words."""
    text = _QUOTED.sub(" ", prose(question))
    if _ONE_ANSWER.search(text):
        return False
    if _TWO_IN_ONE.search(text) or any(_ASK.search(text[: more.start() + 1]) for more in _MORE.finditer(text)):
        return True
    sentences = [s.strip() for s in re.split(r"(?<=[?？])", text)]
    twice = any(
        _QUESTION.search(a) and _QUESTION.search(b) and not _OF_THE_FIRST.search(b) for a, b in pairwise(sentences)
    )
    return twice and not _SAME_AGAIN.search(text)


# Multiple choice

_CHOOSE = re.compile(
    r"\bwhich (?:one |two |ones |numbers? )?(?:of|among) "
    r"(?:the following|these|those|the (?:options|statements|choices|answers))\b"
    r"|(?:^|[.?!:;,]\s+|\b(?:determine|identify|find|decide|tell|state|choose|select) )which (?:one )?of the [^.?]*\?"
    r"|\bwhich (?:statements?|options?|choices?|answers?|conclusions?)\b[^.?]{0,40}\b(?:is|are|must|holds?)\b"
    r"|\bamong the following\b[^?]*\bwhich\b"
    r"|(?:^|[.?!:;,]\s+)(?:please )?(?:choose|select|pick|mark|identify) (?:the|from|one|all|between|an?|your)\b"
    r"[^.]{0,60}"
    r"\b(?:correct|options?|statements?|answers?|following|appl(?:y|ies)|expressions?|choices?)\b"
    r"|(?:^|[.?!:;,]\s+)(?:choose|select|pick) (?:between|from)\b[^.]{0,40}:|\bfrom the following (?:options|choices)\b"
    r"|\bamong the options\b|\benter the (?:letters?|labels?) of|answer should be a (?:single )?letter|\boptions\s*:"
    r"|(?:下列|以下)(?!条件)[^。？]{0,60}的(?:是|有|为|一个|一项)|(?:正确|错误|成立)的(?:是|个数)[^。]{0,10}$|选项",
    re.I | re.M,
)
_COUNTING = re.compile(r"\bhow many of the following\b", re.I)
_LEADS = re.compile(r"(?:\?|？|\b(?:is|are|equals?|by|be|was)|=|[:：]|[(（]\s*[)）]|___+|于|为|是|则|the)\s*$", re.I)
_RELATION = re.compile(r"[<>=]|\\(?:geq?|leq?|neq?|in|mid)\b")
_DEMANDS = re.compile(r"条件|such that|conditions?|satisf|properties|properties|following:|as follows|rules?\b", re.I)


def is_multiple_choice(question: str, answer: str = "") -> bool:
    """One of given answers is to be chosen, with or without letters before them."""
    text = prose(question)
    if _CHOOSE.search(text) and not _COUNTING.search(text):
        return True
    return options(question, answer) is not None


def letter(answer: str) -> str:
    """The option's label that an answer is, as A; else nothing."""
    bare = comparable_answer(answer).strip("{}().:")
    return bare.upper() if len(bare) == 1 and bare in "abcdefghij" else ""


def options(question: str, answer: str = "") -> Labelled | None:
    """The list of a question's options, if it has one: capital letters that label at least three things none of which
    asks, or others that label short values right after a question, or any if the answer is one of their letters."""
    for found in labelled_lists(question):
        bodies, stem = [body.strip() for body in found.bodies], prose(found.stem).rstrip(" $\n\\")
        if found.style == "part" or not all(bodies) or any(_ASK.search(prose(body)) for body in bodies):
            continue
        if _ASK.search(prose(found.tail)) and not _CHOOSE.search(prose(found.tail)):
            continue
        named = found.style in ("A", "a") and letter(answer) in map(str.upper, found.labels)
        if named or _CHOOSE.search(prose(question)):
            return found
        if len(bodies) < 3:
            continue
        if found.style == "A" and (_LEADS.search(stem) or _ASK.search(stem)):
            return found
        short = not _DEMANDS.search(stem[-90:]) and all(
            len(body) <= 40 and not _RELATION.search(body) for body in bodies
        )
        if found.style in ("a", "1") and short and re.search(r"(?:\?|？|\b(?:is|are|equals)\b:?)\s*$", stem):
            return found
    return None


# True or false

_WHETHER = re.compile(
    rf"{_START}(?:(?:then|please|hence),? +)*(?:determine|decide|check|verify|investigate|assess|tell|state|test|"
    r"examine|find out|establish|say|indicate|explain) "
    r"(?:whether|if)\b|^whether\b|^if .{0,200}, determine (?:whether|if)\b",
    re.I,
)
_LISTED = re.compile(r"(?:\w[\w ]{0,20}, ){2,}(?:\w[\w ]{0,20},? )?or \w[\w ]*")
_TRUE_FALSE = re.compile(
    r"\btrue\s*(?:or|/)\s*false\b(?! (?:questions?|tests?|exam|quiz|problems?))|\byes or no\b"
    r"|\b(?:truth|validity) of the (?:following )?(?:statement|claim|assertion)\b"
    r"|判断(?!.*(?:求|多少))|是否[^。]*[？?。]?\s*$|对吗|吗[？?]\s*$|正确还是错误",
    re.I,
)
_ASKS_YES_NO = re.compile(rf"(?:^|[,:;.\u00a4\n] *)(?:then |so |and |or |but )?{_YES_NO} ", re.I)
_ASKS_WHAT = re.compile(
    r"\b(?:what|how)\b|^(?:\w+ )?which\b"
    rf"|\bwhich (?:\w+ ){{0,3}}(?:numbers?|integers?|values?|digits?|letters?|{MATH})",
    re.I,
)
_VALUE = re.compile(  # asked for, beside whatever else
    r"(?:^|(?<=[.;:!?\n])|(?<=, )|(?<=\band ))\s*(?:(?:then|also|hence|and|if so|if not|please|thus),? +)*"
    r"(?:find(?! (?:out )?(?:whether|if)\b)|compute|calculate|evaluate|solve|give|express"
    r"|determine(?! (?:whether|if)\b))\b"
    r"(?! (?:an? )?(?:justification|proof|reasons?|explanation|your reason|the truth|the validity))"
    r"|\b(?:what|how (?:many|much|long|far))\b[^.?]*\?|(?:^|[.;:!?\n,]\s*)(?:for |in |at )?how (?:many|much)\b"
    r"|\b(?:can|could) you (?:find|give|tell|compute|calculate|determine)\b|求(?!证)|多少",
    re.I,
)
_SENTENCE = re.compile(r"(?<=[.?!。？！])[)\"”']*\s+|(?<=[。？！])|\n\s*\n")


def is_true_false(question: str) -> bool:
    """Yes or no, true or false, converges or diverges: two answers are possible."""
    text = _QUOTED.sub(" ", prose(question)).strip()
    asks_value = bool(_VALUE.search(text))
    if _TRUE_FALSE.search(text):
        return not asks_value
    if whether := _WHETHER.search(text):
        return not asks_value and not _LISTED.search(text[whether.end() :])
    asking = [s for s in map(str.strip, _SENTENCE.split(text)) if s.endswith(("?", "？"))]
    if not asking or asks_value or _ASKS_WHAT.search(asking[-1]) or _LISTED.search(asking[-1]):
        return False
    return bool(_ASKS_YES_NO.search(asking[-1]))


# Proof

_PROVE = re.compile(
    rf"(?:^|[.;:!?。；！？,，\n]\s*|\b(?:to|and|then|hence|or|please|also|{MATH}) +|\)\s*|(?<=[{HAN}]))"
    r"(?:(?:prove|show|verify|demonstrate|deduce|justify|establish|conclude|disprove|argue|explain why|confirm)\b"
    rf"(?=,? *(?:that|the\b|or\b|an?\b|any\b|why\b|:|,|{MATH}|[a-z]*ly\b))|explain why\b"
    r"|(?:give|write|write down|provide) (?:down )?(?:an? )?(?:\w+ )?proof\b|proof\s*:)"
    r"|(?:求证|证明)",
    re.I,
)


def is_proof(question: str) -> bool:
    """Something is to be proved, and no value is asked for beside it."""
    text = prose(question)
    return bool(_PROVE.search(text)) and not _VALUE.search(text)
