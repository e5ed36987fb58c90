"""Official clients at the gateway's two ends: Anthropic's SDK in front of the process, Ollama's behind it."""

import json
from collections.abc import Mapping
from typing import Any

import anthropic
import ollama as official
import pytest
from ollama._types import ChatRequest

from claudecluster.testing.ollama import OllamaModel, ScriptedOllama
from claudecluster.testing.ollama_wires import Reply, ToolCall
from claudecluster.testing.scenario import Scenario

TOKEN = "test-token"
MODEL = "claude-sonnet-5"
HOURS = {"status": 429, "headers": {"retry-after": "7200"}, "times": 1000}
TOOLS: Any = [
    {
        "name": "weather",
        "description": "Tell the weather.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "enum": [1, 7]}},
            "required": ["city"],
        },
    }
]
CALL = {"name": "weather", "input": {"city": "Paris"}}


def session(match: str, **turn: Any) -> dict[str, Any]:
    return {"match": match, "turns": [turn]}


def scenario(*sessions: dict[str, Any], **more: Any) -> Scenario:
    return Scenario.model_validate({"sessions": list(sessions), **more})


def sdk(house: Any, token: str = TOKEN) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=house.url, api_key=token, max_retries=0)


def asked(prompt: str, **more: Any) -> Any:
    return {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": prompt}], **more}


async def both(client: anthropic.AsyncAnthropic, body: Any) -> list[Any]:
    """Return the answer that streams, and the one that comes whole."""
    async with client.messages.stream(**body) as stream:
        streamed: Any = await stream.get_final_message()
    return [streamed, await client.messages.create(**body)]


async def test_anthropics_sdk_gets_text_tools_counts_and_models(housed: Any) -> None:
    told = scenario(session("hello", text="Hello."), session("weather", text="I look.", tools=[CALL, CALL]))
    async with housed(told, ScriptedOllama()) as house, sdk(house) as client:
        for message in await both(client, asked("hello")):
            assert (message.content[0].text, message.stop_reason, message.model) == ("Hello.", "end_turn", MODEL)
            assert message.usage.input_tokens > 0
        for message in await both(client, asked("weather?", tools=TOOLS)):
            assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
            assert message.content[1].input == {"city": "Paris"}
            assert message.stop_reason == "tool_use"
        assert (await client.messages.count_tokens(model=MODEL, messages=asked("hello")["messages"])).input_tokens > 0
        assert [model.id async for model in client.models.list()]
        reply = await client.messages.with_raw_response.create(**asked("hello"))
        assert (reply.headers["x-claudecluster-provider"], reply.headers["x-claudecluster-model"]) == ("anthropic", MODEL)
        assert reply.headers["request-id"].startswith("req_")
        assert house.ollama.count() == 0


async def test_anthropics_sdk_goes_through_a_whole_tool_loop_at_the_local_model(housed: Any) -> None:
    def local(body: Mapping[str, Any]) -> Reply:
        if body["messages"][-1]["role"] == "tool":
            return Reply(f"It is {body['messages'][-1]['content']}.")
        return Reply("I look.", [ToolCall("weather", {"city": "Paris"})])

    async with housed(scenario(faults=[HOURS]), ScriptedOllama(local)) as house, sdk(house) as client:
        for message in await both(client, asked("weather?", tools=TOOLS)):
            assert (message.model, message.stop_reason) == ("qwen3-coder:30b", "tool_use")
            use = message.content[1]
            assert (use.name, use.input) == ("weather", {"city": "Paris"})
            body = asked("weather?", tools=TOOLS)
            body["messages"] += [
                {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in message.content]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}]},
            ]
            for end in await both(client, body):
                assert (end.content[0].text, end.stop_reason) == ("It is sunny.", "end_turn")
        assert (await client.messages.count_tokens(model=MODEL, messages=asked("hello")["messages"])).input_tokens > 0
        assert len(house.anthropic.messages) == 1


MISTAKES: dict[str, tuple[int, type[anthropic.APIStatusError]]] = {
    "bad": (400, anthropic.BadRequestError),
    "key": (401, anthropic.AuthenticationError),
    "bill": (402, anthropic.PaymentRequiredError),
    "forbidden": (403, anthropic.PermissionDeniedError),
    "absent": (404, anthropic.NotFoundError),
    "large": (413, anthropic.RequestTooLargeError),
}


async def test_what_the_user_must_mend_reaches_the_sdk_as_its_own_error(housed: Any) -> None:
    told = scenario(*(session(name, faults=[{"status": status, "times": 99}]) for name, (status, _) in MISTAKES.items()))
    async with housed(told, ScriptedOllama()) as house:
        async with sdk(house) as client:
            for name, (status, kind) in MISTAKES.items():
                before = len(house.anthropic.messages)
                with pytest.raises(kind) as caught:
                    await client.messages.create(**asked(name))
                assert caught.value.status_code == status
                assert caught.value.request_id
                with pytest.raises(kind):
                    async with client.messages.stream(**asked(name)) as stream:
                        await stream.get_final_message()
                assert len(house.anthropic.messages) == before + 2
        before = len(house.anthropic.requests)
        async with sdk(house, "wrong") as client:
            with pytest.raises(anthropic.AuthenticationError, match="does not know that token"):
                await client.messages.create(**asked("bad"))
        assert len(house.anthropic.requests) == before
        assert house.ollama.count() == 0


LIMITS: dict[str, tuple[dict[str, Any], type[anthropic.APIStatusError]]] = {
    "429": ({"status": 429, "headers": {"retry-after": "7200"}}, anthropic.RateLimitError),
    "529": ({"status": 529}, anthropic.OverloadedError),
    "500": ({"status": 500}, anthropic.InternalServerError),
}


@pytest.mark.parametrize("row", [pytest.param(row, marks=[] if row == "429" else [pytest.mark.slow]) for row in LIMITS])
async def test_a_failure_with_nobody_to_stand_in_is_the_sdks_own_error(housed: Any, row: str) -> None:
    fault, kind = LIMITS[row]
    async with housed(scenario(faults=[{**fault, "times": 1000}]), ScriptedOllama(), alone=True) as house, sdk(house) as client:
        with pytest.raises(kind) as caught:
            await client.messages.create(**asked("hello"))
        assert caught.value.status_code == int(row)
        if row == "429":
            assert float(caught.value.response.headers["retry-after"]) == pytest.approx(7200, abs=60)
            with pytest.raises(kind):
                await client.messages.create(**asked("hello"))
            assert len(house.anthropic.messages) == 1, "a limit whose end is known is not asked for again"


async def test_cuts_again_and_again_with_nobody_to_stand_in_are_told_after_two_that_were_ended_well(housed: Any) -> None:
    told = scenario(session("hello", text="Hello, this is a long answer.", faults=[{"cut": "mid-text", "times": 99}]))
    headers = {"x-claude-code-session-id": "0b6e6a3c-5f0e-4d0c-9d8c-6a8b7c1f0e55"}
    async with housed(told, ScriptedOllama(), alone=True) as house, sdk(house) as client:
        for _ in range(2):
            async with client.messages.stream(**asked("hello"), extra_headers=headers) as stream:
                assert (await stream.get_final_message()).stop_reason == "max_tokens", "whoever asked may ask for the rest"
        with pytest.raises(anthropic.APIStatusError, match="broke off"):
            async with client.messages.stream(**asked("hello"), extra_headers=headers) as stream:
                await stream.get_final_message()
        assert len(house.anthropic.messages) == 3


async def test_a_prompt_too_long_for_the_local_model_is_the_error_that_claude_code_compacts_on(housed: Any) -> None:
    local = ScriptedOllama(models=(OllamaModel(context_length=4000),))
    async with housed(scenario(faults=[HOURS]), local) as house, sdk(house) as client:
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > \d+ maximum"):
            await client.messages.create(**asked("word " * 20_000))
        assert house.ollama.count() == 0


async def test_ollamas_client_would_send_what_the_gateway_sends(housed: Any) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}}
    body = asked("weather?", tools=TOOLS, system="Be brief.", stop_sequences=["END"], extra_body={"temperature": 0.5})
    body["messages"] = [
        {"role": "user", "content": [{"type": "text", "text": "weather?"}, picture]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}]},
    ]
    model = OllamaModel(capabilities=("completion", "tools", "vision"))
    async with housed(scenario(faults=[HOURS]), ScriptedOllama(models=(model,))) as house:
        async with sdk(house) as client:
            await both(client, body)
        ours = list(house.ollama.bodies())
        assert len(ours) == 2
        client = official.AsyncClient(house.ollama.url)
        for sent in ours:
            extra = set(sent) - set(ChatRequest.model_fields)
            assert extra <= {"truncate", "shift"}, "newer than the client, as the server knows them"
            assert set(sent["options"]) <= set(official.Options.model_fields)
            official.Options.model_validate(sent["options"], strict=True)
            said = ChatRequest.model_validate(sent)
            await client.chat(**{name: getattr(said, name) for name in ("model", "messages", "tools", "options", "keep_alive")})
            theirs = house.ollama.bodies()[-1]
            for name in ("model", "options", "keep_alive"):
                assert theirs[name] == sent[name]
            assert [message["role"] for message in theirs["messages"]] == ["system", "user", "assistant", "tool"]
            assert stripped(theirs["messages"]) == stripped(sent["messages"])
            assert stripped(theirs["tools"]) == stripped(sent["tools"])
        await client._client.aclose()


def stripped(value: Any) -> Any:
    """Return it without what the client's own models have no field for, or leave empty."""
    if isinstance(value, Mapping):
        return {key: stripped(item) for key, item in value.items() if item not in (None, "") and key not in {"id", "tool_call_id", "index"}}
    return [stripped(item) for item in value] if isinstance(value, list) else value


REPLIES = {
    "text": Reply("Hello there, this is long enough for pieces."),
    "thinking": Reply("Hello.", thinking="Let me see."),
    "calls": Reply("I look.", [ToolCall("weather", {"city": "Paris"}), ToolCall("weather", {"city": "Rome", "days": 7})]),
    "length": Reply("Hello", done_reason="length"),
}


@pytest.mark.parametrize("row", REPLIES)
async def test_ollamas_client_reads_every_line_of_the_double(row: str) -> None:
    reply = REPLIES[row]
    model = OllamaModel("qwen3:8b", capabilities=("completion", "tools", "thinking"))
    async with ScriptedOllama([reply, reply], models=(model,)) as server:
        client = official.AsyncClient(server.url)
        prompt: Any = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "hi"}], "think": True}
        chunks = [chunk async for chunk in await client.chat(**prompt, stream=True)]
        whole = await client.chat(**prompt)
        await client._client.aclose()
    assert "".join(chunk.message.content or "" for chunk in chunks) == whole.message.content == reply.text
    assert "".join(chunk.message.thinking or "" for chunk in chunks) == (whole.message.thinking or "") == reply.thinking
    calls = [call.function for chunk in chunks for call in chunk.message.tool_calls or ()]
    assert [(call.name, call.arguments) for call in calls] == [(call.name, call.arguments) for call in reply.calls]
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    for end in (chunks[-1], whole):
        assert end.done_reason == reply.done_reason
        assert None not in (end.prompt_eval_count, end.eval_count, end.total_duration, end.created_at)


FAULTS: dict[str, tuple[Reply, int, str]] = {
    "refused": (Reply(status=500, error="llama runner process has terminated"), 500, "llama runner"),
    "broken in the middle": (Reply("Hello there, friend", error="an error was encountered"), -1, "an error was encountered"),
    "unreadable call": (Reply("Hm.", [ToolCall("weather", '{"city": "Par')]), -1, "error parsing tool call"),
}


@pytest.mark.parametrize("row", FAULTS)
async def test_ollamas_client_raises_its_own_error_at_the_doubles_faults(row: str) -> None:
    reply, status, words = FAULTS[row]
    async with ScriptedOllama([reply]) as server:
        client = official.AsyncClient(server.url)
        with pytest.raises(official.ResponseError, match=words) as caught:
            async for _ in await client.chat("qwen3-coder:30b", [{"role": "user", "content": "hi"}], stream=True):
                pass
        await client._client.aclose()
    assert caught.value.status_code == status
    assert json.dumps(caught.value.error)
