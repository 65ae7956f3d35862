"""The results of all evaluations in one folder, and their tables.

Every evaluation's folder holds its results. The folder around them, `--out`, has tables.md and results.json of all
evaluations in it, whichever commands made them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ulorl.common import atomic_files, folder_lock
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line
from ulorl.evaluation.result_tables import SuiteResult, all_tables, as_entry, as_json, of_entry
from ulorl.evaluation.stored_evaluation import RESULTS

TABLES, LOCK = "tables.md", "tables.lock"
WAIT = 60.0  # seconds; another command writes its tables in a moment
_log = logging.getLogger(__name__)


def store_results(folder: Path, results: Sequence[SuiteResult]) -> None:
    """Store the results of one evaluation in its folder, in place of those of an earlier command."""
    atomic_files.write_text(folder / RESULTS, json.dumps([as_entry(result) for result in results], indent=2) + "\n")


def write_tables(out: Path, first: Sequence[Path]) -> None:
    """Write tables.md and results.json of all evaluations whose results are stored in the folders out/MODEL/SUITE.

    first: the folders that come first, the others follow by name. Results that cannot be read are left out with a
    warning. One process at a time reads and writes, so the last one to end has the results of all. Raises UserError
    when another process keeps the lock.
    """
    busy = UserError(
        f"{out}: another process writes {TABLES}; the same command makes the tables again from what is stored",
        code=ErrorCode.EVALUATION_LOCKED,
        file=out,
    )
    with folder_lock.locked(out / LOCK, busy=busy, fix="Give permission, or choose another --out", wait=WAIT):
        folders = dict.fromkeys([*first, *(path.parent for path in sorted(out.glob(f"*/*/{RESULTS}")))])
        results = [result for folder in folders for result in _stored(folder / RESULTS)]
        atomic_files.write_text(out / TABLES, all_tables(results) + "\n")
        atomic_files.write_text(out / RESULTS, json.dumps(as_json(results), indent=2) + "\n")


def _stored(path: Path) -> list[SuiteResult]:
    try:
        return [of_entry(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:  # removed meanwhile: that evaluation is made again
        return []
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        _log.warning("%s: left out of the tables, it cannot be read (%s)", path, one_line(error))
        return []
