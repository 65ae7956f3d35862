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
@pytest.mark.parametrize("overlap", [[], ["--overlap"]], ids=["", "overlap"])
def test_killed_runs_end_as_the_one_that_was_not(tmp_path: Path, overlap: list[str]) -> None:
    script = ROOT / "tests/helpers/faults.py"
    command = [sys.executable, str(script), "--kills", "3", "--commands", "0", "--seed", "3", *overlap]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(count) for name, count in re.findall(r"^(\w[\w ]*?) +(\d+)$", done.stdout, re.MULTILINE)}
    assert counts["kills"] == counts["resumes"] == 3
    assert counts["samples lost"] == counts["samples duplicated"] == counts["runs that differ"] == 0
