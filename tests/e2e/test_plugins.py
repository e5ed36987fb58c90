"""A third party's package, built and installed like any other, brings an agent, a sandbox and a check."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / "plugin_package"
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Build the package's wheel and unpack it (all that installing a pure wheel is); return the environment that finds it."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    built = subprocess.run([sys.executable, "-c", BUILD, str(wheels)], cwd=PACKAGE, check=True, capture_output=True, text=True, timeout=60)
    with zipfile.ZipFile(wheels / built.stdout.split()[-1]) as wheel:
        wheel.extractall(site)
    return {"PYTHONPATH": str(site)}


def git(repo: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=repo, check=True, capture_output=True, text=True, timeout=60).stdout


def by_id(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {task["id"]: task for task in result["tasks"]}


def test_a_run_uses_a_third_partys_agent_sandbox_and_check(
    cli: Callable[..., Any], repo: Path, task_file: Callable[..., Path], installed: dict[str, str]
) -> None:
    tasks = task_file(
        [
            {"id": "quiet", "agent": "acme-scribe", "prompt": "a calm word"},
            {"id": "loud", "agent": "acme-scribe", "prompt": "A LOUD WORD", "max_attempts": 1},
        ],
        gates=[{"name": "calm", "check": "acme-no-shouting"}, {"name": "written", "run": "ls *.txt"}],
    )
    answer = cli("run", "--tasks", str(tasks), "--sandbox", "acme-rooms", "--branch", "result", "--json", cwd=repo, env=installed)
    assert answer.code == 1, answer.err
    found = by_id(answer.json())
    assert found["quiet"]["state"] == "done", answer.err
    assert found["loud"]["state"] == "rejected", answer.err
    assert "loud.txt is shouting" in found["loud"]["error"]
    text = git(repo, "show", "result:quiet.txt")
    assert text.startswith(f"a calm word\nwritten in {answer.json()['run']}.quiet.")
    assert git(repo, "ls-tree", "--name-only", "result").split() == ["README.md", "quiet.txt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--agent", "acme-scrib"], "acme-scribe"),
        (["--agent", "command", "--sandbox", "acme-room"], "acme-rooms"),
    ],
)
def test_a_name_that_nobody_brings_is_refused_with_the_nearest_one(
    cli: Callable[..., Any], repo: Path, installed: dict[str, str], arguments: list[str], said: str
) -> None:
    answer = cli("run", "true", *arguments, cwd=repo, env=installed)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


def test_without_the_package_its_names_are_unknown(cli: Callable[..., Any], repo: Path) -> None:
    assert "acme" not in os.environ.get("PYTHONPATH", "")
    answer = cli("run", "true", "--agent", "acme-scribe", cwd=repo)
    assert (answer.code, answer.out) == (2, "")
