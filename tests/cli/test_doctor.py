"""`ulorl doctor` says what is there and what is missing, fails for nothing, and shows no secret."""

from __future__ import annotations

import importlib.metadata
import json
import sys

import pytest

from ulorl.cli import doctor

REQUIRES = [
    "torch<3,>=2.9",
    "absent>=1",
    'numpy>=900; extra == "new"',
    'absent; extra == "tasks"',
    'numpy; extra == "ok"',
]


@pytest.fixture
def requires(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata of a package with one extra that is complete, one that is missing and one that is too old."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: REQUIRES)
    metadata = importlib.metadata.metadata("numpy")
    del metadata["Provides-Extra"]
    for name in ("new", "tasks", "ok"):
        metadata["Provides-Extra"] = name  # adds one
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: metadata)


@pytest.mark.usefixtures("requires")
def test_missing_and_old_packages_are_named_with_their_remedy() -> None:
    facts = doctor.examine()
    assert {name: one["problem"] for name, one in facts["packages"].items()} == {"torch": "", "absent": "missing"}
    assert {name: extra["complete"] for name, extra in facts["extras"].items()} == {
        "new": False, "tasks": False, "ok": True,
    }  # fmt: skip
    text = doctor.as_text(facts)
    assert "absent (missing)" in text
    assert 'pip install "ulorl[tasks]"' in text
    assert "(needs >=900)" in text
    assert "ulorl[ok]" not in text


def test_nothing_that_is_missing_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise importlib.metadata.PackageNotFoundError("ulorl")

    for name in ("requires", "metadata", "distribution"):
        monkeypatch.setattr(importlib.metadata, name, absent)
    for name in ("torch", "packaging.requirements"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(doctor.os, "sysconf", lambda _: int("no number"))
    facts = doctor.examine()
    assert facts["gpus"] == facts["capability"] == {"unknown": "ModuleNotFoundError of torch"}
    assert isinstance(facts["processor"], str)
    assert "unknown" in facts["memory"]
    assert "ulorl       0.1.0, unknown (PackageNotFoundError of ulorl)" in doctor.as_text(facts)
    json.loads(doctor.as_json(facts))


def test_no_value_of_the_environment_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "very-private")
    facts = doctor.examine()
    assert "very-" not in doctor.as_text(facts) + doctor.as_json(facts)
    assert "limited by ATEN_CPU_CAPABILITY" in doctor.as_text(facts)


def test_cards_that_torch_does_not_see_are_said() -> None:
    gpus = {"cards": [], "cuda": None, "hip": None, "mps": False, "of_the_driver": 8}
    assert doctor._gpus_text(gpus) == (
        "none; torch is built for neither CUDA nor HIP; the driver of NVIDIA knows 8, torch sees 0"
    )
    one = {**gpus, "cards": [{"name": "H100", "memory": 80 * 10**9}], "cuda": "12.8", "of_the_driver": 1}
    assert doctor._gpus_text(one) == "H100 80 GB; torch is built for cuda 12.8"
