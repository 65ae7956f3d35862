"""Runs the cases of one check in this process and appends the results to a file, a line of JSON for each event.

    python -m ulorl.bench.gpu.one_check engine cuda full results.jsonl

The first line names all cases. Then each case has a line when it begins and one when it ends, so that the process that
started this one knows what was running when it had to stop it.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import ulorl
from ulorl.bench.gpu.case import Case, CheckError, NotPossibleError, Setting
from ulorl.bench.gpu.runner import result_line
from ulorl.errors import one_line

_SOURCE = str(Path(ulorl.__file__).parent)


def main(check: str, device: str, size: str, results: str) -> None:
    """Run every case of a check. size: "small" or "full"."""
    setting = Setting(device, small=size == "small")
    with Path(results).open("a", encoding="utf-8", buffering=1) as file:
        cases: list[Case] = import_module(f"ulorl.bench.gpu.{check}").cases(setting)
        _write(file, cases=[case.name for case in cases])
        for case in cases:
            _write(file, started=case.name)
            with redirect_stdout(sys.stderr):  # what a case prints is not progress
                result = result_of(case)
            _write(file, **result)
            print(result_line(result), flush=True)
            gc.collect()
            if setting.on_gpu:
                torch.cuda.empty_cache()


def result_of(case: Case) -> dict[str, Any]:
    """Run one case and return its line of results; no error passes."""
    started = time.perf_counter()
    found: dict[str, Any] = {"case": case.name}
    try:
        found |= {"status": "ok", "figures": case.run()}
    except NotPossibleError as error:
        found |= {"status": "not run", "reason": str(error)}
    except CheckError as error:
        found |= {"status": "failed", "reason": str(error), "figures": error.figures, "where": _where(error)}
    except Exception as error:
        found |= {"status": "failed", "reason": one_line(error), "where": _where(error)}
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


def _where(error: BaseException) -> str:
    """Return the innermost line of our code, and the innermost line of all when that is another one."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(_SOURCE)]
    lines = [f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}" for frame in (*ours[-1:], *frames[-1:])]
    return "; ".join(dict.fromkeys(lines))


def _write(file: Any, **event: Any) -> None:
    file.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
