"""What else Anthropic may say or fail to say in the middle of a session of the real Claude Code: what passes as it is, and what the gateway takes over.

The rows of limits, cuts and refusals are in `test_session.py`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from claudecluster.testing.ollama import ScriptedOllama
from claudecluster.testing.ollama_wires import Reply, ToolCall
from claudecluster.testing.scenario import Scenario

TOKEN = "test-token"
LOCAL = "The local model has finished it."
DONE = "Anthropic has finished it."


def ran(name: str) -> dict[str, str]:
    return {"command": f"echo {name} >> ran", "description": "work"}


def scenario(faults: Sequence[Mapping[str, Any]] = (), at: int = 1, **turn: Any) -> Scenario:
    """Return two turns with a tool each and an end; the faults strike the one numbered `at`, which is changed by what is given."""
    turns: list[dict[str, Any]] = [{"text": f"Step {n}.", "tools": [{"name": "Bash", "input": ran(f"anthropic{n}")}]} for n in range(2)]
    turns.append({"text": DONE})
    turns[at] = {**turns[at], "faults": list(faults), **turn}
    return Scenario.model_validate({"sessions": [{"match": "do it", "turns": turns, "closing": DONE}], "otherwise": DONE})


def local(body: Mapping[str, Any]) -> Reply:
    if "local model looks" in json.dumps(body["messages"]):
        return Reply(LOCAL)
    return Reply("The local model looks.", [ToolCall("Bash", ran("local"))])


def unified(status: str, used: float) -> dict[str, str]:
    name = "anthropic-ratelimit-unified"
    return {
        f"{name}-status": status,
        f"{name}-representative-claim": "five_hour",
        f"{name}-reset": "4102444800",
        f"{name}-5h-status": status,
        f"{name}-5h-utilization": str(used),
        f"{name}-5h-reset": "4102444800",
    }


WORDS = "messages.1.content.0: Invalid `signature` in `thinking` block"
OVER: dict[str, tuple[list[dict[str, Any]], list[str], int]] = {
    # what strikes the second turn, from then on: (faults, tools that ran, most requests to Anthropic)
    "429 that the client would wait for": ([{"status": 429, "headers": {"retry-after": "45"}, "times": 99}], ["anthropic0", "local"], 2),
    "429 that it would not wait for": ([{"status": 429, "headers": {"retry-after": "120"}, "times": 99}], ["anthropic0", "local"], 2),
    "the five hours are used up": ([{"status": 429, "headers": unified("rejected", 1.0), "times": 99}], ["anthropic0", "local"], 2),
    "an error event in the text": ([{"sse_error": "api_error", "at": "mid-text", "times": 99}], ["anthropic0", "local"], 6),
    "an error event after the text": ([{"sse_error": "overloaded_error", "at": "after-text", "times": 99}], ["anthropic0", "local"], 6),
}
NOW = {"the five hours are used up"}


@pytest.mark.parametrize("row", [pytest.param(row, marks=[] if row in NOW else [pytest.mark.slow]) for row in OVER])
async def test_a_session_goes_on_at_the_local_model_and_nothing_is_done_twice(housed: Any, row: str) -> None:
    faults, tools, most = OVER[row]
    async with housed(scenario(faults), ScriptedOllama(local)) as house:
        told = await house.claude()
        assert (told.code, told.result["is_error"], told.result["result"]) == (0, False, LOCAL)
        assert told.ran == tools
        assert told.having("api_retry") == []
        assert len(house.anthropic.messages) <= most


async def test_traffic_moves_over_before_the_limit_is_hit(housed: Any) -> None:
    near = scenario(at=0, headers=unified("allowed_warning", 0.85))
    async with housed(near, ScriptedOllama(local)) as house:
        told = await house.claude()
        assert (told.code, told.result["result"], told.ran) == (0, LOCAL, ["anthropic0", "local"])
        assert len(house.anthropic.messages) == 1, "85 per cent are used, the threshold is 80"


MENDED: dict[str, tuple[dict[str, Any], int]] = {
    # what strikes the third turn once, and Claude Code mends by itself: (fault, requests to Anthropic)
    "a signature it does not know": ({"status": 400, "message": WORDS}, 4),
    "a prompt that is too long": ({"status": 400, "message": "prompt is too long: 250000 tokens > 200000 maximum"}, 5),
}


@pytest.mark.parametrize("row", MENDED)
async def test_what_claude_code_mends_by_itself_reaches_it_as_it_is(housed: Any, row: str) -> None:
    fault, requests = MENDED[row]
    thoughtful = scenario([fault], at=2)  # 2.1.197 compacts nothing shorter
    turns = [turn.model_copy(update={"thinking": "Let me think."}) for turn in thoughtful.sessions[0].turns]
    session = thoughtful.sessions[0].model_copy(update={"turns": tuple(turns)})
    async with housed(thoughtful.model_copy(update={"sessions": (session,)}), ScriptedOllama(local)) as house:
        told = await house.claude()
        assert (told.code, told.result["is_error"], told.result["result"]) == (0, False, DONE)
        assert len(told.ran) == len(set(told.ran))
        assert len(house.anthropic.messages) <= requests
        assert house.ollama.count() == 0
        assert bool(told.having("compact_boundary")) is ("long" in row)
        struck, mended = [json.dumps(asked.body["messages"]) for asked in house.anthropic.messages[2:4]]
        assert '"thinking"' in struck, "what was thought comes back to Anthropic as it was"
        assert '"thinking"' not in mended or "long" in row


SHOWN: dict[str, tuple[dict[str, Any], str, int]] = {
    # what strikes the second turn: (fault, what the user reads, most requests to Anthropic)
    "413": ({"status": 413}, "too large", 4),
    "a limit of spending": ({"status": 429, "message": "You have reached your specified API usage limits."}, LOCAL, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", SHOWN)
async def test_what_the_user_reads(housed: Any, row: str) -> None:
    fault, words, most = SHOWN[row]
    async with housed(scenario([{**fault, "times": 99}]), ScriptedOllama(local)) as house:
        told = await house.claude()
        assert words.lower() in told.result["result"].lower()
        assert told.ran[0] == "anthropic0"
        assert len(told.ran) == len(set(told.ran))
        assert len(house.anthropic.messages) <= most


STOPS: dict[str, tuple[dict[str, Any], str]] = {
    # how the second turn ends by itself: (changes of the turn, what the user reads)
    "max_tokens": ({"stop_reason": "max_tokens", "tools": []}, DONE),
    "pause_turn": ({"stop_reason": "pause_turn", "tools": []}, "Step 1."),
    "refusal": ({"stop_reason": "refusal", "tools": []}, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", STOPS)
async def test_an_answers_own_end_is_no_failure(housed: Any, row: str) -> None:
    change, words = STOPS[row]
    async with housed(scenario(**change), ScriptedOllama(local)) as house:
        told = await house.claude()
        assert words in told.result["result"], told.result
        assert house.ollama.count() == 0


ALONE: dict[str, tuple[dict[str, Any], str, int]] = {
    # what strikes the second turn with nobody to stand in: (fault, what the user reads, most requests to Anthropic)
    "the five hours are used up": ({"status": 429, "headers": unified("rejected", 1.0)}, "429", 2),
    "500": ({"status": 500}, "500", 6),
    "a cut in the text": ({"cut": "mid-text"}, "broke off", 12),
    "bad JSON": ({"garbage": "json"}, "", 12),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", ALONE)
async def test_with_nobody_to_stand_in_the_session_ends_in_words_and_few_requests(housed: Any, row: str) -> None:
    fault, words, most = ALONE[row]
    async with housed(scenario([{**fault, "times": 999}]), ScriptedOllama(local), alone=True) as house:
        told = await house.claude(env={"CLAUDE_CODE_MAX_RETRIES": "1"})
        assert (told.code, told.result["is_error"]) == (1, True), told.result
        assert words in told.result["result"]
        assert told.ran == ["anthropic0"]
        assert len(house.anthropic.messages) <= most
