"""Cuts what a process writes to its two pipes into lines, as it comes, holding back the process when nobody reads. Called by `spawn`."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator

from claudecluster.model.place import Line, Stream

_CHUNK = 1 << 18
_HELD = 4 << 20  # bytes of whole lines kept before the process has to wait
_LINE_COST = 150  # bytes of memory a line takes besides its own
_LONGEST = 256 << 20  # a line that does not end here is handed out in pieces, so that memory stays bounded


class Output:
    """Both outputs of one process. Takes over the two descriptors."""

    def __init__(self, out: int, err: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._open = {Stream.OUT: out, Stream.ERR: err}
        self._parts: dict[Stream, list[bytes]] = {Stream.OUT: [], Stream.ERR: []}  # of lines that have not ended
        self._sizes = {Stream.OUT: 0, Stream.ERR: 0}
        self._lines: deque[Line] = deque()
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
                while self._lines:
                    line = self._lines.popleft()
                    self._held -= len(line.data) + _LINE_COST
                    if self._held < _HELD // 2:
                        self._watch()
                    yield line
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
        held = b"\n".join(line.data for line in self._lines)
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
        for line in whole:
            self._part(stream, line)
            self._complete(stream)
        self._part(stream, rest)
        if not data:
            self._loop.remove_reader(fd)
            os.close(self._open.pop(stream))
        if self._sizes[stream] > (_LONGEST if data else 0):
            self._complete(stream)
        self._news.set()
        self._hold_back()
        return bool(data)

    def _part(self, stream: Stream, data: bytes) -> None:
        if data:
            self._parts[stream].append(data)
            self._sizes[stream] += len(data)

    def _complete(self, stream: Stream) -> None:
        line = Line(stream, b"".join(self._parts[stream]))
        self._parts[stream].clear()
        self._sizes[stream] = 0
        self._lines.append(line)
        self._held += len(line.data) + _LINE_COST

    def _hold_back(self) -> None:
        if self._held <= _HELD:
            return
        if self._dropping and not self._reader:
            while self._held > _HELD and len(self._lines) > 1:
                self._held -= len(self._lines.popleft().data) + _LINE_COST
        else:
            self._unwatch()
