"""Reads the inputs of `ulorl verifier bench`: labelled pairs, graded outputs, and verifier models."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ulorl.config.loading import load_class
from ulorl.config.reward_config import EngineVerifierConfig, VerifierConfig
from ulorl.data.record_files import expand_pattern, read_records
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards.generative_verifier import Verifier
from ulorl.rewards.verdict_prompt import FOLDER_FILE
from ulorl.rng import Stream, generator
from ulorl.verifier.graded_outputs import Columns, columns_of, read_graded
from ulorl.verifier.judges import TRAINED, UNTRAINED
from ulorl.verifier.pairs import Pair, read_pairs

VERDICT_TOKENS = 8  # of a trained verifier's output: a word and the end
UNTRAINED_TOKENS = 64  # of an untrained model's output: about as many as take minutes on a CPU


@dataclass(frozen=True)
class BenchPairs:
    """Pairs to measure judges on, with a note on each file of graded outputs."""

    pairs: list[Pair]
    notes: list[str]


def read_bench_pairs(paths: Sequence[str], limit: int = 0) -> BenchPairs:
    """Read files of pairs and of graded outputs, which their fields identify. Raises UserError naming file and record.

    limit: keep so many pairs, drawn at random but always the same; 0 keeps all.
    """
    pairs, notes = list[Pair](), list[str]()
    for path in itertools.chain.from_iterable(map(_expanded, paths)):
        columns = _columns(path)
        if columns is None:
            pairs += read_pairs([path])
            continue
        graded = read_graded(path, columns)
        pairs += graded.pairs
        notes.append(
            f"{path}: {len(graded.pairs)} graded answers; {graded.without_answer} outputs without one left out"
        )
    if not pairs:
        raise UserError("no file of pairs is named", code=ErrorCode.COMMAND_LINE)
    if limit and limit < len(pairs):
        chosen = sorted(generator(Stream.MEASURED_PAIRS).sample(range(len(pairs)), limit))
        pairs = [pairs[i] for i in chosen]
    return BenchPairs(pairs, notes)


def _expanded(path: str) -> list[str]:
    with suppress(UserError):  # `read_pairs` says what is wrong with it
        return [str(file) for file in expand_pattern(path)]
    return [path]


def _columns(path: str) -> Columns | None:
    with suppress(UserError):
        records = read_records(Path(path))
        return next((columns_of(list(r.fields)) for r in records if not isinstance(r, UserError)), None)
    return None


def make_verifiers(
    trained: str, untrained: str, untrained_prompt: str, overrides: Sequence[str], cache: Path
) -> dict[str, Verifier]:
    """Make the models that take part, by their names among the judges. Raises UserError before a model is loaded.

    trained, untrained: a folder, or a server's model; "": none. overrides: `key=value` of reward.verifier for
    `trained`.
    """
    if overrides and not trained:
        message = f"{overrides[0]}: belongs to --verifier, which is missing"
        raise UserError(message, code=ErrorCode.COMMAND_LINE, key="--verifier")
    models = {}
    if untrained:
        settings = EngineVerifierConfig(name=untrained, prompt=untrained_prompt, max_tokens=UNTRAINED_TOKENS)
        models[UNTRAINED] = Verifier(settings, retries=0, cache=cache, key="--untrained")
    if trained:
        given = {override.partition("=")[0] for override in overrides}
        if "kind" not in given and "base_url" not in given:
            overrides = ["kind=engine", *overrides]
        if "max_tokens" not in given and (Path(trained).expanduser() / FOLDER_FILE).is_file():
            overrides = [f"max_tokens={VERDICT_TOKENS}", *overrides]
        overrides = [*overrides, f"name={json.dumps(trained)}"]
        own: VerifierConfig = load_class(VerifierConfig, [], overrides)
        models[TRAINED] = Verifier(own, cache=cache, key="--verifier")
    return models
