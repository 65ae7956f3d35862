"""Where the tests find recipes, fixtures and the data that is shared with the project."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNTDOWN = ROOT / "recipes" / "countdown.toml"
FIXTURES = ROOT / "tests" / "fixtures"
SHARED = ROOT / "../shared/data"  # not part of the project: tests that need it skip without it
# A pretrained model, for the tests that `make test-engines` adds.
SMOLLM2 = Path(os.environ.get("ULORL_SMOLLM2", ROOT / "models" / "smollm2-135m-instruct")).absolute()
