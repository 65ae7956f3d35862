"""The script of docs/trl.md runs, shortened."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("trl", reason="the adapter needs TRL (extra trl)")

from paths import ROOT

SHORTER = {"max_steps=20": "max_steps=2", "size=32": "size=8", "steps=4,": "steps=2,", "=0.2,": "=0.35,"}


def test_the_script_of_the_page_trains(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "trl.md").read_text(encoding="utf-8"), re.DOTALL)
    for text, shorter in SHORTER.items():
        assert text in code
        code = code.replace(text, shorter)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/trl.md", "exec"), names)
    logged = names["trainer"].state.log_history[-2]
    assert logged["step"] == 2
    assert 0 <= logged["rewards/task_reward/mean"] <= 1
    assert 0 < logged["mpt/masked_fraction"] < logged["mpt/fraction"]
    assert capsys.readouterr().out.endswith(f"{logged['mpt/masked_fraction']}\n")
