"""Keys of reasoning-gym problems, equal for entries that ask the same problem in other words.

A task asks the same problem in several wordings, with other names for its unknowns, or with its operands in another
order. A hash of the question's text would put such copies on both sides of the split into training and held-out
problems. The rule of each task therefore names what its problem consists of: fields of the entry's metadata, or, where
the question is built from one fixed template, the question's text. A key does not depend on the seed, the index, the
task's settings or the wording. Where a model could memorise the answer (the sentence to be put in order, the full grid
of a sudoku), the answer is the key.

Keys are coarse rather than fine: two problems that share a key are on one side and may both be used there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from ulorl.answers.normalisation import comparable_question

Entry = Mapping[str, Any]
Rule = Callable[[Entry], object]
HELD_OUT_SHARE = 0.2  # of the distinct problems of a generator
_NUMBER = re.compile(r"\d*\.\d+|\d+")


def problem_key(task: str, entry: Entry) -> str:
    """Return the key of an entry: equal for entries that ask the same problem.

    An entry of a mixture (`composite`) has the key of the task that it was drawn from. The key of a task without a rule
    is the question.
    """
    rule = RULES.get(entry["metadata"].get("source_dataset", task), question)
    return repr(rule(entry))


def has_rule(task: str) -> bool:
    """Return whether a rule keeps the wordings of one problem of this task together."""
    return task in RULES or task == "composite"


def is_held_out(key: str) -> bool:
    """Return whether the problem with this key is on the held-out side of a generator's split: a stable hash."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) < HELD_OUT_SHARE * 2**64


def question(entry: Entry) -> object:
    """Return the question's text in one form, for tasks with one fixed template."""
    return comparable_question(entry["question"])


def _answer(entry: Entry) -> object:
    return str(entry["answer"])


def _fields(*names: str) -> Callable[[Entry], list[Any]]:
    return lambda entry: [entry["metadata"].get(name) for name in names]


def _unordered(*names: str) -> Rule:
    """Fields that hold collections; the order of their members does not count."""
    return lambda entry: [sorted(map(str, entry["metadata"][name])) for name in names]


def _numbers(text: object) -> list[str]:
    """Return the numbers of a text without their signs, sorted; 1.50 is 1.5."""
    return sorted(format(Decimal(number).normalize(), "f") for number in _NUMBER.findall(str(text)))


def _operands(name: str) -> Rule:
    """The operands of an expression in any order, and the answer's numbers: commuted terms and factors, other brackets
    and other letters for the unknowns do not make another problem."""
    return lambda entry: [_numbers(entry["metadata"][name]), _numbers(entry["answer"]), "-" in str(entry["answer"])]


def _decimal_operands(entry: Entry) -> object:
    """The operands in the last line; the answer's digits depend on a setting."""
    return _numbers(entry["question"].strip().rpartition("\n")[2])


def _complex(entry: Entry) -> object:
    meta = entry["metadata"]
    return [meta["operation"], sorted([meta["num1"], meta["num2"]])]


def _letters(entry: Entry) -> object:
    """The letters of a palindrome, in any order."""
    return sorted(entry["metadata"]["letters"])


def _dice(entry: Entry) -> object:
    puzzle = entry["metadata"]["puzzle"]
    return [sorted(puzzle["dice_str"].split(", ")), puzzle["target"]]


def _graph(entry: Entry) -> object:
    puzzle = entry["metadata"]["puzzle"]
    return [len(puzzle["vertices"]), sorted(puzzle["edges"]), puzzle["num_colors"]]


def _jugs(entry: Entry) -> object:
    puzzle = entry["metadata"]["puzzle"]
    return [sorted(puzzle["jug_capacities"]), puzzle["target"]]


def _maze(entry: Entry) -> object:
    """The grid with fixed signs instead of the drawn ones."""
    meta = entry["metadata"]
    signs = {meta[name]: sign for name, sign in (("start", "s"), ("goal", "g"), ("wall", "w"), ("path", "p"))}
    return ["".join(signs.get(cell, cell) for cell in row) for row in meta["grid"]]


def _cube(entry: Entry) -> object:
    """The colours in the picture of a cube."""
    return re.findall(r"\b[A-Z]\b(?= )", entry["question"])


def _family(entry: Entry) -> object:
    """The sentences of the story and the two people, in any wording of the question."""
    story = entry["question"].partition("\n\n")[0]
    return [sorted(story.split(". ")), entry["metadata"]["person1"], entry["metadata"]["person2"]]


def _colleagues(entry: Entry) -> object:
    """Alice in Wonderland: the numbers and the answer, for any names."""
    return [entry["metadata"]["task_type"], _numbers(entry["question"]), entry["answer"]]


def _story(entry: Entry) -> object:
    """GSM symbolic: the template, which its variables' names identify, and its numbers, without names and objects."""
    variables = entry["metadata"]["variables"]
    values = [v for value in variables.values() for v in (value if isinstance(value, list | tuple) else [value])]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return [sorted(variables), sorted(numbers), entry["answer"]]


def _experiments(entry: Entry) -> object:
    """ACRE: what was observed, without the test case."""
    return comparable_question(entry["question"].partition("New test case")[0])


def _calendar(entry: Entry) -> object:
    """The dates asked for; each kind of question has its own fields."""
    apart = ("source_dataset", "source_index", "difficulty")
    return sorted((name, str(value)) for name, value in entry["metadata"].items() if name not in apart)


def _sequence(entry: Entry) -> object:
    """The first four terms: a longer view of one sequence is the same problem."""
    return entry["metadata"]["sequence"][:4]


# By task. docs/tasks.md describes each in words.
RULES: Mapping[str, Rule] = {
    "ab": question,
    "acre": _experiments,
    "advanced_geometry": lambda e: [e["metadata"]["task_type"], sorted(_fields("A", "B", "C")(e))],
    "aiw": _colleagues,
    "arc_1d": _fields("test_example", "train_examples"),
    "arc_agi": _fields("task_id"),
    "base_conversion": _fields("decimal_value", "source_base", "target_base"),
    "basic_arithmetic": _operands("expression"),
    "bf": _fields("bfit_code"),
    "binary_alternation": _fields("string"),
    "binary_matrix": _fields("matrix"),
    "bitwise_arithmetic": _fields("problem"),
    "boxnet": _fields("initial_state"),
    "caesar_cipher": _fields("clear_text"),
    "calendar_arithmetic": _calendar,
    "chain_sum": _operands("expression"),
    "circuit_logic": _fields("expression", "assignments"),
    "codeio": _fields("input_data"),
    "coin_flip": _fields("num_trials", "k_heads", "problem_type"),
    "color_cube_rotation": _fields("initial_state", "rotations", "target_side"),
    "complex_arithmetic": _complex,
    "count_bits": _fields("number"),
    "count_primes": _fields("start", "end"),
    "countdown": lambda e: [sorted(e["metadata"]["numbers"]), e["metadata"]["target"]],
    "course_schedule": _unordered("prerequisites"),
    "cryptarithm": lambda e: sorted(e["metadata"]["word_values"]),
    "decimal_arithmetic": _decimal_operands,
    "decimal_chain_sum": _operands("expression"),
    "dice": _dice,
    "emoji_mystery": _answer,
    "family_relationships": _family,
    "figlet_font": _answer,
    "fraction_simplification": _fields("numerator", "denominator"),
    "futoshiki": _fields("solution"),
    "game_of_life": question,
    "game_of_life_halting": question,
    "gcd": _unordered("numbers"),
    "graph_color": _graph,
    "group_anagrams": _unordered("words"),
    "gsm_symbolic": _story,
    "intermediate_integration": _fields("integrand"),
    "isomorphic_strings": _fields("words"),
    "jugs": _jugs,
    "kakurasu": _fields("row_sums", "col_sums"),
    "knight_swap": _fields("pieces", "board", "start_turn"),
    "knights_knaves": _fields("statements"),
    "largest_island": _fields("grid"),
    "lcm": _unordered("numbers"),
    "leg_counting": lambda e: sorted(e["metadata"]["animals"].items()),
    "letter_counting": _fields("span", "target_letter"),
    "letter_jumble": _answer,
    "list_functions": question,
    "mahjong_puzzle": _fields("rounds"),
    "manipulate_matrix": _fields("matrix"),
    "maze": _maze,
    "mini_sudoku": _fields("solution"),
    "modulo_grid": _answer,
    "n_queens": _answer,
    "needle_haystack": question,
    "number_filtering": _fields("original_numbers", "filter_value", "operation"),
    "number_format": _unordered("candidates"),
    "number_sequence": _sequence,
    "number_sorting": _unordered("original_numbers"),
    "palindrome_generation": _letters,
    "palindrome_partitioning": _fields("string"),
    "path_star": _fields("goal_path"),
    "polynomial_equations": _operands("polynomial_expr"),
    "polynomial_multiplication": _operands("polynomial_expr"),
    "pool_matrix": _fields("matrix"),
    "power_function": _fields("base", "exponent"),
    "prime_factorization": _fields("number"),
    "products": _operands("expression"),
    "propositional_logic": _unordered("premises"),
    "puzzle24": _unordered("numbers"),
    "quantum_lock": _fields("buttons", "target_value", "initial_state", "initial_value"),
    "ransom_note": _fields("ransom_note", "magazine"),
    "rearc": _fields("input"),
    "rectangle_count": _fields("puzzle"),
    "rotate_matrix": _fields("matrix"),
    "rotten_oranges": _fields("matrix"),
    "rubiks_cube": _cube,
    "rush_hour": _fields("board_config"),
    "self_reference": question,
    "sentence_reordering": _answer,
    "shortest_path": _fields("matrix"),
    "simple_equations": _operands("equation"),
    "simple_geometry": lambda e: sorted(e["metadata"]["known_angles"]),
    "simple_integration": _operands("integrand"),
    "sokoban": _fields("gamestr"),
    "spell_backward": _fields("word"),
    "spiral_matrix": _fields("matrix"),
    "string_insertion": question,
    "string_manipulation": _fields("string", "selected_rules"),
    "string_splitting": _fields("initial_machines"),
    "string_synthesis": _fields("initial_blocks"),
    "sudoku": _fields("solution"),
    "survo": _fields("solution"),
    "syllogism": lambda e: sorted(_fields("premise1", "premise2", "conclusion")(e)),
    "time_intervals": _fields("start_time", "end_time"),
    "tower_of_hanoi": _fields("num_disks", "num_pegs", "start_peg", "target_peg"),
    "tsumego": _fields("board"),
    "word_ladder": lambda e: sorted([e["metadata"]["start_word"], e["metadata"]["end_word"]]),
    "word_sequence_reversal": _fields("words"),
    "word_sorting": _unordered("original_words"),
    "zebra_puzzles": question,
}
