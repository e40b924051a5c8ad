"""
What comes from the source, on its way to the sender: lines become posts, posts go into the journal and on.

The journal is the queue. While there is room in memory a post goes into it and to the sender at once. When memory is
full, posts wait on disk only; `feed` reads them back in order, and until it has read the last one, newer posts go the
same way. What an earlier run has left is the oldest part of that backlog.

Without a journal there is memory only, and what does not fit is dropped.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from logging import DEBUG
from typing import Protocol

import structlog

from service.core.gaps import written_at
from service.core.limits import MIB
from service.core.posts import PostReader
from service.core.records import DropReason, Outcome, Post

# From disk to memory at once: some tenths of a second of posts, and little against the memory limit.
READ_BYTES = MIB
# A post that was dropped for one of these may come again, by backfill.
NO_ROOM = {
    DropReason.MEMORY_FULL: "MILLRACE_MEMORY_LIMIT is reached, and MILLRACE_JOURNAL is off",
    DropReason.JOURNAL_FULL: "MILLRACE_JOURNAL_LIMIT is reached: Kinesis takes less than comes",
    DropReason.DISK_FAILED: "the disk of MILLRACE_JOURNAL fails, and memory is full",
}

log = structlog.get_logger()


class Sender(Protocol):
    """Where posts go."""

    @property
    def has_room(self) -> bool:
        """Whether there is room in memory."""

    def offer(self, posts: list[Post]) -> None:
        """Take posts, whether or not there is room."""

    async def room(self) -> None:
        """Wait until there is room."""


class Journal(Protocol):
    """Where posts are kept until they are confirmed."""

    @property
    def backlog(self) -> int:
        """Posts that only the journal has."""

    def append(self, lines: Sequence[bytes], *, in_memory: bool) -> range | DropReason:
        """Take lines, or say why not."""

    async def read(self, limit: int) -> list[tuple[int, bytes]]:
        """Move the next posts of the backlog to memory."""


class Observer(Protocol):
    """What counts."""

    def received(self, posts: int, size: int) -> None:
        """Posts have come."""

    def rejected(self, line: bytes, reason: DropReason) -> None:
        """A line has come that is no post."""

    def lag(self, seconds: float, posts: int) -> None:
        """Posts have come that were written so long ago."""


class Intake:
    """
    See the module's text.

    Args:
        reader: what knows a post.
        sender: where posts go.
        journal: where they are kept; None for memory only.
        observer: what counts.
        on_outcomes: called with posts that end here, because there is no place for them.
        keep: called with each line that is no post, and the reason.
        on_posts: called with the posts of each chunk that came, if anybody wants to see them.
        sift: gives back, in order, those posts that go on; the others it has counted. None for all.
    """

    def __init__(
        self,
        reader: PostReader,
        sender: Sender,
        journal: Journal | None,
        *,
        observer: Observer,
        on_outcomes: Callable[[list[Outcome]], None],
        keep: Callable[[bytes, DropReason], None],
        on_posts: Callable[[list[Post]], None] | None = None,
        sift: Callable[[list[Post]], list[Post]] | None = None,
    ) -> None:
        self._reader = reader
        self._sender = sender
        self._journal = journal
        self._observer = observer
        self._on_outcomes = on_outcomes
        self._keep = keep
        self._on_posts = on_posts
        self._sift = sift
        self._waiting = asyncio.Event()
        self._fed = asyncio.Event()
        self._fed.set()
        if journal is not None and journal.backlog:
            self._note_backlog()

    def take(self, lines: list[bytes]) -> list[bytes]:
        """Take lines, in order; return those in which X says what is wrong. Never waits."""
        posts, rejected = self._reader.read(lines, asyncio.get_running_loop().time())
        for line, reason, _ in rejected:
            self.reject(line, reason)
        if posts:
            self._observer.received(len(posts), sum([len(post.line) for post in posts]))
            if (written := written_at(posts[-1].id)) is not None:
                self._observer.lag(time.time() - written, len(posts))
            if self._sift is not None:
                posts = self._sift(posts)
            if posts:
                if log.is_enabled_for(DEBUG):
                    log.debug("posts_read", posts=[post.id for post in posts])
                if self._on_posts is not None:
                    self._on_posts(posts)
                self._hand_on(posts)
        return [line for line, reason, _ in rejected if reason is DropReason.X_ERROR]

    def reject(self, line: bytes, reason: DropReason) -> None:
        """Count and keep a line that is no post."""
        self._observer.rejected(line, reason)
        self._keep(line, reason)
        log.warning("line_rejected", reason=reason.value, bytes=len(line))

    async def room(self) -> None:
        """Wait until what is taken goes to the sender at once; for sources that can be held back."""
        await self._fed.wait()
        await self._sender.room()

    async def feed(self) -> None:
        """Read back what waits on disk, whenever there is room. Runs until cancelled, or at once without a journal."""
        journal = self._journal
        while journal is not None:
            await self._waiting.wait()
            while journal.backlog:
                await self._sender.room()
                # Nothing may come between: what is appended now would overtake what was just read.
                self._take_back(await journal.read(READ_BYTES))
            self._waiting.clear()
            self._fed.set()

    def _hand_on(self, posts: list[Post]) -> None:
        journal = self._journal
        in_memory = self._sender.has_room
        taken: range | DropReason = DropReason.MEMORY_FULL
        if journal is not None:
            in_memory = in_memory and not journal.backlog
            taken = journal.append([post.line for post in posts], in_memory=in_memory)
        if in_memory:
            if isinstance(taken, range):
                for post, position in zip(posts, taken, strict=True):
                    post.position = position
            # A journal that takes nothing is no reason to lose what there is room for.
            self._sender.offer(posts)
        elif isinstance(taken, range):
            self._note_backlog()
        else:
            self._on_outcomes([Outcome(posts, taken, 0, message=NO_ROOM[taken])])

    def _take_back(self, rows: list[tuple[int, bytes]]) -> None:
        positions = [position for position, _ in rows]
        lines = [line for _, line in rows]
        posts, rejected = self._reader.read(lines, asyncio.get_running_loop().time(), positions)
        for line, reason, position in rejected:
            # It was a post when it came: PARTITION_KEY has been changed since.
            self._on_outcomes([Outcome([Post(line, "", b"", 0.0, position)], reason, 0)])
        # Also if memory has filled up meanwhile, as it can when a file that was being read is lost: nobody else has
        # them now.
        self._sender.offer(posts)

    def _note_backlog(self) -> None:
        self._fed.clear()
        self._waiting.set()
