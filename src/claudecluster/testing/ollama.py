"""A scripted Ollama server: the real one's routes, limits and faults, and whatever replies a test gives it. It has no model.

Faithful to ollama/ollama v0.33 as far as clients can tell (api/types.go, server/routes.go, docs/api.md, docs/openai.md). Tests and demos start it
with `async with ScriptedOllama(...) as server:` and give `server.url` to whatever shall talk to it. `ollama_wires` writes the replies out.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web

from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.testing.ollama_wires import WIRES, Reply, Wire

BUSY = "server busy, please try again.  maximum pending requests exceeded"
TOO_LONG = "the input length exceeds the context length"
ROUTES = {"/api/chat": "chat", "/v1/chat/completions": "openai", "/v1/messages": "anthropic"}


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """A model the server claims to have."""

    name: str = "qwen3-coder:30b"
    context_length: int = 262_144
    capabilities: tuple[str, ...] | None = ("completion", "tools")  # None: a server too old to say
    family: str = "qwen3moe"
    size: int = 18_556_700_761
    remote_host: str = ""  # set for a model that is passed on to a cloud


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came. `truncated` says that the server cut the prompt silently; `tokens` is its count of the prompt."""

    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    tokens: int = 0
    truncated: bool = False


Script = Sequence[Reply] | Callable[[Mapping[str, Any]], Reply]


@dataclass(slots=True)
class ScriptedOllama:
    """The server. `script` is played one reply a prompt, then `otherwise`; a callable gets the body and decides itself.

    `parallel` and `max_queue` are OLLAMA_NUM_PARALLEL and OLLAMA_MAX_QUEUE, `default_context` OLLAMA_CONTEXT_LENGTH.
    `/api/tags` waits for `tags_hold`. `cancelled` counts prompts whose client went away before the end.
    """

    script: Script = ()
    models: Sequence[OllamaModel] = (OllamaModel(),)
    otherwise: Reply = field(default_factory=lambda: Reply("ok"))
    parallel: int = 1
    max_queue: int = 512
    default_context: int = 4096
    host: str = "127.0.0.1"
    port: int = 0
    clock: Clock = field(default_factory=SystemClock)
    tags_hold: asyncio.Event | None = None
    seen: list[Seen] = field(default_factory=list)
    loaded: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0
    most_in_flight: int = 0
    cancelled: int = 0
    _runner: web.AppRunner | None = None
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    _played: int = 0
    _pending: int = 0
    _open: set[asyncio.BaseTransport] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    def count(self, path: str = "") -> int:
        """Return how many requests came, to one path or to any that makes a model answer."""
        return sum(seen.path == path if path else seen.path in ROUTES for seen in self.seen)

    def bodies(self) -> list[Mapping[str, Any]]:
        """Return the prompts that came, oldest first."""
        return [seen.body for seen in self.seen if seen.path in ROUTES]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; again on the same port after a stop."""
        self._slots = asyncio.Semaphore(self.parallel)
        app = web.Application(client_max_size=256 * 1024 * 1024)
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/tags", self._tags)
        app.router.add_get("/api/ps", self._ps)
        app.router.add_post("/api/show", self._show)
        app.router.add_get("/v1/models", self._v1_models)
        for path in ROUTES:
            app.router.add_post(path, self._prompt)
        app.router.add_route("HEAD", "/", self._alive)
        app.router.add_get("/", self._alive, allow_head=False)
        # A client that goes away stops the model, as in the real server.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, reuse_address=True)
        await site.start()
        addresses = self._runner.addresses
        self.port = int(addresses[0][1])

    async def stop(self) -> None:
        """Die: refuse connections, cut those that are open."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for transport in list(self._open):
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
        await runner.cleanup()

    async def _alive(self, _: web.Request) -> web.Response:
        return web.Response(text="Ollama is running")

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.33.0"})

    async def _tags(self, request: web.Request) -> web.Response:
        self._note(request, {})
        if self.tags_hold is not None:
            await self.tags_hold.wait()
        models = [_described(model) | {"capabilities": list(model.capabilities or ())} for model in self.models]
        return web.json_response({"models": models})

    async def _ps(self, request: web.Request) -> web.Response:
        self._note(request, {})
        known = {model.name: model for model in self.models}
        running = [
            _described(known[name]) | {"size_vram": known[name].size, "expires_at": "2030-01-01T00:00:00Z", "context_length": context}
            for name, context in self.loaded.items()
        ]
        return web.json_response({"models": running})

    async def _show(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        self._note(request, body)
        model = self._model(str(body.get("model") or body.get("name") or ""))
        if model is None:
            return web.json_response({"error": f"model '{body.get('model')}' not found"}, status=404)
        info = {"general.architecture": model.family, f"{model.family}.context_length": model.context_length}
        shown: dict[str, Any] = {"details": {"family": model.family, "families": [model.family]}, "model_info": info}
        if model.capabilities is not None:
            shown["capabilities"] = list(model.capabilities)
        return web.json_response(shown)

    async def _v1_models(self, request: web.Request) -> web.Response:
        self._note(request, {})
        data = [{"id": model.name, "object": "model", "created": 0, "owned_by": "library"} for model in self.models]
        return web.json_response({"object": "list", "data": data})

    async def _prompt(self, request: web.Request) -> web.StreamResponse:
        wire = WIRES[ROUTES[request.path]]
        try:
            body = orjson.loads(await request.read())
        except orjson.JSONDecodeError as error:
            return wire.refusal(400, str(error))
        model = self._model(str(body.get("model", "")))
        native = request.path == "/api/chat"
        tokens, limit = _tokens(body), self._limit(body, model, native=native)
        keeps = native and body.get("truncate") is False
        self._note(request, body, tokens, truncated=tokens > limit and not keeps)
        if model is None:
            return wire.refusal(404, f"model '{body.get('model')}' not found")
        wrong = _wrong(body, model, native=native)
        if wrong:
            return wire.refusal(400, wrong)
        if self._pending >= self.parallel + self.max_queue:
            return wire.refusal(503, BUSY)
        self._pending += 1
        try:
            async with self._slots:
                return await self._answer(request, wire, body, (model, limit), tokens if keeps else min(tokens, limit))
        except (asyncio.CancelledError, ConnectionResetError):
            self.cancelled += 1
            raise
        finally:
            self._pending -= 1

    async def _answer(
        self, request: web.Request, wire: Wire, body: Mapping[str, Any], sized: tuple[OllamaModel, int], tokens: int
    ) -> web.StreamResponse:
        model, limit = sized
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        transport = request.transport
        self._open |= {transport} if transport is not None else set()
        try:
            reply = self._next(body)
            await self._prefill(reply)
            if reply.dies:
                await self.stop()
                raise ConnectionResetError
            self.loaded[model.name] = limit
            if tokens > limit:
                return wire.refusal(400, TOO_LONG)
            if reply.status != 200:
                return wire.refusal(reply.status, reply.error or "internal server error")
            if body.get("stream", request.path == "/api/chat") is False:
                return wire.whole(reply, model.name, reply.prompt_tokens or tokens)
            pieces = wire.stream(reply, model.name, reply.prompt_tokens or tokens)
            if pieces[0].startswith(b'{"error"'):  # an error before anything else still gets its status
                return wire.refusal(500, orjson.loads(pieces[0])["error"])
            return await self._streamed(request, wire, pieces, reply)
        finally:
            self.in_flight -= 1
            self._open -= {transport}

    async def _streamed(self, request: web.Request, wire: Wire, pieces: Sequence[bytes], reply: Reply) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": wire.media_type})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for piece in self._paced(pieces, reply):
            await response.write(piece)
        if reply.cut_after is not None:
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response

    async def _paced(self, pieces: Sequence[bytes], reply: Reply) -> AsyncIterator[bytes]:
        for number, piece in enumerate(pieces):
            if reply.cut_after is not None and number >= reply.cut_after:
                return
            if reply.pause:
                await self.clock.sleep(reply.pause)
            if reply.hold_after is not None and number >= reply.hold_after and reply.hold is not None:
                await reply.hold.wait()
            yield piece

    async def _prefill(self, reply: Reply) -> None:
        if reply.wait:
            await self.clock.sleep(reply.wait)
        if reply.hold is not None and reply.hold_after is None:
            await reply.hold.wait()

    def _next(self, body: Mapping[str, Any]) -> Reply:
        if callable(self.script):
            return self.script(body)
        number, self._played = self._played, self._played + 1
        return self.script[number] if number < len(self.script) else self.otherwise

    def _model(self, name: str) -> OllamaModel | None:
        full = name if ":" in name else f"{name}:latest"
        return next((model for model in self.models if model.name in {name, full}), None)

    def _limit(self, body: Mapping[str, Any], model: OllamaModel | None, *, native: bool) -> int:
        options = body.get("options") if native else None
        asked = options.get("num_ctx") if isinstance(options, dict) else None
        return min(int(asked or self.default_context), model.context_length if model is not None else self.default_context)

    def _note(self, request: web.Request, body: Mapping[str, Any], tokens: int = 0, *, truncated: bool = False) -> None:
        self.seen.append(Seen(request.path, body, {key.lower(): value for key, value in request.headers.items()}, tokens, truncated))


def _described(model: OllamaModel) -> dict[str, Any]:
    details = {
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": "30B",
        "quantization_level": "Q4_K_M",
    }
    described = {"name": model.name, "model": model.name, "size": model.size, "digest": "0" * 64, "details": details}
    return described | ({"remote_host": model.remote_host, "remote_model": model.name} if model.remote_host else {})


def _tokens(body: Mapping[str, Any]) -> int:
    """Count a token for every four bytes of what the model would read."""
    read = [body.get("messages"), body.get("system"), body.get("tools")]
    return len(orjson.dumps(read)) // 4


def _wrong(body: Mapping[str, Any], model: OllamaModel, *, native: bool) -> str:
    """Return what the real server would refuse with a 400, "" if nothing."""
    able = model.capabilities if model.capabilities is not None else ("completion",)
    if body.get("tools") and "tools" not in able:
        return f"registry.ollama.ai/library/{model.name} does not support tools"
    if native and body.get("think") and "thinking" not in able:
        return f'"{model.name}" does not support thinking'
    if not native:
        return ""
    for message in body.get("messages") or ():
        for call in message.get("tool_calls") or ():
            if not isinstance(call["function"].get("arguments"), dict):
                return "json: cannot unmarshal string into Go struct field ChatRequest.messages.tool_calls.function.arguments"
    for tool in body.get("tools") or ():
        properties = tool["function"]["parameters"].get("properties", {})
        if not all(isinstance(schema, dict) for schema in properties.values()):
            return "json: cannot unmarshal bool into Go struct field .tools.function.parameters.properties of type api.ToolProperty"
    return ""
