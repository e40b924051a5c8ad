"""
The one class that the shell drives: posts in, requests out, answers in, outcomes out.

It follows the manner of h11 and aioquic: no clock, no network, no waiting. The caller says what happened and when
(`now`, in seconds of any clock that only runs forward), and asks what is to be sent and when to ask again:

    offer(posts)  ──>  ┌──────────┐  ──>  requests(now)       send them
    on_response   ──>  │ Producer │  ──>  next_deadline()     ask again then
    on_failure    ──>  │          │  ──>  outcomes            of on_response, on_failure and on_shards
    on_shards     ──>  └──────────┘  ──>  wants_shards        list the shards and tell

What it promises, whatever comes:

* Every post that was taken has exactly one outcome, or is still inside (`statistics().posts`).
* Posts of one key are first stored in the order in which they were offered.
* No request breaks a limit of Kinesis, and no shard is asked for more than its pace.

**Outage.** While nothing is answered (see `in_flight.py`) all lanes wait together. No lane makes a record meanwhile:
what waits stays a queue of posts.

**Resharding.** A record that is stored on an unexpected shard says that the map is old. Its lane stops and the caller
is asked for the shards; all others go on. What the new map does to the lanes is in `lanes.py`. Of a record that was
stored astray, only the posts outside that shard's range are sent again, before anything newer: consumers of the KPL
format drop them there.
"""

from collections.abc import Iterable, Sequence
from random import Random
from typing import NamedTuple

from service.core.agenda import Agenda
from service.core.aggregator import COMPRESSED_GROWTH, LARGEST_BYTES, TARGET_BYTES, pack, whole_units
from service.core.backoff import Trouble, delay
from service.core.in_flight import InFlight
from service.core.lane import NEVER, Event, Lane, State
from service.core.lanes import Lanes, ShardState
from service.core.limits import DEFAULT_RECORD_BYTES, PARTITION_KEY_BYTES, RECORDS_PER_REQUEST, REQUEST_BYTES
from service.core.records import (
    DropReason,
    FailureKind,
    KinesisRecord,
    Outcome,
    Post,
    PutRequest,
    RecordResult,
    RequestFailure,
    SealReason,
    Shard,
)
from service.core.shard_map import NAME_BYTES, hash_key, slices, slices_without_shards

# What a post costs beside its line: the objects that hold it, as measured with tracemalloc on CPython 3.11.
POST_OVERHEAD_BYTES = 400
# The parts of the memory limit that posts may take, and requests under way: 7 MiB of the default, 140 MiB/s at a round
# trip of 50 ms. The rest is for what comes and goes, such as the text of a request while it is made, and for what the
# allocator cannot give back: with less, an outage ends above the limit (`python -m bench --only outage`).
POSTS_PART, REQUESTS_PART = 1 / 4, 1 / 8
# What a request holds, as a multiple of its records: their data, kept to be sent again, and its body in base64.
REQUEST_COPIES = 7 / 3
# After an outage all lanes come back within this time, in seconds.
RETURN_SECONDS = 0.5
# Lanes that became due within this part of the linger go together in one request.
LINGER_STEPS = 5
# Posts that go one by one wait for company for this part of the linger while a request is under way, unless so many are
# due: the fixed part of a request would be most of what they cost. With a longer wait busy lanes fall behind.
COMPANY_PART = 1 / 20
COMPANY_RECORDS = RECORDS_PER_REQUEST // 2
# A record that strays again and again under one map is on a stream that does not follow keys: it counts as delivered.
STRAYS_AT_MOST = 2

_THROTTLES = frozenset({"ProvisionedThroughputExceededException", "KMSThrottlingException"})


class Statistics(NamedTuple):
    """The state of the whole, for metrics and the operator."""

    posts: int
    bytes: int
    lanes: int
    lanes_in_flight: int
    lanes_backing_off: int
    requests_in_flight: int
    window: int


class Producer:
    """
    See the module's text.

    Args:
        aggregate: pack posts into containers (KPL format); otherwise each post is a record.
        lanes_per_shard: 1 or more; as many as the Lambda mapping's ParallelizationFactor.
        linger: how long a batch waits for company, in seconds.
        memory_limit: bytes that posts and the requests that carry them may take.
        compress: compress containers.
        rng: for the jitter of the delays.

    Attributes:
        wants_shards: the caller is to list the shards and call `on_shards`.
        order_violations: records that Kinesis filed before an older one of their lane; never seen, always watched.
    """

    def __init__(
        self,
        *,
        aggregate: bool,
        lanes_per_shard: int,
        linger: float,
        memory_limit: int,
        compress: bool,
        rng: Random,
    ) -> None:
        self._wants_aggregates = aggregate
        self._aggregate = aggregate
        self._lanes_per_shard = lanes_per_shard
        self._linger = linger
        self._most_bytes = memory_limit * POSTS_PART
        self._in_flight = InFlight(memory_limit * REQUESTS_PART / REQUEST_COPIES, rng)
        self._compress = compress
        self._growth = COMPRESSED_GROWTH if compress else 1
        self.rng = rng
        self._record_limit = DEFAULT_RECORD_BYTES
        self._ignores_keys = False
        self._shards: tuple[Shard, ...] = ()
        self._lanes = Lanes()
        self._agenda = Agenda()
        self._posts = 0
        self._bytes = 0
        self._closing = False
        self.order_violations = 0
        self._throttled: list[str] = []
        self.wants_shards = True

    # What the caller may ask

    @property
    def has_room(self) -> bool:
        """Whether `offer` may be called: posts have not reached their part of the memory limit."""
        return self._bytes < self._most_bytes

    @property
    def is_drained(self) -> bool:
        """Whether no post is inside."""
        return self._posts == 0

    def statistics(self) -> Statistics:
        """Count what is inside."""
        lanes = self._lanes.inside()
        return Statistics(
            posts=self._posts,
            bytes=self._bytes,
            lanes=len(self._lanes.open),
            lanes_in_flight=sum(lane.state is State.IN_FLIGHT for lane in lanes),
            lanes_backing_off=sum(lane.state is State.BACKING_OFF for lane in lanes),
            requests_in_flight=len(self._in_flight),
            window=self._in_flight.window,
        )

    def shards(self, now: float) -> list[ShardState]:
        """Tell how each shard is, in the order of their hash keys."""
        return self._lanes.states(now)

    def take_throttled(self) -> list[str]:
        """Name the shards of the records that were throttled since the last call, one entry a record."""
        taken, self._throttled = self._throttled, []
        return taken

    def next_deadline(self) -> float:
        """When to call `requests` again; infinity if something else must happen first."""
        return self._due_at() if self._in_flight.has_room() else NEVER

    # What the caller tells

    def offer(self, posts: Iterable[Post], now: float) -> list[Outcome]:
        """
        Take posts, in order. Returns outcomes only for those that can never be sent: too large for the stream.

        Raises RuntimeError before the first `on_shards`.
        """
        too_large = []
        lanes, known, index = self._lanes.open, self._lanes.map.known, self._lanes.map.index
        room = self._record_limit - PARTITION_KEY_BYTES
        count = size = 0
        for post in posts:
            length = len(post.line)
            if length > room and length + max(len(post.key), NAME_BYTES) > self._record_limit:
                too_large.append(Outcome([post], DropReason.POST_TOO_LARGE, 0))
                continue
            place = known.get(post.key)
            lane = lanes[index(post.key) if place is None else place]
            lane.posts.append(post)
            lane.size += length
            # When the first post comes, and again when there is enough: not once a post.
            if lane.size >= lane.looks_at:
                self._plan(lane, now)
            count += 1
            size += length
        self._posts += count
        self._bytes += size + count * POST_OVERHEAD_BYTES
        return too_large

    def on_shards(
        self,
        shards: Sequence[Shard],
        now: float,
        *,
        record_limit: int = DEFAULT_RECORD_BYTES,
        ignores_keys: bool = False,
    ) -> list[Outcome]:
        """
        Follow the open shards of the stream.

        Args:
            shards: all open shards.
            now: the time.
            record_limit: the largest record that the stream takes, in bytes.
            ignores_keys: the stream spreads records by itself: posts go one by one, and order is its own.

        Returns: outcomes of records that waited for the map.
        """
        self.wants_shards = False
        self._record_limit = record_limit
        changed = ignores_keys != self._ignores_keys or set(shards) != set(self._shards)
        if changed or not self._lanes.open:
            self._ignores_keys = ignores_keys
            self._shards = tuple(shards)
            self._redraw(now)
        outcomes = []
        for lane in self._lanes.inside():
            if lane.state is State.ASTRAY:
                outcomes += self._settle(lane, now)
        return outcomes

    def on_response(self, request: PutRequest, results: Sequence[RecordResult], now: float) -> list[Outcome]:
        """
        Take Kinesis' answer: one result for each record of the request, in the same order.

        Returns: the outcomes of this moment.
        """
        if self._in_flight.note_answer():
            self._return(now)
        outcomes: list[Outcome] = []
        for lane, record, result in zip(self._in_flight.end(request), request.records, results, strict=True):
            if result.sequence_number is not None:
                outcomes += self._stored(lane, record, result.shard_id or "", result.sequence_number, now)
                continue
            code = result.error_code or "no answer"
            if code in _THROTTLES:
                lane.pace.throttled(now)
                self._throttled.append(lane.slice.shard_id or "any")
                self._retry(lane, Trouble.THROTTLED, now)
            else:
                record.perhaps_stored = True
                self._retry(lane, Trouble.UNAVAILABLE, now)
        return outcomes

    def on_failure(self, request: PutRequest, failure: RequestFailure, now: float) -> list[Outcome]:
        """Take the news that a whole request failed. Returns: the outcomes of this moment."""
        if failure.kind is not FailureKind.REFUSED:
            self._in_flight.note_silence(failure.kind, now)
        outcomes = []
        for lane, record in zip(self._in_flight.end(request), request.records, strict=True):
            match failure.kind:
                case FailureKind.NOT_STORED:
                    self._retry(lane, Trouble.UNAVAILABLE, now)
                case FailureKind.UNKNOWN:
                    record.perhaps_stored = True
                    self._retry(lane, Trouble.UNAVAILABLE, now)
                case FailureKind.DENIED:
                    self._retry(lane, Trouble.DENIED, now)
                case FailureKind.REFUSED if len(request.records) > 1:
                    record.alone = True
                    self._retry(lane, Trouble.THROTTLED, now)
                case _:
                    lane.move(Event.FINAL)
                    message = f"{failure.code}: {failure.message}"
                    outcomes.append(self._end(record.posts, record, DropReason.REFUSED, message))
                    self._after_head(lane, now)
        return outcomes

    def close(self) -> None:
        """No more posts will come: send what is inside without lingering."""
        self._closing = True
        for lane in self._lanes.open:
            if lane.posts and lane.state is State.IDLE:
                self._agenda.add(lane, -NEVER)

    def abandon(self) -> list[Post]:
        """Give up all that is inside, and say which posts those are. Answers that still come must not be told."""
        left: list[Post] = []
        for lane in self._lanes.inside():
            left += lane.head.posts if lane.head else ()
            left += lane.posts
        self._posts = self._bytes = 0
        return left

    # What is to be sent

    def requests(self, now: float) -> list[PutRequest]:
        """Return the requests to send now: the heads of all lanes that may send, within every limit."""
        in_flight = self._in_flight
        if now < self._due_at():
            return []
        most = in_flight.records_at_most
        requests: list[PutRequest] = []
        records: list[KinesisRecord] = []
        lanes: list[Lane] = []
        size = 0
        while in_flight.has_room(size):
            lane = self._agenda.take(now)
            if lane is None:
                break
            record = self._head(lane, now)
            if record is None:
                continue
            full = len(records) == most or size + record.size > REQUEST_BYTES
            if records and (full or record.alone or records[0].alone):
                requests.append(in_flight.start(records, lanes, size))
                records, lanes, size = [], [], 0
                if not in_flight.has_room():
                    self._agenda.add(lane, now)
                    break
            record.attempts += 1
            lane.move(Event.SENT)
            lane.looks_at = NEVER
            lane.pace.take(record.size, now)
            records.append(record)
            lanes.append(lane)
            size += record.size
        if records:
            requests.append(in_flight.start(records, lanes, size))
        return requests

    def _due_at(self) -> float:
        """When the next lane may send, if nothing else happens; infinity if none wants to."""
        return max(self._agenda.next() + self._company(), self._in_flight.silent_until)

    def _company(self) -> float:
        """How long a lane that is due waits for others that go with it, in seconds."""
        if self._aggregate or self._closing or not self._in_flight:
            return 0.0
        # Lanes that wait for something else are counted too: then what is due only goes sooner.
        return self._linger * COMPANY_PART if len(self._agenda) < COMPANY_RECORDS else 0.0

    def _head(self, lane: Lane, now: float) -> KinesisRecord | None:
        """Give the record that the lane may send now; None, and a later look, if it may not."""
        if lane.blockers:
            return None
        ready_at = lane.pace.ready_at(now)
        if ready_at > now:
            self._agenda.add(lane, ready_at)
            return None
        if lane.head is not None:
            return lane.head
        if self._aggregate:
            lane.head = self._container(lane, now)
        else:
            post = lane.posts[0]
            lane.head = self._record(lane, 1, post.key.decode(), "", post.line, SealReason.SINGLE)
        return lane.head

    def _container(self, lane: Lane, now: float) -> KinesisRecord:
        """Pack the posts that wait: all, if they have lingered, otherwise as many as fill whole payload units."""
        lingered = self._closing or lane.doubtful or self._lingers_until(lane) <= now
        limit = LARGEST_BYTES * self._growth if lingered else whole_units(lane.size, self._growth)
        count, data = pack(lane.posts, limit, lane.doubtful or None, compressed=self._compress)
        if count < len(lane.posts) or lane.size >= self._target:
            reason = SealReason.SIZE
        else:
            reason = SealReason.DRAIN if self._closing else SealReason.LINGER
        return self._record(lane, count, lane.slice.name, str(lane.slice.first), data, reason)

    def _record(
        self, lane: Lane, count: int, partition_key: str, explicit_hash_key: str, data: bytes, reason: SealReason
    ) -> KinesisRecord:
        """Take the first posts of a lane as the record that holds them."""
        perhaps_stored, astray = lane.doubtful > 0, lane.astray if lane.doubtful else 0
        posts = lane.take(count)
        return KinesisRecord(
            partition_key,
            explicit_hash_key,
            data,
            posts,
            reason,
            generation=self._lanes.generation,
            perhaps_stored=perhaps_stored,
            astray=astray,
        )

    # When a lane is to be looked at

    def _plan(self, lane: Lane, now: float) -> None:
        """Set when an idle lane with posts sends: at once if there is a reason, else when the linger is over."""
        if lane.state is not State.IDLE or lane.blockers:
            return
        if not lane.posts:
            lane.looks_at = 0
            return
        if lane.size >= self._target or lane.doubtful or self._closing:
            lane.looks_at = NEVER
            when = now
        else:
            lane.looks_at = self._target
            when = max(now, self._lingers_until(lane))
        if when < lane.due_at:
            self._agenda.add(lane, when)

    def _lingers_until(self, lane: Lane) -> float:
        """Rounded down to a step, so that lanes of many shards share a request instead of sending one each."""
        over = lane.posts[0].received_at + self._linger
        step = self._linger / LINGER_STEPS
        return over // step * step if step else over

    # What an answer means

    def _stored(
        self, lane: Lane, record: KinesisRecord, shard_id: str, sequence_number: str, now: float
    ) -> list[Outcome]:
        expected = self._ignores_keys or shard_id == lane.slice.shard_id
        fresh = record.generation == self._lanes.generation
        if not expected and (record.astray < STRAYS_AT_MOST or not fresh):
            lane.move(Event.ASTRAY)
            lane.shard_id = shard_id
            if any(shard.shard_id == shard_id for shard in self._shards):
                return self._settle(lane, now)
            self.wants_shards = True
            return []
        if expected and not self._ignores_keys and not lane.in_sequence(sequence_number):
            self.order_violations += 1
        lane.move(Event.ACCEPTED)
        outcome = self._end(record.posts, record)
        self._after_head(lane, now)
        return [outcome]

    def _settle(self, lane: Lane, now: float) -> list[Outcome]:
        """Decide about a record that was stored astray: its posts inside that shard's range are delivered."""
        record = lane.head
        assert record is not None
        at = next((shard for shard in self._shards if shard.shard_id == lane.shard_id), None)
        inside: list[Post] = []
        outside: list[Post] = []
        for post in record.posts:
            fits = at is not None and at.first <= hash_key(post.key) <= at.last
            (inside if fits else outside).append(post)
        lane.move(Event.SETTLED)
        strays = record.astray + 1 if record.generation == self._lanes.generation else 0
        self._lanes.put_in_front(outside, doubtful=True, astray=strays)
        self._after_head(lane, now)
        return [self._end(inside, record)] if inside else []

    def _retry(self, lane: Lane, trouble: Trouble, now: float) -> None:
        lane.move(Event.RETRY)
        lane.failures += 1
        if lane in self._lanes.retired:
            self._after_head(lane, now)
            return
        lane.ready_at = now + delay(trouble, lane.failures, self.rng)
        self._agenda.add(lane, lane.ready_at)

    def _after_head(self, lane: Lane, now: float) -> None:
        """Plan what follows: the lane's next record, or the lanes that waited for an older one."""
        for waiting in self._lanes.release(lane) if lane in self._lanes.retired else (lane,):
            self._plan(waiting, now)

    def _end(
        self, posts: Sequence[Post], record: KinesisRecord, reason: DropReason | None = None, message: str = ""
    ) -> Outcome:
        self._posts -= len(posts)
        self._bytes -= sum([len(post.line) for post in posts]) + len(posts) * POST_OVERHEAD_BYTES
        return Outcome(posts, reason, record.attempts, record.perhaps_stored, message)

    def _redraw(self, now: float) -> None:
        """Cut the shards into lanes anew."""
        self._aggregate = self._wants_aggregates and not self._ignores_keys
        self._target = TARGET_BYTES * self._growth if self._aggregate else 0
        if self._ignores_keys:
            pieces = slices_without_shards()
        else:
            # Without aggregation a lane carries one post at a time: then as many lanes as fill a request.
            enough = -(-RECORDS_PER_REQUEST // len(self._shards)) if self._shards and not self._aggregate else 1
            pieces = slices(self._shards, max(self._lanes_per_shard, enough))
        self._lanes.redraw(pieces, now)
        for lane in self._lanes.open:
            self._plan(lane, now)

    def _return(self, now: float) -> None:
        """Kinesis is back. Who still waits for it, for seconds perhaps, need not."""
        for lane in self._lanes.open:
            if lane.state is State.BACKING_OFF and lane.ready_at > now + RETURN_SECONDS:
                lane.ready_at = now + self.rng.uniform(0, RETURN_SECONDS)
                self._agenda.add(lane, lane.ready_at)
