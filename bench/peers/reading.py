"""
How a peer gets its posts: the lines of standard input, and the partition key of each.

The key is taken by the same typed decoder as Millrace's, the fastest that we know. So what the peers differ in is
producing, not parsing.
"""

import asyncio
import os
import select
import stat
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import msgspec

_CHUNK_BYTES = 256 * 1024


class Post(NamedTuple):
    """One line without its LF, and what keeps it in order: `data.author_id`, or its id where there is none."""

    key: str
    data: bytes


class _Data(msgspec.Struct, gc=False):
    id: str
    author_id: str = ""


class _Line(msgspec.Struct, gc=False):
    data: _Data


_decode = msgspec.json.Decoder(_Line).decode


def read_post(line: bytes) -> Post:
    """Find the key of a line; raises msgspec.DecodeError if it is no post."""
    data = _decode(line).data
    return Post(data.author_id or data.id, line)


class Batcher:
    """
    Gathers posts into batches of `size`, or of as many as have come `linger` seconds after the first of them.

    `ready` returns the batches that are due now; at the end of the input, all that is left.
    """

    def __init__(self, size: int, linger: float) -> None:
        self._size = size
        self._linger = linger
        self._posts: list[Post] = []
        self._due = float("inf")

    def ready(self, posts: list[Post], *, ended: bool = False) -> list[list[Post]]:
        """Take posts and return whole batches."""
        if posts and not self._posts:
            self._due = time.monotonic() + self._linger
        waiting = self._posts + posts
        batches = [waiting[start : start + self._size] for start in range(0, len(waiting), self._size)]
        self._posts = []
        if batches and len(batches[-1]) < self._size and not ended and time.monotonic() < self._due:
            self._posts = batches.pop()
        elif batches:
            self._due = time.monotonic() + self._linger
        return batches

    def timeout(self) -> float | None:
        """For how many seconds to wait for more posts; None for as long as it takes."""
        return max(0.0, self._due - time.monotonic()) if self._posts else None


class Lines:
    """Chunks of standard input -> posts."""

    def __init__(self) -> None:
        self._rest = b""
        self.ended = False

    def take(self) -> list[Post]:
        """Read what is there, which must be something, and return the posts that it completes."""
        chunk = os.read(sys.stdin.fileno(), _CHUNK_BYTES)
        self.ended = not chunk
        lines = (self._rest + chunk).split(b"\n")
        self._rest = b"" if self.ended else lines.pop()
        return [read_post(line) for line in lines if line]


def posts() -> Iterator[Post]:
    """Each post as it comes."""
    lines = Lines()
    while not lines.ended:
        yield from lines.take()


def batches(size: int, linger: float) -> Iterator[list[Post]]:
    """Batches, for a program that may block; see `Batcher`."""
    lines, batcher = Lines(), Batcher(size, linger)
    while not lines.ended:
        readable, _, _ = select.select([sys.stdin.fileno()], [], [], batcher.timeout())
        yield from batcher.ready(lines.take() if readable else [], ended=lines.ended)


async def chunks_async(batcher: Batcher | None = None) -> AsyncIterator[tuple[list[Post], bool]]:
    """Posts as they come and whether the input has ended, for a program that must not block; [] after a time-out."""
    lines = Lines()
    is_file = stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode)
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    while not lines.ended:
        if is_file:
            # A file is always readable, and no event loop can watch one.
            await asyncio.sleep(0)
        else:
            readable.clear()
            loop.add_reader(sys.stdin.fileno(), readable.set)
            try:
                await asyncio.wait_for(readable.wait(), batcher.timeout() if batcher else None)
            except TimeoutError:
                yield [], False
                continue
            finally:
                loop.remove_reader(sys.stdin.fileno())
        yield lines.take(), lines.ended


async def batches_async(size: int, linger: float) -> AsyncIterator[list[Post]]:
    """Batches, for a program that must not block; see `Batcher`."""
    batcher = Batcher(size, linger)
    async for posts_now, ended in chunks_async(batcher):
        for batch in batcher.ready(posts_now, ended=ended):
            yield batch
