"""The steps that need no model: characters, short answers, lengths, languages, duplicates, contamination."""

from __future__ import annotations

import pytest

from ulorl.cleaning.cleaning_config import (
    ContaminationConfig,
    DuplicatesConfig,
    LanguageConfig,
    LengthsConfig,
    ShortAnswersConfig,
)
from ulorl.cleaning.contamination import drop_contaminated
from ulorl.cleaning.duplicates import drop_duplicates
from ulorl.cleaning.items import Drop, Item, Outcome, Step
from ulorl.cleaning.length_and_language import check_language, check_length
from ulorl.cleaning.normalise_step import normalise
from ulorl.cleaning.reference_answers import check_short, short_answer, shorten_answer


def item(question: str, answer: str = "1", name: str = "s/1") -> Item:
    return Item(name, question, answer, "s", "s:1", question, answer)


def items(*questions: str, answers: str = "") -> list[Item]:
    given = answers.split() or ["1"] * len(questions)
    return [item(q, a, f"s/{n}") for n, (q, a) in enumerate(zip(questions, given, strict=True), 1)]


def outcomes(step: Step, given: list[Item]) -> list[Outcome]:
    found = list(step(given))
    assert len(found) == len(given)
    return found


def reasons(step: Step, given: list[Item]) -> list[str]:
    return [outcome.reason if isinstance(outcome, Drop) else "" for outcome in outcomes(step, given)]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Find\u00a0\u200bx \t now.  \r\n\r\n\r\n\r\nOk?", "Find x now.\n\nOk?"),
        ("Caf\u0065\u0301 x² stays", "Café x² stays"),  # NFC, not NFKC: x² is not x2
        (r"Find x.\n\nA. 1\nB. 2 and $\nu\neq\nabla$", "Find x.\n\nA. 1\nB. 2 and $\\nu\\neq\\nabla$"),
        ("Find x. Please reason step by step, and put your final answer within \\boxed{}.", "Find x."),
        ("Find x. \\( \\boxed{} \\)", "Find x."),
        ("$\text{a}\frac12\beta\right)$ and\tso on", r"$\text{a}\frac12\beta\right)$ and so on"),  # escapes of Python
        ("求 x.\n让我们一步一步地思考。请以“Answer: \\boxed{}”的格式输出最终答案。请只输出数值。", "求 x."),
    ],
)  # fmt: skip
def test_normalise(question: str, expected: str) -> None:
    outcome = normalise(item(question))
    assert isinstance(outcome, Item)
    assert outcome.question == expected
    assert outcome.original_question == question


def test_normalise_drops_empty_texts() -> None:
    assert normalise(item(" \u200b\n")) == Drop("empty question")
    assert normalise(item("x?", "\u00a0")) == Drop("empty answer")


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("48/2 = <<48/2=24>>24\n#### 1,350", "1350"),
        ("#### -3.5", "-3.5"),
        (r"So $x = \boxed{\frac{1}{2}}$, or \boxed{\sqrt{\frac{3}{4}}}.", r"\sqrt{\frac{3}{4}}"),
        ("First 3. The answer is $x = 4$. Done", "x = 4"),
        ("最终答案是：12。", "12"),
        ("$\\frac12$.", "\\frac12"),
        ("\\(\\text{Yes}\\)", "Yes"),
        ("{odd}", "odd"),
        ("(1, 350)", "(1, 350)"),
        ("1,350", "1,350"),  # could be two numbers
        (r"\{1, 2\}", r"\{1, 2\}"),
        ("~76", "76"),
        (r"\ 150", "150"),
        (r"5\ ", "5"),
        (r"$\,7$", "7"),
        ("$76", "76"),
        ("76$.", "76"),
        (r"\(x+1", "x+1"),
        ("$5$ or $7$", "$5$ or $7$"),
        (r"\$18.90", r"\$18.90"),
        ("4e-05", "0.00004"),  # what str() made of a number
        ("1.5e+22", "15" + "0" * 21),
        ("2e-1", "2e-1"),  # two e, minus one
    ],
)
def test_short_answer(reference: str, answer: str) -> None:
    assert short_answer(reference) == answer
    assert short_answer(answer) == answer


def test_extraction_is_recorded() -> None:
    changed = shorten_answer(item("x?", "#### 7"))
    assert (changed.answer, changed.original_answer, changed.changed_by) == ("7", "#### 7", ("answers",))
    assert shorten_answer(item("x?", "7")).changed_by == ()


def test_references_without_a_short_answer() -> None:
    texts = [
        r"\begin{pmatrix}1\\2\end{pmatrix}",
        "1" * 65,
        r"\left( 1,\quad 2 \right)",
        "Since x is even we know that it is no odd number",
    ]
    given = [shorten_answer(item("x?", text)) for text in texts]
    assert reasons(check_short(ShortAnswersConfig()), given) == ["matrix", "long answer", "", "no short answer"]
    assert reasons(check_short(ShortAnswersConfig(matrices="keep", max_chars=65)), given[:2]) == ["", ""]


def test_lengths() -> None:
    step = check_length(LengthsConfig(min_chars=5, max_chars=20))
    assert reasons(step, items("1 + 1?", "Find 2+3.", "x" * 21)) == ["short question", "", "long question"]


def test_languages() -> None:
    """French and German by their words, Japanese by its script; formulas alone say nothing."""
    given = items(
        "Let $x$ be a real number with $x^2 = 2$. Find the largest integer below $10x$.",
        "Trouver la somme de tous les entiers positifs qui divisent le nombre donné ci-dessous.",
        "Bestimme alle reellen Zahlen, für die die folgende Gleichung genau eine Lösung besitzt.",
        "实数 $x$ 满足 $x^2=2$，求最大的整数。",
        "実数を求めよ。",
        r"$\int_0^1 x\,dx = ?$",
    )
    assert reasons(check_language(LanguageConfig()), given) == ["", "language", "language", "", "language", ""]
    assert reasons(check_language(LanguageConfig(allowed=("fr",))), given)[:3] == ["language", "", "language"]


def same(reference: str, answer: str) -> bool | None:
    """As a judge: 1/2 is 0.5, and it fails on ?"""
    return None if "?" in answer else {reference, answer} == {"1/2", "0.5"}


LONG = (
    "A farmer walks from the village to the market at {} km an hour and takes {} hours for the way, "
    "carrying two baskets of apples"
)


def test_duplicates() -> None:
    given = items(
        "Find $x$ now.", "find x now", LONG.format(4, 3) + ".", LONG.format(4, 3) + " home.", LONG.format(5, 3) + ".",
        answers="1/2 0.5 12 12 12",
    )  # fmt: skip
    found = outcomes(drop_duplicates(DuplicatesConfig(), same), given)
    assert [isinstance(o, Item) for o in found] == [True, False, True, False, True]  # other numbers, another problem
    assert found[1] == Drop("duplicate", "of s/1")
    # 25 words and the runs of three among them, 23; " home" adds one: 23 of 24
    assert found[3] == Drop("near-duplicate", "of s/3, Jaccard 0.96")


def test_references_that_contradict_each_other_are_all_dropped() -> None:
    given = items("Find $x$ now.", "find x now", "Find x now!", answers="1 2 1")
    found = outcomes(drop_duplicates(DuplicatesConfig(), same), given)
    assert [o.reason for o in found if isinstance(o, Drop)] == ["contradicting references"] * 3
    assert found[0] == Drop("contradicting references", "s/2 has 2; s/3 has 1")


def test_a_judge_that_fails_decides_nothing() -> None:
    first, second = outcomes(drop_duplicates(DuplicatesConfig(), same), items("Find x.", "find x", answers="1 2?"))
    assert isinstance(first, Item)
    assert first.undecided_by == ("duplicates",)
    assert second == Drop("duplicate", "of s/1")


def test_near_copies_with_other_answers_stay() -> None:
    given = items(LONG.format(4, 3) + ". How far?", LONG.format(4, 3) + ". How long?", answers="12 3")
    assert reasons(drop_duplicates(DuplicatesConfig(), same), given) == ["", ""]


EVALUATION = [item("What is the sum of all the primes below one hundred that end in three, as an integer?", name="e/1")]


def contaminated(questions: list[str], **settings: object) -> list[str]:
    step = drop_contaminated(ContaminationConfig.model_validate(settings), [*EVALUATION, item("1 + 2?", name="e/2")])
    return reasons(step, items(*questions))


def test_contamination() -> None:
    overlap, copy = "overlap with evaluation", "evaluation problem"
    assert contaminated(
        [
            "$1+2$",  # too short for a run: equal as a whole
            "1 + 3?",
            "what is the sum of all the primes below one hundred that end in three, AS AN $INTEGER$",
            "What is the sum of all the primes below one hundred that end in seven?",  # the first 13 words
            "What is the sum of all the primes below one hundred which end in three?",  # 10 words
        ]
    ) == [copy, "", copy, overlap, "evaluation problem in other words"]


@pytest.mark.parametrize(
    ("known", "question", "copied"),
    [
        (r"Solve for $x: 5^{2x} + 21 = 12^x$.", r"Determine the real number $t$ satisfying $5^{2t}+21=12^{t}$.", True),
        (r"Solve for $x$: $\frac{x}3 + \frac{x}4 = 7$", r"For which $t$ is $\dfrac{t}{3}+\dfrac{t}{4}=7$?", True),
        ("Find the units digit of $17^8.$", "What is the last digit of $17^8$?", True),
        ("Which number is one less than twice its half?", "Find the number 1 less than 2 times its half.", True),
        ("Simplify $\\tan 110^\\circ + 4 \\sin 110^\\circ.$", "Evaluate $4\\sin 110^\\circ+\\tan 110^\\circ$.", True),
        ("Find the units digit of $17^8.$", "What is the last digit of $17^9$?", False),  # another number
        ("In how many ways can ELLIPSE be arranged?", "In how many ways can RADII be arranged?", False),
        ("How much is $3 + 4$?", "A jar holds 3 red and 4 blue marbles. How many does it hold?", False),
    ],
)  # fmt: skip
def test_short_problems_in_other_words(known: str, question: str, copied: bool) -> None:
    (found,) = reasons(drop_contaminated(ContaminationConfig(), [item(known, name="e/1")]), items(question))
    assert found == ("evaluation problem in other words" if copied else "")
    assert reasons(drop_contaminated(ContaminationConfig(short=0), [item(known, name="e/1")]), items(question)) == [""]


def test_phrases_do_not_count() -> None:
    """A run that occurs in more questions than `common` is how people write, not a copy."""
    phrase = "What is the sum of all the primes below one hundred that end in {}?"
    questions = [phrase.format(f"x{n} and y{n * 7} and z{n * 3}") for n in range(4)]
    assert contaminated(questions, common=4) == ["overlap with evaluation"] * 4
    assert contaminated(questions, common=3) == [""] * 4


def test_how_much_must_be_shared() -> None:
    """13 of the 17 words of the evaluation problem are 76%."""
    question = "What is the sum of all the primes below one hundred that end in nine, and not in seven or one?"
    assert contaminated([question], share=0.8) == [""]
    assert contaminated([question], share=0.7) == ["overlap with evaluation"]


def test_chinese_runs_are_characters() -> None:
    evaluation = [item("已知正整数数列满足对任意正整数都有相邻两项之和为平方数求首项的最小可能值", name="e/1")]
    step = drop_contaminated(ContaminationConfig(run_han=20), evaluation)
    given = items("已知正整数数列满足对任意正整数都有相邻两项之和为立方数", "已知正整数数列满足条件，求首项")
    assert reasons(step, given) == ["overlap with evaluation", ""]  # 23 characters in common, and 9
