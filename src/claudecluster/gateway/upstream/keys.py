"""Where the real key comes from: a value or a file. Asked for each request, so that a changed key counts at once.

Built by the settings; the Anthropic upstream calls it. Keyrings and Vault have their own modules, loaded by name. A key is never logged.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from claudecluster.model.errors import Unavailable

KeySource = Callable[[], Awaitable[str]]


def fixed(key: str) -> KeySource:
    """Return a source that always gives this key; empty means there is none."""

    async def source() -> str:
        return key

    return source


def from_file(path: Path) -> KeySource:
    """Return a source that reads a file (its first line), again whenever it changes. Unavailable where it cannot be read."""
    seen: list[tuple[int, int, str]] = []

    async def source() -> str:
        try:
            now = path.stat()
            if not seen or seen[0][:2] != (now.st_mtime_ns, now.st_size):
                seen[:] = [(now.st_mtime_ns, now.st_size, path.read_text(encoding="utf-8").partition("\n")[0].strip())]
        except OSError as error:
            raise Unavailable(
                f"The API key file {path} cannot be read: {error.strerror}.", hint="Check the path and its permissions."
            ) from error
        return seen[0][2]

    return source
