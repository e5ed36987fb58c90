"""The merge queue's order, and who is given a worker."""

import asyncio

import pytest

from claudecluster.engine.lane import Lane
from claudecluster.engine.steps.workers import Starts, Workers


async def soon(task: "asyncio.Task[str]") -> str:
    return await asyncio.wait_for(task, 5)


async def test_each_is_prepared_for_what_the_one_before_it_plans() -> None:
    lane = Lane()
    with lane.enter() as first, lane.enter() as second, lane.enter() as third:
        assert await first.onto() == ""
        waiting = asyncio.ensure_future(second.onto())
        await asyncio.sleep(0)
        assert not waiting.done()
        first.plan("one")
        assert await soon(waiting) == "one"
        second.plan("")  # it conflicts, and adds nothing
        assert await third.onto() == "one"


async def test_turns_come_in_order_of_arrival_and_whoever_leaves_makes_way() -> None:
    lane = Lane()
    turns: list[int] = []

    async def land(number: int) -> None:
        with lane.enter() as slot:
            await slot.turn()
            turns.append(number)
            await asyncio.sleep(0)

    async def give_up() -> None:
        with lane.enter() as slot:
            await slot.turn()
            raise RuntimeError

    found = await asyncio.gather(land(1), give_up(), land(2), return_exceptions=True)
    assert isinstance(found[1], RuntimeError)
    assert turns == [1, 2]


async def test_one_that_left_is_not_built_upon() -> None:
    lane = Lane()
    with lane.enter() as first:
        with lane.enter() as gone:
            gone.plan("never landed")
            with lane.enter() as last:
                first.plan("one")
                assert await last.onto() == "never landed"
                await asyncio.sleep(0)
        with lane.enter() as late:
            assert await late.onto() == "one"


async def test_a_new_plan_is_waited_for_after_the_old_one_was_given_up() -> None:
    lane = Lane()
    with lane.enter() as first, lane.enter() as second:
        first.plan("old")
        first.again()
        waiting = asyncio.ensure_future(second.onto())
        await asyncio.sleep(0)
        assert not waiting.done()
        first.plan("new")
        assert await soon(waiting) == "new"


async def test_a_few_are_tested_at_once_and_the_first_never_waits_for_the_others() -> None:
    lane = Lane(ahead=1)
    with lane.enter() as first, lane.enter() as second, lane.enter() as third:
        async with second.testing():
            waiting = asyncio.ensure_future(third.testing().__aenter__())
            await asyncio.sleep(0)
            assert not waiting.done()
            async with first.testing():
                pass
        await asyncio.wait_for(waiting, 5)


async def test_workers_are_given_out_by_priority_and_bounded() -> None:
    workers = Workers(2)
    order: list[str] = []
    busy = most = 0

    async def work(name: str, priority: int) -> None:
        nonlocal busy, most
        async with workers.one(priority):
            busy += 1
            most = max(most, busy)
            order.append(name)
            await asyncio.sleep(0.01)
            busy -= 1

    await asyncio.gather(work("a", 5), work("b", 5), work("late", 9), work("soon", 1), work("next", 2))
    assert most == 2
    assert order == ["a", "b", "soon", "next", "late"]
    assert not workers.backlog


async def test_whoever_stops_waiting_for_a_worker_takes_none() -> None:
    workers = Workers(1)
    async with workers.one(1):
        waiting = asyncio.ensure_future(workers.one(1).__aenter__())
        await asyncio.sleep(0)
        assert workers.backlog
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(5), workers.one(1):
        pass


async def test_a_worker_given_to_one_that_is_just_leaving_is_given_on() -> None:
    workers = Workers(1)
    async with workers.one(1):
        leaving = asyncio.ensure_future(workers.one(1).__aenter__())
        await asyncio.sleep(0)
    leaving.cancel()  # it has been given the worker in the same turn of the loop
    with pytest.raises(asyncio.CancelledError):
        await leaving
    async with asyncio.timeout(5), workers.one(1):
        pass


async def test_judging_waits_for_starts_but_not_for_ever() -> None:
    starts, workers = Starts(), Workers(1)
    await asyncio.wait_for(starts.none(workers), 5)
    with starts.one():
        waiting = asyncio.ensure_future(starts.none(workers))
        await asyncio.sleep(0.01)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 5)
    with starts.one():
        await asyncio.wait_for(starts.none(workers), 30)
