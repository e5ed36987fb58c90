"""A local model that reads its prompt for longer than Claude Code waits in silence: the gateway's pings keep the session alive.

Claude Code's patience is made short here; the same silence without pings shows that it then gives up.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from claudecluster.testing.ollama import ScriptedOllama
from claudecluster.testing.ollama_wires import Reply
from claudecluster.testing.scenario import Scenario

KEY = "sk-ant-real-key-nobody-may-see"
LIMITED = Scenario.model_validate({"faults": [{"status": 429, "headers": {"retry-after": "7200"}, "times": 1000}]})
HEADERS = {"API_TIMEOUT_MS": "4000"}
STREAM = {"CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS": "5000", "CLAUDE_STREAM_FIRST_BYTE_TIMEOUT_MS": "5000"}  # it takes no less than ten seconds
AS_IT_IS = {"CLAUDE_ENABLE_STREAM_WATCHDOG": "0"}  # Claude Code up to 2.1.197 counts no ping as a sign of life; newer ones need nothing

ROWS = {
    # what is cut short: (environment, seconds of prefill)
    "the wait for headers": (HEADERS, 6.0),
    "the wait for the next byte": (STREAM, 25.0),
    "nothing": (AS_IT_IS, 330.0),
}
EVERY_DAY = {"the wait for headers"}


def slow(seconds: float) -> ScriptedOllama:
    return ScriptedOllama(otherwise=Reply("At last.", wait=seconds), default_context=200_000)


@pytest.mark.parametrize("row", [pytest.param(row, marks=[] if row in EVERY_DAY else [pytest.mark.slow]) for row in ROWS])
async def test_a_session_outlives_a_prefill_longer_than_its_patience(housed: Any, row: str) -> None:
    env, seconds = ROWS[row]
    async with housed(LIMITED, slow(seconds)) as house:
        told = await house.claude(env=env, patience=seconds + 90)
        assert (told.code, told.result["is_error"], told.result["result"]) == (0, False, "At last.")
        assert told.result["duration_ms"] > seconds * 1000
        assert told.having("api_retry") == []
        assert house.ollama.count("/api/chat") == 1, "it asked once and waited"
        assert len(house.anthropic.messages) == 1


@pytest.mark.parametrize(("env", "at"), [(HEADERS, "before"), pytest.param(STREAM, "start", marks=pytest.mark.slow)])
async def test_the_same_silence_without_pings_ends_a_session(
    housed: Any, claude_version: tuple[int, ...], env: Mapping[str, str], at: str
) -> None:
    if env is STREAM and claude_version < (2, 1, 327):
        pytest.skip("this Claude Code waits 300 seconds for a byte, whatever it is told")
    silent = Scenario.model_validate({"faults": [{"hang": 25, "at": at, "times": 1000}]})
    async with housed(silent, slow(0)) as house:
        told = await replace(house, url=house.anthropic.url).claude(token=KEY, env={**env, "CLAUDE_CODE_MAX_RETRIES": "0"})
        assert told.result["duration_ms"] < 25_000
        assert told.result["is_error"] or len(house.anthropic.messages) > 1, "it gave up, or asked anew"
