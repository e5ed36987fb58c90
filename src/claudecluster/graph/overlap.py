"""Which tasks may write the same files at the same time? A warning for `plan`: landing sorts it out, at a price.

Called by the doors. It compares scopes (`files` globs), never real files, and takes `[...]` for any one character.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from claudecluster.graph.order import topological
from claudecluster.model.task import Plan

WILD = frozenset("*?[")
ENOUGH = 20_000  # pairs of globs compared before we stop: a warning is not worth more than half a second


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two tasks that can run at the same time, and a glob of each that can match the same path."""

    first: str
    second: str
    globs: tuple[str, str]


def overlaps(plan: Plan, limit: int = 100) -> list[Overlap]:
    """Return up to `limit` pairs in file order, each pair once. Tasks without a scope are not looked at. The plan must be sound."""
    related = _related(plan)
    place = {task.id: number for number, task in enumerate(plan.tasks)}
    owners: dict[str, int] = {}  # glob -> bit set of the tasks that have it
    for task in plan.tasks:
        for glob in task.files:
            owners[glob] = owners.get(glob, 0) | 1 << place[task.id]
    near = _Near(owners)
    found: dict[tuple[int, int], Overlap] = {}
    for number, task in enumerate(plan.tasks):
        later = ~related[number] & -(2 << number)
        for glob in task.files:
            for other in near.meeting(glob):
                for partner in _bits(owners[other] & later):
                    second = plan.tasks[partner].id
                    found.setdefault((number, partner), Overlap(task.id, second, (glob, other)))
                    if len(found) >= limit:
                        return list(found.values())
    return list(found.values())


def meet(first: str, second: str) -> bool:
    """Tell whether some path can match both globs. A glob that names a folder takes everything in it."""
    return _meet(_parts(first), _parts(second))


class _Near:
    """Finds the globs that meet a glob. Two can only do so if the plain text before the first wildcard of one starts that of the other."""

    def __init__(self, globs: Iterable[str]) -> None:
        self._starting: dict[str, list[str]] = {}  # plain text -> the globs that start with it
        for glob in globs:
            self._starting.setdefault(_start(glob), []).append(glob)
        self._sorted = sorted(self._starting)
        self._left = ENOUGH
        self._known: dict[str, list[str]] = {}

    def meeting(self, glob: str) -> list[str]:
        if glob not in self._known:
            near = list(islice(self._candidates(glob), self._left))
            self._left -= len(near)
            self._known[glob] = [other for other in near if meet(glob, other)]
        return self._known[glob]

    def _candidates(self, glob: str) -> Iterator[str]:
        start = _start(glob)
        for length in range(len(start)):
            yield from self._starting.get(start[:length], ())
        at = bisect_left(self._sorted, start)
        while at < len(self._sorted) and self._sorted[at].startswith(start):
            yield from self._starting[self._sorted[at]]
            at += 1


def _related(plan: Plan) -> list[int]:
    # One bit set a task: itself, and all that run before or after it for certain.
    place = {task.id: number for number, task in enumerate(plan.tasks)}
    order = [place[name] for name in topological(plan)]
    needs = [[place[need] for need in task.needs] for task in plan.tasks]
    before = [0] * len(plan.tasks)
    after = [0] * len(plan.tasks)
    for number in order:
        for need in needs[number]:
            before[number] |= before[need] | 1 << need
    for number in reversed(order):
        for need in needs[number]:
            after[need] |= after[number] | 1 << number
    return [before[number] | after[number] | 1 << number for number in range(len(plan.tasks))]


def _bits(value: int) -> Iterator[int]:
    while value:
        lowest = value & -value
        yield lowest.bit_length() - 1
        value ^= lowest


def _parts(glob: str) -> tuple[str, ...]:
    parts = tuple(part for part in glob.split("/") if part not in {"", "."})
    if not parts or (parts[-1] != "**" and not WILD & set(parts[-1])):
        return (*parts, "**")  # a plain name may be a folder
    return parts


def _start(glob: str) -> str:
    path = "/".join(part for part in glob.split("/") if part not in {"", "."})
    return next((path[:at] for at, letter in enumerate(path) if letter in WILD), path)


def _meet(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    # Both walked at once, one path segment a step; `**` stays where it is or steps aside.
    reached = _aside(first, second, {(0, 0)})
    for _ in range(len(first) + len(second) + 1):
        if (len(first), len(second)) in reached:
            return True
        step = set()
        for left, right in reached:
            if left < len(first) and right < len(second) and _segments_meet(first[left], second[right]):
                step.add((left + (first[left] != "**"), right + (second[right] != "**")))
        reached |= _aside(first, second, step)
    return False


def _aside(first: tuple[str, ...], second: tuple[str, ...], states: set[tuple[int, int]]) -> set[tuple[int, int]]:
    todo, done = list(states), set(states)
    while todo:
        left, right = todo.pop()
        for state in (
            (left + 1, right) if left < len(first) and first[left] == "**" else (left, right),
            (left, right + 1) if right < len(second) and second[right] == "**" else (left, right),
        ):
            if state not in done:
                done.add(state)
                todo.append(state)
    return done


@lru_cache(maxsize=65536)
def _segments_meet(first: str, second: str) -> bool:
    if "**" in {first, second} or first == second:
        return True
    if not WILD & set(first) and not WILD & set(second):
        return False
    left, right = _letters(first), _letters(second)
    row = [True] + [False] * len(right)
    for column, letter in enumerate(right):
        row[column + 1] = row[column] and letter == "*"
    for mine in left:
        above, row = row, [row[0] and mine == "*"]
        for column, other in enumerate(right):
            if mine == "*" or other == "*":
                row.append(above[column + 1] or row[column] or above[column])
            else:
                row.append(above[column] and (mine == other or "?" in {mine, other}))
    return row[-1]


def _letters(segment: str) -> list[str]:
    letters: list[str] = []
    at = 0
    while at < len(segment):
        end = segment.find("]", at + 2) if segment[at] == "[" else -1
        letters.append("?" if end > 0 else segment[at])
        at = end + 1 if end > 0 else at + 1
    return letters
