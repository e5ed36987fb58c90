"""The key from Vault or from the system's keyring, named in a configuration file: it reaches Anthropic, and nothing else has it."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import pytest
from aiohttp import web

from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.scenario import Scenario

SECRET = "sk-ant-kept-elsewhere-0123456789"
VAULT_TOKEN = "hvs.only-for-the-gateway"
TOKEN = "test-token"
HELLO: Any = {"model": "claude-sonnet-5", "max_tokens": 10, "messages": [{"role": "user", "content": "hello"}]}

RING = '''
import json, os
from keyring.backend import KeyringBackend


class Keyring(KeyringBackend):
    """Passwords in a file."""

    priority = 1

    def get_password(self, service, username):
        with open(os.environ["TEST_RING_FILE"]) as file:
            return json.load(file).get(service, {}).get(username)

    def set_password(self, service, username, password):
        raise NotImplementedError

    def delete_password(self, service, username):
        raise NotImplementedError
'''


@dataclass
class Vault:
    """The part of Vault that reads a KV store of version 2 (developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2)."""

    url: str = ""
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    sealed: bool = False
    reads: int = 0

    async def read(self, request: web.Request) -> web.Response:
        self.reads += 1
        path = request.match_info["path"]
        if self.sealed:
            return web.json_response({"errors": ["Vault is sealed"]}, status=503)
        if request.headers.get("X-Vault-Token") != VAULT_TOKEN or request.headers.get("X-Vault-Request") != "true":
            return web.json_response({"errors": ["permission denied"]}, status=403)
        if path not in self.secrets:
            return web.json_response({"errors": []}, status=404)
        gone = path in self.deleted
        metadata = {
            "created_time": "2026-01-01T00:00:00.000000000Z",
            "custom_metadata": None,
            "deletion_time": "2026-02-01T00:00:00.000000000Z" if gone else "",
            "destroyed": False,
            "version": 3,
        }
        lease: dict[str, Any] = {"lease_id": "", "renewable": False, "lease_duration": 0, "wrap_info": None, "warnings": None, "auth": None}
        data = {"data": None if gone else self.secrets[path], "metadata": metadata}
        return web.json_response({"request_id": "1", **lease, "data": data, "mount_type": "kv"}, status=404 if gone else 200)


@pytest.fixture
async def vault() -> AsyncIterator[Vault]:
    held = Vault(secrets={"teams/agents": {"anthropic": SECRET}})
    app = web.Application()
    app.router.add_get("/v1/secret/data/{path:.+}", held.read)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    held.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield held
    await runner.cleanup()


@dataclass
class Served:
    """A gateway process whose key is kept elsewhere, and all it ever said."""

    url: str
    upstream: ScriptedAnthropic
    pid: int
    said: list[str] = field(default_factory=list)

    def sdk(self) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(base_url=self.url, api_key=TOKEN, max_retries=0)

    async def pages(self) -> str:
        async with aiohttp.ClientSession() as session:
            texts = []
            for path in ("/health", "/metrics", "/usage"):
                async with session.get(self.url + path) as reply:
                    texts.append(await reply.text())
            return "\n".join(texts)


@asynccontextmanager
async def served(cli: Any, config: Path, env: Mapping[str, str]) -> AsyncIterator[Served]:
    async with ScriptedAnthropic(Scenario.model_validate({"otherwise": "Hello."}), key=SECRET) as upstream:
        with config.open("a") as file:
            file.write(f'anthropic_base_url = "{upstream.url}"\n')
        process = cli.start("gateway", "--config", str(config), env={"CLAUDECLUSTER_GATEWAY_TOKEN": TOKEN, **env})
        line = await asyncio.to_thread(process.stdout.readline)
        assert line, process.stderr.read()
        found = Served(json.loads(line)["url"], upstream, process.pid, [line])
        yield found
        process.send_signal(signal.SIGTERM)
        found.said += await asyncio.to_thread(process.communicate, None, 20)
        assert process.returncode == 0, found.said


def git(at: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=at, check=True, capture_output=True, text=True, timeout=60).stdout


def files(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def test_a_key_in_vault_reaches_anthropic_and_nothing_else(cli: Any, state: Path, tmp_path: Path, vault: Vault) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(f'anthropic_api_key_vault = "secret/teams/agents#anthropic"\nvault_url = "{vault.url}"\n')
    env = {"VAULT_TOKEN": VAULT_TOKEN}
    async with served(cli, config, env) as house, house.sdk() as client:
        for _ in range(3):
            assert (await client.messages.create(**HELLO)).content[0].text == "Hello."
        assert [asked.headers["x-api-key"] for asked in house.upstream.messages] == [SECRET] * 3
        assert vault.reads == 1, "Vault is asked once, and then again in a while"
        seen = await house.pages() + Path(f"/proc/{house.pid}/environ").read_text() + Path(f"/proc/{house.pid}/cmdline").read_text()
        shown = await asyncio.to_thread(
            cli, "config", "show", "--json", env={**env, "ANTHROPIC_API_KEY_VAULT": "secret/teams/agents#anthropic"}
        )
        plain = await asyncio.to_thread(cli, "config", "show", env=env)
        used = await asyncio.to_thread(cli, "usage", "--json", env=env)
    told = seen + "".join(house.said) + shown.out + shown.err + plain.out + plain.err + used.out + used.err
    assert SECRET not in told
    assert VAULT_TOKEN not in told.replace(f"VAULT_TOKEN={VAULT_TOKEN}", ""), "but in the environment, where the user put it"
    assert used.json()["total"]["requests"] == 3
    assert SECRET.encode() not in files(state)
    assert VAULT_TOKEN.encode() not in files(state)


TROUBLE: dict[str, tuple[dict[str, Any], str]] = {
    "sealed": ({"sealed": True}, "sealed"),
    "no such path": ({"secrets": {}}, "secret/teams/agents#anthropic"),
    "deleted": ({"deleted": {"teams/agents"}}, "secret/teams/agents#anthropic"),
    "no such name": ({"secrets": {"teams/agents": {"other": "x"}}}, "holds no secret/teams/agents#anthropic"),
}


@pytest.mark.parametrize("row", [pytest.param(row, marks=[] if row == "deleted" else [pytest.mark.slow]) for row in TROUBLE])
async def test_a_vault_that_does_not_give_the_key_is_told_of_and_anthropic_is_not_asked(
    cli: Any, tmp_path: Path, vault: Vault, row: str
) -> None:
    trouble, words = TROUBLE[row]
    config = tmp_path / "gateway.toml"
    config.write_text(f'anthropic_api_key_vault = "secret/teams/agents#anthropic"\nvault_url = "{vault.url}"\n')
    for name, value in trouble.items():
        setattr(vault, name, value)
    async with served(cli, config, {"VAULT_TOKEN": VAULT_TOKEN}) as house, house.sdk() as client:
        with pytest.raises(anthropic.AuthenticationError, match=words):
            await client.messages.create(**HELLO)
        assert house.upstream.requests == []
        vault.sealed, vault.deleted, vault.secrets = False, set(), {"teams/agents": {"anthropic": SECRET}}
        assert (await client.messages.create(**HELLO)).content[0].text == "Hello.", "it is asked again, and now it gives"


async def test_a_key_in_the_keyring_reaches_anthropic_and_nothing_else(cli: Any, state: Path, tmp_path: Path) -> None:
    backend = tmp_path / "python"
    backend.mkdir()
    (backend / "ring_of_the_test.py").write_text(RING)
    (tmp_path / "ring.json").write_text(json.dumps({"agents": {"anthropic": SECRET}}))
    config = tmp_path / "gateway.toml"
    config.write_text('anthropic_api_key_keyring = "agents/anthropic"\n')
    env = {
        "PYTHON_KEYRING_BACKEND": "ring_of_the_test.Keyring",
        "PYTHONPATH": os.pathsep.join([str(backend), os.environ.get("PYTHONPATH", "")]),
        "TEST_RING_FILE": str(tmp_path / "ring.json"),
    }
    async with served(cli, config, env) as house, house.sdk() as client:
        assert (await client.messages.create(**HELLO)).content[0].text == "Hello."
        assert [asked.headers["x-api-key"] for asked in house.upstream.messages] == [SECRET]
        seen = await house.pages()
        shown = await asyncio.to_thread(cli, "config", "show", "--json", env={**env, "ANTHROPIC_API_KEY_KEYRING": "agents/anthropic"})
        assert shown.code == 0
    assert SECRET not in seen + "".join(house.said) + shown.out + shown.err
    assert SECRET.encode() not in files(state)


async def test_a_run_takes_its_key_from_vault_and_no_agent_log_or_file_has_it(
    cli: Any, state: Path, repo: Path, task_file: Any, vault: Vault
) -> None:
    look = {
        "name": "Bash",
        "input": {"command": "env > seen.txt; cat /proc/*/environ >> seen.txt 2>/dev/null; true", "description": "look"},
    }
    told = {"sessions": [{"match": "Look around", "turns": [{"text": "I look.", "tools": [look]}, {"text": "Done."}]}]}
    tasks = task_file([{"id": "look", "prompt": "Look around.", "gates": [{"name": "seen", "run": "test -s seen.txt"}]}])
    async with ScriptedAnthropic(Scenario.model_validate(told), key=SECRET) as upstream:
        state.mkdir()
        (state / "config.toml").write_text(
            f'anthropic_base_url = "{upstream.url}"\nanthropic_api_key_vault = "secret/teams/agents#anthropic"\nvault_url = "{vault.url}"\n'
        )
        env = {"VAULT_TOKEN": VAULT_TOKEN}
        done = await asyncio.to_thread(cli, "run", "--tasks", str(tasks), "--json", cwd=repo, env=env)
        assert done.code == 0, done.err
        assert {asked.headers["x-api-key"] for asked in upstream.messages} == {SECRET}
        logs = await asyncio.to_thread(cli, "logs", done.json()["run"], cwd=repo, env=env)
        assert "I look." in logs.out
    seen = git(repo, "show", f"{done.json()['branch']}:seen.txt")
    assert "ANTHROPIC_BASE_URL=" in seen, "what the agent could see"
    for secret in (SECRET, VAULT_TOKEN):
        assert secret not in done.out + done.err + logs.out + logs.err + seen
        assert secret.encode() not in files(state)
        assert secret.encode() not in files(repo)
