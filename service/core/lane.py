"""
One lane: posts of one slice of a shard, first in, first out, with at most one Kinesis record under way.

Order, retry and backpressure are one rule: **the head of a lane stays until it has an outcome.** Nothing newer is
sent before it, and after an ambiguous failure it is sent again with the same bytes, so a repeat always stands next to
its first copy and never behind something newer.

The states and what moves them. A move that is not in the table is a bug and raises KeyError.

    state        event      becomes      meaning
    idle         sent       in flight    the head was made of waiting posts, attempt counted
    in flight    accepted   idle         the head is stored: delivered
    in flight    retry      backing off  throttled, failed or unknown: ready again at `ready_at`
    in flight    final      idle         Kinesis will never take it: dropped, a dead letter
    in flight    astray     astray       stored, but on a shard that the map does not know for this lane
    backing off  sent       in flight    attempt counted
    astray       settled    idle         the new map says which posts lie outside that shard: those go again
"""

from collections import deque
from collections.abc import Sequence
from enum import Enum

from service.core.pace import Pace
from service.core.records import KinesisRecord, Post
from service.core.shard_map import Slice

# A time, in seconds, that does not come.
NEVER = float("inf")


class _Name(Enum):
    # Enum hashes a member's name, in Python code, at each look into the table below; its members are single anyway.
    __hash__ = object.__hash__


class State(_Name):
    """What a lane's head is doing."""

    IDLE = "idle"
    IN_FLIGHT = "in flight"
    BACKING_OFF = "backing off"
    ASTRAY = "astray"


class Event(_Name):
    """What can happen to it."""

    SENT = "sent"
    ACCEPTED = "accepted"
    RETRY = "retry"
    FINAL = "final"
    ASTRAY = "astray"
    SETTLED = "settled"


MOVES = {
    (State.IDLE, Event.SENT): State.IN_FLIGHT,
    (State.IN_FLIGHT, Event.ACCEPTED): State.IDLE,
    (State.IN_FLIGHT, Event.RETRY): State.BACKING_OFF,
    (State.IN_FLIGHT, Event.FINAL): State.IDLE,
    (State.IN_FLIGHT, Event.ASTRAY): State.ASTRAY,
    (State.BACKING_OFF, Event.SENT): State.IN_FLIGHT,
    (State.ASTRAY, Event.SETTLED): State.IDLE,
}


class Lane:
    """
    The queue of one slice.

    Attributes:
        slice: its name, shard and range of hash keys.
        pace: of its shard; lanes of one shard share it.
        state: see the table above.
        head: the record that is under way or waits to be sent again; None when idle.
        posts: what waits behind it, oldest first.
        size: bytes of their lines.
        looks_at: the size from which another post makes it worth a look when to send.
        doubtful: how many of the first posts may be stored already; they make records of their own.
        astray: how often those were stored outside the range of their shard.
        ready_at: when a head that backs off may go again, in seconds.
        failures: how often the head failed in a row.
        shard_id: the shard that stored the head astray.
        blockers: lanes of an older map with a record under way that overlaps this one; it waits for them.
        due_at: when it wants to be looked at next; infinity if an answer or a post must come first.
        last_sequence: the sequence number of the last stored record, for the check of order.
    """

    __slots__ = (
        "astray",
        "blockers",
        "doubtful",
        "due_at",
        "failures",
        "head",
        "last_sequence",
        "looks_at",
        "pace",
        "posts",
        "ready_at",
        "shard_id",
        "size",
        "slice",
        "state",
    )

    def __init__(self, piece: Slice, pace: Pace) -> None:
        self.slice = piece
        self.pace = pace
        self.state = State.IDLE
        self.head: KinesisRecord | None = None
        self.posts: deque[Post] = deque()
        self.size = 0
        self.looks_at: float = 0
        self.doubtful = 0
        self.astray = 0
        self.ready_at = 0.0
        self.failures = 0
        self.shard_id = ""
        self.blockers: set[Lane] = set()
        self.due_at = NEVER
        self.last_sequence = 0

    def __repr__(self) -> str:
        return f"<Lane {self.slice.name} {self.state.value}, {len(self.posts)} posts waiting, {self.failures} failures>"

    @property
    def is_busy(self) -> bool:
        """Whether any post is in it."""
        return self.head is not None or bool(self.posts)

    def move(self, event: Event) -> None:
        """Follow the table; an accepted or final head leaves the lane."""
        self.state = MOVES[self.state, event]
        if self.state is State.IDLE:
            self.head = None
            self.failures = 0

    def put_in_front(self, posts: Sequence[Post], *, doubtful: bool, astray: int) -> None:
        """Queue posts before all others; see the attributes for the rest."""
        self.posts.extendleft(reversed(posts))
        self.size += sum([len(post.line) for post in posts])
        # What is surely not stored, but stands before what may be, is counted with it: that is the careful side.
        if doubtful or self.doubtful:
            self.astray = max(astray, self.astray if self.doubtful else 0)
            self.doubtful += len(posts)

    def take(self, count: int) -> list[Post]:
        """Take the first posts out of the queue."""
        waiting = self.posts
        if count == 1:
            posts = [waiting.popleft()]
            self.size -= len(posts[0].line)
        elif count == len(waiting):
            posts = list(waiting)
            waiting.clear()
            self.size = 0
        else:
            posts = [waiting.popleft() for _ in range(count)]
            self.size -= sum([len(post.line) for post in posts])
        if self.doubtful:
            self.doubtful = max(0, self.doubtful - count)
        return posts

    def in_sequence(self, sequence_number: str) -> bool:
        """Whether Kinesis filed this record behind the one before it; remembers it for the next."""
        number = int(sequence_number)
        behind = number > self.last_sequence
        self.last_sequence = number
        return behind
