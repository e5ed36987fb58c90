"""`resume`: go on with a run, wherever it stopped. Behaves as the `run` it continues."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from claudecluster.assembly.paths import URL
from claudecluster.assembly.settings import Settings, load
from claudecluster.cli import voice
from claudecluster.cli.loading import load as module
from claudecluster.cli.serving import Begin, Setting, cassettes, look_now, serve, told
from claudecluster.cli.work.plan import Json
from claudecluster.model.errors import Unavailable
from claudecluster.model.run import RunRecord

MANY = 1000  # runs looked through for an unfinished one


def resume(
    run: Annotated[str, typer.Argument(show_default=False, help="Run to go on with [default: the newest unfinished one].")] = "",
    record: Annotated[Path | None, typer.Option(metavar="CASSETTE", help="Record all model traffic, secrets redacted.")] = None,
    replay: Annotated[Path | None, typer.Option(metavar="CASSETTE", help="Play recorded model traffic: no network, no tokens.")] = None,
    as_json: Json = False,
) -> int:
    """Go on with an unfinished run; of one that is over, print the result again."""
    settings = load().settings
    outcome = look_now(settings, run or _unfinished(settings))
    if outcome.run.state.over:
        voice.say(f"run {outcome.run.id} is over")
        return told(outcome, as_json=as_json)
    there(outcome.run)
    return serve(setting_of(outcome.run, cassettes(record, replay)), named(outcome.run.id), as_json=as_json)


def there(run: RunRecord) -> None:
    """Raise Unavailable if the repository of a run is a folder that is gone: serving the run without it would end it."""
    folder = Path(run.repo)
    if (
        not URL.match(run.repo) and not (folder / ".git").exists() and not (folder / "objects").is_dir()
    ):  # an empty mount point is a folder, too
        raise Unavailable(f"the repository {run.repo} is not there", hint="bring it back, or mount it, and do this again; nothing is lost")


def setting_of(run: RunRecord, extras: dict[str, Path] | None = None) -> Setting:
    """Return how a stored run is served: its own sandbox and network, today's settings."""
    folder = Path(run.repo)
    settings = load(folder if folder.is_dir() else None).settings
    return Setting(settings, str(run.spec.get("sandbox", "process")), str(run.spec.get("network", "none")), extras or {})


def named(run: str) -> Begin:
    """Return what begins a run that is on record already."""

    async def begin(_: Any) -> str:
        voice.say(f"run {run}")
        return run

    return begin


def _unfinished(settings: Settings) -> str:
    async def newest() -> str:
        async with module("claudecluster.assembly.build").reading(settings) as store:
            return next((record.id for record in await store.runs(limit=MANY) if not record.state.over), "")

    with asyncio.Runner() as runner:
        return runner.run(newest())
