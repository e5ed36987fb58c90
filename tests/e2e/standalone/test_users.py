"""Users of the gateway command: each with a token and a budget of their own, taken off the list while it runs."""

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.scenario import Scenario

USERS = """
[users.ada]
token_file = "{folder}/ada.token"
[users.bob]
token_env = "TOKEN_OF_BOB"
[users.eve]
token = "token-of-eve"
budget_tokens = 1
"""


def configured(folder: Path, text: str = USERS) -> Path:
    (folder / "ada.token").write_text("token-of-ada\n")
    file = folder / "users.toml"
    fresh = folder / "users.new"
    fresh.write_text(text.format(folder=folder))
    fresh.replace(file)
    return file


async def until(status: int, asked: Callable[[], Awaitable[tuple[int, Any, Any]]]) -> tuple[int, Any, Any]:
    """Ask until the status is that."""
    end = time.monotonic() + 20
    while (answer := await asked())[0] != status:
        assert time.monotonic() < end, answer
        await asyncio.sleep(0.1)
    return answer


async def test_each_user_is_known_by_their_own_token_and_metered_apart(serving: Any, upstream: ScriptedAnthropic, tmp_path: Path) -> None:
    file = configured(tmp_path)
    async with serving(upstream.url, "--config", str(file), TOKEN_OF_BOB="token-of-bob") as gateway:
        for token in ("token-of-ada", "token-of-ada", "token-of-bob"):
            assert (await gateway.ask(token, **{"x-claudecluster-user": "somebody-else"}))[0] == 200
        asked = len(upstream.requests)
        for token in ("token-of-nobody", "token-of-ad", "", "token-of-adax"):
            status, body, _ = await gateway.ask(token)
            assert (status, body["type"], body["error"]["type"]) == (401, "error", "authentication_error")
        assert len(upstream.requests) == asked
        _, document = await gateway.page("/usage")
        assert {name: used["requests"] for name, used in document["by_user"].items()} == {"ada": 2, "bob": 1}
        assert document["by_user"]["ada"]["input_tokens"] == 2 * document["by_user"]["bob"]["input_tokens"] > 0
        _, own = await gateway.page("/usage", "token-of-bob")
        assert (set(own["by_user"]), own["total"]["requests"], own["by_session"]) == ({"bob"}, 1, {})


async def test_a_users_own_budget_stops_that_user_alone(serving: Any, upstream: ScriptedAnthropic, tmp_path: Path) -> None:
    async with serving(upstream.url, "--config", str(configured(tmp_path)), TOKEN_OF_BOB="token-of-bob") as gateway:
        assert (await gateway.ask("token-of-eve"))[0] == 200
        status, body, headers = await gateway.ask("token-of-eve")
        assert (status, body["error"]["type"], headers["x-should-retry"]) == (402, "billing_error", "false")
        assert "This user has used its budget of 1 tokens" in body["error"]["message"]
        assert (await gateway.ask("token-of-bob"))[0] == 200
    assert len(upstream.messages) == 2


async def test_a_user_who_is_taken_off_the_list_is_refused_while_the_gateway_runs(
    serving: Any, upstream: ScriptedAnthropic, tmp_path: Path
) -> None:
    file = configured(tmp_path)
    env = {"TOKEN_OF_BOB": "token-of-bob"}
    async with serving(upstream.url, "--config", str(file), **env) as gateway:
        assert (await gateway.ask("token-of-ada"))[0] == 200
        (tmp_path / "ada.token").write_text("ada-has-a-new-token\n")
        _, body, _ = await until(401, lambda: gateway.ask("token-of-ada"))
        assert body["error"]["type"] == "authentication_error"
        assert (await gateway.ask("ada-has-a-new-token"))[0] == 200
        (tmp_path / "ada.token").unlink()
        await until(401, lambda: gateway.ask("ada-has-a-new-token"))
        assert "the user ada has no token" in await gateway.say("ada")

        file.write_text("users = nonsense")  # what cannot be read changes nothing
        assert "the list of users stays as it was" in await gateway.say("stays")
        assert (await gateway.ask("token-of-bob"))[0] == 200
        configured(tmp_path, USERS + "[users.dan]\ntoken = 'token-of-dan'\n")
        gateway.process.send_signal(signal.SIGHUP)
        await until(200, lambda: gateway.ask("token-of-dan"))
        configured(tmp_path, "[users.ada]\nrevoked = true\ntoken_file = '{folder}/ada.token'\n")
        for token in ("token-of-bob", "token-of-dan", "token-of-ada", "token-of-eve"):
            await until(401, lambda token=token: gateway.ask(token))
        assert (await gateway.ask())[0] == 200, "the owner's own token stays"
    async with serving(upstream.url, "--config", str(file), **env) as gateway:
        assert (await gateway.ask("token-of-bob"))[0] == 401


async def test_a_user_gets_no_more_requests_at_once_than_theirs(serving: Any, tmp_path: Path) -> None:
    slow = ScriptedAnthropic(upstream_of(delay=0.3), key="sk-ant-real-key-nobody-may-see", pace=1.0)
    users = json.dumps({"ada": {"token": "token-of-ada", "at_once": 1}, "bob": {"token": "token-of-bob"}})
    async with slow, serving(slow.url, CLAUDECLUSTER_USERS=users) as gateway:
        began = time.monotonic()
        answers = await asyncio.gather(*(gateway.ask("token-of-ada") for _ in range(4)))
        assert [status for status, _, _ in answers] == [200] * 4
        assert time.monotonic() - began >= 4 * 0.3, "one after another"


def upstream_of(delay: float) -> Scenario:
    return Scenario.model_validate({"sessions": [{"match": "hello", "turns": [{"text": "Hello.", "delay": delay}]}]})


def test_config_show_tells_no_token(cli: Any, state: Path, tmp_path: Path) -> None:
    state.mkdir()
    configured(tmp_path).rename(state / "config.toml")
    answer = cli("config", "show", "--json", env={"TOKEN_OF_BOB": "token-of-bob"})
    assert answer.code == 0, answer.err
    plain = cli("config", "show", env={"TOKEN_OF_BOB": "token-of-bob"})
    for said in (answer.out, plain.out):
        assert "users" in said
        assert "token-of" not in said
    assert "TOKEN_OF_BOB" in answer.out
    missing = cli("config", "show")
    assert (missing.code, "TOKEN_OF_BOB, which is not set" in missing.err) == (2, True)
