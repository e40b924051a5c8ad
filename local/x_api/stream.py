"""
One open stream: from its queue of lines to the bytes on the socket, with every fault that a stream can have.

Rules it obeys:

* It frames the chunks itself, because faults are about borders: where a chunk ends, whether the last one comes, what is
  cut. The HTTP library has sent the headers and only lends its transport.
* A line is written when the operating system has taken all of it. The transport's own buffer is therefore kept empty:
  each write waits until it is. Below TLS asyncio keeps up to 64 KiB more, which only a reset or a drop can lose.
* X's queue has a limit. A client that reads too slowly is dropped with all that waited for it.
* When idle for the keep-alive time, CR LF is sent. It proves that the socket lives, no more.
"""

import asyncio
import random
import re
import socket
import struct
import zlib
from collections import deque
from collections.abc import Awaitable, Callable
from enum import StrEnum

from local.x_api.ledger import DISCARDED, WRITTEN, ConnectionRecord, Ledger

# What the Connections API calls the endpoints.
FILTERED, SAMPLE = "filtered_stream", "sample_stream"
CRLF = b"\r\n"
# So many bytes of waiting lines go into one write: more than the feed adds in its turn, or queues would grow by it.
_WRITE_BYTES = 256 * 1024
# Below this many waiting bytes a source that follows its reader gives more.
_ROOM_BYTES = 2 * _WRITE_BYTES
_NOT_ASCII = re.compile(rb"[\xc0-\xff]")


class Layout(StrEnum):
    """Where chunks end. Each chunk is a write of its own."""

    BATCH = "batch"  # all that waits, up to 256 KiB, is one chunk
    LINE = "line"  # each line is one
    SPLIT = "split"  # each line is several, cut at places of chance
    BYTES = "bytes"  # each byte is one
    CRLF = "crlf"  # a border between CR and LF
    UTF8 = "utf8"  # a border inside the first character of several bytes
    ESCAPE = "escape"  # a border after the first backslash
    GLUED = "glued"  # a keep-alive in the same chunk behind each line


class Ending(StrEnum):
    """How a connection ends."""

    LAST_CHUNK = "last_chunk"  # as HTTP wants it
    LAST_CHUNK_MID_LINE = "last_chunk_mid_line"  # half a line, then as HTTP wants it
    FIN = "fin"  # closed without the last chunk: what real drops nearly always look like
    FIN_MID_LINE = "fin_mid_line"
    RESET = "reset"  # RST: what the client's kernel has not handed on may be lost
    OPERATIONAL_DISCONNECT = "operational_disconnect"  # the line that says so, then FIN
    SLOW_READER = "slow_reader"  # queue over its limit: dropped, the queue discarded
    KILLED = "killed"  # by the Connections API
    SHUTDOWN = "shutdown"  # the stand-in itself stops
    CLIENT = "client"  # the client closed, or died: what it had not read of the written lines is lost


_AT_ONCE = {Ending.RESET, Ending.SLOW_READER, Ending.KILLED, Ending.SHUTDOWN}
_MID_LINE = {Ending.LAST_CHUNK_MID_LINE, Ending.FIN_MID_LINE}
_WITH_LAST_CHUNK = {Ending.LAST_CHUNK, Ending.LAST_CHUNK_MID_LINE}


class Stream:
    """
    One connection.

    Args:
        record: its entry in the ledger.
        ledger: learns the end of each post.
        transport: of the connection, after the headers.
        drain: waits until the transport has room.
        moved: called whenever lines have left the queue.
        gzip: whether the client accepted it; each write is then flushed so that it can be read at once.
        keep_alive: seconds of idleness before CR LF.
        layout: where chunks end.
        queue_limit: bytes of waiting lines over which the client is too slow.
        seed: of the places where lines are cut.
    """

    def __init__(
        self,
        record: ConnectionRecord,
        ledger: Ledger,
        transport: asyncio.Transport,
        drain: Callable[[], Awaitable[None]],
        *,
        moved: Callable[[], None],
        gzip: bool,
        keep_alive: float,
        layout: Layout,
        queue_limit: int,
        seed: int,
    ) -> None:
        self.record = record
        self.layout = layout
        self.empty = False
        self._ledger = ledger
        self._transport = transport
        self._drain = drain
        self._moved = moved
        # Level 1: what matters here is that inflating works, not how small it gets.
        self._gzip = zlib.compressobj(1, wbits=31) if gzip else None
        self._keep_alive = keep_alive
        self._queue_limit = queue_limit
        self._rng = random.Random(seed)
        self._queue: deque[tuple[int | None, bytes]] = deque()
        self._queued_bytes = 0
        self._leaving: list[int] = []
        self._ending: Ending | None = None
        self._woken = asyncio.Event()
        self._held_until = 0.0
        self._mute = False
        self._last_write = asyncio.get_running_loop().time()
        self.keep_alives = 0
        # Drained then means handed to the operating system. A TLS transport with a limit of 0 would stay paused.
        transport.set_write_buffer_limits(high=1 if transport.get_extra_info("sslcontext") else 0)

    @property
    def takes_posts(self) -> bool:
        """Whether a post that falls due now belongs to this connection."""
        return self._ending is None or (self._ending in _MID_LINE and not self._queue)

    @property
    def has_room(self) -> bool:
        """Whether a source that follows its reader should give more."""
        return self.takes_posts and not self.empty and self._queued_bytes < _ROOM_BYTES

    def offer(self, row: int | None, line: bytes) -> None:
        """Queue a line; `row` is its place in the ledger, None for a line that is no post."""
        self._queue.append((row, line))
        self._queued_bytes += len(line)
        if self._queued_bytes > self._queue_limit:
            self.end(Ending.SLOW_READER)
        self._woken.set()

    def hold(self, seconds: float, *, mute: bool) -> None:
        """Let posts wait for some seconds; `mute` holds the keep-alives back as well."""
        self._held_until = asyncio.get_running_loop().time() + seconds
        self._mute = mute
        self._woken.set()

    def go_empty(self) -> None:
        """Let only keep-alives follow until the connection ends, as X has been seen to do."""
        self.empty = True

    def end(self, ending: Ending) -> None:
        """
        End the connection.

        A reset and a drop act at once, also while another ending waits. The others come when the queue is empty; those
        that cut a line, at the next line.
        """
        if self._ending in _AT_ONCE or (self._ending is not None and ending not in _AT_ONCE):
            return
        self._ending = ending
        self._held_until = 0.0
        if ending in _AT_ONCE:
            if ending is Ending.RESET:
                linger = struct.pack("ii", 1, 0)
                self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            # Closes without what is still in the transport; the kernel's part goes out, a reset excepted.
            self._transport.abort()
        self._woken.set()

    async def run(self) -> None:
        """Write until the connection ends, then settle in the ledger what is left."""
        try:
            while not self._is_over():
                if self._queue and asyncio.get_running_loop().time() >= self._held_until:
                    await self._write_waiting()
                else:
                    await self._idle()
            self._finish()
        except ConnectionError:
            # The end of the connection usually cancels this task; during a write it may show here first.
            self._ending = self._ending or Ending.CLIENT
        except asyncio.CancelledError:
            self._ending = self._ending or Ending.CLIENT
            raise
        finally:
            waiting = [row for row, _ in self._queue if row is not None]
            self._ledger.settle([*self._leaving, *waiting], DISCARDED)
            self._queue.clear()
            self.record.ending = self._ending or "error"

    def _is_over(self) -> bool:
        if self._ending is None:
            return False
        return self._ending in _AT_ONCE or bool(self._queue) == (self._ending in _MID_LINE)

    async def _idle(self) -> None:
        """Wait for a line, an ending, the end of a hold or the time of a keep-alive."""
        beat = self._last_write + self._keep_alive
        held = asyncio.get_running_loop().time() < self._held_until
        waits_for_hold = held and (self._mute or self._held_until < beat)
        self._woken.clear()
        try:
            async with asyncio.timeout_at(self._held_until if waits_for_hold else beat):
                await self._woken.wait()
        except TimeoutError:
            if not waits_for_hold:
                self.keep_alives += 1
                await self._write([CRLF])

    async def _write_waiting(self) -> None:
        """Take lines from the queue and write them in the chunks of the layout."""
        batch: list[bytes] = []
        size = 0
        while self._queue and size < _WRITE_BYTES:
            row, line = self._queue.popleft()
            if row is not None:
                self._leaving.append(row)
            batch.append(line)
            size += len(line)
        self._queued_bytes -= size
        if self.layout is Layout.BATCH:
            await self._write([CRLF.join(batch) + CRLF])
        else:
            await self._write([chunk for line in batch for chunk in self._cut(line)])
        self._ledger.settle(self._leaving, WRITTEN)
        self._leaving = []
        self._moved()
        # A socket that always has room never suspends a write; the others want their turn too.
        await asyncio.sleep(0)

    async def _write(self, chunks: list[bytes]) -> None:
        for number, chunk in enumerate(chunks):
            if number:
                # Lets a client of the same process read between two chunks.
                await asyncio.sleep(0)
            data = chunk
            if self._gzip:
                data = self._gzip.compress(chunk) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
            self._send(data)
            await self._drain()
            if self._transport.is_closing():
                raise ConnectionResetError("the connection ended during a write")
        self._last_write = asyncio.get_running_loop().time()

    def _send(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _cut(self, line: bytes) -> list[bytes]:
        whole = line + CRLF
        if self.layout is Layout.BYTES:
            return [whole[place : place + 1] for place in range(len(whole))]
        cuts: list[int] = []
        if self.layout is Layout.GLUED:
            whole += CRLF
        elif self.layout is Layout.CRLF:
            cuts = [len(line) + 1]
        elif self.layout is Layout.SPLIT:
            cuts = sorted(self._rng.sample(range(1, len(whole)), k=min(4, len(line))))
        elif self.layout is Layout.ESCAPE:
            cuts = [line.index(b"\\") + 1] if b"\\" in line else []
        elif self.layout is Layout.UTF8:
            found = _NOT_ASCII.search(line)
            cuts = [found.start() + 1] if found else []
        return [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    def _finish(self) -> None:
        """Send what belongs to the ending and close; the kernel still delivers all that was written."""
        if self._ending in _MID_LINE:
            # The line stays in the queue: it is discarded.
            line = self._queue[0][1]
            half = line[: len(line) // 2]
            self._send(self._gzip.compress(half) + self._gzip.flush(zlib.Z_SYNC_FLUSH) if self._gzip else half)
        if self._ending in _WITH_LAST_CHUNK:
            if self._gzip:
                self._send(self._gzip.flush(zlib.Z_FINISH))
            self._transport.write(b"0\r\n\r\n")
        self._transport.close()
