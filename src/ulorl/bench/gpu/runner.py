"""Runs the checks one after another, each in a process with a time limit, and keeps the results in one JSON file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulorl.common import atomic_files

Record = dict[str, Any]
LEAST = 5.0  # seconds: with less time left, a check is not started


@dataclass(frozen=True)
class Check:
    """A module of this package, and the seconds after which its process is stopped."""

    name: str
    seconds: float


# The order is that of value: what comes first is run when time runs out. The limits are well above what each should
# take on an H100.
CHECKS = (
    Check("machine", 60),
    Check("engine", 150),
    Check("logprobs", 90),
    Check("quickstart", 120),
    Check("update", 270),
    Check("sharding", 90),
    Check("processes", 90),
)


def run_checks(checks: Sequence[Check], device: str, size: str, *, seconds: float, out: Path) -> list[Record]:
    """Run the checks within `seconds` in all and return a record for each case, which `out` holds as JSON too.

    The file is replaced after every check. device: "cuda" or "cpu"; size: "small" or "full".
    """
    began = time.monotonic()
    records: list[Record] = []
    for check in checks:
        left = seconds - (time.monotonic() - began)
        if left < LEAST:
            new = [_not_seen({"case": "all", "status": "not run", "reason": "out of time"})]
        else:
            print(f"{check.name}, in at most {min(check.seconds, left):.0f} s:", flush=True)
            new = run_one(check, device, size, seconds=min(check.seconds, left))
        records += [{"check": check.name, **record} for record in new]
        spent = round(time.monotonic() - began, 1)
        summary = {"benchmark": "gpu", "device": device, "size": size, "seconds": spent, "results": records}
        atomic_files.write_text(out, json.dumps(summary, indent=2) + "\n")
    return records


def run_one(check: Check, device: str, size: str, *, seconds: float) -> list[Record]:
    """Run one check in a process, which is killed with all its children after `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        results, errors = Path(folder) / "results.jsonl", Path(folder) / "stderr"
        results.touch()
        command = [sys.executable, "-m", "ulorl.bench.gpu.one_check", check.name, device, size, str(results)]
        with errors.open("wb") as stderr:
            process = subprocess.Popen(command, stderr=stderr, start_new_session=True)
        try:
            process.wait(seconds)
            ended = _ended(process.returncode, errors)
        except subprocess.TimeoutExpired:
            ended = f"stopped after {seconds:.0f} s"
        finally:
            _kill(process)
        return _records([json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()], ended)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and those that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ended(code: int, errors: Path) -> str:
    """Return why a process ended before its work did; "" for one that ended well."""
    if not code:
        return ""
    lines = [line for line in errors.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = f": {lines[-1]}" if lines else ""
    return f"the process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}{last}"


def _records(events: Sequence[Record], ended: str) -> list[Record]:
    """Return a record for each case. The case that was running when the process ended has failed."""
    records = [event for event in events if "case" in event]
    if not ended:
        return records
    done = {record["case"] for record in records}
    running = [event["started"] for event in events if "started" in event and event["started"] not in done]
    failed = running or ([] if any("cases" in event for event in events) else ["start"])
    records += [_not_seen({"case": name, "status": "failed", "reason": ended}) for name in failed]
    names: list[str] = next((event["cases"] for event in events if "cases" in event), [])
    waiting = [name for name in names if name not in done and name not in running]
    return records + [_not_seen({"case": name, "status": "not run", "reason": ended}) for name in waiting]


def _not_seen(record: Record) -> Record:
    """Return the record after printing it: the check's own process did not."""
    print(result_line(record), flush=True)
    return record


def result_line(record: Record) -> str:
    """Return the line of progress about a case."""
    seconds = f" ({record['seconds']} s)" if "seconds" in record else ""
    reason = f": {record['reason']}" if record.get("reason") else ""
    where = f"\n        {record['where']}" if record.get("where") else ""
    return f"  {record['status']:<8} {record['case']}{seconds}{reason}{where}"
