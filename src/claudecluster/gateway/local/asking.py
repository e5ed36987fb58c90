"""One HTTP request to one local server: its bytes read into deltas, and all that can go wrong said as a Failure.

Used by the providers of this room; each brings the reader of its own wire.
"""

import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import orjson

from claudecluster.gateway.local.replies.deltas import Broke, Delta, Ended
from claudecluster.gateway.provider import Cause, Failure

REFUSAL = 65_536  # bytes of an error body worth reading
# What Ollama and llama.cpp say, with a 500 or in the stream, where the model's own call did not parse.
UNREAD = re.compile(r"error parsing tool call|invalid tool call|failed to parse", re.IGNORECASE)
JSON = {"content-type": "application/json"}


class Reader(Protocol):
    """Bytes of one wire in, deltas out."""

    def feed(self, data: bytes) -> list[Delta]:
        """Return what these bytes complete."""
        ...

    def close(self) -> list[Delta]:
        """Return what was still waiting."""
        ...


@dataclass(slots=True)
class Http:
    """The connections to local servers. `idle` is the seconds a server may stay silent; a given session stays its owner's."""

    idle: float = 1800.0
    session: aiohttp.ClientSession | None = None
    _own: aiohttp.ClientSession | None = field(default=None, init=False)

    def client(self) -> aiohttp.ClientSession:
        """Return the session, made on first use."""
        if self.session is not None:
            return self.session
        if self._own is None or self._own.closed:
            # Uvicorn, and so vLLM, closes idle connections after 5 s: one kept longer could break under a request.
            self._own = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0), trust_env=False)
        return self._own

    async def json(self, method: str, url: str, *, headers: Mapping[str, str], body: object = None, timeout: float = 5.0) -> Any:
        """Return the JSON answered to a small question. Raises Failure."""
        data = orjson.dumps(body) if body is not None else None
        try:
            limit = aiohttp.ClientTimeout(total=timeout)
            async with self.client().request(method, url, data=data, headers={**JSON, **headers}, timeout=limit) as response:
                content = await response.read()
                if response.status >= 400:
                    raise refusal(response.status, content)
                return orjson.loads(content)
        except TimeoutError as error:
            raise Failure(Cause.SILENT, f"{url} did not answer within {timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Failure(Cause.UNREACHABLE, f"{url}: {error}") from error
        except orjson.JSONDecodeError as error:
            raise Failure(Cause.MALFORMED, f"{url} answered something that is not JSON") from error

    async def deltas(self, url: str, headers: Mapping[str, str], body: Mapping[str, Any], reader: Reader) -> AsyncGenerator[Delta, None]:
        """Post the body and yield the reply. Raises Failure; leaving early closes the connection, which stops the model."""
        limit = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=self.idle)
        answering = ended = False
        try:
            request = self.client().post(url, data=orjson.dumps(body), headers={**JSON, **headers}, timeout=limit)
            response = await request
            try:
                if response.status >= 400:
                    failure = refusal(response.status, await response.content.read(REFUSAL))
                    if response.status != 500 or not UNREAD.search(failure.message):
                        raise failure
                    yield Broke(failure.message)
                    return
                answering = True
                async for chunk in response.content.iter_any():
                    for delta in reader.feed(chunk):
                        ended = ended or isinstance(delta, Ended)
                        yield delta
            finally:
                response.close()
        except TimeoutError as error:
            raise Failure(Cause.SILENT, f"{url} was silent for {self.idle:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Failure(Cause.CUT if answering else Cause.UNREACHABLE, f"{url}: {error or type(error).__name__}") from error
        for delta in reader.close():
            ended = ended or isinstance(delta, Ended)
            yield delta
        if not ended:
            raise Failure(Cause.CUT, f"{url} stopped in the middle of its answer")

    async def aclose(self) -> None:
        """Close what was made here."""
        if self._own is not None:
            await self._own.close()


def refusal(status: int, content: bytes) -> Failure:
    """Return an HTTP error of a local server, with the server's own sentence."""
    message = content.decode("utf-8", "replace").strip()
    try:
        said = orjson.loads(content)
    except orjson.JSONDecodeError:
        said = None
    if isinstance(said, dict):
        error = said.get("error", said.get("message") or said.get("detail"))
        message = _sentence(error, said) or message
    return Failure(Cause.STATUS, message[:2000] or f"status {status}", status=status)


def _sentence(error: object, said: Mapping[str, Any]) -> str:
    if not isinstance(error, dict):
        return str(error) if error else ""
    sizes = [error.get("n_prompt_tokens"), error.get("n_ctx")]
    if all(isinstance(size, int) for size in sizes):  # llama.cpp gives the numbers beside the sentence
        return f"request ({sizes[0]} tokens) exceeds the available context size ({sizes[1]} tokens)"
    return f"{error.get('message') or said}" + (f" ({error['code']})" if isinstance(error.get("code"), str) else "")
