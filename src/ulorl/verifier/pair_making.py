"""Makes labelled pairs from problems with reference answers: equivalent answers and look-alikes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from ulorl.answers.normalisation import clean_characters
from ulorl.cleaning.items import Item
from ulorl.cleaning.reference_answers import short_answer
from ulorl.common.progress import SILENT, ProgressBars
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rng import Stream, generator
from ulorl.verifier.pairs import Pair
from ulorl.verifier.transforms import answer_kinds
from ulorl.verifier.transforms.answer_kinds import OTHER, Answer
from ulorl.verifier.transforms.compound_answers import Parts, Spans
from ulorl.verifier.transforms.rationals import Number

_ATTEMPTS = 8  # to change or spell an answer, before the kind is left out
_OTHER_SHARE = 0.1  # of look-alikes that are another problem's answer
_RARE = 4.0  # the weight of a kind that is not in _WEIGHTS
_WEIGHTS = {"same": 0.35, "spelling": 1.0, "words": 1.0, "fraction": 12.0, "scientific": 12.0}


@dataclass(frozen=True)
class PairSettings:
    """How many pairs are made, and the seed."""

    per_problem: int = 4  # at most; integers of which nothing more is known get two
    plain: float = 0.2  # the share of those integers that is used, because they would outnumber the rest
    seed: int = 0


def make_pairs(
    problems: Sequence[Item], settings: PairSettings | None = None, bars: ProgressBars = SILENT
) -> list[Pair]:
    """Make pairs of each problem whose reference can be read: for each of up to per_problem / 2 kinds of spelling an
    equivalent answer and a look-alike. A problem's pairs depend on its id, its text and the seed, and where another
    problem's answer is used also on the other problems.

    Raises UserError when `settings.per_problem` is below 2.
    """
    settings = settings or PairSettings()
    if settings.per_problem < 2:
        message = f"per_problem={settings.per_problem}: needs at least 2, an equivalent answer and a look-alike"
        raise UserError(message, code=ErrorCode.COMMAND_LINE, key="--per-problem")
    bar = bars.add("pairs", 2 * len(problems))  # each problem is read, then its pairs are made
    read, pool = list[Answer | None](), defaultdict[str, list[Answer]](list)
    for item in problems:
        answer = answer_kinds.read(short_answer(item.answer), clean_characters(item.question))
        read.append(answer)
        if answer is not None:
            pool[answer.type].append(answer)
        bar.advance()
    pairs = list[Pair]()
    for item, answer in zip(problems, read, strict=True):
        if answer is not None:
            pairs += _of_problem(item, answer, pool[answer.type], settings)
        bar.advance()
    return pairs


def _of_problem(item: Item, answer: Answer, pool: Sequence[Answer], settings: PairSettings) -> list[Pair]:
    rng = generator(Stream.MADE_PAIRS, f"{settings.seed} {item.id} {item.answer}")
    is_plain = isinstance(answer.value, Number) and answer.value.plain
    is_small = isinstance(answer.value, Number) and is_plain and abs(answer.value.value) < 1000
    if is_small and rng.random() >= settings.plain:
        return []
    pairs, question = list[Pair](), clean_characters(item.question)
    most = 2 if is_plain else settings.per_problem * (2 if isinstance(answer.value, Parts | Spans) else 1)
    for kind in _drawn(answer_kinds.kinds(answer, question), rng):
        if len(pairs) + 2 > most:
            break
        equivalent, other = _equivalent(answer, kind, rng), _look_alike(answer, kind, question, pool, rng)
        if equivalent is None or other is None or {equivalent, other[1]} & {pair.answer for pair in pairs}:
            continue
        for change, text in (("", equivalent), other):
            pairs.append(Pair(question, answer.text, text, not change, kind, change, item.source, item.id))
    return pairs


def _drawn(kinds: Sequence[str], rng: Random) -> list[str]:
    """Return the kinds in the order in which they are tried: rare ones mostly first."""
    keyed = [(rng.random() ** (1 / _WEIGHTS.get(kind, _RARE)), kind) for kind in kinds]
    return [kind for _, kind in sorted(keyed, reverse=True)]


def _equivalent(answer: Answer, kind: str, rng: Random) -> str | None:
    for _ in range(_ATTEMPTS):
        text = answer_kinds.spell(answer, kind, rng)
        if text and (kind == "same" or text != answer.text):
            return text
    return None


def _look_alike(
    answer: Answer, kind: str, question: str, pool: Sequence[Answer], rng: Random
) -> tuple[str, str] | None:
    for attempt in [rng.getrandbits(60) for _ in range(_ATTEMPTS)]:  # the pool's size must not change later draws
        own = Random(attempt)
        made = _other_answer(answer, pool, Random(attempt + 1)) if own.random() < _OTHER_SHARE else None
        made = made or answer_kinds.changed(answer, kind, question, own)
        text = made and answer_kinds.spell(made[1], kind, own)
        if made and text and text != answer.text:
            return made[0], text
    return None


def _other_answer(answer: Answer, pool: Sequence[Answer], rng: Random) -> tuple[str, Answer] | None:
    other = rng.choice(pool)
    if not answer_kinds.differ(answer, other):
        return None
    if answer_kinds.shape(answer) != answer_kinds.shape(other):
        return None
    return OTHER, Answer(other.text, other.value, answer.variable)
