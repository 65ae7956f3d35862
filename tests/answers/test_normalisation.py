"""The normal forms, and what sets them apart from each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulorl.answers.normalisation import (
    clean_characters,
    comparable_answer,
    comparable_question,
    exact_form,
    quantity_spelling,
    strip_typesetting,
)


@given(st.text())
def test_clean_characters_is_idempotent(text: str) -> None:
    assert clean_characters(clean_characters(text)) == clean_characters(text)


@pytest.mark.parametrize(
    ("text", "stripped", "exact", "comparable"),
    [
        (r"$\text{Paris}$.", r"$Paris$.", "paris", "paris"),
        (r"**(A, B)**", "(A, B)", "(a,b)", "**(a,b)**"),
        (r"\left(1,\ 2\right)", "(1, 2)", "(1,2)", "(1,2)"),
        ("x²", "x²", "x²", "x2"),  # only the form for copies takes a raised digit for a plain one
        (r"\dfrac{1}{2}", r"\dfrac{1}{2}", r"\dfrac{1}{2}", r"\frac{1}{2}"),
        ("new york", "new york", "new york", "newyork"),
        (r"\mathbf{\text{B}}", "B", "b", "b"),
    ],
)
def test_forms_of_an_answer(text: str, stripped: str, exact: str, comparable: str) -> None:
    assert (strip_typesetting(text), exact_form(text), comparable_answer(text)) == (stripped, exact, comparable)


def test_forms_of_questions_and_quantities() -> None:
    assert comparable_question(r"Find  $\tfrac12$ of \(X\)?") == comparable_question(r"find $\frac12$ of $x$")
    assert quantity_spelling(r"$x = 3\times 10^{5}\ \mathrm{m/s}$") == "3· 10^5 ⟨m/s⟩"
