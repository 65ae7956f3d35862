"""UloRL's objective in TRL's GRPOTrainer: DMMPTs, POIS and SAIS, the paper's denominator (docs/trl.md).

    from ulorl.adapters.trl import UloRLConfig, UloRLTrainer

in place of `from trl import GRPOConfig, GRPOTrainer`. Importing this package needs the extra `trl`.
"""

from ulorl.adapters.trl.supported import require_trl

require_trl()

from ulorl.adapters.trl.config import UloRLConfig  # noqa: E402 - imports trl
from ulorl.adapters.trl.trainer import UloRLTrainer  # noqa: E402

__all__ = ["UloRLConfig", "UloRLTrainer"]
