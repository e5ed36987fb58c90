"""The watch raises the alarm by the clock it is given, and whoever loses the race is cleaned up."""

import asyncio

import pytest

from claudecluster.agents.watch import Watch, whichever_first
from claudecluster.model.evidence import Outcome


class Steps:
    """A clock that jumps to the end of every sleep."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


async def test_silence_is_a_stall() -> None:
    clock = Steps()
    assert await Watch(clock, idle=900, limit=5000).alarm() is Outcome.STALLED
    assert clock.time == pytest.approx(900)


async def test_a_sign_of_life_starts_the_silence_anew_but_not_the_limit() -> None:
    clock = Steps()
    watch = Watch(clock, idle=10, limit=25)

    async def chatter() -> None:
        while True:
            watch.heard()
            await asyncio.sleep(0)

    talking = asyncio.ensure_future(chatter())
    assert await watch.alarm() is Outcome.TIMED_OUT
    talking.cancel()
    assert clock.time == pytest.approx(25)


async def test_work_that_ends_first_gives_no_alarm() -> None:
    async def work() -> None:
        await asyncio.sleep(0)

    assert await whichever_first(work(), asyncio.Event().wait()) is None  # type: ignore[arg-type]


async def test_the_works_error_is_the_error() -> None:
    async def work() -> None:
        raise LookupError("from the work")

    with pytest.raises(LookupError, match="from the work"):
        await whichever_first(work(), Watch(Steps(), idle=1e9, limit=1e9).alarm())


async def test_an_alarm_ends_the_work_before_it_is_told() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    assert await whichever_first(work(), Watch(Steps(), idle=1, limit=5).alarm()) is Outcome.STALLED
    assert ended == ["cleaned up"]
