"""
The queue on disk: what was read from the source stays here until Kinesis has confirmed it.

The file is written in a thread of its own: the event loop never waits for it, and neither does sending. Here are the
thread, the beat, and what happens while the disk fails; what is to be written is decided in `core.chunks`, and
`JournalFile` writes it. All bookkeeping belongs to the event loop's thread. The other one gets a batch, and only reads
it.

**What it promises.** The numbers are for a disk that keeps up; one that does not delays the next write, not the loop.

* *The process dies* (`kill -9`, out of memory): what was appended more than 100 ms before comes back. A post is
  written when it is 30 to 60 ms old, and a write takes some 10 ms. What was confirmed more than 100 ms before does not
  come back; younger confirmations may be lost, and those posts go out once more.
* *The power fails*: the same, and the time of an fsync, because each write ends with one (synchronous=FULL); if the
  disk tells the truth about it. NORMAL would save only 0.2 microseconds a post, could lose all since the last
  checkpoint, and its rarer but larger fsyncs would hold up a write for longer: 60 to 200 ms, by the size of the WAL.
* *The file is torn all the same*: it is set aside, never deleted, and a new one is begun.

**What it costs.** CPU of the whole process for a post of 1.1 KB, at 50,000 a second, with SQLite 3.40 on ext4: 0.5
microseconds if it is confirmed before it is 30 ms old, because then it is never written; 2.9 if it is written and
deleted, 2 of them in SQLite and the kernel, which copy and sum up the bytes. At a trickle it is the beat that costs:
up to 33 transactions a second, 1 ms and two or three pages each. The file is 1 to 100 % larger than the posts in it:
most where a chunk takes just over half a page of 32 KiB, as at some 500 posts a second, because no second row fits.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, Self, TypeVar

import structlog

from service.core.chunks import Chunks
from service.core.records import DropReason
from service.core.rows import Batch, Contents, DamagedError, Stored

# From one look at what is to be written to the next. Chunks go at the second look: 30 to 60 ms after their posts came.
BEAT_SECONDS = 0.03
# Everything else is counted in beats. A write that takes longer (2 s) is a failure that the operator should see.
STALL_BEATS = 66
STALL_SECONDS = STALL_BEATS * BEAT_SECONDS
STALLED = f"the disk has not answered for {STALL_SECONDS:.0f} s"
# What 8 GiB of posts may take to be opened; nothing is read from X before.
OPENING_SECONDS = 10.0
# The first pause after a failure (0.1 s), and the longest (5 s); it doubles in between.
RETRY_BEATS = (4, 166)

log = structlog.get_logger()

_T = TypeVar("_T")


class File(Protocol):
    """Where rows lie. All of it runs in the journal's thread; what the disk has against it is raised."""

    def open(self) -> Contents:
        """Open it, and tell what it holds."""

    def write(self, batch: Batch) -> Mapping[int, int]:
        """Do one transaction; return the new sizes of the rows that were written anew."""

    def read(self, first: int, limit: int) -> list[Stored]:
        """Read rows from a number on, until they have so many bytes."""

    def close(self) -> None:
        """Let go of it."""


class Journal:
    """
    See the module's text. Make it with `open`; all its methods belong to the event loop's thread.

    Attributes:
        recovered: posts that an earlier run left. They are the first of the backlog.
    """

    def __init__(
        self, file: File, thread: ThreadPoolExecutor, chunks: Chunks, on_shed: Callable[[int, Sequence[bytes]], None]
    ) -> None:
        self.recovered = chunks.backlog
        self._file = file
        self._thread = thread
        self._chunks = chunks
        self._on_shed = on_shed
        self._loop = asyncio.get_running_loop()
        self._beats = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[Mapping[int, int]] | None = None
        self._writing_since = 0  # beats
        self._overdue = False
        self._closing = False
        self._troubles: dict[str, str] = {}
        self._pause = 0  # beats
        self._retry_at = 0  # beats

    @classmethod
    async def open(
        cls,
        file: File,
        limit: int,
        *,
        on_shed: Callable[[int, Sequence[bytes]], None],
        patience: float = OPENING_SECONDS,
    ) -> Self:
        """
        Open a journal's file, however long that takes.

        Args:
            file: the journal's, until `close`.
            limit: bytes of posts that it takes. The files are larger; see the module's text.
            on_shed: called with a number of posts of the backlog that are lost because the disk failed, and with
                their lines if there still are any.
            patience: seconds, after which the log says that it still waits.

        Raises what the file's `open` does.
        """
        thread = ThreadPoolExecutor(1, "journal")
        try:
            opening = asyncio.get_running_loop().run_in_executor(thread, file.open)
            await asyncio.wait([opening], timeout=patience)
            if not opening.done():
                log.error(
                    "journal_not_open",
                    seconds=patience,
                    way_out="look at the disk of MILLRACE_JOURNAL: it hangs, or has gigabytes to read; the start waits",
                )
            contents = await opening
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(file, thread, Chunks(contents, limit), on_shed)

    @property
    def held_bytes(self) -> int:
        """What it holds, in bytes of posts. A chunk counts until all of its posts are confirmed."""
        return self._chunks.held_bytes

    @property
    def backlog(self) -> int:
        """Posts that only the journal has: they wait for `read`."""
        return self._chunks.backlog

    @property
    def trouble(self) -> str:
        """What is wrong with the disk, in one line; empty if nothing is."""
        return next(iter(self._troubles.values()), "")

    @property
    def hangs(self) -> bool:
        """Whether the disk has been asked, and does not answer."""
        return STALLED in self._troubles.values()

    def keeps(self, position: int) -> bool:
        """Whether this post, taken and not confirmed, is in the file, so that the next run will have it."""
        return self._chunks.keeps(position)

    # What comes and goes

    def append(self, lines: Sequence[bytes], *, in_memory: bool) -> range | DropReason:
        """
        Take one or more lines that arrived together and give their positions, or say why none was taken. Never waits.

        With `in_memory` the caller keeps them and will confirm them; that would overtake the backlog, so there must be
        none. Without, they join the backlog. If the disk fails, the former are taken all the same (and written as soon
        as it works again), the latter as long as `core.chunks.WAITING_BYTES` allow.
        """
        taken = self._chunks.append(lines, self._beats, in_memory=in_memory)
        self._arm()
        return taken

    def confirm(self, positions: Iterable[int]) -> None:
        """Let go of posts that are delivered or dropped. Positions that it does not hold are ignored. Never waits."""
        self._chunks.confirm(positions)
        self._arm()

    async def read(self, limit: int) -> list[tuple[int, bytes]]:
        """
        Move the next posts of the backlog to the caller's memory: their positions and lines, in order.

        Reads whole chunks until `limit` bytes are reached, and at least one; a chunk is 256 KiB, or what came in one
        `append`. Empty only if there is no backlog. The posts leave the backlog at the moment in which it returns:
        await it directly, or what is appended in between overtakes them. Waits while the disk cannot be read. For one
        reader only.
        """
        while self._chunks.stored:
            try:
                rows = await self._run(self._file.read, self._chunks.cursor, limit)
            except Exception as error:
                # Whatever it is: posts are still delivered from memory, and the operator sees it.
                self._fail("read", error)
                await asyncio.sleep(self._pause * BEAT_SECONDS)
                continue
            self._heal("read")
            return self._chunks.take_rows((stored.row() for stored in rows), self._beats)
        return self._chunks.take_waiting(limit)

    async def flush(self) -> None:
        """Write all that was appended or confirmed before; gives up as soon as the disk refuses that, or hangs."""
        under_way = self._writing
        while writing := self._writing or self._write(everything=True):
            await asyncio.wait([writing], timeout=STALL_SECONDS)
            if not writing.done():
                self._note_trouble("write", STALLED)
                return
            if "write" in self._troubles and writing is not under_way:
                return

    async def close(self) -> None:
        """
        Write what can be written and let go of the files. What the disk does not take of the backlog is shed.

        A disk that hangs is not waited for, and goes on holding the thread.
        """
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        await self.flush()
        waiting = self._chunks.waiting()
        if waiting:
            self._on_shed(len(waiting), waiting)
        if self._writing is None:
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    await self._run(self._file.close)
            except TimeoutError:
                self._note_trouble("close", STALLED)
        self._thread.shutdown(wait=False)

    # The beat

    def _arm(self) -> None:
        if self._timer is None and not self._closing:
            self._timer = self._loop.call_later(BEAT_SECONDS, self._beat)

    def _beat(self) -> None:
        self._timer = None
        self._beats += 1
        self._chunks.settle(self._beats)
        if self._writing is None:
            self._write()
        else:
            self._overdue = True
            if self._beats - self._writing_since > STALL_BEATS:
                self._note_trouble("write", STALLED)
        if self._writing or not self._chunks.is_settled:
            self._arm()

    def _write(self, *, everything: bool = False) -> asyncio.Future[Mapping[int, int]] | None:
        """Begin to write what is old enough, or everything; None if there is nothing."""
        if not everything and self._beats < self._retry_at:
            return None
        batch = self._chunks.next_batch(self._beats, everything=everything)
        if batch is None:
            return None
        self._writing = self._run(self._file.write, batch)
        self._writing_since = self._beats
        self._writing.add_done_callback(self._end_write)
        return self._writing

    def _end_write(self, future: asyncio.Future[Mapping[int, int]]) -> None:
        self._writing = None
        error = future.exception()
        if error is None:
            self._heal("write")
            self._chunks.written(future.result())
        else:
            self._chunks.failed()
            self._fail("write", error)
        if self._overdue and not self._closing:
            self._overdue = False
            self._write()
        self._arm()

    # The disk

    def _run(self, work: Callable[..., _T], *args: object) -> asyncio.Future[_T]:
        return self._loop.run_in_executor(self._thread, work, *args)

    def _fail(self, what: str, error: BaseException) -> None:
        if isinstance(error, DamagedError):
            self._lose(error)
            return
        first, longest = RETRY_BEATS
        self._pause = min(longest, self._pause * 2) or first
        self._retry_at = self._beats + self._pause
        self._note_trouble(what, f"{type(error).__name__}: {error}")

    def _note_trouble(self, what: str, detail: str) -> None:
        if what not in self._troubles:
            log.error(
                "journal_failed",
                operation=what,
                error=detail,
                way_out="make room on the disk of MILLRACE_JOURNAL, or mend it; it is tried again and again. Meanwhile"
                " posts are delivered from memory, and lost if the process dies",
            )
        self._troubles[what] = detail

    def _heal(self, what: str) -> None:
        if self._troubles.pop(what, None):
            log.info("journal_works_again", operation=what)
        if not self._troubles:
            self._pause = self._retry_at = 0

    def _lose(self, error: DamagedError) -> None:
        """Begin anew with an empty file. What memory has is delivered, but a crash would lose it."""
        lost = self._chunks.lose()
        log.error("journal_posts_lost", error=str(error), posts=lost)
        self._heal("read")
        if lost:
            self._on_shed(lost, [])
