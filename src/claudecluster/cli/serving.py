"""Serve a run to its end, or to the first Ctrl-C, and say how it went. Shared by run, resume, rollback and demo."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claudecluster.cli import exits, voice
from claudecluster.cli.loading import load
from claudecluster.cli.result import Outcome
from claudecluster.cli.watch.progress import watching
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.errors import NotFound, Refused
from claudecluster.ports.store import Roster

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLOSING_SECONDS = 8.0
SHOW_CURSOR = "\x1b[?25h"
Begin = Callable[[Any], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how a run is served: checked settings, the sandbox, the network, what is recorded or replayed.

    `prepared` gets the settings and gives those to use, for as long as the run is served.
    """

    settings: Any
    sandbox: str = "process"
    network: str = "none"
    extras: dict[str, Path] = field(default_factory=dict)
    prepared: Callable[[Any], AbstractAsyncContextManager[Any]] = nullcontext
    clock: Clock = field(default_factory=SystemClock)


def cassettes(record: Path | None, replay: Path | None) -> dict[str, Path]:
    """Return what is to be recorded or replayed, as a Setting takes it. Raises Refused for what cannot be."""
    if record is not None and replay is not None:
        raise Refused("--record and --replay do not go together", hint="what is replayed is recorded already")
    if replay is not None and not replay.is_file():
        raise Refused(f"there is no cassette {replay}", hint="make one with --record")
    if record is not None and (record.is_dir() or not record.absolute().parent.is_dir()):
        raise Refused(f"{record} cannot be written", hint="name a file in a folder that exists")
    return {name: path.absolute() for name, path in (("record", record), ("replay", replay)) if path is not None}


def serve(setting: Setting, begin: Begin, *, as_json: bool) -> int:
    """Begin a run (submit it, or name it) and serve it; print its result and return the exit code."""
    try:
        with asyncio.Runner() as runner:
            return runner.run(_served(setting, begin, as_json=as_json))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None  # Ctrl-C before there was a run to keep


def told(outcome: Outcome, *, as_json: bool) -> int:
    """Print a run's result and return its exit code."""
    if as_json:
        voice.as_json(outcome.as_json())
        if outcome.run.error:
            voice.say(voice.one_line(outcome.run.error))
    else:
        voice.data(outcome.as_text())
    for hint in outcome.hints():
        voice.hint(hint)
    return outcome.exit_code()


def submit(setting: Setting, begin: Begin) -> str:
    """Begin a run without serving it; return its id."""

    async def begun() -> str:
        async with _cluster(setting) as (cluster, _):
            return await begin(cluster)

    with asyncio.Runner() as runner:
        return runner.run(begun())


async def look(settings: Any, run: str, clock: Clock) -> Outcome:
    """Return a run as the store has it now; the newest one where `run` is empty."""
    async with load("claudecluster.assembly.build").reading(settings) as store:
        record = await store.run(run) if run else next(iter(await store.runs(limit=1)), None)
        if record is None:
            raise NotFound("no runs yet", hint="start one with `claudecluster run`")
        servers = None if record.state.over else await _servers(store.roster, record.id, clock)
        return Outcome(record, await store.tasks(record.id), clock.now(), servers, await store.stand_ins(record.id))


async def _servers(roster: Roster, run: str, clock: Clock) -> list[str]:
    alive, here = load("claudecluster.engine.vigil").alive, socket.gethostname()
    return [f"process {worker.pid} on {worker.host}" for worker in await roster.workers(run) if alive(worker, clock.now(), here)]


@asynccontextmanager
async def _cluster(setting: Setting) -> AsyncIterator[tuple[Any, Any]]:
    build = load("claudecluster.assembly.build")
    async with (
        setting.prepared(setting.settings) as settings,
        build.cluster(settings, sandbox=setting.sandbox, network=setting.network, **setting.extras) as cluster,
    ):
        yield cluster, settings


async def _served(setting: Setting, begin: Begin, *, as_json: bool) -> int:
    with _interrupts() as stop:
        async with _cluster(setting) as (cluster, settings):
            run = await begin(cluster)
            async with load("claudecluster.assembly.build").reading(settings) as store, watching(store, run, setting.clock):
                await _until_stopped(cluster.serve(run), stop)
            outcome = await look(settings, run, setting.clock)
            code = told(outcome, as_json=as_json)
            stop.code = exits.INTERRUPTED if stop.asked and not outcome.run.state.over and code == exits.LANDED else code
            if stop.asked:
                stop.leave_soon()
        return stop.code


class Interruption:
    """The user's wish to stop: the first one ends the work gently, the second one ends the process.

    `work` is what is to be stopped; None once it is over: then what is left is short and must not be cut, and the exit code stands.
    """

    def __init__(self, work: "asyncio.Task[Any] | None") -> None:
        self.asked = False
        self.work = work
        self.code = exits.INTERRUPTED
        self._times = 0

    def ask(self) -> None:
        """Take a Ctrl-C, or what stands for one."""
        self._times += 1
        if self._times > 1:
            if sys.stderr.isatty():
                sys.stderr.write(SHOW_CURSOR)
                sys.stderr.flush()
            os._exit(self.code)  # the second time the user means it; agents die with their worker
        if self.work is None:
            self.leave_soon()
            return
        self.asked = True
        voice.say("stopping agents; their work is kept (Ctrl-C again quits at once)")
        self.work.cancel()

    def leave_soon(self) -> None:
        """End the process in a few seconds even if something still hangs: the state is kept, agents die with their worker."""
        timer = threading.Timer(CLOSING_SECONDS, lambda: os._exit(self.code))
        timer.daemon = True
        timer.start()


@contextlib.contextmanager
def _interrupts() -> Iterator[Interruption]:
    loop, stop = asyncio.get_running_loop(), Interruption(asyncio.current_task())
    for number in STOPPING:
        loop.add_signal_handler(number, stop.ask)
    try:
        yield stop
    finally:
        for number in STOPPING:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # the result is told: the last moments of the process cannot change it


async def _until_stopped(work: Coroutine[Any, Any, Any], stop: Interruption) -> None:
    stop.work = asyncio.create_task(work)
    try:
        await stop.work
    except asyncio.CancelledError:
        if not stop.asked or not stop.work.done():
            raise
    finally:
        stop.work = None


def chosen(run: str) -> str:
    """Return the run's id. Raises NotFound for an empty one: what changes a run never takes the newest one instead."""
    if not run.strip():
        raise NotFound("no run is named", hint="`claudecluster runs` lists them")
    return run


def look_now(settings: Any, run: str = "") -> Outcome:
    """Return a run (the newest one unless named) as the store has it now."""
    with asyncio.Runner() as runner:
        return runner.run(look(settings, run, SystemClock()))
