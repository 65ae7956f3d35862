"""Steps `lengths` and `language`: drop questions of unusual length and questions in other languages."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import lru_cache, partial

from ulorl.answers.normalisation import HAN
from ulorl.cleaning.cleaning_config import LanguageConfig, LengthsConfig
from ulorl.cleaning.items import Drop, Item, Outcome, Step, per_item
from ulorl.cleaning.question_text import prose
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

_SCRIPTS = (  # of languages that need no statistics
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af]")),
    ("zh", re.compile(rf"[{HAN}]")),
)
_WORD = re.compile(r"(?<![\\\w])[^\W\d_]{2,}")
_OWN_SHARE = 0.2  # of the letters, from which on a script names the language


def check_length(settings: LengthsConfig) -> Step:
    """Return the step that drops questions that are too short or too long."""
    return per_item(partial(_check_length, settings=settings))


def _check_length(item: Item, settings: LengthsConfig) -> Outcome:
    letters = sum(map(str.isalnum, item.question))
    if letters < settings.min_chars:
        return Drop("short question", f"{letters} letters and digits")
    if len(item.question) > settings.max_chars:
        return Drop("long question", f"{len(item.question)} characters")
    return item


def check_language(settings: LanguageConfig) -> Step:
    """Return the step that drops questions in other languages. Raises UserError when py3langid is missing."""
    classify = _classifier()
    return per_item(partial(_check_language, settings=settings, classify=classify))


def _check_language(item: Item, settings: LanguageConfig, classify: Callable[[str], tuple[str, float]]) -> Outcome:
    found = language(item.question, classify, min_words=settings.min_words)
    if found is None or found[0] in settings.allowed or found[1] < settings.confidence:
        return item
    return Drop("language", f"{found[0]} ({found[1]:.3f})")


def language(
    question: str, classify: Callable[[str], tuple[str, float]], *, min_words: int
) -> tuple[str, float] | None:
    """Return the ISO 639-1 code of a question's language and its probability, judged by the prose alone.

    None when there is too little prose.
    """
    text = prose(question)
    letters = sum(map(str.isalpha, text))
    for code, script in _SCRIPTS:
        if letters and len(script.findall(text)) >= _OWN_SHARE * letters:
            return code, 1.0
    words = _WORD.findall(text)
    return classify(" ".join(words).lower()) if len(words) >= min_words else None


@lru_cache
def _classifier() -> Callable[[str], tuple[str, float]]:
    try:
        langid = importlib.import_module("py3langid.langid")
    except ImportError:
        raise UserError(
            'language.enabled=true needs py3langid: pip install "ulorl[data]"',
            code=ErrorCode.EXTRA_MISSING,
            key="language.enabled",
        ) from None
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)

    def classify(text: str) -> tuple[str, float]:
        code, probability = identifier.classify(text)
        return str(code), float(probability)

    return classify
