"""Model traffic of a whole run in one file, one answer a line, and played back without a network.

The core writes or reads one where it is told to. An answer is found by the task and attempt it was given to and by what was asked
(`recording/keys.py`), so the order in which concurrent sessions ask does not matter; equal questions get their answers in order.
What was asked is not in the file, only its hash. Secrets are redacted.

A line is `{"scope","key","shape","path","model","stream","status","headers","body"}`; the first line names the format.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from claudecluster.gateway.provider import Ask
from claudecluster.gateway.recording.condense import condense
from claudecluster.gateway.recording.keys import exact, shape
from claudecluster.gateway.recording.redact import redact
from claudecluster.gateway.server.message import Reply
from claudecluster.model.errors import Refused

FORMAT = {"format": "claudecluster-cassette", "version": 1}
KEPT = ("content-type", "request-id", "retry-after", "x-should-retry", "x-claudecluster-provider", "x-claudecluster-model")


@dataclass(frozen=True, slots=True)
class Track:
    """One recorded answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Microphone:
    """A reply that remembers what is sent through it."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._pieces: list[bytes] = []
        self._status = 0
        self._headers: dict[str, str] = {}
        self._whole = False

    @property
    def lasting(self) -> bool:
        """Whether what was sent is a whole answer, and none that says to ask again."""
        return self._whole and self._status < 500 and self._status != 429

    @property
    def started(self) -> bool:
        """Whether a status was sent, so that no other can be."""
        return self._reply.started

    def start(self, status: int, headers: Iterable[tuple[str, str]], *, length: int | None = None) -> None:
        """Send the status and headers."""
        self._status, self._headers = status, dict(headers)
        self._reply.start(status, self._headers.items(), length=length)

    async def write(self, data: bytes) -> None:
        """Send some of the body."""
        self._pieces.append(data)
        await self._reply.write(data)

    async def end(self, data: bytes = b"") -> None:
        """Finish the answer."""
        self._whole = True
        self._pieces.append(data)
        await self._reply.end(data)

    def track(self) -> Track:
        """Return what was sent."""
        return Track(self._status, {name: self._headers[name] for name in KEPT if name in self._headers}, b"".join(self._pieces))


class Recorder:
    """Writes a cassette. An existing file is recorded onto, so that a resumed run goes on with its own."""

    def __init__(self, path: Path, secrets: Iterable[str] = ()) -> None:
        self._path = path
        self._secrets = tuple(secrets)
        self._lock = asyncio.Lock()
        if not path.exists() or not path.stat().st_size:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(orjson.dumps(FORMAT) + b"\n")
            path.chmod(0o600)

    async def keep(self, ask: Ask, track: Track, secrets: Iterable[str] = ()) -> None:
        """Write down one answer."""
        line = {
            "scope": ask.scope,
            "key": exact(ask),
            "shape": shape(ask),
            "path": ask.path,
            "model": ask.model,
            "stream": ask.stream,
            "status": track.status,
            "headers": dict(track.headers),
            "body": (condense(track.body) if ask.stream else track.body).decode("utf-8", "replace"),
        }
        written = redact(orjson.dumps(line).decode(), (*self._secrets, *secrets)).encode() + b"\n"
        async with self._lock:
            await asyncio.to_thread(self._append, written)

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(line)


class Player:
    """Reads a cassette. Raises Refused if the file is none."""

    def __init__(self, path: Path) -> None:
        self._by_key: dict[tuple[str, str], deque[Track]] = defaultdict(deque)
        self._by_shape: dict[tuple[str, str], deque[Track]] = defaultdict(deque)
        self._played: dict[tuple[str, str], Track] = {}
        self._used: set[int] = set()
        for line in _lines(path):
            track = Track(line["status"], line["headers"], line["body"].encode())
            for scope in {line["scope"], "*"}:
                self._by_key[scope, line["key"]].append(track)
            self._by_shape[line["scope"], line["shape"]].append(track)

    def find(self, ask: Ask) -> Track | None:
        """Return the answer to a request; None if there is none that could be meant."""
        key = exact(ask)
        for scope in (ask.scope, "*"):
            if (track := self._next(self._by_key.get((scope, key)))) is not None:
                self._played[ask.scope, key] = track
                return track
        if (again := self._played.get((ask.scope, key))) is not None:
            return again  # a question repeated, as by a session that was resumed
        return self._next(self._by_shape.get((ask.scope, shape(ask))))

    def _next(self, tracks: deque[Track] | None) -> Track | None:
        while tracks:
            track = tracks.popleft()
            if id(track) not in self._used:
                self._used.add(id(track))
                return track
        return None


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    try:
        first, *lines = path.read_bytes().splitlines()
        if orjson.loads(first).get("format") != FORMAT["format"]:
            raise ValueError("its first line names another format")
        return [orjson.loads(line) for line in lines if line]
    except (OSError, ValueError, AttributeError) as error:
        raise Refused(f"{path} is no cassette: {error}", hint="Record one with `claudecluster run --record FILE`.") from error
