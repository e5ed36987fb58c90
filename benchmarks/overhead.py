"""What landing one task costs over doing the same by hand with git and bwrap in a script.

By hand is: a worktree, the command in bwrap, commit, the gate in bwrap, merge into a second worktree, a signed commit, and taking the
worktree away. Nothing of it would survive a crash, and nobody sees to it that the tested tree is the one that lands.
"""

from pathlib import Path

from rig import Row, Scratch, task, timed

TASKS = 20


def measure(scratch: Scratch) -> list[Row]:
    """Return the time for one landed task, over the time by hand."""
    by_hand = timed(lambda: _by_hand(scratch)) / TASKS
    plan = {
        "gates": [{"name": "made", "run": "test -f f"}],
        "tasks": [
            task(f"t{number}", f"echo {number} > f; echo {number} > f{number}", needs=[f"t{number - 1}"] if number else [])
            for number in range(TASKS)
        ],
    }
    result = scratch.run(scratch.repo("ours"), plan, "--workers", "1")
    (_, _, begun), *_ = scratch.facts(result["run"], "task.started")
    *_, (_, _, ended) = scratch.facts(result["run"], "task.landed", "task.done")
    ours = (ended - begun) / TASKS
    return [
        Row("one landed task", ours * 1000, "ms", None, f"one after another; the whole command took {result['wall_s']:.2f} s for {TASKS}"),
        Row("the same by hand", by_hand * 1000, "ms"),
        Row("overhead of a landed task", ours / by_hand, "x", 2.0),
    ]


def _by_hand(scratch: Scratch) -> None:
    repo, key = scratch.repo("by-hand"), scratch.folder / "key"
    scratch.sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    branch = scratch.folder / "branch"
    scratch.sh("git", "worktree", "add", "--quiet", "-b", "result", str(branch), cwd=repo)
    signed = ("-c", "gpg.format=ssh", "-c", f"user.signingkey={key}")
    for number in range(TASKS):
        tree = scratch.folder / f"tree{number}"
        scratch.sh("git", "worktree", "add", "--quiet", "--detach", str(tree), "result", cwd=repo)
        _boxed(scratch, tree, f"echo {number} > f; echo {number} > f{number}")
        scratch.sh("git", "add", "--all", cwd=tree)
        scratch.sh("git", "commit", "--quiet", f"--message=t{number}", cwd=tree)
        made = scratch.sh("git", "rev-parse", "HEAD", cwd=tree).strip()
        _boxed(scratch, tree, "test -f f")
        scratch.sh("git", "merge", "--quiet", "--squash", made, cwd=branch)
        scratch.sh("git", *signed, "commit", "--quiet", "-S", f"--message=t{number}", cwd=branch)
        scratch.sh("git", "worktree", "remove", "--force", str(tree), cwd=repo)


def _boxed(scratch: Scratch, tree: Path, command: str) -> None:
    system = [word for path in ("/usr", "/bin", "/lib", "/lib64", "/etc") if Path(path).exists() for word in ("--ro-bind", path, path)]
    box = ("bwrap", "--unshare-all", "--die-with-parent", *system, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp")
    scratch.sh(*box, "--bind", str(tree), str(tree), "--chdir", str(tree), "sh", "-c", command)
