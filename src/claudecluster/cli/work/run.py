"""`run`: from what the user asks for to a run, served here or in the background."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from claudecluster.assembly import plugins
from claudecluster.assembly.paths import place, server_log
from claudecluster.assembly.settings import load
from claudecluster.assembly.taskfile import Wishes
from claudecluster.cli import exits, voice
from claudecluster.cli.serving import Setting, cassettes, look_now, serve, submit
from claudecluster.cli.work.plan import Goal, Json, Tasks, planned
from claudecluster.kit import processes
from claudecluster.model.errors import Refused
from claudecluster.model.order import Order

SHOWN = 5  # submodules named
SEVERAL = 256  # workers beyond this are a typing error on one host


def run(  # noqa: PLR0913, PLR0917 - one parameter for each flag is how Typer declares them
    goal: Goal = "",
    tasks: Tasks = None,
    repo: Annotated[
        str, typer.Option(metavar="PATH|URL", show_default=False, help="Repository to work on [default: the current one].")
    ] = "",
    base: Annotated[str, typer.Option(metavar="REF", show_default=False, help="Revision to start from [default: HEAD].")] = "",
    branch: Annotated[
        str, typer.Option(metavar="NAME", show_default=False, help="Branch the work lands on [default: claudecluster/RUN].")
    ] = "",
    agent: Annotated[
        str, typer.Option(metavar="NAME", show_default=False, help="Agent for tasks that name none [default: claude-code].")
    ] = "",
    sandbox: Annotated[str, typer.Option(metavar="NAME", help="Where agents and gates run; `none` isolates nothing.")] = "process",
    network: Annotated[str, typer.Option(metavar="none|full", help="Network of agents and gates.")] = "none",
    workers: Annotated[int, typer.Option(min=1, max=SEVERAL, metavar="N", help="Agents at work at the same time.")] = 4,
    gate: Annotated[
        list[str] | None, typer.Option(metavar="CMD", help="Shell command that must exit 0 for every task; may be repeated.")
    ] = None,
    max_attempts: Annotated[int | None, typer.Option(metavar="N", help="Attempts for tasks that do not say [default: 3].")] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Time for one attempt of tasks that do not say [default: 1800].")
    ] = None,
    budget_usd: Annotated[float | None, typer.Option("--budget-usd", metavar="X", help="Stop when the run has cost this much.")] = None,
    record: Annotated[Path | None, typer.Option(metavar="CASSETTE", help="Record all model traffic, secrets redacted.")] = None,
    replay: Annotated[Path | None, typer.Option(metavar="CASSETTE", help="Play recorded model traffic: no network, no tokens.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background and print the run's name.")] = False,
    as_json: Json = False,
) -> int:
    """Run a goal or a task file: each task in its own sandbox, what passes its gates lands on one branch.

    Exit codes: 0 all landed, 1 a task failed, was rejected or cancelled, 2 bad input, 3 a person is needed,
    4 infrastructure unavailable, 130 interrupted (resume goes on).
    """
    if budget_usd is not None and not 0 < budget_usd < float("inf"):
        raise Refused(f"--budget-usd is {budget_usd:g}, which is not above 0", hint="leave it out for no budget")
    if network not in {"none", "full"}:
        raise Refused(f"--network is {network!r}", hint="it is `none` (the gateway's socket only) or `full`")
    where = place(repo)
    settings = load(where.folder).settings
    plan = planned(tasks, settings, Wishes(goal, tuple(gate or ()), agent, "", max_attempts, timeout))
    plugins.known("sandboxes", sandbox)
    _agreed(sandbox, network, ask=not yes and not as_json)
    order = Order(plan, where.source, base or plan.base, branch, sandbox, "full" if network == "full" else "none", workers, budget_usd)
    setting = Setting(settings, sandbox, network, cassettes(record, replay))
    if detach:
        return _detached(setting, submitting(order), as_json=as_json)
    return serve(setting, submitting(order, where.folder), as_json=as_json)


def submitting(order: Order, folder: Path | None = None) -> Callable[[Any], Awaitable[str]]:
    """Return what begins a run of this order on a cluster. Of uncommitted changes in `folder` it says that they are not part of it."""

    async def begin(cluster: Any) -> str:
        run: str = await cluster.submit(order)
        voice.say(f"run {run}")
        if folder is not None:
            looking.append(asyncio.create_task(_say_what_is_left_out(folder, order.base)))  # on the side: git may take its time
        return run

    looking: list[asyncio.Task[None]] = []
    return begin


async def _say_what_is_left_out(folder: Path, base: str) -> None:
    git = ("git", "--no-optional-locks", "-C", str(folder))
    modules = (*git, "config", "--blob", f"{base or 'HEAD'}:.gitmodules", "--get-regexp", r"^submodule\..*\.path$")
    try:
        changed = await processes.run((*git, "status", "--porcelain", "--untracked-files=no"))
        listed = await processes.run(modules)
    except OSError:
        return
    if changed.code == 0 and changed.out.strip():
        voice.say(f"note: {folder} has uncommitted changes; work starts from the commit, without them")
    if listed.code == 0 and listed.out.strip():
        paths = [line.partition(b" ")[2].decode(errors="replace") for line in listed.out.splitlines()]
        which = ", ".join(paths[:SHOWN]) + (f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")
        voice.warn(f"submodules are empty folders for agents and gates, and what is written into them does not land: {which}")


def _agreed(sandbox: str, network: str, *, ask: bool) -> None:
    risks: Sequence[str] = [
        *(["--sandbox none isolates nothing: agents can read and change whatever you can"] if sandbox == "none" else []),
        *(["--network full lets agents and gates reach the whole network"] if network == "full" else []),
    ]
    for risk in risks:
        voice.warn(risk)
    if risks and ask and voice.interactive() and not typer.confirm("Go on?", default=False, err=True):
        raise Refused("not confirmed, so nothing was started", hint="--yes goes on without asking")


def _detached(setting: Setting, begin: Callable[[Any], Awaitable[str]], *, as_json: bool) -> int:
    run = submit(setting, begin)
    log = server_log(setting.settings.home, run)
    extras = [argument for name, path in setting.extras.items() for argument in (f"--{name}", str(path))]
    with log.open("ab") as out:
        subprocess.Popen(
            [sys.executable, "-m", "claudecluster.cli", "resume", run, *extras],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    voice.say(f"serving in the background; its log is {log}")
    if as_json:
        voice.as_json(look_now(setting.settings, run).as_json())
    else:
        voice.data(run)
    voice.hint(f"claudecluster logs {run} --follow")
    return exits.LANDED
