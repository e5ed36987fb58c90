"""`fallback`: whether local models stand in, and the user's own switch to them and back."""

from typing import Annotated

import typer

from claudecluster.assembly.settings import Settings, load
from claudecluster.cli import exits, voice
from claudecluster.cli.loading import load as module
from claudecluster.model.errors import Refused

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="Show or switch the fallback to local models.")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@app.command()
def status(as_json: Json = False) -> int:
    """Show the mode, the threshold, and whether everything goes to local models now."""
    return _told(load().settings, as_json=as_json)


@app.command()
def connect(as_json: Json = False) -> int:
    """Send everything to the local models, from the next request on, until `disconnect`."""
    settings = load().settings
    if settings.fallback_mode == "disabled":
        raise Refused("the fallback is disabled", hint="set CLAUDE_CODE_FALLBACK_MODE to auto or manual")
    if not settings.ollama_base_url and not settings.servers:
        raise Refused("there is no local model to connect to", hint="set OLLAMA_BASE_URL, such as http://127.0.0.1:11434")
    module("claudecluster.assembly.access").connect(settings.home, on=True)
    return _told(settings, as_json=as_json)


@app.command()
def disconnect(as_json: Json = False) -> int:
    """Return to Anthropic, from the next request on."""
    settings = load().settings
    module("claudecluster.assembly.access").connect(settings.home, on=False)
    return _told(settings, as_json=as_json)


def _told(settings: Settings, *, as_json: bool) -> int:
    connected = module("claudecluster.assembly.access").connected(settings.home)
    picture = {
        "mode": settings.fallback_mode,
        "threshold": settings.fallback_threshold,
        "model": settings.fallback_model,
        "local": _local(settings),
        "connected": connected,
    }
    if as_json:
        voice.as_json(picture)
        return exits.LANDED
    there = ", ".join(_local(settings)) or "none configured (OLLAMA_BASE_URL)"
    when = {"auto": "by itself, when Anthropic cannot answer", "manual": "only when connected", "disabled": "never"}[settings.fallback_mode]
    voice.data(
        f"mode       {settings.fallback_mode}: local models stand in {when}\n"
        f"threshold  {settings.fallback_threshold:g} % of a limit\n"
        f"local      {there}, model {settings.fallback_model or 'chosen by the work'}\n"
        f"connected  {'yes: everything goes to local models' if connected else 'no'}"
    )
    return exits.LANDED


def _local(settings: Settings) -> list[str]:
    return [*settings.ollama_base_url, *(server.url for server in settings.servers)]
