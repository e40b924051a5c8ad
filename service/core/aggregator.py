"""
How many of a lane's posts become one Kinesis record, and its bytes.

A record is made only when it is taken, that is, when its lane can send. So a lane that waits for an answer does not
pile up small records: its next one grows meanwhile, from `TARGET_BYTES`, which a free lane sends at once, up to
`LARGEST_BYTES`.

A post alone is sent raw, without the envelope, but under the lane's keys.
"""

from collections.abc import Sequence
from itertools import islice

from processor.wire import Aggregate, compress
from service.core.limits import PAYLOAD_UNIT_BYTES
from service.core.records import Post
from service.core.shard_map import NAME_BYTES

# Kinesis bills a record in units of 25 KiB, begun ones whole: two units, and not a byte of a third.
TARGET_BYTES = 2 * PAYLOAD_UNIT_BYTES - NAME_BYTES
# A fifth of what a shard takes in a second: large enough for 1 MiB/s at a round trip of 200 ms, small enough that
# a shard that is shared with others still finds room for it.
LARGEST_BYTES = 8 * PAYLOAD_UNIT_BYTES - NAME_BYTES
# Sizes are known before compression only. Posts shrink to a quarter or less (docs/performance.md), so a container may
# be so many times larger; one that does not shrink at all still fits into a record.
COMPRESSED_GROWTH = 4


def whole_units(size: int, growth: int = 1) -> int:
    """The largest container that fills its payload units with so many bytes of posts: TARGET_BYTES to LARGEST_BYTES."""
    unit = PAYLOAD_UNIT_BYTES * growth
    return max(TARGET_BYTES * growth, min(LARGEST_BYTES * growth, size // unit * unit - NAME_BYTES))


def pack(posts: Sequence[Post], limit: int, most: int | None = None, *, compressed: bool = False) -> tuple[int, bytes]:
    """
    Put the first of some posts into the data of one Kinesis record.

    Args:
        posts: oldest first, one at least.
        limit: bytes of the container, before compression. The first post always fits: it was measured at the door.
        most: how many may go in; None for all.
        compressed: put the container into a compressed frame.

    Returns: how many went in, and the data.
    """
    aggregate = Aggregate()
    count = aggregate.extend(posts if most is None else islice(posts, most), limit)
    if count == 1:
        return count, posts[0].line
    container = aggregate.seal()
    return count, compress(container) if compressed else container
