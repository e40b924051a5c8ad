"""
The queue on disk: what was read from the source stays here until Kinesis has confirmed it.

SQLite in WAL mode, in a thread of its own. The event loop never waits for it, and neither does sending.

**What it promises.** The numbers are for a disk that keeps up; one that does not delays the next write, not the loop.

* *The process dies* (`kill -9`, out of memory): what was appended more than 100 ms before comes back. A post is
  written when it is 30 to 60 ms old, and a write takes some 10 ms. What was confirmed more than 100 ms before does not
  come back; younger confirmations may be lost, and those posts go out once more.
* *The power fails*: the same, and the time of an fsync, because each write ends with one (synchronous=FULL); if the
  disk tells the truth about it. NORMAL would save only 0.2 microseconds a post, could lose all since the last
  checkpoint, and its rarer but larger fsyncs would hold up a write for longer: 60 to 200 ms, by the size of the WAL.
* *Power fails and the file is torn all the same*: it is set aside, never deleted, and a new one is begun.

**What it costs.** CPU of the whole process for a post of 1.1 KB, at 50,000 a second, with SQLite 3.40 on ext4: 0.5
microseconds if it is confirmed before it is 30 ms old, because then it is never written; 2.9 if it is written and
deleted, 2 of them in SQLite and the kernel, which copy and sum up the bytes. At a trickle it is the beat that costs:
up to 33 transactions a second, 1 ms and two or three pages each. The files are 3 to 5 % larger than the posts in them.

Rules and traps:

* Posts are stored by the chunk: those that arrived together, up to 256 KiB, in one row. A row is deleted when all its
  posts are confirmed; until then `done` says which are. UPDATE of a row writes all of it anew, so `done` is a table.
* A position is the chunk's number and the place in it, so that a confirmation needs no search. Positions rise, with
  gaps.
* One slow lane would pin whole chunks for the sake of single posts: such chunks are written anew without the rest.
* All bookkeeping belongs to the event loop's thread. The other one gets a batch, and only reads it.
* `secure_delete` is on in some builds of SQLite and adds two thirds to the cost: it fills what is deleted with zeros.
  It is switched off, so what was deleted may be found in the file until its place is used again.
* locking_mode=EXCLUSIVE keeps WAL's index in memory: no third file, and no SIGBUS when the disk is full.
"""

import asyncio
import fcntl
import os
import sqlite3
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from itertools import accumulate, compress, pairwise
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import structlog

from service.core.limits import KIB, MIB
from service.core.records import DropReason

FILE_NAME = "journal.db"
LOCK_NAME = "journal.lock"
# From one look at what is to be written to the next. Chunks go at the second look: 30 to 60 ms after their posts came.
BEAT_SECONDS = 0.03
# A chunk begins anew beyond this size. Larger ones leave the processor's cache between being joined and being written.
CHUNK_BYTES = 256 * KIB
# The most that one transaction takes, so that the WAL stays small after a failure of the disk too.
BATCH_BYTES = 8 * MIB
# Posts that only the journal has, and that are not written yet: the most that a stalled disk may hold in memory.
WAITING_BYTES = 32 * MIB
# Everything else is counted in beats. A write that takes longer (2 s) is a failure that the operator should see.
STALL_BEATS = 66
# The first pause after a failure (0.1 s), and the longest (5 s); it doubles in between.
RETRY_BEATS = (4, 166)
# Every so many beats it looks for chunks of which at most a quarter is left, and which are older than that.
SWEEP_BEATS = 64
# The file shrinks when this much of it is empty and little is in use: VACUUM copies what is in use.
VACUUM_FREE_BYTES = 64 * MIB
VACUUM_USED_BYTES = 16 * MIB

_PLACE_BITS = 20
_PLACE_MASK = (1 << _PLACE_BITS) - 1

# Both stand in the header of the file. The version rises with every change of the tables.
_APPLICATION_ID = 0x4D696C6C
_VERSION = 1
# Pages of 32 KiB: with 4 KiB a post costs twice as much; with 64 KiB a trickle of posts writes twice as much.
# The pointer map of auto_vacuum spares reading a chunk's pages when it is deleted.
_PAGE_BYTES = 32 * KIB
_SCHEMA = f"""
PRAGMA page_size = {_PAGE_BYTES};
PRAGMA auto_vacuum = INCREMENTAL;
BEGIN;
CREATE TABLE chunk (number INTEGER PRIMARY KEY, lengths BLOB NOT NULL, lines BLOB NOT NULL);
CREATE TABLE done (number INTEGER PRIMARY KEY, flags BLOB NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
COMMIT;
"""
_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "secure_delete = OFF",
    f"cache_size = {-4 * MIB // KIB}",
    f"wal_autocheckpoint = {32 * MIB // _PAGE_BYTES}",
    f"journal_size_limit = {48 * MIB}",
)
_LENGTH_BYTES = array("I").itemsize

log = structlog.get_logger()

_T = TypeVar("_T")


class JournalError(Exception):
    """The journal cannot be used; the text is one line that names the setting and the way out."""


class _DamagedError(Exception):
    """The file is no journal, or holds what nobody wrote; it has been set aside."""


class _Chunk:
    """
    Some posts that arrived together.

    Attributes:
        number: rises; also the key of its row.
        lines: while it is not written; empty afterwards.
        flags: one byte a post, 1 for confirmed.
        left: how many are not confirmed, as of the last beat.
        kept: how many its row still has.
        size: its bytes, as far as they count against the limit.
        beat: when it was begun.
        in_memory: the caller has its posts; otherwise they wait to be read.
        written: it has a row.
    """

    __slots__ = ("beat", "flags", "in_memory", "kept", "left", "lines", "number", "size", "written")

    def __init__(self, number: int, beat: int, *, in_memory: bool) -> None:
        self.number = number
        self.lines: list[bytes] = []
        self.flags = bytearray()
        self.left = 0
        self.kept = 0
        self.size = 0
        self.beat = beat
        self.in_memory = in_memory
        self.written = False

    def positions(self) -> Iterable[int]:
        """Give the positions of the posts that are not confirmed."""
        start = self.number << _PLACE_BITS
        return (start + place for place, flag in enumerate(self.flags) if not flag)

    def forget_confirmed(self) -> None:
        """Let go of lines that need not be written any more."""
        self.lines = _without(self.lines, self.flags)


class _Row(NamedTuple):
    """A chunk on its way to or from the disk; `flags` is empty if none of its posts is confirmed."""

    number: int
    lines: list[bytes]
    flags: bytes


class _Stored(NamedTuple):
    """A row as it lies in the file. `flags` is empty if none of its posts is confirmed."""

    number: int
    ends: list[int]
    lines: bytes
    flags: bytes

    def row(self) -> _Row:
        """Split it into lines. In the loop's thread: lines of another thread's arena would tear holes in its memory."""
        return _Row(self.number, [self.lines[start:end] for start, end in pairwise(self.ends)], self.flags)


class _Batch(NamedTuple):
    """One transaction: rows to insert, numbers to delete, flags to note, rows to write anew without what is done."""

    rows: list[_Row]
    deletes: list[int]
    done: list[tuple[int, bytes]]
    sweeps: list[tuple[int, bytes]]


class _Contents(NamedTuple):
    """What an earlier run left: posts that are not confirmed, bytes of all rows, and the numbers of the rows."""

    posts: int
    bytes: int
    first: int
    next: int


class Journal:
    """
    See the module's text. Make it with `open`; all its methods belong to the event loop's thread.

    Attributes:
        recovered: posts that an earlier run left. They are the first of the backlog.
        bytes: what it holds, in bytes of posts. A chunk counts until all of its posts are confirmed.
    """

    def __init__(self, file: "_File", limit: int, on_shed: Callable[[int, Sequence[bytes]], None]) -> None:
        self._file = file
        self._limit = limit
        self._on_shed = on_shed
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "journal")
        self.recovered = 0
        self.bytes = 0

        self._beats = 0
        self._timer: asyncio.TimerHandle | None = None
        self._next_number = 0
        self._open: _Chunk | None = None  # takes what is appended
        self._chunks: dict[int, _Chunk] = {}  # those in memory, which can be confirmed
        self._unwritten: deque[_Chunk] = deque()
        self._touched: set[_Chunk] = set()  # confirmed in part since the last beat
        self._changed: set[_Chunk] = set()  # their rows do not know it yet
        self._deletes: list[int] = []
        # The backlog: posts in rows from `_cursor` on, and posts in `_unwritten` that nobody else has.
        self._cursor = 0
        self._backlog_written = 0
        self._backlog_unwritten = 0
        self._backlog_unwritten_bytes = 0
        self._reading = asyncio.Lock()

        self._writing: asyncio.Future[Mapping[int, int]] | None = None
        self._writing_since = 0  # beats
        self._closing = False
        self._overdue = False
        self._troubles: dict[str, str] = {}
        self._pause = 0  # beats
        self._retry_at = 0  # beats

    @classmethod
    async def open(
        cls,
        directory: Path,
        limit: int,
        *,
        on_shed: Callable[[int, Sequence[bytes]], None],
        clock: Callable[[], float] = time.time,
        connect: Callable[..., sqlite3.Connection] = sqlite3.connect,
    ) -> Self:
        """
        Open the journal of a directory, which is made if it is not there.

        Args:
            directory: where it lies; no other process may have it.
            limit: bytes of posts that it takes. The files are up to 5 % and 64 MiB larger.
            on_shed: called with a number of posts of the backlog that are lost because the disk failed, and with
                their lines if there still are any.
            clock: the time of day, in seconds since 1970, for the name of a damaged file.
            connect: opens the database.

        Raises: JournalError.
        """
        journal = cls(_File(directory, clock, connect), limit, on_shed)
        try:
            contents = await journal._run(journal._file.open)
        except BaseException:
            journal._thread.shutdown()
            raise
        journal.recovered = journal._backlog_written = contents.posts
        journal.bytes = contents.bytes
        journal._cursor = contents.first
        journal._next_number = contents.next
        return journal

    @property
    def backlog(self) -> int:
        """Posts that only the journal has: they wait for `read`."""
        return self._backlog_written + self._backlog_unwritten

    @property
    def trouble(self) -> str:
        """What is wrong with the disk, in one line; empty if nothing is."""
        return next(iter(self._troubles.values()), "")

    def keeps(self, position: int) -> bool:
        """Whether this post, taken and not confirmed, is in the file, so that the next run will have it."""
        chunk = self._chunks.get(position >> _PLACE_BITS)
        return chunk is not None and chunk.written

    # What comes and goes

    def append(self, lines: Sequence[bytes], *, in_memory: bool) -> range | DropReason:
        """
        Take lines that arrived together and give their positions, or say why none of them was taken. Never waits.

        With `in_memory` the caller keeps them and will confirm them; that would overtake the backlog, so there must be
        none. Without, they join the backlog. If the disk fails, the former are taken all the same (and written as soon
        as it works again), the latter as long as WAITING_BYTES allow.
        """
        if in_memory and self.backlog:
            raise RuntimeError("append(in_memory=True) while there is a backlog: order would be lost")
        count = len(lines)
        size = sum(map(len, lines))
        if count > _PLACE_MASK:
            raise ValueError(f"append() of {count} lines; the most is {_PLACE_MASK}")
        if self.bytes + size > self._limit:
            return DropReason.JOURNAL_FULL
        if not in_memory:
            if self._backlog_unwritten_bytes + size > WAITING_BYTES:
                return DropReason.DISK_FAILED
            self._backlog_unwritten += count
            self._backlog_unwritten_bytes += size
        chunk = self._open
        if (
            chunk is None
            or chunk.in_memory != in_memory
            or chunk.size + size > CHUNK_BYTES
            or len(chunk.flags) + count > _PLACE_MASK
        ):
            chunk = self._begin(in_memory=in_memory)
        start = chunk.number << _PLACE_BITS | len(chunk.flags)
        chunk.lines += lines
        chunk.flags += bytes(count)
        chunk.left += count
        chunk.size += size
        self.bytes += size
        self._arm()
        return range(start, start + count)

    def confirm(self, positions: Iterable[int]) -> None:
        """Let go of posts that are delivered or dropped. Positions that it does not hold are ignored. Never waits."""
        chunks, touched = self._chunks, self._touched
        current: int | None = None
        flags = bytearray()
        for position in positions:
            number = position >> _PLACE_BITS
            if number != current:
                chunk = chunks.get(number)
                if chunk is None:
                    continue
                current = number
                flags = chunk.flags
                touched.add(chunk)
            flags[position & _PLACE_MASK] = 1
        self._arm()

    async def read(self, limit: int) -> list[tuple[int, bytes]]:
        """
        Move the next posts of the backlog to the caller's memory: their positions and lines, in order.

        Reads whole chunks until `limit` bytes are reached, and at least one; a chunk is 256 KiB, or what came in one
        `append`. Empty only if there is no backlog. The posts leave the backlog at the moment in which it returns:
        await it directly, or what is appended in between overtakes them. Waits while the disk cannot be read.
        """
        async with self._reading:
            posts: list[tuple[int, bytes]] = []
            while self._backlog_written:
                for stored in await self._read_rows(limit):
                    row = stored.row()
                    chunk = _Chunk(row.number, self._beats, in_memory=True)
                    chunk.flags += row.flags or bytes(len(row.lines))
                    chunk.left = chunk.kept = chunk.flags.count(0)
                    chunk.size = sum(map(len, row.lines))
                    chunk.written = True
                    self._chunks[chunk.number] = chunk
                    self._cursor = chunk.number + 1
                    self._backlog_written -= chunk.left
                    lines = compress(row.lines, map((0).__eq__, chunk.flags)) if row.flags else row.lines
                    posts += zip(chunk.positions(), lines, strict=True)
                if posts:
                    return posts
            for chunk in self._unwritten:
                if chunk.in_memory:
                    continue
                self._leave_backlog(chunk)
                chunk.in_memory = True
                self._chunks[chunk.number] = chunk
                posts += zip(chunk.positions(), chunk.lines, strict=True)
                limit -= chunk.size
                if limit <= 0:
                    break
            # What is appended next may have to wait on disk again.
            self._open = None
            return posts

    async def flush(self) -> None:
        """Write all that was appended or confirmed before; gives up as soon as the disk fails."""
        while True:
            if self._writing is not None:
                await asyncio.wait([self._writing])
            if not self._write(everything=True) or self._writing is None:
                return
            await asyncio.wait([self._writing])
            if self.trouble:
                return

    async def close(self) -> None:
        """Write what can be written and let go of the files. What the disk does not take of the backlog is shed."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        await self.flush()
        waiting = [chunk for chunk in self._unwritten if not chunk.in_memory]
        if waiting:
            self._on_shed(self._backlog_unwritten, [line for chunk in waiting for line in chunk.lines])
        await self._run(self._file.close)
        self._thread.shutdown()

    # The beat

    def _arm(self) -> None:
        if self._timer is None and not self._closing:
            self._timer = self._loop.call_later(BEAT_SECONDS, self._beat)

    def _begin(self, *, in_memory: bool) -> _Chunk:
        chunk = self._open = _Chunk(self._next_number, self._beats, in_memory=in_memory)
        self._next_number += 1
        self._unwritten.append(chunk)
        if in_memory:
            self._chunks[chunk.number] = chunk
        return chunk

    def _beat(self) -> None:
        self._timer = None
        self._beats += 1
        self._settle()
        if self._writing is None:
            self._write()
        else:
            self._overdue = True
            if self._beats - self._writing_since > STALL_BEATS:
                self._note_trouble("write", f"the disk has not answered for {STALL_BEATS * BEAT_SECONDS:.0f} s")
        if self._unwritten or self._changed or self._deletes or self._writing:
            self._arm()

    def _settle(self) -> None:
        """Find out which chunks have ended since the last beat."""
        self._open = None
        for chunk in self._touched:
            chunk.left = chunk.flags.count(0)
            if chunk.left == 0:
                del self._chunks[chunk.number]
                self.bytes -= chunk.size
                self._changed.discard(chunk)
                if chunk.written:
                    self._deletes.append(chunk.number)
            elif chunk.written:
                self._changed.add(chunk)
            elif chunk.beat < self._beats - 3:
                # The disk is late. What the caller has let go of must not stay in memory for its sake.
                chunk.forget_confirmed()
        if self._touched:
            self._touched.clear()
            self._unwritten = deque(chunk for chunk in self._unwritten if chunk.left)

    def _write(self, *, everything: bool = False) -> bool:
        """Begin to write what is old enough, or everything. Returns whether there is anything."""
        if everything:
            self._settle()
        elif self._beats < self._retry_at:
            return False
        chunks: list[_Chunk] = []
        size = 0
        for chunk in self._unwritten:
            if size >= BATCH_BYTES:
                self._overdue = True
                break
            if not everything and chunk.beat > self._beats - 2:
                break
            chunks.append(chunk)
            size += chunk.size
        rows = [_Row(chunk.number, chunk.lines, bytes(chunk.flags) if 1 in chunk.flags else b"") for chunk in chunks]
        changed, self._changed = self._changed, set()
        done = [(chunk.number, bytes(chunk.flags)) for chunk in changed]
        batch = _Batch(rows, self._deletes[:], done, self._sweeps())
        if not any(batch):
            return False

        def end(future: asyncio.Future[Mapping[int, int]]) -> None:
            self._writing = None
            error = future.exception()
            if error is None:
                self._written(chunks, batch, future.result())
            else:
                self._changed.update(chunk for chunk in changed if chunk.left)
                self._fail("write", error)
            if self._overdue and not self._closing:
                self._overdue = False
                self._write()
            self._arm()

        self._writing = self._run(self._file.write, batch)
        self._writing_since = self._beats
        self._writing.add_done_callback(end)
        return True

    def _sweeps(self) -> list[tuple[int, bytes]]:
        """Find written chunks of which little is left for long: their rows take room for nothing."""
        if self._beats % SWEEP_BEATS:
            return []
        pinned = [
            chunk
            for chunk in self._chunks.values()
            if chunk.written and chunk.left * 4 <= chunk.kept and chunk.beat < self._beats - SWEEP_BEATS
        ]
        del pinned[BATCH_BYTES // CHUNK_BYTES :]
        return [(chunk.number, bytes(chunk.flags)) for chunk in pinned]

    def _written(self, chunks: Sequence[_Chunk], batch: _Batch, sizes: Mapping[int, int]) -> None:
        self._heal("write")
        del self._deletes[: len(batch.deletes)]
        while chunks and self._unwritten and self._unwritten[0].number <= chunks[-1].number:
            self._unwritten.popleft()
        for chunk, row in zip(chunks, batch.rows, strict=True):
            chunk.written = True
            chunk.lines = []
            chunk.kept = len(row.lines) - row.flags.count(1)
            if not chunk.in_memory:
                self._leave_backlog(chunk)
                if not self._backlog_written:
                    self._cursor = chunk.number
                self._backlog_written += chunk.left
            elif chunk.left == 0:
                self._deletes.append(chunk.number)
            elif chunk.left < chunk.kept:
                self._changed.add(chunk)
        for number, size in sizes.items():
            swept = self._chunks.get(number)
            if swept is not None:
                self.bytes -= swept.size - size
                swept.size = size
                swept.kept = swept.left

    def _leave_backlog(self, chunk: _Chunk) -> None:
        self._backlog_unwritten -= len(chunk.flags)
        self._backlog_unwritten_bytes -= chunk.size

    # The disk

    def _run(self, work: Callable[..., _T], *args: object) -> asyncio.Future[_T]:
        return self._loop.run_in_executor(self._thread, work, *args)

    async def _read_rows(self, limit: int) -> list[_Stored]:
        """Read rows of the backlog; none if there are none any more, because the file was damaged."""
        while self._backlog_written:
            try:
                rows = await self._run(self._file.read, self._cursor, limit)
            except Exception as error:
                # Whatever it is: posts are still delivered from memory, and the operator sees it.
                self._fail("read", error)
                await asyncio.sleep(self._pause * BEAT_SECONDS)
            else:
                self._heal("read")
                return rows
        return []

    def _fail(self, what: str, error: BaseException) -> None:
        if isinstance(error, _DamagedError):
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

    def _lose(self, error: _DamagedError) -> None:
        """Begin anew with an empty file. What memory has is delivered, but a crash would lose it."""
        log.error("journal_posts_lost", error=str(error), posts=self._backlog_written)
        lost, self._backlog_written = self._backlog_written, 0
        self._heal("read")
        for chunk in self._chunks.values():
            if chunk.written:
                chunk.size = 0
                chunk.written = False
        self.bytes = sum(chunk.size for chunk in self._unwritten)
        self._changed.clear()
        self._deletes.clear()
        if lost:
            self._on_shed(lost, [])


class _File:
    """The SQLite file and its lock. All but the constructor runs in the journal's thread."""

    def __init__(self, directory: Path, clock: Callable[[], float], connect: Callable[..., sqlite3.Connection]) -> None:
        self._directory = directory
        self._clock = clock
        self._connect = connect
        self._lock = -1
        self._database: sqlite3.Connection | None = None
        self._writes = 0

    def open(self) -> _Contents:
        """Take the lock, open the file, set it aside if it is damaged; raises JournalError."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(_DamagedError):
                return self._contents()
            return self._contents()
        except (OSError, sqlite3.Error) as error:
            self.close()
            if isinstance(error, BlockingIOError) or _code(error) == sqlite3.SQLITE_BUSY:
                fault = "is in use by another process; stop that one, or give each a directory of its own"
            else:
                reason = error.strerror if isinstance(error, OSError) else error
                fault = f"cannot be used: {reason}; name a directory that can be written and has room, or write off"
            raise JournalError(f"MILLRACE_JOURNAL: {self._directory} {fault}") from None

    def write(self, batch: _Batch) -> Mapping[int, int]:
        """Do one transaction. Returns the new sizes of the rows that were written anew."""
        with self._checked() as database:
            database.execute("BEGIN")
            if batch.deletes:
                numbers = [(number,) for number in batch.deletes]
                database.executemany("DELETE FROM chunk WHERE number = ?", numbers)
                database.executemany("DELETE FROM done WHERE number = ?", numbers)
            sizes = {number: self._write_anew(database, number, flags) for number, flags in batch.sweeps}
            done = [*batch.done, *((row.number, row.flags) for row in batch.rows if row.flags)]
            database.executemany("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?)", map(_encode, batch.rows))
            database.executemany("INSERT OR REPLACE INTO done VALUES (?, ?)", done)
            database.execute("COMMIT")
            self._writes += 1
            if self._writes % SWEEP_BEATS == 0:
                self._shrink(database, VACUUM_FREE_BYTES)
            return sizes

    def read(self, first: int, limit: int) -> list[_Stored]:
        """Read rows from a number on, until they have `limit` bytes."""
        rows = []
        with (
            self._checked() as database,
            closing(
                database.execute(
                    "SELECT number, lengths, lines, flags FROM chunk LEFT JOIN done USING (number)"
                    " WHERE number >= ? ORDER BY number",
                    (first,),
                )
            ) as found,
        ):
            for number, lengths, lines, flags in found:
                rows.append(_decode(number, lengths, lines, flags or b""))
                limit -= len(lines)
                if limit <= 0:
                    break
            if not rows:
                raise _DamagedError("rows are missing")
        return rows

    def close(self) -> None:
        """Leave one small file; a disk that fails now leaves a larger one, with the same posts."""
        if self._database is not None:
            self._shrink(self._database, 0)
            self._database.close()
            self._database = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _contents(self) -> _Contents:
        """Open the file and look through it. A damaged one is set aside, and _DamagedError raised."""
        database = None
        try:
            database = self._connect(
                self._directory / FILE_NAME, isolation_level=None, check_same_thread=False, timeout=0
            )
            # Before the first look at the file, and nothing is changed before it is known to be a journal.
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            # Even a new file's tables want room for temporary data, and a read-only root has none.
            database.execute("PRAGMA temp_store = MEMORY")
            _check(database)
            for pragma in _PRAGMAS:
                database.execute(f"PRAGMA {pragma}").fetchall()
            contents = _count(database)
        except (sqlite3.Error, _DamagedError) as error:
            if database is not None:
                database.close()
            # The statements are right: an error in them means that tables or columns are missing.
            if _is_damage(error) or _code(error) == sqlite3.SQLITE_ERROR:
                raise self._set_aside(error) from None
            raise
        self._database = database
        return contents

    @contextmanager
    def _checked(self) -> Iterator[sqlite3.Connection]:
        """Give the database; after trouble, no transaction is open, and a damaged file is set aside."""
        if self._database is None:
            self._contents()
        database = self._database
        assert database is not None
        try:
            yield database
        except (sqlite3.Error, _DamagedError) as error:
            with suppress(sqlite3.Error):
                if database.in_transaction:
                    database.execute("ROLLBACK")
            damaged = _is_damage(error)
            if damaged or database.in_transaction:
                self._database = None
                database.close()
            if damaged:
                raise self._set_aside(error) from None
            raise

    def _set_aside(self, error: Exception) -> _DamagedError:
        stamp = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y%m%dT%H%M%SZ")
        names = (f"journal-damaged-{stamp}{suffix}.db" for suffix in ("", *(f"-{number}" for number in range(2, 100))))
        name = next(name for name in names if not (self._directory / name).exists())
        for part in ("-wal", ""):
            with suppress(FileNotFoundError):
                (self._directory / (FILE_NAME + part)).rename(self._directory / (name + part))
        path = str(self._directory / name)
        log.error(
            "journal_damaged",
            error=str(error),
            set_aside=path,
            way_out="see why; the .recover of the sqlite3 shell may save posts from that file",
        )
        return _DamagedError(f"{error}; set aside as {path}")

    @staticmethod
    def _write_anew(database: sqlite3.Connection, number: int, flags: bytes) -> int:
        lengths, lines = database.execute("SELECT lengths, lines FROM chunk WHERE number = ?", (number,)).fetchone()
        row = _encode(_decode(number, lengths, lines, flags).row())
        database.execute("INSERT OR REPLACE INTO chunk VALUES (?, ?, ?)", row)
        return len(row[2])

    @staticmethod
    def _shrink(database: sqlite3.Connection, free_bytes: int) -> None:
        """Give back what is empty, if it is more than that. If it does not work, nothing is lost."""
        with suppress(sqlite3.Error):
            (free,) = database.execute("PRAGMA freelist_count").fetchone()
            (pages,) = database.execute("PRAGMA page_count").fetchone()
            if free * _PAGE_BYTES > free_bytes and (pages - free) * _PAGE_BYTES < VACUUM_USED_BYTES:
                database.execute("VACUUM")
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _check(database: sqlite3.Connection) -> None:
    """Check that it is a journal; make it one if it is new."""
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if (tables, application, version) == (0, 0, 0):
        database.executescript(_SCHEMA)
    elif (application, version) != (_APPLICATION_ID, _VERSION):
        raise _DamagedError("it is no journal of this version of Millrace")


def _count(database: sqlite3.Connection) -> _Contents:
    """Count what it holds. This finds a damaged tree of rows, though not a damaged line."""
    posts = size = 0
    first, last = 0, -1
    # length() of a BLOB needs no look at the BLOB itself: 8 GiB take some seconds.
    for number, count, row_bytes, flags in database.execute(
        "SELECT number, length(lengths), length(lines), flags FROM chunk LEFT JOIN done USING (number) ORDER BY number"
    ):
        first = first if posts else number
        last = number
        posts += count // _LENGTH_BYTES - (flags or b"").count(1)
        size += row_bytes
    return _Contents(posts, size, first, last + 1)


def _without(lines: Sequence[bytes], flags: bytes | bytearray) -> list[bytes]:
    return [b"" if flag else line for line, flag in zip(lines, flags, strict=True)]


def _encode(row: _Row) -> tuple[int, bytes, bytes]:
    lines = _without(row.lines, row.flags) if row.flags else row.lines
    return row.number, array("I", map(len, lines)).tobytes(), b"".join(lines)


def _decode(number: int, lengths: bytes, lines: bytes, flags: bytes) -> _Stored:
    ends = [0, *accumulate(array("I", lengths))]
    if ends[-1] != len(lines) or len(flags) not in {0, len(ends) - 1}:
        raise _DamagedError(f"chunk {number} has {len(lines)} bytes instead of {ends[-1]}")
    return _Stored(number, ends, lines, flags)


def _code(error: Exception) -> int:
    """Give SQLite's primary error code; -1 if the error is not SQLite's own."""
    code: int = getattr(error, "sqlite_errorcode", -1)
    return code if code < 0 else code & 0xFF


def _is_damage(error: Exception) -> bool:
    return isinstance(error, _DamagedError) or _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
