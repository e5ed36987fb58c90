"""`models`: the routes to models, and whether each one answers now."""

import asyncio
from typing import Annotated, Any

import typer

from claudecluster.assembly.settings import Settings, load
from claudecluster.cli import exits, voice
from claudecluster.cli.loading import load as module
from claudecluster.cli.text import table
from claudecluster.kit.clock import SystemClock

SHOWN = 6  # names of models a line has room for


def models(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False) -> int:
    """Ask each configured provider, without spending tokens. Exits 0 if one of them answers, else 4."""
    settings = load().settings
    with asyncio.Runner() as runner:
        found = runner.run(_routes(settings))
    usable = any(route["ok"] for route in found)
    if as_json:
        defaults = {"default_model": settings.default_model, "fallback_model": settings.fallback_model}
        voice.as_json({"ok": usable, "providers": found, **defaults})
    else:
        rows = [(route["name"], route["kind"], "ok" if route["ok"] else "fail", route["why"], _names(route["models"])) for route in found]
        voice.data("\n".join(table(("provider", "kind", "state", "why", "models"), rows)) if rows else "no model is configured")
        if not usable:
            voice.hint("set ANTHROPIC_API_KEY, or OLLAMA_BASE_URL for local models")
    return exits.LANDED if usable else exits.UNAVAILABLE


async def _routes(settings: Settings) -> list[dict[str, Any]]:
    there = module("claudecluster.assembly.access").providers(settings, SystemClock())
    try:
        healths = await asyncio.gather(*(provider.healthy() for provider in there))
    finally:
        for provider in there:
            await provider.aclose()
    return [
        {"name": provider.name, "kind": provider.kind, "ok": health.ok, "why": health.why, "models": list(health.models)}
        for provider, health in zip(there, healths, strict=True)
    ]


def _names(models: list[str]) -> str:
    more = f" and {len(models) - SHOWN} more" if len(models) > SHOWN else ""
    return ", ".join(models[:SHOWN]) + more
