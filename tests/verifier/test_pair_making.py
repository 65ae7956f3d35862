"""Pairs from problems: deterministic, balanced, split by question, and true."""

import json
from collections import Counter, defaultdict
from fractions import Fraction

import pytest

from paths import SHARED
from refusals import refused
from ulorl.answers import quantities
from ulorl.cleaning.cleaning_config import SourceConfig
from ulorl.cleaning.items import Item
from ulorl.error_codes import ErrorCode
from ulorl.verifier.pair_dataset import side_of, write_pair_files
from ulorl.verifier.pair_making import PairSettings, make_pairs
from ulorl.verifier.pairs import read_pairs

TRAIN = SHARED / "train"
WRITTEN = [  # by hand
    ("How wide is the box number {}, in cm?", "2{}"), ("What is the probability of event {}?", r"\frac{{1}}{{{}3}}"),
    ("Box {} holds red and blue balls. What percent is red?", "1{}"), ("Compute value {}.", "0.{}5"),
    ("Find all roots of polynomial {}.", "1,-{}7,5"), ("Find the ordered pair (a,b) of line {}.", "(1,-2{})"),
    ("Solve inequality {}. Answer in interval notation.", r"[-1,{}9)"), ("Find side {}.", r"{}2\sqrt{{3}}"),
    ("Find polynomial {}.", "x^2-{}3x+2"), ("Find angle {}.", r"3{}^\circ"),
    ("Pens cost $3. How much do {}1 pens cost?", "{}3"),
    ("Is number {} prime?", "Yes"), ("How many people live in town {}?", "12{}00"),
]  # fmt: skip
PROBLEMS = [
    Item(f"own/{i}-{n}", question.format(n), answer.format(n), "own", f"own:{i}", "", "")
    for n in range(1, 5)
    for i, (question, answer) in enumerate(WRITTEN)
]
NUMERIC = ("fraction", "decimal", "scientific", "spelling", "units", "percent")


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(PROBLEMS, PairSettings(seed=3))


def test_both_labels_in_every_kind_and_problem(pairs):
    labels = defaultdict[tuple[str, str], list[bool]](list)
    for pair in pairs:
        labels[pair.kind, pair.problem].append(pair.equivalent)
        assert bool(pair.change) != pair.equivalent
    assert all(sum(some) * 2 == len(some) for some in labels.values())
    kinds = {kind for kind, _ in labels}
    assert kinds >= {"units", "words", "fraction", "decimal", "percent", "set", "tuple", "interval", "algebra", "same"}
    assert max(Counter(pair.problem for pair in pairs).values()) <= 8


def test_the_same_seed_gives_the_same_pairs_and_another_gives_others(pairs):
    assert make_pairs(PROBLEMS, PairSettings(seed=3)) == pairs
    assert make_pairs(PROBLEMS, PairSettings(seed=4)) != pairs


def test_a_problems_pairs_do_not_depend_on_the_others(pairs):
    """But for another problem's answer, and what was drawn after it."""
    borrowed = {pair.problem for pair in pairs if pair.change == "other"}
    some = make_pairs(PROBLEMS[::-1][:26], PairSettings(seed=3))
    borrowed |= {pair.problem for pair in some if pair.change == "other"}
    shown = {pair.problem for pair in some} - borrowed
    assert len(shown) > 10
    for problem in shown:
        assert [p for p in some if p.problem == problem] == [p for p in pairs if p.problem == problem]


def test_the_labels_are_those_of_exact_arithmetic(pairs):
    """As `rewards.quantity`, which shares no code with the spellings, converts and compares them over fractions."""
    checked = 0
    for pair in pairs:
        texts = [
            text.removesuffix(".").rpartition("nswer is ")[2].removeprefix("Answer: ")
            for text in (pair.reference, pair.answer)
        ]
        texts = [text[7:-1] if text.startswith(r"\boxed{") else text for text in texts]
        reference, answer = (quantities.read(text.removeprefix("= ")) for text in texts)
        if pair.kind not in NUMERIC or reference is None or answer is None or not (reference.exact and answer.exact):
            continue
        if pair.kind == "percent" and "percent" in pair.question:
            reference = quantities.Quantity(reference.value, True, (("percent", 1),))
        if pair.kind == "units" and not reference.unit:
            unit = "centimeter" if "cm" in pair.question else "dollar"
            reference = quantities.Quantity(reference.value, True, ((unit, 1),))
        sides = [reference, answer]
        if pair.kind == "percent" or answer.unit == (("percent", 1),):  # a percent sign is a factor of 1/100
            sides = [quantities.Quantity(q.value / 100 if q.unit else q.value, True) for q in sides]
        assert quantities.equal(*sides) == pair.equivalent, pair
        checked += 1
    assert checked > 40


def test_plain_integers_are_thinned_out_and_others_are_not():
    many = [Item(f"p/{n}", f"What is number {n}?", str(n), "p", "", "", "") for n in range(1, 401)]
    used = len({pair.problem for pair in make_pairs(many, PairSettings(plain=0.25))})
    assert 70 < used < 130  # 400 x 0.25, within 3.5 standard deviations of 8.7
    assert len(make_pairs(many, PairSettings(plain=1.0))) > 2 * 390


def test_what_cannot_be_read_gives_no_pairs():
    assert make_pairs([Item("a", "Which group?", r"\mathbb{Z}_4 \rtimes \mathrm{Aut}(G)", "a", "", "", "")]) == []
    with refused(ErrorCode.COMMAND_LINE, key="--per-problem"):
        make_pairs(PROBLEMS, PairSettings(per_problem=1))


def test_a_question_is_on_one_side_however_it_is_spelled():
    questions = [f"What is $x_{n} + {n}$?" for n in range(2000)]
    assert all(side_of(q) == side_of(f"  {q.replace(' ', '  ').upper()}\n").replace("", "") for q in questions[:200])
    share = sum(side_of(q) == "held_out" for q in questions) / 2000
    assert abs(share - 0.1) < 0.025  # 3.7 standard deviations


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in PROBLEMS))
    return path


def test_files_are_written_split_by_question_and_described(tmp_path, problems):
    written = write_pair_files([str(problems)], tmp_path / "out", held_out=0.3)
    train, held_out = read_pairs([written.train]), read_pairs([written.held_out])
    assert not {pair.question for pair in train} & {pair.question for pair in held_out}
    assert written.counts["train"] == len(train)
    assert written.counts["problems"] == len(PROBLEMS)
    words = Counter(pair.equivalent for pair in train if pair.kind == "words")
    assert f"| words | {words[True]} | {words[False]} |" in written.card.read_text()


def test_what_a_user_gets_wrong(tmp_path, problems):
    with refused(ErrorCode.COMMAND_LINE, key="--held-out"):
        write_pair_files([str(problems)], tmp_path / "out", held_out=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.jsonl").write_text("")
    with refused(ErrorCode.OUTPUT_EXISTS, file=tmp_path / "out"):
        write_pair_files([str(problems)], tmp_path / "out")
    with refused(ErrorCode.DATA_BAD_RECORD):
        write_pair_files([str(problems)], tmp_path / "new", tables={"own": SourceConfig(answer="nothing")})
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"question": PROBLEMS[0].question, "answer": "27"}))
    with refused(ErrorCode.DATA_TOO_FEW):
        write_pair_files([str(one)], tmp_path / "new")


@pytest.mark.skipif(not TRAIN.exists(), reason="needs the shared data beside the repository")
def test_real_references_give_pairs(tmp_path):
    lines = (TRAIN / "deepmath_subset.jsonl").read_text().splitlines()[:150]
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(lines))
    table = {"few": SourceConfig(question="prompt", answer="ground_truth")}
    written = write_pair_files([str(few)], tmp_path / "out", tables=table, held_out=0.2)
    pairs = read_pairs([written.train, written.held_out])
    assert len(pairs) > 150
    assert Fraction(sum(pair.equivalent for pair in pairs), len(pairs)) == pytest.approx(0.5, abs=0.02)
