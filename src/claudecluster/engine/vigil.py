"""Who serves a run, and whether they still live: heartbeat, lease, self-fencing, taking over from the dead.

One process serves a run at a time: it holds the lease `serve:<run>` and beats once a second. On this host a worker's death is
seen at once, by its pid and the kernel's start time; from elsewhere after `DEAD` seconds without a beat. A worker that was
declared dead stops at its next beat, whatever it was doing: its agents die with it.
"""

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import Awaitable, Callable

from claudecluster.kit import processes
from claudecluster.kit.clock import Clock
from claudecluster.model.errors import ClusterError
from claudecluster.model.run import WorkerRecord
from claudecluster.ports.store import Roster

BEAT = 1.0  # seconds
PATIENCE = 8.0  # seconds without the store before a worker gives up; less than DEAD
DEAD = 15.0  # seconds without a beat after which another host takes over
FENCED = 4  # exit code of a worker that found itself declared dead: the command's for infrastructure that failed


class Vigil:
    """Our process as a worker of one run."""

    def __init__(self, roster: Roster, clock: Clock, run: str) -> None:
        self._roster = roster
        self._clock = clock
        self.run = run
        self.host = socket.gethostname()
        self.id = f"{self.host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._born = processes.born(os.getpid())
        self._beating: asyncio.Task[None] | None = None
        self.trouble: ClusterError | None = None  # why the store has not been reached for too long

    async def take(self) -> list[str] | None:
        """Become the run's server. Returns the dead workers to take over from; None while another one lives."""
        dead = [worker.id for worker in await self._roster.workers(self.run) if not self.alive(worker)]
        for worker in dead:
            await self._roster.bury(worker)
        if not await self._roster.lease(f"serve:{self.run}", self.id, DEAD):
            return None
        await self._beat()
        return [worker.id for worker in await self._roster.workers(self.run) if worker.id != self.id]

    def alive(self, worker: WorkerRecord) -> bool:
        """Tell whether a worker lives, as far as can be seen from here."""
        return alive(worker, self._clock.now(), self.host)

    def keep(self, every: Callable[[], Awaitable[None]]) -> None:
        """Go on beating in the background, and call `every` at each beat."""
        self._beating = asyncio.create_task(self._keep(every))

    async def leave(self) -> None:
        """Stop serving, so that whoever resumes need not wait."""
        if self._beating is not None:
            self._beating.cancel()
        with contextlib.suppress(ClusterError):  # a worker that cannot say so is found dead by its process
            await self._roster.bury(self.id)

    async def _keep(self, every: Callable[[], Awaitable[None]]) -> None:
        since: float | None = None
        while True:
            try:
                await self._beat()
                await every()
                since = None
            except ClusterError as error:  # a busy or full disk may pass; where it does not, somebody must say so
                since = self._clock.monotonic() if since is None else since
                if self._clock.monotonic() - since > PATIENCE:
                    self.trouble = error
            await self._clock.sleep(BEAT)

    async def _beat(self) -> None:
        record = WorkerRecord(self.id, self.run, self.host, os.getpid(), self._born, self._clock.now())
        if not await self._roster.beat(record) or not await self._roster.lease(f"serve:{self.run}", self.id, DEAD):
            said = f"error: another process took over run {self.run} while this one did not answer\nhint: claudecluster status {self.run}\n"
            with contextlib.suppress(OSError):
                os.write(2, said.encode())
            os._exit(FENCED)  # nothing of ours may touch the run any more


def alive(worker: WorkerRecord, now: float, host: str) -> bool:
    """Tell whether a worker lives: on its own host by its process, elsewhere by its last beat."""
    if worker.dead:
        return False
    if worker.host == host:
        return processes.born(worker.pid) == worker.born
    return now - worker.seen < DEAD
