"""Sixty-four attempts at once on one repository: none may fail for it. `git worktree add` in the same crowd is the yardstick."""

import subprocess

from rig import Row, Scratch, task

CROWD = 64


def measure(scratch: Scratch) -> list[Row]:
    """Return how many attempts failed, and how many worktrees did."""
    repo = scratch.repo(files=200)
    plan = {"tasks": [task(f"t{number}", f"sleep 4; echo {number} > f{number}") for number in range(CROWD)]}
    result = scratch.run(repo, plan, "--workers", str(CROWD))
    failed = sum(not (entry["landed"] and entry["attempts"] == 1) for entry in result["tasks"])
    adding = [
        subprocess.Popen(
            ["git", "worktree", "add", "--quiet", "--detach", str(scratch.folder / f"tree{number}")],
            cwd=repo,
            env=scratch.env,
            stderr=subprocess.DEVNULL,
        )
        for number in range(CROWD)
    ]
    without = sum(process.wait() != 0 for process in adding)
    return [
        Row(f"failures of {CROWD} attempts at once", failed, "of 64", 0, f"the whole run took {result['wall_s']:.1f} s"),
        Row(f"failures of {CROWD} `git worktree add` at once", without, "of 64"),
    ]
