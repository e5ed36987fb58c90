"""`claudecluster gateway` as a process of its own, and the real Claude Code CLI as any user would point it there.

One session with tools before and after a failure: what the user sees, how often Anthropic was asked, and that no tool ran twice.
"""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from claudecluster.testing.ollama import ScriptedOllama
from claudecluster.testing.ollama_wires import Reply, ToolCall
from claudecluster.testing.scenario import Scenario

TOKEN = "test-token"
HOURS = {"status": 429, "headers": {"retry-after": "7200"}}
LOCAL = "The local model has finished it."


def ran(name: str) -> dict[str, str]:
    return {"command": f"echo {name} >> ran", "description": "work"}


def scenario(faults: Sequence[Mapping[str, Any]], at: int = 1) -> Scenario:
    """Return three turns, each with a tool; the faults strike the one numbered `at`."""
    turns: list[dict[str, Any]] = [{"text": f"Step {n}.", "tools": [{"name": "Bash", "input": ran(f"anthropic{n}")}]} for n in range(3)]
    turns.append({"text": "Anthropic has finished it."})
    turns[at]["faults"] = list(faults)
    return Scenario.model_validate({"sessions": [{"match": "do it", "turns": turns, "closing": "Anthropic has finished it."}]})


def local(body: Mapping[str, Any]) -> Reply:
    """Return a call of the tool where the local model has not seen its own result yet, else the end."""
    if "local model looks" in json.dumps(body["messages"]):
        return Reply(LOCAL)
    return Reply("The local model looks.", [ToolCall("Bash", ran("local"))])


LASTING: dict[str, tuple[dict[str, Any], list[str], int]] = {
    # what strikes the second turn, from then on: (fault, tools that ran, most requests to Anthropic)
    "429 for hours": (HOURS, ["anthropic0", "local"], 2),
    "429 for a minute": ({"status": 429, "headers": {"retry-after": "59"}}, ["anthropic0", "local"], 2),
    "429 without a word": ({"status": 429}, ["anthropic0", "local"], 2),
    "429 not to be retried": ({"status": 429, "headers": {"x-should-retry": "false"}}, ["anthropic0", "local"], 2),
    "529": ({"status": 529}, ["anthropic0", "local"], 2),
    "500": ({"status": 500}, ["anthropic0", "local"], 4),
    "502 in HTML": ({"status": 502, "body": "<html>Bad gateway</html>"}, ["anthropic0", "local"], 4),
    "503": ({"status": 503}, ["anthropic0", "local"], 3),
    "504": ({"status": 504}, ["anthropic0", "local"], 4),
    "an error event": ({"sse_error": "overloaded_error", "at": "start"}, ["anthropic0", "local"], 3),
    "a limit as an error event": ({"sse_error": "rate_limit_error", "at": "start"}, ["anthropic0", "local"], 3),
    "a cut before the first byte": ({"cut": "before"}, ["anthropic0", "local"], 5),
    "a cut after message_start": ({"cut": "start"}, ["anthropic0", "local"], 5),
    "a cut in the text": ({"cut": "mid-text"}, ["anthropic0", "local"], 6),
    "a clean end in the text": ({"cut": "mid-text", "clean": True}, ["anthropic0", "local"], 6),
    "a cut after the text": ({"cut": "after-text"}, ["anthropic0", "local"], 6),
    "HTML": ({"garbage": "html"}, ["anthropic0", "local"], 5),
    "bad JSON": ({"garbage": "json"}, ["anthropic0", "local"], 5),
    "an empty 200": ({"garbage": "empty"}, ["anthropic0", "local"], 5),
}


EVERY_DAY = {"429 for hours", "529", "a cut before the first byte", "a cut in the text", "a limit as an error event"}


@pytest.mark.parametrize("row", [pytest.param(row, marks=[] if row in EVERY_DAY else [pytest.mark.slow]) for row in LASTING])
async def test_a_session_with_tools_goes_on_at_the_local_model_and_nothing_is_done_twice(housed: Any, row: str) -> None:
    fault, tools, most = LASTING[row]
    async with housed(scenario([{**fault, "times": 50}]), ScriptedOllama(local)) as house:
        told = await house.claude()
        assert (told.code, told.result["is_error"], told.result["result"]) == (0, False, LOCAL)
        assert told.ran == tools
        assert len(house.anthropic.messages) <= most
        assert [line for line in told.lines if line.get("subtype") == "api_retry"] == [], "the user sees no retry"
        assert len({line["session_id"] for line in told.lines if "session_id" in line}) == 1
        used = await house.page("/usage")
        assert used["total"]["degraded_requests"] == 2
        wanted = told.having("init")[0]["model"].removesuffix("[1m]")
        assert {wanted, "qwen3-coder:30b"} <= set(used["by_model"]), "what answered is named"
        assert len(used["by_session"]) == 1


AFTER: dict[str, dict[str, Any]] = {
    "a cut in the call": {"cut": "mid-tool"},
    "a cut": {"cut": "after-tool"},
    "a clean end": {"cut": "after-tool", "clean": True},
    "a limit": {"sse_error": "rate_limit_error", "at": "after-tool"},
    "an overload": {"sse_error": "overloaded_error", "at": "after-tool"},
}


@pytest.mark.parametrize("row", [pytest.param(row, marks=[] if row == "a cut" else [pytest.mark.slow]) for row in AFTER])
async def test_a_break_at_a_tool_call_keeps_what_the_tool_did(housed: Any, row: str) -> None:
    fault = AFTER[row]
    async with housed(scenario([fault]), ScriptedOllama(local)) as house:
        told = await house.claude()
        assert (told.code, told.result["is_error"]) == (0, False)
        assert told.ran.count("anthropic1") == (fault.get("cut") != "mid-tool"), (
            "a call that came whole is carried out once, half a one never"
        )
        assert len(told.ran) == len(set(told.ran))
        assert len(house.anthropic.messages) <= 5


async def test_a_local_model_stands_in_for_an_anthropic_that_is_gone(housed: Any) -> None:
    async with housed(scenario([]), ScriptedOllama(local)) as house:
        await house.anthropic.stop()
        told = await house.claude()
        assert (told.code, told.result["result"], told.ran) == (0, LOCAL, ["local"])


SHOWN: dict[str, tuple[dict[str, Any], str, int]] = {
    # what strikes the second turn: (fault, what the user reads, most requests to Anthropic)
    "400": ({"status": 400, "message": "your mistake"}, "your mistake", 7),  # the CLI drops one new field after the other by itself
    "401": ({"status": 401}, "401", 3),
    "402": ({"status": 402}, "402", 3),
    "403": ({"status": 403}, "403", 3),
    "404": ({"status": 404}, "model", 3),
    "no credit": ({"status": 400, "message": "Your credit balance is too low to access the API"}, "Credit balance is too low", 3),
}


@pytest.mark.parametrize("row", [pytest.param(row, marks=[] if row == "401" else [pytest.mark.slow]) for row in SHOWN])
async def test_what_only_the_user_can_mend_is_shown_and_not_stood_in_for(housed: Any, row: str) -> None:
    fault, words, most = SHOWN[row]
    async with housed(scenario([{**fault, "times": 50}]), ScriptedOllama(local)) as house:
        told = await house.claude()
        assert (told.code, told.result["is_error"]) == (1, True)
        assert words in told.result["result"]
        assert told.ran == ["anthropic0"]
        assert len(house.anthropic.messages) <= most
        assert house.ollama.count("/api/chat") == 0


async def test_without_a_local_model_a_limit_ends_the_turn_at_once_and_asks_once(housed: Any) -> None:
    async with housed(scenario([{**HOURS, "times": 50}]), ScriptedOllama(local), alone=True) as house:
        told = await house.claude()
        assert (told.code, told.result["is_error"]) == (1, True)
        assert "429" in told.result["result"]
        assert len(house.anthropic.messages) == 2


async def test_a_session_returns_to_anthropic_once_its_limit_has_passed(housed: Any) -> None:
    async with housed(scenario([{"status": 429, "headers": {"retry-after": "2"}}]), ScriptedOllama(local)) as house:
        first = await house.claude("--session-id", "0b6e6a3c-5f0e-4d0c-9d8c-6a8b7c1f0e55")
        assert first.result["result"] == LOCAL
        end = time.monotonic() + 30
        while (await house.page("/health"))["providers"][0]["state"] == "closed":
            assert time.monotonic() < end, "the limit has passed, and still nobody asks Anthropic"
            await asyncio.sleep(0.2)
        asked = len(house.anthropic.messages)
        again = await house.claude("--resume", "0b6e6a3c-5f0e-4d0c-9d8c-6a8b7c1f0e55", prompt="and now?")
        assert (again.code, again.result["is_error"]) == (0, False)
        assert len(house.anthropic.messages) > asked
        assert again.lines[-2]["message"]["model"] != "qwen3-coder:30b"
        assert set((await house.page("/usage"))["by_session"]) == {"0b6e6a3c-5f0e-4d0c-9d8c-6a8b7c1f0e55"}


async def test_headers_of_a_session_keep_it_private_or_refuse_a_stand_in(housed: Any) -> None:
    async with housed(scenario([{**HOURS, "times": 50}], at=0), ScriptedOllama(local)) as house:
        told = await house.claude(headers="x-claudecluster-privacy: local")
        assert (told.result["result"], house.anthropic.messages) == (LOCAL, [])
        told = await house.claude(headers="x-claudecluster-fallback: never")
        assert told.result["is_error"]
        assert "429" in told.result["result"]


async def test_a_wrong_token_reaches_nobody(housed: Any) -> None:
    async with housed(scenario([]), ScriptedOllama(local)) as house:
        for path, token in (("/v1/messages", "no"), ("/v1/models", "no"), ("/usage", "no"), ("/v1/complete", TOKEN)):
            request = urllib.request.Request(house.url + path, data=b"{}" if "m" in path else None, headers={"x-api-key": token})
            with pytest.raises(urllib.error.HTTPError) as caught:
                await asyncio.to_thread(urllib.request.urlopen, request, None, 20)
            assert json.loads(caught.value.read())["type"] == "error"
        assert house.anthropic.requests == []
