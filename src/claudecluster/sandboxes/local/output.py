"""Cuts what a process writes to its two pipes into lines, as it comes, holding back the process when nobody reads. Called by `spawn`."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from claudecluster.model.place import Line, Stream

_CHUNK = 1 << 16  # small, so that a process that only shouts leaves the event loop room
_HELD = 4 << 20  # bytes of whole lines kept before the process has to wait
_LINE_COST = 50  # bytes of memory a line takes besides its own
_LONGEST = 256 << 20  # a line that does not end here is handed out in pieces, so that memory stays bounded


@dataclass(frozen=True, slots=True)
class _Batch:
    stream: Stream
    lines: deque[bytes]
    size: int


class Output:
    """Both outputs of one process. Takes over the two descriptors."""

    def __init__(self, out: int, err: int, *, longest: int = _LONGEST) -> None:
        self._longest = longest
        self._loop = asyncio.get_running_loop()
        self._open = {Stream.OUT: out, Stream.ERR: err}
        self._parts: dict[Stream, list[bytes]] = {Stream.OUT: [], Stream.ERR: []}  # of lines that have not ended
        self._sizes = {Stream.OUT: 0, Stream.ERR: 0}
        self._batches: deque[_Batch] = deque()
        self._held = 0
        self._reading = False  # whether the pipes are being watched
        self._reader = False  # whether somebody has asked for lines
        self._dropping = False
        self._news = asyncio.Event()
        for fd in (out, err):
            os.set_blocking(fd, False)
        self._watch()

    async def lines(self) -> AsyncIterator[Line]:
        """Yield lines until both outputs are closed."""
        self._reader = True
        try:
            while True:
                while self._batches:
                    batch = self._batches[0]
                    while batch.lines:
                        yield Line(batch.stream, batch.lines.popleft())
                    self._drop_oldest()
                    if self._held < _HELD // 2:
                        self._watch()
                if not self._open:
                    return
                self._news.clear()
                self._watch()
                await self._news.wait()
        finally:
            self._reader = False

    def drop_what_nobody_reads(self) -> None:
        """Let the process run on without a reader: of what it writes, the newest few megabytes are kept."""
        self._dropping = True
        self._watch()

    def tail(self) -> str:
        """Return what an ended process wrote and nobody read, for an error message."""
        for stream, fd in list(self._open.items()):
            while self._read(stream, fd):
                pass
        held = b"\n".join(line for batch in self._batches for line in batch.lines)
        return held.decode(errors="replace").strip()

    def close(self) -> None:
        """Stop reading."""
        self._unwatch()
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        self._news.set()

    def _watch(self) -> None:
        if not self._reading:
            self._reading = True
            for stream, fd in self._open.items():
                self._loop.add_reader(fd, self._read, stream, fd)

    def _unwatch(self) -> None:
        if self._reading:
            self._reading = False
            for fd in self._open.values():
                self._loop.remove_reader(fd)

    def _read(self, stream: Stream, fd: int) -> bool:
        """Take what is there; true if there was something."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        *whole, rest = data.split(b"\n")
        if whole:
            whole[0] = self._joined(stream) + whole[0]
            self._add(stream, whole)
        if rest:
            self._parts[stream].append(rest)
            self._sizes[stream] += len(rest)
        if not data:
            self._loop.remove_reader(fd)
            os.close(self._open.pop(stream))
        if self._sizes[stream] > (self._longest if data else 0):
            self._add(stream, [self._joined(stream)])
        self._news.set()
        self._hold_back()
        return bool(data)

    def _joined(self, stream: Stream) -> bytes:
        """Take the line that has begun."""
        data = b"".join(self._parts[stream])
        self._parts[stream].clear()
        self._sizes[stream] = 0
        return data

    def _add(self, stream: Stream, lines: list[bytes]) -> None:
        batch = _Batch(stream, deque(lines), sum(map(len, lines)) + len(lines) * _LINE_COST)
        self._batches.append(batch)
        self._held += batch.size

    def _drop_oldest(self) -> None:
        self._held -= self._batches.popleft().size

    def _hold_back(self) -> None:
        if self._held <= _HELD:
            return
        if self._dropping and not self._reader:
            while self._held > _HELD and len(self._batches) > 1:
                self._drop_oldest()
        else:
            self._unwatch()
