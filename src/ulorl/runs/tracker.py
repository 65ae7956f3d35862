"""What a run tells a tracker: the interface of all trackers, and the samples that they show as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import NamedTuple, Protocol

from ulorl.common.key_paths import flatten
from ulorl.config.tree import Config
from ulorl.runs.samples import Decode
from ulorl.types import Group, Sample

LONGEST_TEXT = 4000  # characters of a prompt or output in a table; the middle of a longer one is left out


class SampleRow(NamedTuple):
    """A row of the table of samples; the names of the fields are its columns."""

    sample: int
    problem: str
    prompt: str
    output: str
    reward: float | None  # None: the reward failed
    status: str
    tokens: int
    versions: str  # of the policy, along the output


class Tracker(Protocol):
    """Shows a run elsewhere. Its constructor makes or continues the run there, and sends the configuration."""

    @property
    def id(self) -> str:
        """The run at the tracker, "" where it has none."""
        ...

    def write(self, step: int, metrics: Mapping[str, float | int], samples: Sequence[SampleRow]) -> None:
        """Record one step. metrics: finite numbers by name, without those that do not exist."""
        ...

    def report(self, path: Path) -> None:
        """Store the report of the run, an HTML file."""
        ...

    def close(self, *, failed: bool) -> None:
        """Flush and end."""
        ...


def sample_rows(groups: Sequence[Group], decode: Decode, most: int) -> list[SampleRow]:
    """Return up to `most` samples of the groups that a step trains on: the first one of each group, then the second one
    of each, and so on."""
    members = zip_longest(*([(group, scored) for scored in group.members] for group in groups))
    chosen = islice((one for one in chain.from_iterable(members) if one is not None), most)
    return [
        SampleRow(
            scored.sample.id,
            group.problem.id,
            _cut(decode(scored.sample.prompt)),
            _cut(scored.text),
            scored.reward,
            scored.sample.status.value,
            len(scored.sample),
            ", ".join(str(version) for version in _versions(scored.sample)),
        )
        for group, scored in chosen
    ]


def _versions(sample: Sample) -> list[int]:
    """Return the versions along an output, one for each segment."""
    return [int(segment.versions[-1]) for segment in sample.segments if len(segment)]


def _cut(text: str) -> str:
    half = LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[:half]} [{len(text) - 2 * half} characters] {text[-half:]}"


def run_name(run_dir: Path) -> str:
    """Return the name of a run at a tracker: that of its folder."""
    return run_dir.resolve().name


def config_text(config: Config) -> str:
    """Return the resolved configuration as it stands in config.json."""
    return config.model_dump_json(indent=2)


def flat_config(config: Config) -> dict[str, str]:
    """Return the resolved configuration with dotted keys, each value as a text."""
    values = flatten(config.model_dump(mode="json"))
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
