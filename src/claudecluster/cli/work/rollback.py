"""`rollback`: land a revert through the same gates and the same queue."""

from typing import Annotated, Any

import typer

from claudecluster.assembly.settings import load
from claudecluster.cli import voice
from claudecluster.cli.serving import chosen, look_now, serve
from claudecluster.cli.work.plan import Json
from claudecluster.cli.work.resume import setting_of, there
from claudecluster.model.errors import NotFound, Refused
from claudecluster.model.run import RunRecord


def rollback(
    run: Annotated[str, typer.Argument(show_default=False, help="Run to take back.")],
    task: Annotated[str, typer.Argument(show_default=False, help="Task to take back [default: all that landed].")] = "",
    as_json: Json = False,
) -> int:
    """Land a revert of a run, or of one of its tasks, through the same gates. History is kept."""
    outcome = look_now(load().settings, chosen(run))
    landed = [found.id for found in outcome.tasks if found.landed]
    if task and task not in {found.id for found in outcome.tasks}:
        raise NotFound(f"run {run} has no task {task!r}", hint=f"its tasks: {', '.join(found.id for found in outcome.tasks[:20])}")
    if not landed or (task and task not in landed):
        who = f"task {task!r} of run {run} has" if task else f"the tasks of run {run} have"
        raise Refused(f"{who} not landed anything", hint="only what landed can be taken back")

    async def begin(cluster: Any) -> str:
        try:
            made: str = await cluster.rollback(run, task)
        except Refused as error:
            raise _plainer(error, outcome.run) from None
        voice.say(f"run {made} takes back {task or 'all'} of {run}")
        return made

    there(outcome.run)
    return serve(setting_of(outcome.run), begin, as_json=as_json)


def _plainer(error: Refused, run: RunRecord) -> Refused:
    """Say of the branch what helps here: its name is settled."""
    if f"'refs/heads/{run.branch}'" in error.message:
        fix = f"bring it back with `git branch {run.branch} {run.head}`"
        return Refused(f"{run.repo} has no branch {run.branch} any more", hint=fix)
    if "is checked out in" in error.message:
        return Refused(error.message, hint="check out another branch there, then roll back")
    return error
