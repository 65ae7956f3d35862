"""Tasks that draw their problems, and how a name finds a task."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from paths import ROOT
from refusals import refused
from ulorl.data.countdown import Countdown, problems
from ulorl.data.maze import Maze
from ulorl.data.problem_keys import is_held_out
from ulorl.data.sorting import Sorting
from ulorl.data.task_definition import DrawnTask
from ulorl.data.task_lookup import BUILT_IN, find_task, task_problems
from ulorl.error_codes import ErrorCode

GENERATOR = ErrorCode.DATA_GENERATOR
USERS = """
from ulorl.data.task_definition import DrawnTask

class Echo(DrawnTask):
    words = "ab"

    def draw(self, rng, length=3):
        return "".join(rng.choice("ab") for _ in range(length))

    def demonstrate(self, problem, rng):
        return problem

    def check(self, problem, output):
        return output == problem
"""


class Dice(DrawnTask):
    """Six problems."""

    words = "123456"

    def draw(self, rng: random.Random, sides: int = 6) -> str:
        if sides > 6:
            raise ValueError("sides is at most 6")
        return str(rng.randint(1, sides))

    def demonstrate(self, problem: str, rng: random.Random) -> str:  # noqa: ARG002
        return problem

    def check(self, problem: str, output: str) -> bool:
        return problem == output


@pytest.mark.parametrize("name", BUILT_IN)
def test_demonstrations_are_right_and_cut_ones_are_not(name: str) -> None:
    task, rng = find_task(name), random.Random(0)
    for problem in task.training_problems(60, rng):
        output = task.demonstrate(problem, rng)
        assert task.check(problem, output)
        assert not task.check(problem, output[:-1])
        assert not task.check(problem, "")
        assert not task.check(problem, output + "\n")
        assert set(problem + output) <= set("".join(task.words))


@pytest.mark.parametrize("name", BUILT_IN)
def test_sides_are_disjoint_and_reproducible(name: str) -> None:
    train = task_problems(name, 300, 0, {})
    held_out = task_problems(name, 100, 1, {}, held_out=True)
    assert len({p.id for p in train}) == 300
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}
    assert train == task_problems(name, 300, 0, {})
    assert train[:50] != task_problems(name, 300, 2, {})[:50]
    assert all(p.meta == {"task": name} for p in train)
    drawn = find_task(name).training_problems(200, random.Random(3))
    assert not set(drawn) & {p.prompt for p in held_out}


def test_countdown_has_the_problems_of_its_own_kind() -> None:
    assert Countdown().problems(20, 3, held_out=True) == [p.prompt for p in problems(20, 3, held_out=True)]
    assert all(text.count(",") == 2 for text in Countdown().problems(20, 3, numbers=[3]))


def test_too_few_problems_are_noticed() -> None:
    with refused(ErrorCode.DATA_TOO_FEW, key="data.size"):
        Dice().problems(7, 0)
    side = is_held_out("1")  # the only problem of a die with one side
    assert Dice().problems(1, 0, held_out=side, sides=1) == ["1"]
    with refused(ErrorCode.DATA_TOO_FEW, key="data.settings"):
        Dice().problems(1, 0, held_out=not side, sides=1)


def test_wrong_settings_are_refused() -> None:
    with refused(GENERATOR, key="data.settings.side"):
        Dice().problems(1, 0, side=3)
    with refused(GENERATOR, key="data.settings"):
        Dice().problems(1, 0, sides=7)
    for settings in ({"side": 10}, {"side": 3, "walls": 8}, {"side": True}, {"walls": -1}):
        with refused(GENERATOR, key="data.settings"):
            Maze().problems(1, 0, **settings)
    for numbers in ([], [1], [21], ["3"], 3):
        with refused(GENERATOR, key="data.settings"):
            Sorting().problems(1, 0, numbers=numbers)


class AnySettings(Dice):
    """Takes every keyword argument, `size` and `seed` too, and hands it on."""

    def draw(self, rng: random.Random, **settings: Any) -> str:
        return super().draw(rng, **{"sides": settings.pop("size", 6) + settings.pop("seed", 0), **settings})


class Untaught(Dice):
    """Is no generator of problems at all."""

    def draw(self) -> str:  # type: ignore[override]
        return "1"


def test_a_setting_of_the_wrong_type_is_refused_with_its_task_value_and_message() -> None:
    for sides in ("six", [6], None):
        with refused(GENERATOR, key="data.settings") as caught:
            Dice().problems(1, 0, sides=sides)
        assert f"Dice refuses sides={sides!r}: TypeError: '>' not supported between" in str(caught.value)
        assert "(test_task_definition.py, line " in str(caught.value)
    with refused(GENERATOR, key="data.settings"):
        Sorting().training_problems(1, random.Random(0), numbers=[[4]])
    with refused(GENERATOR, key="data.task") as caught:
        Untaught().problems(1, 0)
    assert "Untaught cannot draw a problem: TypeError: " in str(caught.value)


@pytest.mark.parametrize(
    ("method", "body", "said"),
    [
        ("draw", "return None", "returned None; it must return the text of a problem, a str"),
        ("draw", "return 3", "returned 3; it must return the text of a problem, a str"),
        ("draw", "return 'a\\0'", "returned a text that holds a NUL character at position 2"),
        ("draw", "return {}['q']", "raised KeyError: 'q' (mine.py, line 8); it must return"),
        ("key", "return 4", "returned 4; it must return a text that is equal for problems on the same side, a str"),
        ("key", "return [][0]", "raised IndexError: list index out of range (mine.py, line 17); it must return"),
    ],
)
def test_a_method_that_fails_is_named_with_its_line_and_what_it_must_return(
    method: str, body: str, said: str, tmp_path: Path
) -> None:
    lines = [*USERS.splitlines(), "", "    def key(self, problem):", "        return problem"]
    line = {"draw": 7, "key": 16}[method]
    lines[line] = f"        {body}"
    (tmp_path / "mine.py").write_text("\n".join(lines))
    find_task.cache_clear()
    for held_out in (False, True):
        with refused(GENERATOR, key="data.task", file=tmp_path / "mine.py") as caught:
            task_problems("mine.py", 3, 0, {}, held_out=held_out)
        assert f"Echo.{method} (mine.py, line {line}) {said}" in str(caught.value)


def test_a_task_may_take_every_setting() -> None:
    assert set(AnySettings().problems(2, 0, size=1, seed=2)) <= {"1", "2", "3"}
    assert len(AnySettings().training_problems(2, random.Random(0), size=6)) == 2
    with refused(GENERATOR, key="data.settings") as caught:  # `draw` itself refuses the name
        AnySettings().problems(1, 0, walls=3)
    assert "unexpected keyword argument 'walls'" in str(caught.value)
    for task in (Dice(), Countdown()):
        with refused(GENERATOR, key="data.settings.size"):
            task.problems(1, 0, size=3)
    with refused(GENERATOR, key="data.settings.held_out"):
        task_problems("maze", 1, 0, {"held_out": True})


@pytest.mark.parametrize("named", ["mine.py", "mine.py:Echo", "mine:Echo"])
def test_a_users_task_is_found(named: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USERS)  # the working folder
    find_task.cache_clear()
    task = find_task(named)
    assert task.training_problems(2, random.Random(0), length=5)[0].strip("ab") == ""


def test_the_file_of_a_task_may_have_dataclasses(tmp_path: Path) -> None:
    """They look up the module of a class by its name. A module of the same name stays what it was."""
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    state = "\n@dataclass\nclass State:\n    letter: str\n"
    (tmp_path / "random.py").write_text(head + USERS + state)
    find_task.cache_clear()
    assert find_task("random.py").training_problems(1, random.Random(0))
    assert sys.modules["random"] is random


def test_the_example_of_the_documents_is_a_task(tmp_path: Path) -> None:
    (example,) = re.findall(
        r"```python\n(# digit_sums.py.*?)```", (ROOT / "docs" / "own_task.md").read_text(), re.DOTALL
    )
    (tmp_path / "digit_sums.py").write_text(example)
    task, rng = find_task("digit_sums.py"), random.Random(0)
    assert task.check("9+3+4", "12,16")
    assert not task.check("9+3+4", "12,15")
    for problem in task.training_problems(20, rng, digits=5):
        assert task.check(problem, task.demonstrate(problem, rng))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("unknown", ""),
        ("no_such_module_here:Task", ""),
        ("none.py", None),
        ("bad.py", "1 / 0"),
        ("empty.py", ""),
        ("two.py", USERS + USERS.replace("Echo", "Other")),
        ("named.py:Other", USERS),
        ("number.py:words", "words = 3"),
        ("abstract.py", USERS.replace("def check", "def chek")),
        ("unmade.py", USERS + "\n    def __init__(self):\n        raise OSError('no word list')\n"),
    ],
)
def test_anything_else_is_refused(name: str, content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name.partition(":")[0]).write_text(content)
    find_task.cache_clear()
    with refused(GENERATOR, key="data.task") as caught:
        find_task(name)
    assert repr(name) in str(caught.value)


def test_a_task_that_is_not_found_is_refused_with_what_may_be_meant() -> None:
    Path("sums.py").touch()
    Path("words.py").write_text("open('list.txt')")
    for name, hint in (
        ("mazes", "did you mean maze? expected countdown, "),
        ("sums", "did you mean sums.py? expected countdown, "),
        ("sum.py", f"no such file; a path begins in {Path.cwd()}"),
        ("words.py", "cannot be imported (FileNotFoundError: "),  # the file is there; what it opens is not
    ):
        with refused(GENERATOR, key="data.task") as caught:
            find_task(name)
        assert hint in str(caught.value)
