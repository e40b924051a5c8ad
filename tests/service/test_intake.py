"""The intake over a sender and a journal in memory. A disk takes a moment to read, so posts can come meanwhile."""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from structlog.testing import capture_logs

from service.core.gaps import SNOWFLAKE_EPOCH, Window
from service.core.posts import PostReader
from service.core.records import DropReason, Outcome, Post
from service.intake import READ_BYTES, Intake
from tests.virtual_loop import VirtualLoop, virtual_time

READ_SECONDS = 0.01
POSTS_PER_READ = 3


def line(number: int) -> bytes:
    """Make a post whose id is this number."""
    return json.dumps({"data": {"id": str(number), "author_id": f"author-{number % 3}"}}).encode()


def lines(*numbers: int) -> list[bytes]:
    """Make posts with these ids."""
    return [line(number) for number in numbers]


class Memory:
    """The sender as the intake knows it: room for some posts, which leave when the test says so."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside: deque[Post] = deque()
        self.offered: list[Post] = []
        self._left = asyncio.Event()

    @property
    def has_room(self) -> bool:
        return len(self.inside) < self.limit

    def offer(self, posts: list[Post]) -> None:
        self.inside += posts
        self.offered += posts

    async def room(self) -> None:
        while not self.has_room:
            self._left.clear()
            await self._left.wait()

    def leave(self, count: int) -> list[Post]:
        """Let the oldest posts go."""
        gone = [self.inside.popleft() for _ in range(min(count, len(self.inside)))]
        self._left.set()
        return gone


class Disk:
    """The journal as the intake knows it: room for some posts, some of which an earlier run has left."""

    def __init__(self, limit: int, left: Iterable[bytes] = ()) -> None:
        self.limit = limit
        self.kept = dict(enumerate(left, 100))
        self.waiting = deque(self.kept)
        self.reads: list[int] = []
        self._next = 1000

    @property
    def backlog(self) -> int:
        return len(self.waiting)

    def append(self, lines: Sequence[bytes], *, in_memory: bool) -> range | DropReason:
        if in_memory and self.waiting:
            raise RuntimeError("order would be lost")
        if len(self.kept) + len(lines) > self.limit:
            return DropReason.JOURNAL_FULL
        positions = range(self._next, self._next + len(lines))
        self._next += len(lines)
        self.kept.update(zip(positions, lines, strict=True))
        if not in_memory:
            self.waiting += positions
        return positions

    async def read(self, limit: int) -> list[tuple[int, bytes]]:
        self.reads.append(limit)
        await asyncio.sleep(READ_SECONDS)
        positions = [self.waiting.popleft() for _ in range(min(POSTS_PER_READ, len(self.waiting)))]
        return [(position, self.kept[position]) for position in positions]

    def confirm(self, positions: Iterable[int]) -> None:
        for position in positions:
            self.kept.pop(position, None)

    def lose(self) -> None:
        """Be damaged: what nobody else has is gone."""
        for position in self.waiting:
            del self.kept[position]
        self.waiting.clear()


class Observer:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.posts = 0
        self.bytes = 0
        self.rejections: list[tuple[bytes, DropReason]] = []
        self.lags: list[tuple[float, int]] = []

    def received(self, posts: int, size: int) -> None:
        self.posts += posts
        self.bytes += size

    def rejected(self, line: bytes, reason: DropReason) -> None:
        self.rejections.append((line, reason))

    def lag(self, seconds: float, posts: int) -> None:
        self.lags.append((seconds, posts))


class Rig:
    """An intake with all that it hands on. As in the daemon, whatever has an outcome is confirmed to the journal."""

    def __init__(
        self,
        *,
        memory: int = 1000,
        disk: int = 1000,
        left: Iterable[bytes] = (),
        journal: bool = True,
        sift: Callable[[list[Post]], list[Post]] | None = None,
    ) -> None:
        self.memory = Memory(memory)
        self.disk = Disk(disk, left)
        self.observer = Observer()
        self.letters: list[tuple[bytes, DropReason]] = []
        self.outcomes: list[Outcome] = []
        self.seen: list[list[Post]] = []
        self.intake = Intake(
            PostReader("author_id"),
            self.memory,
            self.disk if journal else None,
            observer=self.observer,
            on_outcomes=self._end,
            keep=lambda line, reason: self.letters.append((line, reason)),
            on_posts=self.seen.append,
            sift=sift,
        )

    def _end(self, outcomes: list[Outcome]) -> None:
        self.outcomes += outcomes
        for outcome in outcomes:
            self.disk.confirm([post.position for post in outcome.posts])

    @asynccontextmanager
    async def feeding(self) -> AsyncIterator[None]:
        """Let it read back meanwhile."""
        async with asyncio.timeout(3600), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.intake.feed())
            yield
            task.cancel()

    def deliver(self, count: int = 1000) -> None:
        """Let so many posts reach their destination."""
        self.disk.confirm([post.position for post in self.memory.leave(count)])

    def offered(self) -> list[bytes]:
        """Give the lines that went to the sender, in order."""
        return [post.line for post in self.memory.offered]

    def dropped(self) -> list[tuple[bytes, DropReason | None]]:
        """Give the lines that ended in the intake, in order."""
        return [(post.line, outcome.reason) for outcome in self.outcomes for post in outcome.posts]


async def a_while() -> None:
    """Let everything happen that can happen by itself."""
    await asyncio.sleep(60)


class TestInMemory:
    @virtual_time
    async def test_posts_go_to_journal_and_sender_at_once(self) -> None:
        """Each is in both, and knows its place in the journal."""
        rig = Rig()
        rig.intake.take(lines(1, 2))
        rig.intake.take(lines(3))
        assert lines(1, 2, 3) == rig.offered()
        assert rig.disk.kept == {post.position: post.line for post in rig.memory.offered}
        assert len(rig.disk.kept) == 3
        assert rig.disk.backlog == 0

    @virtual_time
    async def test_what_is_taken_is_counted(self) -> None:
        """Posts and the bytes of their lines; the sender learns when they came."""
        await asyncio.sleep(7)
        rig = Rig()
        rig.intake.take(lines(1, 22))
        assert (rig.observer.posts, rig.observer.bytes) == (2, len(line(1)) + len(line(22)))
        assert [post.received_at for post in rig.memory.offered] == [7, 7]

    @virtual_time
    async def test_without_a_journal_there_is_memory_only(self) -> None:
        """There is nothing to read back; what comes while there is no room is dropped, and what is inside stays."""
        rig = Rig(memory=1, journal=False)
        rig.intake.take(lines(1, 2))
        rig.intake.take(lines(3))
        await rig.intake.feed()
        assert lines(1, 2) == rig.offered()
        assert {post.position for post in rig.memory.offered} == {-1}
        assert [(line(3), DropReason.MEMORY_FULL)] == rig.dropped()
        assert "MILLRACE_MEMORY_LIMIT" in rig.outcomes[0].message


class TestSift:
    @virtual_time
    async def test_what_is_left_out_goes_nowhere(self) -> None:
        """It has come, and that is all: neither journal nor sender see it. A chunk of nothing else is no matter."""
        rig = Rig(sift=Window().fresh)
        rig.intake.take(lines(1, 2))
        rig.intake.take(lines(2, 3))
        rig.intake.take(lines(1, 3))
        assert rig.offered() == lines(1, 2, 3)
        assert len(rig.disk.kept) == 3
        assert rig.observer.posts == 6

    @virtual_time
    async def test_what_is_read_back_is_not_asked_for(self) -> None:
        """It was sifted when it came: else everything that waited on disk would be a repeat."""
        rig = Rig(memory=1, sift=Window().fresh)
        async with rig.feeding():
            rig.intake.take(lines(1))
            rig.intake.take(lines(2, 3))
            for _ in range(3):
                rig.deliver(1)
                await a_while()
        assert rig.offered() == lines(1, 2, 3)


class TestOnDisk:
    @virtual_time
    async def test_full_memory_leaves_posts_on_disk(self) -> None:
        """They are fed back in order, as memory empties, with the places that they have in the journal."""
        rig = Rig(memory=2)
        async with rig.feeding():
            rig.intake.take(lines(1, 2))
            for number in range(3, 12):
                rig.intake.take(lines(number))
            await a_while()
            assert lines(1, 2) == rig.offered()
            assert rig.disk.backlog == 9
            while rig.memory.inside:
                rig.deliver()
                await a_while()
        assert lines(*range(1, 12)) == rig.offered()
        assert rig.disk.kept == {}, "each was confirmed at its own place"
        assert set(rig.disk.reads) == {READ_BYTES}

    @virtual_time
    async def test_newer_posts_do_not_overtake(self) -> None:
        """As long as one post waits, newer ones queue behind it, whether there is room or a read is under way."""
        rig = Rig(memory=2)
        async with rig.feeding():
            rig.intake.take(lines(1, 2, 3))
            rig.intake.take(lines(4))
            rig.deliver()
            rig.intake.take(lines(5))
            await asyncio.sleep(READ_SECONDS / 2)
            rig.intake.take(lines(6))
            assert lines(1, 2, 3) == rig.offered()
            await a_while()
            rig.deliver()
            await a_while()
        assert lines(1, 2, 3, 4, 5, 6) == rig.offered()

    @virtual_time
    async def test_after_the_last_one_posts_go_straight_again(self) -> None:
        """With the backlog gone there is nothing to overtake, and reading back begins anew with the next shortage."""
        rig = Rig(memory=1)
        async with rig.feeding():
            for number in (1, 3, 5):
                rig.intake.take(lines(number))
                rig.intake.take(lines(number + 1))
                rig.deliver()
                await a_while()
                rig.deliver()
        assert lines(1, 2, 3, 4, 5, 6) == rig.offered()
        assert len(rig.disk.reads) == 3, "1, 3 and 5 did not take the way over the disk"

    @virtual_time
    async def test_what_an_earlier_run_left_goes_first(self) -> None:
        """New posts wait behind it, also before the first read."""
        rig = Rig(left=lines(1, 2, 3, 4))
        rig.intake.take(lines(5))
        async with rig.feeding():
            await a_while()
            rig.intake.take(lines(6))
        assert lines(1, 2, 3, 4, 5, 6) == rig.offered()
        rig.deliver()
        assert rig.disk.kept == {}
        assert rig.observer.posts == 2, "those of the earlier run were received then"

    @virtual_time
    async def test_cancelled_in_the_middle_of_a_read_it_has_taken_nothing(self) -> None:
        """What was being read is still the backlog of the next run."""
        rig = Rig(left=lines(1, 2))
        async with rig.feeding():
            await asyncio.sleep(READ_SECONDS / 2)
        assert rig.disk.reads
        assert rig.offered() == []
        assert rig.disk.backlog == 2

    @virtual_time
    async def test_a_recovered_line_that_is_no_post_any_more_is_dropped(self) -> None:
        """PARTITION_KEY was changed between two runs: it ends with its reason and its place, others go on."""
        odd = b'{"user":{"id":"7"}}'
        rig = Rig(left=[line(1), odd, line(2)])
        async with rig.feeding():
            await a_while()
        assert [Outcome([Post(odd, "", b"", 0.0, 101)], DropReason.NO_ID, 0)] == rig.outcomes
        assert lines(1, 2) == rig.offered()
        assert odd not in rig.disk.kept.values()
        assert rig.observer.rejections == [], "its outcome counts it"

    @virtual_time
    async def test_a_backlog_that_was_lost_stops_nothing(self) -> None:
        """A damaged journal gives nothing back; what comes after goes straight."""
        rig = Rig(left=lines(1, 2))
        async with rig.feeding():
            await asyncio.sleep(READ_SECONDS / 2)
            rig.disk.lose()
            await rig.intake.room()
            rig.intake.take(lines(3))
        assert lines(3) == rig.offered()


class TestFullDisk:
    @virtual_time
    async def test_posts_with_no_place_at_all_are_dropped(self) -> None:
        """Memory is full and the journal takes nothing: they end with the journal's reason; what waits stays."""
        rig = Rig(memory=1, disk=2)
        async with rig.feeding():
            for number in (1, 2, 3, 4):
                rig.intake.take(lines(number))
            await a_while()
            assert [(line(3), DropReason.JOURNAL_FULL), (line(4), DropReason.JOURNAL_FULL)] == rig.dropped()
            assert {outcome.attempts for outcome in rig.outcomes} == {0}
            assert "MILLRACE_JOURNAL_LIMIT" in rig.outcomes[0].message
            rig.deliver()
            await a_while()
        assert lines(1, 2) == rig.offered()
        assert rig.observer.posts == 4

    @virtual_time
    async def test_posts_behind_a_backlog_are_dropped_even_with_room(self) -> None:
        """Past what waits they may not go, and the journal does not take them."""
        rig = Rig(disk=2, left=lines(1, 2))
        rig.intake.take(lines(3))
        assert [(line(3), DropReason.JOURNAL_FULL)] == rig.dropped()
        assert rig.offered() == []

    @virtual_time
    async def test_posts_are_carried_from_memory_while_it_has_room(self) -> None:
        """Nothing waits, so they overtake nobody; they have no place in the journal, and a crash would lose them."""
        rig = Rig(disk=1)
        rig.intake.take(lines(1))
        rig.intake.take(lines(2, 3))
        assert lines(1, 2, 3) == rig.offered()
        assert [post.position for post in rig.memory.offered][1:] == [-1, -1]
        assert rig.outcomes == []


class TestWhatIsNoPost:
    @virtual_time
    async def test_it_is_counted_and_kept(self) -> None:
        """Each line once, with its reason, and its neighbours go on; the log has its size and not its text."""
        rig = Rig()
        with capture_logs() as logs:
            assert rig.intake.take([line(1), b"not JSON", line(2), b"{}"]) == []
        expected = [(b"not JSON", DropReason.NOT_JSON), (b"{}", DropReason.NO_ID)]
        assert expected == rig.observer.rejections
        assert expected == rig.letters
        assert lines(1, 2) == rig.offered()
        assert rig.observer.posts == 2
        told = [(entry["reason"], entry["bytes"]) for entry in logs if entry["event"] == "line_rejected"]
        assert told == [("not_json", 8), ("no_id", 2)]
        assert "not JSON" not in str(logs)

    @virtual_time
    async def test_a_message_of_x_is_returned(self) -> None:
        """The stream wants to know why X will end the connection; it is counted and kept as well."""
        rig = Rig()
        message = b'{"errors":[{"title":"operational-disconnect"}]}'
        assert [message] == rig.intake.take([line(1), message, b"{}"])
        assert (message, DropReason.X_ERROR) in rig.letters
        assert lines(1) == rig.offered()

    @virtual_time
    async def test_nothing_but_such_lines(self) -> None:
        """Neither journal nor sender hear of them, and there is no lag to note."""
        rig = Rig()
        rig.intake.take([b"", b"{}"])
        assert rig.disk.kept == {}
        assert rig.memory.offered == []
        assert (rig.observer.posts, rig.observer.lags) == (0, [])

    @virtual_time
    async def test_a_line_that_the_source_rejects(self) -> None:
        """What never became a whole line is counted and kept in the same way."""
        rig = Rig()
        rig.intake.reject(b'{"data":{"id', DropReason.LINE_CUT)
        assert rig.observer.rejections == rig.letters == [(b'{"data":{"id', DropReason.LINE_CUT)]


class TestRoom:
    @virtual_time
    async def test_there_is_room_at_once(self) -> None:
        """With nothing inside nobody waits."""
        async with asyncio.timeout(1):
            await Rig().intake.room()
            await Rig(journal=False).intake.room()
        assert asyncio.get_running_loop().time() == 0

    @virtual_time
    async def test_it_waits_for_the_backlog_and_for_memory(self) -> None:
        """A source that can be held back never makes posts wait on disk."""
        rig = Rig(memory=POSTS_PER_READ, left=lines(1, 2, 3, 4))
        async with rig.feeding():
            waiter = asyncio.create_task(rig.intake.room())
            await a_while()
            assert not waiter.done(), "a post still waits on disk"
            rig.deliver()
            await a_while()
            assert waiter.done()
            rig.intake.take(lines(5, 6))
            assert rig.disk.backlog == 0
            waiter = asyncio.create_task(rig.intake.room())
            await a_while()
            assert not waiter.done(), "memory is full"
            rig.deliver(1)
            await waiter
        assert lines(1, 2, 3, 4, 5, 6) == rig.offered()


class TestLag:
    @virtual_time
    async def test_the_id_says_when_a_post_was_written(self) -> None:
        """The newest of a chunk stands for all of it: 22 bits below, milliseconds since X's epoch above."""
        rig = Rig()
        milliseconds = int((time.time() - 5 - SNOWFLAKE_EPOCH) * 1000)
        written = milliseconds / 1000 + SNOWFLAKE_EPOCH
        before = time.time()
        rig.intake.take(lines(1, 2, milliseconds << 22 | 4_194_303))
        after = time.time()
        ((lag, posts),) = rig.observer.lags
        assert before - written <= lag <= after - written
        assert posts == 3

    @pytest.mark.parametrize("post_id", [b"abc", b"9" * 20, b"9" * 340, b"9" * 5000])
    @virtual_time
    async def test_an_id_that_is_no_snowflake_says_nothing(self, post_id: bytes) -> None:
        """The post is carried all the same, however long the number is."""
        rig = Rig()
        text = b'{"data":{"id":"%s","author_id":"1"}}' % post_id
        rig.intake.take([text])
        assert rig.observer.lags == []
        assert [text] == rig.offered()

    @virtual_time
    async def test_what_is_read_back_has_no_lag(self) -> None:
        """The figure tells how fast X is, and not how long Kinesis was away."""
        rig = Rig(left=lines(1))
        async with rig.feeding():
            await a_while()
        assert lines(1) == rig.offered()
        assert rig.observer.lags == []


class IntakeMachine(RuleBasedStateMachine):
    """
    Posts come and go, memory and disk fill up and empty, time passes or does not.

    The model is one queue: out comes what went in, in order, each once, without what was dropped with a reason.
    """

    @initialize(memory=st.integers(1, 8), disk=st.integers(1, 30), left=st.integers(0, 8))
    def begin(self, memory: int, disk: int, left: int) -> None:
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.taken = lines(*range(left))
        self.rig = Rig(memory=memory, disk=disk, left=self.taken)
        self.feeding = self.runner.get_loop().create_task(self.rig.intake.feed())

    @rule(count=st.integers(0, 6))
    def take(self, count: int) -> None:
        new = lines(*range(len(self.taken), len(self.taken) + count))
        self.taken += new

        async def take() -> None:
            self.rig.intake.take(new)

        self.runner.run(take())

    @rule(count=st.integers(1, 6))
    def deliver(self, count: int) -> None:
        self.rig.deliver(count)

    @rule(reads=st.sampled_from([0.0, 0.5, 1.5, 100.0]))
    def wait(self, reads: float) -> None:
        self.runner.run(asyncio.sleep(reads * READ_SECONDS))

    @rule(limit=st.integers(0, 30))
    def resize_the_disk(self, limit: int) -> None:
        self.rig.disk.limit = limit

    @invariant()
    def out_comes_what_went_in(self) -> None:
        if hasattr(self, "rig"):
            assert not self.feeding.done()
            dropped = self.rig.dropped()
            assert {reason for _, reason in dropped} <= {DropReason.JOURNAL_FULL}
            gone = {line for line, _ in dropped}
            assert len(gone) == len(dropped)
            waiting = [self.rig.disk.kept[position] for position in self.rig.disk.waiting]
            assert [line for line in self.taken if line not in gone] == self.rig.offered() + waiting

    @invariant()
    def memory_is_passed_by_one_chunk_at_most(self) -> None:
        if hasattr(self, "rig"):
            assert len(self.rig.memory.inside) < self.rig.memory.limit + 6

    def teardown(self) -> None:
        """In the end all goes well: nothing is left anywhere."""
        if not hasattr(self, "rig"):
            return
        with self.runner:
            while self.rig.memory.inside or self.rig.disk.backlog:
                self.deliver(1000)
                self.wait(100.0)
                self.out_comes_what_went_in()
            assert self.rig.disk.kept == {}
            self.runner.run(asyncio.wait_for(self.rig.intake.room(), 1))


TestIntakeMachine = IntakeMachine.TestCase
TestIntakeMachine.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


async def test_posts_that_come_are_shown() -> None:
    """Who wants to see the posts of a chunk gets them once, as they come; lines that are none are not among them."""
    rig = Rig()
    rig.intake.take([b'{"data":{"id":"1"}}', b"not a post", b'{"data":{"id":"2"}}'])
    rig.intake.take([b"not a post"])
    assert [[post.id for post in posts] for posts in rig.seen] == [["1", "2"]]


async def test_posts_that_come_are_told_at_debug() -> None:
    """By their ids, a line for each chunk: whether a post has come at all can be seen in the log."""
    rig = Rig()
    with capture_logs() as logs:
        rig.intake.take([b'{"data":{"id":"1"}}', b'{"data":{"id":"2"}}'])
    assert logs == [{"event": "posts_read", "posts": ["1", "2"], "log_level": "debug"}]
