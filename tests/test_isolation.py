"""What tests/conftest.py promises: no test sees the user's folders and settings, nor what other commands left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
HOSTILE = {
    "COLUMNS": "20", "FORCE_COLOR": "1", "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9",
    "HF_HUB_OFFLINE": "0", "HF_HOME": "/nowhere", "WANDB_MODE": "online", "VLLM_LOGGING_LEVEL": "DEBUG",
    "OMP_NUM_THREADS": "7",
}  # fmt: skip


def test_a_test_has_its_own_folders(tmp_path: Path) -> None:
    assert Path.cwd() == tmp_path
    assert not list(tmp_path.iterdir())
    assert Path.home() == tmp_path / "home"


def test_the_settings_of_the_shell_are_gone() -> None:
    assert {name: os.environ.get(name) for name in HOSTILE} == {
        **dict.fromkeys(HOSTILE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def test_a_hostile_shell_changes_nothing(tmp_path: Path) -> None:
    """Another working directory, which holds a finished quickstart of other settings, and a user's variables."""
    foreign = tmp_path / "runs" / "quickstart"
    foreign.mkdir(parents=True)
    (foreign / "config.json").write_text('{"steps": 1}')
    chosen = [
        "cli/test_main.py::test_check_says_what_would_run",
        "test_isolation.py::test_the_settings_of_the_shell_are_gone",
    ]
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", *(str(TESTS / name) for name in chosen)]
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}, **HOSTILE}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
