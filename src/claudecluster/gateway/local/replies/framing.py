"""Cut a byte stream into lines and server-sent events, whatever the chunks (WHATWG HTML, 9.2 "Server-sent events")."""

from dataclasses import dataclass, field

LONGEST = 64 * 1024 * 1024  # bytes: a line beyond this is no model talking


@dataclass(slots=True)
class Lines:
    """Bytes in, whole lines out, without their ends."""

    _rest: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines this completes. Raises ValueError on an endless one."""
        self._rest += data
        if b"\n" not in data:
            if len(self._rest) > LONGEST:
                raise ValueError(f"a line of more than {LONGEST} bytes")
            return []
        *whole, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        return [line.removesuffix(b"\r") for line in whole]

    def close(self) -> list[bytes]:
        """Return what stands there without a line end."""
        rest, self._rest = bytes(self._rest), bytearray()
        return [rest] if rest.strip() else []


@dataclass(slots=True)
class Events:
    """Bytes in, the data of whole events out. Event names are not kept: these wires repeat them in the data."""

    _lines: Lines = field(default_factory=Lines)
    _data: list[bytes] = field(default_factory=list)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of the events this completes."""
        return self._take(self._lines.feed(data))

    def close(self) -> list[bytes]:
        """Return an event whose blank line is missing: some servers end so."""
        return self._take([*self._lines.close(), b""])

    def _take(self, lines: list[bytes]) -> list[bytes]:
        found = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                found.append(b"\n".join(self._data))
                self._data = []
        return found
