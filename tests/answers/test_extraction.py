"""Where an output's answer stands: places, think tags, nested and unbalanced braces, hostile texts."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulorl.answers.extraction import MATH, NUMERIC, PROSE, extract, last_boxed
from ulorl.config.reward_config import AnswerConfig, Place

CHARACTERS = 500_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{1} \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed {\boxed{5}}", "5"),
        (r"}} \fbox{x}", "x"),
        (r"\framebox{\text{a {b} c}}", r"\text{a {b} c}"),
        ("none", None),
    ],
)
def test_last_boxed(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("place", "text", "expected"),
    [
        ("tags", "<answer>3</answer> no, <ANSWER>\n4 </Answer> 5", "4"),
        ("tags", "<answer>3</answer> or <answer>4", "3"),
        ("tags", "<answer> the <answer>3</answer>", "3"),
        ("tags", "3</answer>", None),
        ("phrase", "The answer is **12**, as 5 + 7 says.", "12"),
        ("phrase", "**Answer:** 2**3, so 8", "2**3"),
        ("phrase", "The answer is 27 cm because 20 + 7 is 27.", "27 cm"),
        ("phrase", "The final answer is: $x+1$. Done.", "x+1"),
        ("phrase", "The answer is $5.", "$5"),
        ("phrase", "The answer is $5 and not $6.", "$5 and not $6"),
        ("phrase", "Therefore, the answer is:\n\\[ 7\\pi. \\]\nDone.", r"7\pi"),
        ("phrase", "2 + 2\n#### 1,234", "1,234"),
        ("phrase", "Answer: 3\n\nNo. **Answer:** (B) 7 cm", "(B) 7 cm"),
        ("phrase", "The answer to this question is 3.5 m. It is long.", "3.5 m"),
        ("phrase", "所以答案是 42。", "42"),
        ("phrase", "This answer is correct.", None),
        ("phrase", "It is 3.", None),
        ("expression", "so $a=3$ and \\(b = 4\\).", "b = 4"),
        ("expression", "so \\[a=3.\\] That makes 12 in all.", "12"),
        ("expression", "It costs $5 or $6.50", "6.50"),
        ("expression", "half, $\\frac12$", "\\frac12"),
        ("expression", "It is 3/4 of it", "3/4"),
        ("expression", "no idea", None),
        ("last_number", "it is −4", "-4"),
        ("last_number", "25 cm^2", "25"),
        ("last_number", "5-9", "9"),  # a minus between numbers is no sign
        ("last_number", r"3 \times 10^{5} m/s", r"3 \times 10^{5}"),
        ("quantity", "The area is 25 cm^2.", "25 cm^2"),
        ("quantity", "It is \\$1,234.50.", "\\$1,234.50"),
        ("quantity", "That is 45\\%.", "45\\%"),
        ("quantity", r"an angle of 30^\circ", r"30^\circ"),
        ("quantity", r"So $x = 27\text{ cm}$.", r"27\text{ cm}"),
        ("quantity", "27 because that is what all of the rules say", "27"),  # too many words for a unit
        ("line", "First a list.\n\n a, b. \n\n", "a, b."),
        ("line", " \n ", None),
    ],
)
def test_places(place: Place, text: str, expected: str | None) -> None:
    assert extract(text, AnswerConfig(find=(place,))) == expected


@pytest.mark.parametrize(
    ("find", "text", "expected"),
    [
        (MATH, r"The answer is 3, \boxed{4} <answer>5</answer>", "4"),
        (MATH, "The answer is 3. <answer>5</answer>", "5"),
        (MATH, "The answer is 3. Checked with 4.", "3"),
        (MATH, "I do not know.", None),
        (PROSE, "I do not know.", "I do not know."),
        (NUMERIC, "It is 27 cm.", "27 cm"),
        (MATH, r"12, so \boxed{}", None),  # an empty place ends the search
        (MATH, r"\boxed{5}, no: \boxed{ }", None),
        (PROSE, "12 <answer> </answer>", None),
    ],
)
def test_places_are_tried_in_order(find: tuple[Place, ...], text: str, expected: str | None) -> None:
    assert extract(text, find=find) == expected


@pytest.mark.parametrize(
    ("thinking", "text", "expected"),
    [
        ("auto", r"<think>\boxed{3}</think> So \boxed{4}.", "4"),
        ("auto", r"\boxed{3}</think> So 4.", "4"),  # the opening tag stood in the prompt
        ("auto", r"<think>\boxed{3}", None),
        ("auto", r"<think>a</think> 5 <think>\boxed{3}", None),
        ("auto", r"<think>\boxed{3}</think>", None),
        ("auto", r"\boxed{3}", "3"),
        ("required", r"\boxed{3}", None),
        ("required", r"a</think>\boxed{3}", "3"),
        ("off", r"<think>\boxed{3}", "3"),
        ("off", r"\boxed{3}</think> So 4.", "3"),
    ],
)
def test_thinking_is_not_part_of_the_answer(thinking: str, text: str, expected: str | None) -> None:
    assert extract(text, AnswerConfig(thinking=thinking), MATH) == expected


def test_names_of_tags_are_settings() -> None:
    text = "<reasoning> <final>3</final> </reasoning> <final>4</final> <answer>5</answer>"
    assert extract(text, AnswerConfig(find=("tags",), tag="final", think_tag="reasoning")) == "4"
    assert extract("<reasoning> 4", AnswerConfig(think_tag="reasoning")) is None


balanced = st.recursive(
    st.text(st.characters(exclude_characters="{}\\", exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from([r"\{", r"\}", r"\frac{1}{2}"]),
    lambda inner: st.lists(inner, max_size=3).map("".join) | inner.map(lambda text: f"{{{text}}}"),
    max_leaves=8,
)
noise = st.lists(st.sampled_from(["{", "}", r"\{", r"\}", "\\", "$", "a ", "</answer>", "\n", "7"]), max_size=20)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([r"\boxed{", r"\boxed{9}", r"\fbox"]) | noise.map("".join)), balanced, noise)
def test_a_planted_box_is_found_in_any_text(before: list[str], planted: str, after: list[str]) -> None:
    """Also boxes that are never closed before it, and braces that are never opened behind it."""
    text = f"{''.join(before)}\\boxed{{{planted}}}{''.join(after)}"
    assert last_boxed(text) == planted
    assert extract(text, find=("boxed",)) == (planted.strip() or None)


@pytest.mark.parametrize(
    "part",
    [r"\boxed{", r"\boxed ", "{", "}", "<answer>", "</answer>", "<think>x</think>", "the answer is ", "answer  ",
     "####", "$", " $5 ", r"\(", r"\[", "9", "1,234,", "1.", "1e", "1 x 10", "5^", "\n", " ", ". ", "5 cm ", "\\",
     r"\boxed{1}, ", r"\boxed{1} and ", "$5 ab$ ", "$x= ", r"\frac{1}{", r"\sqrt{2", "1 000 ", "3,5 ", "$5 or "],
)  # fmt: skip
@pytest.mark.parametrize("before", ["", "the answer is $"])
def test_extraction_is_linear(part: str, before: str) -> None:
    """Two seconds for 500,000 characters in four searches: what is quadratic takes minutes."""
    text = before + part * (CHARACTERS // len(part))
    started = time.process_time()
    for find in (MATH, NUMERIC, PROSE):
        extract(text, AnswerConfig(thinking="off"), find)
    extract(text)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is St. Louis because it lies there.", "St. Louis"),
        ("The answer is Mrs. Dalloway.", "Mrs. Dalloway"),
        ("The answer is 5 because 2 + 3 = 5.", "5"),
    ],
)
def test_a_sentence_does_not_end_in_a_title(text: str, expected: str) -> None:
    assert extract(text) == expected


@pytest.mark.parametrize("number", ["1:25,000", "8:30:15", "1:2:3", "25,000"])
def test_ratios_and_times_are_whole(number: str) -> None:
    assert extract(f"the scale is {number}", AnswerConfig(find=("last_number",))) == number
