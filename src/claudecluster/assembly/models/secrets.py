"""Where a secret is kept, as configured, made a source of it: a value, a file, the keyring or Vault. Called by `access.py` and `users.py`."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import cast

from pydantic import SecretStr

from claudecluster.assembly.settings import Settings
from claudecluster.gateway.upstream.keys import KeySource, fixed, from_file
from claudecluster.model.errors import Refused


@dataclass(frozen=True, slots=True)
class Reference:
    """The places a secret may be in; the first that is given counts. `keyring` is SERVICE/NAME, `vault` is MOUNT/PATH#NAME."""

    value: SecretStr | None = None
    file: Path | None = None
    keyring: str = ""
    vault: str = ""

    def source(self, settings: Settings) -> KeySource:
        """Return where it comes from; nothing given gives nothing. Raises Refused if a package is missing."""
        if self.value is not None:
            return fixed(clear(self.value))
        if self.file is not None:
            return from_file(self.file)
        if self.keyring:
            service, _, name = self.keyring.partition("/")
            return cast("KeySource", _extra("keyring").from_keyring(service, name))
        if self.vault:
            vault = _extra("vault")
            where, _, name = self.vault.partition("#")
            mount, _, path = where.partition("/")
            return cast(
                "KeySource", vault.from_vault(vault.VaultConfig(settings.vault_url, clear(settings.vault_token), path, name, mount))
            )
        return fixed("")


def clear(secret: SecretStr | None) -> str:
    """Return a secret's text; empty where there is none."""
    return secret.get_secret_value() if secret else ""


def _extra(name: str) -> ModuleType:
    try:
        return import_module(f"claudecluster.gateway.upstream.{name}")
    except ImportError as error:
        raise Refused(
            f"a secret is to come from {name}, but {error.name} is not installed", hint=f"pip install 'claudecluster[{name}]'"
        ) from None
