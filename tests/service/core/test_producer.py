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
from service.core.aggregator import COMPRESSED_GROWTH, LARGEST_BYTES, TARGET_BYTES
from service.core.lane import NEVER, Lane
from service.core.limits import (
    DEFAULT_RECORD_BYTES,
    HASH_KEYS,
    LARGEST_RECORD_BYTES,
    MIB,
    PAYLOAD_UNIT_BYTES,
    RECORDS_PER_REQUEST,
    REQUEST_BYTES,
)
from service.core.producer import POST_OVERHEAD_BYTES, Producer, Statistics
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
from service.core.shard_map import NAME_BYTES, hash_key
from tests.service.chance import Longest

THROTTLED = RecordResult(error_code="ProvisionedThroughputExceededException")
FAILED = RecordResult(error_code="InternalFailure")


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

    aggregate = True
    compress = False

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
        lanes=st.integers(1, 3),
        linger=st.sampled_from([0.0, 0.1, 1.0]),
        seed=st.integers(0, 99),
    )
    def begin(self, count: int, lanes: int, linger: float, seed: int) -> None:
        self.model = Model(shards(count))
        self.producer = Producer(
            aggregate=self.aggregate,
            lanes_per_shard=lanes,
            linger=linger,
            memory_limit=1 << 20,
            compress=self.compress,
            rng=Random(seed),
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


class RawProducerMachine(ProducerMachine):
    """The same with aggregation off: every post is a record, and there are hundreds of lanes."""

    aggregate = False


class CompressedProducerMachine(ProducerMachine):
    """The same with compressed containers."""

    compress = True


UNHURRIED = settings(
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestProducerMachine = ProducerMachine.TestCase
TestProducerMachine.settings = settings(UNHURRIED, max_examples=35)
TestRawProducerMachine = RawProducerMachine.TestCase
TestRawProducerMachine.settings = settings(UNHURRIED, max_examples=3)
TestCompressedProducerMachine = CompressedProducerMachine.TestCase
TestCompressedProducerMachine.settings = settings(UNHURRIED, max_examples=10)


# Examples, one promise each

STRAY = "shardId-000000000099"
DENIED = RequestFailure(FailureKind.DENIED, "AccessDeniedException", "may not")
UNKNOWN = RequestFailure(FailureKind.UNKNOWN, "TimeoutError", "no answer")
NOT_STORED = RequestFailure(FailureKind.NOT_STORED, "ConnectionRefusedError", "nobody listens")
REFUSED = RequestFailure(FailureKind.REFUSED, "ValidationException", "not valid")


def key(part: int, parts: int) -> bytes:
    """Find a key in this one of so many equal parts of all hash keys; the first part is 0."""
    return next(name for n in range(1000) if hash_key(name := b"author-%d" % n) * parts // HASH_KEYS == part)


class Rig:
    """A producer with its model of Kinesis, for tests that say what happens step by step."""

    def __init__(
        self,
        count: int = 1,
        *,
        aggregate: bool = True,
        lanes: int = 1,
        linger: float = 0.1,
        memory: int = 1 << 30,
        compress: bool = False,
        rng: Random | None = None,
    ) -> None:
        self.model = Model(shards(count))
        self.producer = Producer(
            aggregate=aggregate,
            lanes_per_shard=lanes,
            linger=linger,
            memory_limit=memory,
            compress=compress,
            rng=rng or Longest(),
        )
        self.producer.on_shards(self.model.open, 0.0)
        self.count = 0

    def post(self, key: bytes = b"author-0", size: int = 100, now: float = 0.0) -> Post:
        """Make the next post, received now; its line has this size."""
        self.count += 1
        return Post((key + b"|%d|" % self.count).ljust(size, b"x"), str(self.count), key, now)

    def answer(self, request: PutRequest, now: float) -> list[Outcome]:
        """Store a request and tell the producer."""
        return self.producer.on_response(request, [self.model.store(record) for record in request.records], now)

    def refresh(self, now: float) -> list[Outcome]:
        """Tell the producer the open shards."""
        return self.producer.on_shards(list(self.model.open), now)

    def only_request(self, now: float) -> PutRequest:
        """Take the requests of this moment, which must be one."""
        (request,) = self.producer.requests(now)
        return request

    def only_record(self, now: float) -> KinesisRecord:
        """Take the requests of this moment, which must be one of one record."""
        (record,) = self.only_request(now).records
        return record


def lines(outcomes: Sequence[Outcome], reason: DropReason | None = None) -> list[bytes]:
    """Give the lines of the posts that ended this way."""
    return [post.line for outcome in outcomes if outcome.reason is reason for post in outcome.posts]


class TestWhenABatchIsSent:
    def test_a_small_batch_waits_for_company(self) -> None:
        """Posts that come within the linger go together, when it is over."""
        rig = Rig(linger=1.0)
        first, second = rig.post(now=0.1), rig.post(now=0.7)
        rig.producer.offer([first], 0.1)
        assert rig.producer.requests(0.1) == []
        rig.producer.offer([second], 0.7)
        deadline = rig.producer.next_deadline()
        assert 0.9 <= deadline <= 1.1
        assert rig.producer.requests(deadline - 0.01) == []
        record = rig.only_record(deadline)
        assert [first, second] == record.posts
        assert SealReason.LINGER is record.sealed
        assert [first.line, second.line] == [one.data for one in wire.decode(record.data).records]

    def test_without_a_linger_nothing_waits(self) -> None:
        """A linger of zero sends what is there."""
        rig = Rig(linger=0.0)
        rig.producer.offer([rig.post()], 0.5)
        assert rig.producer.next_deadline() == 0.5
        assert SealReason.LINGER is rig.only_record(0.5).sealed

    def test_lanes_that_linger_at_almost_the_same_time_share_a_request(self) -> None:
        """The ends of their lingers fall into one step, so that many shards do not mean many requests."""
        rig = Rig(count=2, linger=1.0)
        rig.producer.offer([rig.post(key(0, 2), now=0.01)], 0.01)
        rig.producer.offer([rig.post(key(1, 2), now=0.19)], 0.19)
        assert len(rig.only_request(rig.producer.next_deadline()).records) == 2

    def test_a_batch_of_the_target_size_goes_at_once(self) -> None:
        """A free lane does not wait for more than the target."""
        rig = Rig()
        rig.producer.offer([rig.post(size=-(-TARGET_BYTES // 10)) for _ in range(10)], 0.0)
        record = rig.only_record(0.0)
        assert len(record.posts) == 9, "a tenth would have begun another payload unit"
        assert record.size <= 2 * PAYLOAD_UNIT_BYTES
        assert SealReason.SIZE is record.sealed

    def test_a_batch_grows_while_its_lane_waits_for_an_answer(self) -> None:
        """Under load records become larger by themselves, up to the largest size and no further."""
        rig = Rig()
        rig.producer.offer([rig.post(size=TARGET_BYTES)], 0.0)
        request = rig.only_request(0.0)
        posts = [rig.post(size=10_000) for _ in range(30)]
        rig.producer.offer(posts, 0.01)
        assert rig.producer.requests(0.02) == []
        rig.answer(request, 0.05)
        request = rig.only_request(0.05)
        (record,) = request.records
        assert LARGEST_BYTES - 10_100 < len(record.data) <= LARGEST_BYTES
        rig.answer(request, 0.1)
        rest = rig.only_record(0.1)
        assert SealReason.LINGER is not rest.sealed
        assert posts == [*record.posts, *rest.posts]

    def test_what_has_not_lingered_waits_until_it_fills_a_payload_unit(self) -> None:
        """Behind an answer only whole units leave before the linger is over; the rest waits for company."""
        rig = Rig(linger=1.0)
        rig.producer.offer([rig.post(size=TARGET_BYTES)], 0.0)
        request = rig.only_request(0.0)
        posts = [rig.post(size=PAYLOAD_UNIT_BYTES // 10, now=0.1) for _ in range(37)]
        rig.producer.offer(posts, 0.1)
        rig.answer(request, 0.2)
        request = rig.only_request(0.2)
        (record,) = request.records
        assert 2.8 < record.size / PAYLOAD_UNIT_BYTES <= 3.0
        rig.answer(request, 0.3)
        assert rig.producer.requests(0.3) == []
        rest = rig.only_record(rig.producer.next_deadline())
        assert SealReason.LINGER is rest.sealed
        assert posts == [*record.posts, *rest.posts]

    def test_a_batch_that_is_full_before_its_target_counts_as_full(self) -> None:
        """A large post that does not fit behind a small one closes its batch, and follows in the next."""
        rig = Rig()
        posts = [rig.post(), rig.post(size=LARGEST_BYTES)]
        rig.producer.offer(posts, 0.0)
        request = rig.only_request(0.0)
        assert [(record.posts, record.sealed) for record in request.records] == [(posts[:1], SealReason.SIZE)]
        rig.answer(request, 0.1)
        assert rig.only_record(0.1).posts == posts[1:]

    def test_closing_sends_what_is_there(self) -> None:
        """A drain does not linger, neither for what is inside nor for what waits behind an answer."""
        rig = Rig(linger=60.0)
        rig.producer.offer([rig.post(size=TARGET_BYTES)], 0.0)
        request = rig.only_request(0.0)
        rig.producer.offer([rig.post()], 0.1)
        rig.producer.close()
        assert rig.producer.requests(0.2) == []
        rig.answer(request, 0.3)
        assert SealReason.DRAIN is rig.only_record(0.3).sealed

    def test_closing_wakes_lanes_that_linger(self) -> None:
        """The deadline is now, whatever it was."""
        rig = Rig(count=2, linger=60.0)
        rig.producer.offer([rig.post(key(0, 2)), rig.post(key(1, 2))], 5.0)
        rig.producer.close()
        assert rig.producer.next_deadline() <= 5.0
        assert [record.sealed for record in rig.only_request(5.0).records] == [SealReason.DRAIN] * 2

    def test_a_batch_of_one_is_raw_under_the_keys_of_its_lane(self) -> None:
        """Lambda must not run it beside the containers of its lane, so it has their partition key."""
        rig = Rig(count=2, lanes=3, linger=0.0)
        post = rig.post(key(5, 6))
        rig.producer.offer([post], 0.0)
        record = rig.only_record(0.0)
        assert post.line == record.data
        assert record.partition_key == "shardId-000000000001.2"
        assert int(record.explicit_hash_key) == HASH_KEYS * 5 // 6


class TestTheDoor:
    def test_posts_need_the_shards(self) -> None:
        """Without a map there is no lane; to offer then is a mistake of the caller."""
        producer = Producer(
            aggregate=True, lanes_per_shard=1, linger=0.0, memory_limit=MIB, compress=False, rng=Random(1)
        )
        assert producer.wants_shards
        with pytest.raises(RuntimeError, match="on_shards"):
            producer.offer([], 0.0)

    def test_too_large_for_the_stream(self) -> None:
        """The largest post that passes fits its record; one more byte is an outcome at the door."""
        rig = Rig(linger=0.0)
        fits, too_large = (rig.post(size=DEFAULT_RECORD_BYTES - NAME_BYTES + more) for more in (0, 1))
        assert [Outcome([too_large], DropReason.POST_TOO_LARGE, 0)] == rig.producer.offer([too_large, fits], 0.0)
        assert rig.producer.statistics().posts == 1
        assert rig.only_record(0.0).size <= DEFAULT_RECORD_BYTES

    def test_a_stream_with_larger_records_takes_larger_posts(self) -> None:
        """The limit is the stream's own, and may change with each look at it."""
        rig = Rig()
        post = rig.post(size=2 * DEFAULT_RECORD_BYTES)
        rig.producer.on_shards(rig.model.open, 0.0, record_limit=LARGEST_RECORD_BYTES)
        assert rig.producer.offer([post], 0.0) == []

    def test_room_ends_at_the_memory_limit_and_comes_back(self) -> None:
        """Posts count with what holds them; their outcome frees it all."""
        rig = Rig(memory=1000, linger=0.0)
        room = [rig.producer.has_room]
        rig.producer.offer([rig.post(size=1000 - POST_OVERHEAD_BYTES)], 0.0)
        assert rig.producer.statistics().bytes == 1000
        room.append(rig.producer.has_room)
        rig.answer(rig.only_request(0.0), 0.1)
        room.append(rig.producer.has_room)
        assert room == [True, False, True]
        assert rig.producer.statistics().bytes == 0

    def test_statistics_count_what_is_inside(self) -> None:
        """Posts, lanes by their state, requests under way and the window; and the same of each shard."""
        rig = Rig(count=3, linger=0.0)
        for shard in (0, 1):
            rig.producer.offer([rig.post(key(shard, 3))], 0.0)
        request = rig.only_request(0.0)
        rig.producer.on_response(request, [FAILED, THROTTLED], 0.1)
        rig.producer.offer([rig.post(key(2, 3))], 0.1)
        rig.only_request(0.1)
        expected = Statistics(
            posts=3,
            bytes=3 * (100 + POST_OVERHEAD_BYTES),
            lanes=3,
            lanes_in_flight=1,
            lanes_backing_off=2,
            requests_in_flight=1,
            window=8,
        )
        assert expected == rig.producer.statistics()
        assert [state.posts for state in rig.producer.shards(0.1)] == [1, 1, 1]


class TestTrouble:
    def test_a_failed_record_goes_again_before_anything_newer(self) -> None:
        """It stays at the head of its lane with the same bytes, and its outcome tells of the repeat."""
        rig = Rig(linger=0.0)
        old, new = rig.post(), rig.post()
        rig.producer.offer([old], 0.0)
        request = rig.only_request(0.0)
        rig.producer.offer([new], 0.1)
        assert rig.producer.on_response(request, [FAILED], 0.2) == []
        deadline = rig.producer.next_deadline()
        assert deadline == pytest.approx(0.3)
        again = rig.only_request(deadline)
        assert request.records[0].data == again.records[0].data
        assert [Outcome([old], None, 2, repeated=True)] == rig.answer(again, 0.4)
        assert [new] == rig.only_record(0.4).posts

    def test_a_throttled_record_was_surely_not_stored(self) -> None:
        """Its repeat is no repeat for a consumer, and the outcome says so."""
        rig = Rig(linger=0.0)
        post = rig.post()
        rig.producer.offer([post], 0.0)
        rig.producer.on_response(rig.only_request(0.0), [THROTTLED], 0.1)
        assert [Outcome([post], None, 2, repeated=False)] == rig.answer(rig.only_request(1.0), 1.1)

    @pytest.mark.parametrize(
        ("failure", "wait", "repeated"), [(NOT_STORED, 0.1, False), (UNKNOWN, 0.1, True), (DENIED, 1.0, False)]
    )
    def test_a_failed_request_goes_again(self, failure: RequestFailure, wait: float, repeated: bool) -> None:
        """What an operator must heal waits longer; what was perhaps stored may be there twice."""
        rig = Rig(count=2, linger=0.0)
        rig.producer.offer([rig.post(key(0, 2)), rig.post(key(1, 2))], 0.0)
        assert rig.producer.on_failure(rig.only_request(0.0), failure, 0.0) == []
        assert rig.producer.next_deadline() == pytest.approx(wait)
        outcomes = rig.answer(rig.only_request(wait), wait)
        assert [(2, repeated)] * 2 == [(outcome.attempts, outcome.repeated) for outcome in outcomes]

    def test_a_throttle_slows_its_shard_and_no_other(self) -> None:
        """All lanes of the shard share its pace, because they share its limit."""
        rig = Rig(count=2, lanes=2, linger=0.0)
        throttled, neighbour, elsewhere, also_elsewhere = (key(lane, 4) for lane in range(4))
        rig.producer.offer([rig.post(throttled)], 0.0)
        rig.producer.on_response(rig.only_request(0.0), [THROTTLED], 0.0)
        assert rig.producer.take_throttled() == ["shardId-000000000000"]
        assert rig.producer.take_throttled() == []
        # Without its burst a shard gives one record on credit, and then nothing for a while.
        rig.producer.offer([rig.post(neighbour, 500_000), rig.post(elsewhere, 500_000)], 0.0)
        assert len(rig.only_request(0.0).records) == 2
        rig.producer.offer([rig.post(also_elsewhere)], 0.06)
        assert [also_elsewhere] == [post.key for post in rig.only_record(0.06).posts]
        deadline = rig.producer.next_deadline()
        assert deadline == pytest.approx(500_000 / MIB / 0.7, rel=0.05)
        assert [throttled] == [post.key for post in rig.only_record(deadline).posts]

    def test_a_kinesis_that_answers_nothing_is_asked_by_one_record_at_a_time(self) -> None:
        """In an outage of a minute there are few tries, each with one record, and no lane makes a record in advance."""
        rig = Rig(count=64, linger=0.0)
        keys = [key(shard, 64) for shard in range(64)]
        now, sizes = 0.0, []
        while now < 60.0:
            rig.producer.offer([rig.post(name, now=now) for name in keys], now)
            for request in rig.producer.requests(now):
                sizes.append(len(request.records))
                rig.producer.on_failure(request, NOT_STORED, now)
            now = max(now + 0.01, min(rig.producer.next_deadline(), now + 0.5))
        assert sizes[0] == 64
        assert set(sizes[3:]) == {1}
        assert len(sizes) < 40
        heads = [lane.head for lane in rig.producer._lanes.open if lane.head]
        assert sum(len(head.posts) for head in heads) < 300, "what waits stays a queue of posts"

    def test_after_an_outage_all_lanes_are_back_within_half_a_second(self) -> None:
        """One answer ends the waiting of all: nothing is left to its own delay of seconds."""
        rig = Rig(count=16, linger=0.0)
        posts = [rig.post(key(shard, 16)) for shard in range(16)]
        rig.producer.offer(posts, 0.0)
        now = 0.0
        for _ in range(12):
            now = rig.producer.next_deadline()
            for request in rig.producer.requests(now):
                rig.producer.on_failure(request, NOT_STORED, now)
        back = now = rig.producer.next_deadline()
        delivered: list[bytes] = []
        while len(delivered) < len(posts):
            now = max(now, rig.producer.next_deadline())
            for request in rig.producer.requests(now):
                delivered += lines(rig.answer(request, now))
        assert now - back <= 0.5
        assert sorted(delivered) == sorted(post.line for post in posts)

    def test_after_an_outage_lanes_do_not_come_all_at_once(self) -> None:
        """Those whose own delay has seconds to go are spread over the half second."""
        rig = Rig(count=16, linger=0.0, rng=Random(1))
        rig.producer.offer([rig.post(key(shard, 16)) for shard in range(16)], 0.0)
        now, late = 0.0, list[Lane]()
        while len(late) < 2:
            for request in rig.producer.requests(now):
                rig.producer.on_failure(request, NOT_STORED, now)
            now = rig.producer.next_deadline()
            late = [lane for lane in rig.producer._lanes.open if lane.ready_at > now + 1]
        rig.answer(rig.only_request(now), now)
        assert len({lane.ready_at for lane in late}) == len(late)
        assert all(now < lane.ready_at <= now + 0.5 for lane in late)
        assert len(rig.only_request(now + 0.5).records) == 15

    def test_one_failure_among_answers_holds_nobody_up(self) -> None:
        """A broken connection says nothing about the others: only its own lanes wait."""
        rig = Rig(count=2, linger=0.0)
        rig.producer.offer([rig.post(key(0, 2))], 0.0)
        rig.producer.on_failure(rig.only_request(0.0), UNKNOWN, 0.0)
        other = rig.post(key(1, 2))
        rig.producer.offer([other], 0.0)
        assert rig.only_record(0.0).posts == [other]

    def test_a_full_window_has_no_deadline(self) -> None:
        """Only an answer can change anything, so the caller's timer must not spin."""
        rig = Rig(aggregate=False, linger=0.0)
        under_way = []
        for number in range(8):
            rig.producer.offer([rig.post(b"author-%d" % number)], 0.0)
            under_way.append(rig.only_request(0.0))
        rig.producer.offer([rig.post(b"author-8")], 0.0)
        assert rig.producer.next_deadline() == NEVER
        assert rig.producer.requests(1.0) == []
        rig.answer(under_way[0], 1.0)
        assert rig.producer.next_deadline() <= 1.0

    def test_posts_one_by_one_wait_for_company_while_a_request_is_under_way(self) -> None:
        """A twentieth of the linger at most, and less if an answer comes or half a request's records are there."""
        rig = Rig(aggregate=False, linger=0.1)
        authors = [b"author-%d" % number for number in range(1000)]
        rig.producer.offer([rig.post(authors[0])], 0.0)
        first = rig.only_request(0.0)
        rig.producer.offer([rig.post(authors[1])], 0.001)
        assert rig.producer.requests(0.001) == []
        deadline = rig.producer.next_deadline()
        assert deadline == pytest.approx(0.006)
        rig.producer.offer([rig.post(authors[2])], 0.002)
        second = rig.only_request(deadline)
        assert len(second.records) == 2
        rig.producer.offer([rig.post(authors[3])], 0.03)
        rig.answer(first, 0.03)
        rig.answer(second, 0.03)
        third = rig.only_request(0.03)
        assert len(third.records) == 1, "nothing is under way, so nothing is worth waiting for"
        rig.producer.offer([rig.post(author) for author in authors], 0.04)
        assert len(rig.producer.requests(0.04)[0].records) >= RECORDS_PER_REQUEST // 2

    def test_a_drain_waits_for_no_company(self) -> None:
        """Nothing more will come."""
        rig = Rig(aggregate=False, linger=0.1)
        rig.producer.offer([rig.post(b"author-0"), rig.post(b"author-0")], 0.0)
        first = rig.only_request(0.0)
        rig.producer.offer([rig.post(b"author-1")], 0.001)
        rig.producer.close()
        assert len(rig.only_request(0.001).records) == 1
        rig.answer(first, 0.002)
        assert len(rig.only_request(0.002).records) == 1, "nor does what had to wait for an answer"

    def test_a_refused_request_is_narrowed_down_to_the_culprit(self) -> None:
        """Each of its records goes alone; the one that is refused again is dropped, and no other post."""
        rig = Rig(count=4, linger=0.0)
        posts = [rig.post(key(shard, 4)) for shard in range(4)]
        rig.producer.offer(posts, 0.0)
        request = rig.only_request(0.0)
        assert len(request.records) == 4
        assert rig.producer.on_failure(request, REFUSED, 0.0) == []
        assert rig.producer.statistics().window == 8
        alone = rig.producer.requests(1.0)
        assert [len(single.records) for single in alone] == [1, 1, 1, 1]
        outcomes = []
        for single in alone:
            if single.records[0].posts == [posts[2]]:
                outcomes += rig.producer.on_failure(single, REFUSED, 1.1)
            else:
                outcomes += rig.answer(single, 1.1)
        assert [posts[2].line] == lines(outcomes, DropReason.REFUSED)
        assert sorted(post.line for post in posts if post is not posts[2]) == sorted(lines(outcomes))
        (dropped,) = [outcome for outcome in outcomes if outcome.reason]
        assert (dropped.attempts, dropped.message) == (2, "ValidationException: not valid")
        assert rig.producer.is_drained

    def test_records_that_go_alone_share_with_nobody(self) -> None:
        """Neither what was due before them nor what is due after them joins their requests."""
        rig = Rig(count=4, linger=0.0)
        posts = [rig.post(key(shard, 4)) for shard in range(4)]
        rig.producer.offer(posts[:2], 0.0)
        rig.producer.on_failure(rig.only_request(0.0), REFUSED, 0.0)
        rig.producer.offer(posts[2:3], 0.0)
        rig.producer.offer(posts[3:], 0.06)
        requests = rig.producer.requests(0.1)
        assert [[record.posts for record in request.records] for request in requests] == [
            [[posts[number]]] for number in (2, 0, 1, 3)
        ]

    def test_a_lane_goes_on_after_a_refused_record(self) -> None:
        """What waits behind the culprit is sent."""
        rig = Rig(linger=0.0)
        bad, good = rig.post(), rig.post()
        rig.producer.offer([bad], 0.0)
        request = rig.only_request(0.0)
        rig.producer.offer([good], 0.0)
        assert [bad.line] == lines(rig.producer.on_failure(request, REFUSED, 0.1), DropReason.REFUSED)
        assert [good] == rig.only_record(0.1).posts

    def test_a_record_filed_before_an_older_one_is_counted(self) -> None:
        """Kinesis does not do that; if it ever did, somebody should know."""
        rig = Rig(linger=0.0)
        for number in ("5", "7", "6"):
            rig.producer.offer([rig.post()], 0.0)
            result = RecordResult(rig.model.open[0].shard_id, number)
            rig.producer.on_response(rig.only_request(0.0), [result], 0.0)
        assert rig.producer.order_violations == 1


class TestTheLimitsOfARequest:
    def test_records(self) -> None:
        """A request holds 500 records at most; the rest goes beside it."""
        rig = Rig(count=3, aggregate=False)
        rig.producer.offer([rig.post(b"author-%d" % number) for number in range(5000)], 0.0)
        requests = rig.producer.requests(0.0)
        assert rig.producer.statistics().lanes == 501
        assert [len(request.records) for request in requests] == [RECORDS_PER_REQUEST, 1]

    def test_bytes(self) -> None:
        """A request holds 10 MiB at most."""
        rig = Rig(count=3, linger=0.0)
        rig.producer.on_shards(rig.model.open, 0.0, record_limit=LARGEST_RECORD_BYTES)
        rig.producer.offer([rig.post(key(shard, 3), 4 * MIB) for shard in range(3)], 0.0)
        assert [len(request.records) for request in rig.producer.requests(0.0)] == [2, 1]

    def test_a_record_that_finds_the_window_full_keeps_its_turn(self) -> None:
        """What did not fit goes first when an answer comes, as it was."""
        rig = Rig(count=3, linger=0.0)
        rig.producer.on_shards(rig.model.open, 0.0, record_limit=LARGEST_RECORD_BYTES)
        rig.producer.offer([rig.post()], 0.0)
        for _ in range(2):
            now = rig.producer.next_deadline()
            rig.producer.on_failure(rig.only_request(now), NOT_STORED, now)
        rig.answer(rig.only_request(1.0), 1.0)
        assert rig.producer.statistics().window == 2
        posts = [rig.post(key(shard, 3), 6 * MIB) for shard in range(3)]
        rig.producer.offer(posts, 2.0)
        requests = rig.producer.requests(2.0)
        assert [[posts[:1]], [posts[1:2]]] == [[record.posts for record in request.records] for request in requests]
        assert rig.producer.requests(2.0) == []
        rig.answer(requests[0], 3.0)
        assert posts[2:] == rig.only_record(3.0).posts


class TestCompression:
    def noise(self, rig: Rig, size: int, key: bytes = b"author-0") -> Post:
        """Make a post that no compression makes smaller."""
        rig.count += 1
        return Post(Random(rig.count).randbytes(size), str(rig.count), key, 0.0)

    def test_a_container_gives_back_its_posts(self) -> None:
        """The consumer reads the lines as they came; the record is smaller than they are."""
        rig = Rig(linger=0.0, compress=True)
        posts = [rig.post(size=1000) for _ in range(20)]
        rig.producer.offer(posts, 0.0)
        record = rig.only_record(0.0)
        decoded = wire.decode(record.data)
        assert decoded.damage is None
        assert [(post.line, "author-0") for post in posts] == [(one.data, one.partition_key) for one in decoded.records]
        assert record.size < 20 * 1000 / COMPRESSED_GROWTH

    def test_a_batch_of_one_is_raw(self) -> None:
        """A consumer that knows no compression reads at least those."""
        rig = Rig(linger=0.0, compress=True)
        post = rig.post()
        rig.producer.offer([post], 0.0)
        assert post.line == rig.only_record(0.0).data

    def test_a_free_lane_waits_for_more_before_it_sends(self) -> None:
        """The target is so many times larger as posts shrink, so that records are as large as without."""
        rig = Rig(compress=True)
        size = -(-TARGET_BYTES // 10)
        rig.producer.offer([rig.post(size=size) for _ in range(10 * COMPRESSED_GROWTH - 2)], 0.0)
        assert rig.producer.requests(0.0) == []
        rig.producer.offer([rig.post(size=size) for _ in range(2)], 0.0)
        record = rig.only_record(0.0)
        assert TARGET_BYTES * COMPRESSED_GROWTH - 2 * size < sum(len(post.line) for post in record.posts)
        assert SealReason.SIZE is record.sealed

    def test_records_of_noise_fit_into_any_stream(self) -> None:
        """Behind an answer batches grow to their largest size; what does not shrink keeps every limit all the same."""
        rig = Rig(count=16, linger=0.0, compress=True)
        keys = [key(shard, 16) for shard in range(16)]
        rig.producer.offer([rig.post(name) for name in keys], 0.0)
        first = rig.only_request(0.0)
        posts = [self.noise(rig, 4096, name) for name in keys for _ in range(256)]
        rig.producer.offer(posts, 0.1)
        rig.answer(first, 0.2)
        requests = rig.producer.requests(0.2)
        records = [record for request in requests for record in request.records]
        assert (len(requests), len(records)) == (2, 16)
        assert all(sum(record.size for record in request.records) <= REQUEST_BYTES for request in requests)
        largest = max(record.size for record in records)
        assert LARGEST_BYTES * COMPRESSED_GROWTH - 5000 < largest <= DEFAULT_RECORD_BYTES
        assert [wire.decode(record.data).damage for record in records] == [None] * 16

    def test_a_post_that_is_too_large_for_the_stream_stays_so(self) -> None:
        """A post goes raw when it is alone, so it is measured as it is."""
        rig = Rig(compress=True)
        post = rig.post(size=DEFAULT_RECORD_BYTES)
        assert [post.line] == lines(rig.producer.offer([post], 0.0), DropReason.POST_TOO_LARGE)


class TestResharding:
    def split_rig(self) -> tuple[Rig, list[Post]]:
        """Make a record with posts of both halves of a shard, and split that shard while it is under way."""
        rig = Rig(linger=0.0)
        rig.model.split(0)
        posts = [rig.post(key(half, 2)) for half in (0, 1, 0, 1)]
        rig.producer.offer(posts, 0.0)
        return rig, posts

    def test_only_what_lies_outside_is_sent_again(self) -> None:
        """Of a record that was stored astray, posts inside that shard's range are delivered, when the map is known."""
        rig, posts = self.split_rig()
        assert rig.answer(rig.only_request(0.0), 0.1) == []
        asked = [rig.producer.wants_shards]
        newer = [rig.post(key(half, 2)) for half in (0, 1)]
        rig.producer.offer(newer, 0.2)
        assert rig.producer.requests(0.2) == [], "nothing newer goes before the map is known"
        outcomes = rig.refresh(0.3)
        asked.append(rig.producer.wants_shards)
        assert asked == [True, False]
        assert [posts[0].line, posts[2].line] == lines(outcomes)
        request = rig.only_request(0.3)
        assert [[newer[0]], [posts[1], posts[3]]] == sorted((record.posts for record in request.records), key=len)
        outcomes = rig.answer(request, 0.4)
        assert sorted(outcome.repeated for outcome in outcomes) == [False, True]
        rig.answer(rig.only_request(0.4), 0.5)
        assert rig.producer.is_drained
        for half in (0, 1):
            wanted = [post.line for post in [*posts, *newer] if post.key == key(half, 2)]
            assert wanted == rig.model.lines_of(key(half, 2))

    def test_a_known_shard_needs_no_refresh(self) -> None:
        """A record that was under way while the map changed is settled by the map that is there."""
        rig, posts = self.split_rig()
        request = rig.only_request(0.0)
        rig.refresh(0.1)
        outcomes = rig.answer(request, 0.2)
        assert not rig.producer.wants_shards
        assert [posts[0].line, posts[2].line] == lines(outcomes)
        assert [posts[1], posts[3]] == rig.only_record(0.2).posts

    def test_new_lanes_wait_for_what_is_under_way(self) -> None:
        """An older record of the same keys must have its answer first; if it failed, it goes again at the front."""
        rig, posts = self.split_rig()
        request = rig.only_request(0.0)
        rig.refresh(0.1)
        newer = rig.post(key(1, 2))
        rig.producer.offer([newer], 0.1)
        assert rig.producer.requests(5.0) == []
        assert rig.producer.next_deadline() == NEVER
        assert rig.producer.on_response(request, [FAILED], 5.0) == []
        records = rig.only_request(5.0).records
        assert [[posts[0], posts[2]], [posts[1], posts[3]]] == [record.posts for record in records]
        assert all(record.perhaps_stored for record in records)

    def test_closing_does_not_hurry_new_lanes_past_the_old_ones(self) -> None:
        """They still wait for what is under way, and then drain."""
        rig, _ = self.split_rig()
        request = rig.only_request(0.0)
        rig.refresh(0.1)
        newer = rig.post(key(1, 2))
        rig.producer.offer([newer], 0.1)
        rig.producer.close()
        assert rig.producer.requests(0.2) == []
        rig.producer.on_response(request, [RecordResult("shardId-000000000000", "1")], 0.3)
        assert [newer] == rig.only_record(0.3).posts

    def test_posts_do_not_linger_a_second_time(self) -> None:
        """What comes back from an older lane goes at once."""
        rig = Rig(linger=1.0)
        rig.producer.offer([rig.post(), rig.post()], 0.0)
        request = rig.only_request(1.0)
        rig.model.split(0)
        rig.refresh(1.1)
        rig.producer.on_failure(request, UNKNOWN, 1.2)
        assert len(rig.only_record(1.2).posts) == 2

    @pytest.mark.parametrize(("edge", "shard_id"), [(0, "shardId-b"), (1, "shardId-a")])
    def test_both_ends_of_a_shard_belong_to_it(self, edge: int, shard_id: str) -> None:
        """A post whose hash key is the first or the last of the shard that stored it is not astray."""
        rig = Rig(linger=0.0)
        post = rig.post()
        rig.producer.offer([post], 0.0)
        request = rig.only_request(0.0)
        border = hash_key(post.key) + edge
        rig.producer.on_shards([Shard("shardId-a", 0, border - 1), Shard("shardId-b", border, HASH_KEYS - 1)], 0.1)
        assert lines(rig.producer.on_response(request, [RecordResult(shard_id, "1")], 0.2)) == [post.line]

    def test_a_throttle_of_a_closed_shard_slows_nobody(self) -> None:
        """The shards that took its place have a pace of their own."""
        rig, posts = self.split_rig()
        request = rig.only_request(0.0)
        rig.refresh(0.1)
        assert rig.producer.on_response(request, [THROTTLED], 0.2) == []
        assert rig.producer.take_throttled() == ["shardId-000000000000"]
        assert sum(len(record.posts) for record in rig.only_request(0.2).records) == len(posts)

    def test_a_retired_record_that_was_refused_is_dropped(self) -> None:
        """The lanes behind it begin all the same."""
        rig, posts = self.split_rig()
        request = rig.only_request(0.0)
        rig.refresh(0.1)
        newer = rig.post(key(0, 2))
        rig.producer.offer([newer], 0.1)
        assert len(posts) == len(lines(rig.producer.on_failure(request, REFUSED, 0.2), DropReason.REFUSED))
        assert [newer] == rig.only_record(0.2).posts

    def test_what_may_be_stored_already_is_known_as_such_after_the_next_resharding_too(self) -> None:
        """It was dealt out to a lane of the second map, and again to one of the third: its repeat is told and alone."""
        rig = Rig(linger=0.0)
        doubtful, new = rig.post(), rig.post()
        rig.producer.offer([doubtful], 0.0)
        request = rig.only_request(0.0)
        rig.model.split(0)
        rig.refresh(0.1)
        rig.producer.on_failure(request, UNKNOWN, 0.2)
        rig.producer.offer([new], 0.3)
        for half in (0, 2):
            rig.model.split(half)
        rig.refresh(0.4)
        assert [Outcome([doubtful], None, 1, repeated=True)] == rig.answer(rig.only_request(1.0), 1.0)
        assert [Outcome([new], None, 1, repeated=False)] == rig.answer(rig.only_request(1.0), 1.0)

    def test_lanes_of_shards_that_stay_are_not_touched(self) -> None:
        """A split elsewhere neither stops a lane nor forgets its pace."""
        rig = Rig(count=2, linger=0.0)
        rig.producer.offer([rig.post(key(0, 2), 1_000_000)], 0.0)
        request = rig.only_request(0.0)
        rig.producer.offer([rig.post(key(0, 2))], 0.1)
        rig.model.split(1)
        assert rig.refresh(0.1) == []
        assert rig.producer.statistics().lanes == 3
        assert len(rig.answer(request, 0.2)) == 1
        assert rig.producer.requests(0.2) == []
        deadline = rig.producer.next_deadline()
        assert deadline == pytest.approx(1_000_000 / MIB - 0.5, rel=0.01)
        assert len(rig.only_record(deadline).posts) == 1

    def test_what_waited_in_an_old_lane_is_dealt_out_anew(self) -> None:
        """Posts that were not under way find their new lanes at once, in order."""
        rig = Rig(linger=60.0)
        rig.model.split(0)
        keys = [key(0, 2), key(1, 2)]
        posts = [rig.post(keys[number % 2]) for number in range(6)]
        rig.producer.offer(posts, 0.0)
        rig.refresh(0.1)
        rig.producer.close()
        records = rig.only_request(0.2).records
        assert [posts[0::2], posts[1::2]] == [record.posts for record in records]
        assert rig.producer.requests(100.0) == [], "the old lane's linger is forgotten"

    def test_a_stream_that_strays_all_the_time_is_believed_in_the_end(self) -> None:
        """Where a fresh map does not help, records are not sent again for ever."""
        rig = Rig(linger=0.0)
        post = rig.post()
        rig.producer.offer([post], 0.0)
        outcomes: list[Outcome] = []
        for attempt in range(1, 4):
            outcomes += rig.producer.on_response(
                rig.only_request(attempt), [RecordResult(STRAY, str(attempt))], attempt
            )
            outcomes += rig.refresh(attempt)
        assert [post.line] == lines(outcomes)
        assert rig.producer.is_drained

    def test_the_same_shards_change_nothing(self) -> None:
        """A refresh that brings no news keeps lanes, batches and deadlines."""
        rig = Rig(linger=1.0)
        rig.producer.offer([rig.post()], 0.0)
        deadline = rig.producer.next_deadline()
        assert rig.refresh(0.5) == []
        assert deadline == rig.producer.next_deadline()
        assert len(rig.only_record(deadline).posts) == 1


class TestAStreamThatIgnoresKeys:
    def rig(self) -> Rig:
        """Make a producer that was told so."""
        rig = Rig(count=2, linger=60.0)
        rig.producer.on_shards(rig.model.open, 0.0, ignores_keys=True)
        return rig

    def test_posts_go_one_by_one_under_their_own_keys(self) -> None:
        """The stream places each record itself, so a container would gain nothing and hide its keys."""
        rig = self.rig()
        posts = [rig.post(b"author-%d" % number) for number in range(20)]
        rig.producer.offer(posts, 0.0)
        records = rig.only_request(0.0).records
        assert sorted(post.line for post in posts) == sorted(record.data for record in records)
        assert all(record.posts[0].key.decode() == record.partition_key for record in records)
        assert {("", SealReason.SINGLE)} == {(record.explicit_hash_key, record.sealed) for record in records}

    def test_any_shard_may_answer_in_any_order(self) -> None:
        """Neither a strange shard nor a falling number means anything there."""
        rig = self.rig()
        for number in ("9", "3"):
            rig.producer.offer([rig.post()], 0.0)
            (outcome,) = rig.producer.on_response(rig.only_request(0.0), [RecordResult(STRAY, number)], 0.0)
            assert outcome.reason is None
        assert rig.producer.order_violations == 0
        assert not rig.producer.wants_shards

    def test_a_record_astray_is_settled_when_the_stream_turns_out_to_ignore_keys(self) -> None:
        """The news comes with the shards that were asked for because of it; nothing is lost between."""
        rig = Rig(count=2, linger=0.0)
        posts = [rig.post(key(0, 2)) for _ in range(3)]
        rig.producer.offer(posts, 0.0)
        rig.producer.on_response(rig.only_request(0.0), [RecordResult(STRAY, "1")], 0.1)
        assert rig.producer.on_shards(rig.model.open, 0.2, ignores_keys=True) == []
        outcomes = []
        for _ in posts:
            outcomes += rig.producer.on_response(rig.only_request(0.2), [RecordResult(STRAY, "2")], 0.2)
        assert [post.line for post in posts] == lines(outcomes)
        assert rig.producer.is_drained

    def test_it_may_follow_keys_again(self) -> None:
        """With the next look at the stream, posts are packed again."""
        rig = self.rig()
        rig.producer.on_shards(rig.model.open, 1.0)
        rig.producer.offer([rig.post(), rig.post()], 1.0)
        rig.producer.close()
        assert SealReason.DRAIN is rig.only_record(1.0).sealed


class TestTheEnd:
    def test_closing_an_empty_producer(self) -> None:
        """There is nothing to do, and nothing to wait for."""
        rig = Rig()
        rig.producer.close()
        assert rig.producer.is_drained
        assert rig.producer.next_deadline() == NEVER
        assert rig.producer.requests(1.0) == []
        assert rig.producer.abandon() == []

    def test_abandon_names_all_that_is_inside(self) -> None:
        """Posts that linger, that back off, that are under way, and those of an older map: each exactly once."""
        rig = Rig(count=3, linger=0.0)
        posts = [rig.post(key(shard, 3)) for shard in range(3)]
        rig.producer.offer(posts[:1], 0.0)
        rig.only_request(0.0)
        rig.producer.offer(posts[1:2], 0.0)
        rig.producer.on_failure(rig.only_request(0.0), UNKNOWN, 0.0)
        rig.producer.offer(posts[2:], 0.0)
        rig.model.split(0)
        rig.refresh(0.0)
        assert sorted(post.line for post in posts) == sorted(post.line for post in rig.producer.abandon())
        assert rig.producer.is_drained
        assert rig.producer.statistics().bytes == 0


class SharedShard:
    """One shard's limit in bytes, as Kinesis keeps it: 1 MiB a second, a second's worth in advance."""

    def __init__(self) -> None:
        self.tokens = float(MIB)
        self.at = 0.0
        self.sequence = 0

    def put(self, size: int, now: float) -> RecordResult:
        self.tokens = min(MIB, self.tokens + (now - self.at) * MIB)
        self.at = now
        if size > self.tokens:
            return THROTTLED
        self.tokens -= size
        self.sequence += 1
        return RecordResult("shardId-000000000000", str(self.sequence))


class Busy:
    """A producer that always has more to send than a shard takes; its requests need a round trip of 20 ms."""

    def __init__(self, seed: int, shard: SharedShard) -> None:
        self.producer = Rig(linger=0.0, rng=Random(seed)).producer
        self.shard = shard
        self.under_way: list[tuple[float, PutRequest, list[RecordResult]]] = []
        self.delivered = 0

    def step(self, now: float) -> None:
        while self.under_way and self.under_way[0][0] <= now:
            _, request, results = self.under_way.pop(0)
            for outcome in self.producer.on_response(request, results, now):
                self.delivered += sum(len(post.line) for post in outcome.posts)
        if self.producer.statistics().posts < 2:
            self.producer.offer([Post(LARGE_LINE, "1", b"author", now)] * 4, now)
        for request in self.producer.requests(now):
            self.under_way.append(
                (now + 0.02, request, [self.shard.put(record.size, now) for record in request.records])
            )


LARGE_LINE = b"x" * 100_000


def test_producers_that_share_a_shard_come_to_equal_shares() -> None:
    """One has the shard alone, another joins: within a minute each has about half, and little of it is wasted."""
    shard = SharedShard()
    first, second = Busy(1, shard), Busy(2, shard)

    def run(start: int, end: int, *producers: Busy) -> list[float]:
        before = [busy.delivered for busy in producers]
        for tick in range(start * 50, end * 50):
            for busy in producers:
                busy.step(tick / 50)
        return [(busy.delivered - count) / MIB / (end - start) for busy, count in zip(producers, before, strict=True)]

    (alone,) = run(0, 10, first)
    assert alone > 0.95
    run(10, 60, first, second)
    shares = run(60, 100, first, second)
    assert sum(shares) > 0.9
    assert min(shares) / sum(shares) > 0.4
