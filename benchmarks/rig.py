"""What the benchmarks share: a scratch place with its own state, small repositories, the command line, rows of results.

Each number is taken beside the thing it is compared with, in the same run: what is kept are ratios, since they mean the same on any machine.
"""

import json
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLI = str(Path(sys.executable).parent / "claudecluster")
IDENTITY = {
    "GIT_AUTHOR_NAME": "Bench",
    "GIT_AUTHOR_EMAIL": "bench@example.com",
    "GIT_COMMITTER_NAME": "Bench",
    "GIT_COMMITTER_EMAIL": "bench@example.com",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One result. `goal` is the largest value that is good; None where there is nothing to keep."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the goal, if any, is met."""
        return self.goal is None or self.value <= self.goal


@dataclass(frozen=True, slots=True)
class Scratch:
    """A folder for one benchmark, with its own state folder in it."""

    folder: Path

    @property
    def state(self) -> Path:
        """The state folder of its runs."""
        return self.folder / "state"

    @property
    def env(self) -> dict[str, str]:
        """The environment of everything it starts."""
        return {**os.environ, **IDENTITY, "CLAUDECLUSTER_HOME": str(self.state)}

    def sh(self, *argv: str, cwd: Path | None = None) -> str:
        """Run a program to its end and return what it printed."""
        return subprocess.run(argv, cwd=cwd or self.folder, env=self.env, check=True, capture_output=True, text=True).stdout

    def repo(self, name: str = "repo", files: int = 20) -> Path:
        """Make a repository with one commit and that many small files."""
        repo = self.folder / name
        self.sh("git", "init", "--quiet", "--initial-branch=main", str(repo))
        for number in range(files):
            path = repo / f"pkg{number % 10}" / f"module{number}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"VALUE = {number}\n")
        self.sh("git", "add", "--all", cwd=repo)
        self.sh("git", "commit", "--quiet", "--message=First", cwd=repo)
        return repo

    def run(self, repo: Path, plan: Mapping[str, object], *arguments: str, timeout: float = 600) -> dict[str, Any]:
        """Run a plan to its end and return its result, with the wall-clock seconds of the whole process as `wall_s`."""
        file = self.folder / "tasks.json"
        file.write_text(json.dumps(plan))
        started = time.perf_counter()
        done = subprocess.run(
            [CLI, "run", "--tasks", str(file), "--json", *arguments],
            cwd=repo,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        wall = time.perf_counter() - started
        if done.returncode != 0:
            raise SystemExit(f"the run ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return {**json.loads(done.stdout), "wall_s": wall}

    def facts(self, run: str, *kinds: str) -> list[tuple[str, str, float]]:
        """Return (kind, task, time) of a run's facts of those kinds, oldest first."""
        database = sqlite3.connect(f"file:{self.state / 'state.db'}?mode=ro", uri=True)
        try:
            marks = ",".join("?" * len(kinds))
            return list(
                database.execute(f"select kind, task, at from cc_events where run = ? and kind in ({marks}) order by seq", (run, *kinds))
            )
        finally:
            database.close()


def task(name: str, run: str, **rest: object) -> dict[str, object]:
    """Return a task for agent `command`."""
    return {"id": name, "run": run, "max_attempts": 1, **rest}


def timed(work: Callable[[], object]) -> float:
    """Return the seconds it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median(work: Callable[[], object], times: int) -> float:
    """Return the median of the seconds it takes."""
    return statistics.median(timed(work) for _ in range(times))


def table(rows: Sequence[Row]) -> str:
    """Return the results for reading."""
    cells = [("", "what", "measured", "goal", "")]
    cells += [("ok" if row.met else "MISSED", row.name, f"{row.value:.4g} {row.unit}", _goal(row), row.note) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]).rstrip() for line in cells
    )


def _goal(row: Row) -> str:
    return "" if row.goal is None else f"<= {row.goal:g}"


def as_json(rows: Iterable[Row]) -> list[dict[str, object]]:
    """Return the results as plain data."""
    return [{"name": row.name, "value": row.value, "unit": row.unit, "goal": row.goal, "met": row.met, "note": row.note} for row in rows]
