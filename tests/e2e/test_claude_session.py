"""The main job with the real Claude Code CLI, in its sandbox, against a scripted model."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.scenario import Fault, Scenario, Session, Tool, Turn

Tasks = Callable[..., Path]
KEY = "sk-ant-real-key-nobody-may-see"


def git(at: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=at, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def bash(command: str) -> Tool:
    return Tool(name="Bash", input={"command": command, "description": "work"})


def model(*turns: Turn) -> ScriptedAnthropic:
    return ScriptedAnthropic(Scenario(sessions=(Session(match="Please mend", turns=turns, closing="Nothing is left."),)), key=KEY)


def env(upstream: ScriptedAnthropic) -> dict[str, str]:
    return {"ANTHROPIC_BASE_URL": upstream.url, "ANTHROPIC_API_KEY": KEY}


async def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.05)


def processes(text: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text in (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


async def test_an_agent_fails_its_gate_is_told_why_and_lands_the_second_time(cli: Any, repo: Path, task_file: Tasks) -> None:
    gate = {"name": "answer", "run": "grep -q 42 answer.txt || { echo 'answer.txt must say 42'; exit 1; }"}
    file = task_file([{"id": "mend", "prompt": "Please mend the answer.", "gates": [gate]}])
    steps = (
        Turn(text="I write it.", tools=(bash("echo 41 > answer.txt"),)),
        Turn(text="Done."),
        Turn(when="must say 42", text="I see.", tools=(bash("echo 42 > answer.txt"),)),
        Turn(text="Now it is 42."),
    )
    async with model(*steps) as upstream:
        answer = await asyncio.to_thread(cli, "run", "--tasks", str(file), "--json", cwd=repo, env=env(upstream))
    assert answer.code == 0, answer.err
    task = answer.json()["tasks"][0]
    assert (task["state"], task["attempts"], task["landed"]) == ("done", 2, True)
    assert git(repo, "show", f"{answer.json()['branch']}:answer.txt") == "42"
    assert len({asked.session for asked in upstream.messages}) == 1, "the retry goes on in the same session"
    assert task["usage"]["output_tokens"] > 0
    assert task["cost_usd"] > 0
    assert task["model"].startswith("claude-")


async def test_the_agent_never_holds_the_real_key_and_sees_only_its_own(cli: Any, repo: Path, task_file: Tasks, state: Path) -> None:
    look = (
        "{ env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'; cat /proc/*/cmdline 2>/dev/null | tr '\\0' ' '; ls -a / /root /home ~ /run; "
        "ls /var/run/docker.sock; ls " + str(state) + "; } > seen.txt 2>&1; (exec 3<>/dev/tcp/127.0.0.1/22) 2>> seen.txt; "
        "curl -s -m 2 http://127.0.0.1:80 >> seen.txt 2>&1; id -u >> seen.txt"
    )
    file = task_file([{"id": "look", "prompt": "Please mend what you see."}])
    async with model(Turn(text="I look.", tools=(bash(look),)), Turn(text="Seen.")) as upstream:
        answer = await asyncio.to_thread(cli, "run", "--tasks", str(file), "--json", cwd=repo, env=env(upstream))
        assert {asked.headers.get("x-api-key") for asked in upstream.messages} == {KEY}
    assert answer.code == 0, answer.err
    seen = git(repo, "show", f"{answer.json()['branch']}:seen.txt")
    assert KEY not in seen
    assert "state.db" not in seen
    assert seen.splitlines()[-1] != "0"
    stored = [path for path in state.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert stored == [], "the key must not be written down anywhere"


async def test_a_session_cut_by_kill_9_goes_on_with_resume_in_the_same_workspace(
    cli: Any, repo: Path, task_file: Tasks, state: Path
) -> None:
    marker = f"sleep 61.{os.getpid()}"
    file = task_file([{"id": "mend", "prompt": "Please mend it slowly."}])
    steps = (
        Turn(text="First.", tools=(bash("echo first >> log.txt"),)),
        Turn(text="Then.", tools=(bash(f"test -e waited || {{ touch waited; {marker}; }}; echo second >> log.txt"),)),
        Turn(text="Last.", tools=(bash("echo third >> log.txt; rm -f waited"),)),
        Turn(text="Done."),
    )
    async with model(*steps) as upstream:
        process = cli.start("run", "--tasks", str(file), "--json", cwd=repo, env=env(upstream))
        await until(lambda: processes(marker))
        await until(
            lambda: any(marker in path.read_text(errors="replace") for path in state.rglob("projects/*/*.jsonl"))
        )  # it writes a little behind
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.communicate)
        await until(lambda: not processes(marker), 10)
        answer = await asyncio.to_thread(cli, "resume", "--json", cwd=repo, env=env(upstream))
    assert answer.code == 0, answer.err
    task = answer.json()["tasks"][0]
    assert (task["state"], task["attempts"]) == ("done", 1)
    lines = git(repo, "show", f"{answer.json()['branch']}:log.txt").split()
    assert lines.count("first") == 1, "what was done before the kill is not done again"
    assert lines[-1] == "third"
    assert len({asked.session for asked in upstream.messages}) == 1


async def test_ctrl_c_stops_the_session_and_resume_finishes_it(cli: Any, repo: Path, task_file: Tasks) -> None:
    marker = f"sleep 62.{os.getpid()}"
    file = task_file([{"id": "mend", "prompt": "Please mend it."}])
    steps = (
        Turn(text="Working.", tools=(bash(f"test -e waited || {{ touch waited; {marker}; }}; echo ok > ok.txt; rm waited"),)),
        Turn(text="Done.", tools=(bash("echo ok > ok.txt; rm -f waited"),)),
        Turn(text="Done."),
    )
    async with model(*steps) as upstream:
        process = cli.start("run", "--tasks", str(file), "--json", cwd=repo, env=env(upstream))
        await until(lambda: processes(marker))
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.to_thread(process.communicate, None, 30)
        assert process.returncode == 130, err
        assert json.loads(out)["state"] == "interrupted"
        assert not processes(marker)
        answer = await asyncio.to_thread(cli, "resume", "--json", cwd=repo, env=env(upstream))
    assert answer.code == 0, answer.err
    assert answer.json()["tasks"][0]["state"] == "done"


async def test_a_passing_overload_is_nobodys_fault(cli: Any, repo: Path, task_file: Tasks) -> None:
    file = task_file([{"id": "mend", "prompt": "Please mend it."}])
    steps = (Turn(text="Writing.", tools=(bash("echo ok > ok.txt"),), faults=(Fault(status=529, times=2),)), Turn(text="Done."))
    async with model(*steps) as upstream:
        answer = await asyncio.to_thread(cli, "run", "--tasks", str(file), "--json", cwd=repo, env=env(upstream))
    assert answer.code == 0, answer.err
    assert answer.json()["tasks"][0]["attempts"] == 1
