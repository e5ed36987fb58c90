"""`status` and `runs`: what the store knows now. Never starts an engine."""

import asyncio
from typing import Annotated, Any

import typer

from claudecluster.assembly.settings import Settings, load
from claudecluster.cli import exits, voice
from claudecluster.cli.loading import load as module
from claudecluster.cli.serving import look_now
from claudecluster.cli.text import iso, local, table
from claudecluster.kit.clock import SystemClock
from claudecluster.model.errors import NotFound
from claudecluster.model.run import RunRecord

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def status(
    run: Annotated[str, typer.Argument(show_default=False, help="Run to show [default: the newest].")] = "",
    as_json: Json = False,
) -> int:
    """Show a run and its tasks. Exits 0 whatever the run's state is."""
    outcome = look_now(load().settings, run)
    if as_json:
        voice.as_json(outcome.as_json())
        return exits.LANDED
    voice.data(outcome.as_text())
    for hint in outcome.hints():
        voice.hint(hint)
    return exits.LANDED


def runs(
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many to list.")] = 100,
    as_json: Json = False,
) -> int:
    """List runs, newest first."""
    with asyncio.Runner() as runner:
        found = runner.run(_runs(load().settings, limit))
    if as_json:
        voice.as_json({"runs": [_as_json(record) for record in found]})
    elif found:
        rows = [(run.id, run.state.value, f"{local(run.created):%Y-%m-%d %H:%M}", run.branch, run.repo, run.goal[:60]) for run in found]
        voice.data("\n".join(table(("run", "state", "created", "branch", "repository", "goal"), rows)))
    else:
        voice.say("no runs yet")
        voice.hint("start one with `claudecluster run`")
    return exits.LANDED


async def _runs(settings: Settings, limit: int) -> list[RunRecord]:
    try:
        async with module("claudecluster.assembly.build").reading(settings) as store:
            records: list[RunRecord] = await store.runs(limit=limit)
            return records
    except NotFound:  # no store yet: an empty list is the answer, not an error
        return []


def _as_json(run: RunRecord) -> dict[str, Any]:
    end = SystemClock().now() if run.ended is None else run.ended
    return {
        "run": run.id,
        "state": run.state.value,
        "goal": run.goal,
        "repo": run.repo,
        "base": run.base,
        "branch": run.branch,
        "head": run.head,
        "created": iso(run.created),
        "ended": iso(run.ended),
        "duration_s": round(max(0.0, end - run.created), 3),
        "error": run.error,
    }
