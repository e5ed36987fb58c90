"""The one error tree, named by what the caller can do next.

    ClusterError
    ├── Refused       fix the request; nothing was started or written
    ├── NotFound      no such thing; check the name
    ├── Conflict      somebody else changed it first; read again
    ├── Unavailable   something we depend on is not there; try later (`delay` seconds, if known)
    └── SandboxLost   the place a process ran in is gone; make a new attempt

Borders translate foreign exceptions into these once. The CLI maps them to exit codes (`cli/exits.py`),
the API maps them to HTTP statuses. A red test or a failing command is data, never an error.
"""


class ClusterError(Exception):
    """What went wrong and why in one line, and a `hint` on what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Refused(ClusterError):
    """The request cannot be carried out as it stands."""


class NotFound(ClusterError):
    """Nothing has that name."""


class Conflict(ClusterError):
    """The state is not what the caller believed."""


class Unavailable(ClusterError):
    """Something outside is not answering or not installed. Trying again later may work."""

    def __init__(self, message: str, *, hint: str = "", delay: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.delay = delay


class SandboxLost(ClusterError):
    """The sandbox vanished under its process; what it had not handed over is gone."""
