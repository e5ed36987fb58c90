"""Harvest: everything an agent made arrives in the hub, and nothing of it runs on our side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from claudecluster.model.errors import NotFound, Refused
from claudecluster.model.tree import Workspace
from claudecluster.workspaces import objects

RepoMaker = Callable[..., Path]
REF = "refs/claudecluster/r/t/1"


@pytest.fixture
def repo(make_repo: RepoMaker, git: Any) -> Path:
    """Make a repository with an ignore file and a few files."""
    return make_repo(
        "repo", {"a.txt": "a\n", "b/c.txt": "c\n", "old name.txt": "a long enough text to be a rename\n", ".gitignore": "*.log\n"}
    )


def content(hub: Any, git: Any, commit: str, path: str) -> str:
    return str(git(hub.origin.shelf.hub, "cat-file", "-p", f"{commit}:{path}"))


async def test_every_kind_of_change_arrives(lab: Any, repo: Path, git: Any) -> None:
    hub = await lab.hub(repo)
    script = """
    set -e
    echo more >> a.txt; rm b/c.txt; mv 'old name.txt' 'new name.txt'; ln -s /etc/passwd link; printf '\\000\\377' > bin
    echo x > "new
line"; echo ü > 'ünï.txt'; echo '#!/bin/sh' > tool; chmod +x tool; echo no > no.log; mkdir empty; mkfifo pipe; echo '*' > '*'
    """
    workspace, _ = await lab.done(hub, script)
    changes = await hub.harvest(workspace, REF, "Everything\n\nwith a body")
    expected = {"a.txt", "b/c.txt", "old name.txt", "new name.txt", "link", "bin", "new\nline", "ünï.txt", "tool", "*"}
    assert set(changes.files) == expected
    assert changes.base == await hub.resolve("")
    assert await hub.head(REF) == changes.commit
    assert await hub.tree(changes.commit) == changes.tree
    listing = git(hub.origin.shelf.hub, "-c", "core.quotePath=false", "ls-tree", "-r", changes.commit)
    assert "120000 blob" in listing
    assert next(line for line in listing.splitlines() if line.endswith("\ttool")).startswith("100755")
    assert content(hub, git, changes.commit, "link") == "/etc/passwd"
    git(hub.origin.shelf.hub, "fsck", "--strict", changes.commit)
    assert git(hub.origin.shelf.hub, "log", "-1", "--format=%B", changes.commit).startswith("Everything\n\nwith a body")


async def test_harvesting_again_gives_the_same_commit_and_a_later_one_keeps_the_earlier(lab: Any, repo: Path, git: Any) -> None:
    hub = await lab.hub(repo)
    workspace, _ = await lab.done(hub, "echo one > one")
    first = await hub.harvest(workspace, REF, "t")
    assert await hub.harvest(workspace, REF, "t") == first
    await lab.act(workspace, "echo two > two")
    second = await hub.harvest(workspace, REF, "t")
    assert second.files == ("one", "two")
    assert await hub.head(REF) == second.commit
    assert first.commit in git(hub.origin.shelf.hub, "for-each-ref", "--format=%(objectname)")


async def test_no_change_is_a_commit_of_the_base_tree(lab: Any, repo: Path) -> None:
    hub = await lab.hub(repo)
    workspace, _ = await lab.done(hub, "echo log > x.log; git status; touch a.txt")
    changes = await hub.harvest(workspace, REF, "t")
    assert changes.empty
    assert changes.tree == await hub.tree(changes.base)


async def test_an_untouched_workspace_costs_no_sandbox(lab: Any, repo: Path) -> None:
    if not lab.provider.overlays:
        pytest.skip("plain folders are harvested without a sandbox")
    hub = await lab.hub(repo)
    workspace, _ = await lab.done(hub, "true")
    lab.provider.create = None  # whoever asks for a sandbox fails
    assert (await hub.harvest(workspace, REF, "t")).empty


async def test_an_unknown_workspace_is_not_found(lab: Any, repo: Path) -> None:
    hub = await lab.hub(repo)
    with pytest.raises(NotFound):
        await hub.harvest(Workspace("never", "0" * 40, "/x", "/h"), REF, "t")


TRAPS = [
    "git config core.fsmonitor 'touch {mark}; false'",
    "git config core.hooksPath .hooks; mkdir .hooks; for h in pre-commit post-index-change post-checkout; do printf '#!/bin/sh\\ntouch {mark}\\n' > .hooks/$h; chmod +x .hooks/$h; done",
    "git config filter.evil.clean 'touch {mark}; cat'; git config filter.evil.process 'touch {mark}'; echo '* filter=evil' > .gitattributes",
    "git config core.worktree /; git config core.attributesFile /etc/passwd; git config core.excludesFile /etc/passwd",
    "git config diff.evil.command 'touch {mark}'; git config diff.evil.textconv 'touch {mark}'; echo '* diff=evil' > .gitattributes",
    "git config merge.evil.driver 'touch {mark}'; echo '* merge=evil' > .gitattributes",
    "rm -rf .git; ln -s /etc .git",
    "rm -rf .git",
    "rm -rf .git; echo 'gitdir: /nowhere' > .git",
    "echo /nowhere > .git/objects/info/alternates; rm .git/index; mkdir .git/index; rm .git/HEAD",
    "mkdir -p evil/.git/hooks && cd evil && git init -q . && git config core.fsmonitor 'touch {mark}'; echo in > inner.txt",
]


async def test_no_trap_in_the_tree_springs_or_costs_any_work(lab: Any, repo: Path, tmp_path: Path) -> None:
    hub = await lab.hub(repo)
    tmp_path.chmod(0o777)
    for number, trap in enumerate(TRAPS):
        mark = tmp_path / f"sprung-{number}"
        script = f"set -e; echo work > work.txt\n{trap.format(mark=mark)}\n"
        workspace, _ = await lab.done(hub, script, f"trap.{number}")
        changes = await hub.harvest(workspace, f"refs/claudecluster/trap/{number}", "t")
        assert "work.txt" in changes.files, trap
        assert not mark.exists(), trap


async def test_a_repository_inside_the_tree_loses_no_file(lab: Any, repo: Path, git: Any) -> None:
    hub = await lab.hub(repo)
    script = """
    set -e
    mkdir -p sub/deep/er && cd sub && git init -q && echo one > one && mkdir x && echo two > x/two && git add -A && git -c user.name=x -c user.email=x@x commit -qm inner
    cd deep/er && git init -q && echo three > three
    cd ../../.. && mkdir bare && cd bare && git init -q && echo four > four
    cd .. && git init -q 'odd [name]' && echo five > 'odd [name]/five' && git init -q --bare naked
    """
    workspace, _ = await lab.done(hub, script)
    changes = await hub.harvest(workspace, REF, "t")
    assert {"sub/one", "sub/x/two", "sub/deep/er/three", "bare/four", "odd [name]/five"} <= set(changes.files)
    assert not any(".git/" in path or "claudecluster" in path for path in changes.files)
    assert "160000" not in git(hub.origin.shelf.hub, "ls-tree", "-r", changes.commit)
    assert (await lab.act(workspace, "cd sub && git log --format=%s")).out == "inner", "the agent's own repository is left as it was"


async def test_links_are_kept_as_links_and_never_followed(lab: Any, repo: Path, git: Any) -> None:
    hub = await lab.hub(repo)
    workspace, _ = await lab.done(hub, "ln -s /etc/shadow shadow; rm -r b; ln -s /etc b; ln -s . loop; rm a.txt; ln -s /etc/passwd a.txt")
    changes = await hub.harvest(workspace, REF, "t")
    assert set(changes.files) == {"shadow", "b", "b/c.txt", "loop", "a.txt"}
    assert content(hub, git, changes.commit, "shadow") == "/etc/shadow"
    assert content(hub, git, changes.commit, "b") == "/etc"


async def test_files_git_cannot_take_as_they_are_still_arrive(lab: Any, repo: Path, git: Any) -> None:
    hub = await lab.hub(repo)
    script = """
    echo closed > closed; mkdir shut; echo in > shut/in; chmod 000 closed shut
    printf 'not utf-16' > odd.txt; echo 'odd.txt working-tree-encoding=UTF-16' > .gitattributes; rm a.txt; mkfifo a.txt
    """
    workspace, _ = await lab.done(hub, script)
    changes = await hub.harvest(workspace, REF, "t")
    assert {"closed", "shut/in", "odd.txt", ".gitattributes"} <= set(changes.files)
    assert content(hub, git, changes.commit, "odd.txt") == "not utf-16"


async def test_line_endings_are_normalised_as_the_repository_asks(lab: Any, make_repo: RepoMaker, git: Any) -> None:
    repo = make_repo("crlf", {".gitattributes": "*.txt text eol=crlf\n*.bin -text\n", "a.txt": "a\n", "b.bin": "b\n"})
    hub = await lab.hub(repo)
    workspace, ran = await lab.done(
        hub, "git status --porcelain; od -c a.txt | head -1; printf 'x\\r\\ny\\r\\n' > new.txt; printf 'x\\r\\n' > new.bin"
    )
    assert "\\r" in ran.out
    assert ran.out.count("\n") == 0
    changes = await hub.harvest(workspace, REF, "t")
    assert set(changes.files) == {"new.txt", "new.bin"}
    assert b"\r" not in objects.loose(hub.origin.shelf, git(hub.origin.shelf.hub, "rev-parse", f"{changes.commit}:new.txt"))[1]  # type: ignore[index]
    assert b"\r" in objects.loose(hub.origin.shelf, git(hub.origin.shelf.hub, "rev-parse", f"{changes.commit}:new.bin"))[1]  # type: ignore[index]


async def test_a_changed_file_of_the_same_size_is_noticed_whatever_its_times(lab: Any, repo: Path) -> None:
    hub = await lab.hub(repo)
    workspace, _ = await lab.done(hub, "touch -r a.txt stamp; echo b > a.txt; touch -r stamp a.txt; rm stamp")
    if lab.provider.overlays:
        assert (await hub.harvest(workspace, REF, "t")).files == ("a.txt",)
    await lab.act(workspace, "echo c > a.txt")
    assert (await hub.harvest(workspace, REF, "t")).files == ("a.txt",)


async def test_a_large_file_arrives(lab: Any, repo: Path, git: Any) -> None:
    hub = await lab.hub(repo)
    workspace, _ = await lab.done(hub, "head -c 3000000 /dev/urandom > large; head -c 70000000 /dev/zero > huge")
    changes = await hub.harvest(workspace, REF, "t")
    assert set(changes.files) == {"large", "huge"}
    assert git(hub.origin.shelf.hub, "cat-file", "-s", f"{changes.commit}:huge") == "70000000"


async def test_objects_that_lie_are_refused_and_overwrite_nothing(plain: Any, repo: Path, tmp_path: Path) -> None:
    hub = await plain.hub(repo)
    shelf = hub.origin.shelf
    honest = objects.put(shelf, "blob", b"honest", "0" * 40)
    kept = (shelf.objects[1] / honest[:2] / honest[2:]).read_bytes()
    quarantine = tmp_path / "objects"
    for oid, data in ((honest, b"garbage"), ("12" * 20, kept)):
        (quarantine / oid[:2]).mkdir(parents=True, exist_ok=True)
        (quarantine / oid[:2] / oid[2:]).write_bytes(data)
    with pytest.raises(Refused, match="damaged"):
        objects.adopt(shelf, quarantine)
    assert (shelf.objects[1] / honest[:2] / honest[2:]).read_bytes() == kept
    assert not (shelf.objects[1] / "12" / ("12" * 19)).exists()


@pytest.mark.parametrize("entry", [b"100644 .git\0", b"40000 ..\0", b"100644 a/b\0", b"100644 .GIT\0", b"777 x\0"])
async def test_trees_that_lead_out_of_their_folder_are_refused(plain: Any, repo: Path, tmp_path: Path, entry: bytes) -> None:
    hub = await plain.hub(repo)
    other = await plain.hub(repo)
    tree = entry + b"\x11" * 20
    oid = objects.put(other.origin.shelf, "tree", tree, "0" * 40)
    made = other.origin.shelf.objects[1] / oid[:2] / oid[2:]
    (tmp_path / "objects" / oid[:2]).mkdir(parents=True)
    made.rename(tmp_path / "objects" / oid[:2] / oid[2:])
    with pytest.raises(Refused, match="forbidden"):
        objects.adopt(hub.origin.shelf, tmp_path / "objects")


async def test_a_link_in_place_of_an_object_is_refused(plain: Any, repo: Path, tmp_path: Path) -> None:
    hub = await plain.hub(repo)
    (tmp_path / "objects/12").mkdir(parents=True)
    (tmp_path / "objects/12" / ("12" * 19)).symlink_to("/etc/shadow")
    with pytest.raises(Refused):
        objects.adopt(hub.origin.shelf, tmp_path / "objects")
