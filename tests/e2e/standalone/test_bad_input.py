"""Bad input to the gateway command, over bare sockets: a clear error in Anthropic's shape, little memory, and nothing reaches upstream."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from claudecluster.testing.anthropic import ScriptedAnthropic

MB = 1024 * 1024
POST = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n"
OURS = POST + b"x-api-key: the-owners-token\r\n"
CHUNKED = OURS + b"transfer-encoding: chunked\r\n\r\n"
SECOND = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"  # must never be taken for a request where it hides in another one
QUICK = json.dumps({"idle_seconds": 0.3, "head_seconds": 1.5, "body_seconds": 1.5})


def sized(body: bytes, head: bytes = OURS) -> bytes:
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


INVALID = (400, "invalid_request_error")
UNKNOWN = (401, "authentication_error")
LARGE = (413, "request_too_large")
HEADERS = (431, "invalid_request_error")
BAD: dict[str, tuple[bytes, tuple[int, str]]] = {
    # what is asked
    "JSON that is none": (sized(b'{"model": "m", "messages": ['), INVALID),
    "JSON nested a million deep": (sized(b"[" * MB), INVALID),
    "no text at all": (sized(b"\xff\xfe\x00\x00"), INVALID),
    "no body": (sized(b""), INVALID),
    "a list": (sized(b"[]"), INVALID),
    "no model": (sized(b'{"messages": []}'), INVALID),
    "messages that are no list": (sized(b'{"model": "m", "messages": "hello"}'), INVALID),
    "an unknown path": (sized(b"{}", OURS.replace(b"/v1/messages", b"/v1/complete")), (404, "not_found_error")),
    "a path with dots": (sized(b"{}", OURS.replace(b"/v1/messages", b"/v1/messages/../files")), (404, "not_found_error")),
    "another server's path": (sized(b"{}", OURS.replace(b"/v1/messages", b"http://example.org/v1/messages")), (404, "not_found_error")),
    "a wrong method": (OURS.replace(b"POST", b"DELETE") + b"\r\n", (405, "invalid_request_error")),
    "a tunnel": (b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org\r\n\r\n", UNKNOWN),
    # who asks
    "no token": (sized(b"{}", POST), UNKNOWN),
    "a wrong token": (sized(b"{}", POST + b"x-api-key: the-owners-toke\r\n"), UNKNOWN),
    "a wrong bearer": (sized(b"{}", POST + b"authorization: Bearer nobody\r\n"), UNKNOWN),
    "a token that is no text": (sized(b"{}", POST + b"x-api-key: \xff\xfe\r\n"), UNKNOWN),
    "two tokens": (sized(b"{}", OURS + b"x-api-key: nobody\r\n"), INVALID),
    "a page with a wrong token": (b"GET /usage HTTP/1.1\r\nhost: x\r\nx-api-key: nobody\r\n\r\n", UNKNOWN),
    # where it ends
    "a length beside chunks": (OURS + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SECOND, INVALID),
    "chunks beside a length": (OURS + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n" + SECOND, INVALID),
    "two lengths": (OURS + b"content-length: 2\r\ncontent-length: 40\r\n\r\n{}" + SECOND, INVALID),
    "two equal lengths": (OURS + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}" + SECOND, INVALID),
    "a list of lengths": (OURS + b"content-length: 2, 2\r\n\r\n{}" + SECOND, INVALID),
    "a length with a sign": (OURS + b"content-length: +2\r\n\r\n{}" + SECOND, INVALID),
    "a negative length": (OURS + b"content-length: -2\r\n\r\n{}" + SECOND, INVALID),
    "a length in hexadecimal": (OURS + b"content-length: 0x2\r\n\r\n{}" + SECOND, INVALID),
    "an empty length": (OURS + b"content-length: \r\n\r\n{}" + SECOND, INVALID),
    "a length in other digits": (OURS + "content-length: ٢\r\n\r\n{}".encode() + SECOND, INVALID),
    "chunks in disguise": (OURS + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + SECOND, INVALID),
    "chunks and more": (OURS + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + SECOND, INVALID),
    "chunks first and more": (OURS + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SECOND, INVALID),
    "chunks twice": (OURS + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SECOND, INVALID),
    "chunks behind a vertical tab": (OURS + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + SECOND, INVALID),
    "a chunk without a size": (CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n" + SECOND, INVALID),
    "a chunk longer than it says": (CHUNKED + b"1\r\n{}\r\n0\r\n\r\n" + SECOND, INVALID),
    "a chunk of a size too large": (CHUNKED + b"fffffffffffffffff\r\n{}", INVALID),
    "a chunk that ends in a bare newline": (CHUNKED + b"2\n{}\n0\n\n" + SECOND, INVALID),
    "a body where none is to be": (b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 38\r\n\r\n" + SECOND, INVALID),
    "chunks where none are to be": (b"HEAD / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", INVALID),
    # headers
    "bare newlines": (sized(b"{}").replace(b"\r\n", b"\n"), INVALID),
    "one bare newline": (OURS + b"x-a: b\ncontent-length: 2\r\n\r\n{}" + SECOND, INVALID),
    "a bare return": (OURS + b"x-a: b\rcontent-length: 2\r\n\r\n{}" + SECOND, INVALID),
    "a folded header": (OURS + b"x-a: b\r\n content-length: 2\r\n\r\n{}" + SECOND, INVALID),
    "a folded first header": (b"POST /v1/messages HTTP/1.1\r\n host: x\r\n\r\n", INVALID),
    "a space before the colon": (OURS + b"content-length : 2\r\n\r\n{}" + SECOND, INVALID),
    "a null in a header": (OURS + b"x-a: a\x00b\r\ncontent-length: 2\r\n\r\n{}", INVALID),
    "a null in a name": (OURS + b"x\x00a: b\r\ncontent-length: 2\r\n\r\n{}", INVALID),
    "a header without a name": (OURS + b": b\r\ncontent-length: 2\r\n\r\n{}", INVALID),
    "a header without a colon": (OURS + b"nothing\r\ncontent-length: 2\r\n\r\n{}", INVALID),
    "a header too long": (POST + b"x-a: " + b"a" * 200_000 + b"\r\n\r\n", HEADERS),
    "a name too long": (POST + b"a" * 200_000 + b": b\r\n\r\n", HEADERS),
    "a target too long": (b"POST /v1/messages?" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", HEADERS),
    "too many headers": (POST + b"".join(b"x-%d: a\r\n" % n for n in range(500)) + b"\r\n", HEADERS),
    "a header without end": (POST + b"x-a: " + b"a" * 4 * MB, HEADERS),
    "a trailer without end": (CHUNKED + b"2\r\n{}\r\n0\r\nx-a: " + b"a" * 4 * MB, HEADERS),
    "trailers without end": (CHUNKED + b"2\r\n{}\r\n0\r\n" + b"x-a: b\r\n" * MB, HEADERS),
    "a size without end": (CHUNKED + b"2;" + b"a" * 4 * MB, HEADERS),
    # protocols
    "another version": (OURS.replace(b"HTTP/1.1", b"HTTP/3.7") + b"\r\n", INVALID),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", INVALID),
    "an upgrade": (OURS + b"connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 2\r\n\r\n{}", INVALID),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100, INVALID),
    "nonsense": (b"\x00" * 1000, INVALID),
    # size
    "a huge length": (OURS + b"content-length: 99999999999999999999\r\n\r\n", INVALID),
    "a large length": (OURS + b"content-length: 999999999999\r\n\r\n", LARGE),
}


async def test_bad_input_is_told_so_and_reaches_nobody(serving: Any, upstream: ScriptedAnthropic) -> None:
    wrong = {}
    async with serving(upstream.url, CLAUDECLUSTER_CLIENTS=QUICK) as gateway:
        for name, (data, expected) in BAD.items():
            answer = await gateway.raw(data)
            head, _, body = answer.partition(b"\r\n\r\n")
            try:
                found = (int(head.split()[1]), json.loads(body)["error"]["type"])
            except (ValueError, IndexError, KeyError):
                found = (0, repr(answer[:300]))
            if found != expected or answer.count(b"HTTP/1.1 ") != 1:
                wrong[name] = found
        assert wrong == {}
        assert upstream.requests == []
        assert (await gateway.ask())[0] == 200
    assert len(upstream.messages) == 1


@contextlib.contextmanager
def growth(gateway: Any) -> Iterator[list[int]]:
    """Measure by how many bytes the process grows at most while the context lasts."""
    found, before = [0], gateway.memory

    async def look() -> None:
        while True:
            found[0] = max(found[0], gateway.memory - before)
            await asyncio.sleep(0.01)

    looking = asyncio.create_task(look())
    try:
        yield found
        found[0] = max(found[0], gateway.memory - before)
    finally:
        looking.cancel()


def head_pieces(number: int) -> Iterator[bytes]:
    yield POST + b"x-number: %d" % number
    while True:
        yield b"a"


def body_pieces(number: int) -> Iterator[bytes]:
    yield OURS + b"x-number: %d\r\ncontent-length: 1000000\r\n\r\n{" % number
    while True:
        yield b" "


async def drip(gateway: Any, pieces: Iterator[bytes]) -> bytes:
    reader, writer = await asyncio.open_connection(gateway.host, gateway.port)
    answer = asyncio.create_task(reader.read(65536))
    try:
        while not answer.done():
            with contextlib.suppress(ConnectionError):
                writer.write(next(pieces))
                await writer.drain()
            await asyncio.wait([answer], timeout=0.2)
        return answer.result()
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("pieces", [head_pieces, body_pieces])
async def test_two_hundred_slow_clients_cost_little_keep_nobody_out_and_are_sent_away(
    serving: Any, upstream: ScriptedAnthropic, pieces: Any
) -> None:
    async with serving(upstream.url, CLAUDECLUSTER_CLIENTS=QUICK) as gateway:
        with growth(gateway) as grown:
            slow = [asyncio.create_task(drip(gateway, pieces(number))) for number in range(200)]
            await asyncio.sleep(0.5)
            began = time.monotonic()
            assert (await gateway.ask())[0] == 200
            assert time.monotonic() - began < 10
            answers = await asyncio.wait_for(asyncio.gather(*slow), 30)
        assert grown[0] < 24 * MB, f"{grown[0] / MB:.1f} MB"
        assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 408 Request Timeout"}
        assert {json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] for answer in answers} == {"timeout_error"}
    assert len(upstream.requests) == 1


async def test_huge_bodies_are_refused_with_bounded_memory(serving: Any, upstream: ScriptedAnthropic) -> None:
    piece = b"a" * MB
    chunk = b"%x\r\n%b\r\n" % (MB, piece)
    limits = json.dumps({"all_bodies": 64 * MB, "body_seconds": 3})
    async with serving(upstream.url, CLAUDECLUSTER_CLIENTS=limits) as gateway:
        for data, status in (
            ((OURS + b"content-length: %d\r\n\r\n" % (128 * MB), *[piece] * 128), 413),
            ((CHUNKED, *[chunk] * 128), 413),
            ((POST + b"content-length: %d\r\n\r\n" % (30 * MB), *[piece] * 128), 401),
        ):
            with growth(gateway) as grown:
                answer = await gateway.raw(*data)
            assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "error"
            assert grown[0] < 80 * MB, f"{grown[0] / MB:.1f} MB"
        with growth(gateway) as grown:
            many = await asyncio.gather(*(gateway.raw(CHUNKED, *[chunk] * 31) for _ in range(8)))
        assert grown[0] < 160 * MB, f"{grown[0] / MB:.1f} MB"
        found = {answer.split(b"\r\n")[0] for answer in many}
        assert b"HTTP/1.1 529 Overloaded" in found
        assert found <= {b"HTTP/1.1 529 Overloaded", b"HTTP/1.1 408 Request Timeout"}
        assert upstream.requests == []
        assert (await gateway.ask())[0] == 200
