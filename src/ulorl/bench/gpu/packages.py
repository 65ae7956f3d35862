"""Says which packages the checks need and the Python at hand lacks. This module imports the standard library only."""

from __future__ import annotations

import importlib.util
import sys

ALL = (
    "torch",
    "transformers",
    "numpy",
    "safetensors",
    "pydantic",
    "annotated_types",
    "pydantic_core",
    "typing_inspection",
)
QUICKSTART = ("rich", "filelock", "matplotlib", "jinja2", "tensorboard", "sympy", "tqdm")


def missing(names: tuple[str, ...]) -> list[str]:
    """Return the packages of `names` that cannot be imported here."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def how_to_install(names: list[str]) -> str:
    """Return the commands that install packages, on a machine with a network and on one without."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    listed = " ".join(name.replace("_", "-") for name in names)
    return (
        f"missing Python packages: {listed}\n"
        f"  with a network:  {sys.executable} -m pip install {listed}\n"
        f"  without:         where there is a network, pip download --only-binary=:all: --no-deps --python-version "
        f"{python} --dest wheels {listed}; here, make test-gpu WHEELS=wheels"
    )
