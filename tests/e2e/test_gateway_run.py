"""Runs whose models fail, cost and are limited: what the gateway does inside `claudecluster run`, seen from the command line."""

import asyncio
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.ollama import ScriptedOllama
from claudecluster.testing.ollama_wires import Reply, ToolCall
from claudecluster.testing.scenario import Fault, Scenario, Session, Tool, Turn

Tasks = Callable[..., Path]
KEY = "sk-ant-real-key-nobody-may-see"
HOURS = Fault(status=429, headers={"retry-after": "7200"}, times=1000)


def git(at: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=at, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def bash(command: str) -> Tool:
    return Tool(name="Bash", input={"command": command, "description": "work"})


def anthropic(*faults: Fault, at: int = 1) -> ScriptedAnthropic:
    turns = [Turn(text=f"Step {n}.", tools=(bash(f"echo anthropic{n} >> work.txt"),)) for n in range(3)]
    turns[at] = turns[at].model_copy(update={"faults": faults})
    return ScriptedAnthropic(Scenario(sessions=(Session(match="Please mend", turns=(*turns, Turn(text="Done."))),)), key=KEY)


def local(body: Mapping[str, Any]) -> Reply:
    if "local model looks" in json.dumps(body["messages"]):
        return Reply("The local model has finished it.")
    return Reply("The local model looks.", [ToolCall("Bash", {"command": "echo local >> work.txt", "description": "work"})])


def env(upstream: ScriptedAnthropic, ollama: ScriptedOllama | None = None) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": upstream.url,
        "ANTHROPIC_API_KEY": KEY,
        **({"OLLAMA_BASE_URL": ollama.url} if ollama is not None else {}),
    }


def mend(**more: object) -> dict[str, object]:
    return {"id": "mend", "prompt": "Please mend it.", **more}


async def test_a_limit_within_a_run_is_stood_in_for_and_every_view_says_so(cli: Any, repo: Path, task_file: Tasks) -> None:
    file = task_file([mend(gates=[{"name": "there", "run": "grep -q local work.txt"}])])
    async with anthropic(HOURS) as upstream, ScriptedOllama(local) as ollama:
        given = env(upstream, ollama)
        answer = await asyncio.to_thread(cli, "run", "--tasks", str(file), "--json", cwd=repo, env=given)
        asked = len(upstream.messages)
    assert answer.code == 0, answer.err
    assert asked == 2
    task = answer.json()["tasks"][0]
    assert (task["state"], task["attempts"], task["landed"]) == ("done", 1, True)
    assert git(repo, "show", f"{answer.json()['branch']}:work.txt").split() == ["anthropic0", "local"]
    assert task["model"] == "qwen3-coder:30b", "who answered last"
    assert task["cost_usd"] > 0
    assert task["usage"]["requests"] == 3
    said = cli("logs", answer.json()["run"], cwd=repo, env=given).out
    assert "qwen3-coder:30b" in said
    status = cli("status", "--json", cwd=repo, env=given).json()
    assert status["tasks"][0]["usage"] == task["usage"]
    assert "mend: degraded: 2 of 3 requests were answered by a fallback model (qwen3-coder:30b)" in cli("status", cwd=repo, env=given).out
    used = cli("usage", "--json", cwd=repo, env=given).json()
    assert used["total"]["degraded_requests"] == 2
    assert set(used["by_provider"]) == {"anthropic", "ollama"}
    assert used["by_task"][f"{answer.json()['run']}/mend"]["cost_usd"] == task["cost_usd"]
    windows = {row["name"]: row for row in used["providers"]}
    assert windows["anthropic"]["state"] == "closed"
    assert windows["anthropic"]["returns"] is not None


async def test_a_private_task_stays_and_without_a_local_model_ends_with_the_reason(cli: Any, repo: Path, task_file: Tasks) -> None:
    file = task_file([mend(privacy="local")])
    async with anthropic() as upstream, ScriptedOllama(local) as ollama:
        answer = await asyncio.to_thread(cli, "run", "--tasks", str(file), "--json", cwd=repo, env=env(upstream, ollama))
        assert answer.code == 0, answer.err
        assert upstream.requests == []
        answer = await asyncio.to_thread(cli, "run", "--tasks", str(file), "--json", cwd=repo, env=env(upstream))
        assert upstream.requests == []
    assert answer.code == 1, answer.err
    assert "may not leave the machine" in answer.json()["tasks"][0]["error"]


async def test_a_task_that_refuses_lesser_answers_waits_for_its_limit(cli: Any, repo: Path, task_file: Tasks) -> None:
    file = task_file([mend(fallback="never")])
    async with anthropic(HOURS, at=0) as upstream, ScriptedOllama(local) as ollama:
        process = cli.start("run", "--tasks", str(file), "--json", cwd=repo, env=env(upstream, ollama))
        try:
            waiting = await asyncio.to_thread(_line_with, "again in", process)
            assert waiting.rpartition("again in ")[2].startswith(("2 h", "1 h")), waiting
            assert len(upstream.messages) <= 2
            assert ollama.count("/api/chat") == 0
        finally:
            process.terminate()
            _, err = await asyncio.to_thread(process.communicate, None, 30)
    assert process.returncode == 130, err


async def test_a_task_that_waits_for_its_limit_is_cancelled_at_once(cli: Any, repo: Path, task_file: Tasks) -> None:
    file = task_file([mend(fallback="never")])
    async with anthropic(HOURS, at=0) as upstream:
        process = cli.start("run", "--tasks", str(file), "--json", cwd=repo, env=env(upstream))
        await asyncio.to_thread(_line_with, "again in", process)
        runs = (await asyncio.to_thread(cli, "runs", "--json")).json()
        run = (runs["runs"] if isinstance(runs, dict) else runs)[0]["run"]
        assert (await asyncio.to_thread(cli, "cancel", run, "mend")).code == 0
        out, err = await asyncio.to_thread(process.communicate, None, 30)
    assert process.returncode == 1, err
    assert json.loads(out)["tasks"][0]["state"] == "cancelled"


def _line_with(words: str, process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return next(line for line in process.stderr if words in line)


async def test_spent_budgets_stop_a_task_with_the_reason(cli: Any, repo: Path, task_file: Tasks) -> None:
    for more, flags, words in (
        ({"budget_usd": 0.000001}, (), "budget"),
        ({"budget_tokens": 5}, (), "budget"),
        ({}, ("--budget-usd", "0.000001"), "--budget-usd"),
    ):
        file = task_file([mend(**more)])
        async with anthropic() as upstream:
            answer = await asyncio.to_thread(cli, "run", "--tasks", str(file), "--json", *flags, cwd=repo, env=env(upstream))
            assert len(upstream.messages) == 1
        assert answer.code == 1, answer.err
        assert words in answer.json()["tasks"][0]["error"] + answer.err


async def test_budgets_of_the_configuration_hold_within_a_run(cli: Any, repo: Path, task_file: Tasks) -> None:
    file = task_file([mend()])
    async with anthropic() as upstream:
        given = env(upstream) | {"CLAUDECLUSTER_BUDGETS": json.dumps({"run_tokens": 1})}
        answer = await asyncio.to_thread(cli, "run", "--tasks", str(file), "--json", cwd=repo, env=given)
        assert len(upstream.messages) == 1
    assert answer.code == 1, answer.err
    assert "This run has used its budget of 1 tokens" in answer.json()["tasks"][0]["error"]


async def test_eight_sessions_in_a_storm_of_limits_ask_no_more_than_eight_times(cli: Any, repo: Path, task_file: Tasks) -> None:
    file = task_file([mend(id=f"t{n}", gates=[{"name": "there", "run": "grep -q local work.txt"}]) for n in range(8)])
    async with anthropic(HOURS, at=0) as upstream, ScriptedOllama(local, parallel=8) as ollama:
        given = env(upstream, ollama)
        answer = await asyncio.to_thread(cli, "run", "--tasks", str(file), "--workers", "8", "--json", cwd=repo, env=given, timeout=180)
        assert len(upstream.messages) <= 8
    tasks = answer.json()["tasks"]
    assert {task["model"] for task in tasks} == {"qwen3-coder:30b"}


async def test_a_recorded_run_is_played_again_without_a_network(cli: Any, repo: Path, task_file: Tasks, tmp_path: Path) -> None:
    file = task_file([mend(), {"id": "more", "prompt": "Please mend more.", "needs": ["mend"]}])
    cassette = tmp_path / "run.cassette"
    async with anthropic() as upstream:
        first = await asyncio.to_thread(
            cli, "run", "--tasks", str(file), "--record", str(cassette), "--json", cwd=repo, env=env(upstream), timeout=120
        )
        assert first.code == 0, first.err
        heard = len(upstream.requests)
        again = await asyncio.to_thread(
            cli, "run", "--tasks", str(file), "--replay", str(cassette), "--json", cwd=repo, env=env(upstream), timeout=120
        )
        assert len(upstream.requests) == heard, "a replay asks nobody"
    assert again.code == 0, again.err
    trees = {git(repo, "rev-parse", f"{answer.json()['branch']}^{{tree}}") for answer in (first, again)}
    assert len(trees) == 1
    assert again.json()["tasks"][0]["cost_usd"] == 0
    assert KEY not in cassette.read_text()
    assert "cc-" not in cassette.read_text()
    off = await asyncio.to_thread(cli, "run", "--tasks", str(file), "--replay", str(cassette), "--json", cwd=repo, timeout=120)
    assert off.code == 0, "neither a key nor a server is needed"
