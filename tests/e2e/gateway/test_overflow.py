"""A local model whose window is too small for the session: Claude Code compacts by itself and goes on, with tools before and after."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from claudecluster.testing.ollama import OllamaModel, ScriptedOllama
from claudecluster.testing.ollama_wires import Reply, ToolCall
from claudecluster.testing.scenario import Scenario

LIMIT = {"status": 429, "headers": {"retry-after": "7200"}, "times": 1000}
SMALL = OllamaModel(context_length=18_000)
FEW = ("--tools", "Bash")  # the same small prompt from every version of Claude Code
SUMMARY = "<summary>The user wants it done; a long list of numbers was printed.</summary>"


def bash(command: str) -> dict[str, str]:
    return {"command": command, "description": "work"}


def says(body: Mapping[str, Any], words: str) -> bool:
    return words in json.dumps(body["messages"], ensure_ascii=False)


def local(body: Mapping[str, Any]) -> Reply:
    """Summarise when asked to; then one more tool, and the end."""
    last = str(body["messages"][-1]["content"])
    if "<summary>" in last and "<analysis>" in last:
        return Reply(SUMMARY)
    if says(body, "The local model looks."):
        return Reply("The local model has finished it.")
    return Reply("The local model looks.", [ToolCall("Bash", bash("echo local >> ran"))])


def prints(lines: int, *, limited_at: int) -> Scenario:
    """Return a session that prints much with its first tool; Anthropic is limited from a turn on."""
    turns: list[dict[str, Any]] = [
        {"text": "Step 0.", "tools": [{"name": "Bash", "input": bash(f"echo anthropic0 >> ran; seq 1 {lines}")}]},
        {"text": "Step 1.", "tools": [{"name": "Bash", "input": bash(f"echo anthropic1 >> ran; seq 1 {lines}")}]},
        {"text": "Anthropic has finished it."},
    ]
    turns[limited_at]["faults"] = [LIMIT]
    return Scenario.model_validate({"sessions": [{"match": "do it", "turns": turns}]})


async def test_a_session_too_long_for_its_stand_in_is_compacted_and_goes_on_with_its_tools(housed: Any) -> None:
    async with housed(prints(6000, limited_at=2), ScriptedOllama(local, models=(SMALL,))) as house:
        told = await house.claude(*FEW)
        assert (told.code, told.result["is_error"], told.result["result"]) == (0, False, "The local model has finished it.")
        assert [line["compact_metadata"]["trigger"] for line in told.having("compact_boundary")] == ["auto"]
        assert told.ran == ["anthropic0", "anthropic1", "local"]
        assert len({line["session_id"] for line in told.lines if "session_id" in line}) == 1
        assert not any(seen.truncated for seen in house.ollama.seen), "nothing is cut silently"
        assert all(body["options"]["num_ctx"] <= SMALL.context_length for body in house.ollama.bodies())


async def test_a_first_prompt_that_cannot_fit_is_said_to_be_too_long(housed: Any) -> None:
    async with housed(prints(1, limited_at=0), ScriptedOllama(local, models=(OllamaModel(context_length=8_000),))) as house:
        told = await house.claude(prompt="do it: " + "many words " * 5_000)
        assert (told.code, told.result["is_error"]) == (1, True)
        assert "too long" in told.result["result"]
        assert house.ollama.count("/api/chat") == 0


@pytest.mark.slow
async def test_a_session_that_outgrows_its_stand_in_again_is_compacted_again(housed: Any) -> None:
    def prints_on(body: Mapping[str, Any]) -> Reply:
        last = str(body["messages"][-1]["content"])
        if "<summary>" in last and "<analysis>" in last:
            return Reply(SUMMARY)
        asked = [part for part in ("do it", "part two", "part three", "part four") if last.endswith(part)]
        if not asked:
            return Reply("Printed.")
        return Reply("Printing.", [ToolCall("Bash", bash(f"echo {asked[0].split()[-1]} >> ran; seq 1 5000"))])

    async with housed(prints(1, limited_at=0), ScriptedOllama(prints_on, models=(SMALL,))) as house:
        told = await house.claude(*FEW, then=("part two", "part three", "part four"))
        results = [line for line in told.lines if line["type"] == "result"]
        assert [(line["is_error"], line["result"]) for line in results] == [(False, "Printed.")] * 4
        assert len(told.having("compact_boundary")) >= 2
        assert len(told.ran) == len(set(told.ran)) >= 3, "none twice; a turn that began with a summary may need none"
        assert not any(seen.truncated for seen in house.ollama.seen)
