"""Workspaces: what an agent finds in one, and how it comes to be and goes away."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from claudecluster.model.errors import NotFound, Refused
from claudecluster.model.tree import Wanted

RepoMaker = Callable[..., Path]


@pytest.fixture
def mixed(make_repo: RepoMaker, git: Any) -> Path:
    """Make a repository with every kind of file."""
    repo = make_repo(
        "mixed", {"plain.txt": "plain\n", "folder/deep/file.py": "x = 1\n", "gone/a": "a\n", "gone/b": "b\n", "README.md": "read me\n"}
    )
    (repo / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (repo / "run.sh").chmod(0o755)
    (repo / "link").symlink_to("plain.txt")
    (repo / "dangling").symlink_to("/nowhere/at/all")
    (repo / "bytes.bin").write_bytes(bytes(range(256)) * 40)
    (repo / "ünï cödé.txt").write_text("ü\n")
    (repo / "new\nline.txt").write_text("newline\n")
    (repo / "crlf.txt").write_bytes(b"one\r\ntwo\r\n")
    (repo / ".gitattributes").write_text("crlf.txt text eol=crlf\n")
    (repo / ".gitignore").write_text("*.log\nbuild/\n.venv\n")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "every kind of file")
    git(repo, "tag", "-a", "v1.2", "-m", "version")
    return repo


def swept(hub: Any) -> list[Path]:
    """Return what is left in the scratch folder once threads that remove have had their time."""
    deadline = time.monotonic() + 20
    while (left := list((hub.origin.shelf.folder / "scratch").iterdir())) and time.monotonic() < deadline:
        hub.origin.shelf.prepare()
        time.sleep(0.02)
    return left


def kill_after(delay: float, argv: list[str]) -> None:
    """Start a maker of workspaces, and kill it so long after it has found its repository."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout
    process.stdout.readline()
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


async def landed(lab: Any, hub: Any, script: str, name: str) -> str:
    """Return a commit on HEAD that only the hub has."""
    workspace, _ = await lab.done(hub, script, name)
    return (await hub.harvest(workspace, f"refs/claudecluster/r/{name}", name)).commit


async def test_an_agent_finds_a_clean_repository_without_remote_hooks_or_user_settings(lab: Any, mixed: Path, git: Any) -> None:
    git(mixed, "config", "user.secret", "s3cret")
    git(mixed, "remote", "add", "origin", "https://example.invalid/x.git")
    hub = await lab.hub(mixed)
    workspace, ran = await lab.done(
        hub, "git status --porcelain; git remote; git config --local user.secret; ls .git/hooks 2>/dev/null; true"
    )
    assert ran.out == ""
    ran = await lab.act(workspace, "git rev-parse HEAD; git describe; git log --format=%s; ./run.sh; cat link; git fsck --no-dangling")
    assert ran.out.splitlines() == [git(mixed, "rev-parse", "HEAD"), "v1.2", "every kind of file", "First", "ran", "plain"]
    assert "notice: " not in ran.err
    if lab.provider.overlays:
        assert workspace.work == str(mixed)


async def test_an_agent_may_commit_and_it_stays_in_its_workspace(lab: Any, mixed: Path) -> None:
    hub = await lab.hub(mixed)
    workspace, _ = await lab.done(hub, "echo x > x && git add x && git commit -qm mine && echo dirty >> plain.txt")
    ran = await lab.act(workspace, "git log --format=%s -1; git status --porcelain; cat $HOME/.x 2>/dev/null; echo home > $HOME/.x")
    assert ran.out.splitlines() == ["mine", " M plain.txt"]
    _, other = await lab.done(hub, "git log --format=%s -1; ls x $HOME/.x 2>/dev/null; git status --porcelain; true", "other")
    assert other.out == "every kind of file"


async def test_a_workspace_at_a_later_commit_shows_it_and_is_clean(lab: Any, mixed: Path) -> None:
    hub = await lab.hub(mixed)
    base = await hub.resolve("")
    script = """
    set -e
    echo more >> plain.txt; rm -r gone; git mv -k README.md 'READ ME.md'; chmod -x run.sh
    rm folder/deep/file.py; rmdir folder/deep folder; echo now a file > folder
    rm link; mkdir link; echo in > link/in; ln -sfn plain.txt dangling; printf '\\000\\001' > bytes.bin
    echo new > 'tab\t"quote"'; mkdir -p brand/new; echo x > brand/new/x
    """
    at = await landed(lab, hub, script, "one")
    workspace = await hub.workspace(Wanted("two", base, at=at))
    assert workspace.base == at
    show = "git status --porcelain; git rev-parse HEAD; git log --format=%s -2; git fsck --no-dangling; ls -d gone README.md 2>/dev/null; "
    ran = await lab.act(
        workspace, show + "cat folder link/in dangling brand/new/x 'READ ME.md'; test ! -x run.sh && test ! -e gone && echo ok"
    )
    assert ran.out.splitlines() == [at, "one", "every kind of file", "now a file", "in", "plain", "more", "x", "read me", "ok"], ran.err
    changes = await hub.harvest(workspace, "refs/claudecluster/r/two/1", "nothing")
    assert changes.empty
    assert changes.base == at
    await lab.act(workspace, "echo again >> plain.txt; mkdir -p gone; echo back > gone/a")
    changes = await hub.harvest(workspace, "refs/claudecluster/r/two/1", "something")
    assert set(changes.files) == {"plain.txt", "gone/a"}


async def test_a_workspace_at_a_tree_shows_it_on_its_base(lab: Any, mixed: Path) -> None:
    hub = await lab.hub(mixed)
    base = await hub.resolve("")
    one = await landed(lab, hub, "echo one > one; rm gone/a", "one")
    two = await landed(lab, hub, "echo two > two", "two")
    merged = await hub.merge(base, one, two)
    workspace = await hub.workspace(Wanted("merged", base, at=merged.tree))
    assert workspace.base == base
    ran = await lab.act(workspace, "cat one two; ls gone; git status --porcelain; git rev-parse HEAD; git write-tree")
    assert ran.out.splitlines() == ["one", "two", "b", "D  gone/a", "A  one", "A  two", base, merged.tree]
    changes = await hub.harvest(workspace, "refs/claudecluster/r/m", "merged")
    assert changes.tree == merged.tree


async def test_no_task_sees_another_tasks_objects(lab: Any, mixed: Path) -> None:
    hub = await lab.hub(mixed)
    secret = await landed(lab, hub, "echo secret of one > one", "one")
    _, ran = await lab.done(hub, f"git cat-file -e {secret} && echo seen; git cat-file -e HEAD && echo ok", "two")
    assert ran.out == "ok"


async def test_a_run_sees_what_it_landed_and_nothing_of_another_run(lab: Any, mixed: Path) -> None:
    hub = await lab.hub(mixed)
    base = await hub.resolve("")
    heads = []
    for run in ("ra", "rb"):
        head = base
        for number in range(3):
            one = await landed(lab, hub, f"echo {run} {number} > '{run}-{number}'", f"{run}.t{number}.1")
            merged = await hub.merge(base, head, one)
            commit = await hub.commit(merged.tree, head, f"{run} {number}", at=1.0)
            await hub.advance(f"refs/claudecluster/{run}/_head", commit, "" if head == base else head)
            head = commit
        heads.append(head)
    workspace = await hub.workspace(Wanted("ra.later.1", base, at=heads[0]))
    ran = await lab.act(
        workspace, f"git log --format=%s; git fsck --no-dangling; git cat-file -e {heads[1]} 2>/dev/null || echo unseen; cat ra-2"
    )
    assert ran.out.splitlines() == ["ra 2", "ra 1", "ra 0", "every kind of file", "First", "unseen", "ra 2"], ran.err
    assert not any((hub.trees.place("ra.later.1") / "upper/.git/objects").glob("??")), "nothing was copied"
    tree = (await hub.merge(base, heads[0], one)).tree
    workspace = await hub.workspace(Wanted("ra.later.landing", base, at=tree))
    ran = await lab.act(workspace, "git status --porcelain; git write-tree; git fsck --no-dangling")
    assert tree in ran.out


async def test_a_workspace_that_is_kept_keeps_what_was_made(lab: Any, mixed: Path) -> None:
    hub = await lab.hub(mixed)
    base = await hub.resolve("")
    first, _ = await lab.done(hub, "echo x > x; echo y > $HOME/y", "t.1", home="t")
    again = await hub.workspace(Wanted("t.1", base, home="t", keep=True))
    assert again == first
    assert (await lab.act(again, "cat x $HOME/y")).out == "x\ny"
    anew = await hub.workspace(Wanted("t.1", base, home="t"))
    assert (await lab.act(anew, "ls x; cat $HOME/y")).out == "y"
    other = await hub.workspace(Wanted("t.2", base, home="t", keep=True))
    assert (await lab.act(other, "ls x; cat $HOME/y")).out == "y"
    assert await hub.workspaces("t.") == ["t.1", "t.2"]
    await hub.discard("t.1")
    await hub.discard("t.1")
    await hub.discard_home("t")
    await hub.discard_home("t")
    assert await hub.workspaces("t.") == ["t.2"]
    anew = await hub.workspace(Wanted("t.1", base, home="t"))
    assert (await lab.act(anew, "ls $HOME/y")).code != 0


async def test_what_is_discarded_soon_leaves_the_disk_whatever_its_modes(lab: Any, mixed: Path) -> None:
    hub = await lab.hub(mixed)
    deep = "i=0; while [ $i -lt 300 ]; do mkdir -p dddddddddddddddddddd && cd dddddddddddddddddddd; i=$((i+1)); done; echo x > x"
    workspace, _ = await lab.done(hub, f"({deep}); mkdir closed && echo x > closed/x && chmod 000 closed", "t.1")
    await hub.discard(workspace.name)
    assert await hub.workspaces("") == []
    assert swept(hub) == []


async def test_names_that_are_no_file_names_are_refused(lab: Any, mixed: Path) -> None:
    hub = await lab.hub(mixed)
    base = await hub.resolve("")
    for name in ("../x", "a/b", "", ".hidden"):
        with pytest.raises(Refused):
            await hub.workspace(Wanted(name, base))
        with pytest.raises(Refused):
            await hub.discard(name)
    with pytest.raises(Refused):
        await hub.workspace(Wanted("x", base, home="../../x"))


async def test_shared_folders_are_seen_written_to_and_neither_changed_nor_harvested(lab: Any, mixed: Path, git: Any, picture: Any) -> None:
    git(mixed, "rm", "-q", "--cached", ".gitignore")
    (mixed / ".gitignore").unlink()
    git(mixed, "commit", "-qm", "no ignores")
    (mixed / ".venv/bin").mkdir(parents=True)
    (mixed / ".venv/bin/tool").write_text("#!/bin/sh\necho tool\n")
    (mixed / ".venv/bin/tool").chmod(0o755)
    (mixed / "web/node_modules/x").mkdir(parents=True)
    (mixed / "web/node_modules/x/index.js").write_text("x\n")
    before = picture(mixed)
    hub = await lab.hub(mixed)
    share = (".venv", "web/node_modules", "gone", "missing")
    script = (
        ".venv/bin/tool; cat web/node_modules/x/index.js; echo new > .venv/new; echo two > web/node_modules/y; ls gone; ls missing; true"
    )
    workspace, ran = await lab.done(hub, script, share=share)
    assert ran.out.splitlines() == ["tool", "x", "a", "b"]
    assert (await lab.act(workspace, "cat .venv/new; ls web/node_modules")).out.split() == ["new", "x", "y"]
    changes = await hub.harvest(workspace, "refs/claudecluster/r/t/1", "t")
    assert changes.empty
    await lab.act(workspace, "echo really >> plain.txt")
    assert (await hub.harvest(workspace, "refs/claudecluster/r/t/1", "t")).files == ("plain.txt",)
    assert picture(mixed) == before
    with pytest.raises(Refused):
        await hub.workspace(Wanted("x", await hub.resolve(""), share=("../elsewhere",)))


async def test_set_up_is_done_once_and_lies_under_every_task(lab: Any, mixed: Path) -> None:
    hub = await lab.hub(mixed)
    base = await hub.resolve("")
    key = await hub.layer_key(base, ("make deps",))
    assert not await hub.frozen(key)
    with pytest.raises(NotFound):
        await hub.workspace(Wanted("early", base, layer=key))
    script = """
    mkdir -p build/lib gone; echo built > build/lib/x; echo egg > app.egg-info; echo other > gone/c; echo changed >> plain.txt; rm README.md
    rm -r folder; mkdir -p folder; mkdir -p $HOME/.cache; echo cached > $HOME/.cache/x; mkdir -p .venv/bin; echo v > .venv/bin/v
    """
    workspace, _ = await lab.done(hub, script, "setup")
    await hub.freeze(workspace, key)
    assert await hub.frozen(key)
    await hub.freeze(workspace, key)
    await hub.discard(workspace.name)
    show = "cat build/lib/x app.egg-info gone/c gone/a plain.txt README.md folder/deep/file.py $HOME/.cache/x .venv/bin/v; git status --porcelain"
    first, ran = await lab.done(hub, show, "one", layer=key)
    expected = ["built", "egg", "other", "a", "plain", "read me", "x = 1", "cached", "v"]
    assert ran.out.splitlines()[:9] == expected
    await lab.act(first, "echo mine > build/lib/x; echo mine > new; echo mine > $HOME/.cache/x")
    changes = await hub.harvest(first, "refs/claudecluster/r/one/1", "one")
    assert changes.files == ("new",)
    _, ran = await lab.done(hub, show, "two", layer=key)
    assert ran.out.splitlines()[:9] == expected
    at = await landed(lab, hub, "echo tracked > app.egg-info; echo tracked > gone/c", "three")
    workspace = await hub.workspace(Wanted("four", base, at=at, layer=key))
    ran = await lab.act(workspace, "cat app.egg-info gone/c; git status --porcelain")
    assert ran.out.splitlines() == ["tracked", "tracked"]
    later = await hub.workspace(Wanted("five", at, layer=key))
    assert (await lab.act(later, "cat app.egg-info gone/c build/lib/x")).out.splitlines() == ["tracked", "tracked", "built"]


async def test_what_set_up_does_to_a_shared_folder_is_kept_with_it(lab: Any, mixed: Path, picture: Any) -> None:
    (mixed / ".venv").mkdir()
    (mixed / ".venv/theirs").write_text("theirs\n")
    before = picture(mixed)
    hub = await lab.hub(mixed)
    workspace, _ = await lab.done(hub, "echo ours > .venv/ours", "setup", share=(".venv",))
    await hub.freeze(workspace, "key")
    _, ran = await lab.done(hub, "cat .venv/theirs .venv/ours", "one", share=(".venv",), layer="key")
    assert ran.out.splitlines() == ["theirs", "ours"]
    assert picture(mixed) == before


async def test_a_layers_key_follows_commands_and_lock_files(plain: Any, make_repo: RepoMaker, git: Any) -> None:
    repo = make_repo("locks", {"uv.lock": "1\n", "sub/requirements-dev.txt": "x\n", "code.py": "1\n"})
    hub = await plain.hub(repo)
    first = await hub.layer_key(await hub.resolve(""), ("a",))
    assert first != await hub.layer_key(await hub.resolve(""), ("b",))
    (repo / "code.py").write_text("2\n")
    git(repo, "commit", "-qam", "code")
    assert first == await hub.layer_key(await hub.resolve(""), ("a",))
    (repo / "sub/requirements-dev.txt").write_text("y\n")
    git(repo, "commit", "-qam", "lock")
    assert first != await hub.layer_key(await hub.resolve(""), ("a",))
    bare = make_repo("none", {"code.py": "1\n"})
    other = await plain.hub(bare)
    one = await other.layer_key(await other.resolve(""), ("a",))
    (bare / "code.py").write_text("2\n")
    git(bare, "commit", "-qam", "code")
    assert one != await other.layer_key(await other.resolve(""), ("a",))


async def test_64_workspaces_at_once_on_one_repository_all_work(lab: Any, mixed: Path) -> None:
    hub = await lab.hub(mixed)
    base = await hub.resolve("")
    gate = asyncio.Semaphore(8)

    async def attempt(number: int) -> tuple[str, ...]:
        workspace = await hub.workspace(Wanted(f"r.t{number}.1", base))
        async with gate:
            ran = await lab.act(workspace, f"echo {number} > file-{number} && rm gone/a")
            assert ran.code == 0, ran.err
            changes = await hub.harvest(workspace, f"refs/claudecluster/r/t{number}/1", "t")
        await hub.discard(workspace.name)
        return changes.files

    results = await asyncio.gather(*(attempt(number) for number in range(64)), return_exceptions=True)
    assert [result for result in results if isinstance(result, BaseException)] == []
    assert results == [(f"file-{number}", "gone/a") for number in range(64)]


async def test_a_base_is_checked_out_once_for_all_who_ask_together(lab: Any, mixed: Path) -> None:
    if not lab.provider.overlays:
        pytest.skip("plain folders have no base")
    hubs = await asyncio.gather(*(lab.hub(mixed) for _ in range(4)))
    base = await hubs[0].resolve("")
    await asyncio.gather(*(hub.workspace(Wanted(f"w{number}", base)) for number, hub in enumerate(hubs * 4)))
    (found,) = (hubs[0].origin.shelf.folder / "bases").iterdir()
    assert found.name.partition(".")[0] == base


async def test_plain_folders_first_and_overlays_later_in_the_same_state_folder(lab: Any, plain: Any, mixed: Path) -> None:
    """What runs without isolation belongs to us; what an isolated agent later gets of the same commit belongs to it."""
    if not lab.provider.overlays:
        pytest.skip("this is about both")
    await plain.done(await plain.hub(mixed), "echo plain > new.txt", "r.t.1")
    _, ran = await lab.done(
        await lab.hub(mixed), "git status --porcelain; touch run.sh; echo mine > new.txt; git status --porcelain", "r.t.2"
    )
    assert ran.out == "?? new.txt"


KILLED = """
import asyncio, json, os, sys
from pathlib import Path
from claudecluster.model.tree import Wanted
from claudecluster.testing.places import OpenPlace
from claudecluster.workspaces import signing
from claudecluster.workspaces.repositories import GitRepositories

class Provider:
    kind = "test"
    overlays = sys.argv[3] == "True"

    async def create(self, spec):
        return OpenPlace(spec.binds[0].source, env=dict(os.environ))

    async def destroy(self, name):
        pass

async def main():
    state = Path(sys.argv[1])
    hub = await GitRepositories(state, Provider(), signing.load(state), env=dict(os.environ), owner=json.loads(sys.argv[4])).open(sys.argv[2])
    base = await hub.resolve("")
    print("go", flush=True)
    await hub.workspace(Wanted("killed", base))
    print("made", flush=True)

asyncio.run(main())
"""


async def test_a_kill_at_any_moment_of_the_making_is_mended_by_the_next_call(lab: Any, make_repo: RepoMaker) -> None:
    repo = make_repo("large", {f"folder-{number % 40}/file-{number}.txt": f"{number}\n" for number in range(1000)})
    argv = [sys.executable, "-c", KILLED, str(lab.state), str(repo), str(lab.provider.overlays), json.dumps(lab.owner)]
    for delay in (0.0, 0.02, 0.06):
        await asyncio.to_thread(kill_after, delay, argv)
    hub = await lab.hub(repo)
    base = await hub.resolve("")
    workspace = await hub.workspace(Wanted("killed", base))
    ran = await lab.act(workspace, "git status --porcelain; git ls-files | wc -l; find . -name '*.txt' | wc -l")
    assert (ran.err, ran.out.split()) == ("", ["1000", "1000"])
    assert await hub.workspaces("") == ["killed"]
    assert swept(hub) == []


async def test_no_file_is_read_again_to_know_that_nothing_changed(lab: Any, make_repo: RepoMaker) -> None:
    repo = make_repo("large", {f"folder-{number % 10}/file-{number}.txt": f"{number}\n" for number in range(500)})
    hub = await lab.hub(repo)
    _, ran = await lab.done(hub, "git diff-files --name-only | wc -l; git ls-files | wc -l")
    if lab.provider.overlays:
        assert ran.out.split() == ["0", "500"]  # diff-files does not refresh: it names every file whose recorded times are wrong


async def test_a_submodule_is_an_empty_folder_and_stays_as_it_is(lab: Any, mixed: Path, make_repo: RepoMaker, git: Any) -> None:
    inner = make_repo("inner", {"x": "x\n"})
    git(mixed, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner), "sub")
    git(mixed, "commit", "-qm", "submodule")
    hub = await lab.hub(mixed)
    workspace, ran = await lab.done(hub, "ls -A sub; git status --porcelain; echo x >> plain.txt")
    assert ran.out == ""
    assert (await hub.harvest(workspace, "refs/claudecluster/r/t/1", "t")).files == ("plain.txt",)


async def test_a_shallow_clone_works(lab: Any, mixed: Path, tmp_path: Path, git: Any) -> None:
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{mixed}", "shallow")
    hub = await lab.hub(tmp_path / "shallow")
    workspace, ran = await lab.done(hub, "git log --format=%s; echo x >> plain.txt")
    assert ran.out == "every kind of file"
    changes = await hub.harvest(workspace, "refs/claudecluster/r/t/1", "t")
    await hub.publish("refs/claudecluster/r/t/1", "result")
    assert git(tmp_path / "shallow", "rev-parse", "result") == changes.commit


async def test_a_clone_that_borrows_objects_works(lab: Any, mixed: Path, tmp_path: Path, git: Any) -> None:
    git(tmp_path, "clone", "-q", "--shared", str(mixed), "borrower")
    hub = await lab.hub(tmp_path / "borrower")
    _, ran = await lab.done(hub, "git fsck --no-dangling; git log --format=%s -1; git status --porcelain")
    assert ran.out == "every kind of file"


async def test_an_empty_tree_and_a_strict_umask_work(lab: Any, make_repo: RepoMaker) -> None:
    before = os.umask(0o077)
    try:
        hub = await lab.hub(make_repo("private", {}))
        workspace, ran = await lab.done(hub, "git status --porcelain; git log --format=%s; echo x > x; touch $HOME/x")
        assert ran.out == "First"
        changes = await hub.harvest(workspace, "refs/claudecluster/r/t/1", "t")
        assert changes.files == ("x",)
        workspace = await hub.workspace(Wanted("two", changes.base, at=changes.commit))
        assert (await lab.act(workspace, "cat x; git status --porcelain; git log --format=%s")).out.splitlines() == ["x", "t", "First"]
    finally:
        os.umask(before)
