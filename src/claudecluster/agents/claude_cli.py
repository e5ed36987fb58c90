"""The Claude Code program: where it is, and how it is started. `claude_code.py` uses it.

Flags and variables are those of Claude Code 2.1 (`claude --help`, docs.claude.com); the SDK (0.2) sets the same ones when it starts the
program itself. The SDK is not loaded here: that takes half a second, which only those pay who use it.
"""

from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from claudecluster.ports.agent import Brief

SDK = "claude-agent-sdk"

KNOBS: Mapping[str, str] = {
    "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
    "CLAUDE_AGENT_SDK_VERSION": version(SDK),
    "IS_SANDBOX": "1",  # without it the program refuses bypassPermissions where the sandbox's user is root
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    # Left alone on purpose: CLAUDE_CODE_SUBPROCESS_ENV_SCRUB needs a further user namespace for each Bash call, which a sandbox may refuse, and
    # would hide only a token that dies with the attempt; CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK would end the turn at a passing stream error.
}


def bundled() -> Path:
    """Return the path of the program that the SDK's wheel carries. It may not exist (a source install)."""
    found = find_spec("claude_agent_sdk")
    return Path(found.origin if found and found.origin else "claude_agent_sdk").parent / "_bundled" / "claude"


def argv(cli: str, brief: Brief, *, resume: bool) -> tuple[str, ...]:
    """Return the command line for one brief: streaming JSON both ways, no questions asked, the repository's own settings only."""
    line = [cli, "--output-format", "stream-json", "--verbose", "--input-format", "stream-json"]
    line += ["--permission-mode", "bypassPermissions", "--setting-sources=project"]
    if brief.task.model:
        line += ["--model", brief.task.model]
    line.append(f"--resume={brief.session}" if resume else f"--session-id={brief.session}")
    return tuple(line)


def environment(brief: Brief, socket: str, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the program's variables. The brief's own (the door to the models) win over the task's."""
    door = {name: value.replace("{socket}", socket) for name, value in brief.env.items()}
    return {**KNOBS, **extra, **brief.task.env, **door}
