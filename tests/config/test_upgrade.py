"""Saved configurations of earlier versions: they hold the keys of every kind, and keys under their old names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paths import FIXTURES
from refusals import refused
from ulorl.config import key_messages
from ulorl.config.loading import build, load_saved
from ulorl.config.tree import Config
from ulorl.config.upgrade import upgraded
from ulorl.error_codes import ErrorCode

OLD: dict[str, Any] = json.loads((FIXTURES / "stored_run" / "run" / "config.json").read_text(encoding="utf-8"))


def saved(folder: Path, **changes: Any) -> Config:
    """The stored configuration with other sections, read back."""
    path = folder / "config.json"
    path.write_text(json.dumps({**OLD, **changes}))
    return load_saved(path)


def test_keys_of_other_kinds_are_removed(tmp_path: Path) -> None:
    config = saved(tmp_path)
    assert OLD["reward"].keys() - config.reward.model_dump().keys() == {"function", "verifier"}
    assert OLD["engine"].keys() - config.engine.model_dump().keys() == {"vllm"}
    assert OLD["data"].keys() - config.data.model_dump().keys() == {"split", "subset", "task", "settings", "seed"}
    kept = upgraded(OLD)
    assert build(kept) == config
    assert upgraded(kept) == kept


def test_a_nested_kind_counts(tmp_path: Path) -> None:
    verifier = {**OLD["reward"]["verifier"], "kind": "engine", "name": "v"}
    reward = saved(tmp_path, reward={**OLD["reward"], "kind": "generative", "verifier": verifier}).reward
    dumped = reward.model_dump()["verifier"]
    assert verifier.keys() - dumped.keys() == {
        "base_url", "api_key_env", "concurrency", "timeout", "retries", "max_failures",
    }  # fmt: skip
    assert dumped["engine"]["kind"] == "torch"


def test_held_out_problems_of_another_kind(tmp_path: Path) -> None:
    """A recipe's split stayed when an override named files."""
    config = saved(tmp_path, eval={**OLD["eval"], "data": {"split": "test", "path": "x"}})
    assert config.eval.data == {"path": "x"}
    config = saved(tmp_path, eval={**OLD["eval"], "data": {"kind": "hub", "split": "test", "path": "x"}})
    assert config.eval.data == {"kind": "hub", "split": "test", "path": "x"}


def test_unknown_keys_are_still_refused(tmp_path: Path) -> None:
    with refused(ErrorCode.CONFIG_UNKNOWN_KEY, key="reward.tolerence", file=tmp_path / "config.json"):
        saved(tmp_path, reward={**OLD["reward"], "tolerence": 0.1})


def test_renamed_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(key_messages.RENAMED, "optim.rate", "optim.lr")
    optim = {name: value for name, value in OLD["optim"].items() if name != "lr"}
    assert saved(tmp_path, optim={**optim, "rate": 0.5}).optim.lr == 0.5
    with refused(ErrorCode.CONFIG_RENAMED_KEY, key="optim.rate") as caught:
        build({"data": {"path": "p"}, "optim": {"rate": 0.5}})
    assert "optim.lr" in str(caught.value)
