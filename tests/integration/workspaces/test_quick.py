"""The harvest that needs no git gives, tree for tree, what git gives, or leaves it to git."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from claudecluster.model.tree import Wanted
from claudecluster.workspaces.harvest import QUICK

RepoMaker = Callable[..., Path]
pytestmark = pytest.mark.parametrize("lab", ["process"], indirect=True)  # plain folders are always harvested by git

FILES = {
    "a.txt": "a\n",
    "run.sh": "#!/bin/sh\n",
    "src/one.py": "1\n",
    "src/deep/two.py": "2\n",
    "src/deep/three.py": "3\n",
    "docs/x.md": "x\n",
    "docs-more": "a file whose name sorts between docs and docs/\n",
    "build/kept.txt": "tracked although ignored\n",
    ".gitignore": "*.log\nbuild/\n/only-here\n!important.log\n",
    "src/.gitignore": "*.tmp\ndeep/secret\n",
}


async def both(lab: Any, hub: Any, script: str, name: str, **wanted: Any) -> tuple[str, str]:
    """Run a script in a workspace; return the tree that each way finds."""
    workspace, _ = await lab.done(hub, script, name, **wanted)
    made = hub.trees.made(workspace.name)
    quick = await hub.gatherer._simple(made)
    thorough, why = await hub.gatherer._written(made, QUICK)
    assert thorough, why
    return quick, thorough


CHANGES = {
    "changed": "echo 2 >> a.txt; echo 3 >> src/deep/two.py",
    "new": "echo n > new.txt; mkdir -p p/q/r; echo n > p/q/r/s",
    "gone": "rm a.txt; rm -r src/deep",
    "everything gone": "rm -rf a.txt run.sh src docs docs-more build .gitignore",
    "made anew over what was": "rm -r src; mkdir -p src/deep; echo other > src/deep/four.py",
    "emptied": "rm src/deep/*; mkdir empty",
    "a folder where a file was": "rm a.txt; mkdir a.txt; echo x > a.txt/b",
    "a file where a folder was": "rm -r docs; echo x > docs",
    "moved": "mv docs doc; mv src/deep src/shallow; mv run.sh src/",
    "runnable": "chmod +x a.txt; chmod 600 src/one.py; echo x > tool; chmod 755 tool",
    "links": "ln -s a.txt link; ln -s /etc/passwd out; ln -s nowhere/at/all gone; rm run.sh; ln -s a.txt run.sh",
    "hard links": "ln a.txt b.txt; ln b.txt src/c.txt",
    "ignored": "echo x > x.log; echo x > important.log; mkdir -p build/o; echo x > build/o/p; echo x >> build/kept.txt; echo x > src/a.tmp",
    "ignored further down": "echo x > src/deep/secret; mkdir -p docs/only-here; echo x > docs/only-here/y; mkdir only-here; echo y > only-here/z",
    "ignored anew": "echo '*.py' >> .gitignore; echo x > new.py; echo x >> src/one.py; mkdir t; echo '!*.py' > t/.gitignore; echo x > t/k.py",
    "no longer ignored": "rm .gitignore; echo x > x.log; rm src/.gitignore; echo x > src/a.tmp",
    "nothing of it": "touch a.txt; echo x > t; rm t; cp src/one.py o; cat o > src/one.py; rm o",
    "a sort order": "mkdir docs2 docs-; echo 1 > docs2/a; echo 1 > docs-/a; echo 1 > docs.a; echo 1 > docs0",
    "bytes": "printf '\\0\\1\\377' > bin; : > void; printf 'no end' > a.txt",
}


@pytest.mark.parametrize("script", CHANGES.values(), ids=CHANGES)
async def test_a_simple_change_is_found_as_git_finds_it(lab: Any, make_repo: RepoMaker, script: str) -> None:
    hub = await lab.hub(make_repo("simple", FILES))
    quick, thorough = await both(lab, hub, script, "r.t.1")
    assert quick == thorough


LEFT_TO_GIT = {
    "attributes": "echo '*.txt text eol=crlf' > .gitattributes; printf 'x\\r\\n' > a.txt",
    "a repository inside": "git init -q inner; echo x > inner/x",
    "a special file": "mkfifo pipe; rm a.txt; mkfifo a.txt",
    "a strange name": "mkdir .GIT; echo x > .GIT/x; echo x > ünï",
    "a large file": "head -c 3000000 /dev/zero > large",
    "many files": "mkdir many; for n in $(seq 2500); do : > many/$n; done",
    "an ignore file that is a link": "ln -sf a.txt .gitignore; echo x > new",
}


@pytest.mark.parametrize("script", LEFT_TO_GIT.values(), ids=LEFT_TO_GIT)
async def test_what_means_more_than_its_bytes_is_left_to_git(lab: Any, make_repo: RepoMaker, script: str) -> None:
    hub = await lab.hub(make_repo("simple", FILES))
    workspace, _ = await lab.done(hub, script, "r.t.1")
    assert await hub.gatherer._simple(hub.trees.made(workspace.name)) == ""


async def test_attributes_in_the_base_leave_it_to_git(lab: Any, make_repo: RepoMaker) -> None:
    hub = await lab.hub(make_repo("attributed", {**FILES, "docs/.gitattributes": "* text\n"}))
    workspace, _ = await lab.done(hub, "echo 2 > a.txt", "r.t.1")
    assert await hub.gatherer._simple(hub.trees.made(workspace.name)) == ""


async def test_a_workspace_that_began_with_another_tree_is_found_as_git_finds_it(lab: Any, make_repo: RepoMaker) -> None:
    hub = await lab.hub(make_repo("simple", FILES))
    first, _ = await lab.done(hub, "rm -r docs; echo 1 > a.txt; echo x > kept.log; git add -f kept.log; mkdir s; echo 1 > s/t", "r.t.1")
    changes = await hub.harvest(first, "refs/claudecluster/r/t", "first")
    base = await hub.resolve("")
    script = "mkdir docs; echo new > docs/y.md; echo 2 >> a.txt; rm -r s; echo x > fresh.log; cp a.txt c.txt"
    quick, thorough = await both(lab, hub, script, "r.t.2", at=changes.commit)
    assert quick == thorough
    workspace = await hub.workspace(Wanted("r.t.3", base, at=changes.commit))
    assert (await hub.harvest(workspace, "refs/claudecluster/r/u", "same")).tree == changes.tree


@pytest.mark.parametrize("seed", range(6))
async def test_random_changes_are_found_as_git_finds_them(lab: Any, make_repo: RepoMaker, seed: int) -> None:
    pick = random.Random(seed)
    folders = ["", "src/", "src/deep/", "docs/", "build/", "n/", "n/m/"]
    names = ["a.txt", "one.py", "two.py", "x.log", "y.tmp", "deep", "docs", "secret", "z"]
    ways = [
        "mkdir -p $(dirname ./{0}); echo {2} > {0}",
        "rm -rf {0}",
        "mkdir -p {0}",
        "mv {0} {1}",
        "ln -sfn {1} {0}",
        "chmod +x {0}",
        "cp -r {0} {1}",
    ]
    lines = []
    for number in range(40):
        one, two = (pick.choice(folders) + pick.choice(names) for _ in range(2))
        lines.append(pick.choice(ways).format(one, two, number) + " 2>/dev/null || true")
    hub = await lab.hub(make_repo("simple", FILES))
    quick, thorough = await both(lab, hub, "\n".join(lines), "r.t.1")
    assert quick == thorough


def listing(hub: Any, git: Any, old: str, new: str, *options: str) -> list[tuple[str, str, bytes]]:
    raw = git(Path(hub.origin.shelf.hub), "diff-tree", "-r", "-z", "--raw", "--no-renames", *options, old, new).split("\0")[:-1]
    heads = [head.lstrip(":").split() for head in raw[::2]]
    return [(head[0], head[1], path.encode()) for head, path in zip(heads, raw[1::2], strict=True)]


async def test_trees_are_compared_as_git_compares_them(lab: Any, make_repo: RepoMaker, git: Any) -> None:
    hub = await lab.hub(make_repo("simple", FILES))
    base = await hub.resolve("")
    for number, script in enumerate(CHANGES.values()):
        workspace, _ = await lab.done(hub, script, f"r.t{number}.1")
        changes = await hub.harvest(workspace, f"refs/claudecluster/r/t{number}", "t")
        for options in ((), ("-t",)):
            ours = hub.gatherer.reader.differences(base, changes.commit, folders=bool(options))
            assert sorted(ours) == sorted(listing(hub, git, base, changes.commit, *options)), script
