"""The charts of the report over the steps of a run, as data. The script of the page draws them.

A chart has one panel or several, one above the other, and each has curves of metrics by their names in metrics.jsonl.
Charts and curves without values are not shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ulorl.report.step_rows import IDLE_SHARE, LENGTHS, OTHER_SECONDS

AGES = ("0", "1", "2", "3", "4_or_more")
Unit = Literal["number", "percent", "count"]


@dataclass(frozen=True)
class Line:
    """A curve: the metric `key` over the steps."""

    label: str
    key: str


@dataclass(frozen=True)
class Panel:
    """Curves that share an axis.

    stacked: the curves are parts of a whole, drawn on one another. band: the keys of the two curves with the area
    between them filled. target: the setting whose value is drawn as a line across, if `when` holds: a setting, and the
    value that it must have. reference: a number that is drawn so.
    """

    lines: tuple[Line, ...]
    unit: Unit = "number"
    log: bool = False
    from_zero: bool = True
    stacked: bool = False
    band: tuple[str, str] | None = None
    target: str = ""
    when: tuple[str, str] | None = None
    reference: float | None = None


@dataclass(frozen=True)
class Figure:
    """A chart with its title and what the reader must know to read it."""

    section: str
    title: str
    note: str
    panels: tuple[Panel, ...]


def _lines(*named: tuple[str, str]) -> tuple[Line, ...]:
    return tuple(Line(label, key) for label, key in named)


def _by_age(name: str) -> tuple[Line, ...]:
    return tuple(Line(f"age {age.replace('_', ' ')}", f"age/{age}/{name}") for age in AGES)


FIGURES = (
    Figure(
        "Learning",
        "Held-out accuracy",
        "Problems never trained on. The area is the 95% interval.",
        (
            Panel(
                _lines(("accuracy", "eval/accuracy")),
                "percent",
                from_zero=False,
                band=("eval/accuracy_low", "eval/accuracy_high"),
            ),
        ),
    ),
    Figure(
        "Learning",
        "Reward",
        "Mean over the samples finished in the step; 1 is a right answer.",
        (Panel(_lines(("reward", "reward/mean"))),),
    ),
    Figure(
        "Learning",
        "Entropy and masked tokens",
        "Above: nats a token, of the policy that trains. Below: the share of trained tokens that are well-mastered "
        "positive tokens (MPTs, eq. 9), and the share that is masked because entropy is below its target (eq. 10).",
        (
            Panel(
                _lines(("entropy", "entropy/mean")),
                target="objective.mpt.sigma",
                when=("objective.mpt.mask", "dynamic"),
            ),
            Panel(_lines(("MPTs", "mpt/fraction"), ("masked", "mpt/masked_fraction")), "percent"),
        ),
    ),
    Figure(
        "Learning",
        "Gradient norm",
        "Of the update, before clipping.",
        (Panel(_lines(("norm", "train/grad_norm"))),),
    ),
    Figure(
        "Outputs",
        "Output length",
        "Tokens of the samples of the groups that were released in the step: quantiles, with the area from the 10th to "
        "the 90th percentile.",
        (
            Panel(
                _lines(*((label, key) for key, (label, _) in LENGTHS.items()), ("held-out, mean", "eval/length_mean")),
                "count",
                band=("length/p10", "length/p90"),
            ),
        ),
    ),
    Figure(
        "Outputs",
        "Samples a step",
        "Finished; carried over to the next step; cut at the maximum length.",
        (
            Panel(
                _lines(
                    ("finished", "rollout/finished"),
                    ("carried over", "rollout/carried"),
                    ("truncated", "rollout/truncated"),
                ),
                "count",
            ),
        ),
    ),
    Figure(
        "Outputs",
        "Segments a sample",
        "Mean over the samples finished in the step, and the share of them with two segments or more.",
        (
            Panel(_lines(("segments", "rollout/segments_mean")), from_zero=False),
            Panel(_lines(("two or more", "rollout/multi_segment_fraction")), "percent"),
        ),
    ),
    Figure(
        "Outputs",
        "Length bias",
        "Mean length of what trained over that of what was started, lately. Below 1, short samples train first.",
        (Panel(_lines(("bias", "train/length_bias")), from_zero=False, reference=1.0),),
    ),
    Figure(
        "Outputs",
        "Groups a step",
        "Trained; open after the step; finished ones among these, which wait for a later step.",
        (
            Panel(
                _lines(
                    ("trained", "train/groups"),
                    ("open", "rollout/groups_open"),
                    ("finished, waiting", "rollout/groups_waiting"),
                ),
                "count",
            ),
        ),
    ),
    Figure(
        "Staleness",
        "Age of the trained tokens",
        "The versions between the one that drew a token and the one that trains on it. Above: the mean. Below: the "
        "share of each age.",
        (
            Panel(_lines(("mean age", "rollout/staleness_mean"))),
            Panel(tuple(Line(f"age {age.replace('_', ' ')}", f"age/{age}") for age in AGES), "percent", stacked=True),
        ),
    ),
    Figure(
        "Staleness",
        "Versions a sample",
        "How many versions drew the tokens of a trained sample.",
        (Panel(_lines(("mean", "train/versions_mean"), ("highest", "train/versions_max")), from_zero=False),),
    ),
    Figure(
        "Staleness",
        "Importance ratio",
        "New over old probability, mean over the tokens in the loss, and the share of these that is clipped.",
        (
            Panel(_lines(("ratio", "importance/ratio_mean")), from_zero=False, reference=1.0),
            Panel(_lines(("clipped", "importance/clip_fraction")), "percent"),
        ),
    ),
    Figure(
        "Staleness",
        "Ratio and clipping by age",
        "The same, of the tokens of each age: age 0 was drawn by the version that trains.",
        (
            Panel(_by_age("ratio"), from_zero=False, reference=1.0),
            Panel(_by_age("clip_fraction"), "percent"),
        ),
    ),
    Figure(
        "Staleness",
        "Entropy by age",
        "Nats a token under the policy that trains, of the tokens of each age.",
        (Panel(_by_age("entropy")),),
    ),
    Figure(
        "Engine against learner",
        "Mismatch",
        "Mean difference of the log-probs that engine and learner give the same tokens under the same weights, in "
        "nats.",
        (Panel(_lines(("trained tokens", "mismatch/mean"), ("probe", "mismatch/probe_mean")), log=True),),
    ),
    Figure(
        "Engine against learner",
        "Log-prob change by age",
        "Mean difference between the engine's log-prob of a token when it was drawn and the learner's at the update.",
        (Panel(_by_age("mismatch"), log=True),),
    ),
    Figure(
        "Speed",
        "Where the time goes",
        "Seconds a step, with its evaluation and what it waited for a checkpoint.",
        (
            Panel(
                _lines(
                    ("rollout", "time/rollout"),
                    ("reward", "time/reward"),
                    ("update", "time/update"),
                    ("sync", "time/sync"),
                    ("other", OTHER_SECONDS),
                    ("evaluation", "time/eval"),
                    ("checkpoint", "checkpoint/seconds"),
                ),
                stacked=True,
            ),
        ),
    ),
    Figure(
        "Speed",
        "Throughput",
        "Tokens decoded in a second of rollout.",
        (Panel(_lines(("tokens a second", "rollout/tokens_per_second")), "count"),),
    ),
    Figure(
        "Speed",
        "Occupancy of the engine",
        "Mean share of the engine's slots that decode while it has samples; and of the rollout in which engines have "
        "none.",
        (Panel(_lines(("occupied slots", "engine/occupancy"), ("idle engines", IDLE_SHARE)), "percent"),),
    ),
    Figure(
        "Speed",
        "Decode steps",
        "Forward passes of the engine that follow one another in a step.",
        (Panel(_lines(("decode steps", "rollout/decode_steps")), "count"),),
    ),
)  # fmt: skip
