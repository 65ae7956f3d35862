"""The command of `make test-gpu`: python -m ulorl.bench.gpu --json FILE."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ulorl.bench.gpu import packages
from ulorl.bench.gpu.runner import CHECKS, run_checks


def main(arguments: list[str] | None = None) -> int:
    """Run the checks. Return 0, 1 when one failed, or 2 when they cannot be started."""
    names = [check.name for check in CHECKS]
    parser = argparse.ArgumentParser(prog="python -m ulorl.bench.gpu", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("runs/gpu.json"), help="the file for all figures")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, to test the checks themselves")
    parser.add_argument("--minutes", type=float, default=10.0, help="the time for everything")
    parser.add_argument("--only", choices=names, action="append", help="a check; repeatable; default: all")
    given = parser.parse_args(arguments)
    if lacking := packages.missing(packages.ALL):
        print(packages.how_to_install(lacking), file=sys.stderr)
        return 2
    if given.device == "cuda" and (problem := _no_gpu()):
        print(problem, file=sys.stderr)
        return 2
    if lacking := packages.missing(packages.QUICKSTART):
        print(f"the quickstart's check will fail; {packages.how_to_install(lacking)}", file=sys.stderr)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    chosen = [check for check in CHECKS if check.name in (given.only or names)]
    size = "small" if given.small else "full"
    records = run_checks(chosen, given.device, size, seconds=60 * given.minutes, out=given.json)
    counts = {status: sum(r["status"] == status for r in records) for status in ("ok", "failed", "not run")}
    print(", ".join(f"{number} {status}" for status, number in counts.items()) + f"; figures: {given.json}")
    return 1 if counts["failed"] else 0


def _no_gpu() -> str:
    """Return why torch finds no GPU; "" if it finds one."""
    import torch

    if torch.cuda.device_count():
        return ""
    built = torch.version.cuda or "no CUDA"
    return (
        f"torch {torch.__version__} in {sys.executable} (built for {built}) finds no GPU; name the Python whose torch "
        "does: make test-gpu PYTHON=...; to test the checks themselves: make test-gpu ARGS='--device cpu --small'"
    )


if __name__ == "__main__":
    sys.exit(main())
