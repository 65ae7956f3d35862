"""The wheel and the source distribution: what they contain, and that an installed wheel works outside the clone.

`make test-wheel` runs this file on an empty environment, into which pip installed the wheel and what it asks for. Else
the wheel is installed into an environment that borrows the packages of the one that runs the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

import pytest

from paths import ROOT

pytestmark = pytest.mark.slow

SHORT = ("steps=1", "rollout.prompts=4", "eval.problems=10", "eval.every=0")
LIMIT = 5_000_000  # bytes of the wheel: 2.9 million are the weights of the two tiny models, in float16


def build(folder: Path, out: Path, *targets: str) -> None:
    options = [word for target in targets for word in ("--target", target)]
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(out), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and with the wheel that is built from it alone."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    build(ROOT, out, "sdist")
    with tarfile.open(one(out, ".tar.gz")) as archive:
        archive.extractall(out / "unpacked", filter="data")
    build(next((out / "unpacked").iterdir()), out, "wheel")
    return out


def one(folder: Path, suffix: str) -> Path:
    [found] = folder.glob("ulorl-*" + suffix)
    return found


def tracked() -> set[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip("not a clone")
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


def test_the_source_distribution_is_complete(dist: Path) -> None:
    with tarfile.open(one(dist, ".tar.gz")) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert tracked() - names == set()
    assert {name for name in names if name.startswith((".venv", "runs/", "models/"))} == set()


def test_the_wheel_contains_the_package_and_the_recipes_once(dist: Path) -> None:
    with zipfile.ZipFile(one(dist, ".whl")) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    inside = {name for name in names if name.startswith("ulorl/")}
    of_source = {name.removeprefix("src/") for name in tracked() if name.startswith("src/")}
    of_recipes = {"ulorl/" + name for name in tracked() if name.startswith("recipes/")}
    assert of_source | of_recipes <= inside
    assert {"ulorl/py.typed", "ulorl/recipes/quickstart.toml", "ulorl/recipes/rewards/countdown_judge.txt"} <= inside
    assert {name.split("/")[0] for name in names} == {"ulorl", "ulorl-0.1.0.dist-info"}


def test_the_wheel_is_small_and_says_what_it_needs(dist: Path) -> None:
    wheel = one(dist, ".whl")
    assert wheel.stat().st_size < LIMIT
    with zipfile.ZipFile(wheel) as archive:
        about = Parser().parsestr(archive.read("ulorl-0.1.0.dist-info/METADATA").decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert about.get_all("Provides-Extra") == sorted(project["optional-dependencies"])
    assert len([line for line in about.get_all("Requires-Dist") or [] if "extra ==" not in line]) == len(
        project["dependencies"]
    )
    assert "Typing :: Typed" in (about.get_all("Classifier") or [])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """An environment with the wheel, and without the clone."""
    if given := os.environ.get("ULORL_INSTALLED"):
        return Path(given)
    wheel = one(request.getfixturevalue("dist"), ".whl")
    made = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True, timeout=120)
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    python = str(made / "bin" / "python")
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True, timeout=120)
    [packages] = made.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("-packages")]  # their .pth files, the clone's, do not count
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    return made


@pytest.fixture
def outside(environment: Path, tmp_path: Path) -> Outside:
    return Outside(environment, tmp_path)


class Outside:
    """Commands of an environment, in an empty folder and with few variables."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.bin, self.folder = environment / "bin", folder

    def run(self, name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [str(self.bin / name), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env={**kept, **variables}, capture_output=True, text=True, timeout=240
        )

    def ulorl(self, *arguments: str, code: int = 0) -> str:
        done = self.run("ulorl", *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout


def test_it_is_the_wheel_that_runs(outside: Outside) -> None:
    done = outside.run("python", "-c", "import ulorl; print(ulorl.__file__)")
    assert str(outside.bin.parent) in done.stdout, done.stderr


def test_quickstart_trains(outside: Outside) -> None:
    out = outside.ulorl("quickstart", *SHORT)
    assert out.startswith("A tiny model")
    assert "runs/quickstart/report.html" in out.splitlines()[-3]
    run_dir = outside.folder / "runs" / "quickstart"
    assert (run_dir / "report.html").exists()
    assert json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 1


def test_recipes_are_listed_copied_and_found_by_name(outside: Outside) -> None:
    assert {"gsm8k", "quickstart", "rewards/generative"} <= {line.split()[0] for line in lines(outside, "recipes")}
    assert lines(outside, "recipes", "copy", "gsm8k") == ["recipes/gsm8k.toml"]
    assert (outside.folder / "recipes/gsm8k.toml").read_bytes() == (ROOT / "recipes/gsm8k.toml").read_bytes()
    loaded = outside.run("python", "-c", "import ulorl; print(ulorl.load(['quickstart']).run.dir)")
    assert loaded.stdout.strip() == "runs/quickstart", loaded.stderr


def lines(outside: Outside, *arguments: str) -> Sequence[str]:
    return [line for line in outside.ulorl(*arguments).splitlines() if not line.startswith(" ")]


def test_doctor_finds_every_package_that_the_wheel_needs(outside: Outside) -> None:
    found = json.loads(outside.ulorl("doctor", "--json"))
    assert found["ulorl"] == {"version": "0.1.0", "installed": "from a wheel"}
    assert {name: one for name, one in found["packages"].items() if one["problem"]} == {}
    assert "unknown" not in json.dumps(found)


def test_errors_name_a_command_that_explains_them(outside: Outside) -> None:
    error = outside.ulorl("train", "none.toml", code=2)
    assert error.splitlines()[-1] == "(recipe-not-found; ulorl explain recipe-not-found)"
    assert "Fix: " in outside.ulorl("explain", "recipe-not-found")


def test_the_shell_completes_commands_and_recipes(outside: Outside) -> None:
    assert completed(outside, "ulorl qui") == ["quickstart"]
    assert completed(outside, "ulorl train gsm") == ["gsm8k"]


def completed(outside: Outside, typed: str) -> list[str]:
    """What bash is given as completions, by the command itself."""
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_ULORL_COMPLETE": "complete_bash"}
    return outside.run("ulorl", **words).stdout.split()
