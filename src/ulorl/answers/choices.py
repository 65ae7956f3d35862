r"""Finds which options an answer to a multiple-choice question chooses.

It reads `(B)`, `B.`, `B) 7 cm`, `option B`, `\text{B}`, `A, C`, sentences, and the text of an option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase

from ulorl.answers.normalisation import exact_form, strip_typesetting
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.types import Problem

_LETTER = r"\(?\[?([A-Za-z])\]?\)?[.:]?"
_LETTERS = re.compile(rf"{_LETTER}(?:(?:\s*(?:,|;|&|/|、|，)\s*(?:and\s|&\s)?|\s+and\s+|\s*[和与及]\s*|\s+){_LETTER})*")
_RUN = re.compile(r"[A-J]{2,10}")
_NO_HEAD = r"(?!\s*(?:or|and|nor|is|are|was|isn['’]t|but|[,;/&])(?![A-Za-z]))"
_HEAD = re.compile(rf"[(\[]([A-Za-z])[)\]][.:]?(?=\s){_NO_HEAD}|([A-Z])[).:]\s*(?=\S){_NO_HEAD}|([a-z])\)\s*\S")
_SAID = re.compile(
    r"\b(?:options?|choices?|answers?)(?:\s+(?:is|are))?\s*[:=]?\s*[(\[]?([A-Z])(?![A-Za-z'’])|[(\[]([A-Z])[)\]]"
)
_FILLER = re.compile(
    r"(?!(?:the )?(?:options|choices) are\b)(?:the |my |final |correct |best )*"
    r"(?:options?|choices?|answers?)(?: (?:is|are))?\s*[:=]?\s+",
    re.IGNORECASE,
)

# Sentences are read in lower case, each letter (or list of letters) in them replaced by its number: "so ⟨0⟩ is right".
# A bare A before a word is an article and a bare I a pronoun; N = 5 is no option.
_NO_ARTICLE = (
    r"A(?! (?!(?:and|are|as|based|because|but|by|due|for|from|given|here|is|isn|must|nor|not|or|seems|should|since|was|"
    r"where|which|with)\b)[a-z])"
)
_ONE = (
    r"(?:[(\[（]\s?[A-Za-z]\s?[)\]）]"
    rf"|(?<![A-Za-z'’\\])(?:[B-HJ-Z]|{_NO_ARTICLE})(?![A-Za-z'’]| ?[=<>+^_]))"
)
_GROUP = re.compile(
    r"(?<![A-Za-z])(?=[A-J]{2})A?B?C?D?E?F?G?H?I?J?(?![A-Za-z])"
    rf"|{_ONE}(?: ?(?:[,;/&、，]|\b(?:and|or|nor)\b|[和与及或]) ?(?:(?:and|or|nor) )?(?:options? )?{_ONE})*"
)
_G = r"⟨(\d+)⟩"
_BE = r"(?:(?:is|are|was|were|(?:must|should|would|will|can only|could only|ha(?:s|ve) to|seems? to) be)\b|['’]s\b)"
_SURELY = r"(?:(?:clearly|definitely|indeed|thus|therefore|then|also|most likely|probably|actually|simply),? ){0,3}"
_BEFORE = (
    r"(?:(?:the|an?|be|only|correct|right|best|final|both|options?|choices?|answers?|letters?|statements?)\b ?){0,5}"
    r"(?:选项|答案)?[:：]? ?"
)
_REJECTED = re.compile(
    r"(?:\b(?:not|cannot|never|neither|rather than|instead of|unlike|except|rul(?:e|es|ed|ing) out"
    rf"|(?:eliminat|exclud|reject|discard)(?:es?|s|ed|ing))\b|n['’]t\b|不能?选|不是|排除|而非) ?{_BEFORE}{_G}"
    rf"|(?<!correct )(?<!right )(?<!best )(?<!final )\b(?:options|choices)(?: given)? (?:are|include):? ?{_G}"
    rf"|\b(?:none|neither) of (?:the )?{_BEFORE}{_G} ?{_BE} ?\w*"
    rf"|{_G} ?{_BE} ?{_SURELY}(?:not\b(?! only)|wrong|incorrect|false|eliminated|ruled out|excluded)[\w ]{{0,30}}"
    rf"|{_G} ?(?:(?:is|are|was|were|ca|could|would|should)n['’]t|can ?not|does not|do not)\b[\w ]{{0,30}}"
    rf"|{_G} ?选?项? ?(?:都?是?)(?:错误?|不正确|不对)的?"
)
_ENDS = r"(?= ?(?:$|[.,;:!。，；！()（）—–-]|(?:because|since|as|by|which|where|but|and not)\b|[因由]))"
_AFFIRMED = re.compile(
    rf"\bans(?:wer)?\.? ?[-–:：] ?{_BEFORE}{_G}"
    r"|\b(?:answers?|option|choice|solution|(?:correct|right|best|final) (?:options|choices))"
    rf"(?: (?:to|for|of) [^.,;:]{{1,60}}?)? ?(?:{_BE}|[:=：]) ?{_SURELY}{_BEFORE}{_G}"
    rf"|\b(?:choos(?:e|ing)|chose|select(?:ed|ing)?|pick(?:ed|ing)?|go(?:ing)? with|take|say|left with|leaves?)"
    rf" {_BEFORE}{_G}"
    rf"|(?:\b(?:therefore|thus|hence|so|consequently|conclusion|finally|clearly|obviously)\b|{_BE}|∴|=>|->|→) ?[,:]? ?"
    rf"{_SURELY}(?:it ?{_BE} |we (?:get|have) )?{_SURELY}{_BEFORE}{_G}{_ENDS}"
    rf"|{_G} ?{_BE} ?{_SURELY}(?:(?:the|my|our) )?(?:(?:only|single|best|most|one) ){{0,2}}"
    r"(?:correct|right|true|best|answers?|choices?|options?|appropriate|accurate|suitable|valid)\b"
    r"|(?:答案|故|因此|所以|应该?|选择?|选项)(?:[ :：,，]|选择?|选项|答案|应该?|就?是|为){0,5}"
    rf"{_G}(?! ?选?项?是?[错不])"
    rf"|{_G} fits?\b(?! not)"
    rf"|{_G} ?选?项?都?是?(?:正确|对)"
)
_SEARCHED = 20_000  # characters at the end of a text: text before them is no conclusion
_LEADING = re.compile(rf" ?{_G}{_ENDS}")
_NUMBERED = re.compile(_G)
_SENTENCE = re.compile(r"(?<=[.!?！？])(?=\s)|(?<=[。！？])|\n")
_MARKUP = re.compile(r"[*`$\"“”]|\\[()\[\]]")


def problem_options(problem: Problem) -> Mapping[str, str]:
    """Return the text of each option by its letter, from `problem.meta["options"]` (or "choices").

    The value is a list, or an object with letters for its keys. Empty where a problem has none. Raises UserError for
    anything else.
    """
    options = problem.meta.get("options", problem.meta.get("choices"))
    if options is None:
        return {}
    if isinstance(options, list) and len(options) <= len(ascii_uppercase):
        return {letter: _bare(str(text), letter) for letter, text in zip(ascii_uppercase, options, strict=False)}
    if isinstance(options, Mapping) and all(len(key) == 1 and key.isalpha() for key in options):
        return {letter.upper(): _bare(str(text), letter) for letter, text in options.items()}
    text = (
        f"problem {problem.id}: its options are {options!r}; expected a list of at most 26 texts, or letters with texts"
    )
    raise UserError(text, code=ErrorCode.REWARD_PROBLEM, record=problem.id)


def _bare(text: str, letter: str) -> str:
    """Return an option's text without its letter."""
    return exact_form(re.sub(rf"^\s*[(\[]?{letter}[)\].:]\s*", "", text, flags=re.IGNORECASE))


def chosen_letters(text: str, options: Mapping[str, str] | None = None) -> frozenset[str] | None:
    """Return the letters that an answer chooses; None when it names none, or when the choice is not clear.

    options: each letter with the `exact_form` of its text. If they are given, an option's text counts as its letter,
    and other letters are no options.
    """
    options = options or {}
    by_text = [letter for letter, option in options.items() if option and option == exact_form(text)]
    if len(by_text) == 1:
        return frozenset(by_text)
    bare = strip_typesetting(text).rstrip(".").strip()
    filler = _FILLER.match(bare)
    letters = _letters(bare[filler.end() :] if filler else bare)
    return letters if letters and (not options or letters <= options.keys()) else None


def _letters(text: str) -> frozenset[str]:
    if _LETTERS.fullmatch(text):
        return _named(text)
    if _RUN.fullmatch(text) and list(text) == sorted(set(text)):  # ACD; no word
        return frozenset(text)
    if head := _HEAD.match(text):
        return frozenset(next(letter for letter in head.groups() if letter).upper())
    said = _Said(text)
    stated = stated_choice(text)
    if stated is not None:
        return stated[1]
    if leading := _LEADING.match(said.kept):
        return said.groups[int(leading[1])]
    left = _NUMBERED.findall(said.kept)
    if said.rejected and len(left) == 1:  # not A but C
        return said.groups[int(left[0])]
    named = {letter for pair in _SAID.findall(text) for letter in pair if letter}
    return frozenset(named) if len(named) == 1 and not said.rejected else frozenset()


def _named(group: str) -> frozenset[str]:
    """Return the letters of a list; none of "A or B"."""
    if re.search(r"\b(?:or|nor)\b|或", group):
        return frozenset()
    return frozenset(re.sub(r"\b(?:and|options?)\b|[^A-Za-z]", "", group).upper())


class _Said:
    """A sentence with numbers in the place of its letters. kept: the sentence without the letters that it rejects."""

    def __init__(self, sentence: str) -> None:
        self.groups: list[frozenset[str]] = []
        marked = _GROUP.sub(self._number, " ".join(_MARKUP.sub(" ", sentence).split())).lower()
        self.kept = _REJECTED.sub(" ", marked)
        self.rejected = self.kept != marked

    def _number(self, group: re.Match[str]) -> str:
        self.groups.append(_named(group[0]))
        return f"⟨{len(self.groups) - 1}⟩"


def stated_choice(text: str) -> tuple[str, frozenset[str]] | None:
    """Return the last sentence that says which option is right ("so C is correct", "故选：D"), and the letters.

    There are no letters where it names several without a choice. None: no sentence says it.
    """
    for sentence in reversed(_SENTENCE.split(text[-_SEARCHED:])):
        said = _Said(sentence)
        numbers = [number for match in _AFFIRMED.finditer(said.kept) for number in match.groups() if number]
        found = {said.groups[int(number)] for number in numbers}
        if found:
            return sentence.strip(), found.pop() if len(found) == 1 else frozenset()
    return _only_line(text[-_SEARCHED:])


def _only_line(text: str) -> tuple[str, frozenset[str]] | None:
    """The only line that is an option, as in "B) 7 cm" before an explanation; several lines list the options."""
    stripped = map(strip_typesetting, text.splitlines())
    lines = [line for line in stripped if _LETTERS.fullmatch(line) or _HEAD.match(line)]
    return (lines[0], _letters(lines[0])) if len(lines) == 1 else None
