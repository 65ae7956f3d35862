"""docs/metrics.md documents every metric of metrics.jsonl, and nothing else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import ulorl
from paths import ROOT
from ulorl.learner.age_names import AGE_MEANS, AGES

PACKAGE = Path(ulorl.__file__).parent
# The adapters' metrics are those of other trainers, which docs/trl.md and docs/verl.md document.
SOURCES = sorted({*PACKAGE.rglob("*.py")} - {*(PACKAGE / "adapters").rglob("*.py")})
PREFIXES = "reward|rollout|engine|train|entropy|mpt|importance|age|mismatch|time|checkpoint|eval|verifier"
NAME = re.compile(rf"(?:{PREFIXES})/[a-z0-9_/]*[a-z0-9]")
ROW = re.compile(r"^\| `([a-zA-Z0-9_/]+)` \|([^|]*)\|(.*)\|$", flags=re.MULTILINE)


def documented() -> dict[str, str]:
    """Return what the page says of each metric, ages written out."""
    found = {}
    for name, _, meaning in ROW.findall((ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")):
        ages = [name.replace("age/A", age) for age in AGES] if name.startswith("age/A") else [name]
        assert not found.keys() & set(ages), f"{name} has two rows"
        found |= dict.fromkeys(ages, meaning.strip())
    return found


def in_the_code() -> set[str]:
    """Return every text of the package that has the form of a metric's name, and the names that the code composes."""
    texts = {
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    composed = {f"{age}/{name}" for age in AGES for name in AGE_MEANS}
    return {text for text in texts if NAME.fullmatch(text)} | composed | {"step", "version"}


def test_every_metric_of_the_code_is_documented_and_no_other() -> None:
    names = documented()
    assert names.keys() == in_the_code()
    assert all(names.values())
