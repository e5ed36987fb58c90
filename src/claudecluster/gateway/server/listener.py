"""Listening sockets, Unix and TCP, and the clients that came through each of them.

`gateway/gateway.py` opens one per door, `gateway/standalone.py` one for all. Closing one cuts its clients at once.
"""

import asyncio
import os
import socket
import stat
from pathlib import Path

from claudecluster.gateway.server.connection import Connection
from claudecluster.gateway.server.intake import Bounds
from claudecluster.gateway.server.message import Application

BACKLOG = 128


class Listener:
    """One listening socket with its connections."""

    def __init__(self, application: Application, bounds: Bounds) -> None:
        self._application = application
        self._bounds = bounds
        self._crowd: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._mark = (0, 0)

    async def open_unix(self, path: Path) -> None:
        """Listen on a socket file that everybody may connect to; an older file of that name goes. Raises OSError."""
        sock, self._mark = bind_unix(path)
        self._path = path
        self._server = await asyncio.get_running_loop().create_unix_server(self._connection, sock=sock, backlog=BACKLOG)

    async def open_tcp(self, host: str, port: int) -> tuple[str, int]:
        """Listen on TCP; port 0 takes a free one. Returns the address taken. Raises OSError."""
        self._server = await asyncio.get_running_loop().create_server(self._connection, host, port, backlog=512)
        address = self._server.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    async def close(self) -> None:
        """Stop listening, remove the socket file and cut every client now."""
        if self._server is not None:
            self._server.close()
        if self._path is not None and _mark(self._path) == self._mark:  # a successor in another process may have taken the name
            self._path.unlink(missing_ok=True)
        working = [task for connection in tuple(self._crowd) if (task := connection.cut()) is not None]
        if working:
            await asyncio.wait(working, timeout=5.0)

    def _connection(self) -> Connection:
        return Connection(self._application, self._bounds, self._crowd)


def bind_unix(path: Path) -> tuple[socket.socket, tuple[int, int]]:
    """Return a socket that listens under that name, whatever the length of its folder's name, and what marks the file as ours.

    The kernel takes 107 bytes, so we go through a descriptor. The name appears only once somebody listens: a sweep of another
    process must not take it for a dead one.
    """
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(f"/proc/self/fd/{folder}/{fresh.name}")
        fresh.chmod(0o666)  # the folder is closed to others; a sandbox's own user comes through a bind mount
        sock.listen(BACKLOG)
        fresh.replace(path)
        return sock, _mark(path)
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(folder)


def _mark(path: Path) -> tuple[int, int]:
    try:
        found = path.lstat()
    except OSError:
        return (0, 0)
    return found.st_dev, found.st_ino


def sweep(folder: Path) -> None:
    """Remove socket files in a folder that nobody listens on any more."""
    for path in folder.glob("*.sock"):
        if stat.S_ISSOCK(path.lstat().st_mode) and not _answers(path):
            path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(1.0)
            sock.connect(f"/proc/self/fd/{folder}/{path.name}")
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:
        return True
    finally:
        os.close(folder)
    return True
