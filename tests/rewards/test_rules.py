"""Rewards by rules: which answer counts, what is equal, what cannot hang, and agreement with labelled data."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paths import SHARED
from refusals import refused
from ulorl.answers.choices import chosen_letters
from ulorl.answers.equality import numeric_score
from ulorl.answers.extraction import last_boxed
from ulorl.config.reward_config import (
    ChoiceRewardConfig,
    ExactRewardConfig,
    MathRewardConfig,
    NumericRewardConfig,
    RewardConfig,
)
from ulorl.config.unions import variants_of
from ulorl.error_codes import ErrorCode
from ulorl.rewards.factory import make_reward
from ulorl.rewards.reward import RewardError, Verdict
from ulorl.rewards.rules import RulesVerdict, compare_by_rules, equal_by_rules
from ulorl.rewards.sandbox import Sandbox
from ulorl.types import Problem

VERIFIER = SHARED / "verifier"
reward = make_reward(MathRewardConfig())


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        # which answer counts
        ("12", "7 + 5 = 12.", 1),
        ("12", "7 + 5 = 13.", 0),
        ("12", "The answer is **12**", 1),
        ("5", r"\boxed{3}, no: \boxed{5}", 1),
        ("5", r"The answer is \boxed{5}. Checked by adding 2 and 3, and by 4.", 1),
        ("4", r"The answer is \boxed{5}. Checked by adding 2 and 3, and by 4.", 0),
        ("12", "", 0),
        ("12", "I do not know.", 0),
        ("12", r"12, so \boxed{}", 0),
        # what is equal
        ("073", "73", 1),
        ("73", r"\boxed{073}", 1),
        (r"336^\circ", r"\boxed{336}", 1),
        ("336", r"\boxed{336^\circ}", 1),
        ("1,000", "it is 1000", 1),
        ("1000", r"\boxed{1,000}", 1),
        ("10{,}000", "10000", 1),
        (r"\frac12", "0.5", 1),
        ("1/3", "0.3333", 0),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}", 1),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(\pi/2, 3)}", 0),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", 1),
        (r"\text{Evelyn}", r"\boxed{\text{Carla}}", 0),
    ],
)
def test_answers(reference: str, text: str, expected: int) -> None:
    assert reward(Problem("p", "?", reference), text).reward == expected


NUMBERS = [  # reference, answer, equal
    # spellings of a number
    ("300000", r"3 \times 10^{5}", 1),
    ("3e5", "3 × 10^5", 1),
    (r"3 \cdot 10^{-2}", "0.03", 1),
    ("3e5", "3e6", 0),
    ("1,234,567", "1234567", 1),
    ("1{,}234", "1 234", 1),
    (r"1,\!657", "1657", 1),
    ("1,234", "1.234", 0),
    (r"1\frac{1}{2}", "1.5", 1),
    (r"1\frac12", "3/2", 1),
    (r"1\frac12", "11/2", 0),
    (r"\dfrac{3}{4}", "$.75$", 1),
    (r"-\frac{1}{2}", "−0.5", 1),
    ("5", "-5", 0),
    ("2 million", "2,000,000", 1),
    (r"\$2 \text{ million}", "2000000 dollars", 1),
    ("5", "x = 5", 1),
    ("1/3", "0.333", 0),
    ("1000000001", "1000000000", 0),
    (r"\sqrt{2}", "1.41421356237309505", 1),
    (r"\sqrt{2}", "1.414", 0),
    (r"\frac{\pi}{2}", "1.5707963267948966", 1),
    ("3", "3, 4", 0),
    ("3", "3 or 4", 0),
    ("10", "10x", 0),
    ("10", "10i", 0),
    ("10", "", 0),
    ("12", "1e99999", 0),
    # units
    ("0.27 m", "27cm", 1),
    ("27cm", "0.27 m", 1),
    ("27 cm", "27 m", 0),
    ("27 cm", "0.27 cm", 0),
    (r"20\text{ miles}", "20 km", 0),
    (r"20\text{ miles}", "32.18688 km", 1),
    (r"2400 \mbox{ cm}^2", r"0.24\ \mathrm{m^2}", 1),
    ("2 square meters", "20000 cm²", 1),
    ("2 square meters", "200 cm²", 0),
    ("1 L", "1000 cm^3", 1),
    ("1 acre", "43560 sq. ft.", 1),
    ("100 m^2", "1 hectare", 0),
    (r"18 \text{ km/h}", "5 m/s", 1),
    ("18 km per hour", "5 meters per second", 1),
    ("18 kmh", "18 m/s", 0),
    ("60 mph", "60 miles per hour", 1),
    (r"5\ \mathrm{J}", r"5\ \mathrm{N}\cdot\mathrm{m}", 1),
    ("5 J", "5 N", 0),
    ("5 J/(kg K)", "5 J kg^-1 K^-1", 1),
    ("1 1/2 hours", "90 minutes", 1),
    (r"40\text{ min}", "2400 s", 1),
    ("1.5 kg", "1500 mg", 0),
    ("1 MW", "1000000 W", 1),
    ("1 MW", "1 mW", 0),
    (r"12\sqrt{13}\text{ feet}", "43.2666153055679 ft", 1),
    (r"12\sqrt{13}\text{ feet}", r"144\sqrt{13} \text{ inches}", 1),
    ("68°F", "20°C", 1),
    (r"20^\circ \text{C}", "20°F", 0),
    ("20 °C", "293.15 K", 1),
    (r"\$5", "500 cents", 1),
    ("$5.50", "5.5 USD", 1),
    (r"\$2", "2 euros", 0),
    ("18 dogs", "18 dog", 1),
    ("18 dogs", "18 cats", 0),
    ("18 dogs", "18 cm", 0),
    # one side names a unit
    (r"20\text{ miles}", "20", 1),
    ("20", r"20\text{ miles}", 1),
    ("0.27", "27 cm", 0),  # the question asked for metres, and the answer is not in metres
    (r"34\text{ sq. units}", "34", 1),
    ("50", r"50\%", 1),
    (r"50\%", "50", 1),
    ("0.5", r"50\%", 1),
    (r"50\%", r"\frac12", 1),
    (r"50\%", "0.05", 0),
    (r"90^\circ", "90", 1),
    (r"90^\circ", r"\frac{\pi}{2}", 1),
    (r"90^\circ", "91", 0),
    # no number: compared as text
    ("Paris", r"\text{paris}.", 1),
    (r"8\!:\!34 \text{ p.m.}", "8:34 p.m.", 1),
    ("8:34", "8.34", 0),
    ("3/0", "3", 0),
]


@pytest.mark.parametrize(("reference", "answer", "expected"), NUMBERS)
def test_numbers_with_units(reference: str, answer: str, expected: int) -> None:
    assert numeric_score(reference, answer) == expected


@pytest.mark.parametrize(
    ("settings", "reference", "answer", "expected"),
    [
        ({"tolerance": 0.01}, "3.14", r"\boxed{\pi}", 1),  # 0.00159 <= 0.01 * 3.14
        ({"tolerance": 0.0005}, "3.14", r"\boxed{\pi}", 0),  # 0.00159 > 0.0005 * 3.14 = 0.00157
        ({"tolerance": 0.01}, "100 cm", r"\boxed{1.01\text{ m}}", 1),
        ({"tolerance": 0.01}, "100 cm", r"\boxed{1.02\text{ m}}", 0),
        ({"absolute_tolerance": 0.5}, "20°C", r"\boxed{68.5\text{°F}}", 1),  # 36.5 * 5/9 = 20.28
        ({"absolute_tolerance": 0.5}, "20°C", r"\boxed{69\text{°F}}", 0),  # 37 * 5/9 = 20.56
        ({"units": "strict"}, "27 cm", r"\boxed{27}", 0),
        ({"units": "strict"}, "27 cm", r"\boxed{0.27\text{ m}}", 1),
        ({"units": "strict"}, "27", r"\boxed{27\text{ m}}", 1),
        ({"units": "strict"}, r"50\%", r"\boxed{0.5}", 1),
        ({"units": "strict"}, r"50\%", r"\boxed{50}", 0),
    ],
)
def test_tolerances_and_strict_units(settings: dict[str, Any], reference: str, answer: str, expected: int) -> None:
    assert make_reward(NumericRewardConfig(**settings))(Problem("p", "?", reference), answer).reward == expected


CONVERSIONS = [  # 1 of the first is this many of the second
    ("cm", r"\text{m}", "1/100"), ("inches", "cm", "2.54"), ("km/h", "m/s", "5/18"), ("hours", "min", "60"),
    ("kg", "grams", "1000"), ("L", "cm^3", "1000"), ("miles", "km", "1.609344"), (r"\text{ m}^2", "cm^2", "10000"),
    ("dollars", "¢", "100"), (r"\%", "", "1/100"), ("kJ", "N m", "1000"), ("ft", "in", "12"),
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.fractions(-1000, 1000, max_denominator=1000), st.sampled_from(CONVERSIONS), st.sampled_from([1, -1]))
def test_a_quantity_equals_itself_in_another_unit_and_no_other(
    value: Fraction, conversion: tuple[str, str, str], sign: int
) -> None:
    first, second, factor = conversion
    here, there = f"{value} {first}", f"{value * Fraction(factor)} {second}"
    off = value + sign * max(abs(value), Fraction(1)) / 1000
    if second:  # a percentage and a plain number may also be equal as they stand
        assert numeric_score(there, f"{off} {first}") == numeric_score(f"{off} {first}", there) == 0
    assert numeric_score(here, there) == numeric_score(there, here) == numeric_score(here, here) == 1


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("Paris", "paris.", 1),
        ("Paris", r"$\text{Paris}$", 1),
        ("new  York", "**New York**", 1),
        (r"\left( 3, 4 \right)", r"( 3,\,4 )", 1),
        (r"(3, 4)", r"\(\left(3,\ 4\right)\)", 1),
        ("x^2", "x²", 0),
        ("yes", '"Yes"', 1),
        ("1/2", "0.5", 0),
        ("not Paris", "Paris", 0),
        (r"\mathrm{CaCO_3}", "CaCO_3", 1),
    ],
)
def test_exact(reference: str, answer: str, expected: int) -> None:
    exact = make_reward(ExactRewardConfig())
    assert exact(Problem("p", "?", reference), f"So: \\boxed{{{answer}}}").reward == expected


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("(B)", "B"), ("B.", "B"), ("b", "B"), ("B) 7 cm", "B"), ("(b) 7 cm", "B"), ("B: 7", "B"), ("C. Paris", "C"),
        (r"\text{B}", "B"), (r"\text{(B)}", "B"), (r"\textbf{(C)}\ 12", "C"), ("**B**", "B"), ("option B", "B"),
        ("The correct answer is B", "B"), ("Option (D).", "D"), ("so the correct option is D", "D"),
        ("I think (B) is right", "B"), ("A, C", "AC"), ("A and C", "AC"), ("(A), (C)", "AC"), ("A, B, and D", "ABD"),
        ("ABD", "ABD"), ("BAD", ""), ("either (A) or (B)", ""), ("A car", ""), ("7", ""), ("", ""),
    ],
)  # fmt: skip
def test_letters_of_choices(answer: str, letters: str) -> None:
    assert (chosen_letters(answer) or frozenset()) == frozenset(letters)


@pytest.mark.parametrize(
    ("reference", "meta", "text", "expected"),
    [
        ("B", {}, r"\boxed{\text{(B)}}", 1),
        ("(B)", {}, "So it is clear.\nAnswer: B) 7 cm", 1),
        ("B", {}, "The options are (A) and (B).\nI take option A.", 0),
        ("A, C", {}, r"\boxed{C, A}", 1),
        ("A, C", {}, r"\boxed{A}", 0),
        ("B", {"options": ["6 cm", "7 cm"]}, r"\boxed{7\text{ cm}}", 1),
        ("7 cm", {"options": ["A. 6 cm", "B. 7 cm"]}, r"\boxed{B}", 1),
        ("B", {"choices": {"A": "6 cm", "B": "7 cm"}}, r"\boxed{6 cm}", 0),
        ("B", {"options": ["6 cm", "7 cm"]}, r"\boxed{C}", 0),
        ("Paris", {}, r"\boxed{\text{paris}}", 1),  # no letter: compared as text
    ],
)
def test_multiple_choice(reference: str, meta: dict[str, Any], text: str, expected: int) -> None:
    assert make_reward(ChoiceRewardConfig())(Problem("p", "?", reference, meta), text).reward == expected


def test_options_of_another_shape_are_refused() -> None:
    with refused(ErrorCode.REWARD_PROBLEM, record="p7"):
        make_reward(ChoiceRewardConfig())(Problem("p7", "?", "A", {"options": "A or B"}), "A")


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("27 cm", "0.27 m", True),
        ("5 m", "5 cm", False),  # math-verify drops units: by itself it says yes
        ("27 cm", "27", True),
        (r"50\%", "0.5", True),
        (r"\frac12", "0.5", True),
        ("x+1", "1+x", True),
        ("2", "2x", False),
        ("18 dogs", "18 cats", False),
        ("Paris", r"\text{paris}", True),
        ("1/2", "one half", False),  # for a verifier to say
    ],
)
def test_equal_by_rules(reference: str, answer: str, expected: bool) -> None:
    assert equal_by_rules(reference, answer) is expected


@pytest.mark.parametrize("kind", ["math", "numeric", "exact", "choice"])
def test_an_output_without_an_answer_is_wrong_and_said_to_be(kind: Any) -> None:
    judged = make_reward(variants_of(RewardConfig)[kind]())
    for text in (r"7, so \boxed{}", "<think> It is 7", ""):
        assert judged(Problem("p", "?", "7"), text) == Verdict(0.0, None)
    assert judged(Problem("p", "?", "7"), r"<think>8</think>\boxed{7}") == Verdict(1.0, "7")


HOSTILE = [
    r"10^{10^{10}} \text{ cm}", "m**9**9**9", "5 m**9**9**9", "5 m^999999999", "5 " + "m" * 900, "5 " + "(m/" * 300,
    "1e9999 m", "9" * 900 + " cm", r"\sqrt{" * 150, r"\frac{" * 150, "7 __import__('os').getcwd()", "7 units.__class__",
    "$" * 900, "A, " * 1000, "(A) or " * 500, "7\x00 cm", "10^5" * 200, "!" * 900 + "7!!",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["numeric", "exact", "choice"])
def test_hostile_answers_are_wrong(kind: Any) -> None:
    """None makes a judge fail, and none evaluates a name."""
    judged = make_reward(variants_of(RewardConfig)[kind]())
    for answer in HOSTILE:
        assert judged(Problem("p", "?", "7 kg"), f"\\boxed{{{answer}}}").reward == 0


@pytest.mark.slow
def test_a_number_that_takes_forever_is_wrong_or_fails_in_time() -> None:
    sandbox = Sandbox("rules")
    assert sandbox.score(reference="7 m", answer="700 cm") == 1
    sandbox._seconds = 0.1
    with pytest.raises(RewardError) as caught:
        sandbox.score(reference="7 m", answer=r"10^{10^{10}} \text{ cm}")
    assert caught.value.timed_out
    sandbox._seconds = 120.0
    assert sandbox.score(reference="7 m", answer="700 cm") == 1


@pytest.mark.parametrize(
    "text",
    [
        "9" * 100_000,
        "(" * 50_000,
        "1+" * 50_000,
        "$" * 100_000,
        r"\boxed{" * 20_000,
        r"\frac{" * 5_000,
        r"\boxed{" + "9" * 20_000 + "}",
        "\\boxed{12\n}\x00",
    ],
    ids=range(8),
)
def test_long_garbage_is_judged(text: str) -> None:
    assert reward(Problem("p", "?", "7"), text).reward == 0


@pytest.mark.slow
def test_an_answer_that_takes_forever_is_wrong() -> None:
    """Four seconds of the worker's CPU time, and the same process continues."""
    sandbox = Sandbox("math")
    assert sandbox.score(reference="7", answer="7") == 1
    worker = sandbox._process
    assert sandbox.score(reference="7", answer="10^{10^{10}}") == 0
    assert sandbox.score(reference="7", answer="7") == 1
    assert sandbox._process is worker


def test_a_worker_that_does_not_answer_is_replaced() -> None:
    sandbox = Sandbox("math")
    assert sandbox.score(reference="7", answer="7") == 1
    worker, sandbox._seconds = sandbox._process, 0.1
    with pytest.raises(RewardError) as caught:
        sandbox.score(reference="7", answer="10^{10^{10}}")
    assert caught.value.timed_out
    sandbox._seconds = 120.0
    assert sandbox.score(reference="7", answer="7") == 1
    assert sandbox._process is not worker


def test_neither_extraction_nor_the_judge_imports_torch() -> None:
    code = "import sys, ulorl.rewards.rules, ulorl.answers.equality; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_any_thread_may_ask() -> None:
    """math-verify's own time limit is an alarm, which only a main thread can set."""
    found: Counter[float] = Counter()

    def ask() -> None:
        for n in range(10):
            found[reward(Problem("p", "?", "7"), f"the answer is {n}").reward] += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0.0: 36, 1.0: 4}


def rows(name: str) -> list[dict[str, Any]]:
    path = VERIFIER / name
    if not path.exists():
        pytest.skip(f"the shared data file verifier/{name} is not on this machine")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_agreement_with_qwens_rule() -> None:
    """800 outputs: agreement on 799; the other is 10000 against 10{,}000, which that rule calls different."""
    against = []
    for row in rows("qwen25math_math_cot_100.jsonl"):
        problem = Problem("p", row["question"], str(row["gt"]))
        for text, verdict in zip(row["code"], row["score"], strict=True):
            if reward(problem, text).reward != float(verdict):
                against.append((row["gt"], last_boxed(text), verdict))
    assert against == [("10{,}000", "10000", False)]


@pytest.mark.slow
def test_agreement_with_gsm8k_labels() -> None:
    """Four models' solutions, labelled right or wrong; every fourth problem, to be quick. All 5,276 agree."""
    for row in rows("gsm8k_example_model_solutions.jsonl")[::4]:
        problem = Problem("p", row["question"], row["ground_truth"].rpartition("A:")[2])
        solutions = [value for value in row.values() if isinstance(value, dict)]
        assert [reward(problem, s["solution"]).reward for s in solutions] == [float(s["is_correct"]) for s in solutions]


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("123", "124", RulesVerdict.DIFFERENT),
        ("27 cm", "2.7 m", RulesVerdict.DIFFERENT),  # 2.7 m = 270 cm
        ("27 cm", "0.27 m", RulesVerdict.EQUAL),
        ("27 cm", "27 kg", RulesVerdict.OPEN),  # no like units
        ("0.27", "27 cm", RulesVerdict.OPEN),  # the question may ask for metres
        ("50", "0.5", RulesVerdict.DIFFERENT),
        ("50%", "0.5", RulesVerdict.EQUAL),
        ("50%", "5", RulesVerdict.OPEN),
        (r"\frac{1}{2}", "one half", RulesVerdict.OPEN),
        (r"\frac{1}{2}", "0.51", RulesVerdict.DIFFERENT),
        (r"\sqrt{2}", "1.41", RulesVerdict.OPEN),  # computed: the rules know no precision
        ("3 apples", "4 pears", RulesVerdict.OPEN),
        ("1,2", "12", RulesVerdict.OPEN),
        ("2 tons", "2000 kg", RulesVerdict.OPEN),  # whose tons?
        ("3-4", "-1", RulesVerdict.OPEN),  # a range
    ],
)
def test_rules_say_different_of_plain_numbers_in_like_units_only(
    reference: str, answer: str, expected: RulesVerdict
) -> None:
    assert compare_by_rules(reference, answer) is expected


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("8 am", "8 pm", 0.0),  # not attometres
        ("8:30 pm", "8 pm", 0.0),
        ("5-6", "5", 0.0),  # a range
        ("5 A", "5 amps", 1.0),
    ],
)
def test_times_and_ranges_are_no_quantities(reference: str, answer: str, expected: float) -> None:
    assert Sandbox("numeric").score(reference=reference, answer=answer) == expected
