"""One isolated place in which commands run: the contract of every back end.

A command that fails is data (`Exit`). `SandboxLost` and `Unavailable` mean that the sandbox could not be asked.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from claudecluster.model.place import Command, Exit, Line, SandboxSpec


class Process(Protocol):
    """A running command. Leaving its context kills the whole process tree."""

    def lines(self) -> AsyncIterator[Line]:
        """Yield output as it comes, both streams, until both close. One reader only."""
        ...

    async def send(self, data: bytes) -> None:
        """Write to its stdin. A closed pipe is not an error: the exit tells."""
        ...

    async def close_stdin(self) -> None:
        """Give it end of file."""
        ...

    async def wait(self) -> Exit:
        """Wait for the main process to end. Raises SandboxLost."""
        ...


class Sandbox(Protocol):
    """One isolated place. Paths in `read` and `write` are relative to its work folder."""

    @property
    def name(self) -> str:
        """The handle: unique, and all that is needed to attach again."""
        ...

    @property
    def work(self) -> str:
        """The work folder's absolute path as processes inside see it."""
        ...

    @property
    def socket(self) -> str:
        """The socket's path as processes inside see it; empty without one."""
        ...

    def start(self, command: Command) -> AbstractAsyncContextManager[Process]:
        """Start a command. Entering raises Unavailable if it cannot be started at all; a missing program is Exit 127."""
        ...

    async def read(self, path: str) -> bytes:
        """Return a file's bytes. Raises NotFound, Refused for a path that leads out of the sandbox's own folders."""
        ...

    async def write(self, path: str, data: bytes) -> None:
        """Create or replace a file, with its folders. Raises Refused as `read` does."""
        ...


class SandboxProvider(Protocol):
    """Makes sandboxes. The name is the handle: no other state is kept."""

    @property
    def kind(self) -> str:
        """The name it is chosen by, such as `process`."""
        ...

    @property
    def overlays(self) -> bool:
        """Whether it can show `Layer`s. If not, callers pass plain folders as Binds and `work` is the source."""
        ...

    async def check(self) -> None:
        """Raise Unavailable, with the way to mend it as hint, if sandboxes cannot be made here."""
        ...

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Make it, or return it if it already exists. Raises Unavailable, Refused."""
        ...

    async def attach(self, name: str) -> Sandbox:
        """Return a sandbox made before. Raises SandboxLost."""
        ...

    async def destroy(self, name: str) -> None:
        """Remove it and all it holds, processes first; workspace folders stay. Unknown names are fine."""
        ...

    async def names(self, prefix: str) -> list[str]:
        """Return the names of what exists, also what a dead process of ours left behind."""
        ...
