"""Ollama as a model back end, over its native `/api/chat`: the only wire on which it can be told how much context to use.

The gateway calls it through the `Provider` protocol. Several servers act as one; until the first word of an answer a dying server is replaced
by the next one without the client noticing.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import aiohttp

from claudecluster.gateway.local.answering import Answering, classify, for_client
from claudecluster.gateway.local.asking import UNREAD, Http
from claudecluster.gateway.local.fleet import Fleet, Instance
from claudecluster.gateway.local.listing import error, listed
from claudecluster.gateway.local.models import DEFAULT, Choice, Facts, Row, choose, facts_from
from claudecluster.gateway.local.overflow import overflow
from claudecluster.gateway.local.replies.deltas import Broke, Called, Delta, Said
from claudecluster.gateway.local.replies.from_ollama import OllamaReader
from claudecluster.gateway.local.requests.conversation import Conversation, Target
from claudecluster.gateway.local.requests.to_ollama import Thinking, written
from claudecluster.gateway.local.requests.toolless import in_words
from claudecluster.gateway.provider import COUNT_TOKENS, MODELS, Answer, Ask, Cause, Failure, Health, Kind, Verdict
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.errors import Refused


@dataclass(frozen=True, slots=True)
class OllamaConfig:
    """How to use Ollama. `context` caps a model's window (tokens; memory grows with it), `contexts` sets it per model.

    `model` overrules the table where it is installed. `slots` is the servers' OLLAMA_NUM_PARALLEL. `idle` is how many seconds a
    server may be silent: it reads the prompt, and perhaps loads the model, in silence.
    """

    urls: tuple[str, ...] = ("http://127.0.0.1:11434",)
    name: str = "ollama"
    model: str = ""
    table: tuple[Row, ...] = DEFAULT
    context: int = 65_536
    contexts: Mapping[str, int] = field(default_factory=dict)
    max_output: int = 0
    keep_alive: str = "30m"
    thinking: Thinking = "follow"
    hidden: frozenset[str] = frozenset()
    slots: int = 1
    ping: float = 5.0
    patience: float = 2.0
    idle: float = 1800.0
    api_key: str = field(default="", repr=False)


class Ollama:
    """The provider. `session` stays its owner's; without one it makes its own and closes it in `aclose`."""

    kind: Kind = "local"

    def __init__(self, config: OllamaConfig, *, session: aiohttp.ClientSession | None = None, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._http = Http(config.idle, session)
        self._headers = {"authorization": f"Bearer {config.api_key}"} if config.api_key else {}
        self._fleet = Fleet(config.urls, config.slots, self._http, self._clock, self._headers)
        self._answering = Answering(self._clock, ping=config.ping, patience=config.patience)
        self._toolless: set[str] = set()

    @property
    def name(self) -> str:
        """The name it is chosen and reported by."""
        return self._config.name

    def load(self) -> float:
        """Return how busy it is, over all its servers."""
        return self._fleet.load()

    async def send(self, ask: Ask) -> Answer:
        """Answer with the model the table chooses. Raises Failure where no server answered."""
        models = await self._fleet.models()
        if ask.path == MODELS:
            return listed(models)
        if not models and not any(instance.models_at > float("-inf") for instance in self._fleet.instances):
            raise Failure(Cause.UNREACHABLE, "; ".join(f"{one.url}: {one.why}" for one in self._fleet.instances))
        try:
            choice = for_client(
                self._choice(facts_from(ask.payload, ask.files, category=ask.category, wanted=ask.model), models), ask, models
            )
        except Refused as refused:
            return error(404, f"{refused.message}; {refused.hint}")
        target = await self._target(choice.model)
        if ask.path == COUNT_TOKENS:
            return self._answering.count(ask, target)
        return await self._answering.answer(ask, target, choice, lambda conversation, _: self._deltas(conversation, target))

    def classify(self, failure: Failure) -> Verdict:
        """Say what should be done after one of its failures."""
        return classify(failure)

    async def choose(self, facts: Facts) -> Choice:
        """Return the model it would answer with and why. Raises Refused if none is installed or no server answers."""
        return self._choice(facts, await self._fleet.models())

    async def healthy(self) -> Health:
        """Say whether any server answers and has a model."""
        alive = await self._fleet.check()
        models = tuple(dict.fromkeys(model for instance in alive for model in instance.models))
        ill = "; ".join(f"{one.url}: {one.why}" for one in self._fleet.instances if one not in alive)
        return Health(bool(models), ill or ("" if models else "no model is installed: run `ollama pull qwen3-coder:30b`"), models)

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._fleet.aclose()
        await self._http.aclose()

    def _choice(self, facts: Facts, models: tuple[str, ...]) -> Choice:
        return choose(facts, self._config.table, models, self._config.model)

    async def _target(self, model: str) -> Target:
        shown = await self._fleet.show(model)
        able = shown.capabilities
        # One fixed window per model: Ollama loads a model anew whenever num_ctx changes.
        context = self._config.contexts.get(model) or min(self._config.context, shown.context or self._config.context)
        return Target(
            model,
            context,
            self._config.max_output,
            tools=model not in self._toolless and (able is None or "tools" in able),
            vision=able is not None and "vision" in able,
            thinking=able is not None and "thinking" in able,
            levels="gptoss" in shown.family.replace("-", "") or "gpt-oss" in model,
            hidden=self._config.hidden,
        )

    async def _deltas(self, conversation: Conversation, target: Target) -> AsyncGenerator[Delta, None]:
        """Yield one reply, from the first server that gives one."""
        tried: list[Instance] = []
        last = Failure(Cause.UNREACHABLE, f"no server has {target.model}")
        while (instance := await self._fleet.pick(target.model, tried)) is not None:
            tried.append(instance)
            spoke = False
            instance.in_flight += 1
            try:
                async with aclosing(self._ask(instance, conversation, target)) as deltas:
                    async for delta in deltas:
                        if isinstance(delta, Broke) and not spoke and not UNREAD.search(delta.message):
                            raise Failure(Cause.ERROR_EVENT, delta.message, status=400 if overflow(delta.message) else 0)
                        spoke = spoke or isinstance(delta, Said | Called)
                        yield delta
            except Failure as failure:
                self._fleet.failed(instance, failure)
                if spoke or failure.status in {400, 401, 403}:  # the next server would say the same
                    raise
                last = failure
            else:
                self._fleet.answered(instance)
                return
            finally:
                instance.in_flight -= 1
        raise last

    async def _ask(self, instance: Instance, conversation: Conversation, target: Target) -> AsyncGenerator[Delta, None]:
        url = f"{instance.url}/api/chat"
        body = written(conversation, target, keep_alive=self._config.keep_alive, thinking=self._config.thinking)
        try:
            async with aclosing(self._http.deltas(url, self._headers, body, OllamaReader())) as deltas:
                async for delta in deltas:
                    yield delta
            return
        except Failure as failure:
            if failure.status != 400 or "does not support tools" not in failure.message:
                raise
        self._toolless.add(target.model)  # an old server that could not say so before
        plainly = replace(target, tools=False)
        body = written(in_words(conversation), plainly, keep_alive=self._config.keep_alive, thinking=self._config.thinking)
        async with aclosing(self._http.deltas(url, self._headers, body, OllamaReader())) as deltas:
            async for delta in deltas:
                yield delta
