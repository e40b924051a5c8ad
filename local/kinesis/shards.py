"""
Shards as a pure model: what they hold and let through, how they split and merge. Time is an argument, in seconds.

The numbers are the published ones: the service model of API version 2013-12-02 (as shipped with botocore 1.43) and the
"quotas and limits" and "large records" pages of the Kinesis developer guide. What they leave open is decided so:

* A shard's write capacity is a tank of one second (1,000 records, 1 MiB). A record larger than the tank passes when the
  tank is full and is paid back afterwards.
* A reshard takes effect at once: parents close and keep their records, children take the writes.
* Every stored record, and every opening and closing of a shard, takes the next position of the stream, so positions
  rise over the whole stream and children start above their parents.
"""

from bisect import bisect_right
from collections import deque

import msgspec

MIB = 1 << 20
HASH_KEYS = 1 << 128
SHARD_RECORDS_PER_SECOND = 1000
SHARD_BYTES_PER_SECOND = MIB
READS_PER_SECOND = 5
READ_BYTES_PER_SECOND = 2 * MIB


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One record as it is stored; `position` is its place in the whole stream, `size` counts data and key in bytes."""

    position: int
    shard: int
    arrival: float
    size: int
    data: bytes
    partition_key: str
    explicit_hash_key: str | None


class ShardFacts(msgspec.Struct):
    """What is kept of a shard beside its records: its place in the stream's history, and what was counted."""

    index: int
    start: str
    end: str
    parents: tuple[int, ...]
    opened: int
    closed: int | None = None
    closed_at: float | None = None
    accepted: int = 0
    accepted_bytes: int = 0
    throttled: int = 0
    failed: int = 0


class Bucket:
    """A token bucket that holds one second of its rate and starts full."""

    __slots__ = ("_level", "_rate", "_updated")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = self._level = float(rate)
        self._updated = now

    def holds(self, amount: float, now: float) -> bool:
        """Say whether the amount can be taken now; one that is larger than the bucket wants it full."""
        if now > self._updated:
            self._level = min(self._rate, self._level + (now - self._updated) * self._rate)
            self._updated = now
        return self._level >= min(amount, self._rate)

    def take(self, amount: float) -> None:
        """Take the amount, into debt if need be."""
        self._level -= amount


class Shard:
    """One shard: a range of hash keys (both ends included), its records, its buckets."""

    def __init__(self, facts: ShardFacts, now: float) -> None:
        self.facts = facts
        self.index = facts.index
        self.name = f"shardId-{facts.index:012d}"
        self.start, self.end = int(facts.start), int(facts.end)
        self.records: deque[Record] = deque()
        self.reads = Bucket(READS_PER_SECOND, now)
        self.iterators = Bucket(READS_PER_SECOND, now)
        self.read_bytes = Bucket(READ_BYTES_PER_SECOND, now)
        self._write_records = Bucket(SHARD_RECORDS_PER_SECOND, now)
        self._write_bytes = Bucket(SHARD_BYTES_PER_SECOND, now)

    @property
    def is_open(self) -> bool:
        """Whether it takes writes."""
        return self.facts.closed is None

    @property
    def trimmed(self) -> int:
        """How many of its records are no longer kept."""
        return self.facts.accepted - len(self.records)

    def admit(self, size: int, now: float) -> bool:
        """Take one record's share of the write capacity, if there is enough."""
        if self._write_records.holds(1, now) and self._write_bytes.holds(size, now):
            self._write_records.take(1)
            self._write_bytes.take(size)
            return True
        return False


class ShardMap:
    """
    All shards of a stream, open and closed, by number; the open ones cover every hash key exactly once.

    `position` is the last position taken.
    """

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self.open: list[Shard] = []
        self.position = 0
        self._starts: list[int] = []

    def create(self, count: int, now: float) -> None:
        """Open the first shards, with ranges of equal size."""
        for start, end in uniform_ranges(count):
            self._open(start, end, (), now)
        self._index()

    def restore(self, facts: list[ShardFacts], position: int, now: float) -> None:
        """Make the shards anew from what was kept of them."""
        self.shards = [Shard(one, now) for one in facts]
        self.position = position
        self._index()

    def at(self, hash_key: int) -> Shard:
        """Return the open shard of a hash key."""
        return self.open[bisect_right(self._starts, hash_key) - 1]

    def split(self, shard: Shard, new_start: int, now: float) -> None:
        """Close an open shard; two children share its range, the upper one from `new_start` on."""
        self._close(shard, now)
        self._open(shard.start, new_start - 1, (shard.index,), now)
        self._open(new_start, shard.end, (shard.index,), now)
        self._index()

    def merge(self, shard: Shard, adjacent: Shard, now: float) -> Shard:
        """Close two open neighbours; return the child that takes both ranges."""
        self._close(shard, now)
        self._close(adjacent, now)
        parents = (shard.index, adjacent.index)
        child = self._open(min(shard.start, adjacent.start), max(shard.end, adjacent.end), parents, now)
        self._index()
        return child

    def scale(self, target: int, now: float) -> None:
        """Split and merge until `target` shards of equal ranges are open; those in between open and close again."""
        for start, end in uniform_ranges(target):
            shard = self.at(start)
            if shard.start != start:
                self.split(shard, start, now)
            shard = self.at(end)
            if shard.end != end:
                self.split(shard, end + 1, now)
            pieces = [piece for piece in self.open if start <= piece.start <= end]
            while len(pieces) > 1:
                pieces[:2] = [self.merge(pieces[0], pieces[1], now)]

    def _index(self) -> None:
        self.open = sorted((shard for shard in self.shards if shard.is_open), key=lambda shard: shard.start)
        self._starts = [shard.start for shard in self.open]

    def _open(self, start: int, end: int, parents: tuple[int, ...], now: float) -> Shard:
        self.position += 1
        shard = Shard(ShardFacts(len(self.shards), str(start), str(end), parents, self.position), now)
        self.shards.append(shard)
        return shard

    def _close(self, shard: Shard, now: float) -> None:
        self.position += 1
        shard.facts.closed = self.position
        shard.facts.closed_at = now


def uniform_ranges(count: int) -> list[tuple[int, int]]:
    """Cut all hash keys into ranges of equal size, both ends included; the last one takes what is left over."""
    width = HASH_KEYS // count
    starts = [width * index for index in range(count)]
    return [(start, end - 1) for start, end in zip(starts, [*starts[1:], HASH_KEYS], strict=True)]
