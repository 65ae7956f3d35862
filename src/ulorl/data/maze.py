"""Walks through a maze: any walk from the start to the goal that enters no wall is right.

The cells of a square grid are numbered row by row. A problem names the side of the grid, start, goal and walls:
`3:0>8#4,5` is a grid of 3 x 3 whose cells 4 and 5 are walls. An output is the start and then steps, each a direction
(U, D, L, R) and the cell that it leads to:

    0R1R2L1L0D3D6R7R8

Demonstrations explore depth-first, as a walker without a map does: they step to a random neighbour that was not visited
yet and, where there is none, back to where they came from. Each arrives; their lengths are long-tailed.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from ulorl.data.task_definition import DrawnTask
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

LARGEST_SIDE = 9
_NUMBER = "(?:0|[1-9][0-9]?)"
_PROBLEM = re.compile(rf"([2-9]):({_NUMBER})>({_NUMBER})#((?:{_NUMBER}(?:,{_NUMBER})*)?)")
_OUTPUT = re.compile(rf"({_NUMBER})((?:[UDLR]{_NUMBER})+)")
_STEP = re.compile(r"([UDLR])([0-9]+)")


class _Grid(NamedTuple):
    side: int  # cells in a row and in a column
    start: int
    goal: int
    walls: frozenset[int]

    def steps(self, cell: int) -> dict[str, int]:
        """The directions that lead from a cell to another one that is no wall, each with that cell."""
        row, column = divmod(cell, self.side)
        inside = {"U": row > 0, "D": row < self.side - 1, "L": column > 0, "R": column < self.side - 1}
        offsets = {"U": -self.side, "D": self.side, "L": -1, "R": 1}
        return {d: cell + offsets[d] for d in "UDLR" if inside[d] and cell + offsets[d] not in self.walls}


class Maze(DrawnTask):
    """Square grids with random walls, and a goal that can be reached."""

    words = (*map(str, range(LARGEST_SIDE**2)), *":>#,UDLR\n")

    def draw(self, rng: random.Random, side: int = 6, walls: int = 4) -> str:
        """Return a random maze. side: 2..9 cells. walls: how many cells are walls; two cells at least are free."""
        if not (isinstance(side, int) and 2 <= side <= LARGEST_SIDE):
            message = f"side must be within 2..{LARGEST_SIDE}, found {side!r}"
            raise ValueError(message)
        if not (isinstance(walls, int) and 0 <= walls <= side * side - 2):
            message = f"walls must be within 0..{side * side - 2}, found {walls!r}"
            raise ValueError(message)
        while True:
            start, goal, *blocked = rng.sample(range(side * side), 2 + walls)
            grid = _Grid(side, start, goal, frozenset(blocked))
            if _exploration(grid, rng):
                return f"{side}:{start}>{goal}#{','.join(map(str, sorted(blocked)))}"

    def demonstrate(self, problem: str, rng: random.Random) -> str:
        """Return a depth-first exploration that ends at the goal."""
        grid = _grid(problem)
        return f"{grid.start}{_exploration(grid, rng)}"

    def check(self, problem: str, output: str) -> bool:
        """Return whether the output is a walk from the start to the goal, each step to a free neighbour."""
        grid, match = _grid(problem), _OUTPUT.fullmatch(output)
        if not match or int(match[1]) != grid.start:
            return False
        cell = grid.start
        for direction, target in _STEP.findall(match[2]):
            if grid.steps(cell).get(direction) != int(target):
                return False
            cell = int(target)
        return cell == grid.goal


def _grid(problem: str) -> _Grid:
    match = _PROBLEM.fullmatch(problem)
    if not match:
        message = f"not a maze: {problem!r}; expected side:start>goal#walls, such as 3:0>8#4,5"
        raise UserError(message, code=ErrorCode.REWARD_PROBLEM)
    walls = frozenset(map(int, match[4].split(","))) if match[4] else frozenset()
    return _Grid(int(match[1]), int(match[2]), int(match[3]), walls)


def _exploration(grid: _Grid, rng: random.Random) -> str:
    """The steps of a depth-first exploration from start to goal; "" when the goal cannot be reached."""
    path, visited, steps = [grid.start], {grid.start}, ""
    back = {"U": "D", "D": "U", "L": "R", "R": "L"}
    entered_by: list[str] = []
    while path[-1] != grid.goal:
        fresh = [(d, cell) for d, cell in grid.steps(path[-1]).items() if cell not in visited]
        if fresh:
            direction, cell = rng.choice(fresh)
            path.append(cell)
            visited.add(cell)
            entered_by.append(direction)
        elif entered_by:
            path.pop()
            direction, cell = back[entered_by.pop()], path[-1]
        else:
            return ""
        steps += f"{direction}{cell}"
    return steps
