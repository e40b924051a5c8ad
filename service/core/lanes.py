"""
All lanes of a stream, and what resharding does to them.

With a new map, lanes of slices that are still there stay as they are; the waiting posts of the others are dealt out
anew. A lane of an older map with a record under way is retired: it takes nothing more, and the new lanes that it
overlaps wait for it. When it has its answer it is released, and what was not stored goes before anything newer.
"""

from collections.abc import Sequence
from typing import NamedTuple

from service.core.lane import NEVER, Lane, State
from service.core.pace import Pace
from service.core.records import Post
from service.core.shard_map import ShardMap, Slice


class ShardState(NamedTuple):
    """
    How one shard is, for metrics and the operator.

    Attributes:
        shard_id: its name; "any" for all of a stream that ignores keys.
        share: of the shard's limits, what may be used now: 0 to 1.
        posts: waiting to be confirmed.
        oldest_seconds: since when its oldest post waits; 0 if none does.
    """

    shard_id: str
    share: float
    posts: int
    oldest_seconds: float


class Lanes:
    """
    See the module's text.

    Attributes:
        open: the lanes of the newest map, in its order.
        retired: those of older maps that have a record under way.
        generation: the number of the newest map; 0 before the first.
    """

    def __init__(self) -> None:
        self.open: list[Lane] = []
        self.retired: set[Lane] = set()
        self.generation = 0
        self._map: ShardMap | None = None
        self._paces: dict[str, Pace] = {}

    @property
    def map(self) -> ShardMap:
        """Finds the place in `open` of a key's lane. Raises RuntimeError before the first `redraw`."""
        if self._map is None:
            raise RuntimeError("the shards are not known yet: on_shards() comes first")
        return self._map

    def inside(self) -> list[Lane]:
        """All that may hold posts; retired ones first, whose posts are the older."""
        return [*self.retired, *self.open]

    def states(self, now: float) -> list[ShardState]:
        """Tell how each shard is, in the order of their hash keys."""
        by_shard: dict[str, list[Lane]] = {}
        for lane in self.open:
            by_shard.setdefault(lane.slice.shard_id or "any", []).append(lane)
        states = []
        for shard_id, lanes in by_shard.items():
            firsts = [lane.head.posts[0] if lane.head else lane.posts[0] for lane in lanes if lane.is_busy]
            states.append(
                ShardState(
                    shard_id=shard_id,
                    share=min(lane.pace.share_at(now) for lane in lanes),
                    posts=sum(len(lane.posts) + (len(lane.head.posts) if lane.head else 0) for lane in lanes),
                    oldest_seconds=max((now - post.received_at for post in firsts), default=0.0),
                )
            )
        return states

    def redraw(self, pieces: Sequence[Slice], now: float) -> None:
        """Follow a new map of these slices. Raises ValueError if there are none."""
        self._map = ShardMap(pieces)
        self.generation += 1
        old = {lane.slice: lane for lane in self.open}
        names = dict.fromkeys(piece.shard_id or piece.name for piece in pieces)
        self._paces = {name: self._paces.get(name) or Pace(now) for name in names}
        self.open = [
            old.pop(piece) if piece in old else Lane(piece, self._paces[piece.shard_id or piece.name])
            for piece in pieces
        ]
        self.retired.update(old.values())
        for retired in self.retired:
            for lane in self._overlapping(retired):
                lane.blockers.add(retired)
        for lane in old.values():
            lane.due_at = NEVER
            self._deal_out(lane)
            if lane.state in {State.IDLE, State.BACKING_OFF}:
                self.release(lane)

    def _deal_out(self, lane: Lane) -> None:
        """Give the waiting posts of a retired lane to the open ones; what may be stored already stays known as such."""
        doubtful = lane.doubtful
        for number, post in enumerate(lane.take(len(lane.posts))):
            new = self.open[self.map.index(post.key)]
            new.posts.append(post)
            new.size += len(post.line)
            if number < doubtful:
                new.doubtful = len(new.posts)

    def release(self, lane: Lane) -> list[Lane]:
        """Let go of a retired lane that has nothing under way. Returns the lanes that waited for it."""
        self.retired.remove(lane)
        if lane.head is not None:
            self.put_in_front(lane.head.posts, doubtful=lane.head.perhaps_stored)
        waited = self._overlapping(lane)
        for new in waited:
            new.blockers.discard(lane)
        return waited

    def put_in_front(self, posts: Sequence[Post], *, doubtful: bool, astray: int = 0) -> None:
        """Queue posts before everything that waits in their lanes, in order; see `Lane.put_in_front`."""
        by_lane: dict[Lane, list[Post]] = {}
        for post in posts:
            by_lane.setdefault(self.open[self.map.index(post.key)], []).append(post)
        for lane, returned in by_lane.items():
            lane.put_in_front(returned, doubtful=doubtful, astray=astray)

    def _overlapping(self, lane: Lane) -> list[Lane]:
        return [self.open[place] for place in self.map.overlapping(lane.slice)]
