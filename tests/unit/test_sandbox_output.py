"""Lines cut from pipes: whole, in order, and no more of them in memory than anybody reads."""

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudecluster.model.place import Stream
from claudecluster.sandboxes.local.output import Output


@pytest.fixture
def pipes() -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    out, err = os.pipe(), os.pipe()
    yield out, err
    for fd in (out[1], err[1]):
        try:
            os.close(fd)
        except OSError:
            continue


async def said(chunks: list[tuple[Stream, bytes]]) -> dict[Stream, list[bytes]]:
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    output = Output(out, err)
    for stream, chunk in chunks:
        os.write(out_end if stream is Stream.OUT else err_end, chunk)
        await asyncio.sleep(0)
    os.close(out_end)
    os.close(err_end)
    found: dict[Stream, list[bytes]] = {Stream.OUT: [], Stream.ERR: []}
    async for line in output.lines():
        found[line.stream].append(line.data)
    output.close()
    return found


@given(
    st.lists(
        st.tuples(st.sampled_from(Stream), st.binary(min_size=1, max_size=50).map(lambda data: data.replace(b"x", b"\n"))), max_size=20
    )
)
def test_however_it_is_written_the_same_lines_are_heard(chunks: list[tuple[Stream, bytes]]) -> None:
    found = asyncio.run(said(chunks))
    for stream in Stream:
        written = b"".join(chunk for to, chunk in chunks if to is stream)
        expected = written.split(b"\n")
        if expected[-1] == b"":
            expected.pop()
        assert found[stream] == expected


async def test_a_writer_waits_for_its_reader(pipes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    (out, out_end), (err, err_end) = pipes
    output = Output(out, err)
    line, count = b"y" * 999 + b"\n", 60_000
    written = 0

    def write() -> None:
        nonlocal written
        for _ in range(count):
            written += os.write(out_end, line)
        os.close(out_end)
        os.close(err_end)

    writer = threading.Thread(target=write)
    writer.start()
    before = -1
    while written != before:  # until it is held back
        before = written
        await asyncio.sleep(0.1)
    assert written < 20_000_000
    assert sum([1 async for _ in output.lines()]) == count
    writer.join()
    output.close()


async def test_reading_can_be_taken_up_where_it_was_left(pipes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    (out, out_end), (err, err_end) = pipes
    output = Output(out, err)
    os.write(out_end, b"1\n2\n3\n4")
    os.close(out_end)
    os.close(err_end)
    found = []
    async for line in output.lines():
        found.append(line.data)
        if len(found) == 2:
            break
    found += [line.data async for line in output.lines()]
    assert found == [b"1", b"2", b"3", b"4"]
    output.close()


async def test_a_line_without_an_end_does_not_fill_the_memory(pipes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    (out, out_end), (err, err_end) = pipes
    output = Output(out, err, longest=1_000_000)

    def write() -> None:
        for _ in range(50):
            os.write(out_end, b"z" * 100_000)
        os.close(out_end)
        os.close(err_end)

    writer = threading.Thread(target=write)
    writer.start()
    sizes = [len(line.data) async for line in output.lines()]
    writer.join()
    assert sum(sizes) == 5_000_000
    assert max(sizes) < 1_100_000
    output.close()
