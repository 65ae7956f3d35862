"""Writes the labelled pairs of `ulorl verifier data`: train.jsonl, held_out.jsonl and a card, split by problem."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from ulorl.answers.normalisation import clean_characters
from ulorl.cleaning.cleaning_config import SourceConfig
from ulorl.cleaning.items import Item
from ulorl.cleaning.sources import Unreadable, list_sources, read_source
from ulorl.common import atomic_files
from ulorl.common.markdown import table
from ulorl.common.progress import SILENT, ProgressBars
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, listing
from ulorl.verifier.pair_making import PairSettings, make_pairs
from ulorl.verifier.pairs import Pair, write_pairs

Side = Literal["train", "held_out"]


class PairFiles(NamedTuple):
    """The files that were written, and counts."""

    train: Path
    held_out: Path
    card: Path
    counts: dict[str, int]  # problems, unreadable, used (gave pairs), train, held_out


def side_of(question: str, held_out: float = 0.1) -> Side:
    """Return the side of a question, from a hash of its letters and digits: the same problem in two sources, in other
    spacing or punctuation, is on one side. held_out: the share of questions that are held out."""
    bare = re.sub(r"[\W_]+", "", clean_characters(question)).casefold()
    draw = int.from_bytes(hashlib.blake2b(bare.encode(), digest_size=8).digest(), "big") / 2**64
    return "held_out" if draw < held_out else "train"


def write_pair_files(
    paths: Sequence[str],
    out: Path,
    settings: PairSettings | None = None,
    *,
    tables: Mapping[str, SourceConfig] | None = None,
    held_out: float = 0.1,
    overwrite: bool = False,
    bars: ProgressBars = SILENT,
) -> PairFiles:
    """Read problems as `ulorl data clean` does, make pairs, and write train.jsonl, held_out.jsonl and a card into
    `out`. Records that cannot be read are counted on the card.

    tables: how a source is read, by its name. held_out: the share of the problems; with 0 or 1 the side without
    problems has no file. Raises UserError without a source, when all records are unreadable, when a side has no pairs,
    and when a file exists.
    """
    if not 0 <= held_out <= 1:
        message = f"held_out={held_out}: expected a share from 0 to 1"
        raise UserError(message, code=ErrorCode.COMMAND_LINE, key="--held-out")
    files = [out / name for name in ("train.jsonl", "held_out.jsonl", "README.md")]
    if (there := [file.name for file in files if file.exists()]) and not overwrite:
        message = f"{out}: holds {', '.join(there)}; choose another folder, or --overwrite"
        raise UserError(message, code=ErrorCode.OUTPUT_EXISTS, file=out)
    items, bad = _problems(paths, tables or {})
    pairs = make_pairs(items, settings, bars)
    sides = _sides(pairs, held_out, len(items))
    for side, file in (("train", files[0]), ("held_out", files[1])):
        if side in sides:
            write_pairs(sides[side], file)
        else:
            file.unlink(missing_ok=True)  # an earlier call's: its problems would be on both sides
    counts = {"problems": len(items), "unreadable": len(bad), "used": len({pair.problem for pair in pairs})}
    counts |= {side: len(sides.get(side, ())) for side in ("train", "held_out")}
    atomic_files.write_text(files[2], _card(sides, counts, bad))
    return PairFiles(files[0], files[1], files[2], counts)


def _problems(paths: Sequence[str], tables: Mapping[str, SourceConfig]) -> tuple[list[Item], list[Unreadable]]:
    found = [record for source in list_sources(paths, dict(tables)) for record in read_source(source)]
    items = [record for record in found if isinstance(record, Item)]
    bad = [record for record in found if isinstance(record, Unreadable)]
    if not items:
        message = "no problem could be read:\n" + listing([record.message for record in bad])
        raise UserError(message, code=ErrorCode.DATA_BAD_RECORD)
    return items, bad


def _sides(pairs: Sequence[Pair], held_out: float, problems: int) -> dict[str, list[Pair]]:
    """Return the pairs of each side that gets problems, without duplicates, which sources that overlap give."""
    sides: dict[str, list[Pair]] = {"train": []} if held_out < 1 else {}
    sides |= {"held_out": []} if held_out > 0 else {}
    for pair in {(pair.question, pair.answer): pair for pair in pairs}.values():
        sides[side_of(pair.question, held_out)].append(pair)
    for side, some in sides.items():
        if not some:
            message = f"{problems} problems gave no pairs for {side}; name more problems"
            raise UserError(message, code=ErrorCode.DATA_TOO_FEW)
    return sides


def _card(sides: Mapping[str, Sequence[Pair]], counts: Mapping[str, int], bad: Sequence[Unreadable]) -> str:
    """Return the text of the card: the counts of pairs by kind, change and source."""
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
