"""Makes labelled pairs from problems with reference answers, and writes them, split by problem."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

from ulorl.answers.normalisation import clean_characters
from ulorl.cleaning.cleaning_config import SourceConfig
from ulorl.cleaning.items import Item
from ulorl.cleaning.reference_answers import short_answer
from ulorl.cleaning.sources import Unreadable, list_sources, read_source
from ulorl.common import atomic_files
from ulorl.common.markdown import table
from ulorl.common.progress import SILENT, ProgressBars
from ulorl.errors import UserError, listing
from ulorl.rng import Stream, generator
from ulorl.verifier.pairs import Pair, write_pairs
from ulorl.verifier.transforms import transformable
from ulorl.verifier.transforms.compound_answers import Parts, Spans
from ulorl.verifier.transforms.rationals import Number
from ulorl.verifier.transforms.transformable import OTHER, Answer

Split = Literal["train", "held_out"]
_ATTEMPTS = 8  # at a change or a spelling, before the kind is left out
_OTHER_SHARE = 0.1  # of look-alikes: another problem's answer
_RARE = 4.0  # how readily a kind is drawn that is not named here
_WEIGHTS = {"same": 0.35, "spelling": 1.0, "words": 1.0, "fraction": 12.0, "scientific": 12.0}


def split(question: str, held_out: float = 0.1) -> Split:
    """On which side a question is: by a hash of its letters and digits, so that the same problem in two sources, in
    other spacing or punctuation, is on one side."""
    bare = re.sub(r"[\W_]+", "", clean_characters(question)).casefold()
    draw = int.from_bytes(hashlib.blake2b(bare.encode(), digest_size=8).digest(), "big") / 2**64
    return "held_out" if draw < held_out else "train"


def make_pairs(
    problems: Sequence[Item],
    *,
    per_problem: int = 4,
    seed: int = 0,
    plain: float = 0.2,
    bars: ProgressBars = SILENT,
) -> list[Pair]:
    """Pairs of each problem whose reference can be read: for each of up to per_problem / 2 kinds of spelling one
    equivalent answer and one look-alike. Deterministic: a problem's pairs depend on its id, the seed and its text, and
    only where another problem's answer is taken also on the others.

    per_problem: at most that many pairs; integers of which nothing more is known get two.
    plain: the share of those integers that is used at all, lest they drown the rest.
    Raises UserError for a per_problem below 2.
    """
    if per_problem < 2:
        raise UserError(f"per_problem={per_problem}: needs at least 2, an equivalent answer and a look-alike")
    bar = bars.add("pairs", 2 * len(problems))  # each problem is read, then its pairs are made
    read, pool = list[Answer | None](), defaultdict[str, list[Answer]](list)
    for item in problems:
        answer = transformable.read(short_answer(item.answer), clean_characters(item.question))
        read.append(answer)
        if answer is not None:
            pool[answer.type].append(answer)
        bar.advance()
    pairs = list[Pair]()
    for item, answer in zip(problems, read, strict=True):
        if answer is not None:
            pairs += _of_problem(item, answer, pool[answer.type], per_problem, seed, plain)
        bar.advance()
    return pairs


def _of_problem(item: Item, answer: Answer, pool: Sequence[Answer], most: int, seed: int, share: float) -> list[Pair]:
    rng = generator(Stream.MADE_PAIRS, f"{seed} {item.id} {item.answer}")
    is_plain = isinstance(answer.value, Number) and answer.value.plain
    if isinstance(answer.value, Number) and is_plain and abs(answer.value.value) < 1000 and rng.random() >= share:
        return []
    pairs, question = list[Pair](), clean_characters(item.question)
    most = 2 if is_plain else most * 2 if isinstance(answer.value, Parts | Spans) else most
    for kind in _drawn(transformable.kinds(answer, question), rng):
        if len(pairs) + 2 > most:
            break
        equivalent, other = _equivalent(answer, kind, rng), _look_alike(answer, kind, question, pool, rng)
        if equivalent is None or other is None or {equivalent, other[1]} & {pair.answer for pair in pairs}:
            continue
        for change, text in (("", equivalent), other):
            pairs.append(Pair(question, answer.text, text, not change, kind, change, item.source, item.id))
    return pairs


def _drawn(kinds: Sequence[str], rng: Random) -> list[str]:
    """The kinds in the order they are tried: rare ones mostly first."""
    keyed = [(rng.random() ** (1 / _WEIGHTS.get(kind, _RARE)), kind) for kind in kinds]
    return [kind for _, kind in sorted(keyed, reverse=True)]


def _equivalent(answer: Answer, kind: str, rng: Random) -> str | None:
    for _ in range(_ATTEMPTS):
        text = transformable.spell(answer, kind, rng)
        if text and (kind == "same" or text != answer.text):
            return text
    return None


def _look_alike(
    answer: Answer, kind: str, question: str, pool: Sequence[Answer], rng: Random
) -> tuple[str, str] | None:
    for attempt in [rng.getrandbits(60) for _ in range(_ATTEMPTS)]:  # the pool's size must not move later draws
        own = Random(attempt)
        made = _other_answer(answer, pool, Random(attempt + 1)) if own.random() < _OTHER_SHARE else None
        made = made or transformable.changed(answer, kind, question, own)
        text = made and transformable.spell(made[1], kind, own)
        if made and text and text != answer.text:
            return made[0], text
    return None


def _other_answer(answer: Answer, pool: Sequence[Answer], rng: Random) -> tuple[str, Answer] | None:
    other = rng.choice(pool)
    if not transformable.differ(answer, other):
        return None
    if transformable.shape(answer) != transformable.shape(other):
        return None
    return OTHER, Answer(other.text, other.value, answer.variable)


class Written(NamedTuple):
    train: Path
    held_out: Path
    card: Path
    counts: dict[str, int]  # problems, unreadable, used (gave pairs), train, held_out


def write_pair_files(
    paths: Sequence[str],
    out: Path,
    *,
    tables: Mapping[str, SourceConfig] | None = None,
    per_problem: int = 4,
    seed: int = 0,
    plain: float = 0.2,
    held_out: float = 0.1,
    overwrite: bool = False,
    bars: ProgressBars = SILENT,
) -> Written:
    """Reads problems as `ulorl data clean` does, makes pairs, and writes train.jsonl, held_out.jsonl and a card into
    `out`. tables: how a source is to be read, by its name. Records that cannot be read are counted on the card.

    held_out: the share of the problems; of 0 or 1 the side that gets nothing has no file.
    Raises UserError: no source, all records unreadable, no pairs on a side, or files that are already there.
    """
    if not 0 <= held_out <= 1:
        raise UserError(f"held_out={held_out}: expected a share from 0 to 1")
    files = [out / name for name in ("train.jsonl", "held_out.jsonl", "README.md")]
    if (there := [file.name for file in files if file.exists()]) and not overwrite:
        raise UserError(f"{out}: holds {', '.join(there)}; choose another folder, or --overwrite")
    found = [(source.name, list(read_source(source))) for source in list_sources(paths, dict(tables or {}))]
    items = [item for _, group in found for item in group if isinstance(item, Item)]
    bad = [item for _, group in found for item in group if isinstance(item, Unreadable)]
    if not items:
        raise UserError("no problem could be read:\n" + listing([item.message for item in bad]))
    pairs = make_pairs(items, per_problem=per_problem, seed=seed, plain=plain, bars=bars)
    sides: dict[Split, list[Pair]] = {"train": [], "held_out": []}
    for pair in {(pair.question, pair.answer): pair for pair in pairs}.values():  # sources overlap
        sides[split(pair.question, held_out)].append(pair)
    empty: Split | None = "held_out" if held_out == 0 else "train" if held_out == 1 else None
    for side, some in sides.items():
        if not some and side != empty:
            raise UserError(f"{len(items)} problems gave no pairs for {side}; name more problems")
    for side, file in zip(sides, files, strict=False):
        if side == empty:
            file.unlink(missing_ok=True)  # of an earlier call: its problems would be on both sides
        else:
            write_pairs(sides[side], file)
    used = len({pair.problem for pair in pairs})
    counts = {"problems": len(items), "unreadable": len(bad), "used": used} | {
        side: len(x) for side, x in sides.items()
    }
    atomic_files.write_text(files[2], card(sides, counts, bad))
    return Written(files[0], files[1], files[2], counts)


def card(sides: Mapping[Split, Sequence[Pair]], counts: Mapping[str, int], bad: Sequence[Unreadable]) -> str:
    """What is in the files: pairs by kind, change and source."""
    parts = ["# Pairs for a verifier\n", ", ".join(f"{name} {number:,}" for name, number in counts.items()) + "\n"]
    for title in ("kind", "change", "source"):
        tally = Counter(
            (getattr(p, title) or "(equivalent)", side, p.equivalent) for side, some in sides.items() for p in some
        )
        rows = [
            (name, *(f"{tally[name, side, label]:,}" for side in ("train", "held_out") for label in (True, False)))
            for name in sorted({name for name, _, _ in tally})
        ]
        head = (title, "train, equivalent", "train, other", "held out, equivalent", "held out, other")
        parts.append(table(head, rows, numbers_from=1) + "\n")
    if bad:
        parts.append(f"{len(bad):,} records could not be read:\n\n{listing([item.message for item in bad])}\n")
    return "\n".join(parts)
