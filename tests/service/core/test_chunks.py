import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from service.core.chunks import BATCH_BYTES, CHUNK_BYTES, LATE_BEATS, SWEEP_BEATS, WAITING_BYTES, Chunks
from service.core.limits import MIB
from service.core.records import DropReason
from service.core.rows import Batch, Contents, Row

GIB = 1 << 30
NEW = Contents(0, 0, 0, 0)


def take(chunks: Chunks, lines: list[bytes], beat: int = 0, *, in_memory: bool = True) -> range:
    """Append lines that there must be room for."""
    positions = chunks.append(lines, beat, in_memory=in_memory)
    assert isinstance(positions, range)
    return positions


def write(chunks: Chunks, beat: int = 0) -> Batch:
    """Have everything written."""
    batch = chunks.next_batch(beat, everything=True)
    assert batch is not None
    chunks.written({})
    return batch


class TestAppend:
    def test_what_comes_together_is_a_chunk(self) -> None:
        """Until a beat, or until it is full; a single append may be larger."""
        chunks = Chunks(NEW, GIB)
        for size in (CHUNK_BYTES - 2, 1, 1, 1, CHUNK_BYTES + 1):
            take(chunks, [b"x" * size])
        chunks.settle(1)
        take(chunks, [b"next beat"])
        batch = write(chunks)
        assert [len(row.lines) for row in batch.rows] == [3, 1, 1, 1]
        assert [row.number for row in batch.rows] == [0, 1, 2, 3]

    def test_positions_rise(self) -> None:
        """Also over those of an earlier run."""
        chunks = Chunks(Contents(0, 0, 0, 9), GIB)
        first = take(chunks, [b"a", b"b"])
        chunks.settle(1)
        assert (9 << 20, first[1]) == (first[0], first[0] + 1)
        assert first[1] < take(chunks, [b"c"])[0]

    def test_over_the_limit_nothing_is_taken(self) -> None:
        """Nothing of that append; there is room again when a whole chunk is confirmed."""
        chunks = Chunks(NEW, 100)
        positions = take(chunks, [b"x" * 30, b"x" * 30])
        assert DropReason.JOURNAL_FULL is chunks.append([b"y" * 41], 0, in_memory=True)
        chunks.confirm(positions[:1])
        chunks.settle(1)
        assert chunks.held_bytes == 60
        chunks.confirm(positions)
        chunks.settle(2)
        assert chunks.held_bytes == 0
        take(chunks, [b"y" * 100])

    def test_what_waits_for_a_stalled_disk_is_bounded(self) -> None:
        """Posts that nobody else has may take so much memory; those that the caller has may come on."""
        chunks = Chunks(NEW, GIB)
        line = b"x" * MIB
        taken = 0
        while chunks.append([line], 0, in_memory=False) is not DropReason.DISK_FAILED:
            taken += 1
        assert WAITING_BYTES // MIB == taken == chunks.backlog
        assert [line] * taken == chunks.waiting()

    def test_nothing_overtakes_the_backlog(self) -> None:
        """To append to memory while older posts wait on disk is a fault of the caller."""
        chunks = Chunks(NEW, GIB)
        take(chunks, [b"x"], in_memory=False)
        with pytest.raises(RuntimeError, match="backlog"):
            chunks.append([b"y"], 0, in_memory=True)

    def test_an_append_has_its_bounds(self) -> None:
        """More lines at once than a chunk has positions are a fault of the caller; a full chunk is not gone on with."""
        chunks = Chunks(NEW, GIB)
        with pytest.raises(ValueError, match="1048576 lines"):
            chunks.append([b""] * (1 << 20), 0, in_memory=True)
        take(chunks, [b""] * ((1 << 20) - 1))
        assert take(chunks, [b""])[0] == 1 << 20


class TestConfirm:
    def test_what_is_confirmed_at_once_is_never_written(self) -> None:
        """It leaves nothing to do."""
        chunks = Chunks(NEW, GIB)
        chunks.confirm(take(chunks, [b"a", b"b"]))
        chunks.settle(1)
        assert chunks.next_batch(1, everything=True) is None
        assert chunks.is_settled

    def test_unknown_positions_are_ignored(self) -> None:
        """A post that never was here may be confirmed like any other."""
        chunks = Chunks(NEW, GIB)
        chunks.confirm([-1, 123 << 40])
        assert chunks.is_settled

    def test_a_row_is_deleted_with_its_last_post(self) -> None:
        """Until then its flags are noted."""
        chunks = Chunks(NEW, GIB)
        positions = take(chunks, [b"a", b"b"])
        write(chunks)
        assert chunks.keeps(positions[0])
        chunks.confirm(positions[1:])
        chunks.settle(1)
        assert write(chunks) == Batch([], [], [(0, b"\0\1")], [])
        chunks.confirm(positions[:1])
        chunks.settle(2)
        assert not chunks.keeps(positions[0])
        assert write(chunks) == Batch([], [0], [], [])

    def test_what_is_confirmed_during_its_write_is_not_forgotten(self) -> None:
        """In part, it is noted next; in whole, it is deleted next."""
        chunks = Chunks(NEW, GIB)
        whole = take(chunks, [b"x" * CHUNK_BYTES])
        part = take(chunks, [b"a", b"b"])
        assert chunks.next_batch(0, everything=True)
        chunks.confirm([*whole, part[0]])
        chunks.settle(1)
        chunks.written({})
        assert write(chunks) == Batch([], [0], [(1, b"\1\0")], [])

    def test_what_ended_since_the_last_beat_leaves_no_row(self) -> None:
        """A row with all its flags would be no backlog of the next run, but keep its room for ever."""
        chunks = Chunks(NEW, GIB)
        positions = take(chunks, [b"a", b"b"])
        write(chunks)
        chunks.confirm(positions[:1])
        chunks.settle(1)
        chunks.confirm(positions[1:])
        never_written = take(chunks, [b"c"])
        chunks.confirm(never_written)
        assert write(chunks) == Batch([], [0], [], [])

    def test_a_late_disk_holds_no_confirmed_lines(self) -> None:
        """What the caller has let go of does not stay in memory for the disk's sake."""
        chunks = Chunks(NEW, GIB)
        positions = take(chunks, [b"a", b"b"])
        chunks.confirm(positions[:1])
        chunks.settle(LATE_BEATS + 1)
        assert write(chunks).rows == [Row(0, [b"", b"b"], b"\1\0")]


class TestBatch:
    def test_a_chunk_goes_at_its_second_beat(self) -> None:
        """What is younger waits, in case that it is confirmed first."""
        chunks = Chunks(NEW, GIB)
        take(chunks, [b"a"], 0)
        chunks.settle(1)
        take(chunks, [b"b"], 1)
        assert chunks.next_batch(1, everything=False) is None
        chunks.settle(2)
        batch = chunks.next_batch(2, everything=False)
        assert batch is not None
        assert [row.lines for row in batch.rows] == [[b"a"]]

    def test_a_batch_has_its_limit(self) -> None:
        """What is beyond it is left to the next."""
        chunks = Chunks(NEW, GIB)
        for _ in range(BATCH_BYTES // MIB + 1):
            take(chunks, [b"x" * MIB])
        assert len(write(chunks).rows) == BATCH_BYTES // MIB
        assert len(write(chunks).rows) == 1

    def test_a_batch_that_failed_comes_again(self) -> None:
        """All of it: rows, deletes and flags; but for a chunk whose last post was confirmed meanwhile."""
        chunks = Chunks(NEW, GIB)
        parted = [take(chunks, [b"x" * CHUNK_BYTES, b"y"]) for _ in range(2)]
        gone = take(chunks, [b"z" * CHUNK_BYTES])
        write(chunks)
        chunks.confirm([*gone, parted[0][0], parted[1][0]])
        chunks.settle(1)
        take(chunks, [b"new"])
        before = chunks.next_batch(1, everything=True)
        assert before is not None
        assert sorted(before.done) == [(0, b"\1\0"), (1, b"\1\0")]
        chunks.confirm(parted[1])
        chunks.settle(2)
        chunks.failed()
        assert write(chunks) == Batch(before.rows, [2, 1], [(0, b"\1\0")], [])

    def test_a_pinned_row_is_written_anew(self) -> None:
        """One post that never ends does not keep the room of the others; done once, it is not done again."""
        chunks = Chunks(NEW, GIB)
        positions = take(chunks, [b"x" * 100] * 4)
        write(chunks)
        chunks.confirm(positions[1:])
        chunks.settle(1)
        write(chunks, 1)
        assert chunks.next_batch(SWEEP_BEATS, everything=True) is None
        assert chunks.next_batch(2 * SWEEP_BEATS, everything=True) == Batch([], [], [], [(0, b"\0\1\1\1")])
        chunks.written({0: 100})
        assert chunks.held_bytes == 100
        assert chunks.next_batch(3 * SWEEP_BEATS, everything=True) is None

    def test_few_rows_are_written_anew_at_once(self) -> None:
        """All that a slow lane pins could be the whole of memory: no more of it than a batch has, the oldest first."""
        chunks = Chunks(NEW, GIB)
        at_once = BATCH_BYTES // CHUNK_BYTES
        taken = [take(chunks, [b"x" * CHUNK_BYTES, b"", b"", b""]) for _ in range(at_once + 1)]
        write(chunks)
        write(chunks)
        chunks.confirm(position for positions in taken for position in positions[1:])
        batch = chunks.next_batch(2 * SWEEP_BEATS, everything=True)
        assert batch is not None
        assert [number for number, _ in batch.sweeps] == list(range(at_once))

    def test_a_pinned_row_that_ends_meanwhile(self) -> None:
        """Its new size is nobody's."""
        chunks = Chunks(NEW, GIB)
        positions = take(chunks, [b"x" * 100] * 4)
        write(chunks)
        chunks.confirm(positions[1:])
        chunks.settle(1)
        assert chunks.next_batch(2 * SWEEP_BEATS, everything=True)
        chunks.confirm(positions)
        chunks.settle(2)
        chunks.written({0: 100})
        assert chunks.held_bytes == 0


def test_a_file_that_is_lost() -> None:
    """Its backlog is gone; what memory has goes on without rows, and what is not written yet goes into the new one."""
    chunks = Chunks(Contents(5, 500, 3, 8), GIB)
    (held, _), *_ = chunks.take_rows([Row(3, [b"a", b"b"], b"")], 0)
    take(chunks, [b"c" * 10], in_memory=False)
    assert chunks.keeps(held)
    assert chunks.lose() == 3
    assert not chunks.keeps(held)
    assert (chunks.backlog, chunks.held_bytes) == (1, 10)
    chunks.confirm([held])
    chunks.settle(1)
    assert write(chunks) == Batch([Row(8, [b"c" * 10], b"")], [], [], [])


def test_what_was_to_be_noted_in_a_file_that_is_lost() -> None:
    """The new one has no rows to delete, and none to flag."""
    chunks = Chunks(NEW, GIB)
    whole, part = take(chunks, [b"x" * CHUNK_BYTES]), take(chunks, [b"a", b"b"])
    write(chunks)
    chunks.confirm([*whole, part[0]])
    chunks.settle(1)
    chunks.lose()
    assert chunks.is_settled
    assert chunks.next_batch(1, everything=True) is None


def test_a_file_that_is_lost_before_the_first_write() -> None:
    """It costs nothing."""
    chunks = Chunks(NEW, GIB)
    take(chunks, [b"a"])
    assert chunks.lose() == 0
    assert (chunks.held_bytes, len(write(chunks).rows)) == (1, 1)


class Model(RuleBasedStateMachine):
    """The books against a dictionary for the memory, a list for the backlog and a dictionary for the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.chunks = Chunks(NEW, GIB)
        self.beats = 0
        self.memory: dict[int, bytes] = {}
        self.backlog: list[tuple[int, bytes]] = []
        self.rows: dict[int, Row] = {}
        self.batch: Batch | None = None

    @rule(lines=st.lists(st.binary(max_size=5), min_size=1, max_size=4), large=st.booleans())
    def append(self, lines: list[bytes], large: bool) -> None:
        lines += [b"x" * CHUNK_BYTES] * large
        in_memory = not self.backlog
        posts = list(zip(take(self.chunks, lines, self.beats, in_memory=in_memory), lines, strict=True))
        self.memory.update(posts if in_memory else [])
        self.backlog += posts if not in_memory else []

    @rule(line=st.binary(max_size=5))
    def append_to_disk_only(self, line: bytes) -> None:
        self.backlog.append((take(self.chunks, [line], self.beats, in_memory=False)[0], line))

    @precondition(lambda self: self.memory)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        some = data.draw(st.lists(st.sampled_from(sorted(self.memory)), min_size=1))
        self.chunks.confirm(some)
        for position in some:
            self.memory.pop(position, None)

    @rule(beats=st.sampled_from([1, 1, 1, SWEEP_BEATS]))
    def beat(self, beats: int) -> None:
        self.beats += beats
        self.chunks.settle(self.beats)

    @precondition(lambda self: self.batch is None)
    @rule(everything=st.booleans())
    def begin_to_write(self, everything: bool) -> None:
        self.batch = self.chunks.next_batch(self.beats, everything=everything)

    @precondition(lambda self: self.batch is not None)
    @rule(well=st.booleans())
    def end_the_write(self, well: bool) -> None:
        assert self.batch is not None
        if not well:
            self.chunks.failed()
        else:
            for number in self.batch.deletes:
                del self.rows[number]
            sizes = {}
            for number, flags in self.batch.done:
                self.rows[number] = self.rows[number]._replace(flags=flags)
            for number, flags in self.batch.sweeps:
                lines = [b"" if done else line for line, done in zip(self.rows[number].lines, flags, strict=True)]
                self.rows[number] = self.rows[number]._replace(lines=lines)
                sizes[number] = sum(map(len, lines))
            self.rows.update((row.number, row) for row in self.batch.rows)
            self.chunks.written(sizes)
        self.batch = None

    @precondition(lambda self: self.batch is None)
    @rule(count=st.integers(1, 3), limit=st.sampled_from([1, GIB]))
    def read(self, count: int, limit: int) -> None:
        if self.chunks.stored:
            numbers = sorted(number for number in self.rows if number >= self.chunks.cursor)[:count]
            posts = self.chunks.take_rows([self.rows[number] for number in numbers], self.beats)
        else:
            posts = self.chunks.take_waiting(limit)
        assert bool(self.backlog) == bool(posts)
        assert self.backlog[: len(posts)] == posts
        del self.backlog[: len(posts)]
        self.memory.update(posts)

    def on_disk(self) -> dict[int, bytes]:
        """Give what a new run would find."""
        return {
            row.number << 20 | place: line
            for row in self.rows.values()
            for place, line in enumerate(row.lines)
            if not (row.flags and row.flags[place])
        }

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.backlog) == self.chunks.backlog
        unconfirmed = {**self.memory, **dict(self.backlog)}
        assert sum(map(len, unconfirmed.values())) <= self.chunks.held_bytes
        kept = {position: line for position, line in self.memory.items() if self.chunks.keeps(position)}
        assert kept.items() <= self.on_disk().items()

    def teardown(self) -> None:
        """With a disk that works, rows are what is left."""
        if self.batch is not None:
            self.end_the_write(well=True)
        self.chunks.settle(self.beats)
        while self.batch is not None or not self.chunks.is_settled:
            self.batch = self.chunks.next_batch(self.beats, everything=True)
            self.end_the_write(well=True)
        left = {**self.memory, **dict(self.backlog)}
        assert left == self.on_disk()
        assert {position >> 20 for position in left} == set(self.rows), "no row stays for its own sake"


def test_the_books_are_as_good_as_a_list() -> None:
    """Whatever comes, ends, fails and is read back, in any order: rows and memory hold just what is unconfirmed."""
    run_state_machine_as_test(Model, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
