"""The kills of `make faults`, shortened: a few through forks, as the whole of it takes minutes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the command, which this system cannot")
def test_killed_runs_end_as_the_ones_that_were_not(tmp_path: Path) -> None:
    """One kill under each schedule, and with overlap."""
    script = ROOT / "tests/helpers/faults.py"
    command = [sys.executable, str(script), "--kills", "5", "--commands", "0", "--seed", "3"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(count) for name, count in re.findall(r"^(\w[\w ]*?) +(\d+)$", done.stdout, re.MULTILINE)}
    assert counts["kills"] == counts["resumes"] == 5
    assert counts["samples lost"] == counts["samples duplicated"] == counts["runs that differ"] == 0
