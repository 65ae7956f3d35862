"""Rules that turn plain questions into short-answer ones; the others are left to a model."""

from __future__ import annotations

import pytest

from ulorl.cleaning.conversion_rules import Pending, convert, option_text
from ulorl.cleaning.items import Drop, Item
from ulorl.cleaning.question_shapes import Shape


def item(question: str, answer: str) -> Item:
    return Item("s/1", question, answer, "s", "s:1", question, answer)


def converted(question: str, answer: str, shape: Shape) -> tuple[str, str]:
    outcome = convert(item(question, answer), shape, yes_no=True)
    assert isinstance(outcome, Item), outcome
    assert outcome.changed_by == (shape,)
    assert (outcome.original_question, outcome.original_answer) == (question, answer)
    return outcome.question, outcome.answer


OPTIONS = r"$\textbf{(A)}\ 4\qquad\textbf{(B)}\ \sqrt{5}\qquad\textbf{(C)}\ \frac{1}{2}$"


@pytest.mark.parametrize(
    ("question", "answer", "stem", "value"),
    [
        (f"What is $x$?\n{OPTIONS}", "B", "What is $x$?", r"\sqrt{5}"),
        (f"What is $x$?\n{OPTIONS}", r"\text{(C)}", "What is $x$?", r"\frac{1}{2}"),
        (f"What is $x$?\n{OPTIONS}", r"\sqrt5", "What is $x$?", r"\sqrt5"),  # the reference was a value already
        (f"The length of $AB$ is:\n{OPTIONS}", "A", "The length of $AB$ is ____.", "4"),
        ("Find it. Choose the correct answer from the following options: (a) 0, (b) 1, (c) 2.", "C", "Find it.", "2"),
        ("What is the average? (A) ~76 (B) \\ 150 (C) $3", "A", "What is the average?", "76"),
        ("What is the average? (A) ~76 (B) \\ 150 (C) $3", "B", "What is the average?", "150"),
        ("What is the average? (A) ~76 (B) \\ 150 (C) $3", "C", "What is the average?", "3"),
        ("What is the average? (A) 76 (B) 150 (C) 3", "\\ 150", "What is the average?", "150"),
        ("If a number is doubled, 8 results, so what is the number? (A) 4 (B) 5 (C) 6", "A",
         "If a number is doubled, 8 results, so what is the number?", "4"),
        ("则 $x$ 等于（ ）A．$2i$ B．$-2i$ C．$2$", "B", "则 $x$ 等于____.", "-2i"),
        ("Find $x$. [asy]draw(A--B);[/asy]\n(A) 1 (B) 2 (C) 3", "C", "Find $x$. [asy]draw(A--B);[/asy]", "3"),
        (
            "Find $A$.\n" + r"(A) \( \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix} \) (B) \( 2 \) (C) \( 3 \)",
            "A", "Find $A$.", r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}",
        ),
    ],
)  # fmt: skip
def test_options_off(question: str, answer: str, stem: str, value: str) -> None:
    assert converted(question, answer, Shape.MULTIPLE_CHOICE) == (stem, value)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Which of the following is prime? (A) 4 (B) 5 (C) 6", "B"),
        ("Which of the following is prime? Find it. (A) 4 (B) 5 (C) 6", "B"),
        ("What number among these is prime? (A) 4 (B) 5 (C) 6", "B"),
        ("What is a factor of 12? (A) 5 (B) 7 (C) 3", "C"),
        ("One of the roots of $x^2=4$ is (A) 1 (B) 2 (C) 3", "2"),
        ("An example of an even number is (A) 1 (B) 2 (C) 3", "B"),
        ("What expression is equivalent to $x^2-1$? (A) $(x-1)(x+1)$ (B) 5 (C) 3", "A"),
        ("If $x>2$ then $x$ could equal (A) 1 (B) 3 (C) 2", "B"),
        ("在这些数中最大的是（ ）A. 1 B. 2 C. 3", "C"),
        ("What is $x$? (A) 1 (B) 2 (C) none of these", "none of these"),
        (f"Which number is closest to $\\pi$?\n{OPTIONS}", "A"),  # 4 is right among these only
        ("What is $x$? (A) 1 (B) 2 (C) none of these", "C"),
        ("What is the minimum of $f$? (A) $f \\ge 1$ (B) $f \\ge 2$ (C) $f \\ge 3$", "A"),  # a bound, no value
        ("Find the statement that holds. (A) A set is empty if it has none (B) 2 (C) 3", "A"),
        ("Find the length $k\\sqrt{m}$. (A) 1 (B) 2 (C) 3 Please provide the value of $k + m$.", "7"),
        ("Find all that are true. (A) 1 (B) 2 (C) 3", "A, B"),
        ("What is $x$?\n(i) 1\n(ii) 2\n(iii) 3\nChoose the correct answer.", "ii"),
    ],
)
def test_options_that_are_needed_stay_for_a_model(question: str, answer: str) -> None:
    assert isinstance(convert(item(question, answer), Shape.MULTIPLE_CHOICE, yes_no=True), Pending)


def test_yes_or_no() -> None:
    asked = "Is 91 prime?\nAnswer Yes or No."
    assert converted("Is 91 prime?", "False", Shape.TRUE_FALSE) == (asked, "No")
    assert converted("Is 97 prime?", "yes", Shape.TRUE_FALSE) == ("Is 97 prime?\nAnswer Yes or No.", "Yes")
    assert isinstance(convert(item("Is the limit 2?", "2"), Shape.TRUE_FALSE, yes_no=True), Pending)
    assert isinstance(convert(item("Is 91 prime?", "No"), Shape.TRUE_FALSE, yes_no=False), Pending)


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (r"Show that $\int_0^1 x\,dx = \frac{1}{2}$.", r"\dfrac{1}{2}", r"Find $\int_0^1 x\,dx$."),
        (r"Let $G$ be finite. Prove that \( \mu(G) = -1 \).", "-1", r"Let $G$ be finite. Find $\mu(G)$."),
        ("If $a+b=0$, show that $ab = 3$", "3", "If $a+b=0$, find $ab$."),
        ("Prove that the determinant of $A$ is equal to 1.", "1", "Find the determinant of $A$."),
        (
            "What is the sum of the digits of $2^{10}$? Show that it is $7$.",
            "7",
            "What is the sum of the digits of $2^{10}$?",
        ),
    ],
)
def test_claims_of_a_value(question: str, answer: str, expected: str) -> None:
    assert converted(question, answer, Shape.PROOF) == (expected, answer)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (r"Show that $x \le 4$.", "4"),
        ("Prove that $p = v$.", "v"),  # no constant
        (r"Prove that \( f \) vanishes only at \( x = 0 \).", "0"),  # two formulas
        ("Show that $ab = 3$.", "5"),  # another reference
        ("Prove that $x = 3$.", "3"),  # Find x, of which nothing is known
        ("Prove that $G$ is abelian.", "abelian"),
        ("What is the limit? Show that it is $7$.", "8"),  # another reference
    ],
)
def test_other_proofs_stay_for_a_model(question: str, answer: str) -> None:
    assert isinstance(convert(item(question, answer), Shape.PROOF, yes_no=True), Pending)


def test_subquestions_go() -> None:
    assert convert(item("(a) Find x. (b) Find y.", "1"), Shape.SUBQUESTIONS, yes_no=True) == Drop(
        "several sub-questions"
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (r"\ 4\qquad", "4"),
        (r"\( \frac{1}{4}\)  \(\quad\)", r"\frac{1}{4}"),
        (r"\frac{\sqrt{3}}{12} }", r"\frac{\sqrt{3}}{12}"),
        ("$3$ ", "3"),
        (" 3;", "3"),
        ("{x", ""),
    ],
)
def test_option_text(body: str, text: str) -> None:
    assert option_text(body) == text
