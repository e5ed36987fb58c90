"""What a terminal and a script see of a run: progress, interruption, the background, following; and that only one object is on stdout."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
PLAIN = ("--agent", "command", "--sandbox", "none")
DEADLINE = 60.0


def until(true: Callable[[], Any]) -> Any:
    """Wait for something a real process does."""
    deadline = time.monotonic() + DEADLINE
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


@pytest.fixture
def started(cli: Any) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command line; whatever is left at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **more: Any) -> subprocess.Popen[str]:
        processes.append(cli.start(*arguments, **more))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def slow(folder: Path, seconds: float = 60) -> str:
    return f"echo started > {folder}/mark; sleep {seconds}; echo x > x"


def test_a_run_prints_progress_on_stderr_and_its_result_on_stdout(cli: Cli, repo: Path) -> None:
    answer = cli("run", "echo x > x", *PLAIN, "--gate", "test -s x", cwd=repo)
    assert answer.code == 0, answer.err
    assert "1 of 1 tasks done, 1 landed" in answer.out
    assert "task: landed as" in answer.err
    assert "\x1b" not in answer.out + answer.err


def test_a_failed_run_exits_with_1_and_resume_says_it_again(cli: Cli, repo: Path) -> None:
    answer = cli("run", "echo x > x", *PLAIN, "--gate", "false", "--max-attempts", "1", "--json", cwd=repo)
    assert answer.code == 1, answer.err
    result = answer.json()
    assert result["state"] == "failed"
    assert result["tasks"][0]["gates"] == [{"name": "false", "exit_code": 1, "duration_s": pytest.approx(0, abs=5)}]
    again = cli("resume", "--json", cwd=repo)
    assert (again.code, again.json()) == (1, result)


def test_uncommitted_changes_are_mentioned(cli: Cli, repo: Path) -> None:
    (repo / "README.md").write_text("changed\n")
    answer = cli("run", "echo x > x", *PLAIN, cwd=repo)
    assert "uncommitted changes" in answer.err


def test_the_first_ctrl_c_keeps_the_state_and_says_how_to_go_on(
    cli: Cli, started: Callable[..., subprocess.Popen[str]], repo: Path, tmp_path: Path
) -> None:
    process = started("run", slow(tmp_path, 2), *PLAIN, "--json", cwd=repo)
    until((tmp_path / "mark").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, err
    result = json.loads(out)
    assert result["state"] == "interrupted"
    assert f"claudecluster resume {result['run']}" in err
    answer = cli("resume", "--json", cwd=repo)
    assert answer.code == 0, answer.err
    assert (answer.json()["run"], answer.json()["state"]) == (result["run"], "done")


def test_a_run_in_the_background_is_followed_to_its_end(cli: Cli, repo: Path) -> None:
    answer = cli("run", "sleep 1; echo said; echo x > x", *PLAIN, "--detach", cwd=repo)
    assert answer.code == 0, answer.err
    run = answer.out.strip()
    logs = cli("logs", run, "--follow", cwd=repo)
    assert logs.code == 0
    assert "task#1 | said" in logs.out
    assert "run done" in logs.out
    assert cli("status", run, "--json").json()["state"] == "done"


def test_detached_and_json_is_one_object(cli: Cli, repo: Path) -> None:
    answer = cli("run", "echo x > x", *PLAIN, "--detach", "--json", cwd=repo)
    run = answer.json()["run"]
    assert until(lambda: cli("status", run, "--json").json()["state"] == "done")


def test_a_run_is_cancelled_from_another_terminal(
    cli: Cli, started: Callable[..., subprocess.Popen[str]], repo: Path, tmp_path: Path
) -> None:
    process = started("run", slow(tmp_path), *PLAIN, "--json", cwd=repo)
    until((tmp_path / "mark").exists)
    run = cli("runs", "--json").json()["runs"][0]["run"]
    assert cli("cancel", run).code == 0
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1, err
    assert (json.loads(out)["state"], json.loads(out)["tasks"][0]["state"]) == ("cancelled", "cancelled")


def test_a_run_that_nobody_serves_is_cancelled_at_once(
    cli: Cli, started: Callable[..., subprocess.Popen[str]], repo: Path, tmp_path: Path
) -> None:
    process = started("run", slow(tmp_path), *PLAIN, cwd=repo)
    until((tmp_path / "mark").exists)
    run = cli("runs", "--json").json()["runs"][0]["run"]
    assert f"served by process {process.pid} on " in cli("status").out
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert re.search(rf"nobody serves it: \S*claudecluster resume {run}$", cli("status").err, re.MULTILINE)
    answer = cli("cancel", run, "--json")
    assert answer.code == 0, answer.err
    assert answer.json()["state"] == "cancelled"


def test_looking_at_a_run_needs_no_engine_and_no_repository(cli: Cli, repo: Path, tmp_path: Path) -> None:
    cli("run", "echo x > x", *PLAIN, cwd=repo)
    assert "1 landed" in cli("status", cwd=tmp_path).out
    assert "task" in cli("runs", cwd=tmp_path).out or "echo x" in cli("runs", cwd=tmp_path).out


def test_git_itself_verifies_a_landed_commit_with_the_key_that_is_shown(cli: Cli, repo: Path, tmp_path: Path) -> None:
    commit = cli("run", "echo x > x", *PLAIN, "--json", cwd=repo).json()["tasks"][0]["commit"]
    signers = tmp_path / "signers"
    signers.write_text(cli("receipt", "key").out)
    verify = ("git", "-c", f"gpg.ssh.allowedSignersFile={signers}", "verify-commit", commit)
    done = subprocess.run(verify, cwd=repo, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert 'Good "git" signature for claudecluster@localhost' in done.stderr


def test_a_tampered_receipt_is_found(cli: Cli, repo: Path, state: Path) -> None:
    run = cli("run", "echo x > x", *PLAIN, "--gate", "true", "--json", cwd=repo).json()["run"]
    assert cli("receipt", "verify", run, cwd=repo).code == 0
    with closing(sqlite3.connect(state / "state.db")) as store:
        (text,) = store.execute("select receipt from cc_receipts").fetchone()
        store.execute("update cc_receipts set receipt = ?", (text.replace('"exit_code": 0', '"exit_code": 1'),))
        store.commit()
    answer = cli("receipt", "verify", run, "--json", cwd=repo)
    assert answer.code == 1
    assert answer.json()["ok"] is False
    assert answer.json()["receipts"][0]["problems"]


def test_closing_the_pipe_is_no_error(cli: Any, repo: Path) -> None:
    process = subprocess.run(
        ["bash", "-c", f"'{cli.script}' config show --json | head -1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")


def test_a_machine_that_is_ready_is_said_to_be(cli: Cli) -> None:
    answer = cli("doctor", "--json")
    found = {check["name"]: check for check in answer.json()["checks"]}
    assert found["git"]["state"] == "ok"
    assert answer.code == (0 if answer.json()["ok"] else 4)
    assert all(check["fix"] for check in found.values() if check["state"] == "fail")


def test_config_says_where_a_value_comes_from_and_hides_secrets(cli: Cli, state: Path) -> None:
    state.mkdir()
    (state / "config.toml").write_text('default_model = "mine"\n')
    answer = cli("config", "show", "--json", env={"ANTHROPIC_API_KEY": "sk-ant-secret"})
    rows = {row["name"]: row for row in answer.json()["settings"]}
    assert (rows["default_model"]["value"], rows["default_model"]["source"]) == ("mine", "file")
    assert (rows["anthropic_api_key"]["source"], rows["anthropic_api_key"]["where"]) == ("environment", "ANTHROPIC_API_KEY")
    assert "sk-ant-secret" not in answer.out
    assert "sk-ant-secret" not in cli("config", "show", env={"ANTHROPIC_API_KEY": "sk-ant-secret"}).out


def test_the_schema_of_the_task_file_is_json(cli: Cli) -> None:
    assert set(cli("config", "schema", "tasks").json()["properties"]) == {"goal", "base", "setup", "share", "gates", "tasks"}


def test_the_fallback_is_switched_and_stays_switched(cli: Cli) -> None:
    local = {"OLLAMA_BASE_URL": "http://127.0.0.1:9"}
    assert cli("fallback", "status", "--json", env=local).json()["connected"] is False
    assert cli("fallback", "connect", "--json", env=local).json()["connected"] is True
    assert cli("fallback", "status", "--json", env=local).json()["connected"] is True
    assert cli("fallback", "disconnect", "--json", env=local).json()["connected"] is False
    assert cli("fallback", "connect").code == 2


def test_models_that_do_not_answer_are_infrastructure(cli: Cli) -> None:
    answer = cli("models", "--json", env={"OLLAMA_BASE_URL": "http://127.0.0.1:9"})
    assert answer.code == 4
    assert answer.json()["providers"][0]["ok"] is False


def test_the_gateway_says_where_it_is_and_tells_its_usage(cli: Cli, started: Callable[..., subprocess.Popen[str]]) -> None:
    process = started("gateway", env={"ANTHROPIC_BASE_URL": "http://127.0.0.1:9", "CLAUDECLUSTER_GATEWAY_TOKEN": "cc-mine"})
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["token"] == "cc-mine"
    answer = cli("usage", "--gateway", ready["url"], "--json", env={"CLAUDECLUSTER_GATEWAY_TOKEN": "cc-mine"})
    assert answer.code == 0, answer.err
    assert [provider["name"] for provider in answer.json()["providers"]] == ["anthropic"]
    assert cli("usage", "--gateway", ready["url"], "--json", env={"CLAUDECLUSTER_GATEWAY_TOKEN": "wrong"}).code == 4
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (0, ""), err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["gateway"], 4, "no Anthropic API key"),
        (["gateway", "--config", "/nowhere.toml"], 2, "/nowhere.toml"),
        (["gateway", "--port", "70000"], 2, "--port"),
        (["usage", "--gateway", "somewhere"], 2, "no address"),
        (["usage", "--gateway", "http://127.0.0.1:9"], 4, "no gateway answers"),
    ],
)
def test_gateway_mistakes_are_one_line(cli: Cli, arguments: list[str], code: int, said: str) -> None:
    answer = cli(*arguments)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err
    assert answer.err.startswith("error: ")
    assert "hint: " in answer.err
