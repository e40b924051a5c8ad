"""
What X can send once more: the posts of the last minutes, for backfill and recovery.

Rules it obeys:

* A post is kept with the rules that it matched when it fell due, also if nobody was connected then.
* It comes again oldest first, whether or not it has been delivered already: X does not look.
* X keeps a day. This keeps as much of that as fits its memory.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from local.posts import Post

KEPT_SECONDS = 24 * 3600.0
KEPT_BYTES = 256 * 1024 * 1024


class Kept(NamedTuple):
    """A post that fell due at a moment; `fragment` is what its matching rules add to the line, None for no match."""

    at: float
    post: Post
    fragment: bytes | None


class Archive:
    """The past; `limit` is in bytes of lines."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._kept: deque[Kept] = deque()
        self._bytes = 0

    def keep(self, kept: Kept) -> None:
        """Add a post, which is newer than all that are there."""
        self._kept.append(kept)
        self._bytes += len(kept.post.line)
        while self._bytes > self._limit or self._kept[0].at < kept.at - KEPT_SECONDS:
            self._bytes -= len(self._kept.popleft().post.line)

    def between(self, start: float, end: float) -> Iterator[Kept]:
        """Yield the posts of a range of time, oldest first."""
        return (kept for kept in self._kept if start <= kept.at <= end)
