"""The gateway without its doors: providers, their state, the exchange, the meter, and a cassette if there is one.

`gateway.py` puts Unix sockets in front of it, `standalone.py` a TCP port. One core serves one event loop.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from claudecluster.gateway.metering.prices import Price, Prices
from claudecluster.gateway.provider import COUNT_TOKENS, MESSAGES, MODELS, Ask, Provider
from claudecluster.gateway.recording.cassette import Microphone, Player, Recorder, Track
from claudecluster.gateway.routing.asks import make_ask
from claudecluster.gateway.routing.exchange import Exchange, Tuning, Visit
from claudecluster.gateway.routing.policy import Budgets, Fallback, Policy, Rule
from claudecluster.gateway.routing.recall import Past
from claudecluster.gateway.routing.state import Books, State
from claudecluster.gateway.server.intake import Bounds
from claudecluster.gateway.server.message import Head, Refusal, Reply, Request, refuse
from claudecluster.gateway.stream.sse import Frames
from claudecluster.gateway.stream.tally import Tally
from claudecluster.gateway.upstream.anthropic import Anthropic, AnthropicConfig
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.limits.allowance import Spending
from claudecluster.limits.lane import Pace
from claudecluster.model.errors import ClusterError, Refused, Unavailable
from claudecluster.model.usage import Metered
from claudecluster.ports.gateway import Meter, Visitor

METHODS: Mapping[str, str] = {MESSAGES: "POST", COUNT_TOKENS: "POST", MODELS: "GET"}
PROBES = frozenset({"/", "/api/hello"})  # Claude Code looks here at its start


def never() -> bool:
    """Say no."""
    return False


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """All the gateway is told. `sockets` is a folder of its own; `local` are the back ends on the user's machines, best first.

    `tier` (api, pro, max5, max20) counts windows where the server reports none. `pass_login` lets a user's own subscription
    login through to Anthropic, in flight only. `connected` is asked for each request: true sends it to the local models.
    Budgets and `/usage` count what `past` keeps beside what this gateway meters itself; without it, only the latter.
    With `replay`, every answer comes from that cassette and nothing else is asked; with `record`, answers are written to one.
    """

    sockets: Path
    anthropic: AnthropicConfig = field(default_factory=AnthropicConfig)
    local: tuple[Provider, ...] = ()
    fallback: Fallback = field(default_factory=Fallback)
    connected: Callable[[], bool] = never
    rules: tuple[Rule, ...] = ()
    budgets: Budgets = field(default_factory=Budgets)
    tier: str = "api"
    prices: Mapping[str, Price] = field(default_factory=dict)
    bounds: Bounds = field(default_factory=Bounds)
    pace: Pace = field(default_factory=Pace)
    tuning: Tuning = field(default_factory=Tuning)
    pass_login: bool = False
    record: Path | None = None
    replay: Path | None = None
    past: Past | None = None
    clock: Clock = field(default_factory=SystemClock)


async def forget(metered: Metered) -> None:
    """Take a record and do nothing with it."""


class Core:
    """Answers whoever was let in."""

    def __init__(self, config: GatewayConfig, meter: Meter = forget) -> None:
        self.config = config
        self._meter = meter
        self._anthropic = Anthropic(config.anthropic)
        self.providers: tuple[Provider, ...] = (self._anthropic, *config.local)
        books = Books(config.tier, Spending(config.budgets.user_period), config.past)
        self.state = State(self.providers, config.fallback, config.clock, books, config.pace)
        policy = Policy(self.providers, config.fallback, config.rules, config.budgets)
        self._exchange = Exchange(policy, self.state, Prices(config.prices), self._record, config.tuning)
        self._connected = config.fallback.connected
        self._player = Player(config.replay) if config.replay is not None else None
        self._recorder = Recorder(config.record) if config.record is not None else None
        self._writing: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """How many requests wait for a provider."""
        return self._exchange.admission.waiting

    async def check(self) -> None:
        """Raise Unavailable, with a hint, if no model could be reached as configured."""
        if self._player is None and not self.config.local and not await self._anthropic.configured():
            raise Unavailable(
                "No model can be reached: there is no Anthropic API key and no local model.",
                hint="Set ANTHROPIC_API_KEY, or OLLAMA_BASE_URL for a local model.",
            )

    async def admissible(self, visitor: Visitor) -> None:
        """Raise Refused if no model may ever answer such a visitor as things are configured, or if no budget is left for one."""
        if self._player is not None:
            return
        found = self._exchange.choices(visitor, visitor.model, await self._absent())
        if isinstance(found, Refusal):
            raise Refused(found.message, hint="set OLLAMA_BASE_URL for a local model, or ANTHROPIC_API_KEY for Anthropic's")
        if (spent := await self._exchange.spent(Visit(visitor))) is not None:
            raise Refused(spent.message, hint="raise it in [budgets] of your configuration, and run it again")

    async def answer(self, visit: Visit, request: Request, reply: Reply) -> None:
        """Answer one request to the model API, from a cassette or for real."""
        if self._player is not None:
            await self._replay(self._player, visit, request, reply)
            return
        self.state.fallback.connected = self._connected or self.config.connected()
        if self._recorder is None:
            await self._exchange.answer(visit, request, reply, await self._absent())
            return
        microphone = Microphone(reply)
        try:
            await self._exchange.answer(visit, request, microphone, await self._absent())
        finally:  # a client may be gone as soon as it has its answer
            if microphone.lasting and (ask := _ask(visit, request)) is not None:
                self._later(self._keep(self._recorder, ask, microphone.track()))

    async def delay(self, visitor: Visitor) -> float:
        """Return for how many seconds limits whose end is known keep everybody from answering such a visitor; 0 if somebody may."""
        return 0.0 if self._player is not None else self._exchange.delay(visitor, visitor.model, await self._absent())

    async def settle(self) -> None:
        """Wait until what was metered and recorded is written down."""
        while self._writing:
            await asyncio.wait(set(self._writing))

    async def aclose(self) -> None:
        """Let go of all connections."""
        await self.settle()
        await self._exchange.admission.aclose()
        for provider in self.providers:
            await provider.aclose()

    async def _absent(self) -> frozenset[str]:
        try:
            configured = await self._anthropic.configured()
        except ClusterError:
            configured = True  # a key that cannot be read is an error to be seen, not a reason to go elsewhere
        return frozenset() if configured else frozenset({self._anthropic.name})

    async def _replay(self, player: Player, visit: Visit, request: Request, reply: Reply) -> None:
        ask = _ask(visit, request)
        track = player.find(ask) if ask is not None else None
        if ask is None or track is None:
            await refuse(reply, Refusal(400, "The cassette holds no answer to this request.", retry=False))
            return
        if track.status == 200 and ask.path == MESSAGES:
            self._record(_replayed(visit, ask, track, self.config.clock.now()))
        reply.start(track.status, track.headers.items(), length=None if ask.stream and track.status == 200 else len(track.body))
        await reply.end(track.body)

    async def _keep(self, recorder: Recorder, ask: Ask, track: Track) -> None:
        ours = self.config.anthropic
        await recorder.keep(ask, track, [await ours.key(), await ours.auth_token()])

    def _record(self, metered: Metered) -> None:
        if self._meter is not forget:
            self._later(self._meter(metered))

    def _later(self, work: Awaitable[None]) -> None:
        task = asyncio.get_running_loop().create_task(_told(work))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)


async def _told(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception as error:  # noqa: BLE001 - the meter is another room's; its failure must not fail a request
        context = {"message": "a request could not be written down", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)


def _ask(visit: Visit, request: Request) -> Ask | None:
    try:
        return make_ask(request, scope_of(visit))
    except ValueError:
        return None


def scope_of(visit: Visit) -> str:
    """Return what names a visitor's task and attempt in a cassette."""
    return f"{visit.visitor.task}/{visit.visitor.attempt}" if visit.visitor.task else ""


def _replayed(visit: Visit, ask: Ask, track: Track, now: float) -> Metered:
    """Return the record of a replayed answer: its tokens as they were, and no cost."""
    tally = Tally()
    if ask.stream:
        for frame in Frames().feed(track.body):
            if b'"usage"' in frame.data:
                tally.event(frame.json())
    else:
        tally.document(orjson.loads(track.body))
    visitor = visit.visitor
    key = f"replay:{visitor.run}:{scope_of(visit)}:{tally.message}:{now}"
    return Metered(
        key, visitor.run, visitor.task, visitor.attempt, "replay", tally.model, tally.usage(), now, session=ask.session, user=visit.user
    )


def tokens(head: Head) -> list[str]:
    """Return the tokens a request shows, in either of the ways Claude Code has, or in our own header beside a login."""
    shown = [head.headers.get("x-api-key", ""), head.headers.get("x-claudecluster-token", "")]
    scheme, _, value = head.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        shown.append(value.strip())
    return [token for token in shown if token]


def holds(head: Head, token: bytes) -> bool:
    """Whether a request shows this token."""
    return any([hmac.compare_digest(shown.encode(), token) for shown in tokens(head)])  # noqa: C419 - always as many comparisons


def bodiless(head: Head) -> Refusal | None:
    """Return the refusal of a body where there is none to be: it would be held in memory for clients that show no token."""
    if head.method in {"GET", "HEAD"} and (head.headers.get("content-length", "0").strip("0") or "transfer-encoding" in head.headers):
        return Refusal(400, f"{head.method} takes no body here.", retry=False)
    return None


def misdirected(head: Head) -> Refusal | None:
    """Return the refusal of a request to no path of the model API, or with the wrong method."""
    method = METHODS.get(head.path)
    if method is None:
        return Refusal(404, f"The gateway has no {head.path[:200]}.", retry=False)
    if head.method != method:
        return Refusal(405, f"{head.path} takes {method} only.", retry=False, headers={"allow": method})
    return None
