"""Control groups are found in both versions and only where they can be made. The kernel's files are played by plain ones."""

import os
from pathlib import Path

import pytest

from claudecluster.model.errors import Unavailable
from claudecluster.model.place import Limits
from claudecluster.sandboxes.local.cgroups import ControlGroups, Hierarchy, discover, empty_out


def first(top: Path, root: str = "/") -> str:
    return "\n".join(
        f"3{number} 29 0:2{number} {root} {top}/{name} rw,relatime - cgroup cgroup rw,{name}"
        for number, name in enumerate(("cpu", "memory", "pids"))
    )


def second(top: Path, root: str = "/") -> str:
    return f"30 29 0:26 {root} {top} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"


def test_version_1_groups_lie_below_our_own(tmp_path: Path) -> None:
    for own in ("cpu", "memory/box", "pids/box"):
        (tmp_path / own).mkdir(parents=True)
    found = discover(first(tmp_path), "3:pids:/box\n2:memory:/box\n1:cpu:/\n0::/")
    assert [(one.version, one.base, set(one.controllers)) for one in found] == [
        (1, tmp_path / "memory/box", {"memory"}),
        (1, tmp_path / "pids/box", {"pids"}),
    ]


def test_in_a_container_paths_are_relative_to_what_is_mounted(tmp_path: Path) -> None:
    for own in ("memory", "pids"):
        (tmp_path / own).mkdir(parents=True)
    found = discover(first(tmp_path, "/docker/abc"), "3:pids:/docker/abc\n2:memory:/docker/abc")
    assert [one.base for one in found] == [tmp_path / "memory", tmp_path / "pids"]


def test_version_2_groups_lie_where_the_controllers_are_handed_on(tmp_path: Path) -> None:
    own = tmp_path / "user.slice/app.slice/shell.scope"
    own.mkdir(parents=True)
    (own / "cgroup.subtree_control").write_text("\n")
    (tmp_path / "user.slice/app.slice/cgroup.subtree_control").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory pids\n")
    found = discover(second(tmp_path), "0::/user.slice/app.slice/shell.scope")
    assert found == (Hierarchy(2, tmp_path / "user.slice/app.slice", frozenset({"memory", "pids"})),)


def test_where_none_may_be_made_none_is_found(tmp_path: Path) -> None:
    assert discover("", "") == ()
    assert discover(second(tmp_path), "0::/") == ()  # nothing is handed on
    assert discover(first(tmp_path), "3:pids:/gone\n2:memory:/gone") == ()
    assert discover("22 29 0:20 / /proc rw - proc proc rw", "0::/") == ()
    assert discover("22 29 0:20 / /sys rw - cgroup2", "0::/../..") == ()


@pytest.mark.parametrize(("version", "memory"), [(1, "memory.limit_in_bytes"), (2, "memory.max")])
def test_limits_are_set_and_can_be_left_off(tmp_path: Path, version: int, memory: str) -> None:
    groups = ControlGroups([Hierarchy(version, tmp_path, frozenset({"memory", "pids"}))], "scope")
    (one,), (two,) = groups.folders("one"), groups.folders("two")
    assert groups.wanted("one", Limits(memory=1000, processes=8)) == {str(one): {memory: 1000, "pids.max": 8}}
    assert groups.wanted("two", Limits(memory=None, processes=None)) == {str(two): {}}
    assert groups.spares() == ([str(tmp_path)] if version == 1 else [])
    assert groups.holds("memory")
    assert not ControlGroups([], "scope").holds("memory")


def test_owners_with_different_state_do_not_share_groups(tmp_path: Path) -> None:
    here = [Hierarchy(2, tmp_path, frozenset({"memory", "pids"}))]
    assert ControlGroups(here, "a").folders("x") != ControlGroups(here, "b").folders("x")


def test_emptying_spares_whoever_the_kernel_does_not_name(tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    (group / "cgroup.procs").write_text("0\n")  # kill(0) would end this very test run
    with pytest.raises(Unavailable, match="cannot remove"):
        empty_out([tmp_path / "missing", group])
    (group / "cgroup.procs").unlink()
    empty_out([group])
    assert not group.exists()
    assert os.getpid()
