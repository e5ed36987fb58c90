"""Anthropic's API, or anything that speaks it exactly, as a provider: bytes in, bytes out, our key instead of the client's.

The exchange calls it. It keeps no state but its connection pool; limits and failures are judged above.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import aiohttp
import orjson
from multidict import CIMultiDictProxy
from yarl import URL

from claudecluster.gateway.provider import Answer, Ask, Cause, Failure, Health, Kind, Verdict
from claudecluster.gateway.server.message import HOP_BY_HOP, error_body
from claudecluster.gateway.upstream.keys import KeySource, fixed
from claudecluster.model.errors import ClusterError

DEFAULT_URL = "https://api.anthropic.com"
SPOKEN_FOR = HOP_BY_HOP | {"content-length", "content-encoding", "set-cookie"}
OURS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")  # what aiohttp would add by itself


@dataclass(frozen=True, slots=True)
class AnthropicConfig:
    """Where Anthropic is and what opens it: a `key`, or an `auth_token` sent as bearer, or both.

    Seconds; `silence` is the longest gap before or in a streamed answer (Anthropic sends pings), `whole` the longest wait for one that is not.
    """

    base_url: str = DEFAULT_URL
    key: KeySource = field(default=fixed(""), repr=False)
    auth_token: KeySource = field(default=fixed(""), repr=False)
    name: str = "anthropic"
    proxy: str = ""
    connect: float = 10.0
    silence: float = 150.0
    whole: float = 600.0


class Anthropic:
    """The upstream that everything is compared with."""

    kind: Kind = "anthropic"

    def __init__(self, config: AnthropicConfig) -> None:
        self.name = config.name
        self._config = config
        self._base = config.base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._patience = aiohttp.ClientTimeout(total=None, sock_connect=config.connect, sock_read=config.silence)
        self._long_patience = aiohttp.ClientTimeout(total=None, sock_connect=config.connect, sock_read=config.whole)

    async def configured(self) -> bool:
        """Whether there is anything to send requests with: a key, or an address of the user's own that may want none. Raises Unavailable."""
        return self._base != DEFAULT_URL or bool(await self._credentials())

    def load(self) -> float:
        """Return how busy it is; Anthropic's own queue is not ours to see."""
        return 0.0

    async def send(self, ask: Ask) -> Answer:
        """Ask it once, never twice. HTTP errors are Answers with their status and body; raises Failure where no answer came."""
        headers = dict(ask.headers)
        headers["accept-encoding"] = "identity"  # the stream is read and may be spliced on its way
        try:
            headers.update(ask.credentials or await self._credentials())
        except ClusterError as error:
            told = error_body(401, f"{error.message} {error.hint}".strip())
            raise Failure(Cause.STATUS, error.message, status=401, type="authentication_error", body=told) from error
        try:
            response = await self._pool().request(
                ask.method,
                self._url(ask.path, ask.query),
                data=_body(ask),
                headers=headers,
                proxy=self._config.proxy or None,
                allow_redirects=False,
                skip_auto_headers=OURS,
                timeout=self._patience if ask.stream else self._long_patience,
            )
        except TimeoutError as error:
            raise Failure(Cause.SILENT, f"{self.name} did not answer in time.") from error
        except ValueError as error:  # something in the request that cannot be written on the wire: no word about the provider
            told = error_body(400, f"The request cannot be passed on: {_why(error)}")
            raise Failure(Cause.STATUS, "unsendable", status=400, type="invalid_request_error", body=told) from error
        except aiohttp.ClientConnectorError as error:
            raise Failure(Cause.UNREACHABLE, f"{self.name} could not be reached: {_why(error)}") from error
        except (aiohttp.ClientError, OSError) as error:  # a kept connection that the other side had just closed, among others
            raise Failure(Cause.CUT, f"{self.name} broke off before its answer: {_why(error)}") from error
        return Answer(response.status, _headers(response.headers), _Body(response, self.name), close=_closer(response))

    def classify(self, failure: Failure) -> Verdict:
        """Say what should be done after one of its failures."""
        if failure.cause is Cause.SILENT:
            return Verdict.NEXT  # to be silent twice would outlast any client
        if failure.cause is not Cause.STATUS and failure.cause is not Cause.ERROR_EVENT:
            return Verdict.RETRY
        if failure.status == 429 or failure.type in {"rate_limit_error", "overloaded_error"} or failure.status >= 500:
            return Verdict.NEXT
        if failure.cause is Cause.ERROR_EVENT and failure.type not in {"authentication_error", "permission_error", "invalid_request_error"}:
            return Verdict.NEXT
        return Verdict.STOP

    async def healthy(self) -> Health:
        """Ask cheaply whether it could answer, without spending tokens. Never raises."""
        try:
            headers = {"anthropic-version": "2023-06-01", **await self._credentials()}
            timeout = aiohttp.ClientTimeout(total=5)
            async with self._pool().get(
                self._url("/v1/models", "limit=1000"), headers=headers, timeout=timeout, proxy=self._config.proxy or None
            ) as reply:
                if reply.status in {404, 405}:
                    return Health(ok=True)  # it answers; a listing is optional
                if reply.status >= 400:
                    return Health(ok=False, why=f"{self.name} answered {reply.status}")
                listed = orjson.loads(await reply.read())
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return Health(ok=False, why=f"{self.name} could not be reached: {_why(error)}")
        except ClusterError as error:
            return Health(ok=False, why=error.message)
        models = listed.get("data", []) if isinstance(listed, dict) else []
        return Health(ok=True, models=tuple(str(model["id"]) for model in models if isinstance(model, dict) and "id" in model))

    async def aclose(self) -> None:
        """Let go of connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
            await asyncio.sleep(0)

    async def _credentials(self) -> dict[str, str]:
        key, token = await self._config.key(), await self._config.auth_token()
        return ({"x-api-key": key} if key else {}) | ({"authorization": f"Bearer {token}"} if token else {})

    def _url(self, path: str, query: str) -> URL:
        return URL(f"{self._base}{path}{'?' + query if query else ''}", encoded=True)

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session


class _Body:
    """An answer's bytes as they come."""

    __slots__ = ("_name", "_response")

    def __init__(self, response: aiohttp.ClientResponse, name: str) -> None:
        self._response = response
        self._name = name

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await self._response.content.readany()
        except TimeoutError as error:
            raise Failure(Cause.SILENT, f"{self._name} stopped sending.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Failure(Cause.CUT, f"{self._name} broke off: {_why(error)}") from error
        if not piece:
            raise StopAsyncIteration
        return piece


def _body(ask: Ask) -> bytes | None:
    if ask.method == "GET":
        return None
    if ask.payload.get("model") != ask.model and ask.model:
        rerouted: dict[str, Any] = {**ask.payload, "model": ask.model}
        return orjson.dumps(rerouted)
    return ask.body


def _headers(headers: CIMultiDictProxy[str]) -> MappingProxyType[str, str]:
    # A connection's own headers end here, with those it names itself (RFC 9110, 7.6.1).
    named = {name.strip().lower() for name in headers.get("connection", "").split(",")}
    kept: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        if key not in SPOKEN_FOR and key not in named:
            kept[key] = f"{kept[key]}, {value}" if key in kept else value
    return MappingProxyType(kept)


def _closer(response: aiohttp.ClientResponse) -> Any:
    async def close() -> None:
        response.close()

    return close


def _why(error: BaseException) -> str:
    return str(error) or type(error).__name__
