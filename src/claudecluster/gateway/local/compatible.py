"""Servers that speak OpenAI's or Anthropic's wire: vLLM, llama.cpp, LM Studio, SGLang, Ollama's own `/v1`.

The gateway calls them through the `Provider` protocol. Both wires are written anew on the way back, so that the client sees one dialect.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from claudecluster.gateway.local.answering import Answering, classify, for_client
from claudecluster.gateway.local.asking import Http
from claudecluster.gateway.local.listing import error, listed
from claudecluster.gateway.local.models import Choice, Facts, Row, choose, facts_from
from claudecluster.gateway.local.overflow import overflow
from claudecluster.gateway.local.replies.deltas import Delta
from claudecluster.gateway.local.replies.from_anthropic import AnthropicReader
from claudecluster.gateway.local.replies.from_openai import OpenAiReader
from claudecluster.gateway.local.requests import to_anthropic, to_openai
from claudecluster.gateway.local.requests.conversation import Conversation, Target
from claudecluster.gateway.provider import COUNT_TOKENS, MODELS, Answer, Ask, Failure, Health, Kind, Verdict
from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.errors import Refused

MODELS_FOR = 30.0  # seconds the list of models is remembered
CONTEXT = 32_768  # tokens, for servers that do not say
LEAST_ROOM = 256  # tokens: with less left for an answer the prompt is too long


@dataclass(frozen=True, slots=True)
class CompatibleConfig:
    """How to use such a server. `url` without `/v1`. `context` 0: ask the server (vLLM says), else 32,768 tokens.

    `model` overrules the table where the server has it. `truncates`: the server cuts a too long prompt silently (Ollama's `/v1`), so
    the estimate decides alone. `slots` is what it serves at once.
    """

    url: str
    wire: Literal["openai", "anthropic"] = "openai"
    name: str = "openai-compatible"
    model: str = ""
    table: tuple[Row, ...] = ()
    context: int = 0
    max_output: int = 0
    tools: bool = True
    vision: bool = False
    truncates: bool = False
    hidden: frozenset[str] = frozenset()
    slots: int = 8
    ping: float = 5.0
    patience: float = 2.0
    idle: float = 1800.0
    api_key: str = field(default="", repr=False)


class Compatible:
    """The provider. `session` stays its owner's; without one it makes its own and closes it in `aclose`."""

    kind: Kind = "local"

    def __init__(self, config: CompatibleConfig, *, session: aiohttp.ClientSession | None = None, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._url = config.url.rstrip("/").removesuffix("/v1")
        self._http = Http(config.idle, session)
        self._answering = Answering(self._clock, ping=config.ping, patience=config.patience, strict=config.truncates)
        self._headers = {"authorization": f"Bearer {config.api_key}"} if config.api_key else {}
        if config.wire == "anthropic":
            self._headers |= {"anthropic-version": "2023-06-01"} | ({"x-api-key": config.api_key} if config.api_key else {})
        self._models: dict[str, int] = {}
        self._models_at = float("-inf")
        self._in_flight = 0

    @property
    def name(self) -> str:
        """The name it is chosen and reported by."""
        return self._config.name

    def load(self) -> float:
        """Return requests in flight over what it serves at once."""
        return self._in_flight / max(1, self._config.slots)

    async def send(self, ask: Ask) -> Answer:
        """Answer with the model asked for, the configured one, or what the table chooses. Raises Failure where none came."""
        models = tuple(await self._known())
        if ask.path == MODELS:
            return listed(models)
        try:
            choice = for_client(
                self._choice(facts_from(ask.payload, ask.files, category=ask.category, wanted=ask.model), models), ask, models
            )
        except Refused as refused:
            return error(404, f"{refused.message}; {refused.hint}")
        target = Target(
            choice.model,
            self._config.context or self._models.get(choice.model) or CONTEXT,
            self._config.max_output,
            tools=self._config.tools,
            vision=self._config.vision,
            hidden=self._config.hidden,
        )
        if ask.path == COUNT_TOKENS:
            return self._answering.count(ask, target)
        return await self._answering.answer(ask, target, choice, lambda conversation, tokens: self._deltas(conversation, target, tokens))

    def classify(self, failure: Failure) -> Verdict:
        """Say what should be done after one of its failures."""
        return classify(failure)

    async def choose(self, facts: Facts) -> Choice:
        """Return the model it would answer with and why. Raises Refused if it has none, Failure if it does not answer."""
        return self._choice(facts, tuple(await self._known()))

    async def healthy(self) -> Health:
        """Say whether it answers and has a model."""
        self._models_at = float("-inf")
        try:
            models = tuple(await self._known())
        except Failure as failure:
            return Health(ok=False, why=failure.message)
        return Health(bool(models), "" if models else f"{self._url} has no model", models)

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._http.aclose()

    def _choice(self, facts: Facts, models: tuple[str, ...]) -> Choice:
        return choose(facts, self._config.table, models, self._config.model)

    async def _known(self) -> dict[str, int]:
        """Return the models with their windows. A server without a list serves the model it was configured with."""
        now = self._clock.monotonic()
        if now - self._models_at < MODELS_FOR:
            return self._models
        try:
            said = await self._http.json("GET", f"{self._url}/v1/models", headers=self._headers)
        except Failure as failure:
            if failure.status != 404 or not self._config.model:
                raise
            said = {"data": [{"id": self._config.model}]}
        self._models, self._models_at = _windows(said), now
        return self._models

    async def _deltas(self, conversation: Conversation, target: Target, tokens: int) -> AsyncGenerator[Delta, None]:
        if self._config.wire == "openai":
            path, body = "/v1/chat/completions", to_openai.written(conversation, target, tokens)
        else:
            path, body = "/v1/messages", to_anthropic.written(conversation, target, tokens)
        self._in_flight += 1
        try:
            async with aclosing(self._asked(path, body)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self._in_flight -= 1

    async def _asked(self, path: str, body: dict[str, Any]) -> AsyncGenerator[Delta, None]:
        """Yield the reply; where only the room for the answer was asked too large, ask again with what the server said is left."""
        for last in (False, True):
            reader = OpenAiReader() if self._config.wire == "openai" else AnthropicReader()
            try:
                async with aclosing(self._http.deltas(f"{self._url}{path}", self._headers, body, reader)) as deltas:
                    async for delta in deltas:
                        yield delta
                return
            except Failure as failure:
                said = overflow(failure.message) if failure.status == 400 else None
                if last or said is None or not 0 < said.used < said.limit - LEAST_ROOM:
                    raise
                body = {**body, "max_tokens": said.limit - said.used - LEAST_ROOM // 8}


def _windows(said: Any) -> dict[str, int]:
    listed_models = said.get("data") if isinstance(said, dict) else None
    models = [model for model in listed_models or () if isinstance(model, dict) and model.get("id")]
    windows = {str(model["id"]): model.get("max_model_len") or model.get("max_context_length") for model in models}
    return {name: window if isinstance(window, int) else 0 for name, window in windows.items()}
