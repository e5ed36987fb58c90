"""The scripted server speaks Anthropic's wire: the official SDK reads it, and every fault looks as it does in the wild."""

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import pytest
from anthropic import AsyncAnthropic

from claudecluster.testing.anthropic import ScriptedAnthropic
from claudecluster.testing.scenario import Fault, Pace, Scenario, Session, Tokens, Tool, Turn

ASK: dict[str, Any] = {"model": "claude-opus-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "the work"}]}
TURN = Turn(text="Some words before the tool, enough of them for three pieces.", tools=(Tool(name="Read", input={"file_path": "/a"}),))


def server(*faults: Fault, turn: Turn = TURN, **settings: Any) -> ScriptedAnthropic:
    session = Session(match="the work", turns=(turn.model_copy(update={"faults": faults}),))
    return ScriptedAnthropic(Scenario(sessions=(session,), **settings), key="right")


@pytest.fixture
async def served() -> AsyncIterator[ScriptedAnthropic]:
    async with server(headers={"anthropic-ratelimit-unified-status": "allowed"}) as model:
        yield model


def client(model: ScriptedAnthropic, key: str = "right") -> AsyncAnthropic:
    return AsyncAnthropic(base_url=model.url, api_key=key, max_retries=0)


async def stream(model: ScriptedAnthropic) -> bytes:
    headers = {"x-api-key": "right", "anthropic-version": "2023-06-01"}
    body = bytearray()
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{model.url}/v1/messages", json={**ASK, "stream": True}, headers=headers) as response,
    ):
        try:
            async for piece in response.content.iter_any():
                body += piece
        except aiohttp.ClientError:
            body += b"<cut>"
    return bytes(body)


async def test_the_sdk_reads_a_stream_and_a_whole_message_alike(served: ScriptedAnthropic) -> None:
    async with client(served) as sdk:
        async with sdk.messages.stream(**ASK) as streaming:
            streamed = await streaming.get_final_message()
        whole = await sdk.messages.create(**ASK)
    for message in (streamed, whole):
        assert [block.type for block in message.content] == ["text", "tool_use"]
        assert message.stop_reason == "tool_use"
        assert message.content[1].input == {"file_path": "/a"}  # type: ignore[union-attr]
    assert [block.model_dump(include={"type", "text", "name", "id"}) for block in streamed.content] == [
        block.model_dump(include={"type", "text", "name", "id"}) for block in whole.content
    ]
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert streamed.id != whole.id


async def test_a_turn_claims_the_usage_it_is_given() -> None:
    tokens = Tokens(input_tokens=7, output_tokens=11, cache_read_input_tokens=2000, cache_creation_input_tokens=300)
    async with server(turn=Turn(text="x", usage=tokens)) as model, client(model) as sdk, sdk.messages.stream(**ASK) as streaming:
        usage = (await streaming.get_final_message()).usage
    assert (usage.input_tokens, usage.output_tokens) == (7, 11)
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (2000, 300)


async def test_answers_carry_request_ids_and_limits(served: ScriptedAnthropic) -> None:
    async with client(served) as sdk:
        raw = await sdk.messages.with_raw_response.create(**ASK)
    assert raw.headers["request-id"] == served.requests[0].id
    assert int(raw.headers["anthropic-ratelimit-requests-remaining"]) < int(raw.headers["anthropic-ratelimit-requests-limit"])
    assert raw.headers["anthropic-ratelimit-unified-status"] == "allowed"


async def test_counting_models_and_probes_are_answered(served: ScriptedAnthropic) -> None:
    async with client(served) as sdk:
        count = await sdk.messages.count_tokens(model="m", messages=[{"role": "user", "content": "four" * 40}])
        assert 40 <= count.input_tokens <= 80
        assert [model.id async for model in sdk.models.list()]
    async with aiohttp.ClientSession() as http:
        for path in ("/", "/api/hello"):
            async with http.head(served.url + path) as response:
                assert response.status == 200


async def test_a_wrong_key_is_refused(served: ScriptedAnthropic) -> None:
    async with client(served, "wrong") as sdk:
        with pytest.raises(anthropic.AuthenticationError):
            await sdk.messages.create(**ASK)


async def test_requests_the_api_would_refuse_are_refused(served: ScriptedAnthropic) -> None:
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {}}]}
    async with client(served) as sdk:
        with pytest.raises(anthropic.BadRequestError, match="tool_result"):
            await sdk.messages.create(**{**ASK, "messages": [*ASK["messages"], call, {"role": "user", "content": "well?"}]})
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            await sdk.messages.create(**{**ASK, "max_tokens": 0})
        with pytest.raises(anthropic.NotFoundError):
            await sdk.post("/v1/nonsense", cast_to=object)


async def test_errors_have_anthropics_shape_and_come_once(served: ScriptedAnthropic) -> None:
    async with server(Fault(status=529), Fault(status=429, headers={"retry-after": "7"})) as model, client(model) as sdk:
        with pytest.raises(anthropic.APIStatusError) as overloaded:
            await sdk.messages.create(**ASK)
        with pytest.raises(anthropic.RateLimitError) as limited:
            await sdk.messages.create(**ASK)
        assert (await sdk.messages.create(**ASK)).content
    assert overloaded.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
    assert limited.value.response.headers["retry-after"] == "7"


async def test_the_scenarios_own_faults_come_first_whatever_is_asked() -> None:
    scenario = Scenario(faults=(Fault(status=500, times=2),))
    async with ScriptedAnthropic(scenario) as model, client(model) as sdk:
        for _ in range(2):
            with pytest.raises(anthropic.InternalServerError):
                await sdk.messages.create(**ASK)
        assert (await sdk.messages.create(**ASK)).content[0].text == scenario.otherwise  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fault", "there", "missing"),
    [
        (Fault(cut="start"), b"message_start", b"content_block_start"),
        (Fault(cut="mid-text"), b"text_delta", b"content_block_stop"),
        (Fault(cut="after-text"), b"content_block_stop", b"tool_use"),
        (Fault(cut="mid-tool"), b"input_json_delta", b'"index": 1}'),
        (Fault(cut="after-tool"), b'"index": 1}', b"message_delta"),
        (Fault(cut="after-tool", clean=True), b'"index": 1}', b"message_delta"),
        (Fault(sse_error="overloaded_error", at="after-text"), b"overloaded_error", b"tool_use"),
        (Fault(garbage="html"), b"<html>", b"message_start"),
        (Fault(garbage="json"), b"mess", b"message_stop"),
    ],
)
async def test_a_fault_strikes_where_it_says(fault: Fault, there: bytes, missing: bytes) -> None:
    async with server(fault) as model:
        body = await stream(model)
        assert there in body
        assert missing not in body
        assert body.endswith(b"<cut>") is (fault.cut is not None and not fault.clean)
        assert b"message_stop" in await stream(model), "the next request is answered in full"


async def test_a_cut_before_the_first_byte_is_a_dead_connection() -> None:
    async with server(Fault(cut="before")) as model, client(model) as sdk:
        with pytest.raises(anthropic.APIConnectionError):
            await sdk.messages.create(**ASK)


class Counted:
    """A clock that counts what it was asked to sleep."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        return 1_800_000_000.0

    def monotonic(self) -> float:
        return sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def test_the_pace_is_the_scenarios_within_its_jitter_and_can_be_turned_off() -> None:
    session = Session(match="the work", turns=(TURN,))
    scenario = Scenario(sessions=(session,), pace=Pace(first=1.0, chunk=0.1))
    slept = {}
    for pace in (1.0, 0.0):
        clock = Counted()
        async with ScriptedAnthropic(scenario, key="right", pace=pace, clock=clock) as model:
            await stream(model)
        slept[pace] = clock.slept
    assert 0.7 <= slept[1.0][0] <= 1.3
    assert len(slept[1.0]) == 4
    assert all(0.07 <= one <= 0.13 for one in slept[1.0][1:])
    assert slept[0.0] == []


async def test_a_hang_can_be_filled_with_pings() -> None:
    clock = Counted()
    model = ScriptedAnthropic(Scenario(faults=(Fault(hang=5, pings=True),)), clock=clock)
    async with model:
        assert (await stream(model)).count(b"event: ping") == 6
    assert sum(clock.slept) == 5


def test_it_runs_alone_and_says_where(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text("sessions: []")
    command = [sys.executable, "-m", "claudecluster.testing.anthropic", "--scenario"]
    process = subprocess.Popen([*command, str(scenario)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["url"].startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stdout.close()
    scenario.write_text("sessions: 3")
    failed = subprocess.run([*command, str(scenario)], check=False, capture_output=True, text=True, timeout=30)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert failed.stderr.startswith("error: ")
