"""Every test runs in a temporary folder of its own, with an empty home folder and without the user's settings.

What another command left in runs/ or models/, the folder that pytest was started from, and the variables of the user's
shell must not change a result. Tests that need a file of the repository name it by its absolute path. Each process has
one thread: the models are tiny, and `make test` runs a process on every core.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

KEPT = ("ULORL_SMOLLM2", "ULORL_INSTALLED")  # the model of `make test-engines`, the environment of `make test-wheel`
USER_SETTINGS = (  # of this project, of libraries that read the environment, of terminals and of proxies
    "ULORL_", "HF_", "HUGGING", "TRANSFORMERS_", "WANDB_", "TRACKIO_", "MLFLOW_", "OPENAI_", "VLLM_", "XDG_", "MPL",
    "GITHUB_", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "PY_COLORS", "HTTP_PROXY", "HTTPS_PROXY",
    "ALL_PROXY",
)  # fmt: skip

# Before torch and transformers are imported: libraries read some of these only once. The workers of pytest-xdist take
# over the environment of the process that starts them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    for _name in [name for name in os.environ if name.upper().startswith(USER_SETTINGS) and name not in KEPT]:
        del os.environ[_name]
    _home = tempfile.TemporaryDirectory(prefix="ulorl-tests-", ignore_cleanup_errors=True)
    os.environ["HOME"] = os.environ["MPLCONFIGDIR"] = _home.name  # matplotlib takes seconds to list the fonts: once
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = _home.name  # else in the folder that pytest was started from
    os.environ["VLLM_CACHE_ROOT"] = _home.name  # vLLM looks into a kind of model in a process of its own: once
    os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub, nor waits for its time-outs
    os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests start
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # else vLLM binds the processes of two tests to one core
for _name in ("COLUMNS", "LINES"):  # GNU readline, once imported, hands them to every process that is started
    os.environ.pop(_name, None)

import torch  # noqa: E402 - after the environment is set
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)
# No examples from earlier runs: a result must not depend on them. A failure prints how to repeat it.
settings.register_profile("tests", database=None, print_blob=True)
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with slow tests first, so that at the end no process runs alone; the rest of the order stays."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _folder_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the fixtures of a module work, which run between tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("session"))
        yield


@pytest.fixture(autouse=True)
def _folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
