"""User errors carry codes, and docs/errors.md lists them."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

import ulorl
from paths import ROOT
from ulorl.error_codes import ErrorCode
from ulorl.errors import CombinedError, ErrorCollector, UserError

SOURCES = sorted(Path(ulorl.__file__).parent.rglob("*.py"))


def test_the_page_is_made_from_the_codes() -> None:
    maker = runpy.run_path(str(ROOT / "docs" / "make_errors.py"))
    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == maker["page"]()
    assert all(f"\n### `{code}`\n" in maker["page"]() for code in ErrorCode)  # the anchor that an error names


def test_every_code_is_used() -> None:
    names = {
        node.attr
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ErrorCode"
    }
    assert {code.name for code in ErrorCode} - names == set()


def test_every_user_error_has_a_code() -> None:
    without = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("UserError", "EngineMismatch", "Diverged")
        and not any(keyword.arg == "code" for keyword in node.keywords)
    ]
    assert without == []


def test_a_combined_error_has_the_place_of_its_first_part() -> None:
    found = ErrorCollector()
    for number, key in enumerate(("a", "b")):
        with found:
            raise UserError(f"{key} is wrong", code=ErrorCode.CONFIG_BAD_VALUE, key=key, record=f"f:{number}")
    with pytest.raises(CombinedError, match="2 things are wrong") as caught:
        found.raise_errors()
    assert (caught.value.code, caught.value.key, caught.value.record) == (ErrorCode.CONFIG_BAD_VALUE, "a", "f:0")
    assert [part.key for part in caught.value.each()] == ["a", "b"]
