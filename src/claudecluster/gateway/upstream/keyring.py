"""The API key from the operating system's keyring. Needs the extra `claudecluster[keyring]`; loaded by name where it is configured."""

import asyncio

import keyring
from keyring.errors import KeyringError

from claudecluster.gateway.upstream.kept import kept
from claudecluster.gateway.upstream.keys import KeySource
from claudecluster.model.errors import Unavailable

MINUTE = 60.0


def from_keyring(service: str = "claudecluster", name: str = "anthropic") -> KeySource:
    """Return a source that reads a password from the keyring, at most once a minute. Unavailable where it cannot be read or is not there."""

    async def read() -> str:
        try:
            key = await asyncio.to_thread(keyring.get_password, service, name)
        except KeyringError as error:
            raise Unavailable(f"The keyring cannot be read: {error}", hint="Unlock it, or give the key in another way.") from error
        if not key:
            raise Unavailable(f"The keyring holds no key {service}/{name}.", hint=f"Store it with `keyring set {service} {name}`.")
        return key

    return kept(read, MINUTE)
