"""A run's folder between two processes: whose run it is, whether it is finished, and that one process works in it.
No torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ulorl.common import atomic_files
from ulorl.common.key_paths import flatten
from ulorl.config.data_config import FilesDataConfig, HubDataConfig
from ulorl.config.loading import load_saved
from ulorl.config.resume import may_change
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

CONFIG, FINISHED = "config.json", "finished.json"
LOCK = "run.lock"  # empty; the operating system knows who holds it
VERDICTS = "verifier.sqlite"  # of the generative verifier, which may have been paid for: they outlive the run
_SECTIONS = {"run", "rollout", "objective", "optim"}  # of a config.json of ours, of any version


_BEGINNING = {LOCK, CONFIG + atomic_files.PARTIAL}  # what a run that was killed in its first moments leaves


def holds_run(run_dir: Path) -> bool:
    """Whether a run has begun there. A model folder has a config.json too, with other keys."""
    try:
        saved = json.loads((run_dir / CONFIG).read_text(encoding="utf-8"))
        return set(saved.keys()) >= _SECTIONS
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def changes(cfg: Config) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ between the run in `run.dir` and `cfg`: those of the run, and those asked for. Raises
    UserError when there is one that may not change, for it is another run then."""
    saved = load_saved(Path(cfg.run.dir) / CONFIG)
    there, asked = flatten(saved.model_dump(mode="json")), flatten(cfg.model_dump(mode="json"))
    differ = {k: (there.get(k), asked.get(k)) for k in sorted(there | asked) if there.get(k) != asked.get(k)}
    kinds = tuple(key.removesuffix("kind") for key in differ if key.endswith(".kind"))
    for key in [k for k in differ if k.startswith(kinds) and not (k in there and k in asked)]:
        del differ[key]  # only one of the two kinds has such a key; that the kinds differ is listed
    differ.pop("run.dir", None)  # the same folder by another name, or moved
    if fixed := [key for key in differ if not may_change(key)]:
        raise UserError(
            f"{cfg.run.dir} holds another run: {spelled({key: differ[key] for key in fixed})}. Choose another run.dir, "
            "or --overwrite to replace it"
        )
    return differ


def spelled(differ: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key}={json.dumps(now)} (was {json.dumps(then)})" for key, (then, now) in differ.items())


def save_config(cfg: Config) -> None:
    atomic_files.write_text(Path(cfg.run.dir) / CONFIG, cfg.model_dump_json(indent=2) + "\n")


def finish(run_dir: Path, steps: int) -> None:
    """Mark that the model after `steps` and the report are written."""
    atomic_files.write_text(run_dir / FINISHED, json.dumps({"steps": steps}) + "\n")


def finished(run_dir: Path) -> int | None:
    """The steps after which the run was finished last, None when it never was."""
    try:
        return int(json.loads((run_dir / FINISHED).read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_free(cfg: Config) -> None:
    """A folder is taken only when it is new, empty or a run's, and holds nothing that this run reads. Raises UserError
    otherwise."""
    run_dir = Path(cfg.run.dir)
    if not os.path.lexists(run_dir):
        return
    if not run_dir.is_dir():
        raise UserError(f"run.dir={run_dir} is a file; choose another run.dir")
    if not holds_run(run_dir) and {path.name for path in run_dir.iterdir()} - _BEGINNING:
        raise UserError(f"{run_dir} is not empty and not a run's folder; choose another run.dir")
    read = {"model.path": cfg.model.path}
    if isinstance(cfg.data, FilesDataConfig | HubDataConfig):
        read["data.path"] = cfg.data.path
    for key, path in read.items():
        if Path(path).resolve().is_relative_to(run_dir.resolve()):
            raise UserError(f"{key}={path} lies in {run_dir}, which --overwrite would remove; choose another run.dir")


def clear(run_dir: Path) -> None:
    """Empty a run's folder but for its verdicts and its config.json, which the next run's replaces: a crash meanwhile
    leaves a run without a checkpoint, no folder of unknown things. Checkpoints go first, so none is left that lost its
    logs."""
    (run_dir / FINISHED).unlink(missing_ok=True)
    atomic_files.remove(run_dir / "checkpoints")
    for path in run_dir.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (CONFIG, LOCK) and not path.name.startswith(VERDICTS):
            path.unlink()


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """One process at a time; the lock ends with the process, however it ends. Makes the folder. Raises UserError when
    another process has it, or it cannot be made."""
    with atomic_files.writing(run_dir, lambda: "Choose another run.dir, or give permission"):
        run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{run_dir}: another process is at work in this run; wait for it, or choose another run.dir",
            code=ErrorCode.RUN_LOCKED,
            file=run_dir,
        ) from None
    except (OSError, NotImplementedError):  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()
