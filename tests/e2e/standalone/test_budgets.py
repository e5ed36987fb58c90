"""Budgets of the gateway command are the store's: they outlive kill -9, and gateways on one store share them."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from claudecluster.testing.anthropic import ScriptedAnthropic

BUDGETS = json.dumps({"run_usd": 0.0001, "task_tokens": 1, "user_tokens": 1})  # one answer costs $0.00008


def metered(state: Path) -> int:
    with closing(sqlite3.connect(f"file:{state / 'state.db'}?mode=ro", uri=True)) as store:
        found: int = store.execute("SELECT count(*) FROM cc_metered").fetchone()[0]
        return found


async def written(state: Path, count: int) -> None:
    end = time.monotonic() + 20
    while await asyncio.to_thread(metered, state) < count:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def refused(gateway: Any, words: str, **headers: str) -> None:
    status, body, answered = await gateway.ask(**{f"x-claudecluster-{name}": value for name, value in headers.items()})
    assert (status, body["type"], body["error"]["type"]) == (402, "error", "billing_error"), body
    assert words in body["error"]["message"]
    assert answered["x-should-retry"] == "false"


async def test_a_spent_budget_stays_spent_after_the_gateway_was_killed(serving: Any, upstream: ScriptedAnthropic, state: Path) -> None:
    async with serving(upstream.url, CLAUDECLUSTER_BUDGETS=BUDGETS) as gateway:
        for headers in (
            {"x-claudecluster-run": "r1"},
            {"x-claudecluster-run": "r1"},
            {"x-claudecluster-run": "r2", "x-claudecluster-task": "t"},
            {"x-claudecluster-user": "ada"},
        ):
            assert (await gateway.ask(**headers))[0] == 200
        await written(state, 4)
        await gateway.kill()
    asked = len(upstream.requests)
    async with serving(upstream.url, CLAUDECLUSTER_BUDGETS=BUDGETS) as gateway:
        await refused(gateway, "This run has used its budget of $0.00", run="r1")
        await refused(gateway, "This task has used its budget of 1 tokens", run="r2", task="t")
        await refused(gateway, "This user has used its budget of 1 tokens", user="ada", run="r3")
        assert len(upstream.requests) == asked
        _, document = await gateway.page("/usage")
        assert (document["total"]["requests"], document["by_run"]["r1"]["requests"]) == (4, 2)
        assert (await gateway.ask(**{"x-claudecluster-run": "r4", "x-claudecluster-user": "bob"}))[0] == 200
        _, document = await gateway.page("/usage")
        assert document["total"]["requests"] == 5, "each is counted once, whoever has written it down"


async def test_gateways_on_one_store_share_what_is_spent(serving: Any, upstream: ScriptedAnthropic, state: Path) -> None:
    async with (
        serving(upstream.url, CLAUDECLUSTER_BUDGETS=BUDGETS) as one,
        serving(upstream.url, CLAUDECLUSTER_BUDGETS=BUDGETS) as other,
    ):
        assert (await other.ask(**{"x-claudecluster-user": "bob"}))[0] == 200
        assert (await one.ask(**{"x-claudecluster-user": "ada"}))[0] == 200
        await written(state, 2)
        await asyncio.sleep(1.1)  # what the other one read last is good for a second
        await refused(other, "This user", user="ada")
        await refused(one, "This user", user="bob")
        assert (await one.page("/usage"))[1]["total"]["requests"] == 2
    assert len(upstream.messages) == 2
