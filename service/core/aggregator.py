"""
Batches: the posts of a lane that will become one Kinesis record.

A lane's last batch is open and grows; it is closed only when it is taken, that is, when the lane can send. So a lane
that waits for an answer does not pile up small records: its next one grows meanwhile, from `TARGET_BYTES`, which a
free lane sends at once, up to `LARGEST_BYTES`.

A batch of one post is sent raw, without the envelope, but under the lane's keys.
"""

from processor.wire import Aggregate, compress
from service.core.limits import PAYLOAD_UNIT_BYTES
from service.core.records import Post
from service.core.shard_map import NAME_BYTES

# Kinesis bills a record in units of 25 KiB, begun ones whole: two units, and not a byte of a third.
TARGET_BYTES = 2 * PAYLOAD_UNIT_BYTES - NAME_BYTES
# A fifth of what a shard takes in a second: large enough for 1 MiB/s at a round trip of 200 ms, small enough that
# a shard that is shared with others still finds room for it.
LARGEST_BYTES = 8 * PAYLOAD_UNIT_BYTES - NAME_BYTES
# Sizes are known before compression only. Posts shrink to a quarter or less (docs/performance.md), so a batch may
# be so many times larger; one that does not shrink at all still fits into a record.
COMPRESSED_GROWTH = 4


class Batch:
    """
    Posts of one lane, oldest first, encoded as they come.

    Attributes:
        posts: the posts inside.
        aggregate: the same, encoded; its `size` says how large the container would be, if it were closed now.
        opened_at: when the first one was added, in seconds.
        perhaps_stored: some were sent before, under an older shard map, and got no answer.
        astray: how often they were stored outside the range of their shard.
    """

    __slots__ = ("aggregate", "astray", "opened_at", "perhaps_stored", "posts")

    def __init__(self, now: float) -> None:
        self.aggregate = Aggregate()
        self.posts: list[Post] = []
        self.opened_at = now
        self.perhaps_stored = False
        self.astray = 0

    def add(self, post: Post, limit: int) -> bool:
        """
        Take one more post; False if the container would be larger than `limit` bytes.

        The first one always fits: it was measured at the door.
        """
        if not self.aggregate.add(post.key, post.line, limit):
            return False
        self.posts.append(post)
        return True

    def encode(self, *, compressed: bool = False) -> bytes:
        """Return the data of the Kinesis record."""
        if len(self.posts) == 1:
            return self.posts[0].line
        container = self.aggregate.seal()
        return compress(container) if compressed else container
