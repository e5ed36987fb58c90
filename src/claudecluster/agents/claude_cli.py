"""The Claude Code program: where it is, how it is started, and its streams as a transport of the SDK. `claude_code.py` uses it.

Flags and variables are those of Claude Code 2.1 (`claude --help`, docs.claude.com); the SDK (0.2) sets the same ones when it starts the program itself.
Nothing here knows what the messages mean.
"""

import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import claude_agent_sdk
from claude_agent_sdk import Transport

from claudecluster.model.place import Exit, Stream
from claudecluster.ports.agent import Brief
from claudecluster.ports.sandbox import Process

LAST_WORDS = 20  # lines of stderr kept to explain an early end

KNOBS: Mapping[str, str] = {
    "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
    "CLAUDE_AGENT_SDK_VERSION": claude_agent_sdk.__version__,
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
    return Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"


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


class SandboxTransport(Transport):
    """A program running in a sandbox, as the SDK wants to talk to it. Whoever started the process ends it.

    `heard` is called for every line that arrives, whatever it is. After the end, `exit` tells how and `last_words` what stood on stderr.
    """

    def __init__(self, process: Process, heard: Callable[[], None]) -> None:
        self._process = process
        self._heard = heard
        self._open = True
        self._unanswered: dict[str, None] = {}
        self._stderr: deque[str] = deque(maxlen=LAST_WORDS)
        self.exit: Exit | None = None

    @property
    def last_words(self) -> str:
        """What the program said on stderr, newest lines only."""
        return "\n".join(self._stderr).strip()

    async def connect(self) -> None:
        """Do nothing: the process runs already."""

    async def write(self, data: str) -> None:
        """Send one line."""
        message = json.loads(data)
        if message.get("type") == "control_request":
            self._unanswered[message["request_id"]] = None
        await self._process.send(data.encode())

    async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield messages until the program ends. Raises SandboxLost."""
        async for line in self._process.lines():
            self._heard()
            if line.stream is Stream.ERR:
                self._stderr.append(line.data.decode(errors="replace"))
            elif (message := _parse(line.data)) is not None:
                self._unanswered.pop(str(message.get("response", {}).get("request_id")), None)
                yield message
        self._open = False
        self.exit = await self._process.wait()
        for request in self._unanswered:  # the SDK would wait a minute for answers that cannot come
            why = self.last_words or f"ended with exit code {self.exit.code}"
            yield {"type": "control_response", "response": {"subtype": "error", "request_id": request, "error": why}}

    async def close(self) -> None:
        """Give the program end of file; ending it is left to its owner."""
        await self.end_input()

    def is_ready(self) -> bool:
        """Tell whether it can still be talked to."""
        return self._open

    async def end_input(self) -> None:
        """Let it finish what it has and end by itself."""
        self._open = False
        with contextlib.suppress(OSError):
            await self._process.close_stdin()


def _parse(data: bytes) -> dict[str, Any] | None:
    """Return a line's message; None for blank lines and for talk that is no JSON."""
    if not data.lstrip().startswith(b"{"):
        return None
    try:
        message = json.loads(data)
    except ValueError:  # cut off by a kill: what it was cannot be known
        return None
    return message if isinstance(message, dict) else None
