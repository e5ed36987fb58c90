"""The API key from HashiCorp Vault, by hvac. Needs the extra `claudecluster[vault]`; loaded by name where it is configured."""

import asyncio
from dataclasses import dataclass, field

import hvac
from hvac.exceptions import VaultError

from claudecluster.gateway.upstream.kept import kept
from claudecluster.gateway.upstream.keys import KeySource
from claudecluster.model.errors import Unavailable


@dataclass(frozen=True, slots=True)
class VaultConfig:
    """Where the key is: `path` below `mount` (a KV store, version 2), under `name`. It is read again after `seconds`."""

    url: str
    token: str = field(repr=False)
    path: str = "claudecluster"
    name: str = "anthropic_api_key"
    mount: str = "secret"
    seconds: float = 300.0


def from_vault(config: VaultConfig) -> KeySource:
    """Return a source that reads Vault. Unavailable where it cannot be read or holds no such key."""
    where = f"{config.mount}/{config.path}#{config.name}"

    def ask() -> object:
        client = hvac.Client(url=config.url, token=config.token, timeout=10)
        answer = client.secrets.kv.v2.read_secret_version(path=config.path, mount_point=config.mount, raise_on_deleted_version=True)
        return answer["data"]["data"].get(config.name)

    async def read() -> str:
        try:
            key = await asyncio.to_thread(ask)
        except (VaultError, OSError, KeyError, TypeError) as error:
            raise Unavailable(
                f"Vault did not give {where}: {error or type(error).__name__}", hint="Check its address, token and path."
            ) from error
        if not isinstance(key, str) or not key:
            raise Unavailable(f"Vault holds no {where}.", hint="Write the key there, or name another path.")
        return key

    return kept(read, config.seconds)
