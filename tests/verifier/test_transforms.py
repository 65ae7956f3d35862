"""Spellings keep the value and changes do not, by arithmetic that is written here and not taken from the source."""

import re
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulorl.verifier.transforms import (
    algebra,
    answer_kinds,
    compound_answers,
    number_words,
    rationals,
    spellings,
    text_changes,
    unit_systems,
)

SEEDS = range(40)
SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen \
eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
CARDINALS = dict(zip(SMALL.split(), [*range(20), *range(20, 100, 10)], strict=True))
ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth \
sixteenth seventeenth eighteenth nineteenth twentieth"
PARTS = {"half": 2, "halves": 2, "quarter": 4} | {word: n for n, word in enumerate(ORDINALS.split(), 3)}
# how many of the smallest unit of its kind, by every name and short form
SIZES = (
    {"mm": 1, "cm": 10, "m": 1000, "km": 10**6, "millimeter": 1, "centimeter": 10, "meter": 1000, "kilometer": 10**6}
    | {"in": 1, "ft": 12, "yd": 36, "mi": 63360, "inch": 1, "foot": 12, "yard": 36, "mile": 63360}
    | {"s": 1, "min": 60, "h": 3600, "second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}
    | {"g": 1, "kg": 1000, "gram": 1, "kilogram": 1000, "oz": 1, "lb": 16, "ounce": 1, "pound": 16}
    | {"ml": 1, "l": 1000, "milliliter": 1, "liter": 1000, "qt": 1, "gal": 4, "quart": 1, "gallon": 4}
    | {"cent": 1, "usd": 100, "dollar": 100}
)


def plain_value(text):
    """A checker of its own: integers, decimals (repeating too), fractions, mixed numbers, powers of ten."""
    text = re.sub(
        r"\\left|\\right|,\\!|[()\s]|\\[,!]|\{,\}|(?<=\d),(?=\d{3})", lambda m: " " if m[0] == " " else "", text
    ).strip()
    text = re.sub(r"\{(-?\d+) ?\\over ?(\d+)\}", r"\1/\2", text)
    text = re.sub(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}", r" \1/\2", text)
    text = re.sub(r"\\frac(\d)(\d)", r" \1/\2", text)
    sign, text = (-1, text[1:]) if text.startswith("-") else (1, text)
    if found := re.fullmatch(r"(\d*)\.(\d*)\\overline\{(\d+)\}", text):
        head, start, period = found.groups()
        nines = 10 ** len(period) - 1
        return sign * (
            Fraction(int(head or 0)) + (Fraction(int(start or 0)) + Fraction(int(period), nines)) / 10 ** len(start)
        )
    if found := re.fullmatch(r"(.+?) ?(?:\\times|\\cdot|x|\*|e) ?(?:10\^)?\{?(-?\d+)\}?", text):
        return sign * plain_value(found[1]) * Fraction(10) ** int(found[2])
    spaced = re.sub(r" ?/ ?", "/", re.sub(r"(?<=\d) (?=\d{3}(?: |$|\.))", "", text)).rstrip(".").split()
    return sign * sum((Fraction(part) for part in spaced), Fraction(0))


def spoken_value(text):
    """Of number words, by adding up."""
    text = re.sub(r"\\text\{(.*)\}", r"\1", text).lower().replace("-", " ")
    sign = -1 if text.startswith(("negative", "minus")) else 1
    text = text.removeprefix("negative").removeprefix("minus").strip()
    whole, point, behind = text.partition(" point ")
    if point:
        digits = "".join(str(CARDINALS[word]) for word in behind.split())
        return sign * (whole_number(whole.split()) + Fraction(int(digits), 10 ** len(digits)))
    said = text.split()
    below = PARTS.get(said[-1]) or PARTS.get(said[-1].removesuffix("s"))
    if below is None:
        return sign * whole_number(said)
    ahead, mark, part = " ".join(said[:-1]).rpartition(" and ")
    return sign * (whole_number(ahead.split() if mark else []) + Fraction(whole_number(part.split()), below))


def whole_number(said):
    total = group = 0
    for word in said:
        if word == "thousand":
            total, group = group * 1000, 0
        elif word == "hundred":
            group *= 100
        elif word != "and":
            group += CARDINALS[word]
    return total + group


def measured(text):
    """In the smallest unit of its kind."""
    text = re.sub(r"\\(?:text|mathrm)\{([^}]*)\}|\\ |\\,", lambda m: f" {m[1] or ''}", text).strip()
    if text.lstrip("\\").startswith("$"):
        return plain_value(text.lstrip("\\$")) * 100
    part = r"(.*?[\d})])\s*(square |sq |cubic |cu )?([A-Za-z]+(?:\^\{?\d\}?)?)(?: and |, | |$)"
    assert re.fullmatch(f"(?:{part})+", text), text
    total = Fraction(0)
    for number, power, name in re.findall(part, text):
        name, _, raised = name.partition("^")
        exponent = int(raised.strip("{}")) if raised else 2 if "sq" in (power or "") else 3 if power else 1
        name = {"feet": "foot", "inches": "inch"}.get(name, name.lower())
        size = SIZES[name if name in SIZES else name.removesuffix("s")]
        total += plain_value(number) * size**exponent
    return total


fractions = st.fractions(min_value=-3000, max_value=3000, max_denominator=400)


@given(fractions, st.randoms(use_true_random=False))
def test_every_spelling_of_a_number_has_its_value(value, rng):
    number = rationals.Number(value, form="decimal" if rng.random() < 0.5 else "fraction")
    for kind in ("fraction", "decimal", "scientific", "spelling"):
        text = spellings.spell(number, kind, rng)
        assert text is None or plain_value(text) == value, (kind, text)
    said = spellings.spell(number, "words", rng)
    assert said is None or spoken_value(said) == value, said
    percent = spellings.spell(number, "percent", rng)
    assert plain_value(re.sub(r"\\text\{ percent\}|\\?%|per ?cent", "", percent)) == 100 * value, percent


@given(fractions, st.randoms(use_true_random=False), st.sampled_from(["integer", "decimal", "fraction"]))
def test_every_change_of_a_number_changes_its_value(value, rng, form):
    """And the look-alike, spelled, is read as the other value: the label is that of exact arithmetic."""
    number = rationals.Number(value, form=form)
    for kind in ("spelling", "decimal", "words"):
        for how in rationals.changes(number, kind):
            new = rationals.change(number, how, rng)
            if new is None:
                continue
            assert new.value != value
            text = spellings.spell(new, kind, rng)
            read = spoken_value if kind == "words" else plain_value
            assert text is None or read(text) == new.value != value, (how, text)


@given(
    st.integers(1, 5000) | st.fractions(min_value=0, max_value=100, max_denominator=8),
    st.sampled_from(sorted(set(unit_systems._TABLE) - {"degree"})),
    st.sampled_from([1, 1, 2, 3]),
    st.randoms(use_true_random=False),
)
def test_units_are_converted_exactly_and_changed_ones_are_others(value, name, power, rng):
    unit = unit_systems.of_factors(((name, power if "length" in unit_systems._TABLE[name][0] else 1),))
    number = rationals.Number(Fraction(value), unit)
    expected = value * SIZES[name] ** unit.power
    text = spellings.spell(number, "units", rng)
    assert text is None or measured(text) == expected, text
    for how in rationals.changes(number, "units"):
        new = rationals.change(number, how, rng)
        text = new and spellings.spell(new, "units", rng)
        assert not text or measured(text) != expected, (how, text)


def test_the_papers_examples_can_be_made():
    length = answer_kinds.read("27", "What is the width of the box, in centimeters?")
    half = answer_kinds.read(r"\frac{1}{2}", "What is the probability?")
    assert any("0.27" in (answer_kinds.spell(length, "units", Random(i)) or "") for i in SEEDS)
    assert any(answer_kinds.spell(half, "words", Random(i)) == "one half" for i in SEEDS)
    third = {answer_kinds.changed(half, "words", "", Random(i)) for i in SEEDS} - {None}
    assert {Fraction(1, 3), Fraction(2)} <= {other.value.value for _, other in third}  # one third, and 2/1


def test_angles_in_radians():
    shapes = {
        spellings.spell(rationals.Number(Fraction(120), unit_systems.Unit("degree")), "units", Random(i))
        for i in range(300)
    }
    assert r"\frac{2\pi}{3} radians" in shapes  # 120/180 = 2/3
    assert {"120°", "120 degrees"} <= shapes


@pytest.mark.parametrize(
    ("value", "text"),
    [("1/3", r"0.\overline{3}"), ("1/6", r"0.1\overline{6}"), ("22/7", r"3.\overline{142857}"),
     ("-5/11", r"-0.\overline{45}"), ("1/4", None), ("1/17", None)],
)  # fmt: skip
def test_repeating_decimals(value, text):
    assert spellings.repeating(Fraction(value)) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "zero"), (21, "twenty-one"), (12, "twelve"), (340, "three hundred forty"), (1005, "one thousand five"),
     (70_019, "seventy thousand nineteen")],
)  # fmt: skip
def test_cardinals(number, text):
    assert number_words.cardinal(number) == text


def test_ordinals():
    assert [number_words.ordinal(n) for n in (2, 3, 5, 12, 20, 21, 100)] == [
        "second", "third", "fifth", "twelfth", "twentieth", "twenty-first", "one hundredth",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("question", "unit"),
    [
        ("A box has sides. What is its width, in cm?", ("centimeter", 1)),
        ("How many square feet is the garden?", ("foot", 2)),
        ("How many hours did they spend moving?", ("hour", 1)),
        ("Socks cost $4 a pair. How much did she spend?", ("dollar", 1)),
        ("Find the angle between a and b, in degrees.", ("degree", 1)),
        ("How many miles per hour does he run?", None),
        ("How many apples are in the box?", None),
        ("How much does it weigh?", None),
        ("How many feet and inches is it?", None),
    ],
)
def test_the_unit_a_question_asks_for(question, unit):
    assert unit_systems.asked(question) == (unit and unit_systems.Unit(*unit))


@pytest.mark.parametrize(
    ("text", "question", "value", "unit", "percent"),
    [
        (r"\$54.60", "", "54.6", "dollar", False),
        (r"120^\circ", "", "120", "degree", False),
        (r"27\text{ cm}", "", "27", "centimeter", False),
        (r"50\%", "", "1/2", None, True),
        ("50", "What percent of them are red?", "1/2", None, True),
        (r"1\frac12", "", "3/2", None, False),
        ("34,560", "", "34560", None, False),
    ],
)
def test_references_are_read(text, question, value, unit, percent):
    number = rationals.read(text, question)
    assert (number.value, number.unit and number.unit.name, number.percent) == (Fraction(value), unit, percent)


@pytest.mark.parametrize("text", [r"2\sqrt{3}", r"\pi", "33_4", "x", "5!", r"5\text{ apples}", "2^{4181}"])
def test_what_is_no_number_with_certainty_is_not_read_as_one(text):
    assert rationals.read(text, "") is None


@pytest.mark.parametrize(
    "text",
    [r"2\sqrt{3}", r"x^2-5x-24", r"\frac{1+\sqrt{5}}{2}", r"\frac{2\sqrt{35}}{35}", r"4a^3+a^2", r"\ln 2 + 3\pi"],
)
def test_rewriting_keeps_an_expression(text):
    """Parsed again and compared at a point: 30 digits agree."""
    value = algebra.parse(text)
    for seed in SEEDS:
        new = algebra.rewritten(value, Random(seed))
        if new is not None:
            again = algebra.parse(new)
            symbols = dict.fromkeys(value.free_symbols, 7)
            assert abs(complex((again - value).subs(symbols).evalf(30))) < 1e-20, new


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}", True),
        ("(x+3)(x-8)", "x^2-5x-24", True),
        (r"\sqrt{12}", r"2\sqrt{3}", True),
        (r"\frac{1}{x}+\frac{1}{y}", r"\frac{x+y}{xy}", True),
        ("(x+3)(x-8)", "x^2+5x-24", False),
        (r"2\sqrt{3}", r"3\sqrt{2}", False),
    ],
)
def test_equality_and_difference_are_proven(left, right, equal):
    sides = algebra.parse(left), algebra.parse(right)
    assert algebra.equal(*sides) is equal
    assert algebra.different(*sides) is not equal


@pytest.mark.parametrize("text", ["f(4-x)", "2^{4181}", "W(4)", "a_n", r"\text{two}", "x" * 90, "5!", r"\log 2"])
def test_expressions_that_cannot_be_rewritten_safely_are_left_alone(text):
    assert algebra.parse(text) is None


INTERVAL = "Solve the inequality. Answer in interval notation."


def test_unions_keep_their_set_in_another_order_and_lose_it_with_an_end():
    import sympy

    union = compound_answers.read_spans(r"(-\infty,-2)\cup[3,\infty)", INTERVAL)
    assert union.set == sympy.Union(sympy.Interval.open(-sympy.oo, -2), sympy.Interval(3, sympy.oo))
    for seed in SEEDS:
        text = compound_answers.spell_spans(union, Random(seed), "x")
        bare = text.replace(" U ", r"\cup").replace("∪", r"\cup").replace("∞", r"\infty").replace(r"+\infty", r"\infty")
        again = compound_answers.read_spans(bare, INTERVAL)
        if again is None:  # inequalities
            assert "x" in text
            assert re.search(r"x < -2", text)
            assert re.search(r"x (?:>=|\\geq?) 3", text)
        else:
            assert again.set == union.set
        other = compound_answers.read_spans(
            compound_answers.change_spans(union, "open_closed", Random(seed)) or "", INTERVAL
        )
        assert other is None or other.set != union.set


def test_sets_have_no_order_and_tuples_have_one():
    roots = compound_answers.read_parts("1,-3,5", "Find all roots.")
    point = compound_answers.read_parts("(1,-2)", "Find the ordered pair (a,b).")
    assert not roots.ordered
    assert point.ordered
    assert not compound_answers.parts_differ(roots, compound_answers.read_parts("5,1,-3", "Find all roots."))
    assert compound_answers.parts_differ(roots, compound_answers.read_parts("5,1,3", "Find all roots."))
    assert compound_answers.parts_differ(roots, compound_answers.read_parts("5,1", "Find all roots."))
    assert compound_answers.parts_differ(point, compound_answers.read_parts("(-2,1)", "Find the ordered pair (a,b)."))
    assert compound_answers.read_parts("1,2", "Find x and y.") is None  # which is which?
    for seed in SEEDS:
        said = re.findall(r"-?\d+", compound_answers.spell_parts(roots, Random(seed), "x"))
        assert sorted(said) == ["-3", "1", "5"]
        assert re.findall(r"-?\d+", compound_answers.spell_parts(point, Random(seed), "x")) == ["1", "-2"]


@pytest.mark.parametrize(
    ("text", "question", "unordered"),
    [
        ("3,4", "Find the values of $p$ and $q$.", False),
        ("3,4", "Find all values of p and q, separated by commas.", False),
        ("3, 4", "What are all possible values of $x$, $y$?", False),
        ("3, 4", "Find all real numbers $x, y$ with $x + 2y = 11$.", False),
        ("3, 4", "Find all solutions to the system $x + y = 7$, $x - y = -1$.", False),
        ("3, 4", "Find the roots in increasing order.", False),
        ("3, 4", "List all possible values of n from least to greatest.", False),
        ("3, 4", "Find the sum and the product of all roots.", False),
        ("3, 4", "Find the smallest and largest possible values of n.", False),
        ("3, 4", "Determine the integers a and b.", False),
        (r"\{3, 4\}", "Write the sequence as an ordered list.", False),
        (r"\{3, 4\}", "What is the set of its prime factors?", True),
        ("3, 4", "Find all values of $x$ such that $x^2 - 7x + 12 = 0$.", True),
        ("3, 4", "Find the real roots of $x^2 - 7x + 12$. Enter the roots, separated by commas.", True),
        (r"3 \text{ or } 4", "For what values of the constant $c$ is there one asymptote?", True),
        (
            "3, 4",
            "Let $a$ and $b$ be real numbers with $ab = 12$. Enter all possible values of $a,$ separated by commas.",
            True,
        ),
    ],
)
def test_only_what_surely_has_no_order_is_reordered(text, question, unordered):
    """For the rest it is unknown what another order means, so it gives no pairs."""
    assert (compound_answers.read_parts(text, question) is not None) is unordered


def test_a_variable_is_named_only_where_the_question_has_it():
    values, lengths = (
        answer_kinds.read(r"\{4,5,7\}", question)
        for question in ("Find all values of $k$ where $x^k$ is odd.", "What could be the three lengths?")
    )
    named = [{answer_kinds.spell(answer, "set", Random(i)) for i in range(200)} for answer in (values, lengths)]
    assert any("k = 5 or k = " in text for text in named[0])
    assert not any(re.search(r"\bor\b|\bx\b", text) for text in named[1])
    span = answer_kinds.read("[1,3)", "What is the range of $f(x)$? Answer as an interval.")
    shown = [answer_kinds.spell(span, "interval", Random(i)) for i in range(200)]
    assert all(r"\{" in text for text in shown if "<" in text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("4e-05", "1/25000"), ("1.5e3", "1500"), ("-2.5E-1", "-1/4"), ("6e+10", "6e10"), ("4E5", "400000")],
)
def test_e_notation_is_a_number(text, value):
    assert rationals.read(text, "").value == Fraction(value)
    assert algebra.parse(text) is None
    answer = answer_kinds.read(text, "Compute the value.")
    for seed in SEEDS:
        assert plain_value(spellings.spell(answer.value, "spelling", Random(seed))) == Fraction(value)


@pytest.mark.parametrize("text", ["2e-3", "4e5-1", "1+2e3"])
def test_what_may_be_e_notation_or_a_multiple_of_e_is_left_alone(text):
    assert answer_kinds.read(text, "Compute the value.") is None
    assert algebra.parse("2e - 3") is not None


def test_more_digits_of_a_rounded_reference_are_no_look_alike():
    """0.33 rounded from 1/3: 0.333 may be as right, 0.34 is not."""
    number = rationals.read("0.33", "What is the probability, to the nearest hundredth?")
    made = {
        new.value
        for seed in range(400)
        for kind in ("spelling", "decimal")
        for how in rationals.changes(number, kind)
        if (new := rationals.change(number, how, Random(seed)))
    }
    assert Fraction(34, 100) in made
    assert all(abs(value - Fraction(33, 100)) > Fraction(5, 1000) for value in made)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("(1,-1)", "Find a vector (x, y) that is orthogonal to the gradient."),
        (
            "(0,3)",
            "Find the coordinates of the foci. (Enter only one of the two.) Give either of them as an ordered pair.",
        ),
        ("001", "What are the last three digits of $3^{12000}$?"),
        (r"2\pi n", "Find all zeros of the sine."),
        (r"\ln x + C", "Evaluate the integral of the reciprocal of $x$."),
    ],
)
def test_where_another_answer_may_be_as_right_there_are_no_pairs(text, question):
    assert answer_kinds.read(text, question) is None


@pytest.mark.parametrize(
    ("question", "text", "absent"),
    [
        ("How many ounces of milk are in the bottle?", "16", "units"),
        ("What is the temperature, in degrees?", "90", "units"),
        ("If it cost $3, how much time did she spend on it?", "2", "units"),
        ("What is the sum in base 2?", "1011", "words"),
        ("How much higher is the center than the points?", r"\frac{1}{2}", "percent"),
        ("What is the length of the segment MN?", r"\frac{1}{7}", "percent"),
    ],
)
def test_kinds_that_would_say_something_else(question, text, absent):
    answer = answer_kinds.read(text, question)
    assert absent not in answer_kinds.kinds(answer, question)
    assert "same" in answer_kinds.kinds(answer, question)


EXAMPLES = [
    ("27", "How wide is it, in cm?"), (r"\frac{3}{4}", "What is the probability?"), ("0.125", "Compute the value."),
    (r"120^\circ", "Find the angle."), ("1,-3,5", "Find all roots."), ("(1,-2)", "Find the ordered pair (a,b)."),
    (r"[-1,\frac{1}{2})", INTERVAL), (r"x^2-5x-24", "Find the polynomial."), (r"2\sqrt{3}", "Find the side."),
    ("Yes", "Is it true?"), (r"\text{B}", "Which? (A) one (B) two (C) three"), ("50", "What percent is it?"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "question"), EXAMPLES)
def test_every_kind_has_both_labels_in_the_same_spellings(text, question):
    answer = answer_kinds.read(text, question)
    for kind in set(answer_kinds.kinds(answer, question)):
        made = [answer_kinds.changed(answer, kind, question, Random(i)) for i in SEEDS]
        others = [answer_kinds.spell(found[1], kind, Random(i)) for i, found in enumerate(made) if found]
        assert any(others) or not any(answer_kinds.spell(answer, kind, Random(i)) for i in SEEDS), kind
        assert text not in others


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=40), st.randoms(use_true_random=False))
def test_any_text_is_read_or_left_alone(text, rng):
    answer = answer_kinds.read(text, "Find all values.")
    if answer:
        for kind in answer_kinds.kinds(answer, ""):
            answer_kinds.spell(answer, kind, rng)
            answer_kinds.changed(answer, kind, "", rng)
    for how in text_changes.CHANGES:
        assert text_changes.changed(text, how, rng) != text or not text
