"""An attempt's diff, read by git inside the sandbox that holds its tree. For the checks of this folder."""

from claudecluster.model.errors import ClusterError
from claudecluster.model.evidence import Evidence
from claudecluster.model.place import Command, Stream
from claudecluster.ports.sandbox import Sandbox

GIT = ("git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "--no-pager", "diff")
PLAIN = ("--no-ext-diff", "--no-textconv", "--no-color", "--no-renames")  # what the tree's own configuration wants does not count
PATIENCE = 120.0


class BlindError(Exception):
    """The diff could not be read; why is the message."""


async def diff(sandbox: Sandbox, evidence: Evidence, *options: str) -> tuple[str, ...]:
    """Return what `git diff` prints from the attempt's base to its commit, line by line. Raises BlindError, and nothing else."""
    changes = evidence.changes
    command = Command((*GIT, *PLAIN, *options, changes.base, changes.commit, "--"), timeout=PATIENCE)
    out: list[str] = []
    complaints: list[str] = []
    try:
        async with sandbox.start(command) as process:
            async for line in process.lines():
                (out if line.stream is Stream.OUT else complaints).append(line.data.decode(errors="replace"))
            ended = await process.wait()
    except ClusterError as error:
        raise BlindError(error.message) from error
    if ended.code != 0:
        raise BlindError(f"git diff ended with exit code {ended.code}: {' '.join(complaints)[:300]}")
    return tuple(out)
