"""Finds out what a question asks for: values without order, several values in a given order, one variable."""

from __future__ import annotations

import re

_END = re.compile(r"(?<=[.?!])\s+|(?<=[.?!]\\\))\s*|(?<=[.?!]\\\])\s*|(?<=[.?!]\$)\s+")
_ASKS = re.compile(
    r"\b(?:find|determine|compute|calculate|solve|enter|express|list|give|state|what|which|how)\b|\?", re.I
)
_MATH = r"(?:\$[^$]+\$|\\\([^()]*\\\)|(?<![\w\\])[a-z](?:_\w)?(?![\w']))"
_KINDS = r"(?:solutions|values|roots|zeroe?s|numbers|integers|primes|reals|degrees|constants)"
_UNORDERED = re.compile(
    rf"\b(?:all|possible|these|which|what|both|two|the)(?: (?:the|of|such|[a-z]*real|complex|rational|integer|integral"
    rf"|whole|natural|positive|negative|nonzero|non-zero|prime|possible"
    rf"|distinct|different|exact|complex-valued))* {_KINDS}\b",
    re.I,
)
_ONE_OF = re.compile(r"\b(?:all|possible|every|any|which|solve|solutions|roots|zeroe?s)\b", re.I)
_ORDERED = re.compile(
    r"\border(?:ed)?\b|respectively|sequence|permutation|\bvector|\bfirst\b"
    r"|\b(?:increas|decreas|ascend|descend)ing\b|\blist .* in\b"
    r"|\b(?:smallest|least|lowest|largest|greatest|highest|minimum|maximum|minimal|maximal|min|max)\b"
    r"|\bsystems?\b|simultaneous|\bpairs?\b|triples?\b|tuples?\b|coordinates?\b|\bpoints?\b|\beach of\b"
    r"|\bmedian\b|\bquotient\b",
    re.I,
)
_ORDERED_SET = re.compile(r"\bordered\b|respectively|sequence|permutation|tuples?\b", re.I)
# "the values of p and q", "$x$, $y$", "$(x, y)$", "find x and y"
_SEVERAL = re.compile(
    r"\b(?:values?|solutions?|roots|zeroe?s|numbers?|integers?|constants?|coefficients?|primes?|parameters?|variables?"
    r"|reals?|of|for|find|determine|compute|calculate|solve|enter|give|state|is|are|express)"
    rf",?\s+(?:the |both |all )?{_MATH}\s*(?:,|and\b|&|or\b|\\text{{ ?and ?}})+\s*(?:of |for |the )?{_MATH}",
    re.I,
)
_SEVERAL_INSIDE = re.compile(
    r"(?:values?|solutions?|numbers?|integers?|constants?|primes?|reals?|of|for|find|determine|compute|solve"
    r"|is|are)\s+(?:the )?"
    r"(?:\$|\\\()\s*\(?\s*[a-zA-Z](?:_\{?\w\}?)?\s*,\s*\\?[a-zA-Z.]",
    re.I,
)
_TWO_THINGS = re.compile(
    r"\band\s+(?:then\s+|also\s+)?(?:the|its|their|find|determine|compute|calculate|what|how)\b", re.I
)
_VARIABLE = re.compile(
    r"\b(?:values?|numbers?|integers?|solutions?|roots|constants?|primes?|degrees?)"
    r"(?: (?:of|for|to))?(?: the)?(?: \w+)?"
    r" (?:\$ ?([a-z]),? ?\$|\\\( ?([a-z]),? ?\\\)|([b-z])(?![\w']))",
    re.I,
)
_FOR_VARIABLE = re.compile(r"\bsolve for (?:\$ ?([a-z]) ?\$|\\\( ?([a-z]) ?\\\)|([b-z])\b)", re.I)
_NAME = re.compile(r"\$\s*([a-z])\s*\$|(?<![a-zA-Z\\])([b-hj-z])(?![a-zA-Z'])")
_ANY_OF_THEM = re.compile(  # another answer may be as right
    r"\beither of\b|\bany (?:one|such|of the)\b|\bonly one of\b|\bexample of\b|\bgive an example\b|\bone possible\b"
    r"|\ba possible\b|\b(?:enter|give|find|name|state|list) (?:any|one|only one)\b(?! digit)",
    re.I,
)
_LENGTH_IS_FREE = re.compile(
    r"orthogonal|perpendicular|direction|normal|parallel|eigenvector|homogeneous|proportional", re.I
)
_MEASURE = re.compile(
    r"\bhow (?:much|many|long|far|tall|high|old|wide|deep|fast|heavy)\b"
    r"|\b(?:lengths?|distance|area|volume|radius|diameter|perimeter|circumference|height|width|depth|slope|side|units?|hours?|minutes?|days|years|inches|feet|cm|meters?|miles?"
    r"|dollars?|cents?|grams?|age|weight|speed|average|mean|median|time|[a-z]-?coordinate|intercept|sum of)\b",
    re.I,
)
_RATIO = re.compile(r"\bratio\b|\bprobability\b|\bfraction of\b|what fraction|percent|\bportion\b|\bchance\b", re.I)
_BASE = re.compile(
    r"\b(?:in|of|to|into|as a)(?: a)? base\b|\bbase[- ](?:\d|\$|\\\(|two|three|four|five|six|seven|eight|nine"
    r"|eleven|twelve|sixteen|[a-z]\b)|\bbinary\b|hexadecimal|\boctal\b",
    re.I,
)
_ROUNDED = re.compile(r"\bround|\bnearest\b|approximat|\bdecimal places?\b|significant|\bestimat", re.I)


def sentences(question: str) -> list[str]:
    """Return the sentences of a question that ask for something."""
    return [part for part in _END.split(question) if _ASKS.search(part)]


def unordered(question: str, either: bool = False) -> bool:
    """Return whether several values, as an answer, certainly have no order: all values, solutions or roots of one
    object. False where the question names an order, a system, or several objects to find.

    either: the values are joined by "or", so that the question needs no more than one object that is asked for.
    """
    asking = sentences(question)
    if any(pattern.search(part) for part in asking for pattern in (_SEVERAL, _SEVERAL_INSIDE, _TWO_THINGS)):
        return False
    if _ORDERED.search(question):
        return False
    return any((either or _ONE_OF.search(part)) and _UNORDERED.search(part) for part in asking)


def ordered_set(question: str) -> bool:
    """Return whether an answer in braces may have an order nevertheless."""
    return bool(_ORDERED_SET.search(question))


def variable(question: str) -> str:
    """Return the one variable whose values are asked for, or the only one that the question has; "" where this is
    uncertain."""
    names = set()
    for part in sentences(question):
        names |= {"".join(found) for found in (*_VARIABLE.findall(part), *_FOR_VARIABLE.findall(part))}
    if not names and not re.search(r"\brange\b", question, re.I):
        names = {"".join(found) for found in _NAME.findall(question)}
    return names.pop() if len(names) == 1 else ""


def several_right(question: str, vector: bool) -> bool:
    """Return whether another answer than the reference may be right too. vector: the answer is a tuple, and the
    question may want only its direction."""
    return bool(_ANY_OF_THEM.search(question) or (vector and _LENGTH_IS_FREE.search(question)))


def measure(question: str) -> bool:
    """Return whether the last sentence asks for a length, a time or the like, which is never stated in percent."""
    last = sentences(question)[-1:] or [question]
    return bool(_MEASURE.search(last[0]) and not _RATIO.search(last[0]))


def base(question: str) -> bool:
    """Return whether the digits may be in another base than ten."""
    return bool(_BASE.search(question))


def rounded(question: str) -> bool:
    """Return whether more digits than the reference has would be as good."""
    return bool(_ROUNDED.search(question))


def mentions(question: str, name: str) -> bool:
    """Return whether a letter, or the name of a Greek one, occurs in the question by itself."""
    bare = re.escape(name)
    return bool(re.search(rf"(?<![A-Za-z\\]){bare}(?![A-Za-z])|\\{bare}(?![A-Za-z])", question))
