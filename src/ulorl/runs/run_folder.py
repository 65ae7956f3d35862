"""The folder of a run: which run it holds, whether the run is finished, and the lock that admits one process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ulorl.common import atomic_files, folder_lock
from ulorl.common.key_paths import flatten
from ulorl.config.data_config import FilesDataConfig, HubDataConfig
from ulorl.config.loading import load_saved
from ulorl.config.resumable_keys import may_change
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

CONFIG, FINISHED = "config.json", "finished.json"
LOCK = "run.lock"  # empty; the operating system knows who holds it
VERDICTS = "verifier.sqlite"  # the generative verifier's verdicts, which may have cost money: --overwrite keeps them
_SECTIONS = {"run", "rollout", "objective", "optim"}  # that the config.json of a run has, in every version

_BEGINNING = {LOCK, CONFIG + atomic_files.PARTIAL}  # what a run that was killed in its first moments leaves


def holds_run(run_dir: Path) -> bool:
    """Return whether the folder holds a run. A model folder has a config.json too, with other keys."""
    try:
        saved = json.loads((run_dir / CONFIG).read_text(encoding="utf-8"))
        return set(saved.keys()) >= _SECTIONS
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def changes(cfg: Config) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ between the run in `run.dir` and `cfg`, with both values (run, cfg). Raises
    UserError when a key differs that may not change on resume: the folder holds another run then."""
    saved = load_saved(Path(cfg.run.dir) / CONFIG)
    there, asked = flatten(saved.model_dump(mode="json")), flatten(cfg.model_dump(mode="json"))
    differ = {k: (there.get(k), asked.get(k)) for k in sorted(there | asked) if there.get(k) != asked.get(k)}
    kinds = tuple(key.removesuffix("kind") for key in differ if key.endswith(".kind") and key in there and key in asked)
    for key in [k for k in differ if k.startswith(kinds) and not (k in there and k in asked)]:
        del differ[key]  # only one of the two kinds has such a key; that the kinds differ is listed
    differ.pop("run.dir", None)  # the same folder by another name, or moved
    if fixed := [key for key in differ if not may_change(key)]:
        raise UserError(
            f"{cfg.run.dir} holds another run: {changes_text({key: differ[key] for key in fixed})}. Choose another "
            "run.dir, or --overwrite to replace it",
            code=ErrorCode.RUN_FOLDER_TAKEN,
            file=cfg.run.dir,
            key=fixed[0],
        )
    return differ


def changes_text(differ: Mapping[str, tuple[Any, Any]]) -> str:
    """Return what `changes` found as text, such as `steps=90 (was 45)`."""
    return ", ".join(f"{key}={json.dumps(now)} (was {json.dumps(then)})" for key, (then, now) in differ.items())


def save_config(cfg: Config) -> None:
    """Write the configuration into `run.dir` atomically."""
    atomic_files.write_text(Path(cfg.run.dir) / CONFIG, cfg.model_dump_json(indent=2) + "\n")


def finish(run_dir: Path, steps: int) -> None:
    """Mark the run as finished: the model after `steps` and the report are written."""
    atomic_files.write_text(run_dir / FINISHED, json.dumps({"steps": steps}) + "\n")


def finished(run_dir: Path) -> int | None:
    """Return the number of steps after which the run was last finished, None if it never was."""
    try:
        return int(json.loads((run_dir / FINISHED).read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_free(cfg: Config) -> None:
    """Raise UserError unless `run.dir` is new, empty or a run folder, and holds nothing that this run reads."""
    run_dir = Path(cfg.run.dir)
    if not os.path.lexists(run_dir):
        return
    if not run_dir.is_dir():
        raise _taken(run_dir, f"run.dir={run_dir} is a file; choose another run.dir")
    if not holds_run(run_dir) and {path.name for path in run_dir.iterdir()} - _BEGINNING:
        raise _taken(run_dir, f"{run_dir} is not empty and not a run's folder; choose another run.dir")
    read = {"model.path": cfg.model.path}
    if isinstance(cfg.data, FilesDataConfig | HubDataConfig):
        read["data.path"] = cfg.data.path
    for key, path in read.items():
        if Path(path).resolve().is_relative_to(run_dir.resolve()):
            message = f"{key}={path} lies in {run_dir}, which --overwrite would remove; choose another run.dir"
            raise _taken(run_dir, message, key)


def clear(run_dir: Path) -> None:
    """Empty a run folder except for its verdicts, its lock and its config.json, which the next run replaces: after a
    crash meanwhile it is a run without a checkpoint, not an unknown folder. Checkpoints are removed first, so that none
    remains without its logs."""
    (run_dir / FINISHED).unlink(missing_ok=True)
    atomic_files.remove(run_dir / "checkpoints")
    for path in run_dir.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (CONFIG, LOCK) and not path.name.startswith(VERDICTS):
            path.unlink()


def locked(run_dir: Path) -> AbstractContextManager[None]:
    """Hold the lock of a run folder, as `folder_lock.locked` does. Raises UserError when another process has it, or the
    folder cannot be created."""
    busy = UserError(
        f"{run_dir}: another process uses this run folder; wait for it, or choose another run.dir",
        code=ErrorCode.RUN_LOCKED,
        file=run_dir,
    )
    return folder_lock.locked(run_dir / LOCK, busy=busy, fix="Choose another run.dir, or give permission")


def _taken(run_dir: Path, message: str, key: str = "run.dir") -> UserError:
    return UserError(message, code=ErrorCode.RUN_FOLDER_TAKEN, file=run_dir, key=key)
