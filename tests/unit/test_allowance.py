"""Budgets that start anew, what was metered elsewhere, and the list of who may come."""

import asyncio
from dataclasses import dataclass, field

import pytest

from claudecluster.gateway.guests import Full, Guest, Guests
from claudecluster.gateway.routing.recall import FRESH, OVERLAP, Recall
from claudecluster.kit.clock import Clock
from claudecluster.limits.allowance import Period, Spending
from claudecluster.limits.summary import Ledger
from claudecluster.model.errors import Unavailable
from claudecluster.model.usage import Metered, Usage

DAY = 86400.0
NOW = 1_798_761_600.0  # 2027-01-01T00:00:00Z


def record(key: str, at: float, user: str = "ada") -> Metered:
    return Metered(key, "r", "t", 1, "anthropic", "m", Usage(1, 10, 2, cost_usd=0.5), at, user=user)


@pytest.mark.parametrize(("period", "counted"), [("ever", 4), ("month", 3), ("day", 2)])
def test_what_a_user_has_spent_counts_from_the_beginning_of_the_period(period: Period, counted: int) -> None:
    spending = Spending(period)
    for at in (NOW - 1, NOW, NOW + 3 * DAY, NOW + 3 * DAY + 5):
        spending.add(record(str(at), at))
    spending.add(record("nobody", NOW + 3 * DAY, user=""))
    assert spending.of("ada", NOW + 3 * DAY + 6).requests == counted
    assert spending.of("bob", NOW + 3 * DAY + 6) == Usage()
    assert spending.of("ada", NOW + 40 * DAY).requests == (4 if period == "ever" else 0)


def test_a_late_record_of_an_earlier_period_does_not_count() -> None:
    spending = Spending("day")
    spending.add(record("1", NOW))
    spending.add(record("2", NOW - 1))
    assert spending.of("ada", NOW + 1).requests == 1


@dataclass
class StoppedClock(Clock):
    time: float = NOW

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


@dataclass
class Kept:
    """A store of metered requests."""

    records: list[Metered] = field(default_factory=list)
    looks: int = 0
    broken: bool = False

    async def spent(self, since: float, until: float) -> list[Metered]:
        found = [record for record in self.records if since < record.at <= until]
        total = sum((record.usage for record in found), Usage())
        return [Metered("sum", "r", "t", 0, "anthropic", "m", total, found[-1].at, user="ada")] if found else []

    async def metered(self, since: float) -> list[Metered]:
        if self.broken:
            raise Unavailable("gone")
        self.looks += 1
        return [record for record in self.records if record.at > since]


async def test_each_request_counts_once_whether_it_is_old_new_another_gateways_or_our_own() -> None:
    clock, ledger, spending = StoppedClock(), Ledger(), Spending()
    kept = Kept([record("old", NOW - 1000), record("older", NOW - 2000), record("young", NOW - OVERLAP / 2)])
    recall = Recall(kept, ledger, spending, clock)
    await recall.begin()
    assert (ledger.of("run", "r").requests, spending.of("ada", NOW).requests) == (3, 3)
    own, late, others = record("own", NOW + 1), record("late", NOW - 5), record("others", NOW + 2)
    ledger.add(own)
    spending.add(own)
    kept.records += [own, late, others]
    await recall.refresh()
    assert ledger.of("run", "r").requests == 4, "what was read is still fresh"
    clock.time += FRESH + 2
    await asyncio.gather(*(recall.refresh() for _ in range(10)))
    assert (ledger.of("run", "r").requests, spending.of("ada", NOW).requests) == (6, 6)
    assert kept.looks == 2, "one look for all who ask at once"


async def test_a_store_that_cannot_be_read_leaves_what_is_known_and_is_tried_again() -> None:
    clock, ledger = StoppedClock(), Ledger()
    kept = Kept([record("old", NOW - 1000)])
    recall = Recall(kept, ledger, Spending(), clock)
    await recall.begin()
    clock.time += FRESH + 1
    kept.records.append(record("new", clock.time))
    kept.broken = True
    await recall.refresh()
    assert ledger.total.requests == 1
    kept.broken = False
    await recall.refresh()
    assert ledger.total.requests == 2


def test_a_list_that_is_replaced_knows_the_owner_and_the_new_ones_only() -> None:
    guests = Guests("owner", {"a": Guest("ada"), "": Guest("nobody")})
    assert guests.find(["a"]) == Guest("ada")
    assert guests.find(["x", "owner", "a"]) == Guest()
    guests.replace({"b": Guest("bob"), "owner": Guest("thief")})
    assert [guests.find([token]) for token in ("a", "", "b", "owner")] == [None, None, Guest("bob"), Guest()]
    assert guests.find([]) is None


async def test_who_has_all_their_requests_on_the_way_waits_and_then_is_told() -> None:
    guests, ada = Guests("owner"), Guest("ada", at_once=1)
    async with guests.turn(ada, 10), guests.turn(Guest("bob", at_once=1), 10), guests.turn(Guest(), 10), guests.turn(Guest(), 10):
        with pytest.raises(Full):
            async with guests.turn(ada, 0.01):
                pytest.fail("two at once")
    async with guests.turn(ada, 10):
        pass
