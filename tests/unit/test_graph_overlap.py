"""Tasks that may write the same files at the same time are found, however many there are."""

import fnmatch
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudecluster.graph.overlap import Overlap, meet, overlaps
from claudecluster.model.task import Plan, Task


def task(name: str, *files: str, needs: tuple[str, ...] = ()) -> Task:
    return Task(name, prompt="Do it", files=files, needs=needs)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("src/a.py", "src/a.py", True),
        ("src/a.py", "src/b.py", False),
        ("src/*.py", "src/a.py", True),
        ("src/*.py", "src/x/a.py", False),
        ("src/**", "src/x/y/a.py", True),
        ("src/**", "source/a.py", False),
        ("src", "src/x/a.py", True),
        ("src/", "src/*", True),
        ("./src//a.py", "src/a.py", True),
        ("**/*.py", "docs/*.md", False),
        ("**/*.py", "docs/**", True),
        ("**/test_*.py", "src/**/*_a.py", True),
        ("**/a/**", "b/**/c", True),
        ("a/**/b", "a/b", True),
        ("a*c", "ab*", True),
        ("a*c", "b*c", False),
        ("*a", "*b", False),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("a[bc]d", "abd", True),
        ("", "anything/at/all", True),
        ("**", "x", True),
    ],
)
def test_globs_meet_where_one_path_matches_both(first: str, second: str, expected: bool) -> None:
    assert meet(first, second) is expected
    assert meet(second, first) is expected


SEGMENT = st.sampled_from(["a", "b", "ab", "*", "a*", "*b", "?", "**"])
GLOB = st.lists(SEGMENT, min_size=1, max_size=4).map("/".join)
NAMES = ["a", "b", "ab", "aab"]
PATHS = ["/".join(parts) for size in range(1, 5) for parts in itertools.product(NAMES, repeat=size)]


def takes(glob: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if not glob:
        return not path
    if glob[0] == "**":
        return takes(glob[1:], path) or (bool(path) and takes(glob, path[1:]))
    return bool(path) and fnmatch.fnmatchcase(path[0], glob[0]) and takes(glob[1:], path[1:])


@given(GLOB, GLOB)
def test_no_path_that_matches_both_is_missed(first: str, second: str) -> None:
    both = [path for path in PATHS if all(takes(tuple(glob.split("/")), tuple(path.split("/"))) for glob in (first, second))]
    if both:
        assert meet(first, second)


def test_only_tasks_that_can_run_at_the_same_time_overlap() -> None:
    tasks = (
        task("a", "src/**"),
        task("b", "src/x.py", needs=("a",)),
        task("c", "src/y.py"),
        task("d", "docs/**"),
        task("e", needs=()),
        task("f", "src/y.py", needs=("b",)),
    )
    assert overlaps(Plan(tasks)) == [
        Overlap("a", "c", ("src/**", "src/y.py")),
        Overlap("c", "f", ("src/y.py", "src/y.py")),
    ]


def test_a_pair_is_named_once() -> None:
    assert overlaps(Plan((task("a", "x", "y"), task("b", "x", "y")))) == [Overlap("a", "b", ("x", "x"))]


@given(st.lists(st.tuples(st.lists(GLOB, max_size=2), st.integers(0, 7)), min_size=1, max_size=7))
def test_every_pair_is_found(drawn: list[tuple[list[str], int]]) -> None:
    tasks = tuple(task(f"t{n}", *globs, needs=(f"t{need}",) if need < n else ()) for n, (globs, need) in enumerate(drawn))
    before: dict[str, set[str]] = {}
    for entry in tasks:
        before[entry.id] = {entry.id}.union(*(before[need] for need in entry.needs))
    expected = {
        (first.id, second.id)
        for first, second in itertools.combinations(tasks, 2)
        if first.id not in before[second.id] and any(meet(one, other) for one in first.files for other in second.files)
    }
    assert {(found.first, found.second) for found in overlaps(Plan(tasks))} == expected


def test_ten_thousand_tasks_are_no_matter() -> None:
    began = time.perf_counter()
    same = Plan(tuple(task(f"t{number}", "src/**") for number in range(10_000)))
    assert len(overlaps(same, limit=50)) == 50
    chain = Plan(tuple(task(f"t{number}", "src/**", needs=(f"t{number - 1}",) if number else ()) for number in range(10_000)))
    assert overlaps(chain) == []
    assert overlaps(Plan(tuple(task(f"t{number}", f"src/m{number}/**") for number in range(10_000)))) == []
    hard = Plan(tuple(task(f"t{number}", f"src/**/x*{number}.py") for number in range(10_000)))
    assert len(overlaps(hard)) <= 100
    assert time.perf_counter() - began < 10  # measured: 0.9 s for all four
