"""
One open stream: from its queue of lines to the bytes on the socket, with every fault that a stream can have.

Rules it obeys:

* It frames the chunks itself, because faults are about borders: where a chunk ends, whether the last one comes, what is
  cut. The HTTP library has sent the headers and only lends its transport.
* A line is written when the operating system has taken all of it. The transport's own buffer is therefore kept empty:
  each write waits until it is. Below TLS asyncio keeps up to 64 KiB more, which only a reset or a drop can lose.
* A reset destroys what the client's system has not yet confirmed. Lines in there are discarded, not written.
* X's queue has a limit. A client that reads too slowly is dropped with all that waited for it.
* When idle for the keep-alive time, CR LF is sent. It proves that the socket lives, no more.
"""

import asyncio
import fcntl
import random
import socket
import struct
import termios
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from local.x_api.answers import disconnect_line
from local.x_api.clock import Clock
from local.x_api.endings import AT_ONCE, MID_BLOCK, MID_LINE, WITH_LAST_CHUNK, Ending
from local.x_api.endpoints import Subscription
from local.x_api.layout import CRLF, Layout, chunks
from local.x_api.ledger import DISCARDED, WRITTEN, ConnectionRecord, Ledger
from local.x_api.settings import Settings

# So many bytes of waiting lines go into one write: more than the feed adds in its turn, or queues would grow by it.
_WRITE_BYTES = 256 * 1024
# Below this many waiting bytes a source that follows its reader gives more.
_ROOM_BYTES = 2 * _WRITE_BYTES
# More than the systems of both ends hold for a connection.
_UNCONFIRMED_BYTES = 32 * 1024 * 1024


class Stream:
    """
    One connection.

    Args:
        record: its entry in the ledger.
        ledger: learns the end of each post.
        subscription: what it is to get; the feed asks.
        settings: keep-alives, limits of the queue, the seed of all chance.
        clock: of the stand-in.
        transport: of the connection, after the headers.
        drain: waits until the transport has room.
        moved: called whenever lines have left the queue.
        gzip: whether the client accepted it; each write is then flushed so that it can be read at once.
        layout: where chunks end.
    """

    def __init__(
        self,
        record: ConnectionRecord,
        ledger: Ledger,
        subscription: Subscription,
        settings: Settings,
        clock: Clock,
        transport: asyncio.Transport,
        drain: Callable[[], Awaitable[None]],
        *,
        moved: Callable[[], None],
        gzip: bool,
        layout: Layout,
    ) -> None:
        self.record = record
        self.subscription = subscription
        self.layout = layout
        self.empty = False
        self.missed_beats = 0
        self.keep_alives = 0
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._transport = transport
        self._drain = drain
        self._moved = moved
        # Level 1: what matters here is that inflating works, not how small it gets.
        self._gzip = zlib.compressobj(1, wbits=31) if gzip else None
        self._rng = random.Random(settings.seed + record.number)
        self._queue: deque[tuple[int | None, bytes]] = deque()
        self._queued_bytes = 0
        self._replayed_bytes = 0
        self._leaving: list[int] = []
        # Rows of each write with the number of bytes sent until its end.
        self._unconfirmed: deque[tuple[int, list[int]]] = deque()
        self._sent_bytes = 0
        self._ending: Ending | None = None
        self._woken = asyncio.Event()
        self._held_until = 0.0
        self._mute = False
        self._trickle = 0
        self._trickles_until = 0.0
        self._credit = settings.delivery_cap or 0.0
        self._credit_at = clock.now()
        self._note_write()
        # Drained then means handed to the operating system. A TLS transport with a limit of 0 would stay paused.
        transport.set_write_buffer_limits(high=1 if transport.get_extra_info("sslcontext") else 0)

    @property
    def takes_posts(self) -> bool:
        """Whether a post that falls due now belongs to this connection."""
        return self._ending is None or (self._ending in MID_LINE and not self._queue and self.record.ending == "open")

    @property
    def has_room(self) -> bool:
        """Whether a source that follows its reader should give more."""
        return self.takes_posts and not self.empty and self._queued_bytes < _ROOM_BYTES

    def may_send(self) -> bool:
        """Count a post against what X delivers in a second at most, and say whether it is within that."""
        cap = self._settings.delivery_cap
        if cap is None:
            return True
        now = self._clock.now()
        self._credit = min(cap, self._credit + (now - self._credit_at) * cap)
        self._credit_at = now
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    def offer(self, row: int | None, line: bytes) -> None:
        """Queue a line; `row` is its place in the ledger, None for a line that is no post."""
        self._queue.append((row, line))
        self._queued_bytes += len(line)
        posts = self._settings.queue_posts
        waiting = self._queued_bytes - self._replayed_bytes
        if waiting > self._settings.queue_limit or (posts is not None and len(self._queue) > posts):
            self.end(Ending.SLOW_READER)
        self._woken.set()

    def replay(self, lines: Iterable[tuple[int, bytes]]) -> None:
        """Queue lines of the past, with their rows; X has them on a disk, so its queue's limits are not for them."""
        for row, line in lines:
            self._queue.append((row, line))
            self._queued_bytes += len(line)
            self._replayed_bytes += len(line)
        self._woken.set()

    def hold(self, seconds: float, *, mute: bool) -> None:
        """Let posts wait for some seconds; `mute` holds the keep-alives back as well."""
        self._held_until = self._clock.now() + seconds
        self._mute = mute
        self._woken.set()

    def trickle(self, seconds: float, size: int) -> None:
        """For some seconds, send no more than so many bytes in one."""
        self._trickles_until = self._clock.now() + seconds
        self._trickle = size

    def go_empty(self) -> None:
        """Let only keep-alives follow until the connection ends, as X has been seen to do."""
        self.empty = True

    def end(self, ending: Ending, *, told: bool = False) -> None:
        """
        End the connection.

        A reset and a drop act at once, also while another ending waits. The others come when the queue is empty; those
        that cut a line, at the next line. A slow reader may be told; the news stands behind what it has not read.
        """
        if self._ending in AT_ONCE or (self._ending is not None and ending not in AT_ONCE):
            return
        self._ending = ending
        self._held_until = 0.0
        if ending is Ending.RESET:
            self._withdraw_unconfirmed()
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if ending is Ending.SLOW_READER and (told or self._settings.tells_slow_readers):
            self._frame(self._packed(disconnect_line("SlowReader") + CRLF))
            self._transport.close()
        elif ending in AT_ONCE:
            # Closes without what is still in the transport; the kernel's part goes out, a reset excepted.
            self._transport.abort()
        self._woken.set()

    async def run(self) -> None:
        """Write until the connection ends, then settle in the ledger what is left."""
        try:
            while not self._is_over():
                if self._queue and self._clock.now() >= self._held_until:
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
        return self._ending in AT_ONCE or bool(self._queue) == (self._ending in MID_LINE)

    async def _idle(self) -> None:
        """Wait for a line, an ending, the end of a hold or the time of a keep-alive."""
        held = self._clock.now() < self._held_until
        waits_for_hold = held and (self._mute or self._held_until < self._beat_at)
        self._woken.clear()
        await self._clock.wait(self._woken, self._held_until if waits_for_hold else self._beat_at)
        if self._woken.is_set() or waits_for_hold:
            return
        if self.missed_beats:
            self.missed_beats -= 1
            self._note_write()
        else:
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
        self._replayed_bytes = max(0, self._replayed_bytes - size)
        await self._write(chunks(batch, self.layout, self._rng))
        self._ledger.settle(self._leaving, WRITTEN)
        self._unconfirmed.append((self._sent_bytes, self._leaving))
        while self._unconfirmed[0][0] < self._sent_bytes - _UNCONFIRMED_BYTES:
            self._unconfirmed.popleft()
        self._leaving = []
        self._moved()
        # A socket that always has room never suspends a write; the others want their turn too.
        await asyncio.sleep(0)

    async def _write(self, pieces: list[bytes]) -> None:
        for number, piece in enumerate(pieces):
            if number:
                # Lets a client of the same process read between two chunks.
                await asyncio.sleep(0)
            data = self._packed(piece)
            while self._clock.now() < self._trickles_until:
                await self._send(data[: self._trickle])
                data = data[self._trickle :]
                if not data:
                    break
                await self._clock.sleep(1)
            if data:
                await self._send(data)
        self._note_write()

    async def _send(self, data: bytes) -> None:
        self._frame(data)
        await self._drain()
        if self._transport.is_closing():
            raise ConnectionResetError("the connection ended during a write")

    def _frame(self, data: bytes) -> None:
        framed = b"%x\r\n%b\r\n" % (len(data), data)
        self._sent_bytes += len(framed)
        self._transport.write(framed)

    def _packed(self, data: bytes) -> bytes:
        return self._gzip.compress(data) + self._gzip.flush(zlib.Z_SYNC_FLUSH) if self._gzip else data

    def _note_write(self) -> None:
        settings = self._settings
        beat = settings.keep_alive * (1 + settings.keep_alive_jitter * self._rng.random())
        self._beat_at = self._clock.now() + beat

    def _withdraw_unconfirmed(self) -> None:
        """Call discarded what was called written, if the client's system has not confirmed it."""
        held = struct.pack("i", 0)
        with suppress(OSError):
            held = fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, held)
        confirmed = self._sent_bytes - self._transport.get_write_buffer_size() - struct.unpack("i", held)[0]
        while self._unconfirmed and self._unconfirmed[-1][0] > confirmed:
            self._ledger.withdraw(self._unconfirmed.pop()[1])

    def _finish(self) -> None:
        """Send what belongs to the ending and close; the kernel still delivers all that was written."""
        if self._ending in MID_LINE:
            # The line stays in the queue: it is discarded.
            line = self._queue[0][1]
            if self._ending in MID_BLOCK:
                packed = self._packed(line)
                self._frame(packed[: len(packed) // 2])
            else:
                self._frame(self._packed(line[: len(line) // 2]))
        if self._ending in WITH_LAST_CHUNK:
            if self._gzip and self._ending not in MID_BLOCK:
                self._frame(self._gzip.flush(zlib.Z_FINISH))
            self._transport.write(b"0\r\n\r\n")
        if self._ending is Ending.CUT:
            self._transport.abort()
        else:
            self._transport.close()
