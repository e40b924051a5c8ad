"""
The journal's books: which posts it holds, which of them only it has, and what is to be written next.

* Posts are kept by the chunk: those that arrived together, up to 256 KiB, in one row of the file. A row is deleted when
  all its posts are confirmed; until then its flags say which are.
* A position is the chunk's number and the place in it, so that a confirmation needs no search. Positions rise, with
  gaps.
* One slow lane would pin whole chunks for the sake of single posts: such rows are written anew without the rest.
* The backlog is what only the journal has: posts in rows from a number on, and posts that are not written yet.

Time is counted in beats, which the caller makes. At most one batch is under way: after `next_batch` comes `written` or
`failed`.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

from service.core.limits import KIB, MIB
from service.core.records import DropReason
from service.core.rows import Batch, Contents, Row, without

# A chunk begins anew beyond this size. Larger ones leave the processor's cache between being joined and being written.
CHUNK_BYTES = 256 * KIB
# The most that one transaction takes, so that the WAL stays small after a failure of the disk too.
BATCH_BYTES = 8 * MIB
# Posts that only the journal has, and that are not written yet: the most that a stalled disk may hold in memory.
WAITING_BYTES = 32 * MIB
# Every so many beats it looks for chunks of which at most a quarter is left, and which are older than that.
SWEEP_BEATS = 64
# A chunk goes at the second beat after its first post, and is late at the fourth.
YOUNG_BEATS, LATE_BEATS = 2, 3

_PLACE_BITS = 20
_PLACE_MASK = (1 << _PLACE_BITS) - 1


@dataclass(slots=True, eq=False)
class _Chunk:
    """
    Some posts that arrived together.

    Attributes:
        number: rises; also the key of its row.
        beat: when it was begun.
        in_memory: the caller has its posts; otherwise they wait to be read.
        lines: while it is not written; empty afterwards.
        flags: one byte a post, 1 for confirmed.
        left: how many are not confirmed, as of the last beat.
        kept: how many its row still has.
        size: its bytes, as far as they count against the limit.
        written: it has a row.
    """

    number: int
    beat: int
    in_memory: bool
    lines: list[bytes] = field(default_factory=list)
    flags: bytearray = field(default_factory=bytearray)
    left: int = 0
    kept: int = 0
    size: int = 0
    written: bool = False

    def positions(self) -> Iterable[int]:
        """Give the positions of the posts that are not confirmed."""
        start = self.number << _PLACE_BITS
        return (start + place for place, flag in enumerate(self.flags) if not flag)


class Chunks:
    """
    See the module's text.

    Arguments:
        contents: what the file holds at the start; all of it is backlog.
        limit: bytes of posts that may be held.

    Attributes:
        held_bytes: of posts. A chunk counts until all of its posts are confirmed.
        stored: posts of the backlog that are in rows, to be read from `cursor` on.
    """

    def __init__(self, contents: Contents, limit: int) -> None:
        self._limit = limit
        self.held_bytes = contents.bytes
        self.stored = contents.posts
        self.cursor = contents.first
        self._next_number = contents.next
        self._open: _Chunk | None = None  # takes what is appended
        self._held: dict[int, _Chunk] = {}  # those in memory, which can be confirmed
        self._unwritten: deque[_Chunk] = deque()
        self._touched: set[_Chunk] = set()  # confirmed in part since the last beat
        self._changed: set[_Chunk] = set()  # their rows do not know it yet
        self._deletes: list[int] = []
        self._waiting = 0  # posts of the backlog that are not written yet
        self._waiting_bytes = 0
        self._under_way: tuple[Batch, list[_Chunk], set[_Chunk]] | None = None

    @property
    def backlog(self) -> int:
        """Posts that only the journal has."""
        return self.stored + self._waiting

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to write."""
        return not (self._unwritten or self._changed or self._deletes)

    def keeps(self, position: int) -> bool:
        """Whether this post, taken and not confirmed, is in the file."""
        chunk = self._held.get(position >> _PLACE_BITS)
        return chunk is not None and chunk.written

    # What comes and goes

    def append(self, lines: Sequence[bytes], beat: int, *, in_memory: bool) -> range | DropReason:
        """Take one or more lines that arrived together and give their positions, or say why none of them was taken."""
        if in_memory and self.backlog:
            raise RuntimeError("append(in_memory=True) while there is a backlog: order would be lost")
        count = len(lines)
        size = sum(map(len, lines))
        if count > _PLACE_MASK:
            raise ValueError(f"append() of {count} lines; the most is {_PLACE_MASK}")
        if self.held_bytes + size > self._limit:
            return DropReason.JOURNAL_FULL
        if not in_memory:
            if self._waiting_bytes + size > WAITING_BYTES:
                return DropReason.DISK_FAILED
            self._waiting += count
            self._waiting_bytes += size
        chunk = self._open
        if (
            chunk is None
            or chunk.in_memory != in_memory
            or chunk.size + size > CHUNK_BYTES
            or len(chunk.flags) + count > _PLACE_MASK
        ):
            chunk = self._begin(beat, in_memory=in_memory)
        start = chunk.number << _PLACE_BITS | len(chunk.flags)
        chunk.lines += lines
        chunk.flags += bytes(count)
        chunk.left += count
        chunk.size += size
        self.held_bytes += size
        return range(start, start + count)

    def confirm(self, positions: Iterable[int]) -> None:
        """Let go of posts. Positions that are not held are ignored."""
        held, touched = self._held, self._touched
        current: int | None = None
        flags = bytearray()
        for position in positions:
            number = position >> _PLACE_BITS
            if number != current:
                chunk = held.get(number)
                if chunk is None:
                    continue
                current = number
                flags = chunk.flags
                touched.add(chunk)
            flags[position & _PLACE_MASK] = 1

    def take_rows(self, rows: Iterable[Row], beat: int) -> list[tuple[int, bytes]]:
        """Move rows of the backlog, as they were read from `cursor` on, to the caller's memory: positions and lines."""
        posts: list[tuple[int, bytes]] = []
        for row in rows:
            flags = bytearray(row.flags or len(row.lines))
            left, size = flags.count(0), sum(map(len, row.lines))
            chunk = _Chunk(row.number, beat, in_memory=True, flags=flags, left=left, kept=left, size=size, written=True)
            self._held[chunk.number] = chunk
            self.cursor = chunk.number + 1
            self.stored -= left
            lines = compress(row.lines, map((0).__eq__, flags)) if row.flags else row.lines
            posts += zip(chunk.positions(), lines, strict=True)
        return posts

    def take_waiting(self, limit: int) -> list[tuple[int, bytes]]:
        """Move chunks of the backlog that are not written to the caller's memory, until they have `limit` bytes."""
        posts: list[tuple[int, bytes]] = []
        for chunk in self._unwritten:
            if chunk.in_memory:
                continue
            self._leave_waiting(chunk)
            chunk.in_memory = True
            self._held[chunk.number] = chunk
            posts += zip(chunk.positions(), chunk.lines, strict=True)
            limit -= chunk.size
            if limit <= 0:
                break
        # What is appended next is a chunk of its own: else it would keep the room of these until it is confirmed too.
        self._open = None
        return posts

    def waiting(self) -> list[bytes]:
        """Give the lines of the backlog that are not written."""
        return [line for chunk in self._unwritten if not chunk.in_memory for line in chunk.lines]

    def _begin(self, beat: int, *, in_memory: bool) -> _Chunk:
        chunk = self._open = _Chunk(self._next_number, beat, in_memory=in_memory)
        self._next_number += 1
        self._unwritten.append(chunk)
        if in_memory:
            self._held[chunk.number] = chunk
        return chunk

    def _leave_waiting(self, chunk: _Chunk) -> None:
        self._waiting -= len(chunk.flags)
        self._waiting_bytes -= chunk.size

    # What is written

    def settle(self, beat: int) -> None:
        """Find out which chunks have ended since the last beat."""
        self._open = None
        for chunk in self._touched:
            chunk.left = chunk.flags.count(0)
            if chunk.left == 0:
                del self._held[chunk.number]
                self.held_bytes -= chunk.size
                self._changed.discard(chunk)
                if chunk.written:
                    self._deletes.append(chunk.number)
            elif chunk.written:
                self._changed.add(chunk)
            elif chunk.beat < beat - LATE_BEATS:
                # The disk is late. What the caller has let go of must not stay in memory for its sake.
                chunk.lines = without(chunk.lines, chunk.flags)
        if self._touched:
            self._touched.clear()
            self._unwritten = deque(chunk for chunk in self._unwritten if chunk.left)

    def next_batch(self, beat: int, *, everything: bool) -> Batch | None:
        """Give what is to be written now: what is old enough, or everything; None if there is nothing."""
        # What is under way takes nothing more, and what has ended by now must leave no row: the next run would find no
        # post in it, and never delete it.
        self.settle(beat)
        chunks: list[_Chunk] = []
        size = 0
        for chunk in self._unwritten:
            if size >= BATCH_BYTES or (not everything and chunk.beat > beat - YOUNG_BEATS):
                break
            chunks.append(chunk)
            size += chunk.size
        rows = [Row(chunk.number, chunk.lines, bytes(chunk.flags) if 1 in chunk.flags else b"") for chunk in chunks]
        done = [(chunk.number, bytes(chunk.flags)) for chunk in self._changed]
        batch = Batch(rows, self._deletes[:], done, self._sweeps(beat))
        if not any(batch):
            return None
        self._under_way = batch, chunks, self._changed
        self._changed = set()
        return batch

    def written(self, sizes: Mapping[int, int]) -> None:
        """The batch is on the disk; `sizes` are those of the rows that were written anew."""
        batch, chunks, _ = self._end()
        del self._deletes[: len(batch.deletes)]
        while chunks and self._unwritten and self._unwritten[0].number <= chunks[-1].number:
            self._unwritten.popleft()
        for chunk, row in zip(chunks, batch.rows, strict=True):
            chunk.written = True
            chunk.lines = []
            chunk.kept = len(row.lines) - row.flags.count(1)
            if not chunk.in_memory:
                self._leave_waiting(chunk)
                if not self.stored:
                    self.cursor = chunk.number
                self.stored += chunk.left
            elif chunk.left == 0:
                self._deletes.append(chunk.number)
            elif chunk.left < chunk.kept:
                self._changed.add(chunk)
        for number, size in sizes.items():
            swept = self._held.get(number)
            if swept is not None:
                self.held_bytes -= swept.size - size
                swept.size = size
                swept.kept = swept.left

    def failed(self) -> None:
        """The batch is not on the disk: the next one has it again."""
        _, _, changed = self._end()
        self._changed.update(chunk for chunk in changed if chunk.left)

    def lose(self) -> int:
        """The file is empty again. Returns how many posts of the backlog were in it; what memory has is still held."""
        lost, self.stored = self.stored, 0
        for chunk in self._held.values():
            if chunk.written:
                chunk.size = 0
                chunk.written = False
        self.held_bytes = sum(chunk.size for chunk in self._unwritten)
        self._changed.clear()
        self._deletes.clear()
        return lost

    def _end(self) -> tuple[Batch, list[_Chunk], set[_Chunk]]:
        assert self._under_way is not None
        under_way, self._under_way = self._under_way, None
        return under_way

    def _sweeps(self, beat: int) -> list[tuple[int, bytes]]:
        """Find written chunks of which little is left for long: their rows take room for nothing."""
        if beat % SWEEP_BEATS:
            return []
        pinned = [
            chunk
            for chunk in self._held.values()
            if chunk.written and chunk.left * 4 <= chunk.kept and chunk.beat < beat - SWEEP_BEATS
        ]
        del pinned[BATCH_BYTES // CHUNK_BYTES :]
        return [(chunk.number, bytes(chunk.flags)) for chunk in pinned]
