"""The checks of `make test-gpu`, run on a CPU at small sizes: the same code, comparisons and limits as on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from paths import ROOT
from ulorl.bench.gpu import update
from ulorl.bench.gpu.__main__ import main
from ulorl.bench.gpu.case import Case, CheckError, NotPossibleError, Setting
from ulorl.bench.gpu.models import SHAPES, random_model
from ulorl.bench.gpu.one_check import result_of
from ulorl.bench.gpu.runner import CHECKS, Check, run_checks, run_one

pytestmark = pytest.mark.slow
SMALL = Setting("cpu", small=True)
NEEDS_A_GPU = {"flash-attention on packed samples"}


@pytest.mark.parametrize("check", [check.name for check in CHECKS])
def test_every_case_passes_on_a_cpu(check: str) -> None:
    for case in import_module(f"ulorl.bench.gpu.{check}").cases(SMALL):
        result = result_of(case)
        assert result["status"] == ("not run" if case.name in NEEDS_A_GPU else "ok"), result
        json.dumps(result)


def test_a_wrong_result_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose log-probs are off, and a kernel whose gradients are."""
    from ulorl.bench.gpu import engine, logprobs

    draw = engine.draw
    monkeypatch.setattr("ulorl.engines.torch.torch_engine.draw", lambda *given: (draw(*given)[0], draw(*given)[1] - 1))
    parity = engine.cases(SMALL)[0].run
    with pytest.raises(CheckError, match="log-probs differ"):
        parity()
    method = logprobs.METHODS["ulorl"]
    monkeypatch.setitem(logprobs.METHODS, "ulorl", lambda h, w, t: tuple(1.1 * x for x in method(h, w, t)))
    with pytest.raises(CheckError, match="ulorl: logprobs"):
        logprobs.cases(SMALL)[0].run()


@pytest.mark.parametrize(
    ("error", "status"), [(torch.OutOfMemoryError("no memory"), "failed"), (NotPossibleError("no card"), "not run")]
)
def test_an_error_is_recorded_with_its_line(error: Exception, status: str) -> None:
    def fails() -> dict[str, object]:
        raise error

    result = result_of(Case("a case", fails))
    assert result["status"] == status
    assert str(error) in result["reason"]
    if status == "failed":
        assert "raise error" in result["where"]


def test_a_check_that_is_killed_does_not_stop_the_others(tmp_path: Path) -> None:
    """The first one is stopped while it starts; the second one works."""
    out = tmp_path / "gpu.json"
    records = run_checks([Check("engine", 0.2), Check("machine", 60)], "cpu", "small", seconds=90, out=out)
    assert [record["status"] for record in records] == ["failed", "ok", "ok"]
    assert records[0]["reason"] == "stopped after 0 s"
    stored = json.loads(out.read_text())
    assert stored["results"] == records
    assert stored["results"][1]["figures"]["versions"]["torch"] == torch.__version__


def test_a_process_that_dies_fails_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of the check ends the process in its second case: the third is not run."""
    package = tmp_path / "ulorl_dying.py"
    package.write_text(
        "import os, sys, types\n"
        "from ulorl.bench.gpu.case import Case\n"
        "dying = types.ModuleType('ulorl.bench.gpu.dying')\n"
        "dying.cases = lambda _: [Case('a', dict), Case('b', lambda: os.kill(os.getpid(), 11)), Case('c', dict)]\n"
        "sys.modules['ulorl.bench.gpu.dying'] = dying\n"
    )
    (tmp_path / "sitecustomize.py").write_text("import ulorl_dying\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT / 'src'}")
    records = run_one(Check("dying", 60), "cpu", "small", seconds=60)
    assert [(record["case"], record["status"]) for record in records] == [
        ("a", "ok"),
        ("b", "failed"),
        ("c", "not run"),
    ]
    assert "signal 11" in records[1]["reason"]


def test_without_time_nothing_is_run_and_nothing_fails(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--small", "--minutes", "0", "--json", str(tmp_path / "gpu.json")]
    assert main(arguments) == 0
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert {result["check"] for result in results} == {check.name for check in CHECKS}
    assert {result["reason"] for result in results} == {"out of time"}


@pytest.mark.parametrize("name", ["pydantic", "transformers"])
def test_a_missing_package_is_named(name: str, tmp_path: Path) -> None:
    """A Python that cannot find the package says which one, and how to install it."""
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda n, *a: None if n == {name!r} else find(n, *a)\n"
        f"sys.modules[{name!r}] = None\n"
        "from ulorl.bench.gpu.__main__ import main\n"
        "sys.exit(main(['--device', 'cpu', '--small']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert f"missing Python packages: {name}\n" in done.stderr
    assert "WHEELS=" in done.stderr


@pytest.mark.parametrize("name", update.FALLING)
def test_shapes_are_those_of_the_published_models(name: str) -> None:
    with torch.device("meta"):
        model = random_model(name, dtype=torch.bfloat16, device="meta", positions=64)
    assert model.num_parameters() == SHAPES[name].parameters


def test_the_largest_model_that_fits_is_tried_first() -> None:
    gigabyte = 10**9
    assert update.attempts(10 * gigabyte, update.LONG) == []
    for free, name in ((83 * gigabyte, "Qwen3-4B"), (149 * gigabyte, "Qwen3-8B")):  # an H100 and an H200
        found = update.attempts(free, update.LONG)
        assert found[0].name == name
        assert [attempt.name for attempt in found] == sorted((a.name for a in found), key=update.FALLING.index)
        assert all(attempt.needed_bytes(update.LONG) < free for attempt in found)
