"""`gateway`: the gateway by itself, for any Claude Code on this machine."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Annotated

import typer

from claudecluster.assembly.settings import Settings, load
from claudecluster.cli import exits, voice
from claudecluster.cli.loading import load as module

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def gateway(
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="Port to listen on; 0 takes a free one.")] = 0,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="One more configuration file, stronger than the others.")] = None,
) -> int:
    """Serve until stopped. Prints one line of JSON, {"url", "token"}, when it is ready."""
    settings = load(config=config).settings
    if host not in LOOPBACK:
        voice.warn(f"{host} can be reached from other machines, and the traffic is not encrypted")
    with asyncio.Runner() as runner:
        runner.run(_serve(settings, host, port))
    return exits.LANDED


async def _serve(settings: Settings, host: str, port: int) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    access, build = module("claudecluster.assembly.access"), module("claudecluster.assembly.build")
    async with build.writing(settings) as store, access.gateway(settings, store.meter, host=host, port=port) as (url, token):
        voice.data(json.dumps({"url": url, "token": token}))
        voice.say(f"ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY={token} claude")
        await ended.wait()
