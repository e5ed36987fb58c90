"""The queue in front of all providers: who may ask now, who waits, who is next.

The exchange enters it for each request and leaves it with a ticket; `limits/lane.py` decides, this waits. While a lane is closed
everybody in front of it waits together; as it opens, the critical path goes first. Nobody waits longer than their deadline.
"""

import asyncio
import heapq
import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from claudecluster.kit.clock import Clock
from claudecluster.limits.lane import Lane, Ticket


@dataclass(order=True, slots=True)
class _Waiter:
    rank: tuple[int, int]
    lanes: Sequence[Lane] = field(compare=False)
    deadline: float = field(compare=False)
    turn: "asyncio.Future[Ticket | None]" = field(compare=False)


class Admission:
    """Lets requests onto lanes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._order = itertools.count()
        self._waiting: list[_Waiter] = []
        self._alarm: asyncio.Task[None] | None = None
        self._rings = float("inf")

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    async def enter(self, lanes: Sequence[Lane], priority: int, deadline: float) -> Ticket | None:
        """Return a ticket for the first of these lanes that has room, waiting until `deadline` (clock time) at most; None then.

        None at once if all are closed until after the deadline. Give the ticket back with `leave`.
        """
        now = self._clock.now()
        if not self._waiting and (ticket := _first(lanes, now)) is not None:
            return ticket
        if min((lane.opens(now) or now for lane in lanes), default=deadline) >= deadline:
            return None
        waiter = _Waiter((-priority, next(self._order)), lanes, deadline, asyncio.get_running_loop().create_future())
        heapq.heappush(self._waiting, waiter)
        self._wake()
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled() and (ticket := waiter.turn.result()) is not None:
                self.leave(ticket)
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
                heapq.heapify(self._waiting)
            raise

    def leave(self, ticket: Ticket) -> None:
        """Give a ticket back and let the next in."""
        ticket.lane.leave(ticket)
        self.changed()

    def changed(self) -> None:
        """Look again who may go: a lane has opened or grown."""
        if self._waiting:
            self._wake()

    async def aclose(self) -> None:
        """Stop waiting for lanes to open."""
        if self._alarm is not None:
            self._alarm.cancel()
            with suppress(asyncio.CancelledError):
                await self._alarm

    def _wake(self) -> None:
        now = self._clock.now()
        left: list[_Waiter] = []
        while self._waiting:
            waiter = heapq.heappop(self._waiting)
            if waiter.turn.done():
                continue
            ticket = _first(waiter.lanes, now)
            if ticket is not None or waiter.deadline <= now:
                waiter.turn.set_result(ticket)
            else:
                left.append(waiter)
        self._waiting = left  # popped in order: still a heap
        self._set_alarm(now)

    def _set_alarm(self, now: float) -> None:
        moments = [waiter.deadline for waiter in self._waiting]
        moments += [opens for waiter in self._waiting for lane in waiter.lanes if (opens := lane.opens(now)) is not None]
        soonest = min(moments, default=float("inf"))
        if soonest == self._rings and self._alarm is not None and not self._alarm.done():
            return
        if self._alarm is not None and not self._alarm.done() and self._alarm is not asyncio.current_task():
            self._alarm.cancel()
        self._rings = soonest
        self._alarm = None if soonest == float("inf") else asyncio.get_running_loop().create_task(self._ring(soonest))

    async def _ring(self, at: float) -> None:
        while (left := at - self._clock.now()) > 0:
            await self._clock.sleep(left)
        self._rings = float("inf")
        self._wake()


def _first(lanes: Sequence[Lane], now: float) -> Ticket | None:
    return next((ticket for lane in lanes if (ticket := lane.enter(now)) is not None), None)
