"""The live table of a run on a terminal. Loaded by `progress.py` only where stderr is one; Rich honours NO_COLOR."""

import contextlib

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from claudecluster.cli.text import moment, money, span
from claudecluster.cli.voice import one_line
from claudecluster.cli.watch.phrases import phrase
from claudecluster.kit.clock import Clock
from claudecluster.model.errors import ClusterError
from claudecluster.model.event import Event
from claudecluster.model.run import TaskRecord, TaskState
from claudecluster.ports.store import Store

COLOURS = {
    TaskState.DONE: "green",
    TaskState.RUNNING: "cyan",
    TaskState.LANDING: "blue",
    TaskState.WAITING: "yellow",
    TaskState.FAILED: "red",
    TaskState.REJECTED: "red",
    TaskState.CANCELLED: "magenta",
}
REFRESH_SECONDS = 0.2
SHARE = 10  # reading the tasks anew may take a tenth of the time
FACTS = 4  # the newest facts shown under the table
LASTING = frozenset({"task.landed", "task.done", "task.failed", "task.rejected", "task.cancelled", "task.waiting", "landing.bounced"})


def movable() -> bool:
    """Whether the terminal can redraw what it shows."""
    return not Console(stderr=True).is_dumb_terminal


class Live:
    """Shows tasks that move, a sum of the rest, and the newest facts."""

    def __init__(self, store: Store, run: str, clock: Clock) -> None:
        self._store = store
        self._run = run
        self._clock = clock
        self._console = Console(stderr=True, highlight=False)
        self._tasks: list[TaskRecord] = []
        self._facts: list[str] = []
        self._next = 0.0
        self._began = clock.now()
        self._screen = RichLive(console=self._console, get_renderable=self._drawn, refresh_per_second=5, transient=True)

    async def start(self) -> None:
        """Begin to draw."""
        await self._load()
        self._screen.start()

    async def heard(self, event: Event) -> None:
        """Take a fact in."""
        if said := one_line(phrase(event)):
            line = f"{moment(event.at)}  {said}"
            if event.kind in LASTING or event.data.get("decision") == "retry":
                self._console.print(Text(line))  # stays above the table
            else:
                self._facts = [*self._facts, line][-FACTS:]
        if self._clock.monotonic() > self._next:
            await self._load()

    async def stop(self) -> None:
        """Take the table away; what remains is printed as the result."""
        self._screen.stop()

    async def _load(self) -> None:
        began = self._clock.monotonic()
        with contextlib.suppress(ClusterError):  # a picture may be old; it must not end a run
            self._tasks = await self._store.tasks(self._run)
        now = self._clock.monotonic()
        self._next = now + max(REFRESH_SECONDS, SHARE * (now - began))

    def _drawn(self) -> Group:
        room = max(3, self._console.height - FACTS - 5)
        moving = [task for task in self._tasks if task.started is not None and not task.state.over]
        rest = [task for task in self._tasks if task not in moving]
        grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for head in ("task", "state", "attempt", "model", "time", "cost"):
            grid.add_column(head, no_wrap=True)
        for task in sorted((moving + rest)[:room], key=lambda task: task.position):
            grid.add_row(*self._row(task))
        done = sum(task.state is TaskState.DONE for task in self._tasks)
        foot = f"run {self._run} · {done} of {len(self._tasks)} done · {len(moving)} running · {span(self._clock.now() - self._began)}"
        return Group(grid, Text(foot, style="bold"), *[Text(fact, style="dim", no_wrap=True, overflow="ellipsis") for fact in self._facts])

    def _row(self, task: TaskRecord) -> tuple[Text, ...]:
        since = "" if task.started is None else span((self._clock.now() if task.ended is None else task.ended) - task.started)
        cost = money(task.usage.cost_usd) if task.usage.requests else ""
        cells = (task.id, task.state.value, str(task.attempts or ""), task.model, since, cost)
        return tuple(Text(cell, style=COLOURS.get(task.state, "") if index == 1 else "") for index, cell in enumerate(cells))
