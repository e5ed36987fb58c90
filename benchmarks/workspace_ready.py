"""How soon a workspace is ready, against `git worktree add`; what a harvest and a landing cost.

    python benchmarks/workspace_ready.py [--files 1000 50000] [--json]

Needs bubblewrap. One line of figures for each repository size; times in milliseconds, p50 unless named otherwise.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from claudecluster.model.place import Command, SandboxSpec
from claudecluster.model.tree import Wanted, Workspace
from claudecluster.sandboxes.process import ProcessSandboxes
from claudecluster.workspaces import signing
from claudecluster.workspaces.repositories import GitRepositories, LocalHub

GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0")
ENV = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def git(at: Path, *arguments: str) -> str:
    return subprocess.run([*GIT, *arguments], cwd=at, env=ENV, check=True, capture_output=True, text=True).stdout.strip()


def repository(at: Path, files: int) -> Path:
    """Make a repository of so many files of some kilobytes, in folders of fifty."""
    at.mkdir()
    git(at, "init", "-q", "-b", "main")
    for number in range(files):
        path = at / f"area-{number // 2500}/module-{number // 50}/file-{number}.txt"
        if number % 50 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file {number}\n" + f"{number * 7919} some text in a line that differs a little\n" * 60)
    git(at, "add", "-A")
    git(at, "commit", "-q", "-m", "first")
    git(at, "gc", "-q")
    return at


async def timed(work: Callable[[int], Awaitable[Any]], times: int) -> tuple[list[Any], float]:
    results, taken = [], []
    for number in range(times):
        start = time.perf_counter()
        results.append(await work(number))
        taken.append((time.perf_counter() - start) * 1000)
    return results, statistics.median(taken)


async def agent(provider: ProcessSandboxes, workspace: Workspace, script: str) -> None:
    spec = SandboxSpec(f"{workspace.name}.agent", workspace.work, workspace.home, workspace.layers, workspace.binds)
    sandbox = await provider.create(spec)
    async with sandbox.start(Command(("sh", "-c", script))) as process:
        assert (await process.wait()).code == 0
    await provider.destroy(spec.name)


async def measure(top: Path, files: int, rounds: int) -> dict[str, float]:
    repo = await asyncio.to_thread(repository, top / "repo", files)
    provider = ProcessSandboxes(top / "sandboxes", os.environ["PATH"])
    await provider.check()
    repositories = GitRepositories(top / "state", provider, signing.load(top / "state"), env=ENV, owner=provider.owner)
    start = time.perf_counter()
    hub = await repositories.open(str(repo))
    found = {"files": files, "hub_first": (time.perf_counter() - start) * 1000}
    base = await hub.resolve("HEAD")
    _, found["base_first"] = await timed(lambda _: hub.workspace(Wanted("first", base)), 1)
    spaces, found["ready"] = await timed(lambda number: hub.workspace(Wanted(f"w{number}", base)), rounds)
    _, found["agent_true"] = await timed(lambda number: agent(provider, spaces[number], "true"), rounds)
    _, found["harvest_untouched"] = await timed(lambda number: hub.harvest(spaces[number], f"refs/claudecluster/u/{number}", "u"), rounds)
    _, found["git_status_first"] = await timed(lambda number: agent(provider, spaces[number], "git status"), rounds)
    for number, space in enumerate(spaces):
        await agent(
            provider, space, f"echo {number} > new-{number}; echo {number} >> area-0/module-{number % 10}/file-{number % 10 * 50}.txt"
        )
    changes, found["harvest"] = await timed(lambda number: hub.harvest(spaces[number], f"refs/claudecluster/r/{number}", "t"), rounds)
    await land(hub, changes, base, found)
    head = await hub.head("refs/claudecluster/r/head")
    _, found["ready_at_head"] = await timed(lambda number: hub.workspace(Wanted(f"r.h{number}", base, at=head)), rounds)
    _, found["discard"] = await timed(lambda number: hub.discard(f"r.h{number}"), rounds)
    start = time.perf_counter()
    await asyncio.gather(*(hub.workspace(Wanted(f"many{number}", base)) for number in range(64)))
    found["64_at_once"] = (time.perf_counter() - start) * 1000
    worktrees = 5 if files <= 5000 else 2
    _, found["git_worktree_add"] = await timed(
        lambda number: asyncio.to_thread(git, repo, "worktree", "add", "-q", "--detach", str(top / f"worktree-{number}")), worktrees
    )
    provider.close()
    return found


async def land(hub: LocalHub, changes: list[Any], base: str, found: dict[str, float]) -> None:
    """Merge, commit and advance one result after another."""
    head = base
    taken = []
    for number, change in enumerate(changes):
        start = time.perf_counter()
        merged = await hub.merge(change.base, head, change.commit)
        if merged.conflicts:
            continue
        commit = await hub.commit(merged.tree, head, f"land {number}", at=1.0)
        await hub.advance("refs/claudecluster/r/head", commit, "" if head == base else head)
        head = commit
        taken.append((time.perf_counter() - start) * 1000)
    found["merge_commit_advance"] = statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 50000])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    everything = []
    for files in options.files:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found = {name: round(value, 1) for name, value in asyncio.run(measure(Path(folder), files, options.rounds)).items()}
        found["worktree_ratio"] = round(found["git_worktree_add"] / found["ready"], 1)
        everything.append(found)
        if not options.json:
            print("  ".join(f"{name} {value:g}" for name, value in found.items()))
    if options.json:
        json.dump(everything, sys.stdout)


if __name__ == "__main__":
    main()
