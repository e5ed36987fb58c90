"""One request from a client, answered: routed, admitted, asked, relayed, metered; moved on where a provider fails.

The doors call it with a request that was let in. Tokens, paths and framing are settled before; what the client has seen of a
broken answer is the relay's knowledge, limits and failures are the state's.
"""

import asyncio
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from claudecluster.gateway.metering.prices import Prices
from claudecluster.gateway.metering.spans import request_span
from claudecluster.gateway.provider import MESSAGES, Ask, Cause, Failure, Verdict
from claudecluster.gateway.routing.admission import Admission
from claudecluster.gateway.routing.asks import conversation, make_ask
from claudecluster.gateway.routing.loops import Loops
from claudecluster.gateway.routing.policy import Choice, Policy
from claudecluster.gateway.routing.relay import Relay
from claudecluster.gateway.routing.state import Purse, State
from claudecluster.gateway.server.message import Refusal, Reply, Request, refuse
from claudecluster.gateway.stream.tally import Tally
from claudecluster.limits.allowance import Allowance
from claudecluster.limits.lane import Lane, Ticket
from claudecluster.limits.signals import BY_TYPE, Signal, Trouble, from_response
from claudecluster.limits.windows import concerns_all
from claudecluster.model.usage import Metered
from claudecluster.ports.gateway import Visitor

TRIES = 8  # of one request, over all providers
GUESSED = 75.0  # seconds: the longest time a lane closes without being told
CLI_WAITS = 60.0  # Claude Code waits by itself for a shorter retry-after, and gives up at once at a longer one


@dataclass(slots=True)
class Visit:
    """Who asks, what their door has used, and whether they may bring a login of their own."""

    visitor: Visitor
    user: str = ""
    allowance: Allowance = field(default_factory=Allowance)
    pass_login: bool = False
    purse: Purse = field(default_factory=Purse)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How patient the exchange is, in seconds: `patience` parks a request in front of closed lanes, `pings` is the longest silence."""

    patience: float = 240.0
    pings: float = 5.0


@dataclass(slots=True)
class _Job:
    """One request on its way."""

    visit: Visit
    ask: Ask
    relay: Relay
    choices: tuple[Choice, ...]
    session: str
    request_id: str
    started: float
    deadline: float
    failed: set[str] = field(default_factory=set)
    retried: set[str] = field(default_factory=set)
    failures: list[tuple[str, Failure, Signal]] = field(default_factory=list)
    tries: int = 0
    again: bool = False  # everybody is being asked a second time


class Exchange:
    """Answers requests."""

    def __init__(
        self, policy: Policy, state: State, prices: Prices, record: Callable[[Metered], None], tuning: Tuning | None = None
    ) -> None:
        self._policy = policy
        self._state = state
        self._prices = prices
        self._record = record
        self._tuning = tuning or Tuning()
        self._clock = state.clock
        self._loops = Loops()
        self._breaks = Loops(allowed=2)
        self.admission = Admission(state.clock)

    async def answer(self, visit: Visit, request: Request, reply: Reply, absent: frozenset[str] = frozenset()) -> None:
        """Answer one request. Cancelled when the client goes away; what was used until then is metered."""
        request_id = "req_" + uuid.uuid4().hex[:24]
        visitor = visit.visitor
        scope = f"{visitor.task}/{visitor.attempt}" if visitor.task else ""
        try:
            ask = replace(make_ask(request, scope, pass_login=visit.pass_login), category=visitor.category, files=visitor.files)
        except ValueError as error:
            await refuse(reply, Refusal(400, str(error), retry=False), request_id)
            return
        if ask.credentials:
            absent = frozenset()
        choices = self._policy.choices(visitor, ask.model, absent)
        if not isinstance(choices, Refusal):
            choices = await self.spent(visit) or choices
        if isinstance(choices, Refusal):
            await refuse(reply, choices, request_id)
            self._state.metrics.answered("", choices.status)
            return
        relay = Relay(reply, ask, request_id, self._tuning.pings)
        deadline = self._clock.now() + self._tuning.patience
        job = _Job(visit, ask, relay, choices, conversation(request.head, ask), request_id, self._clock.monotonic(), deadline)
        with request_span(visitor, ask.path, ask.model) as span:
            provider, status = await self._work(job, reply)
            span.set_attribute("claudecluster.provider", provider)
            span.set_attribute("http.response.status_code", status)
            self._state.metrics.answered(provider, status)

    async def spent(self, visit: Visit) -> Refusal | None:
        """Return why no budget is left for a visit, if none is."""
        if self._policy.budgets.limited or visit.allowance != Allowance():
            await self._state.refresh()
        used = self._state.users.of(visit.user, self._clock.now())
        return self._policy.spent(visit.visitor, visit.purse.used, (used, visit.allowance), self._state.ledger)

    def choices(self, visitor: Visitor, model: str, absent: frozenset[str] = frozenset()) -> tuple[Choice, ...] | Refusal:
        """Return who may answer such a visitor; a Refusal says why nobody may."""
        return self._policy.choices(visitor, model, absent)

    def delay(self, visitor: Visitor, model: str = "", absent: frozenset[str] = frozenset()) -> float:
        """Return for how many seconds limits whose end is known keep everybody from such a visitor; 0 if somebody may answer."""
        choices = self.choices(visitor, model, absent)
        if isinstance(choices, Refusal):
            return 0.0
        now = self._clock.now()
        return min(self._limited(choice, model, now) for choice in choices)

    def _limited(self, choice: Choice, model: str, now: float) -> float:
        """Return how long a limit lasts; that of any model where none was named, as the client then chose by itself."""
        post = self._state.posts[choice.provider.name]
        lanes = [post.lane(choice.model or model)] if choice.model or model else post.lanes.values()
        waits = [lane.closed_until - now for lane in lanes if lane.why == Trouble.LIMITED.value]
        # Shorter ones may be guesses of the lane's own, and requests wait them out by themselves.
        return min((wait for wait in waits if wait > GUESSED), default=0.0)

    async def _work(self, job: _Job, reply: Reply) -> tuple[str, int]:
        """Ask until somebody has answered. Returns who did, and with which status."""
        while job.tries < TRIES:
            if (choices := self._open_to(job)) == ():
                break
            ticket, choice = await self._admit(job, choices)
            if ticket is None or choice is None:
                break
            job.tries += 1
            name = choice.provider.name
            try:
                if job.failures and job.failures[-1][0] != name:
                    self._state.metrics.switched(job.failures[-1][0], name)
                await self._try(job, choice, ticket)
            except Failure as failure:
                if await self._failed(job, choice, ticket, failure):
                    return name, failure.status or 502
            else:
                return name, 200
            finally:
                self.admission.leave(ticket)
        return await self._give_up(job, reply)

    def _open_to(self, job: _Job) -> tuple[Choice, ...]:
        """Return who may be asked now, best first: those near a limit and those that keep breaking off after the others, those closed last."""
        now = self._clock.now()

        def rank(choice: Choice) -> tuple[bool, bool, bool]:
            name = choice.provider.name
            crossed = self._state.posts[name].crossed(choice.model or job.ask.model, now)
            # Claude Code takes up a broken answer three times; the last of them had better be somebody else's.
            unsteady = self._breaks.broken(job.session, name, now)
            return self._lane(choice, job.ask.model).opens(now) is not None, unsteady, crossed

        left = [choice for choice in job.choices if choice.provider.name not in job.failed]
        sound = [choice for choice in left if not self._loops.broken(job.session, choice.provider.name, now)]
        return tuple(sorted(sound, key=rank))

    async def _admit(self, job: _Job, choices: tuple[Choice, ...]) -> tuple[Ticket | None, Choice | None]:
        now = self._clock.now()
        lane_of = {choice: self._lane(choice, job.ask.model) for choice in choices}
        opened = [choice for choice in choices if lane_of[choice].opens(now) is None]
        # A lane being probed is as good as closed where somebody else can answer meanwhile.
        free = [choice for choice in opened if not lane_of[choice].probing]
        wanted = free[:1] or opened or list(choices)
        same = [choice for choice in free if choice.provider.kind == wanted[0].provider.kind] or wanted
        ticket = await self.admission.enter([lane_of[choice] for choice in same], job.visit.visitor.priority, job.deadline)
        if ticket is None:
            return None, None
        return ticket, next(choice for choice in same if lane_of[choice] is ticket.lane)

    async def _try(self, job: _Job, choice: Choice, ticket: Ticket) -> None:
        provider, tally = choice.provider, Tally()
        ask = job.ask if not choice.model else replace(job.ask, model=choice.model)

        def good() -> None:
            ticket.lane.good(ticket)
            self.admission.changed()
            self._state.metrics.first_byte(provider.name, self._clock.monotonic() - job.started)

        try:
            answer = await job.relay.ask(provider, ask)
        except Failure:
            raise
        except Exception as error:
            raise _fault(provider.name, error) from error
        try:
            if ask.path == MESSAGES:  # counting tokens has limits of its own
                self._state.heard(self._state.posts[provider.name], ask.model, answer.headers)
            await job.relay.take(answer, provider, tally, good)
            if ask.path == MESSAGES:
                self._loops.whole(job.session, provider.name)
                self._breaks.whole(job.session, provider.name)
        except (Failure, ConnectionError):
            raise
        except Exception as error:
            raise _fault(provider.name, error) from error
        finally:
            if tally.message or tally.input_tokens:
                self._meter(job, choice, tally, answer.model or ask.model)
            await answer.close()

    async def _failed(self, job: _Job, choice: Choice, ticket: Ticket, failure: Failure) -> bool:
        """Take in a failure. Returns whether the client has its answer now."""
        provider, now = choice.provider, self._clock.now()
        signal = _signal(failure, now)
        self._state.metrics.failed(provider.name, failure.cause.value, signal.trouble.value)
        if job.ask.path == MESSAGES or signal.trouble is Trouble.GONE:
            self._close(provider.name, ticket, failure, signal, now)
        job.failures.append((provider.name, failure, signal))
        if job.relay.committed:
            await self._broke_off(job, provider.name, failure, now)
            return True
        verdict = provider.classify(failure)
        if verdict is Verdict.STOP:
            await job.relay.fail(failure, _final(provider.name, job.ask, failure, signal, now))
            return True
        if verdict is Verdict.NEXT or provider.name in job.retried:
            job.failed.add(provider.name)
        job.retried.add(provider.name)
        if not self._open_to(job) and (signal.trouble is Trouble.LIMITED or (len(job.choices) > 1 and not job.again)):
            # Nobody else may answer: wait for the lane with all the others; or all have failed, and once is no proof.
            job.again = True
            job.failed.clear()
        await job.relay.go_on()
        return False

    async def _broke_off(self, job: _Job, name: str, failure: Failure, now: float) -> None:
        """End an answer of which the client has a part: such that it asks for the rest, or with the failure where that was in vain before."""
        alone = all(choice.provider.name == name for choice in job.choices)
        # Claude Code asks for the rest three times, and would then speak of its output limit.
        vain = alone and not job.relay.tools and self._breaks.broken(job.session, name, now)
        self._breaks.cut(job.session, name, now)
        if job.relay.tools:
            self._loops.cut(job.session, name, now)
        if vain:
            await job.relay.fail(failure, {})
            return
        self._state.metrics.spliced()
        await job.relay.close()

    async def _give_up(self, job: _Job, reply: Reply) -> tuple[str, int]:
        now = self._clock.now()
        if job.failures:
            # The failure of whom was wanted most says more than those of the stand-ins, and its latest word is the truest.
            first = next((row for row in job.failures if row[1].cause is Cause.STATUS), job.failures[0])
            name, failure, signal = [row for row in job.failures if (row[0], row[1].cause) == (first[0], first[1].cause)][-1]
            await job.relay.fail(failure, _final(name, job.ask, failure, signal, now))
            return name, failure.status or 502
        names = [choice.provider.name for choice in job.choices]
        if all(self._loops.broken(job.session, name, now) for name in names):
            message = f"{' and '.join(names)} kept breaking off after tool calls in this session; the gateway stopped the loop. Try again in some minutes."
            refusal = Refusal(429, message, retry=False, retry_after=self._loops.forgiven_after)  # every CLI gives up at once at such a one
        else:
            lanes = [self._lane(choice, job.ask.model) for choice in job.choices]
            waits = [(opens - now, lane.why) for lane in lanes if (opens := lane.opens(now)) is not None]
            wait, why = min(waits, default=(5.0, ""))
            status = 429 if why in {Trouble.LIMITED.value, ""} else 529
            message = f"No model can answer now: {', '.join(names)} {'is' if len(names) == 1 else 'are'} {why or 'busy'}. Capacity is expected in {round(wait)} s."
            refusal = Refusal(status, message, retry=wait < CLI_WAITS, retry_after=wait)
        await refuse(reply, refusal, job.request_id)
        return "", refusal.status

    def _meter(self, job: _Job, choice: Choice, tally: Tally, asked: str) -> None:
        now = self._clock.now()
        provider, visitor = choice.provider, job.visit.visitor
        model = tally.model or asked
        cost = self._prices.cost(tally, model, now) if provider.kind == "anthropic" else 0.0
        record = Metered(
            f"{provider.name}:{tally.message}:{job.request_id}:{job.tries}",
            visitor.run,
            visitor.task,
            visitor.attempt,
            provider.name,
            model,
            tally.usage(cost),
            now,
            degraded=choice.degraded and visitor.privacy != "local",
            session=job.ask.session,
            user=job.visit.user,
        )
        if self._state.record(record):
            job.visit.purse.used += record.usage
            self._record(record)

    def _close(self, name: str, ticket: Ticket, failure: Failure, signal: Signal, now: float) -> None:
        ticket.lane.bad(ticket, signal.trouble, now, until=signal.until, chance=random.random())  # noqa: S311 - jitter
        if signal.trouble is Trouble.GONE or concerns_all(failure.headers):
            self._state.posts[name].shut(ticket.lane.closed_until, signal.trouble, now)

    def _lane(self, choice: Choice, model: str) -> Lane:
        return self._state.posts[choice.provider.name].lane(choice.model or model)


def _fault(name: str, error: Exception) -> Failure:
    """Return the failure that a fault in a provider's own code is to everybody else; the loop's owner hears of the fault."""
    asyncio.get_running_loop().call_exception_handler({"message": f"the provider {name} is at fault", "exception": error})
    return Failure(Cause.MALFORMED, f"{name} failed: {type(error).__name__}.")


def _signal(failure: Failure, now: float) -> Signal:
    match failure.cause:
        case Cause.STATUS:
            return from_response(failure.status, failure.headers, failure.type, now) or Signal(Trouble.BROKEN)
        case Cause.ERROR_EVENT:
            return Signal(BY_TYPE.get(failure.type, Trouble.BROKEN), None, failure.type)
        case Cause.UNREACHABLE:
            return Signal(Trouble.GONE)
        case Cause.SILENT | Cause.CUT | Cause.MALFORMED:
            return Signal(Trouble.BROKEN)


def _final(name: str, ask: Ask, failure: Failure, signal: Signal, now: float) -> Mapping[str, str]:
    """Return headers that say whose failure it is, and keep the client from asking again in vain."""
    whose = {"x-claudecluster-provider": name}
    if failure.status == 401 and not ask.credentials:
        return whose | {"x-should-retry": "false"}  # the key is ours: the client's ten tries would change nothing
    if signal.trouble is Trouble.LIMITED and signal.until is not None:
        wait = max(1.0, signal.until - now)  # it may have waited with us for a while
        return whose | {"retry-after": str(round(wait))} | ({"x-should-retry": "false"} if wait > CLI_WAITS else {})
    return whose
