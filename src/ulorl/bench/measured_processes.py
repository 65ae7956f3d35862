"""Runs the processes of a measurement at the same time, and reads the figures that each prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def run_measured(codes: Sequence[str], *, limit: float, what: str) -> list[Any]:
    """Run Python code in one new process for each string, and return the JSON on the last line that each prints.

    limit: seconds for each process. what: the measurement, for the message. Raises RuntimeError when a process fails,
    and TimeoutExpired; all processes are ended then.
    """
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for code in codes
    ]
    try:
        figures = []
        for process in started:
            out, errors = process.communicate(timeout=limit)
            if process.returncode:
                raise RuntimeError(f"{what}: a process failed: {errors.strip().splitlines()[-1:]}")
            figures.append(json.loads(out.splitlines()[-1]))
        return figures
    finally:
        for process in started:
            process.kill()
            process.communicate()
