"""`doctor`: is this machine ready, and if not, how does it become so."""

import asyncio
from typing import Annotated

import typer

from claudecluster.assembly.settings import load
from claudecluster.cli import exits, voice
from claudecluster.cli.show.health import signs


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False) -> int:
    """Check what a run needs. Exits 0 if a run will work, 4 if not."""
    settings = load().settings
    with asyncio.Runner() as runner:
        found = runner.run(signs(settings))
    ready = all(sign.state != "fail" for sign in found)
    if as_json:
        rows = [{"name": sign.name, "state": sign.state, "seen": sign.seen, "fix": sign.fix} for sign in found]
        voice.as_json({"ok": ready, "checks": rows})
    else:
        width = max(len(sign.name) for sign in found)
        for sign in found:
            voice.data(f"{sign.state:<4}  {sign.name:<{width}}  {voice.one_line(sign.seen)}")
            if sign.fix:
                voice.data(f"      {'':<{width}}  fix: {sign.fix}")
        voice.say("ready" if ready else "not ready: mend what says `fail`")
    return exits.LANDED if ready else exits.UNAVAILABLE
