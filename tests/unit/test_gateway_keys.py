"""Where the real key comes from: a file, the keyring, Vault; and what happens when it cannot be read."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import keyring
import pytest
from aiohttp import web
from keyring.backend import KeyringBackend

from claudecluster.gateway.upstream.kept import kept
from claudecluster.gateway.upstream.keyring import from_keyring
from claudecluster.gateway.upstream.keys import fixed, from_file
from claudecluster.gateway.upstream.vault import VaultConfig, from_vault
from claudecluster.model.errors import Unavailable


class Ticks:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class Ring(KeyringBackend):
    """A keyring in memory."""

    priority = 1.0  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.held[service, username]


@pytest.fixture
def ring() -> Iterator[Ring]:
    before, mine = keyring.get_keyring(), Ring()
    keyring.set_keyring(mine)
    yield mine
    keyring.set_keyring(before)


@pytest.fixture
async def vault() -> AsyncIterator[str]:
    async def read(request: web.Request) -> web.Response:
        if request.headers.get("X-Vault-Token") != "root":
            return web.json_response({"errors": ["permission denied"]}, status=403)
        return web.json_response({"data": {"data": {"anthropic_api_key": "sk-vault"}, "metadata": {}}})

    app = web.Application()
    app.router.add_get("/v1/secret/data/claudecluster", read)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_key_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-one\nrest\n")
    source = from_file(path)
    assert await source() == "sk-one"
    path.write_text("sk-two\n")
    os.utime(path, ns=(1, 1))
    assert await source() == "sk-two"
    path.unlink()
    with pytest.raises(Unavailable, match="cannot be read"):
        await source()


async def test_the_keyring_gives_the_key_or_says_how_to_store_it(ring: Ring) -> None:
    with pytest.raises(Unavailable) as caught:
        await from_keyring()()
    assert "keyring set claudecluster anthropic" in caught.value.hint
    ring.set_password("claudecluster", "anthropic", "sk-ring")
    assert await from_keyring()() == "sk-ring"


async def test_vault_gives_the_key_to_who_may_read_it(vault: str) -> None:
    assert await from_vault(VaultConfig(vault, "root"))() == "sk-vault"
    with pytest.raises(Unavailable, match="Vault did not give secret/claudecluster"):
        await from_vault(VaultConfig(vault, "nobody"))()
    with pytest.raises(Unavailable, match="holds no"):
        await from_vault(VaultConfig(vault, "root", name="other"))()
    with pytest.raises(Unavailable, match="did not give"):
        await from_vault(VaultConfig("http://127.0.0.1:9", "root"))()


async def test_a_key_once_read_serves_on_while_its_source_is_away() -> None:
    clock, reads = Ticks(), 0

    async def read() -> str:
        nonlocal reads
        reads += 1
        if reads == 2:
            raise Unavailable("away")
        return f"key{reads}"

    source = kept(read, 60, clock)
    assert await asyncio.gather(source(), source(), source()) == ["key1"] * 3
    assert reads == 1
    clock.time = 61
    assert await source() == "key1"
    clock.time = 122
    assert await source() == "key3"


async def test_no_key_is_an_empty_one() -> None:
    assert await fixed("")() == ""
