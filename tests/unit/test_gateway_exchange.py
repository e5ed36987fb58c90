"""One request after another through the exchange, with providers that do as told and a clock that waits for us."""

import asyncio
import heapq
import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import date
from typing import Any

import orjson
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from claudecluster.gateway.metering.prices import Price, Prices
from claudecluster.gateway.metering.spans import request_span
from claudecluster.gateway.provider import Answer, Ask, Cause, Failure, Health, Kind, Verdict
from claudecluster.gateway.routing.admission import Admission
from claudecluster.gateway.routing.exchange import Exchange, Tuning, Visit
from claudecluster.gateway.routing.policy import Budgets, Fallback, Policy, Rule
from claudecluster.gateway.routing.state import State
from claudecluster.gateway.server.message import Head, Request
from claudecluster.gateway.stream.sse import write
from claudecluster.gateway.stream.tally import Tally
from claudecluster.gateway.upstream.anthropic import Anthropic, AnthropicConfig
from claudecluster.limits.lane import Lane, Pace
from claudecluster.limits.signals import Trouble
from claudecluster.limits.tracker import Tier, Tracker
from claudecluster.model.usage import Metered, Usage
from claudecluster.ports.gateway import Visitor

START = 1_795_165_000.0


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = START
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.time + seconds, next(self._order), turn))
        await turn

    async def forward(self, seconds: float) -> None:
        end = self.time + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            self.time, _, turn = heapq.heappop(self._sleepers)
            if not turn.done():
                turn.set_result(None)
            await settle()
        self.time = end
        await settle()


async def settle() -> None:
    for _ in range(60):
        await asyncio.sleep(0)


class Paper:
    """A reply that keeps what is written on it."""

    def __init__(self) -> None:
        self.started = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.ended = False

    def start(self, status: int, headers: Iterable[tuple[str, str]], *, length: int | None = None) -> None:
        self.started, self.status, self.headers = True, status, dict(headers)

    async def write(self, data: bytes) -> None:
        self.body += data

    async def end(self, data: bytes = b"") -> None:
        self.body += data
        self.ended = True


def stream(text: str = "hello", message: str = "msg", tool: bool = False) -> list[bytes]:
    block = {"type": "tool_use", "id": "t", "name": "Bash", "input": {}} if tool else {"type": "text", "text": ""}
    delta = {"type": "input_json_delta", "partial_json": "{}"} if tool else {"type": "text_delta", "text": text}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": message, "model": "claude-opus-5", "usage": {"input_tokens": 10, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use" if tool else "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    return [write(event["type"], event) for event in events]


Play = Callable[[Ask], Any]


class Double:
    """A provider that plays what it is given, and counts."""

    def __init__(self, name: str, kind: Kind, play: Play) -> None:
        self.name = name
        self.kind: Kind = kind
        self.play = play
        self.asked: list[Ask] = []
        self.busy = 0.0
        self._judge = Anthropic(AnthropicConfig())

    def load(self) -> float:
        return self.busy

    async def send(self, ask: Ask) -> Answer:
        self.asked.append(ask)
        played = self.play(ask)
        if asyncio.iscoroutine(played):
            played = await played
        if isinstance(played, Failure):
            raise played
        if isinstance(played, Answer):
            return played
        return answer(played)

    def classify(self, failure: Failure) -> Verdict:
        return self._judge.classify(failure)

    async def healthy(self) -> Health:
        return Health(ok=True)

    async def aclose(self) -> None:
        pass


def answer(pieces: Iterable[bytes | Failure], status: int = 200, **headers: str) -> Answer:
    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            if isinstance(piece, Failure):
                raise piece
            yield piece

    kind = "text/event-stream" if status == 200 else "application/json"
    return Answer(status, {"content-type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}, body())


def error(status: int, **headers: str) -> Answer:
    return answer([orjson.dumps({"type": "error", "error": {"type": "x", "message": "no"}})], status, **headers)


CUT = Failure(Cause.CUT, "broke off")


class Scene:
    """An exchange over some doubles."""

    def __init__(
        self,
        *providers: Double,
        fallback: Fallback | None = None,
        rules: tuple[Rule, ...] = (),
        budgets: Budgets | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.clock = Hands()
        self.fallback = fallback or Fallback()
        self.state = State(providers, self.fallback, self.clock, pace=pace)
        self.metered: list[Metered] = []
        policy = Policy(providers, self.fallback, rules, budgets or Budgets())
        self.exchange = Exchange(policy, self.state, Prices(), self.metered.append, Tuning(patience=240, pings=0.05))

    async def ask(
        self, visitor: Visitor | None = None, *, session: str = "", model: str = "claude-opus-5", visit: Visit | None = None
    ) -> Paper:
        paper = Paper()
        body = orjson.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "x"}]})
        head = Head("POST", "/v1/messages", "beta=true", {"x-claude-code-session-id": session} if session else {})
        await self.exchange.answer(visit or Visit(visitor or Visitor("r", "t", 1)), Request(head, body), paper)
        return paper


def cloud(play: Play) -> Double:
    return Double("anthropic", "anthropic", play)


def local(play: Play = lambda _: stream("from here"), name: str = "ollama") -> Double:
    return Double(name, "local", play)


async def test_a_storm_of_limits_does_not_multiply_requests_and_everybody_is_served_in_the_end() -> None:
    open_at = START + 90
    scene = Scene(cloud(lambda _: stream() if scene.clock.time >= open_at else error(429, retry_after="30")))
    provider = scene.state.posts["anthropic"].provider
    assert isinstance(provider, Double)
    asked = [asyncio.create_task(scene.ask(session=f"s{n}")) for n in range(100)]
    await settle()
    before = len(provider.asked)
    assert before <= 64  # what was let out together
    await scene.clock.forward(89)
    assert len(provider.asked) - before <= 3  # one probe at each end of the limit, whatever the number that waits
    await scene.clock.forward(60)
    papers = await asyncio.wait_for(asyncio.gather(*asked), 10)
    assert {paper.status for paper in papers} == {200}
    assert len(provider.asked) <= 100 + before + 3
    await scene.exchange.admission.aclose()


async def test_those_on_the_critical_path_go_first_when_a_lane_opens() -> None:
    scene = Scene(cloud(lambda _: stream()), pace=Pace(start=1, ceiling=1))
    lane = scene.state.posts["anthropic"].lane("claude-opus-5")
    ticket = lane.enter(START)
    assert ticket is not None
    lane.bad(ticket, Trouble.LIMITED, START, until=START + 30)
    lane.leave(ticket)
    done: list[int] = []

    async def one(priority: int) -> None:
        await scene.ask(Visitor("r", f"t{priority}", 1, priority=priority))
        done.append(priority)

    tasks = [asyncio.create_task(one(priority)) for priority in (1, 5, 3)]
    await settle()
    assert done == []
    await scene.clock.forward(31)
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert done == [5, 3, 1]
    await scene.exchange.admission.aclose()


async def test_a_wait_longer_than_anybodys_patience_is_said_at_once() -> None:
    scene = Scene(cloud(lambda _: error(429, retry_after="7200")))
    first, second = await scene.ask(), await scene.ask()
    assert (first.status, second.status) == (429, 429)
    assert first.body.startswith(b'{"type":"error"')
    assert second.headers["retry-after"] == "7200"
    assert second.headers["x-should-retry"] == "false"
    assert len(scene.state.posts["anthropic"].provider.asked) == 1  # type: ignore[attr-defined]


async def test_it_returns_by_itself_after_a_single_probe() -> None:
    scene = Scene(cloud(lambda _: stream() if scene.clock.time >= START + 100 else error(429, retry_after="60")), local())
    providers = []
    for _ in range(8):
        paper = await scene.ask()
        providers.append(paper.headers["x-claudecluster-provider"])
        scene.clock.time += 25
    assert providers == ["ollama"] * 6 + ["anthropic"] * 2
    asked = scene.state.posts["anthropic"].provider.asked  # type: ignore[attr-defined]
    assert len(asked) == 4  # at 0, a probe at 75 that fails, one at 150 that does not, and from then on


async def test_while_one_probes_the_others_stay_with_the_stand_in() -> None:
    gate = asyncio.Event()

    async def slow(_: Ask) -> list[bytes]:
        await gate.wait()
        return stream()

    scene = Scene(cloud(lambda ask: error(429, retry_after="10") if scene.clock.time < START + 10 else slow(ask)), local())
    await scene.ask()
    scene.clock.time += 11
    probe = asyncio.create_task(scene.ask())
    await settle()
    assert (await scene.ask()).headers["x-claudecluster-provider"] == "ollama"
    gate.set()
    assert (await probe).headers["x-claudecluster-provider"] == "anthropic"
    assert (await scene.ask()).headers["x-claudecluster-provider"] == "anthropic"


async def test_a_message_that_showed_nothing_yet_goes_on_with_another_provider() -> None:
    scene = Scene(cloud(lambda _: [stream()[0], CUT]), local())
    paper = await scene.ask()
    assert paper.ended
    assert paper.body.count(b"event: message_start") == 1
    assert b"from here" in paper.body
    assert [record.provider for record in scene.metered] == ["anthropic", "anthropic", "ollama"]  # each request upstream is billed


async def test_a_message_cut_in_its_text_ends_with_max_tokens_and_is_not_asked_again() -> None:
    scene = Scene(cloud(lambda _: [*stream()[:3], CUT]), local())
    paper = await scene.ask()
    assert b'"stop_reason":"max_tokens"' in paper.body
    assert paper.body.endswith(b'data: {"type":"message_stop"}\n\n')
    assert scene.state.posts["ollama"].provider.asked == []  # type: ignore[attr-defined]


async def test_a_message_cut_after_a_tool_call_ends_with_tool_use() -> None:
    scene = Scene(cloud(lambda _: [*stream(tool=True)[:4], CUT]))
    paper = await scene.ask()
    assert b'"stop_reason":"tool_use"' in paper.body


async def test_a_session_cut_after_each_tool_call_is_moved_and_in_the_end_stopped() -> None:
    scene = Scene(cloud(lambda _: [*stream(tool=True)[:4], CUT]))
    for _ in range(3):
        assert (await scene.ask(session="s")).status == 200
    scene.clock.time += 5
    stopped = await scene.ask(session="s")
    assert (stopped.status, stopped.headers["retry-after"]) == (429, "600")
    assert stopped.headers["x-should-retry"] == "false"
    assert b"stopped the loop" in stopped.body
    scene.clock.time += 100
    assert (await scene.ask(session="other")).status == 200
    scene.clock.time += 600
    assert (await scene.ask(session="s")).status == 200


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413])
async def test_errors_that_are_nobodys_limit_are_handed_on_untouched(status: int) -> None:
    scene = Scene(cloud(lambda _: error(status)), local())
    paper = await scene.ask()
    assert (paper.status, orjson.loads(paper.body)["error"]["message"]) == (status, "no")
    assert scene.state.posts["ollama"].provider.asked == []  # type: ignore[attr-defined]
    assert scene.state.posts["anthropic"].lane("claude-opus-5").opens(START) is None


async def test_an_error_event_reaches_a_client_whose_answer_had_begun_and_has_no_other_way() -> None:
    overloaded = Failure(
        Cause.ERROR_EVENT,
        "Overloaded",
        type="overloaded_error",
        body=b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}',
    )
    scene = Scene(cloud(lambda _: [stream()[0], overloaded]))
    paper = await scene.ask()
    assert paper.body.endswith(b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n')


async def test_a_local_model_that_thinks_for_long_keeps_its_client_awake() -> None:
    go = asyncio.Event()

    async def loading(_: Ask) -> list[bytes]:
        await go.wait()
        return stream("slow")

    scene = Scene(local(loading))
    task = asyncio.create_task(scene.ask())
    await asyncio.sleep(0.2)
    go.set()
    paper = await task
    assert paper.body.startswith(b"event: ping\n")
    assert b"slow" in paper.body


@pytest.mark.parametrize(
    ("mode", "connected", "expected"),
    [("auto", False, "ollama"), ("manual", False, 429), ("manual", True, "ollama"), ("disabled", False, 429), ("disabled", True, 429)],
)
async def test_the_mode_says_when_a_local_model_stands_in(mode: Any, connected: bool, expected: object) -> None:
    scene = Scene(cloud(lambda _: error(429, retry_after="999")), local(), fallback=Fallback(mode=mode, connected=connected))
    paper = await scene.ask()
    assert (paper.headers["x-claudecluster-provider"] if paper.status == 200 else paper.status) == expected


async def test_a_rule_sends_a_category_to_the_provider_and_model_it_names() -> None:
    scene = Scene(
        cloud(lambda _: stream()),
        local(),
        rules=(Rule(category="document", providers=("ollama",), use="small"), Rule(model="*haiku*", use="claude-x")),
    )
    paper = await scene.ask(Visitor("r", "t", 1, category="document"))
    assert paper.headers["x-claudecluster-provider"] == "ollama"
    assert scene.state.posts["ollama"].provider.asked[0].model == "small"  # type: ignore[attr-defined]
    assert not scene.metered[-1].degraded
    await scene.ask(model="claude-haiku-4-5")
    assert scene.state.posts["anthropic"].provider.asked[0].model == "claude-x"  # type: ignore[attr-defined]


async def test_the_idlest_local_model_is_asked_first() -> None:
    one, two = local(name="one"), local(name="two")
    one.busy, two.busy = 0.9, 0.1
    scene = Scene(one, two)
    assert (await scene.ask()).headers["x-claudecluster-provider"] == "two"


async def test_budgets_stop_with_the_reason() -> None:
    scene = Scene(cloud(lambda _: stream()), budgets=Budgets(run_tokens=40))
    papers = [await scene.ask(Visitor("r1", "t", 1)) for _ in range(4)]
    assert [paper.status for paper in papers] == [200, 200, 200, 402]
    assert b"This run has used its budget of 40 tokens" in papers[-1].body
    assert papers[-1].headers["x-should-retry"] == "false"
    assert (await scene.ask(Visitor("r2", "t", 1))).status == 200
    visit = Visit(Visitor("r3", "t", 1, budget_usd=0.0001))
    assert [(await scene.ask(visit=visit)).status for _ in range(2)] == [200, 402]


async def test_a_client_that_leaves_the_queue_takes_nobodys_place() -> None:
    clock = Hands()
    admission, lane = Admission(clock), Lane("a", Pace(start=1))
    ticket = await admission.enter([lane], 0, START + 100)
    assert ticket is not None
    waiting = [asyncio.create_task(admission.enter([lane], 0, START + 100)) for _ in range(3)]
    await settle()
    waiting[0].cancel()
    await settle()
    admission.leave(ticket)
    second = await waiting[1]
    assert second is not None
    assert not waiting[2].done()
    await clock.forward(101)
    assert await waiting[2] is None
    admission.leave(second)
    assert lane.flying == 0
    await admission.aclose()


async def test_prices_follow_the_table_and_its_overrides() -> None:
    scene = Scene(cloud(lambda _: stream()))
    await scene.ask()
    assert scene.metered[0].usage == Usage(1, 10, 5, cost_usd=(10 * 5 + 5 * 25) / 1e6)
    tally = Tally(input_tokens=150_000, output_tokens=1000)
    old, new = Price(9, 9, 9, 9, 9, since=date(2026, 1, 1)), Price(1, 2, 0.1, 1.25, 2, since=date(2026, 11, 1))
    prices = Prices({"claude-own": (old, new)})
    assert prices.cost(tally, "claude-own", START) == pytest.approx(0.152)
    assert prices.cost(tally, "claude-own", START - 40 * 86400) == pytest.approx(9 * 0.151)
    assert prices.cost(tally, "claude-haiku-5-5", START) == pytest.approx(0.15 * 0.5 + 0.001 * 2.5)  # beyond 100k tokens
    assert prices.cost(tally, "claude-haiku-4-5-20251001", START) == pytest.approx(0.15 + 0.005)
    assert prices.cost(tally, "claude-opus-4-8[1m]", START) == prices.cost(tally, "claude-opus-4-8", START)
    assert prices.cost(tally, "claude-opus-9", START) == prices.cost(tally, "claude-opus-4-8", START)
    assert prices.cost(tally, "qwen3:8b", START) == 0


async def test_a_thousand_randomly_broken_requests_are_nearly_all_answered() -> None:
    dice = random.Random(7)
    whole = stream()

    def play(_: Ask) -> Any:
        roll = dice.random()
        if roll < 0.1:
            return error(429, retry_after="1")
        if roll < 0.2:
            return error(dice.choice([500, 503, 529]))
        if roll < 0.3:
            return Failure(Cause.UNREACHABLE, "refused")
        if roll < 0.5:
            return [*whole[: dice.randrange(len(whole))], CUT]
        return whole

    scene = Scene(cloud(play), local(lambda ask: play(ask) if dice.random() < 0.2 else stream("here")))
    bad = 0
    for _ in range(1000):
        task = asyncio.create_task(scene.ask())
        while not task.done():
            await settle()
            if not task.done():
                await scene.clock.forward(1)
        paper = task.result()
        bad += paper.status != 200 or not paper.body.endswith(b'data: {"type":"message_stop"}\n\n')
        scene.clock.time += dice.random()
    assert bad <= 10, f"{bad} of 1000"
    await scene.exchange.admission.aclose()


async def test_a_limit_of_one_family_of_models_stops_no_other() -> None:
    scene = Scene(cloud(lambda ask: error(429, retry_after="600") if "opus" in ask.model else stream()), local())
    names = [
        (await scene.ask(model=model)).headers["x-claudecluster-provider"]
        for model in ("claude-opus-5", "claude-haiku-4-5", "claude-opus-5-5")
    ]
    assert names == ["ollama", "anthropic", "ollama"]


async def test_a_limit_of_the_whole_account_stops_every_model_after_one_request() -> None:
    drained = {
        "anthropic_ratelimit_unified_status": "rejected",
        "anthropic_ratelimit_unified_reset": str(START + 600),
        "anthropic_ratelimit_unified_representative_claim": "five_hour",
    }
    scene = Scene(cloud(lambda _: error(429, **drained)), local())
    for model in ("claude-opus-5", "claude-haiku-4-5", "claude-sonnet-5"):
        assert (await scene.ask(model=model)).headers["x-claudecluster-provider"] == "ollama"
    assert len(scene.state.posts["anthropic"].provider.asked) == 1  # type: ignore[attr-defined]
    assert scene.state.usage()["providers"][0]["returns"] == "2026-11-20T09:06:40+00:00"


async def test_a_window_of_one_family_near_its_end_moves_that_family_only() -> None:
    near = {"anthropic_ratelimit_unified_7d_opus_utilization": "0.9", "anthropic_ratelimit_unified_7d_opus_reset": str(START + 600)}
    scene = Scene(cloud(lambda _: answer(stream(), **near)), local())
    names = [
        (await scene.ask(model=model)).headers["x-claudecluster-provider"]
        for model in ("claude-sonnet-5", "claude-opus-5", "claude-sonnet-5")
    ]
    assert names == ["anthropic", "ollama", "anthropic"]


async def test_windows_counted_by_ourselves_move_traffic_where_the_server_tells_none() -> None:
    scene = Scene(cloud(lambda _: stream()), local())
    scene.state.posts["anthropic"].tracker = Tracker(Tier(five_hour=60))
    names = [(await scene.ask()).headers["x-claudecluster-provider"] for _ in range(6)]
    assert names == ["anthropic"] * 4 + ["ollama"] * 2  # 15 tokens each: 60 is full, 48 the threshold
    scene.clock.time += 5 * 3600
    assert (await scene.ask()).headers["x-claudecluster-provider"] == "anthropic"


async def test_a_fault_in_a_providers_own_code_is_one_more_failure() -> None:
    heard: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context["message"]))

    def broken(_: Ask) -> Any:
        raise ZeroDivisionError

    scene = Scene(cloud(broken), local())
    assert (await scene.ask()).headers["x-claudecluster-provider"] == "ollama"
    assert heard == ["the provider anthropic is at fault"] * 2


async def test_the_wait_that_is_told_is_what_is_left_of_it() -> None:
    scene = Scene(cloud(lambda _: error(429, retry_after="100")))
    task = asyncio.create_task(scene.ask())
    await settle()
    await scene.clock.forward(100)
    await scene.clock.forward(100)
    paper = await task
    assert (paper.status, paper.headers["retry-after"]) == (429, "100")
    await scene.exchange.admission.aclose()


async def test_a_request_is_one_span_under_its_task_in_the_trace_of_its_run() -> None:
    exporter = InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    visitor = Visitor("r1", "fix", 2)
    with request_span(visitor, "/v1/messages", "claude-x", tracing.get_tracer("test")) as span:
        span.set_attribute("claudecluster.provider", "anthropic")
    with request_span(Visitor("r1", "other", 1), "/v1/messages", "claude-x", tracing.get_tracer("test")):
        pass
    one, two = exporter.get_finished_spans()
    assert one.context is not None
    assert two.context is not None
    assert one.context.trace_id == two.context.trace_id
    assert one.parent != two.parent
    assert one.attributes is not None
    assert one.attributes["claudecluster.task"] == "fix"
