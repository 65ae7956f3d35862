"""The settings of the TRL adapter: TRL's GRPOConfig, and UloRL's objective by the names of `[objective]`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trl import GRPOConfig

from ulorl.adapters.trl.refusals import check_settings


@dataclass
class UloRLConfig(GRPOConfig):  # type: ignore[misc]
    """TRL's GRPOConfig with UloRL's objective (eq. 10); docs/trl.md has a table of all settings.

    The bounds of the clip are TRL's `epsilon` and `epsilon_high`.

    Raises:
        UserError: a value out of range, or a setting of TRL that contradicts this objective (code
            `config-conflict`); all of them are reported together.
        ValueError: what TRL refuses.
    """

    mpt_mask: Literal["off", "all", "dynamic"] = field(
        default="dynamic",
        metadata={
            "help": "Well-mastered positive tokens (MPTs, eq. 9): trained (`off`), left out of the loss (`all`), or "
            "left out while the mean entropy of their sample is below `mpt_sigma` (`dynamic`: DMMPTs, eq. 10)."
        },
    )
    mpt_tau: float = field(
        default=0.99, metadata={"help": "A token of a correct sample is an MPT if its probability is at least this."}
    )
    mpt_sigma: float = field(default=0.2, metadata={"help": "The target entropy in nats, for `mpt_mask='dynamic'`."})
    mpt_correct: Literal["reward", "advantage"] = field(
        default="reward",
        metadata={
            "help": "Which samples are correct, so that their tokens can be MPTs: those whose reward is at least "
            "`mpt_correct_reward` (`reward`; the paper's rewards are 0 and 1), or those with an advantage above 0 "
            "(`advantage`), for rewards without a value that means correct."
        },
    )
    mpt_correct_reward: float = field(
        default=1.0, metadata={"help": "The reward of a correct sample, for `mpt_correct='reward'`."}
    )
    mpt_correct_function: str | None = field(
        default=None,
        metadata={
            "help": "The name of the reward function whose value says whether a sample is correct, for "
            "`mpt_correct='reward'`; not set: the weighted sum of all reward functions."
        },
    )
    importance: Literal["pois", "sais"] = field(
        default="pois",
        metadata={
            "help": "The old policy of the importance ratio (section 3.1): the model at the start of the update "
            "(`pois`), or the policy that drew each token, by the log-probs recorded then (`sais`; needs `use_vllm` "
            "or a `rollout_func`)."
        },
    )
    dynamic_sampling: bool = field(
        default=True,
        metadata={
            "help": "Leave groups without information out of the loss and of its denominator: all samples have the "
            "same weighted sum of rewards, or no function scored one of them. They are not replaced by others."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_settings(self)
