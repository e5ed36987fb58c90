"""Claude Code's streams as a transport of the SDK, over a process in a sandbox. Nothing here knows what the messages mean; `claude_session.py` does."""

import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from claude_agent_sdk import Transport

from claudecluster.model.errors import ClusterError
from claudecluster.model.place import Exit, Stream
from claudecluster.ports.sandbox import Process

LAST_WORDS = 20  # lines of stderr kept to explain an early end


class SandboxTransport(Transport):
    """A program running in a sandbox, as the SDK wants to talk to it. Whoever started the process ends it.

    `heard` is called for every line that arrives, whatever it is. After the end, `exit` or `lost` tells how and `last_words` what stood on stderr.
    """

    def __init__(self, process: Process, heard: Callable[[], None]) -> None:
        self._process = process
        self._heard = heard
        self._open = True
        self._unanswered: dict[str, None] = {}
        self._stderr: deque[str] = deque(maxlen=LAST_WORDS)
        self.exit: Exit | None = None
        self.lost: ClusterError | None = None

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
        """Yield messages until the program ends, or its sandbox is `lost`."""
        try:
            async for line in self._process.lines():
                self._heard()
                if line.stream is Stream.ERR:
                    self._stderr.append(line.data.decode(errors="replace"))
                elif (message := _parse(line.data)) is not None:
                    self._unanswered.pop(str(message.get("response", {}).get("request_id")), None)
                    yield message
            self.exit = await self._process.wait()
        except ClusterError as error:  # raised here, the SDK would log it as a bug of its own
            self.lost = error
        self._open = False
        for request in self._unanswered:  # the SDK would wait a minute for answers that cannot come
            why = self.last_words or "it ended"
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
