"""What a simulated step did."""

from __future__ import annotations

from dataclasses import dataclass

from ulorl.planning.simulated_engine import EngineFigures


@dataclass(slots=True)
class Samples:
    """Sums over finished samples.

    versions: how many versions drew the tokens of each. most_versions: the most of any. version_tokens: the version of
    each token.
    """

    samples: int = 0
    tokens: int = 0
    versions: int = 0
    most_versions: int = 0
    version_tokens: int = 0

    def add(self, other: Samples) -> None:
        """Add other samples."""
        self.samples += other.samples
        self.tokens += other.tokens
        self.versions += other.versions
        self.most_versions = max(self.most_versions, other.most_versions)
        self.version_tokens += other.version_tokens


@dataclass(frozen=True)
class SimulatedStep:
    """One step. Seconds are of the simulated clock.

    carried: samples that came unfinished from the step before. started_samples, started_tokens: what was opened, with
    its whole lengths. groups, trained: what the update took. age_tokens: versions between each trained token and the
    update. engines: what each did.
    """

    carried: int
    started_samples: int
    started_tokens: int
    groups: int
    trained: Samples
    age_tokens: int
    rollout_seconds: float
    learner_seconds: float
    sync_seconds: float
    engines: tuple[EngineFigures, ...]

    @property
    def seconds(self) -> float:
        """The whole step: rollout, update and weight sync."""
        return self.rollout_seconds + self.learner_seconds + self.sync_seconds


@dataclass(frozen=True)
class Stay:
    """A stay of a sample in an engine. Seconds since the run began."""

    sample_id: int
    engine: int
    version: int
    start: float
    end: float
