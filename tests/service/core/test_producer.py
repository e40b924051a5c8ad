"""
The producer against a small model of Kinesis that does everything Kinesis may do.

`Model` is the oracle: it routes by hash key, throttles, fails, loses answers after storing, and reshards. The state
machine drives a Producer through all of it in an order that hypothesis makes up, and checks after each step.
"""

from collections import defaultdict
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from processor import wire
from service.core.limits import HASH_KEYS, RECORDS_PER_REQUEST, REQUEST_BYTES
from service.core.producer import POST_OVERHEAD_BYTES, Producer
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
from service.core.shard_map import hash_key

THROTTLED = RecordResult(error_code="ProvisionedThroughputExceededException", error_message="slow down")
FAILED = RecordResult(error_code="InternalFailure", error_message="sorry")
NEVER = float("inf")


def shards(count: int, start: int = 0) -> list[Shard]:
    """Equal shards that cover all hash keys."""
    edges = [HASH_KEYS * number // count for number in range(count + 1)]
    return [Shard(f"shardId-{start + n:012d}", edges[n], edges[n + 1] - 1) for n in range(count)]


class Model:
    """Kinesis, as far as a producer can tell."""

    def __init__(self, open_shards: list[Shard]) -> None:
        self.open = open_shards
        self.ever = list(open_shards)
        self.stored: dict[str, list[bytes]] = defaultdict(list)
        self.sequence = 0
        self.made = len(open_shards)

    def store(self, record: KinesisRecord) -> RecordResult:
        at = int(record.explicit_hash_key) if record.explicit_hash_key else hash_key(record.partition_key.encode())
        shard = next(shard for shard in self.open if shard.first <= at <= shard.last)
        self.sequence += 1
        self.stored[shard.shard_id] += [post.data for post in wire.decode(record.data).records]
        return RecordResult(shard.shard_id, str(self.sequence))

    def _replace(self, old: list[Shard], ranges: list[tuple[int, int]]) -> None:
        for shard in old:
            self.open.remove(shard)
        for first, last in ranges:
            shard_id = f"shardId-{self.made:012d}"
            self.made += 1
            self.open.append(Shard(shard_id, first, last))
            self.ever.append(self.open[-1])
        self.open.sort(key=lambda shard: shard.first)

    def split(self, index: int) -> None:
        shard = self.open[index % len(self.open)]
        middle = (shard.first + shard.last) // 2
        self._replace([shard], [(shard.first, middle), (middle + 1, shard.last)])

    def merge(self, index: int) -> None:
        if len(self.open) > 1:
            left = index % (len(self.open) - 1)
            pair = self.open[left : left + 2]
            self._replace(pair, [(pair[0].first, pair[1].last)])

    def lines_of(self, key: bytes) -> list[bytes]:
        """
        The key's posts in the order in which a consumer reads them, repeats included.

        Only shards whose range holds the key count: consumers of the KPL format drop what lies elsewhere, and ours
        takes it for a repeat. Parents are read before their children, and a child's number is the higher one.
        """
        at = hash_key(key)
        return [
            line
            for shard in sorted(self.ever, key=lambda shard: shard.shard_id)
            if shard.first <= at <= shard.last
            for line in self.stored[shard.shard_id]
            if line.split(b"|")[0] == key
        ]


class ProducerMachine(RuleBasedStateMachine):
    """Anything that can happen, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.offered: dict[bytes, list[bytes]] = defaultdict(list)
        self.ended: dict[bytes, int] = defaultdict(int)
        self.dropped: set[bytes] = set()
        self.pending: list[PutRequest] = []
        self.count = 0

    @initialize(
        count=st.integers(1, 4),
        aggregate=st.booleans(),
        lanes=st.integers(1, 3),
        linger=st.sampled_from([0.0, 0.1, 1.0]),
        seed=st.integers(0, 99),
    )
    def begin(self, count: int, aggregate: bool, lanes: int, linger: float, seed: int) -> None:
        self.model = Model(shards(count))
        self.producer = Producer(
            aggregate=aggregate, lanes_per_shard=lanes, linger=linger, memory_limit=1 << 20, rng=Random(seed)
        )
        self.producer.on_shards(self.model.open, self.now)

    def take(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            for post in outcome.posts:
                self.ended[post.line] += 1
                if outcome.reason is not None:
                    self.dropped.add(post.line)

    @precondition(lambda self: self.producer.has_room)
    @rule(keys=st.lists(st.integers(0, 5), max_size=20), size=st.sampled_from([10, 300, 30_000, 120_000]))
    def offer(self, keys: list[int], size: int) -> None:
        posts = []
        for key in keys:
            self.count += 1
            name = f"author-{key}".encode()
            line = name + f"|{self.count}|".encode() + b"x" * size
            self.offered[name].append(line)
            posts.append(Post(line, str(self.count), name, self.now))
        self.take(self.producer.offer(posts, self.now))

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.05, 0.5, 6.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait_for_the_deadline(self) -> None:
        deadline = self.producer.next_deadline()
        if deadline < NEVER:
            self.now = max(self.now, deadline)

    @rule()
    def send(self) -> None:
        requests = self.producer.requests(self.now)
        for request in requests:
            assert 1 <= len(request.records) <= RECORDS_PER_REQUEST
            assert sum(record.size for record in request.records) <= REQUEST_BYTES
            lanes = [(record.partition_key, record.explicit_hash_key) for record in request.records]
            if request.records[0].explicit_hash_key:
                assert len(set(lanes)) == len(lanes), "two records of one lane in one request"
        self.pending += requests

    def _answer(self, data: st.DataObject) -> PutRequest:
        return self.pending.pop(data.draw(st.integers(0, len(self.pending) - 1), label="which request"))

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), verdicts=st.lists(st.sampled_from("sssstfl"), min_size=1, max_size=8))
    def answer(self, data: st.DataObject, verdicts: list[str]) -> None:
        request = self._answer(data)
        results = []
        for number, record in enumerate(request.records):
            match verdicts[number % len(verdicts)]:
                case "s":
                    results.append(self.model.store(record))
                case "t":
                    results.append(THROTTLED)
                case "f":
                    results.append(FAILED)
                case "l":  # stored, and the answer says it failed
                    self.model.store(record)
                    results.append(FAILED)
        self.take(self.producer.on_response(request, results, self.now))

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), kind=st.sampled_from(FailureKind), stored=st.booleans())
    def fail(self, data: st.DataObject, kind: FailureKind, stored: bool) -> None:
        request = self._answer(data)
        if kind is FailureKind.UNKNOWN and stored:
            for record in request.records:
                self.model.store(record)
        self.take(self.producer.on_failure(request, RequestFailure(kind, "Code", "why"), self.now))

    @rule(index=st.integers(0, 9))
    def split(self, index: int) -> None:
        if len(self.model.open) < 8:
            self.model.split(index)

    @rule(index=st.integers(0, 9))
    def merge(self, index: int) -> None:
        self.model.merge(index)

    @precondition(lambda self: self.producer.wants_shards)
    @rule()
    def refresh(self) -> None:
        self.take(self.producer.on_shards(list(self.model.open), self.now))

    @rule()
    def refresh_unasked(self) -> None:
        self.take(self.producer.on_shards(list(self.model.open), self.now))

    @invariant()
    def every_post_is_inside_or_ended(self) -> None:
        if self.count:
            inside = self.producer.statistics().posts
            assert self.count == inside + sum(self.ended.values())
            assert set(self.ended.values()) <= {1}

    @invariant()
    def memory_is_bounded(self) -> None:
        if self.count:
            # One chunk may pass the limit: the caller asks has_room before each.
            assert self.producer.statistics().bytes <= (1 << 20) + 20 * (130_000 + POST_OVERHEAD_BYTES)

    def teardown(self) -> None:
        """In the end Kinesis is well again: all must arrive, in order."""
        if not hasattr(self, "producer"):
            return
        self.producer.close()
        for _ in range(100_000):
            if self.producer.is_drained:
                break
            self.send()
            while self.pending:
                request = self.pending.pop(0)
                results = [self.model.store(record) for record in request.records]
                self.take(self.producer.on_response(request, results, self.now))
            if self.producer.wants_shards:
                self.take(self.producer.on_shards(list(self.model.open), self.now))
            deadline = self.producer.next_deadline()
            self.now = max(self.now, deadline) if deadline < NEVER else self.now
        self.every_post_is_inside_or_ended()
        assert self.producer.is_drained
        assert self.producer.next_deadline() == NEVER, "drained means no deadline"
        for key, lines in self.offered.items():
            wanted = [line for line in lines if line not in self.dropped]
            first = dict.fromkeys(line for line in self.model.lines_of(key) if line not in self.dropped)
            assert list(first) == wanted, "lost or out of order"


TestProducerMachine = ProducerMachine.TestCase
TestProducerMachine.settings = settings(
    max_examples=10,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
