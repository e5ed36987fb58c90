"""Local providers against a scripted Ollama over real sockets: choice of server, failover, refusals, pings, cancelling."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ollama as official
import orjson
import pytest
from aiohttp import web

from claudecluster.gateway.local.compatible import Compatible, CompatibleConfig
from claudecluster.gateway.local.models import Facts, Row
from claudecluster.gateway.local.ollama import Ollama, OllamaConfig
from claudecluster.gateway.local.replies.writing import PING
from claudecluster.gateway.provider import COUNT_TOKENS, MESSAGES, MODELS, Answer, Ask, Cause, Failure, Provider, Verdict
from claudecluster.testing.ollama import OllamaModel, ScriptedOllama
from claudecluster.testing.ollama_wires import Reply, ToolCall

TOOLS = [
    {
        "name": name,
        "description": name,
        "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
    }
    for name in ("Bash", "Read")
]
LS = ToolCall("Bash", {"command": "ls"})


@dataclass(slots=True)
class HandClock:
    """A clock moved by hand."""

    time: float = 1000.0
    waiting: list[tuple[float, asyncio.Event]] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        place = (self.time + seconds, asyncio.Event())
        self.waiting.append(place)
        try:
            await place[1].wait()
        finally:
            self.waiting.remove(place)

    async def pass_by(self, seconds: float) -> None:
        """Let time pass once somebody waits for it."""
        await until(lambda: bool(self.waiting))
        self.time += seconds
        for due, woken in self.waiting:
            if due <= self.time:
                woken.set()
        await asyncio.sleep(0)


def ask(text: str = "hi", *, stream: bool = True, path: str = MESSAGES, model: str = "claude-opus-5-5", **more: Any) -> Ask:
    payload = {
        "model": model,
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": text}],
        "tools": TOOLS,
        "stream": stream,
        **more,
    }
    return Ask("POST", path, "", {}, orjson.dumps(payload), payload, model, stream and path == MESSAGES)


async def whole(answer: Answer) -> bytes:
    try:
        return b"".join([piece async for piece in answer.body])
    finally:
        await answer.close()


def events(data: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: ")]


def text(data: bytes) -> str:
    return "".join(event["delta"].get("text", "") for event in events(data) if event["type"] == "content_block_delta")


def uses(data: bytes) -> list[tuple[str, Any]]:
    found, name = [], ""
    for event in events(data):
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
            name = event["content_block"]["name"]
        elif event["type"] == "content_block_delta" and "partial_json" in event["delta"]:
            found.append((name, orjson.loads(event["delta"]["partial_json"])))
    return found


@asynccontextmanager
async def provided(*servers: ScriptedOllama, **config: Any) -> AsyncIterator[Ollama]:
    clock = config.pop("clock", None)
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server)
        provider = Ollama(OllamaConfig(tuple(server.url for server in servers), **config), clock=clock)
        stack.push_async_callback(provider.aclose)
        yield provider


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what happens on the far side of a socket sends no event
            await asyncio.sleep(0.005)


WIRES: Mapping[str, Callable[[str], Provider]] = {
    "ollama": lambda url: Ollama(OllamaConfig((url,))),
    "openai": lambda url: Compatible(CompatibleConfig(url, context=65_536)),
    "anthropic": lambda url: Compatible(CompatibleConfig(f"{url}/v1/", wire="anthropic", context=65_536)),
}


@pytest.fixture(params=sorted(WIRES))
def make(request: pytest.FixtureRequest) -> Callable[[str], Provider]:
    return WIRES[request.param]


async def test_every_wire_streams_text_and_calls_and_says_who_answered(make: Callable[[str], Provider]) -> None:
    async with ScriptedOllama([Reply("Let me look.", calls=(LS, ToolCall("read", {"Command": "x"})), thinking="hmm")]) as server:
        provider = make(server.url)
        answer = await provider.send(ask())
        data = await whole(answer)
        await provider.aclose()
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-claudecluster-degraded"] == "true"
    assert answer.headers["x-claudecluster-why"].startswith("qwen3-coder:30b")
    assert answer.model == "qwen3-coder:30b"
    assert text(data) == "Let me look."
    assert uses(data) == [("Bash", {"command": "ls"}), ("Read", {"command": "x"})]
    assert events(data)[-2]["delta"]["stop_reason"] == "tool_use"
    assert b"hmm" not in data


async def test_every_wire_answers_whole_when_not_streaming(make: Callable[[str], Provider]) -> None:
    async with ScriptedOllama([Reply("Hello", calls=(LS,))]) as server:
        provider = make(server.url)
        message = orjson.loads(await whole(await provider.send(ask(stream=False))))
        await provider.aclose()
    assert [block["type"] for block in message["content"]] == ["text", "tool_use"]
    assert message["stop_reason"] == "tool_use"
    assert message["usage"]["cache_read_input_tokens"] == 0


async def test_every_wire_counts_tokens_and_lists_models_without_asking_a_model(make: Callable[[str], Provider]) -> None:
    async with ScriptedOllama() as server:
        provider = make(server.url)
        counted = orjson.loads(await whole(await provider.send(ask("word " * 1000, path=COUNT_TOKENS))))
        models = orjson.loads(await whole(await provider.send(ask(path=MODELS))))
        health = await provider.healthy()
        await provider.aclose()
        assert server.count() == 0
    assert 1000 < counted["input_tokens"] < 2500
    assert [model["id"] for model in models["data"]] == ["qwen3-coder:30b"]
    assert health.ok
    assert health.models == ("qwen3-coder:30b",)


async def test_every_wire_passes_on_a_full_queue_as_overloaded(make: Callable[[str], Provider]) -> None:
    async with ScriptedOllama(max_queue=0, parallel=0) as server:
        provider = make(server.url)
        answer = await provider.send(ask())
        body = orjson.loads(await whole(answer))
        await provider.aclose()
    assert answer.status == 529
    assert body["error"]["type"] == "overloaded_error"


async def test_every_wire_fails_where_the_stream_is_cut_after_words(make: Callable[[str], Provider]) -> None:
    async with ScriptedOllama([Reply("Hello, this is a long answer", cut_after=4)]) as server:
        provider = make(server.url)
        answer = await provider.send(ask())
        with pytest.raises(Failure) as failure:
            await whole(answer)
        verdict = provider.classify(failure.value)
        await provider.aclose()
        assert server.count() == 1
    assert failure.value.cause is Cause.CUT
    assert verdict is Verdict.RETRY


async def test_every_wire_stops_the_model_when_the_client_leaves(make: Callable[[str], Provider]) -> None:
    async with ScriptedOllama([Reply("Hello, this is long", hold=asyncio.Event(), hold_after=2)]) as server:
        provider = make(server.url)
        answer = await provider.send(ask())
        pieces = aiter(answer.body)
        await anext(pieces)
        await answer.close()
        await until(lambda: server.cancelled == 1)
        assert provider.load() == 0
        await provider.aclose()


async def test_leaving_during_the_prefill_stops_the_model_too() -> None:
    server = ScriptedOllama([Reply(hold=asyncio.Event())])
    async with provided(server, patience=0.05) as provider:
        answer = await provider.send(ask())
        await until(lambda: server.in_flight == 1)
        await answer.close()
        await until(lambda: server.cancelled == 1)


async def test_pings_come_from_the_start_while_the_prompt_is_read() -> None:
    clock, hold = HandClock(), asyncio.Event()
    async with provided(ScriptedOllama([Reply("Hello", hold=hold)]), clock=clock, ping=5.0, patience=2.0) as provider:
        sending = asyncio.ensure_future(provider.send(ask()))
        await clock.pass_by(2.0)
        answer = await sending
        pieces = aiter(answer.body)
        assert await anext(pieces) == PING
        for _ in range(80):  # 400 s, longer than Claude Code waits in silence
            coming = asyncio.ensure_future(anext(pieces))
            await clock.pass_by(5.0)
            assert await coming == PING
        hold.set()
        data = b"".join([piece async for piece in pieces])
        assert text(data) == "Hello"
        await answer.close()


async def test_an_early_refusal_is_an_http_status() -> None:
    async with provided(ScriptedOllama([Reply(status=500, error="llama runner process has terminated")])) as provider:
        answer = await provider.send(ask())
        assert answer.status == 500
        assert b"llama runner process has terminated" in await whole(answer)


async def test_a_late_refusal_is_a_failure_that_says_what_the_client_should_see() -> None:
    hold = asyncio.Event()
    server = ScriptedOllama([Reply(status=400, error="the input length exceeds the context length", hold=hold)])
    async with provided(server, patience=0.02, contexts={"qwen3-coder:30b": 5000}) as provider:
        answer = await provider.send(ask("x" * 15_000))
        hold.set()
        with pytest.raises(Failure) as failure:
            await whole(answer)
        assert failure.value.status == 400
        assert orjson.loads(failure.value.body)["error"]["message"].startswith("prompt is too long: ")
        assert provider.classify(failure.value) is Verdict.STOP
        again = await provider.send(ask("x" * 15_000, stream=False))
        assert again.status == 400
        assert server.count() == 1  # what it refused once is known the next time


async def test_a_prompt_that_does_not_fit_is_refused_in_anthropics_words() -> None:
    async with provided(server := ScriptedOllama(), context=20_000) as provider:
        for size, asked in ((81_000, 1), (400_000, 1)):  # the server refuses the first; the second is far too long to be sent
            answer = await provider.send(ask("x" * size))
            said = orjson.loads(await whole(answer))["error"]["message"]
            used, limit = [int(word) for word in said.split() if word.isdigit()]
            assert answer.status == 400
            assert used > limit == 20_000 - 1024  # the rest is room for an answer
            assert server.count() == asked


async def test_a_server_that_cuts_silently_is_never_sent_too_much() -> None:
    async with ScriptedOllama(default_context=4096) as server:
        provider = Compatible(CompatibleConfig(server.url, context=4096, truncates=True))
        answer = await provider.send(ask("x" * 20_000))
        assert answer.status == 400
        assert server.count() == 0
        await whole(await provider.send(ask("x" * 4000)))
        assert not any(seen.truncated for seen in server.seen)
        await provider.aclose()


async def test_the_window_and_what_a_model_can_do_are_asked_once() -> None:
    server = ScriptedOllama(models=(OllamaModel("qwen3-coder:30b", 16_384, ("completion", "tools", "thinking")),), otherwise=Reply("ok"))
    async with provided(server) as provider:
        for _ in range(3):
            await whole(await provider.send(ask(thinking={"type": "adaptive"})))
        assert server.count("/api/show") == 1
        assert server.count("/api/tags") == 1
        assert [body["options"]["num_ctx"] for body in server.bodies()] == [16_384] * 3
        assert server.bodies()[0]["think"] is True


async def test_an_old_server_that_refuses_tools_gets_them_in_words() -> None:
    reply = Reply('<tool_call>{"name": "Bash", "arguments": {"command": "ls"}}</tool_call>')
    server = ScriptedOllama([reply, reply], models=(OllamaModel("phi:3b", capabilities=None),))
    async with provided(server) as provider:
        for _ in range(2):
            assert uses(await whole(await provider.send(ask()))) == [("Bash", {"command": "ls"})]
        assert ["tools" in body for body in server.bodies()] == [True, False, False]


async def test_a_broken_call_is_asked_for_once_more() -> None:
    server = ScriptedOllama([Reply("I try.", calls=(ToolCall("Bash", '{"command": "l'),)), Reply(calls=(LS,))])
    async with provided(server) as provider:
        data = await whole(await provider.send(ask()))
        assert text(data) == "I try."
        assert uses(data) == [("Bash", {"command": "ls"})]
        assert server.count() == 2
        said = server.bodies()[1]["messages"]
        assert [message["role"] for message in said[-2:]] == ["assistant", "user"]
        assert "could not be read" in said[-1]["content"]


async def test_a_call_broken_before_a_word_is_no_fault_of_the_server() -> None:
    server = ScriptedOllama([Reply(calls=(ToolCall("Bash", '{"command": "l'),)), Reply(calls=(LS,))])
    async with provided(server, ScriptedOllama(models=())) as provider:
        assert uses(await whole(await provider.send(ask()))) == [("Bash", {"command": "ls"})]
        assert server.count() == 2


async def test_a_model_that_is_passed_on_to_a_cloud_is_not_local() -> None:
    cloud = (OllamaModel("gpt-oss:120b", remote_host="https://ollama.com"), OllamaModel("qwen3-coder:480b-cloud"), OllamaModel("own:cloud"))
    async with provided(server := ScriptedOllama(models=cloud), model="gpt-oss:120b") as provider:
        assert (await provider.healthy()).models == ()
        assert (await provider.send(ask(model="own:cloud"))).status == 404
        assert server.count() == 0


async def test_a_call_broken_twice_is_shown_as_text() -> None:
    broken = Reply(calls=(ToolCall("Bash", '{"command": "l'),))
    async with ScriptedOllama([broken, broken]) as server:
        provider = Compatible(CompatibleConfig(server.url, context=65_536))
        data = await whole(await provider.send(ask()))
        await provider.aclose()
        assert server.count() == 2
    assert uses(data) == []
    assert '{"command": "l' in text(data)
    assert events(data)[-2]["delta"]["stop_reason"] == "end_turn"


async def test_damaged_arguments_are_mended_without_asking_again() -> None:
    async with ScriptedOllama([Reply(calls=(ToolCall("bash", "{'command': 'ls',}"),))]) as server:
        provider = Compatible(CompatibleConfig(server.url, context=65_536))
        assert uses(await whole(await provider.send(ask()))) == [("Bash", {"command": "ls"})]
        await provider.aclose()
        assert server.count() == 1


async def test_an_empty_answer_is_asked_for_once_more() -> None:
    server = ScriptedOllama([Reply(thinking="hmm"), Reply("Done.")])
    async with provided(server) as provider:
        assert text(await whole(await provider.send(ask()))) == "Done."
        assert "without an answer" in server.bodies()[1]["messages"][-1]["content"]


async def test_web_search_is_answered_at_once_and_asks_no_model() -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]
    async with provided(server := ScriptedOllama()) as provider:
        data = await whole(await provider.send(ask("search", tools=tools)))
        assert server.count() == 0
    assert [event["content_block"]["type"] for event in events(data) if event["type"] == "content_block_start"] == [
        "server_tool_use",
        "web_search_tool_result",
        "text",
    ]
    assert "not available" in text(data)


async def test_an_error_in_the_middle_of_a_200_is_a_failure() -> None:
    async with provided(
        ScriptedOllama([Reply("Hello, this is long", error="an error was encountered while running the model")])
    ) as provider:
        answer = await provider.send(ask())
        with pytest.raises(Failure) as failure:
            await whole(answer)
        assert failure.value.cause is Cause.ERROR_EVENT
        assert orjson.loads(failure.value.body)["error"]["type"] == "api_error"


async def test_no_server_is_unreachable_and_another_provider_should_be_asked() -> None:
    provider = Ollama(OllamaConfig(("http://127.0.0.1:9",)))
    with pytest.raises(Failure) as failure:
        await provider.send(ask())
    assert failure.value.cause is Cause.UNREACHABLE
    assert provider.classify(failure.value) is Verdict.NEXT
    health = await provider.healthy()
    assert not health.ok
    assert "127.0.0.1:9" in health.why
    await provider.aclose()


async def test_a_server_without_models_says_what_to_do() -> None:
    async with provided(ScriptedOllama(models=())) as provider:
        answer = await provider.send(ask())
        assert answer.status == 404
        assert b"ollama pull" in await whole(answer)
        assert "ollama pull" in (await provider.healthy()).why


async def test_requests_go_to_the_least_busy_server() -> None:
    hold = asyncio.Event()
    servers = [ScriptedOllama(otherwise=Reply("ok", hold=hold)) for _ in range(3)]
    async with provided(*servers, patience=0.01) as provider:
        answers = []
        for number in range(1, 7):
            answers.append(await provider.send(ask()))
            await until(lambda sent=number: sum(server.count() for server in servers) == sent)
        assert [server.count() for server in servers] == [2, 2, 2]
        assert provider.load() == 2.0
        hold.set()
        for answer in answers:
            assert text(await whole(answer)) == "ok"
        assert provider.load() == 0


async def test_an_idle_server_that_has_the_model_loaded_is_preferred() -> None:
    servers = [ScriptedOllama(), ScriptedOllama(loaded={"qwen3-coder:30b": 65_536})]
    async with provided(*servers) as provider:
        await whole(await provider.send(ask()))
        assert [server.count() for server in servers] == [0, 1]


async def test_only_servers_that_have_the_model_are_asked() -> None:
    servers = [ScriptedOllama(models=(OllamaModel("other:1b"),)), ScriptedOllama()]
    async with provided(*servers, table=(Row("qwen3-coder:30b"),)) as provider:
        await whole(await provider.send(ask()))
        assert [server.count() for server in servers] == [0, 1]
        assert (await provider.healthy()).models == ("other:1b", "qwen3-coder:30b")


@pytest.mark.parametrize(
    "fault",
    [
        Reply(dies=True),
        Reply("x", cut_after=0),
        Reply(thinking="hmm", cut_after=1),
        Reply(status=503, error="server busy, please try again.  maximum pending requests exceeded"),
        Reply(status=500, error="llama runner process has terminated"),
        Reply(error="an error was encountered while running the model"),
    ],
    ids=["dies-mid-load", "cut-before-words", "cut-while-thinking", "busy", "crashed", "error-object"],
)
async def test_a_server_that_fails_before_its_first_word_is_replaced_unseen(fault: Reply) -> None:
    ill, well = ScriptedOllama(otherwise=fault), ScriptedOllama(otherwise=Reply("Hello", calls=(LS,)))
    async with provided(ill, well) as provider:
        answer = await provider.send(ask())
        data = await whole(answer)
        assert answer.status == 200
        assert text(data) == "Hello"
        assert uses(data) == [("Bash", {"command": "ls"})]
        assert [event["type"] for event in events(data)].count("message_start") == 1
        await whole(await provider.send(ask()))
        assert (ill.count(), well.count()) == (1, 2)  # it is left alone for a while


async def test_a_server_that_fails_after_its_first_word_is_never_replayed_on_another() -> None:
    servers = [ScriptedOllama(otherwise=Reply("Hello, this is long", cut_after=1)) for _ in range(2)]
    async with provided(*servers) as provider:
        with pytest.raises(Failure):
            await whole(await provider.send(ask()))
        assert [server.count() for server in servers] == [1, 0]


async def test_a_server_that_comes_back_is_used_again() -> None:
    clock = HandClock()
    servers = [ScriptedOllama([Reply(dies=True)]), ScriptedOllama()]
    async with provided(*servers, clock=clock) as provider:
        await whole(await provider.send(ask()))
        await servers[0].start()
        servers[1].loaded.clear()
        clock.time += 61
        await whole(await provider.send(ask()))  # asks the one it knows, and beside it whether the other is back
        await until(lambda: servers[0].count("/api/tags") == 2)
        clock.time += 3
        while servers[0].count() < 2:
            await whole(await provider.send(ask()))


async def test_three_servers_carry_a_load_while_one_of_them_dies() -> None:
    servers = [ScriptedOllama(otherwise=Reply("Hello", pause=0.001)) for _ in range(3)]
    servers[1].script = [Reply("Hello", pause=0.001)] * 3 + [Reply(dies=True)]
    async with provided(*servers) as provider:
        answers: list[str] = []

        async def one() -> None:
            try:
                answers.append(text(await whole(await provider.send(ask()))))
            except Failure as failure:  # cut after its first word: the gateway hands over, tested there
                answers.append(failure.cause.value)

        for _ in range(10):
            await asyncio.gather(*(one() for _ in range(6)))
        assert answers.count("Hello") >= 58
        assert set(answers) <= {"Hello", Cause.CUT.value}
        assert sum(server.count() for server in servers) <= 62  # no storm of retries


async def test_a_client_that_leaves_takes_nobody_elses_answer_along() -> None:
    hold = asyncio.Event()
    async with provided(server := ScriptedOllama(tags_hold=hold)) as provider:
        leaving, staying = (asyncio.ensure_future(provider.send(ask())) for _ in range(2))
        await until(lambda: server.count("/api/tags") == 1)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        hold.set()
        async with asyncio.timeout(10):
            assert text(await whole(await staying)) == "ok"


async def test_many_faulted_requests_all_end_well_formed_or_as_failures() -> None:
    dice = random.Random(7)  # the same faults each time
    faults = [
        Reply("hello there friend", calls=(LS,)),
        Reply("hello there friend"),
        Reply("long enough to be cut", cut_after=1),
        Reply("x", cut_after=0),
        Reply(status=500, error="llama runner process has terminated"),
        Reply("some words", error="an error was encountered"),
        Reply(calls=(ToolCall("Bash", '{"c'),)),
        Reply(),
        Reply("cut", done_reason="length"),
    ]
    ends: Counter[str] = Counter()

    async def one(provider: Ollama) -> None:
        leaves = dice.random() < 0.1
        try:
            answer = await provider.send(ask(stream=dice.random() < 0.8))
            if leaves:
                await answer.close()
            data = await whole(answer) if not leaves else b""
            good = b"message_stop" in data or b'"type":"message"' in data
            ends["left" if leaves else "good" if good else f"status {answer.status}"] += 1
        except Failure as failure:
            ends[failure.cause.value] += 1

    servers = [ScriptedOllama(lambda _: dice.choice(faults), parallel=4) for _ in range(3)]
    async with asyncio.timeout(60), provided(*servers, slots=4) as provider:
        for _ in range(12):
            await asyncio.gather(*(one(provider) for _ in range(20)))
        assert provider.load() == 0
    assert sum(ends.values()) == 240
    assert ends["good"] > 100
    assert set(ends) <= {"good", "left", "status 500", "cut", "error-event", "status", "unreachable"}


async def test_the_choice_can_be_asked_for_without_a_request() -> None:
    rows = (Row("qwen3-coder:30b"), Row("rust:14b", languages=("rust",)))
    async with provided(ScriptedOllama(models=(OllamaModel(), OllamaModel("rust:14b"))), table=rows) as provider:
        assert (await provider.choose(Facts(language="rust"))).why == "rust:14b: rust"
        assert (await provider.choose(Facts(language="go"))).model == "qwen3-coder:30b"
        answer = await provider.send(ask(model="rust:14b"))
        await whole(answer)
        assert answer.model == "rust:14b"
        assert "x-claudecluster-degraded" not in answer.headers


async def test_an_answer_is_degraded_whatever_a_route_put_into_the_request() -> None:
    async with provided(ScriptedOllama()) as provider:
        routed = replace(ask(), model="qwen3-coder:30b")
        answer = await provider.send(routed)
        await whole(answer)
        assert answer.headers["x-claudecluster-degraded"] == "true"


async def test_a_server_that_hangs_holds_up_nobody() -> None:
    async with provided(ScriptedOllama(), ScriptedOllama()) as provider:
        await whole(await provider.send(ask()))
        hung, _ = provider._fleet.instances
        hung.url, hung.models_at = "http://192.0.2.1:9", float("-inf")  # an address that never answers
        async with asyncio.timeout(2):
            hung.in_flight = 5
            assert text(await whole(await provider.send(ask()))) == "ok"


async def test_a_configured_model_overrules_the_table() -> None:
    async with provided(ScriptedOllama(models=(OllamaModel(), OllamaModel("own:7b"))), model="own:7b") as provider:
        answer = await provider.send(ask())
        await whole(answer)
        assert answer.model == "own:7b"


async def test_a_window_larger_than_what_is_left_is_asked_for_again_smaller() -> None:
    bodies: list[dict[str, Any]] = []

    async def chat(request: web.Request) -> web.Response:
        bodies.append(orjson.loads(await request.read()))
        if bodies[-1].get("max_tokens", 0) > 400:
            said = "This model's maximum context length is 1000 tokens. However, you requested 1100 tokens (600 in the messages, 500 in the completion)."
            return web.json_response({"error": {"message": said, "code": 400}}, status=400)
        done = b'data: {"choices":[{"delta":{"content":"ok"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        return web.Response(body=done, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    provider = Compatible(CompatibleConfig(f"http://127.0.0.1:{runner.addresses[0][1]}", model="m", context=2000, max_output=500))
    try:
        assert text(await whole(await provider.send(ask()))) == "ok"
    finally:
        await provider.aclose()
        await runner.cleanup()
    assert [body["max_tokens"] for body in bodies] == [500, 1000 - 600 - 32]


async def test_the_official_ollama_client_understands_the_scripted_server() -> None:
    model = OllamaModel("qwen3:8b", capabilities=("completion", "tools", "thinking"))
    async with ScriptedOllama([Reply("Hello there", calls=(LS,), thinking="hmm"), Reply("again")], models=(model,)) as server:
        client = official.AsyncClient(server.url)
        assert [item.model for item in (await client.list()).models] == ["qwen3:8b"]
        assert (await client.show("qwen3:8b")).capabilities == ["completion", "tools", "thinking"]
        chunks = [chunk async for chunk in await client.chat("qwen3:8b", [{"role": "user", "content": "hi"}], stream=True, think=True)]
        assert "".join(chunk.message.content or "" for chunk in chunks) == "Hello there"
        assert [call.function.name for chunk in chunks for call in chunk.message.tool_calls or ()] == ["Bash"]
        assert chunks[-1].done_reason == "stop"
        assert (await client.chat("qwen3:8b", [{"role": "user", "content": "hi"}])).message.content == "again"
        assert [item.context_length for item in (await client.ps()).models] == [4096]
        with pytest.raises(official.ResponseError, match="not found"):
            await client.chat("absent", [{"role": "user", "content": "hi"}])
        await client._client.aclose()


async def test_config_holds_no_key_in_its_words() -> None:
    config = replace(OllamaConfig(), api_key="sk-secret")
    assert "sk-secret" not in repr(config)
    assert "sk-secret" not in repr(CompatibleConfig("http://x", api_key="sk-secret"))
