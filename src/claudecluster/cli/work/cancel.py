"""`cancel`: end a run or one task, whether or not anybody serves it."""

import asyncio
import contextlib
from typing import Annotated, Any

import typer

from claudecluster.assembly.settings import load
from claudecluster.cli import exits, voice
from claudecluster.cli.loading import load as module
from claudecluster.cli.serving import chosen, look_now
from claudecluster.cli.work.plan import Json
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.errors import ClusterError, NotFound, Refused, Unavailable

PATIENCE_SECONDS = 30.0
LOOK_SECONDS = 0.2


def cancel(
    run: Annotated[str, typer.Argument(show_default=False, help="Run to cancel.")],
    task: Annotated[str, typer.Argument(show_default=False, help="Task to cancel [default: the whole run].")] = "",
    as_json: Json = False,
) -> int:
    """Cancel a run, or one of its tasks. Its agents are stopped; what has landed stays."""
    settings = load().settings
    outcome = look_now(settings, chosen(run))
    states = {found.id: found.state for found in outcome.tasks}
    if task and task not in states:
        raise NotFound(f"run {run} has no task {task!r}", hint=f"its tasks: {', '.join(list(states)[:20])}")
    state = states[task] if task else outcome.run.state
    who = f"task {task} of run {run}" if task else f"run {run}"
    if state.over and state.value != "cancelled":
        raise Refused(f"{who} is over: {state.value}", hint="what landed is taken back with `claudecluster rollback`")
    if not state.over:
        with asyncio.Runner() as runner:
            runner.run(_cancelled(settings, run, task, SystemClock(), unserved=not outcome.servers))
    voice.say(f"{who} is cancelled")
    if as_json:
        voice.as_json(look_now(settings, run).as_json())
    return exits.LANDED


async def _cancelled(settings: Any, run: str, task: str, clock: Clock, *, unserved: bool) -> None:
    async with module("claudecluster.assembly.build").writing(settings) as store:
        await module("claudecluster.engine.cancel").cancel(store, store.roster, run, task, clock)
        deadline = clock.monotonic() + PATIENCE_SECONDS
        while not ((await store.task(run, task)).state if task else (await store.run(run)).state).over:
            if clock.monotonic() > deadline:
                raise Unavailable(f"run {run} was asked to stop and has not yet", hint=f"see `claudecluster status {run}`")
            await clock.sleep(LOOK_SECONDS)
        record = await store.run(run)
    if unserved and record.state.over:
        with contextlib.suppress(ClusterError):  # a back end or repository that is gone: the next run there tidies up
            async with module("claudecluster.assembly.build").cluster(settings, sandbox=str(record.spec["sandbox"])) as cluster:
                await cluster.tidy(run)
