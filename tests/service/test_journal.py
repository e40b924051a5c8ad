"""The journal on a real disk; a disk that fails or stalls is played by a connection that does so on demand."""

import asyncio
import gc
import json
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from structlog.typing import EventDict

from service.core.chunks import BATCH_BYTES, SWEEP_BEATS, WAITING_BYTES
from service.core.records import DropReason
from service.core.rows import Contents
from service.journal import Journal
from service.journal_file import FILE_NAME, JournalError, JournalFile

GIB = 1 << 30
MIB = 1 << 20
ROOT = Path(__file__).parents[2]


class Shed:
    """Notes what the journal had to give up."""

    def __init__(self) -> None:
        self.posts = 0
        self.lines: list[bytes] = []

    def __call__(self, posts: int, lines: Sequence[bytes]) -> None:
        self.posts += posts
        self.lines += lines


class Disk:
    """Opens connections that fail at some statements while `error` is set, and wait while `gate` is closed."""

    def __init__(self, *fails_at: str) -> None:
        self.fails_at = fails_at or ("BEGIN", "SELECT")
        self.error: sqlite3.Error | None = None
        self.refusals = 0
        self.gate = threading.Event()
        self.gate.set()
        self.commits = 0
        self.connections = 0
        self.committed: Callable[[], object] = lambda: None

    def connect(self, path: Path, **options: Any) -> sqlite3.Connection:
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                if sql == "BEGIN":
                    disk.gate.wait(20)
                if disk.error is not None and sql.startswith(disk.fails_at):
                    disk.refusals += 1
                    raise disk.error
                cursor = super().execute(sql, *parameters)
                if sql == "COMMIT":
                    disk.commits += 1
                    disk.committed()
                return cursor

        self.connections += 1
        return sqlite3.connect(path, factory=Connection, **options)


@asynccontextmanager
async def opened(
    directory: Path, limit: int = GIB, *, on_shed: Shed | None = None, **options: Any
) -> AsyncIterator[Journal]:
    """Open a journal, and close it at the end."""
    journal = await Journal.open(JournalFile(directory, **options), limit, on_shed=on_shed or Shed())
    try:
        yield journal
    finally:
        await journal.close()


def take(journal: Journal, lines: Sequence[bytes], *, in_memory: bool) -> range:
    """Append lines that there must be room for."""
    positions = journal.append(lines, in_memory=in_memory)
    assert isinstance(positions, range)
    return positions


async def read_all(journal: Journal) -> list[tuple[int, bytes]]:
    """Read the whole backlog, in steps."""
    posts = []
    while some := await journal.read(MIB):
        posts += some
    assert journal.backlog == 0
    return posts


def copy(directory: Path, to: Path) -> Path:
    """Copy the files as they are now: what a `kill -9` would leave."""
    return Path(shutil.copytree(directory, to))


async def beat(journal: Journal, times: int) -> None:
    """Let so many beats pass at once; a write that one begins ends before the next, if the disk answers."""
    for _ in range(times):
        if journal._timer is not None:
            journal._timer.cancel()
        journal._beat()
        if journal._writing is not None:
            await asyncio.wait([journal._writing], timeout=0.01)


def numbered(first: int, count: int, size: int = 0) -> list[bytes]:
    """Make lines that tell their number, with blanks after it."""
    return [b'{"id":"%d"}' % number + b" " * size for number in range(first, first + count)]


def events(logs: list[Any], level: str) -> list[str]:
    """Name what was logged at a level."""
    return [entry["event"] for entry in logs if entry["log_level"] == level]


class TestQueue:
    async def test_what_is_not_confirmed_comes_back_in_order_after_a_restart(self, tmp_path: Path) -> None:
        """Posts of several appends are recovered, as the first of the backlog, at the positions that they had."""
        async with opened(tmp_path / "new" / "journal") as journal:
            first = take(journal, numbered(0, 3), in_memory=True)
            second = take(journal, numbered(3, 2), in_memory=True)
            assert (journal.recovered, journal.backlog) == (0, 0)
        async with opened(tmp_path / "new" / "journal") as journal:
            assert (journal.recovered, journal.backlog) == (5, 5)
            assert list(zip([*first, *second], numbered(0, 5), strict=True)) == await read_all(journal)
            assert list(second) < list(take(journal, [b"x"], in_memory=True))

    async def test_what_is_confirmed_does_not_come_back(self, tmp_path: Path) -> None:
        """Of a chunk that is confirmed in part, before and after it was written, only the rest is recovered."""
        async with opened(tmp_path) as journal:
            positions = take(journal, numbered(0, 6), in_memory=True)
            journal.confirm([positions[4], positions[0]])
            await journal.flush()
            journal.confirm([positions[1], positions[1]])
        async with opened(tmp_path) as journal:
            expected = [(positions[place], numbered(place, 1)[0]) for place in (2, 3, 5)]
            assert journal.recovered == 3
            assert expected == await read_all(journal)
            journal.confirm(position for position, _ in expected)
        async with opened(tmp_path) as journal:
            assert (journal.recovered, journal.backlog, journal.held_bytes) == (0, 0, 0)

    async def test_a_post_is_written_by_itself(self, tmp_path: Path) -> None:
        """Nobody needs to call flush: the beat writes what has waited for long enough."""
        disk = Disk()
        written = asyncio.Event()
        loop = asyncio.get_running_loop()
        disk.committed = lambda: loop.call_soon_threadsafe(written.set)
        async with opened(tmp_path, connect=disk.connect) as journal:
            position = take(journal, [b"x"], in_memory=True)[0]
            assert not journal.keeps(position)
            await asyncio.wait_for(written.wait(), 10)
            await journal.flush()
            assert journal.keeps(position)
            async with opened(copy(tmp_path, tmp_path / "copy")) as other:
                assert [(position, b"x")] == await read_all(other)


class TestLimits:
    async def test_a_chunk_that_is_pinned_gives_its_room_back(self, tmp_path: Path) -> None:
        """One post that never ends does not keep the confirmed posts of its chunk on disk."""
        async with opened(tmp_path) as journal:
            positions = take(journal, numbered(0, 200, 1000), in_memory=True)
            await journal.flush()
            journal.confirm(set(positions) - {positions[7], positions[150]})
            await beat(journal, 2 * SWEEP_BEATS + 1)
            await journal.flush()
            assert sum(map(len, numbered(7, 1, 1000) + numbered(150, 1, 1000))) == journal.held_bytes
            journal.confirm([positions[150]])
            directory = copy(tmp_path, tmp_path / "copy")
        async with opened(tmp_path) as journal:
            assert [(positions[7], numbered(7, 1, 1000)[0])] == await read_all(journal)
        async with opened(directory) as journal:
            assert [position - positions[0] for position, _ in await read_all(journal)] == [7, 150]

    async def test_a_backlog_needs_no_memory(self, tmp_path: Path) -> None:
        """A backlog of 16 MiB on disk leaves less than 2 MiB of Python objects behind."""
        async with opened(tmp_path) as journal:
            tracemalloc.start()
            try:
                for step in range(16):
                    take(journal, numbered(step * 900, 900, 1150), in_memory=False)
                    await journal.flush()
                gc.collect()
                held, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert journal.held_bytes > 16 * 1000 * 1000
            assert held < 2 * MIB


class TestDamage:
    async def test_damage_that_shows_later_costs_the_backlog_and_not_the_daemon(self, tmp_path: Path) -> None:
        """If the file turns out to be damaged while in use, its backlog is shed, counted, and the rest goes on."""
        async with opened(tmp_path) as journal:
            for step in range(20):
                take(journal, numbered(step * 100, 100, 2000), in_memory=False)
                await journal.flush()
        shed = Shed()
        with structlog.testing.capture_logs() as logs:
            async with opened(tmp_path, on_shed=shed) as journal:
                # Beyond the first pages, which the journal has seen already.
                with (tmp_path / FILE_NAME).open("r+b") as file:
                    file.seek(5 << 15)
                    file.write(b"\xff" * (120 << 15))
                later = take(journal, numbered(9000, 5), in_memory=False)
                posts = await read_all(journal)
                assert len(posts) + shed.posts == 2005
                assert shed.posts > 0
                assert list(zip(later, numbered(9000, 5), strict=True)) == posts[-5:]
                assert not shed.lines
                kept = take(journal, [b"x"], in_memory=True)[0]
                await journal.flush()
                assert journal.keeps(kept)
                journal.confirm(position for position, _ in posts)
                await journal.flush()
                assert journal.held_bytes == 1
        assert events(logs, "error") == ["journal_damaged", "journal_posts_lost"]
        async with opened(tmp_path) as journal:
            assert [(kept, b"x")] == await read_all(journal)


class TestFailingDisk:
    @pytest.mark.parametrize("statement", ["BEGIN", "COMMIT"])
    async def test_the_daemon_lives_on_and_the_journal_heals(self, tmp_path: Path, statement: str) -> None:
        """While the disk fails posts are still taken; one warning is logged; later all that is left is written."""
        disk = Disk(statement)
        with structlog.testing.capture_logs() as logs:
            async with opened(tmp_path, connect=disk.connect) as journal:
                before = take(journal, numbered(9, 2), in_memory=True)
                await journal.flush()
                disk.error = sqlite3.OperationalError("database or disk is full")
                journal.confirm(before[:1])
                first = take(journal, numbered(0, 3), in_memory=True)
                await journal.flush()
                assert "database or disk is full" in journal.trouble
                second = take(journal, numbered(3, 3), in_memory=True)
                await journal.flush()
                journal.confirm([first[0], second[0]])
                assert not journal.keeps(first[1])
                disk.error = None
                await journal.flush()
                assert not journal.trouble
                assert journal.keeps(first[1])
        assert disk.connections == 1
        assert events(logs, "error") == ["journal_failed"]
        assert "MILLRACE_JOURNAL" in logs[0]["way_out"]
        assert events(logs, "info") == ["journal_works_again"]
        async with opened(tmp_path) as journal:
            assert [*before[1:], *first[1:], *second[1:]] == [position for position, _ in await read_all(journal)]

    async def test_it_tries_again_by_itself(self, tmp_path: Path) -> None:
        """After a failure the beat tries again, without being told."""
        disk = Disk()
        written = asyncio.Event()
        loop = asyncio.get_running_loop()
        disk.committed = lambda: loop.call_soon_threadsafe(written.set)
        async with opened(tmp_path, connect=disk.connect) as journal:
            disk.error = sqlite3.OperationalError("disk I/O error")
            position = take(journal, [b"x"], in_memory=True)[0]
            await journal.flush()
            assert journal.trouble
            disk.error = None
            await asyncio.wait_for(written.wait(), 10)
            await journal.flush()
            assert journal.keeps(position)
            assert not journal.trouble

    async def test_the_backlog_that_no_disk_takes_is_bounded_and_shed_at_the_end(self, tmp_path: Path) -> None:
        """Posts that memory has no room for wait up to a bound; those that never reach the disk are handed back."""
        disk = Disk()
        shed = Shed()
        async with opened(tmp_path, connect=disk.connect, on_shed=shed) as journal:
            disk.error = sqlite3.OperationalError("disk I/O error")
            line = b"x" * MIB
            taken = 0
            while isinstance(journal.append([line], in_memory=False), range):
                taken += 1
                await journal.flush()
            assert WAITING_BYTES // MIB == taken == journal.backlog
            assert DropReason.DISK_FAILED is journal.append([line], in_memory=False)
            # Memory has room again: what waits goes there without the disk.
            assert len(await journal.read(2 * MIB)) == 2
            take(journal, [line], in_memory=False)
        assert taken - 1 == shed.posts == len(shed.lines)

    async def test_a_read_waits_for_the_disk(self, tmp_path: Path) -> None:
        """While the file cannot be read the backlog stays where it is, and it pauses; when it can, it comes."""
        disk = Disk()
        async with opened(tmp_path, connect=disk.connect) as journal:
            take(journal, numbered(0, 3), in_memory=False)
            await journal.flush()
            disk.error = sqlite3.OperationalError("disk I/O error")
            with structlog.testing.capture_logs() as logs, pytest.raises(TimeoutError):
                await asyncio.wait_for(journal.read(MIB), 0.05)
            assert disk.refusals == 1
            assert events(logs, "error") == ["journal_failed"]
            assert journal.backlog == 3
            disk.error = None
            assert len(await journal.read(MIB)) == 3
            assert not journal.trouble

    async def test_a_disk_that_cannot_be_read_is_written_to_the_end(self, tmp_path: Path) -> None:
        """All that waits, which is more than one transaction takes: the next run may be able to read it."""
        disk = Disk("SELECT number")
        shed = Shed()
        async with opened(tmp_path, connect=disk.connect, on_shed=shed) as journal:
            take(journal, [b"x"], in_memory=False)
            await journal.flush()
            disk.error = sqlite3.OperationalError("disk I/O error")
            while not journal.trouble:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(journal.read(MIB), 0.05)
            for _ in range(2 * BATCH_BYTES // MIB):
                take(journal, [bytes(MIB)], in_memory=False)
        assert shed.posts == 0

    async def test_what_became_due_during_a_slow_write_goes_at_its_end(self, tmp_path: Path) -> None:
        """It does not wait for the next beat: its posts are older already than they should be."""
        disk = Disk()
        async with opened(tmp_path, connect=disk.connect) as journal:
            disk.gate.clear()
            take(journal, [b"slow"], in_memory=True)
            await beat(journal, 2)
            position = take(journal, [b"x"], in_memory=True)[0]
            await beat(journal, 2)
            assert journal._timer is not None
            journal._timer.cancel()
            disk.gate.set()
            while journal._writing is not None:
                await asyncio.wait([journal._writing])
            assert journal.keeps(position)

    async def test_the_end_tries_once_more_what_was_just_refused(self, tmp_path: Path) -> None:
        """A write that fails while the journal is being closed is not its last chance."""
        disk = Disk()
        async with opened(tmp_path, connect=disk.connect) as journal:
            disk.gate.clear()
            position = take(journal, [b"x"], in_memory=True)[0]
            await beat(journal, 2)
            assert journal._writing is not None
            disk.error = sqlite3.OperationalError("database is locked")
            journal._writing.add_done_callback(lambda _: setattr(disk, "error", None))
            disk.gate.set()
        assert disk.refusals == 1
        async with opened(tmp_path) as journal:
            assert [(position, b"x")] == await read_all(journal)

    async def test_a_stalled_disk_eats_no_memory(self, tmp_path: Path) -> None:
        """While a write hangs nothing waits for it, confirmed lines are let go of, and the operator is told."""
        disk = Disk()
        async with opened(tmp_path, connect=disk.connect) as journal:
            disk.gate.clear()
            take(journal, [b"hangs"], in_memory=True)
            await beat(journal, 2)
            line = b"y" * 1000
            references = sys.getrefcount(line)
            positions = take(journal, [line] * 100, in_memory=True)
            assert references + 100 == sys.getrefcount(line)
            await beat(journal, 5)
            journal.confirm(positions[1:])
            with structlog.testing.capture_logs() as logs:
                await beat(journal, 70)
            assert references + 1 == sys.getrefcount(line)
            assert events(logs, "error") == ["journal_failed"]
            assert (journal.hangs, journal.trouble) == (True, "the disk has not answered for 2 s")
            disk.gate.set()
            await journal.flush()
            assert (journal.hangs, journal.trouble) == (False, "")
        async with opened(tmp_path) as journal:
            assert [b"hangs", line] == [line for _, line in await read_all(journal)]

    @pytest.mark.usefixtures("own_logging")
    async def test_a_disk_that_hangs_at_the_opening_is_told(self, tmp_path: Path) -> None:
        """The log says what the start waits for, and the start goes on when the disk answers."""
        told = threading.Event()

        class Hanging(JournalFile):
            def open(self) -> Contents:
                assert told.wait(20)
                return super().open()

        def note(_logger: object, _method: str, event: EventDict) -> EventDict:
            assert event["event"] == "journal_not_open"
            told.set()
            raise structlog.DropEvent

        structlog.configure(processors=[note])
        journal = await Journal.open(Hanging(tmp_path), GIB, on_shed=Shed(), patience=0)
        await journal.close()

    async def test_a_real_limit_of_the_system(self, tmp_path: Path) -> None:
        """A file that may not grow (RLIMIT_FSIZE) is a failing disk, heals when it may, and is taken up meanwhile."""
        program = f"""
import asyncio, json, resource, shutil
from pathlib import Path
from service.journal import Journal
from service.journal_file import JournalFile

async def main():
    journal = await Journal.open(JournalFile(Path({str(tmp_path / "journal")!r})), 1 << 30, on_shed=print)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    taken = []
    for number in range(8):
        taken += journal.append([b"%d" % number * 100_000], in_memory=False)
        await journal.flush()
    failed = journal.trouble
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await journal.flush()
    copy = Path(shutil.copytree({str(tmp_path / "journal")!r}, {str(tmp_path / "copy")!r}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    other = await Journal.open(JournalFile(copy), 1 << 30, on_shed=print)
    read = [position for position, _ in await other.read(1 << 30)]
    print(json.dumps([taken, failed, journal.trouble, journal.backlog, read]), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
        async with child(program) as process:
            assert process.stdout is not None
            # Before it come the lines of the log.
            async for output in process.stdout:
                if output.startswith(b"["):
                    break
            taken, failed, healed, backlog, read = json.loads(output)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        assert failed
        assert (healed, backlog) == ("", 8)
        assert taken == read
        async with opened(tmp_path / "journal") as journal:
            assert list(zip(taken, [b"%d" % number * 100_000 for number in range(8)], strict=True)) == await read_all(
                journal
            )


@asynccontextmanager
async def child(program: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program, and end it at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, cwd=ROOT, limit=MIB
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        # Read to the end, or the transport of the pipe outlives the loop.
        await process.communicate()


class TestKill:
    async def test_kill_loses_nothing_that_is_older_than_100_ms(self, tmp_path: Path) -> None:
        """After `kill -9` all that was read 100 ms before is there, in order, and nothing confirmed so long ago is."""
        for attempt in range(3):
            if await self.killed_in_time(tmp_path / str(attempt)):
                return
        # A busy machine may be late with a write; three times in a row it is the journal.
        pytest.fail("late three times")

    async def killed_in_time(self, tmp_path: Path) -> bool:
        """Kill a writer; what is there must be whole. Returns whether it was not older than promised."""
        program = f"""
import asyncio, collections, json, os, time
from pathlib import Path
from service.journal import Journal
from service.journal_file import JournalFile

async def main():
    journal = await Journal.open(JournalFile(Path({str(tmp_path)!r})), 1 << 30, on_shed=print)
    waiting = collections.deque()
    number = 0
    while True:
        lines = [b"%d " % (number + place) + b"x" * 1000 for place in range(5)]
        number += 5
        now = time.monotonic()
        positions = journal.append(lines, in_memory=True)
        waiting += positions
        confirmed = []
        if len(waiting) > 200:
            confirmed = [waiting.popleft() for _ in range(4)] + [waiting.pop()]
            journal.confirm(confirmed)
        os.write(1, json.dumps([now, list(positions), confirmed]).encode() + b"\\n")
        await asyncio.sleep(0.002)

asyncio.run(main())
"""
        async with child(program) as process:
            assert process.stdout is not None
            lines = [await asyncio.wait_for(process.stdout.readline(), 20) for _ in range(400)]
            killed = time.monotonic()
            process.send_signal(signal.SIGKILL)
            lines += (await process.stdout.read()).splitlines()
        appended: list[int] = []
        old: set[int] = set()
        confirmed: set[int] = set()
        old_confirmed: set[int] = set()
        for moment, positions, some in map(json.loads, lines):
            appended += positions
            confirmed.update(some)
            if moment < killed - 0.1:
                old.update(positions)
                old_confirmed.update(some)
        async with opened(tmp_path) as journal:
            posts = dict(await read_all(journal))
        assert old
        assert sorted(posts) == list(posts)
        # The last append may not have been told of before the end.
        numbers = {position: number for number, position in enumerate(appended)}
        told = [position for position in posts if position in numbers]
        assert len(posts) - len(told) <= 5
        assert [numbers[position] for position in told] == [int(posts[position].split()[0]) for position in told]
        return old - confirmed <= set(posts) and not old_confirmed & set(posts)

    async def test_the_lock_dies_with_the_process(self, tmp_path: Path) -> None:
        """A journal whose process was killed can be opened at once."""
        program = f"""
import asyncio
from pathlib import Path
from service.journal import Journal
from service.journal_file import JournalFile

async def main():
    journal = await Journal.open(JournalFile(Path({str(tmp_path)!r})), 1 << 30, on_shed=print)
    print("open", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
        async with child(program) as process:
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), 20) == b"open\n"
            with pytest.raises(JournalError, match="in use"):
                await Journal.open(JournalFile(tmp_path), GIB, on_shed=Shed())
            process.send_signal(signal.SIGKILL)
            await process.wait()
        async with opened(tmp_path) as journal:
            assert journal.recovered == 0


# Some as large as a third of a chunk.
_LINES = st.lists(st.integers(0, 255).map(lambda byte: bytes([byte]) * (byte % 40 or 90_000)), min_size=1, max_size=6)


class JournalModel(RuleBasedStateMachine):
    """
    The journal against a list and a dictionary, through restarts and crashes at any point.

    How far a write is, and so what a read or a crash finds, is the disk's to say. What is generated must not depend on
    it, or Hypothesis sees other choices when it runs the same steps again: no rule has a precondition, and what is
    confirmed is drawn as places among whatever there is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp())
        self.runs = 0
        self.path = self.directory / "0"
        self.memory: dict[int, bytes] = {}
        self.backlog: list[tuple[int, bytes]] = []
        # What a crash may bring back, and what it must.
        self.flushed: dict[int, bytes] = {}
        self.since_flush: dict[int, bytes] = {}

    @initialize()
    def open(self) -> None:
        self.journal = self.runner.run(Journal.open(JournalFile(self.path), GIB, on_shed=Shed()))

    def note(self, positions: range | DropReason, lines: list[bytes]) -> list[tuple[int, bytes]]:
        assert isinstance(positions, range)
        posts = list(zip(positions, lines, strict=True))
        self.since_flush.update(posts)
        return posts

    @rule(lines=_LINES)
    def append_to_memory(self, lines: list[bytes]) -> None:
        if not self.backlog:
            self.memory.update(self.note(self.journal.append(lines, in_memory=True), lines))

    @rule(lines=_LINES)
    def append_to_disk_only(self, lines: list[bytes]) -> None:
        self.backlog += self.note(self.journal.append(lines, in_memory=False), lines)

    @rule(places=st.lists(st.integers(0, 99)))
    def confirm(self, places: list[int]) -> None:
        held = sorted(self.memory)
        some = [held[place % len(held)] for place in places] if held else []
        self.journal.confirm(some)
        for position in some:
            self.memory.pop(position, None)

    @rule(limit=st.sampled_from([1, 100, 300_000]))
    def read(self, limit: int) -> None:
        posts = self.runner.run(self.journal.read(limit))
        assert bool(self.backlog) == bool(posts)
        assert self.backlog[: len(posts)] == posts
        del self.backlog[: len(posts)]
        self.memory.update(posts)

    @rule()
    def beat(self) -> None:
        self.runner.run(beat(self.journal, 1))

    @rule()
    def flush(self) -> None:
        self.runner.run(self.journal.flush())
        self.flushed = {**self.memory, **dict(self.backlog)}
        self.since_flush = {}
        assert sum(map(len, self.flushed.values())) <= self.journal.held_bytes
        assert all(map(self.journal.keeps, self.memory))

    @rule()
    def restart(self) -> None:
        self.runner.run(self.journal.close())
        left = sorted({**self.memory, **dict(self.backlog)}.items())
        self.open()
        assert len(left) == self.journal.recovered
        self.memory = {}
        self.backlog = left
        self.flushed, self.since_flush = dict(left), {}

    @rule()
    def crash(self) -> None:
        """What is on the disk at this moment is what the next run finds."""
        self.runner.run(self.nothing_under_way())
        self.runs += 1
        path = copy(self.path, self.directory / str(self.runs))
        self.runner.run(self.journal.close())
        shutil.rmtree(self.path)
        self.path = path
        self.open()
        posts = self.runner.run(read_all(self.journal))
        assert len(posts) == self.journal.recovered
        assert sorted(dict(posts).items()) == posts
        assert dict(posts).items() <= {**self.flushed, **self.since_flush}.items()
        unconfirmed = {**self.memory, **dict(self.backlog)}
        assert {item for item in self.flushed.items() if item[0] in unconfirmed} <= set(posts)
        self.memory = dict(posts)
        self.backlog = []
        self.flushed, self.since_flush = dict(posts), {}

    async def nothing_under_way(self) -> None:
        await self.journal._run(lambda: None)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "journal"):
            assert len(self.backlog) == self.journal.backlog

    def teardown(self) -> None:
        self.runner.run(self.journal.close())
        self.runner.close()
        shutil.rmtree(self.directory)


def test_the_journal_is_as_good_as_a_list() -> None:
    """What is unconfirmed comes back exactly and in order; what was confirmed before a clean end never does."""
    run_state_machine_as_test(
        JournalModel,
        settings=settings(max_examples=50, stateful_step_count=30, deadline=None),
    )
