import asyncio
import fcntl
import os
import struct
import termios
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvloop

from service.core.limits import LINE_BYTES
from service.core.lines import HEAD_BYTES
from service.core.records import DropReason
from service.stdin import Stdin

SECONDS = 10


class Taker:
    """Takes what the source hands on; there is always room."""

    def __init__(self) -> None:
        self.chunks: list[list[bytes]] = []
        self.rejected: list[tuple[bytes, DropReason]] = []
        self.came = asyncio.Event()

    @property
    def lines(self) -> list[bytes]:
        return [line for chunk in self.chunks for line in chunk]

    def take(self, lines: list[bytes]) -> None:
        self.chunks.append(lines)
        self.came.set()

    def reject(self, line: bytes, reason: DropReason) -> None:
        self.rejected.append((line, reason))

    async def room(self) -> None:
        """Always there."""

    async def read(self, descriptor: int) -> None:
        """Let the source read until its end."""
        async with asyncio.timeout(SECONDS):
            await Stdin(descriptor, self.take, self.reject, self.room).run()


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Give a pipe's two ends; the writing one may be closed meanwhile."""
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)


@contextmanager
def file(path: Path, content: bytes) -> Iterator[int]:
    """Give a descriptor of a file with this content."""
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def unread(descriptor: int) -> int:
    """Tell how many bytes wait in a pipe."""
    (count,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))
    return int(count)


@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_a_pipe_is_read_as_it_comes(loop_factory: Callable[[], AbstractEventLoop]) -> None:
    """Lines are handed on while the pipe stays open; its end ends the source."""

    async def scenario() -> None:
        taker = Taker()
        with pipe() as (reader, writer):
            reading = asyncio.create_task(taker.read(reader))
            for line in (b"first", b"second"):
                os.write(writer, line + b"\n")
                async with asyncio.timeout(SECONDS):
                    await taker.came.wait()
                taker.came.clear()
                assert taker.lines[-1] == line
            os.close(writer)
            await reading
        assert taker.lines == [b"first", b"second"]

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())


async def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    """Many chunks of lines arrive complete and in order; no event loop can watch a file, and none has to."""
    lines = [b'{"data":{"id":"%d","text":"%s"}}' % (number, b"x" * (number % 700)) for number in range(5000)]
    taker = Taker()
    with file(tmp_path / "posts.jsonl", b"\n".join(lines) + b"\n") as descriptor:
        await taker.read(descriptor)
    assert taker.lines == lines
    assert len(taker.chunks) > 2
    assert taker.rejected == []


async def test_the_last_line_may_lack_its_end(tmp_path: Path) -> None:
    """Editors and `head -c` leave such files; the line is handed on like any other."""
    taker = Taker()
    with file(tmp_path / "posts.jsonl", b"first\r\n\nlast") as descriptor:
        await taker.read(descriptor)
    assert taker.lines == [b"first", b"last"]


async def test_an_empty_input_has_no_lines(tmp_path: Path) -> None:
    """Nothing is handed on, not even an empty chunk."""
    taker = Taker()
    with file(tmp_path / "posts.jsonl", b"") as descriptor:
        await taker.read(descriptor)
    assert taker.chunks == []


async def test_an_overlong_line_is_rejected_and_its_neighbours_pass(tmp_path: Path) -> None:
    """The beginning of it is handed on with the reason, so that somebody can see what it was."""
    long = b"y" * (LINE_BYTES + 2)
    taker = Taker()
    with file(tmp_path / "posts.jsonl", b"before\n" + long + b"\nafter\n" + long[1:]) as descriptor:
        await taker.read(descriptor)
    assert taker.lines == [b"before", b"after"]
    assert taker.rejected == [(b"y" * HEAD_BYTES, DropReason.LINE_TOO_LONG)] * 2


async def test_nothing_is_read_while_there_is_no_room() -> None:
    """Bytes stay in the pipe, where they hold back their writer, until there is room for them."""
    taker = Taker()
    asked: asyncio.Queue[int] = asyncio.Queue()
    permits = asyncio.Semaphore(0)
    with pipe() as (reader, writer):

        async def room() -> None:
            asked.put_nowait(unread(reader))
            await permits.acquire()

        os.write(writer, b"one\n")
        async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as tasks:
            tasks.create_task(Stdin(reader, taker.take, taker.reject, room).run())
            assert await asked.get() == len(b"one\n")
            assert taker.lines == []
            permits.release()
            assert await asked.get() == 0
            assert taker.lines == [b"one"]
            os.write(writer, b"two\n")
            os.close(writer)
            permits.release()
            assert await asked.get() == 0
            permits.release()
    assert taker.lines == [b"one", b"two"]


async def test_a_silent_pipe_can_be_cancelled() -> None:
    """SIGTERM must not wait for the rest of a line, which is kept as cut; afterwards nobody watches the pipe."""
    taker = Taker()
    with pipe() as (reader, writer):
        os.write(writer, b"one\nhalf")
        reading = asyncio.create_task(taker.read(reader))
        async with asyncio.timeout(SECONDS):
            await taker.came.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not asyncio.get_running_loop().remove_reader(reader)
        os.close(writer)
    assert taker.rejected == [(b"half", DropReason.LINE_CUT)]
