"""Server-sent events, cut out of bytes in any chunking (WHATWG HTML, section 9.2).

The splicer, the tally and the cassette read streams with it. Pure; the raw bytes of every event are kept as they came.
"""

import re
from typing import Any, NamedTuple

import orjson

NAMES = {name.encode(): name for name in ("content_block_delta", "content_block_start", "content_block_stop", "ping")}
END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")


class TooLong(Exception):
    """An event is larger than anybody would send."""


class Frame(NamedTuple):
    """One event. `raw` is what came, with its blank line; `data` joins the data lines; a comment has neither name nor data."""

    raw: bytes
    name: str
    data: bytes

    def json(self) -> dict[str, Any]:
        """Return the data as a JSON object. Raises ValueError if it is none."""
        document = orjson.loads(self.data)
        if not isinstance(document, dict):
            raise ValueError("an event's data is not a JSON object")  # noqa: TRY004 - one error for all bad data
        return document


class Frames:
    """Cuts a stream into events."""

    def __init__(self, limit: int = 16 * 1024 * 1024) -> None:
        self._limit = limit
        self._buffer = b""
        self._returns = False

    def feed(self, chunk: bytes) -> list[Frame]:
        """Return the events that are complete with this chunk. Raises TooLong."""
        return [parse(raw) for raw in self.cut(chunk)]

    def cut(self, chunk: bytes) -> list[bytes]:
        """Return the same as bytes, each with its blank line, for `parse` to read. Raises TooLong."""
        self._returns = self._returns or b"\r" in chunk
        if self._returns:
            whole = self._search(chunk)
        else:  # as Anthropic writes them: many times quicker
            *bare, self._buffer = (self._buffer + chunk).split(b"\n\n")
            whole = [raw + b"\n\n" for raw in bare]
        if len(self._buffer) > self._limit:
            raise TooLong(f"an event is larger than {self._limit} bytes")
        return whole

    def _search(self, chunk: bytes) -> list[bytes]:
        buffer = self._buffer + chunk
        whole = []
        start = 0
        while (end := END.search(buffer, start)) is not None:
            if end.end() == len(buffer) and buffer.endswith(b"\r"):
                break  # its line feed may still come
            whole.append(buffer[start : end.end()])
            start = end.end()
        self._buffer = buffer[start:]
        return whole

    def rest(self) -> bytes:
        """Return what came after the last complete event."""
        return self._buffer


def parse(raw: bytes) -> Frame:
    """Read one event."""
    if raw.startswith(b"event: ") and raw.endswith(b"\n\n"):  # two lines, as nearly all are
        title, found, body = raw[7:-2].partition(b"\ndata: ")
        if found and b"\n" not in title and b"\n" not in body and b"\r" not in raw:
            return Frame(raw, NAMES.get(title) or title.decode("utf-8", "replace"), body)
    name = ""
    data: list[bytes] = []
    for line in raw.splitlines():
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    return Frame(raw, name, data[0] if len(data) == 1 else b"\n".join(data))


def write(name: str, document: dict[str, Any]) -> bytes:
    """Return an event as bytes."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(document))


PING = write("ping", {"type": "ping"})
