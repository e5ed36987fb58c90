"""Access to models as configured: the providers, the gateway's configuration, and the switch by which a user sends everything to local models.

Called by the doors and by whoever wires a gateway. The switch is a file in the state folder, so that it reaches gateways that run.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from claudecluster.assembly.models.standing import keeping
from claudecluster.assembly.settings import Settings
from claudecluster.gateway.core import GatewayConfig
from claudecluster.gateway.local.ollama import Ollama, OllamaConfig
from claudecluster.gateway.provider import Provider
from claudecluster.gateway.routing.policy import Fallback
from claudecluster.gateway.standalone import StandaloneConfig, standalone
from claudecluster.gateway.upstream.anthropic import DEFAULT_URL, Anthropic, AnthropicConfig
from claudecluster.gateway.upstream.keys import fixed
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.ports.gateway import Meter

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
        key=fixed(_clear(settings.anthropic_api_key)),
        auth_token=fixed(_clear(settings.anthropic_auth_token)),
    )


def gateway_config(settings: Settings, clock: Clock, *, record: Path | None = None, replay: Path | None = None) -> GatewayConfig:
    """Return all a gateway is told, wherever its doors are. `record` and `replay` are cassettes."""
    return GatewayConfig(
        sockets=settings.home / "sockets",
        anthropic=anthropic_config(settings),
        local=local_providers(settings, clock),
        fallback=Fallback(settings.fallback_mode, settings.fallback_threshold / 100),
        connected=partial(connected, settings.home),
        tier=TIERS.get(settings.subscription_tier, settings.subscription_tier),
        record=record,
        replay=replay,
        clock=clock,
    )


@asynccontextmanager
async def gateway(settings: Settings, meter: Meter, *, host: str, port: int) -> AsyncIterator[tuple[str, str]]:
    """Serve the gateway by itself while the context lasts; yield its URL and token. Raises Unavailable."""
    told = gateway_config(settings, SystemClock())
    async with (
        standalone(StandaloneConfig(told, host, port, _clear(settings.gateway_token)), meter) as ready,
        keeping(settings.home, ready.usage),
    ):
        yield ready.url, ready.token


def local_providers(settings: Settings, clock: Clock) -> tuple[Provider, ...]:
    """Return the back ends on the user's own machines, best first; none where none is configured."""
    if not settings.ollama_base_url:
        return ()
    return (Ollama(OllamaConfig(urls=settings.ollama_base_url, model=settings.fallback_model), clock=clock),)


def providers(settings: Settings, clock: Clock) -> tuple[Provider, ...]:
    """Return every provider that is configured, in the order in which they are asked. The caller closes them."""
    opened = settings.anthropic_api_key or settings.anthropic_auth_token or settings.anthropic_base_url != DEFAULT_URL
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


def _clear(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""


def _switch(home: Path) -> Path:
    return home / "fallback.json"
