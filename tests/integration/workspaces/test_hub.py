"""A hub: finding the user's repository, refs, merges, signed commits, publishing."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from claudecluster.model.errors import Conflict, NotFound, Refused, Unavailable
from claudecluster.model.tree import Wanted

RepoMaker = Callable[..., Path]
LINES = "".join(f"line {number}\n" for number in range(30))


async def commit_of(lab: Any, hub: Any, script: str, name: str, **wanted: Any) -> str:
    """Return the commit that an agent's script makes, starting from HEAD."""
    workspace, _ = await lab.done(hub, script, name, **wanted)
    return (await hub.harvest(workspace, f"refs/claudecluster/r/{name}", f"task {name}")).commit


async def test_a_missing_path_is_refused(plain: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="does not exist") as caught:
        await plain.hub(tmp_path / "nowhere")
    assert caught.value.hint


async def test_a_plain_folder_is_refused(plain: Any, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(Refused, match="not a git repository"):
        await plain.hub(tmp_path / "folder")


async def test_a_repository_without_a_commit_is_refused(plain: Any, tmp_path: Path, git: Any) -> None:
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "-q")
    with pytest.raises(Refused, match="no commit yet"):
        await plain.hub(tmp_path / "empty")


async def test_an_unborn_head_beside_other_branches_is_refused_by_name(plain: Any, repo: Path, git: Any) -> None:
    git(repo, "checkout", "-q", "--orphan", "fresh")
    hub = await plain.hub(repo)
    with pytest.raises(Refused, match="no commit"):
        await hub.resolve("")
    assert await hub.resolve("main") == git(repo, "rev-parse", "main")


async def test_an_unknown_base_is_refused(plain: Any, repo: Path) -> None:
    hub = await plain.hub(repo)
    for name in ("no-such-branch", "--help", "a b", "0" * 40, "HEAD~99"):
        with pytest.raises(Refused, match="no commit"):
            await hub.resolve(name)


async def test_a_folder_inside_a_repository_means_the_repository(plain: Any, make_repo: RepoMaker) -> None:
    repo = make_repo("deep", {"a/b/c.txt": "c\n"})
    hub = await plain.hub(repo / "a/b")
    assert hub.source == str(repo.resolve())


async def test_a_link_to_a_repository_means_the_same_hub(plain: Any, repo: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(repo)
    assert (await plain.hub(tmp_path / "link")).origin.shelf == (await plain.hub(repo)).origin.shelf


async def test_a_git_folder_is_refused(plain: Any, repo: Path) -> None:
    with pytest.raises(Refused):
        await plain.hub(repo / ".git" / "objects")


async def test_a_bare_repository_works_and_is_published_to(plain: Any, repo: Path, tmp_path: Path, git: Any) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(repo), "bare.git")
    hub = await plain.hub(tmp_path / "bare.git")
    head = await commit_of(plain, hub, "echo new > new", "t")
    await hub.advance("refs/claudecluster/r/head", head, "")
    await hub.publish("refs/claudecluster/r/head", "result")
    assert git(tmp_path / "bare.git", "rev-parse", "result") == head
    assert await hub.dirty() is False


async def test_a_linked_worktree_works_from_its_own_head(plain: Any, repo: Path, tmp_path: Path, git: Any) -> None:
    git(repo, "worktree", "add", "-q", "-b", "side", str(tmp_path / "linked"))
    (tmp_path / "linked/new").write_text("new\n")
    git(tmp_path / "linked", "add", "-A")
    git(tmp_path / "linked", "commit", "-qm", "side")
    hub = await plain.hub(tmp_path / "linked")
    assert hub.source == str((tmp_path / "linked").resolve())
    assert await hub.resolve("") == git(repo, "rev-parse", "side")
    with pytest.raises(Refused, match="checked out"):
        await hub.check_branch("main", await hub.resolve(""))  # in the other worktree


async def test_a_url_is_cloned_resolved_and_published_to(plain: Any, repo: Path, tmp_path: Path, git: Any) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(repo), "remote.git")
    hub = await plain.hub(f"file://{tmp_path}/remote.git")
    base = await hub.resolve("main")
    assert base == await hub.resolve("") == git(repo, "rev-parse", "main")
    assert await hub.dirty() is False
    (repo / "later").write_text("later\n")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "later")
    git(repo, "push", "-q", str(tmp_path / "remote.git"), "main")
    later = await hub.resolve("main")
    assert later == git(repo, "rev-parse", "main")
    head = await commit_of(plain, hub, "test -f later && echo new > new", "t")
    await hub.advance("refs/claudecluster/r/head", head, "")
    await hub.check_branch("result", later)
    await hub.publish("refs/claudecluster/r/head", "result")
    assert git(tmp_path / "remote.git", "rev-parse", "result") == head
    with pytest.raises(Refused, match="no commit"):
        await hub.resolve("nowhere")


async def test_a_url_that_leads_nowhere_is_refused_or_unavailable(plain: Any, tmp_path: Path) -> None:
    with pytest.raises((Refused, Unavailable), match="cannot clone"):
        await plain.hub(f"file://{tmp_path}/nothing.git")
    with pytest.raises((Refused, Unavailable), match="cannot clone"):
        await plain.hub("http://127.0.0.1:9/nothing.git")


async def test_what_the_user_commits_later_is_found(plain: Any, repo: Path, git: Any) -> None:
    await plain.hub(repo)
    (repo / "later").write_text("later\n")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "later")
    hub = await plain.hub(repo)
    assert await hub.resolve("") == git(repo, "rev-parse", "HEAD")
    workspace, ran = await plain.done(hub, "cat later")
    assert ran.out == "later"
    await hub.discard(workspace.name)


async def test_a_commit_survives_the_users_rewriting_and_collecting(plain: Any, repo: Path, git: Any) -> None:
    hub = await plain.hub(repo)
    first = await hub.resolve("HEAD")
    (repo / "README.md").write_text("other\n")
    git(repo, "commit", "-qam", "other", "--amend")
    git(repo, "reflog", "expire", "--expire=now", "--all")
    git(repo, "gc", "-q", "--prune=now")
    assert git(repo, "cat-file", "-t", first, check=False) == ""
    assert await hub.resolve(first) == first
    assert (await plain.done(hub, "cat README.md", "a"))[1].out == "other"
    workspace = await hub.workspace(Wanted("b", first))
    assert (await plain.act(workspace, "cat README.md && git log --oneline")).out.startswith("# A repository\n")


async def test_a_dirty_copy_is_told_and_left_alone(plain: Any, repo: Path, git: Any, picture: Any) -> None:
    hub = await plain.hub(repo)
    assert await hub.dirty() is False
    (repo / "README.md").write_text("not committed\n")
    (repo / "untracked").write_text("untracked\n")
    before = picture(repo)
    assert await hub.dirty() is True
    assert picture(repo) == before


async def test_branches_that_cannot_be_published_are_refused_up_front(plain: Any, repo: Path, git: Any) -> None:
    hub = await plain.hub(repo)
    base = await hub.resolve("HEAD")
    git(repo, "branch", "old")
    git(repo, "checkout", "-q", "-b", "other")
    git(repo, "commit", "-q", "--allow-empty", "-m", "other")
    git(repo, "branch", "ahead")
    git(repo, "checkout", "-q", "main")
    await hub.check_branch("claudecluster/r1", base)
    await hub.check_branch("old", base)
    for name in ("bad..name", "-b", "HEAD", "a b", "", "x.lock", "main", "ahead", "old/below", "refs/heads/x", "@"):
        with pytest.raises(Refused):
            await hub.check_branch(name, base)


async def test_publishing_never_forces_and_says_why(plain: Any, repo: Path, git: Any) -> None:
    hub = await plain.hub(repo)
    base = await hub.resolve("HEAD")
    head = await commit_of(plain, hub, "echo new > new", "t")
    await hub.advance("refs/claudecluster/r/head", head, "")
    await hub.publish("refs/claudecluster/r/head", "result")
    await hub.publish("refs/claudecluster/r/head", "result")  # a second time changes nothing
    assert git(repo, "rev-parse", "result") == head
    git(repo, "checkout", "-q", "result")
    with pytest.raises(Conflict, match="checked out"):
        await hub.publish("refs/claudecluster/r/head", "result")
    git(repo, "commit", "-q", "--allow-empty", "-m", "mine")
    mine = git(repo, "rev-parse", "HEAD")
    git(repo, "checkout", "-q", "main")
    with pytest.raises(Conflict, match="moved on"):
        await hub.publish("refs/claudecluster/r/head", "result")
    assert git(repo, "rev-parse", "result") == mine
    assert git(repo, "rev-parse", "main") == base


async def test_a_hook_of_the_user_may_refuse_the_branch(plain: Any, repo: Path) -> None:
    hub = await plain.hub(repo)
    hook = repo / ".git/hooks/pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not on my watch >&2\nexit 1\n")
    hook.chmod(0o755)
    head = await commit_of(plain, hub, "echo new > new", "t")
    await hub.advance("refs/claudecluster/r/head", head, "")
    with pytest.raises(Conflict, match="not on my watch"):
        await hub.publish("refs/claudecluster/r/head", "result")


async def test_a_vanished_repository_is_unavailable_when_published_to(plain: Any, repo: Path) -> None:
    hub = await plain.hub(repo)
    head = await commit_of(plain, hub, "echo new > new", "t")
    await hub.advance("refs/claudecluster/r/head", head, "")
    shutil.rmtree(repo)
    with pytest.raises(Unavailable):
        await hub.publish("refs/claudecluster/r/head", "result")


async def test_a_run_leaves_the_users_repository_as_it_was_but_for_its_branch(lab: Any, repo: Path, git: Any, picture: Any) -> None:
    (repo / "README.md").write_text("not committed\n")
    (repo / "untracked").write_text("untracked\n")
    (repo / ".venv").mkdir()
    (repo / ".venv/tool").write_text("tool\n")
    before = picture(repo)
    hub = await lab.hub(repo)
    base = await hub.resolve("HEAD")
    head = await commit_of(lab, hub, "echo new > new; echo x > .venv/tool; rm README.md; git commit -qam mine", "t", share=(".venv",))
    await hub.advance("refs/claudecluster/r/head", head, "")
    await hub.check_branch("result", base)
    assert await hub.dirty() is True
    assert picture(repo) == before
    await hub.publish("refs/claudecluster/r/head", "result")
    assert git(repo, "diff-tree", "-r", "--name-status", base, "result") == "D\tREADME.md\nA\tnew"
    for path in ("README.md", "untracked", ".venv/tool", ".git/HEAD", ".git/index", ".git/config"):
        assert (repo / path).exists()
    after, known = json.loads(picture(repo)), json.loads(before)
    assert {path for path in known if after.get(path) != known[path]} == set()
    new = {path for path in after.keys() - known.keys() if not path.startswith(".git/objects/")}
    assert new <= {".git/refs/heads/result", ".git/logs/refs/heads/result"}


async def test_advance_is_compare_and_swap(plain: Any, repo: Path, git: Any) -> None:
    hub = await plain.hub(repo)
    base = await hub.resolve("HEAD")
    tree = await hub.tree(base)
    one = await hub.commit(tree, base, "one", at=1.0)
    two = await hub.commit(tree, one, "two", at=2.0)
    ref = "refs/claudecluster/r/head"
    assert await hub.head(ref) == ""
    with pytest.raises(Conflict):
        await hub.advance(ref, two, one)
    await hub.advance(ref, one, "")
    await hub.advance(ref, one, "")  # already there
    with pytest.raises(Conflict):
        await hub.advance(ref, two, base)
    await hub.advance(ref, two, one)
    assert await hub.head(ref) == two
    assert await hub.contains(ref, one)
    assert await hub.contains(ref, base)
    assert not await hub.contains("refs/claudecluster/other/head", one)
    assert git(hub.origin.shelf.hub, "rev-parse", ref) == two


async def test_of_many_who_advance_one_wins(plain: Any, repo: Path) -> None:
    hub = await plain.hub(repo)
    base = await hub.resolve("HEAD")
    tree = await hub.tree(base)
    commits = [await hub.commit(tree, base, f"commit {number}", at=1.0) for number in range(20)]
    results = await asyncio.gather(*(hub.advance("refs/claudecluster/r/head", one, "") for one in commits), return_exceptions=True)
    assert sum(result is None for result in results) == 1
    assert all(isinstance(result, Conflict) for result in results if result is not None)


async def test_a_ref_that_leads_out_of_the_hub_is_refused(plain: Any, repo: Path) -> None:
    hub = await plain.hub(repo)
    base = await hub.resolve("HEAD")
    for ref in ("HEAD", "refs/../config", "refs/a/../../x", "/etc/passwd", "refs/a.lock", "refs//a", "config"):
        with pytest.raises(Refused):
            await hub.advance(ref, base, "")


async def test_a_merge_joins_both_sides_and_names_conflicts(plain: Any, make_repo: RepoMaker, git: Any) -> None:
    hub = await plain.hub(make_repo("many", {"a": LINES, "b": LINES}))
    base = await hub.resolve("HEAD")
    one = await commit_of(plain, hub, "sed -i 's/line 1$/ONE/' a", "one")
    two = await commit_of(plain, hub, "sed -i 's/line 25$/TWO/' a; rm b; echo c > 'c d'", "two")
    bad = await commit_of(plain, hub, "sed -i 's/line 1$/BAD/' a", "bad")
    merged = await hub.merge(base, one, two)
    assert merged.conflicts == ()
    text = git(hub.origin.shelf.hub, "cat-file", "-p", f"{merged.tree}:a")
    assert "ONE" in text
    assert "TWO" in text
    assert git(hub.origin.shelf.hub, "ls-tree", "--name-only", merged.tree).splitlines() == ["a", "c d"]
    broken = await hub.merge(base, one, bad)
    assert broken.conflicts == ("a",)
    assert "<<<<<<<" in git(hub.origin.shelf.hub, "cat-file", "-p", f"{broken.tree}:a")
    assert (await hub.merge(base, base, one)).tree == await hub.tree(one)
    assert (await hub.merge(base, one, base)).tree == await hub.tree(one)
    assert (await hub.merge(base, one, one)).tree == await hub.tree(one)


async def test_a_revert_is_a_merge_with_the_sides_turned_round(plain: Any, make_repo: RepoMaker, git: Any) -> None:
    hub = await plain.hub(make_repo("many", {"a": LINES}))
    base = await hub.resolve("HEAD")
    one = await commit_of(plain, hub, "sed -i 's/line 1$/ONE/' a", "one")
    two = await commit_of(plain, hub, "sed -i 's/line 25$/TWO/' a", "two")
    both = await hub.commit((await hub.merge(base, one, two)).tree, one, "two on one", at=3.0)
    reverted = await hub.merge(one, both, base)
    assert reverted.conflicts == ()
    text = git(hub.origin.shelf.hub, "cat-file", "-p", f"{reverted.tree}:a")
    assert "ONE" not in text
    assert "TWO" in text


async def test_the_same_commit_is_made_twice_and_is_signed(plain: Any, repo: Path, git: Any, tmp_path: Path) -> None:
    hub = await plain.hub(repo)
    base = await hub.resolve("HEAD")
    tree = await hub.tree(base)
    one = await hub.commit(tree, base, "A subject\n\nA body: ünïcode\n", at=1_700_000_000.7)
    assert one == await hub.commit(tree, base, "A subject\n\nA body: ünïcode\n", at=1_700_000_000.7)
    first = await hub.commit(tree, "", "No parent", at=0)
    assert git(hub.origin.shelf.hub, "log", "-1", "--format=%an <%ae> %ct %s%n%b", one) == (
        "ClaudeCluster <claudecluster@localhost> 1700000000 A subject\nA body: ünïcode"
    )
    git(hub.origin.shelf.hub, "fsck", "--strict", one, first)
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed, so git cannot check an SSH signature")
    (tmp_path / "allowed").write_text(plain.repositories._signer.allowed_signer)
    configured = ("-c", "gpg.format=ssh", "-c", f"gpg.ssh.allowedSignersFile={tmp_path}/allowed")
    for commit in (one, first):
        done = await asyncio.to_thread(
            subprocess.run, ["git", *configured, "verify-commit", commit], cwd=hub.origin.shelf.hub, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert 'Good "git" signature for claudecluster@localhost' in done.stderr


async def test_a_diff_is_a_unified_diff(plain: Any, repo: Path) -> None:
    hub = await plain.hub(repo)
    base = await hub.resolve("HEAD")
    head = await commit_of(plain, hub, "echo more >> README.md", "t")
    assert "+more" in await hub.diff(base, head)
    assert await hub.diff(head, head) == ""
    with pytest.raises(NotFound):
        await hub.tree("0" * 40)


async def test_a_sha256_repository_works(plain: Any, tmp_path: Path, git: Any) -> None:
    repo = tmp_path / "long"
    repo.mkdir()
    git(repo, "init", "-q", "--object-format=sha256", "-b", "main")
    (repo / "a").write_text(LINES)
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "first")
    hub = await plain.hub(repo)
    base = await hub.resolve("")
    head = await commit_of(plain, hub, "sed -i 's/line 1$/ONE/' a; git status", "one")
    other = await commit_of(plain, hub, "sed -i 's/line 25$/TWO/' a", "two")
    merged = await hub.merge(base, head, other)
    landed = await hub.commit(merged.tree, head, "both", at=1.0)
    git(hub.origin.shelf.hub, "fsck", "--strict", landed)
    await hub.advance("refs/claudecluster/r/head", landed, "")
    await hub.publish("refs/claudecluster/r/head", "result")
    assert git(repo, "rev-parse", "result") == landed
