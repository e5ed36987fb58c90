"""A task may change what its `files` say, and nothing else."""

import fnmatch
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudecluster.model.evidence import Changes, Verdict
from claudecluster.model.task import Task
from claudecluster.supervisor.scope import inside, scope


def found(files: tuple[str, ...], *changed: str) -> tuple[Verdict, str]:
    finding = scope(Task("a", prompt="x", files=files), Changes("b", "c", "t", changed))
    assert finding.check == "scope"
    return finding.verdict, finding.why


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("src/**", "src/a.py", True),
        ("src/**", "src/x/y/a.py", True),
        ("src/**", "srcs/a.py", False),
        ("src/*", "src/a.py", True),
        ("src/*", "src/x/a.py", False),
        ("*.py", "a.py", True),
        ("*.py", "src/a.py", False),
        ("**/*.py", "a.py", True),
        ("**/*.py", "x/y/a.py", True),
        ("**/*.py", "x/y/a.pyc", False),
        ("src/**/test_*.py", "src/test_a.py", True),
        ("src/**/test_*.py", "src/x/y/test_a.py", True),
        ("src/**/test_*.py", "test_a.py", False),
        ("src", "src/x/a.py", True),
        ("src/", "src/a.py", True),
        ("src/a.py", "src/a.py", True),
        ("src/a.py", "src/a.pyx", False),
        ("./src//a.py", "src/a.py", True),
        ("a?.py", "ab.py", True),
        ("a?.py", "a/.py", False),
        ("a[bc].py", "ab.py", True),
        ("a[!bc].py", "ab.py", False),
        ("a[!bc].py", "ad.py", True),
        ("a[!b]c", "a/c", False),
        ("a[z-a].py", "a[z-a].py", True),
        ("a[.py", "a[.py", True),
        ("a+(b).py", "a+(b).py", True),
        ("a.py", "aXpy", False),
        ("**", "anything/at all\n", True),
        ("", "anything", True),
        ("docs/*", "docs/ü.md", True),
        ("docs/*", "docs/.hidden", True),
    ],
)
def test_a_glob_takes_these_paths(glob: str, path: str, expected: bool) -> None:
    assert inside([glob], path) is expected


def test_a_task_without_a_scope_may_change_anything() -> None:
    assert found((), "a", "b/c")[0] is Verdict.PASS


def test_staying_inside_passes() -> None:
    assert found(("src/**", "docs/*"), "src/x/a.py", "docs/a.md")[0] is Verdict.PASS
    assert found(("src/**",))[0] is Verdict.PASS


def test_leaving_the_scope_fails_and_names_what_is_outside() -> None:
    verdict, why = found(("src/**", "docs/*"), "src/a.py", "setup.py", "docs/x/a.md")
    assert verdict is Verdict.FAIL
    assert why == "changed files outside its scope: setup.py, docs/x/a.md (allowed: src/**, docs/*)"


def test_a_long_list_is_cut() -> None:
    assert "t9 and 90 more (" in found(("src",), *(f"t{number}" for number in range(100)))[1]


SEGMENT = st.sampled_from(["a", "b", "ab", "*", "a*", "*b", "?", "**"])
NAMES = ["a", "b", "ab", "aab"]
PATHS = [parts for size in range(1, 5) for parts in itertools.product(NAMES, repeat=size)]


def takes(glob: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if not glob:
        return not path
    if glob[0] == "**":
        return takes(glob[1:], path) or (bool(path) and takes(glob, path[1:]))
    return bool(path) and fnmatch.fnmatchcase(path[0], glob[0]) and takes(glob[1:], path[1:])


@given(st.lists(SEGMENT, min_size=1, max_size=4))
def test_globs_are_read_as_the_slow_way_reads_them(glob: list[str]) -> None:
    parts = tuple(glob)
    name = parts[-1] != "**" and not set("*?[") & set(parts[-1])
    for path in PATHS:
        slow = takes(parts, path) or (name and takes((*parts, "**"), path))
        if parts[-1] == "**" and takes(parts[:-1], path) and not takes((*parts[:-1], "?*", "**"), path):
            continue  # the folder itself, which is never a changed file
        assert inside(["/".join(parts)], "/".join(path)) is slow, path
