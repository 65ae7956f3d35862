"""Computes normal forms of questions and answers, each for one purpose:

- `clean_characters` repairs the characters of raw text and keeps its content.
- `strip_typesetting` leaves what a reader sees of an answer.
- `exact_form` decides whether two answers are the same text (reward.kind=exact, options of multiple choice).
- `comparable_question` and `comparable_answer` find copies in data sets; they drop more than a judge may (x² is x2).
- `quantity_spelling` prepares an answer for the reader of numbers with units.

Every function takes time linear in the length of its text.
"""

from __future__ import annotations

import re
import unicodedata

HAN = r"\u3400-\u9fff\uf900-\ufaff"  # Chinese characters, for a character class
LAYERS = 4  # of wrappers around each other

# clean_characters
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

# strip_typesetting and exact_form
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname|boxed|fbox)\s*\{([^{}]*)\}"
)
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|textstyle)(?![A-Za-z])|\\!")
_SPACE = re.compile(r"\\q?quad(?![A-Za-z])|\\[,;: ]|~")
_PUNCTUATION = re.compile(r" ?([^\w\s\\.'\"]) ?")
_ENCLOSED = re.compile(
    r"\$\$(.*)\$\$|\$(.*)\$|\\\((.*)\\\)|\\\[(.*)\\\]|\*\*(.*)\*\*|\"(.*)\"|“(.*)”|`(.*)`", re.DOTALL
)
_TRAILING = " \t\r\n.。"

# comparable_question
_TOKEN = re.compile(rf"[{HAN}]|[^\W\d_{HAN}]+|\d+|[^\w\s]", re.U)
_SPACING = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|nolimits|quad|qquad|big|Big|bigg|Bigg)(?![A-Za-z])"
    r"|\\[,;:! ]|[$~]|\\[()\[\]]"
)

# quantity_spelling
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_VULGAR = re.compile("(?<=[0-9])(?=[¼-¾⅐-⅞])")
_ROMAN = r"text|text(?:bf|rm|normal|it|up|sf|tt)|math(?:rm|bf|it|sf|tt|normal)|[mh]box|operatorname|emph|unit|si"
_SPELLINGS = (  # in this order
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\\(?:left|right|displaystyle|big|Big)(?![A-Za-z])|\{\s*\}"), ""),
    (
        re.compile(r"\s*\^\s*\{?\s*(?:\\circ|\\text\{o\}|o(?=\}|\s*[CFK]\b))\s*\}?|\\(?:degree|circ)(?![A-Za-z])|[º˚]"),
        "°",
    ),
    (re.compile(r"\{\s*°\s*\}"), "°"),
    (re.compile(r"\\celsius(?![A-Za-z])"), "°C"),
    (re.compile(r"\^\s*\{\s*([-+]?\d+)\s*\}"), r"^\1"),
    (re.compile(r"\\(?:up)?mu(?![A-Za-z])\s*"), "µ"),
    (re.compile(r"\\(?:up)?Omega(?![A-Za-z])|\\ohm(?![A-Za-z])"), "Ω"),
    (re.compile(r"\\AA(?![A-Za-z])|\\(?:r|mathring)\s*\{?A\}?"), "Å"),
    (re.compile(r"\\ell(?![A-Za-z])"), "L"),
    (re.compile(r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1 ⟨\2⟩"),
    *((re.compile(rf"\\(?:{_ROMAN})\s*\{{([^{{}}]*)\}}"), r"⟨\1⟩"),) * 2,
    (re.compile(r"\{\s*\\(?:rm|bf|it)(?![A-Za-z])([^{}]*)\}|\\rm(?![A-Za-z])([^{}]*)$"), r"⟨\1\2⟩"),
    (re.compile(r"⟨\s*([-+]?[$€£¥]?\d[\d.,]*(?:\^[-+]?\d+)?|[$€£¥])\s*⟩"), r"\1"),  # only the number is roman
    (re.compile(r"^\s*⟨\s*(?=[-+]?\s*[$€£¥]?\s*\d)"), ""),  # all is
    (re.compile(r"µ\s*⟨\s*|⟨\s*µ\s*⟩\s*⟨?\s*"), "⟨µ"),
    (re.compile(r"⟨\s*([kMGm])\s*⟩\s*Ω"), r"⟨\1Ω⟩"),
    (re.compile(r"(?<=\d)(?:,\\!|\{,\}|\\,|\\!|\\ |\u2009|\u202f)(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\\[,;:! ]|~|\\(?:q?quad|thinspace)(?![A-Za-z])|\s"), " "),
    (re.compile(r"\\(?:approx|simeq|sim)(?![A-Za-z])"), "≈"),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*\{([^{}]*)\}\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"√ ?(?:(\d+)|\(([^()]*)\))"), r"\\sqrt{\1\2}"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\(?:cdot|times|bullet|ast)(?![A-Za-z])|[⋅∙•×]"), "·"),
    (re.compile(r" +"), " "),
    (re.compile(r"\\frac ?\{( ?⟨[^{}\\]*)\} ?\{([^{}\\]*)\}"), r"(\1)/(\2)"),  # of units
)
_SYMBOL = r"(?:\\?delta ?)?\\?[A-Za-z]\w{0,9}(?:_ ?(?:\w|\{[^{}=]{1,20}\}|⟨[^⟨⟩=]{1,20}⟩))?"
_SAID = re.compile(rf"(?:{_SYMBOL} ?=|≈|=|about |approximately |roughly ) ?", re.IGNORECASE)


def clean_characters(text: str) -> str:
    """Return raw text with one spelling of characters and spaces; a second application changes nothing.

    Use it on the questions and answers of data sets. It removes invisible characters, restores LaTeX commands that an
    export took for escapes, and composes characters (Unicode NFC, so that x² stays x²).
    """
    text = _MANGLED.sub(lambda found: _ESCAPES[found[0]], text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    text = _SPACES.sub(" ", _ESCAPED_NEWLINE.sub("\n", text))
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", lines).strip()


def strip_typesetting(text: str) -> str:
    r"""Return an answer without \text{} and its like, spacing commands, enclosing dollar signs, quotes and Markdown.

    Use it where the remaining text is read further. Letter case and punctuation stay; runs of spaces become one.
    """
    text = _unwrapped(text)
    text = " ".join(_SPACE.sub(" ", _LAYOUT.sub("", text)).split())
    for _ in range(LAYERS):
        if not (enclosed := _ENCLOSED.fullmatch(text)):
            break
        text = next(inner for inner in enclosed.groups() if inner is not None).strip()
    return text


def _unwrapped(text: str) -> str:
    for _ in range(LAYERS):
        text = _WRAPPER.sub(r"\1", text)
    return text


def exact_form(text: str) -> str:
    """Return the form that reward.kind=exact compares: `strip_typesetting` in lower case.

    Use it to decide whether two answers are the same text. A full stop at the end and spaces beside punctuation do not
    count.
    """
    text = strip_typesetting(unicodedata.normalize("NFC", strip_typesetting(text).rstrip(_TRAILING)))
    return _PUNCTUATION.sub(r"\1", text).casefold()


def comparable_question(text: str) -> str:
    """Return one form for questions that differ only in typesetting: letter case, spaces, kinds of fractions.

    Use it to find copies of questions. The tokens are separated by single spaces.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _SPACING.sub(" ", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return " ".join(_TOKEN.findall(text)).rstrip(" .?!:;,")


def comparable_answer(text: str) -> str:
    r"""Return one form for answers that differ only in typesetting: `comparable_question` without \text{} and spaces.

    Use it to find copies of answers in data, not to judge an answer: it drops a unit's spaces and the dot of "B.".
    """
    return comparable_question(_unwrapped(text)).replace(" ", "")


def quantity_spelling(text: str) -> str:
    """Return an answer in the one spelling that `quantities.read` expects.

    LaTeX commands become characters (° · √ µ), ⟨ and ⟩ enclose groups of roman text, and "x =" or "about" at the
    start is removed.
    """
    text = text.strip().strip("*`").strip()
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        text = text.removeprefix(opening).removesuffix(closing)
    if len(re.findall(r"(?<!\\)\$", text)) % 2 == 0:
        text = re.sub(r"(?<!\\)\$", "", text)
    text = text.replace(r"\$", "$").replace("º", "°")
    text = _SUPERSCRIPT.sub(lambda raised: "^" + raised[0].translate(_SUPERSCRIPTS), text)
    text = _VULGAR.sub(" ", text)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/")  # ℃, Ω, Å, ½, full-width digits
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    text = text.strip().rstrip(".,;").strip()
    for _ in range(LAYERS):
        if not (said := _SAID.match(text)):
            break
        text = text[said.end() :]
    return text
