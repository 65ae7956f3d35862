"""Finds questions without a single short answer: sub-questions, multiple choice, true or false, proof.

The rules look at the prose and at labelled lists, one function for each shape. They search for what is asked: a
labelled list alone shows nothing, since conditions and cases are labelled too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise

from ulorl.answers.normalisation import HAN, comparable_answer
from ulorl.cleaning.labelled_lists import LabelledList, bullets, labelled_lists
from ulorl.cleaning.question_text import MATH, prose, undrawn, words

YES_NO = re.compile(r"yes|no|true|false|是|否|对|错|正确|错误")


class Shape(StrEnum):
    """A kind of question without a short answer. The values are the names of the steps."""

    SUBQUESTIONS = "subquestions"
    MULTIPLE_CHOICE = "multiple_choice"
    TRUE_FALSE = "true_false"
    PROOF = "proof"


@lru_cache(maxsize=1 << 17)
def question_shape(question: str, answer: str = "") -> Shape | None:
    """Return the first shape that a question has; None for one that asks for a short answer.

    answer: its reference, if there is one. An option's letter or Yes shows the shape where the question does not.
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
_ASK_PART = re.compile(
    r"证明|求证|讨论|判断|说明|是否|能否|比较|化简|画出|化为|估计|什么|应[选购]|指出|给出|解(?:不等式|方程|关于)"
)  # of a part, beside _ASK
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
_IS_HAN = re.compile(f"[{HAN}]")
_EACH_HAN = re.compile(r"(?:证明|求证|求|计算|讨论|判断|回答|解答|解)(?:下列|以下|如下)?[^。？?；;]{0,8}[:：]?\s*$")
_MORE = re.compile(
    r"[.?!;]\s*(?:also|additionally|moreover|furthermore|in addition|secondly|second)\b,? +"
    rf"(?:{_VERBS}|what (?:is|are)|how (?:many|much))\b",
    re.I,
)
_MORE_HAN = re.compile(
    r"(?:求|写出|计算|证明|判断)[^。；]*[,，;；。]\s*(?:并|再|然后|同时)(?:且)?(?:求(?!出所有)|证明|写出|判断|讨论|说明理由|指出)"
)
_IMPERATIVE = re.compile(
    r"(?:(?:now|then|next|also|finally),? +)?"
    r"(?:find|compute|calculate|determine|evaluate|solve)\b(?! (?:if|whether)\b)",
    re.I,
)
_OF_BOTH = re.compile(  # a second sentence that asks for one value of what the first one finds
    r"\b(?:sum|product|difference|remainder|ratio|number|value|answer|such|those|these|this|their|your|them|they|it|"
    r"its|so|result|solutions?|total|mean|average|reciprocal|"
    r"(?:all|both|each) of)\b|[-+*^/]|\\(?:frac|sqrt|cdot|times)",
    re.I,
)
_SENTENCES = re.compile(r"(?<=[.?!$])\s+(?=[A-Z])")
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
    """Return whether several questions are asked, and no single value of all of them at the end."""
    return has_parts(question) or _asks_again(question)


def has_parts(question: str) -> bool:
    """Return whether the parts of a list ask, each for itself."""
    if _ONE_ANSWER.search(prose(question)):
        return False
    if any(_asks_each(found) for found in labelled_lists(question)):
        return True
    return sum(bool(_ASK.search(prose(line))) for line in bullets(question)) > 1


def _asks_each(found: LabelledList) -> bool:
    parts = [prose(body).strip() for body in found.bodies]
    asks = [bool(_ASK.search(part) or (found.style != "A" and _ASK_PART.search(part))) for part in parts]
    if (asks[0] and sum(asks) >= 2) or (sum(asks) >= 2 and found.style != "A" and asks[-1] and len(asks) <= 3):
        return True
    if (
        asks[0] and _IS_HAN.search(found.stem) and _ASK_PART.search(found.tail)
    ):  # the last part continues after its line
        return True
    if found.style != "A" and _EACH_HAN.search(prose(found.stem).strip()):
        return True
    return found.style != "A" and bool(_EACH.search(prose(found.stem))) and not _ASK.search(prose(found.tail))


def _asks_again(question: str) -> bool:
    """Return whether running text asks another question that is not the first one in other words."""
    text = _QUOTED.sub(" ", prose(question))
    if _ONE_ANSWER.search(text):
        return False
    if _TWO_IN_ONE.search(text) or any(_ASK.search(text[: more.start() + 1]) for more in _MORE.finditer(text)):
        return True
    if _MORE_HAN.search(text) or _imperatives(question):
        return True
    sentences = [s.strip() for s in re.split(r"(?<=[?？])", text)]
    twice = any(
        _QUESTION.search(a) and _QUESTION.search(b) and not _OF_THE_FIRST.search(b) for a, b in pairwise(sentences)
    )
    return twice and not _SAME_AGAIN.search(text)


def _imperatives(question: str) -> bool:
    """Return whether "Find X. Find Y." asks for two values: Y is neither a value of X nor X in fewer words."""
    sentences = [s for s in _SENTENCES.split(undrawn(question)) if _IMPERATIVE.match(s)]
    if len(sentences) < 2 or _SAME_AGAIN.search(question) or _OF_BOTH.search(" ".join(sentences[1:])):
        return False
    first, second = (words(sentence)[1:] for sentence in sentences[:2])
    return len(first) <= 15 and not set(second) <= set(first)


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
_BLANK_AT_END = re.compile(  # raw: the formula that the options complete
    r"(?:=|[(（]\s*(?:\\q?quad\s*|\\\s)*(?:[)）]|$))\s*(?:\$|\\\)|\\\])?[\s。.,，]*$"
)
_COMPARES = re.compile(
    r"\bwhich (?:\w+ )?(?:is|has|are|have|was) (?:the )?"
    r"(?:more|less|most|least|(?!other\b)\w+er|\w+est|correct|right)\b",
    re.I,
)
_RELATION = re.compile(r"[<>=]|\\(?:geq?|leq?|neq?|in|mid)\b")
_DEMANDS = re.compile(r"条件|such that|conditions?|satisf|properties|properties|following:|as follows|rules?\b", re.I)


def is_multiple_choice(question: str, answer: str = "") -> bool:
    """Return whether one of given answers is to be chosen, with or without letters before them."""
    text = prose(question)
    if _CHOOSE.search(text) and not _COUNTING.search(text):
        return True
    return option_list(question, answer) is not None


def option_letter(answer: str) -> str:
    """Return the label of an option, in upper case, if the answer is one; else an empty text."""
    bare = comparable_answer(answer).strip("{}().:")
    return bare.upper() if len(bare) == 1 and bare in "abcdefghij" else ""


def option_list(question: str, answer: str = "") -> LabelledList | None:
    """Return the list of a question's options; None if it has none.

    It is a list of at least three capital letters none of whose items asks; or of other labels for short values right
    after a question; or any list if the answer is one of its letters.
    """
    for found in labelled_lists(question):
        bodies, stem = [body.strip() for body in found.bodies], prose(found.stem).rstrip(" $\n\\")
        if found.style == "part" or not all(bodies) or any(_ASK.search(prose(body)) for body in bodies[:-1]):
            continue
        compares = bool(_COMPARES.search(prose(f"{bodies[-1]} {found.tail}")))
        if _ASK.search(prose(bodies[-1])) and not compares:
            continue
        if _ASK.search(prose(found.tail)) and not (compares or _CHOOSE.search(prose(found.tail))):
            continue
        named = found.style in ("A", "a") and (
            option_letter(answer) in map(str.upper, found.labels) or _among(answer, bodies)
        )
        if named or compares or _CHOOSE.search(prose(question)):
            return found
        if len(bodies) < 3:
            continue
        if found.style == "A" and (_LEADS.search(stem) or _ASK.search(stem) or _BLANK_AT_END.search(found.stem)):
            return found
        if found.style == "A" and len(bodies) > 3 and not found.tail.strip() and not _DEMANDS.search(stem):
            return found
        short = not _DEMANDS.search(stem[-90:]) and all(
            len(body) <= 40 and not _RELATION.search(body) for body in bodies
        )
        if found.style in ("a", "1") and short and re.search(r"(?:\?|？|\b(?:is|are|equals)\b:?)\s*$", stem):
            return found
    return None


def _among(answer: str, bodies: Sequence[str]) -> bool:
    """Return whether the answer is the text of an option."""
    said = comparable_answer(answer)
    return bool(said) and len(bodies) > 2 and said in map(comparable_answer, bodies)


# True or false

_WHETHER = re.compile(
    rf"{_START}(?:(?:then|please|hence),? +)*(?:determine|decide|check|verify|investigate|assess|tell|state|test|"
    r"examine|find out|establish|say|indicate|explain) "
    r"(?:whether|if)\b|^whether\b|^if .{0,200}, determine (?:whether|if)\b",
    re.I,
)
_LISTED = re.compile(r"(?:\w[\w ]{0,20}, ){2,}(?:\w[\w ]{0,20},? )?or \w[\w ]*")
_TRUE_FALSE = re.compile(
    r"\btrue\s*(?:o[rf]|/)\s*false\b(?! (?:questions?|tests?|exam|quiz|problems?))|\byes or no\b"
    r"|\b(?:truth|validity) of the (?:following )?(?:statement|claim|assertion)\b"
    r"|(?<!可)判断(?!.*(?:求|多少))|是否[^。]*[？?。]?\s*$|对吗|吗[？?]\s*$|正确还是错误",
    re.I,
)
_ASKS_YES_NO = re.compile(rf"(?:^|[,:;.\u00a4\n] *)(?:then |so |and |or |but )?{_YES_NO} ", re.I)
_ASKS_AT_START = re.compile(rf"{_YES_NO} (?:the|an?|there|it|this|that|all|every|any|{MATH})\b", re.I)
_ASKS_WHAT = re.compile(
    r"\b(?:what|how)\b|^(?:\w+ )?which\b"
    rf"|\bwhich (?:\w+ ){{0,3}}(?:numbers?|integers?|values?|digits?|letters?|{MATH})",
    re.I,
)
_VALUE = re.compile(  # asked for, alone or with other requests
    r"(?:^|(?<=[.;:!?\n])|(?<=, )|(?<=\band ))\s*(?:(?:then|also|hence|and|if so|if not|please|thus),? +)*"
    r"(?:find(?! (?:out )?(?:whether|if)\b)|compute|calculate|evaluate|solve|give|express"
    r"|determine(?! (?:whether|if)\b))\b"
    r"(?! (?:an? )?(?:justification|proof|reasons?|explanation|your reason|the truth|the validity))"
    r"|\b(?:what|how (?:many|much|long|far))\b[^.?]*\?|(?:^|[.;:!?\n,]\s*)(?:for |in |at )?how (?:many|much)\b"
    r"|\b(?:can|could) you (?:find|give|tell|compute|calculate|determine)\b|求(?!证)|多少",
    re.I,
)
_SENTENCE = re.compile(r"(?<=[.?!。？！])(?<!\.\.)[)\"”']*\s+|(?<=[。？！])|\n\s*\n")


def is_true_false(question: str) -> bool:
    """Return whether only two answers are possible: yes or no, true or false, converges or diverges."""
    text = _QUOTED.sub(" ", prose(question)).strip()
    asks_value = bool(_VALUE.search(text))
    if _TRUE_FALSE.search(text):
        return not asks_value
    if whether := _WHETHER.search(text):
        return not asks_value and not _LISTED.search(text[whether.end() :])
    sentences = [s.strip() for s in _SENTENCE.split(text)]
    asking = [s for s in sentences if s.endswith(("?", "？")) or _ASKS_AT_START.match(s)]
    if not asking or asks_value or _ASKS_WHAT.search(asking[-1]) or _LISTED.search(asking[-1]):
        return False
    return bool(_ASKS_YES_NO.search(asking[-1]))


# Proof

_PROVE = re.compile(
    rf"(?:^|[.;:!?。；！？,，\n]\s*|\b(?:to|and|then|hence|or|please|also) +|[{MATH})}}\]*]\s*|(?<=[{HAN}]))"
    r"(?:(?:prove|show|verify|demonstrate|deduce|justify|establish|conclude|disprove|argue|explain why|confirm)\b"
    rf"(?=,? *(?:that|the\b|or\b|an?\b|any\b|why\b|:|,|{MATH}|[a-z]*ly\b))|explain why\b"
    r"|(?:give|write|write down|provide) (?:down )?(?:an? )?(?:\w+ )?proof\b|proof\s*:)"
    r"|(?:求证|证明)",
    re.I,
)


_GIVEN_AWAY = re.compile(  # What is X? Show that it is 588.
    r"(?:show|prove|verify|demonstrate|confirm) (?:that )?(?:it|this|the (?:answer|value|result|limit|sum|number|total|"
    r"minimum|maximum|area|probability|integral)(?: \w+){0,3}) (?:is|equals|is equal to|must be|comes to) "
    rf"(?:exactly |equal to )?(?:{MATH}|-?\d)",
    re.I,
)


def is_proof(question: str) -> bool:
    """Return whether something is to be proved.

    No value may be asked for beside the proof, unless the question gives the value away.
    """
    text = prose(question)
    if _GIVEN_AWAY.search(text):
        return True
    return bool(_PROVE.search(text)) and not _VALUE.search(text)
