"""`usage`: what was used, by model, run, task and user; limits and their forecast as a running gateway has them, or as the last one left them."""

import asyncio
import json
import urllib.error
import urllib.request
from typing import Annotated, Any

import typer

from claudecluster.assembly.models.standing import remembered
from claudecluster.assembly.settings import Settings, load
from claudecluster.cli import exits, voice
from claudecluster.cli.loading import load as module
from claudecluster.cli.text import money, table
from claudecluster.kit.clock import SystemClock
from claudecluster.limits.summary import Ledger, summarize
from claudecluster.model.errors import NotFound, Refused, Unavailable

SCOPES = ("model", "run", "task", "user")
LINES = 15  # of one scope, on a terminal
PATIENCE = 10.0


def usage(
    gateway: Annotated[str, typer.Option(metavar="URL", show_default=False, help="Ask a gateway that runs.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> int:
    """Show tokens, cost, limits, resets and forecasts: of a gateway that runs, or all that is on record and what the last gateway knew."""
    settings = load().settings
    if gateway:
        document = _asked(gateway.rstrip("/"), settings)
    else:
        with asyncio.Runner() as runner:
            document = runner.run(_stored(settings))
    if as_json:
        voice.as_json(document)
    else:
        voice.data(_readable(document))
    return exits.LANDED


async def _stored(settings: Settings) -> dict[str, Any]:
    ledger, now = Ledger(), SystemClock().now()
    try:
        async with module("claudecluster.assembly.build").reading(settings) as store:
            for record in await store.spent():
                ledger.add(record)
    except NotFound:  # no store yet: nothing was used
        pass
    return remembered(settings.home, summarize(ledger, (), now), now)


def _asked(url: str, settings: Settings) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise Refused(
            f"--gateway is {url!r}, which is no address", hint="give what `claudecluster gateway` printed, such as http://127.0.0.1:8787"
        )
    token = settings.gateway_token.get_secret_value() if settings.gateway_token else ""
    request = urllib.request.Request(f"{url}/usage", headers={"authorization": f"Bearer {token}"})  # noqa: S310 - http(s) only, seen above
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:  # noqa: S310 - http(s) only, seen above
            document = json.load(response)
    except urllib.error.HTTPError as error:
        hint = "set CLAUDECLUSTER_GATEWAY_TOKEN to the token the gateway printed" if error.code == 401 else "is that a gateway?"
        raise Unavailable(f"{url}/usage answered {error.code}", hint=hint) from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"no gateway answers at {url}: {error}", hint="start one with `claudecluster gateway`") from None
    if not isinstance(document, dict):
        raise Unavailable(f"{url}/usage answered something else", hint="is that a gateway?")
    return document


def _readable(document: dict[str, Any]) -> str:
    lines = [_sum("total", document.get("total") or {})]
    if document.get("as_of"):
        lines += ["", f"limits as of {document['as_of']}:"]
    for provider in document.get("providers") or []:
        lines += ["", f"{provider['name']}  {provider['state']}  {provider['why']}".rstrip()]
        windows = [
            (window["name"], f"{100 * window['used']:.0f} %", window["resets"] or "", window["full_at"] or "", window["source"])
            for window in provider["windows"]
        ]
        lines += [f"  {line}" for line in table(("window", "used", "resets", "full at", "source"), windows)] if windows else []
    for scope in SCOPES:
        sums = sorted((document.get(f"by_{scope}") or {}).items(), key=lambda pair: -pair[1]["cost_usd"])
        if sums:
            rows = [(name, str(used["requests"]), f"{_tokens(used):,}", money(used["cost_usd"])) for name, used in sums[:LINES]]
            lines += ["", *table((scope, "requests", "tokens", "cost"), rows)]
            lines += [f"... and {len(sums) - LINES} more (all of them with --json)"] if len(sums) > LINES else []
    lines += ["", *(f"advice: {advice}" for advice in document["advice"])] if document.get("advice") else []
    return "\n".join(lines)


def _sum(name: str, used: dict[str, Any]) -> str:
    return f"{name}: {used.get('requests', 0)} requests, {_tokens(used):,} tokens, {money(float(used.get('cost_usd', 0.0)))}"


def _tokens(used: dict[str, Any]) -> int:
    return sum(value for name, value in used.items() if name.endswith("_tokens") and isinstance(value, int))
