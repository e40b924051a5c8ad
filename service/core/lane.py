"""
One lane: posts of one slice of a shard, first in, first out, with at most one Kinesis record under way.

Order, retry and backpressure are one rule: **the head of a lane stays until it has an outcome.** Nothing newer is
sent before it, and after an ambiguous failure it is sent again with the same bytes, so a repeat always stands next to
its first copy and never behind something newer.

The states and what moves them. A move that is not in the table is a bug and raises KeyError.

    state        event      becomes      meaning
    idle         sent       in flight    the head was taken from the batches, attempt counted
    in flight    accepted   idle         the head is stored: delivered
    in flight    retry      backing off  throttled, failed or unknown: ready again at `ready_at`
    in flight    final      idle         Kinesis will never take it: dropped, a dead letter
    in flight    astray     astray       stored, but on a shard that the map does not know for this lane
    backing off  sent       in flight    attempt counted
    astray       settled    idle         the new map says which posts lie outside that shard: those go again
"""

from collections import deque
from enum import Enum

from service.core.aggregator import Batch
from service.core.records import KinesisRecord, Post
from service.core.shard_map import Slice


class State(Enum):
    """What a lane's head is doing."""

    IDLE = "idle"
    IN_FLIGHT = "in flight"
    BACKING_OFF = "backing off"
    ASTRAY = "astray"


class Event(Enum):
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
        state: see the table above.
        head: the record that is under way or waits to be sent again; None when idle.
        batches: what waits behind it, oldest first; the last one is open.
        ready_at: when a head that backs off may go again, in seconds.
        failures: how often the head failed in a row.
        shard_id: the shard that stored the head astray.
        blockers: lanes of an older map with a record under way that overlaps this one; it waits for them.
        due_at: when it wants to be looked at next; infinity if an answer or a post must come first.
        last_sequence: the sequence number of the last stored record, for the check of order.
    """

    __slots__ = (
        "batches",
        "blockers",
        "due_at",
        "failures",
        "head",
        "last_sequence",
        "ready_at",
        "shard_id",
        "slice",
        "state",
    )

    def __init__(self, piece: Slice) -> None:
        self.slice = piece
        self.state = State.IDLE
        self.head: KinesisRecord | None = None
        self.batches: deque[Batch] = deque()
        self.ready_at = 0.0
        self.failures = 0
        self.shard_id = ""
        self.blockers: set[Lane] = set()
        self.due_at = float("inf")
        self.last_sequence = 0

    def __repr__(self) -> str:
        waiting = sum(len(batch.posts) for batch in self.batches)
        return f"<Lane {self.slice.name} {self.state.value}, {waiting} posts waiting, {self.failures} failures>"

    @property
    def is_busy(self) -> bool:
        """Whether any post is in it."""
        return self.head is not None or bool(self.batches)

    def move(self, event: Event) -> None:
        """Follow the table; an accepted or final head leaves the lane."""
        self.state = MOVES[self.state, event]
        if self.state is State.IDLE:
            self.head = None
            self.failures = 0

    def append(self, post: Post, now: float, limit: int) -> None:
        """Add a post behind all others; `limit` is the largest container in bytes."""
        if not self.batches or not self.batches[-1].add(post, limit):
            batch = Batch(now)
            batch.add(post, limit)
            self.batches.append(batch)

    def in_sequence(self, sequence_number: str) -> bool:
        """Whether Kinesis filed this record behind the one before it; remembers it for the next."""
        number = int(sequence_number)
        behind = number > self.last_sequence
        self.last_sequence = number
        return behind
