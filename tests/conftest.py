"""What every test may ask for: an environment without the developer's own settings, a small repository, the command line.

A fixture that only one topic needs belongs into that topic's folder.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FOREIGN = ("ANTHROPIC_", "CLAUDE", "OLLAMA_", "GIT_", "OTEL_", "AWS_", "XDG_")  # none of the developer's own reaches a test
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Ada Tester",
    "GIT_AUTHOR_EMAIL": "ada@example.com",
    "GIT_COMMITTER_NAME": "Ada Tester",
    "GIT_COMMITTER_EMAIL": "ada@example.com",
}


def pytest_configure() -> None:
    """Clean this process's environment, which every child process inherits."""
    for name in list(os.environ):
        if name.startswith(FOREIGN) or name.upper() in PROXIES:
            del os.environ[name]
    os.environ.update(GIT, NO_COLOR="1", COLUMNS="120", TERM="dumb")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test its own state folder, which does not exist yet, and make it $CLAUDECLUSTER_HOME."""
    home = tmp_path / "state"
    monkeypatch.setenv("CLAUDECLUSTER_HOME", str(home))
    return home


def git(at: Path, *arguments: str) -> str:
    """Run git there and return what it printed."""
    done = subprocess.run(["git", *arguments], cwd=at, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


@pytest.fixture
def make_repo(tmp_path: Path) -> Callable[..., Path]:
    """Make small repositories: `make_repo("name", {"path": "text"})` gives one with one commit on branch main."""

    def make(name: str = "repo", files: Mapping[str, str] | None = None) -> Path:
        repo = tmp_path / name
        repo.mkdir(parents=True)
        git(repo, "init", "--quiet", "--initial-branch=main")
        for path, text in (files if files is not None else {"README.md": "# A repository\n"}).items():
            (repo / path).parent.mkdir(parents=True, exist_ok=True)
            (repo / path).write_text(text)
        git(repo, "add", "--all")
        git(repo, "commit", "--quiet", "--allow-empty", "--message=First")
        return repo

    return make


@pytest.fixture
def repo(make_repo: Callable[..., Path]) -> Path:
    """Return a repository with one commit on branch main, which is checked out."""
    return make_repo()


@dataclass(frozen=True, slots=True)
class Answer:
    """How the command line ended and what it said."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return stdout, which must be one JSON document."""
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Cli:
    """The installed console script, run in its own process group. What is still running when a test ends is killed."""

    script: str
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start it and return the process."""
        process = subprocess.Popen(
            [self.script, *arguments],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Kill what a failed test left running."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            if process.stdout is not None and not process.stdout.closed:
                process.communicate()

    def __call__(self, *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 90) -> Answer:
        """Run it to its end. Its whole process group is killed at the time-out, and the test fails with what it said."""
        process = self.start(*arguments, cwd=cwd, env=env)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"claudecluster {' '.join(arguments)}: not done after {timeout:g} s\n{out}\n{err}")
        return Answer(process.returncode, out, err)


@pytest.fixture
def cli() -> Iterator[Cli]:
    """Return the console script: `cli("run", "--json", cwd=repo)`."""
    script = Path(sys.executable).parent / "claudecluster"
    assert script.exists(), "the package is not installed: make setup"
    found = Cli(str(script))
    yield found
    found.end()


@pytest.fixture
def task_file(tmp_path: Path) -> Callable[[Sequence[Mapping[str, object]]], Path]:
    """Write tasks (and whatever else belongs into the file) as a task file and return its path."""

    def write(tasks: Sequence[Mapping[str, object]], **rest: object) -> Path:
        path = tmp_path / "tasks.json"
        path.write_text(json.dumps({**rest, "tasks": list(tasks)}))
        return path

    return write
