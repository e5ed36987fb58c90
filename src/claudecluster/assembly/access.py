"""Access to models as configured: the providers, the gateway's configuration, and the switch by which a user sends everything to local models.

Called by the doors and by whoever wires a gateway. The switch is a file in the state folder, so that it reaches gateways that run.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from claudecluster.assembly.models.secrets import Reference, clear
from claudecluster.assembly.models.standing import keeping
from claudecluster.assembly.models.users import Users, Watch, follow
from claudecluster.assembly.models.wanted import Server, Tariff
from claudecluster.assembly.settings import Settings
from claudecluster.gateway.core import GatewayConfig
from claudecluster.gateway.local.compatible import Compatible, CompatibleConfig
from claudecluster.gateway.local.models import DEFAULT, Choice, Row, choose, facts_of, table_from
from claudecluster.gateway.local.ollama import Ollama, OllamaConfig
from claudecluster.gateway.metering.prices import Price, standard
from claudecluster.gateway.provider import Provider
from claudecluster.gateway.routing.policy import Budgets, Fallback, Rule
from claudecluster.gateway.server.intake import Bounds
from claudecluster.gateway.standalone import StandaloneConfig, standalone
from claudecluster.gateway.upstream.anthropic import DEFAULT_URL, Anthropic, AnthropicConfig
from claudecluster.gateway.upstream.keys import KeySource, fixed
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.task import Task
from claudecluster.storage.store import SqlStore

TIERS = {
    "free": "pro",
    "max": "max5",
    "teams": "pro",
    "enterprise": "api",
}  # the nearest that is known; the server's own report comes first


def anthropic_config(settings: Settings) -> AnthropicConfig:
    """Return how Anthropic is reached."""
    return AnthropicConfig(
        base_url=settings.anthropic_base_url,
        key=key_source(settings),
        auth_token=fixed(clear(settings.anthropic_auth_token)),
    )


def key_source(settings: Settings) -> KeySource:
    """Return where the key comes from: the value itself, else a file, the keyring or Vault. Raises Refused if its package is missing."""
    value, file = settings.anthropic_api_key, settings.anthropic_api_key_file
    return Reference(value, file, settings.anthropic_api_key_keyring, settings.anthropic_api_key_vault).source(settings)


def table(settings: Settings) -> tuple[Row, ...]:
    """Return the table by which a local model is chosen: the user's own rows before the built-in ones."""
    return (*table_from([choice.row() for choice in settings.models]), *DEFAULT)


def stand_in(settings: Settings, task: Task) -> Choice:
    """Return the local model that the table has for a task, and why, as if all its models were installed."""
    rows = table(settings)
    facts = facts_of(task.prompt, task.files, category=task.category.value)
    return choose(facts, rows, tuple(dict.fromkeys(row.model for row in rows)), settings.fallback_model)


def gateway_config(settings: Settings, clock: Clock, *, record: Path | None = None, replay: Path | None = None) -> GatewayConfig:
    """Return all a gateway is told, wherever its doors are. `record` and `replay` are cassettes."""
    return GatewayConfig(
        sockets=settings.home / "sockets",
        anthropic=anthropic_config(settings),
        local=local_providers(settings, clock),
        fallback=Fallback(settings.fallback_mode, settings.fallback_threshold / 100),
        connected=partial(connected, settings.home),
        rules=tuple(Rule(**route.model_dump()) for route in settings.routes),
        budgets=Budgets(**settings.budgets.model_dump()) if settings.budgets is not None else Budgets(),
        bounds=Bounds(**settings.clients.model_dump(exclude_none=True)) if settings.clients is not None else Bounds(),
        prices={name: _price(tariff) for name, tariff in settings.prices.items()},
        pass_login=settings.pass_login,
        tier=TIERS.get(settings.subscription_tier, settings.subscription_tier),
        record=record,
        replay=replay,
        clock=clock,
    )


@asynccontextmanager
async def gateway(settings: Settings, store: SqlStore, watch: Watch, *, host: str, port: int) -> AsyncIterator[tuple[str, str]]:
    """Serve the gateway by itself while the context lasts; yield its URL and token. Raises Refused, Unavailable."""
    told = replace(gateway_config(settings, SystemClock()), past=store)
    users = Users(settings, watch.tell)
    config = StandaloneConfig(told, host, port, clear(settings.gateway_token), await users.guests())
    async with standalone(config, store.meter) as ready, keeping(settings.home, ready.usage):
        following = asyncio.create_task(follow(users, watch, ready.admit))
        try:
            yield ready.url, ready.token
        finally:
            following.cancel()


def local_providers(settings: Settings, clock: Clock) -> tuple[Provider, ...]:
    """Return the back ends on the user's own machines, best first; none where none is configured."""
    rows = table(settings)
    own = (Ollama(OllamaConfig(settings.ollama_base_url, model=settings.fallback_model, table=rows), clock=clock),)
    return (
        *(own if settings.ollama_base_url else ()),
        *(Compatible(_server(server, settings.fallback_model, rows), clock=clock) for server in settings.servers),
    )


def providers(settings: Settings, clock: Clock) -> tuple[Provider, ...]:
    """Return every provider that is configured, in the order in which they are asked. The caller closes them."""
    keys = (
        settings.anthropic_api_key,
        settings.anthropic_api_key_file,
        settings.anthropic_api_key_keyring,
        settings.anthropic_api_key_vault,
    )
    opened = any(keys) or settings.anthropic_auth_token or settings.anthropic_base_url != DEFAULT_URL
    upstream = (Anthropic(anthropic_config(settings)),) if opened else ()
    return (*upstream, *local_providers(settings, clock))


def connected(home: Path) -> bool:
    """Whether the user has sent everything to the local models. Cheap enough to ask for each request."""
    try:
        said = json.loads(_switch(home).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("connected") is True


def connect(home: Path, *, on: bool) -> None:
    """Send everything to the local models, or back. Takes effect in gateways that run, and lasts until it is taken back."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = _switch(home).with_suffix(".new")
    fresh.write_text(json.dumps({"connected": on}), encoding="utf-8")
    fresh.replace(_switch(home))  # a gateway reads either the old word or the new one


def _server(server: Server, model: str, rows: tuple[Row, ...]) -> CompatibleConfig:
    said = server.model_dump(exclude={"api_key", "model"})
    return CompatibleConfig(**said, model=server.model or model, table=rows, api_key=clear(server.api_key))


def _price(tariff: Tariff) -> Price:
    usual = standard(tariff.input, tariff.output)
    own = {name: value for name, value in tariff.model_dump().items() if value is not None}
    return replace(usual, **own)


def _switch(home: Path) -> Path:
    return home / "fallback.json"
