"""`demo`: the main job on a fresh copy of the first example. Its model is scripted unless `--live`, and it says so."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from claudecluster.assembly import plugins
from claudecluster.assembly.paths import examples
from claudecluster.assembly.settings import Settings, load
from claudecluster.assembly.taskfile import Wishes
from claudecluster.cli import exits, voice
from claudecluster.cli.loading import load as module
from claudecluster.cli.serving import Setting, look_now, serve
from claudecluster.cli.work.plan import Json, planned
from claudecluster.cli.work.resume import named, setting_of
from claudecluster.cli.work.run import submitting
from claudecluster.kit import processes
from claudecluster.model.errors import Refused, Unavailable
from claudecluster.model.order import Order
from claudecluster.model.task import Plan

SCENARIOS = ("scenario.yaml", "scenario.yml", "scenario.json")
AUTHOR = ("-c", "user.name=ClaudeCluster demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false")
KEY = "scripted"  # what the scripted server is shown; it opens nothing
PACE = 1.0


def demo(
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="PATH", help="New folder for the repository [default: a temporary one].")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Talk to Anthropic with ANTHROPIC_API_KEY; costs money.")] = False,
    sandbox: Annotated[str, typer.Option(metavar="NAME", help="Where agents and gates run.")] = "process",
    workers: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Agents at work at the same time.")] = 4,
    again: Annotated[str, typer.Option("--resume", metavar="RUN", show_default=False, help="Go on with an unfinished demo.")] = "",
    as_json: Json = False,
) -> int:
    """Run the first example: real Claude Code processes on a real repository, with its gates, a retry, and landings."""
    example = _example()
    loaded = load().settings
    settings = loaded.replaced(path=f"{Path(sys.executable).parent}:{loaded.path}")  # the example's gates need this Python's pytest
    plugins.known("sandboxes", sandbox)
    if live and settings.anthropic_api_key is None and settings.anthropic_auth_token is None:
        raise Refused("--live needs ANTHROPIC_API_KEY", hint="set it, or leave --live out for the scripted model")
    if find_spec("pytest") is None:
        raise Unavailable("the example's gates need pytest, which is not installed here", hint=f"{sys.executable} -m pip install pytest")
    prepared = _live if live else _scripted(example)
    begun: list[str] = []
    if again:
        setting, begin = replace(setting_of(look_now(settings, again).run), settings=settings, prepared=prepared), named(again)
    else:
        repo = _copied(example, folder, plan := planned(example / "tasks.yaml", settings, Wishes()))
        setting, begin = Setting(settings, sandbox, prepared=prepared), submitting(Order(plan, str(repo), sandbox=sandbox, workers=workers))
    _announce(example, live=live)

    async def noted(cluster: Any) -> str:
        begun.append(await begin(cluster))
        return begun[0]

    code = serve(setting, noted, as_json=as_json)
    if code == exits.INTERRUPTED and not live:
        voice.hint(f"claudecluster demo --resume {begun[0]} (with `claudecluster resume` there would be no scripted model)")
    voice.say("to look further:")
    for command in ("status", "logs", "receipt show", "receipt verify"):
        voice.say(f"  claudecluster {command} {begun[0]}")
    return code


def _announce(example: Path, *, live: bool) -> None:
    voice.say(f"example {example.name}")
    if live:
        voice.say("model: Anthropic, live")
    else:
        voice.say("model: SCRIPTED. No model is asked: a local server plays prepared answers to the real Claude Code CLI.")
        voice.say("       `--live` with ANTHROPIC_API_KEY does the same work with Anthropic.")


def _example() -> Path:
    folder = examples()
    found = sorted(folder.glob("01-*")) if folder is not None else []
    if not found or not (found[0] / "tasks.yaml").is_file():
        raise Unavailable("the examples are not installed", hint="install the wheel again, or run from a source checkout")
    return found[0]


def _copied(example: Path, folder: Path | None, plan: Plan) -> Path:
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{folder} exists and is not empty", hint="name a new folder with --dir")
    target = (folder or Path(tempfile.mkdtemp(prefix="claudecluster-demo-")) / "repo").expanduser().absolute()
    source = example / "repo" if (example / "repo").is_dir() else example
    unwanted = shutil.ignore_patterns("__pycache__", ".git", "*.pyc", ".pytest_cache", *(SCENARIOS if source == example else ()))
    shutil.copytree(source, target, ignore=unwanted, dirs_exist_ok=True)
    with asyncio.Runner() as runner:
        for arguments in (
            ("init", "--quiet", "--initial-branch=main"),
            ("add", "--all"),
            ("commit", "--quiet", "--message", "The example"),
        ):
            done = runner.run(processes.run(("git", *AUTHOR, *arguments), cwd=target))
            if done.code:
                raise Unavailable(f"git {arguments[0]} failed: {done.err.decode(errors='replace')}", hint="see `claudecluster doctor`")
    voice.say(f"repository {target}, {len(plan.tasks)} tasks")
    return target


@asynccontextmanager
async def _live(settings: Settings) -> AsyncIterator[Settings]:
    yield settings


def _scripted(example: Path) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    scenario = next((example / name for name in SCENARIOS if (example / name).is_file()), None)
    if scenario is None:
        raise Unavailable(f"example {example.name} has no scenario", hint=f"it should hold {SCENARIOS[0]}")

    @asynccontextmanager
    async def prepared(settings: Settings) -> AsyncIterator[Settings]:
        served, script = module("claudecluster.testing.anthropic"), module("claudecluster.testing.scenario")
        async with served.ScriptedAnthropic(script.load(scenario), key=KEY, pace=PACE) as server:
            yield settings.replaced(
                anthropic_base_url=server.url,
                anthropic_api_key=KEY,
                anthropic_auth_token=None,
                ollama_base_url=(),
                servers=(),
                routes=(),
                budgets=None,
                fallback_mode="disabled",
            )

    return prepared
