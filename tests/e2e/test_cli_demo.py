"""The demo does the main job: real Claude Code processes on a real repository, a scripted model, gates, a retry, landings."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def git(at: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=at, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def test_the_demo_lands_every_task_and_says_that_its_model_is_scripted(cli: Cli, tmp_path: Path) -> None:
    repo = tmp_path / "almanac"
    sandbox = "process" if shutil.which("bwrap") else "none"
    answer = cli("demo", "--dir", str(repo), "--sandbox", sandbox, "--json", timeout=400)
    assert answer.code == 0, answer.err
    assert "model: SCRIPTED" in answer.err
    result = answer.json()
    assert {task["state"] for task in result["tasks"]} == {"done"}
    assert max(task["attempts"] for task in result["tasks"]) == 2, "one attempt fails its gate and succeeds on retry"
    assert all(task["usage"]["output_tokens"] > 0 for task in result["tasks"])
    assert f"claudecluster receipt verify {result['run']}" in answer.err
    assert cli("receipt", "verify", result["run"], cwd=repo).code == 0
    assert git(repo, "rev-list", "--count", f"main..{result['branch']}") == str(len(result["tasks"]))
    assert git(repo, "rev-list", "--count", "main") == "1"
    assert git(repo, "status", "--porcelain") == ""
    assert not list(repo.glob("scenario.*")), "the answers are not shown to the agents"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--live"], "ANTHROPIC_API_KEY"),
        (["--sandbox", "docter"], "docter"),
        (["--resume", "rnowhere"], "no runs yet"),
        (["--dir", "."], "not empty"),
    ],
)
def test_a_demo_that_cannot_be_is_refused_before_it_starts(cli: Cli, repo: Path, arguments: list[str], said: str) -> None:
    answer = cli("demo", *arguments, cwd=repo)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
