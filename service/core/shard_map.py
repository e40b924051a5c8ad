"""
Partition key -> hash key -> lane -> shard.

Kinesis stores a record on the shard whose range holds the MD5 of its partition key (or its explicit hash key). A
lane is a slice of one shard's range. Every post of a key falls into the same slice, so a lane that keeps its order
keeps the order of all its keys.
"""

from bisect import bisect_right
from collections.abc import Sequence
from hashlib import md5
from typing import NamedTuple

from service.core.limits import HASH_KEYS, RECORDS_PER_REQUEST
from service.core.records import Shard

# The longest name that slices() gives: it is the partition key of containers, and counts against the record limit.
NAME_BYTES = 64

# Authors who post much are few; looking up where they belong is three times as fast as hashing their name.
KNOWN_KEYS = 1 << 16


def hash_key(partition_key: bytes) -> int:
    """Where Kinesis files a partition key: 0 to 2^128 - 1."""
    return int.from_bytes(md5(partition_key, usedforsecurity=False).digest(), "big")


class Slice(NamedTuple):
    """
    The part of a shard that one lane serves; both ends belong to it.

    `shard_id` is empty on a stream that ignores keys: there any shard may answer.
    """

    name: str
    shard_id: str
    first: int
    last: int


def slices(shards: Sequence[Shard], lanes_per_shard: int) -> list[Slice]:
    """
    Cut every shard into `lanes_per_shard` slices, in the order of their hash keys.

    The name of a slice becomes the partition key of its containers. Lambda spreads a shard's records by partition
    key, so a name per slice is what makes its ParallelizationFactor work.
    """
    found = []
    for shard in sorted(shards, key=lambda shard: shard.first):
        width = shard.last - shard.first + 1
        for number in range(lanes_per_shard):
            first = shard.first + width * number // lanes_per_shard
            last = shard.first + width * (number + 1) // lanes_per_shard - 1
            name = shard.shard_id if lanes_per_shard == 1 else f"{shard.shard_id}.{number}"
            found.append(Slice(name, shard.shard_id, first, last))
    return found


def slices_without_shards() -> list[Slice]:
    """Slices for a stream that ignores keys: as many as fill a request, and no shard is expected of any."""
    whole = Shard("", 0, HASH_KEYS - 1)
    return [piece._replace(name=f"lane-{piece.name[1:]}") for piece in slices([whole], RECORDS_PER_REQUEST)]


class ShardMap:
    """
    Finds the slice of a key. The slices must be in order; together they cover all hash keys.

    `known` has some keys that were asked for, and their answers: a look there first spares a call.
    """

    def __init__(self, pieces: Sequence[Slice]) -> None:
        if not pieces:
            raise ValueError("a shard map needs at least one open shard")
        self.slices = tuple(pieces)
        # The first one begins at the lowest key there is, whatever it says: nothing may fall out at the bottom.
        self._firsts = [0, *(piece.first for piece in pieces[1:])]
        self.known: dict[bytes, int] = {}

    def index(self, partition_key: bytes) -> int:
        """The place in `slices` of the one that serves this key."""
        index = self.known.get(partition_key)
        if index is None:
            if len(self.known) >= KNOWN_KEYS:
                self.known.clear()
            index = self.known[partition_key] = bisect_right(self._firsts, hash_key(partition_key)) - 1
        return index

    def overlapping(self, piece: Slice) -> range:
        """The places of all slices that share a key with this one, which may be of another map."""
        return range(bisect_right(self._firsts, piece.first) - 1, bisect_right(self._firsts, piece.last))
