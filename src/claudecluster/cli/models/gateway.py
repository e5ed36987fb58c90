"""`gateway`: the gateway by itself, for any Claude Code on this machine."""

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from claudecluster.assembly.paths import config_file
from claudecluster.assembly.settings import Settings, load
from claudecluster.cli import exits, voice
from claudecluster.cli.loading import load as module

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def gateway(
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="Port to listen on; 0 takes a free one.")] = 0,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="One more configuration file, stronger than the others.")] = None,
) -> int:
    """Serve until stopped. Prints one line of JSON, {"url", "token"}, when it is ready. Changes to `users` count while it runs."""
    settings = load(config=config).settings
    files = (config_file(settings.home), *(() if config is None else (config.absolute(),)))
    if host not in LOOPBACK:
        voice.warn(f"{host} can be reached from other machines, and the traffic is not encrypted")
    with asyncio.Runner() as runner:
        runner.run(_serve(settings, lambda: load(config=config).settings, files, (host, port)))
    return exits.LANDED


async def _serve(settings: Settings, read: Callable[[], Settings], files: tuple[Path, ...], address: tuple[str, int]) -> None:
    ended, again = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    if sys.stdin is None or not sys.stdin.isatty():  # at a terminal it means that the terminal is gone
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, again.set)
    access, build = module("claudecluster.assembly.access"), module("claudecluster.assembly.build")
    watch = access.Watch(read, voice.warn, files, again)
    async with build.writing(settings) as store, access.gateway(settings, store, watch, host=address[0], port=address[1]) as (url, token):
        voice.data(json.dumps({"url": url, "token": token}))
        voice.say(f"ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY={token} claude")
        await ended.wait()
