"""`logs`: what agents and gates said and what happened, in order of time; with --follow, until the run is over."""

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated

import typer

from claudecluster.assembly.settings import Settings, load
from claudecluster.cli import exits, voice
from claudecluster.cli.loading import load as module
from claudecluster.cli.text import moment
from claudecluster.cli.watch.phrases import phrase
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.errors import NotFound
from claudecluster.ports.store import Store

LOOK_SECONDS = 0.25
PAGE = 1000
Said = tuple[float, str]


def logs(
    run: Annotated[str, typer.Argument(show_default=False, help="Run to read.")],
    task: Annotated[str, typer.Argument(show_default=False, help="Task to read [default: all of them].")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
) -> int:
    """Show what agents and gates said, and what happened."""
    with asyncio.Runner() as runner:
        runner.run(_print(load().settings, run, task, follow=follow))
    return exits.LANDED


async def _print(settings: Settings, run: str, task: str, *, follow: bool) -> None:
    clock = SystemClock()
    async with module("claudecluster.assembly.build").reading(settings) as store:
        await store.run(run)
        known = [found.id for found in await store.tasks(run)]
        if task and task not in known:
            raise NotFound(f"run {run} has no task {task!r}", hint=f"its tasks: {', '.join(known[:20])}")
        reader = Reader(store, run, [task] if task else known, everything=not task)
        await _follow(store, run, reader, clock, follow=follow)


async def _follow(store: Store, run: str, reader: "Reader", clock: Clock, *, follow: bool) -> None:
    while True:
        over = (await store.run(run)).state.over  # asked before reading, so that the last words are not missed
        for line in await reader.more():
            voice.data(line)
        if over or not follow:
            return
        await clock.sleep(LOOK_SECONDS)


class Reader:
    """Reads on from where it stopped: agents' output of the tasks, and facts."""

    def __init__(self, store: Store, run: str, tasks: list[str], *, everything: bool) -> None:
        self._store = store
        self._run = run
        self._tasks = tasks
        self._everything = everything
        self._read = dict.fromkeys(tasks, 0)
        self._seq = 0

    async def more(self) -> list[str]:
        """Return the lines that came since the last time, oldest first."""
        said = await self._facts()
        for task in self._tasks:
            for chunk, attempt, data in await self._store.read_log(self._run, task, after=self._read[task]):
                self._read[task] = chunk
                said += _said(task, attempt, data)
        return [line for _, line in sorted(said, key=lambda pair: pair[0])]

    async def _facts(self) -> list[Said]:
        said: list[Said] = []
        while events := await self._store.events(self._run, after=self._seq, limit=PAGE):
            self._seq = events[-1].seq
            said += [
                (event.at, f"{moment(event.at)}  {voice.one_line(phrase(event))}")
                for event in events
                if (self._everything or event.task in self._tasks) and phrase(event)
            ]
        return said


def _said(task: str, attempt: int, chunk: bytes) -> Iterator[Said]:
    who = f"{task}#{attempt}"
    at = 0.0
    for line in chunk.decode("utf-8", "replace").splitlines():
        try:
            heard = json.loads(line)
            at, kind, text = float(heard["at"]), str(heard["kind"]), str(heard["text"])
        except (ValueError, KeyError, TypeError):
            kind, text = "output", line
        mark = "" if kind == "output" else f"{kind}: "
        for part in voice.clean(text).splitlines() or [""]:
            yield at, f"{moment(at)}  {who} | {mark}{part}"
