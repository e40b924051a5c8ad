from hashlib import md5

import pytest

from local.kinesis.errors import KinesisError
from local.kinesis.faults import FailRecords, ThrottleShard
from local.kinesis.limits import Entry
from local.kinesis.shards import HASH_KEYS, MIB, Record
from local.kinesis.stream import Failure, Reading, Stream

NOW = 1_800_000_000.0
DAY_SECONDS = 86_400.0
FIRST = "shardId-000000000000"
THROTTLED = "ProvisionedThroughputExceededException"


def new_stream(shards: int = 1, settle_seconds: float = 0.0) -> Stream:
    """Return an ACTIVE stream."""
    stream = Stream("posts", NOW, settle_seconds=settle_seconds)
    stream.map.create(shards, NOW)
    return stream


def entries(count: int, size: int = 10) -> list[Entry]:
    """Return records of a size in bytes, key included."""
    return [Entry(b"d" * (size - 4), f"{number:04d}") for number in range(count)]


def put(stream: Stream, offered: list[Entry], now: float = NOW) -> list[Record]:
    """Put records of which none may fail."""
    results = stream.put(offered, now)
    records = [result for result in results if isinstance(result, Record)]
    assert len(records) == len(offered)
    return records


def codes(results: list[Record | Failure]) -> list[str | None]:
    """Return the error codes of a request's records."""
    return [result.code if isinstance(result, Failure) else None for result in results]


def read_all(stream: Stream, now: float = NOW) -> Reading:
    """Read the first shard from its beginning."""
    return stream.read(stream.map.shards[0], 0, 10_000, now)


def refused(code: str) -> pytest.RaisesExc[KinesisError]:
    """Expect a refusal with this code."""
    return pytest.RaisesExc(KinesisError, match=f"^{code}: ")


class TestWriting:
    def test_records_go_where_the_md5_of_their_key_points(self) -> None:
        """The shard is the one whose range holds the digest."""
        stream = new_stream(7)
        for record in put(stream, entries(100)):
            shard = stream.map.shards[record.shard]
            digest = md5(record.partition_key.encode(), usedforsecurity=False).hexdigest()
            assert shard.start <= int(digest, 16) <= shard.end

    def test_an_explicit_hash_key_chooses_the_shard(self) -> None:
        """0 is in the first shard and 2^128-1 in the last."""
        results = put(new_stream(3), [Entry(b"", "k", "0"), Entry(b"", "k", str(HASH_KEYS - 1))])
        assert [record.shard for record in results] == [0, 2]

    def test_results_come_in_the_order_of_the_request(self) -> None:
        """Each result stands where its record stood, failures included."""
        stream = new_stream()
        stream.faults.add(FailRecords(every=2), NOW)
        results = stream.put(entries(4), NOW, stream.faults.begin("PutRecords", NOW))
        assert codes(results) == [None, "InternalFailure", None, "InternalFailure"]
        assert [result.partition_key for result in results if isinstance(result, Record)] == ["0000", "0002"]

    def test_sequence_numbers_have_56_digits_and_rise(self) -> None:
        """Also over shards and requests, as strings and as numbers."""
        stream = new_stream(4)
        records = put(stream, entries(100)) + put(stream, entries(100), NOW + 1)
        numbers = [stream.sequence_number(record.position, record.shard) for record in records]
        assert {len(number) for number in numbers} == {56}
        assert numbers == sorted(set(numbers), key=int)

    def test_the_second_thousand_of_a_second_is_throttled_record_by_record(self) -> None:
        """Of 1,500 records at once a shard takes 1,000; the next second takes the rest."""
        stream = new_stream()
        results = [result for _ in range(3) for result in stream.put(entries(500), NOW)]
        assert codes(results) == [None] * 1000 + [THROTTLED] * 500
        assert codes(stream.put(entries(500), NOW + 1)) == [None] * 500

    def test_one_shard_at_its_limit_leaves_the_others_alone(self) -> None:
        """Throttling is partial."""
        stream = new_stream(2)
        low, high = Entry(bytes(MIB - 10), "k", "0"), Entry(bytes(1000), "k", str(HASH_KEYS - 1))
        assert codes(stream.put([low, low, high], NOW)) == [None, THROTTLED, None]

    def test_the_refusal_names_shard_stream_and_account(self) -> None:
        """The message is as the service words it."""
        stream = new_stream()
        stream.faults.add(ThrottleShard(shard=0), NOW)
        (failure,) = stream.put(entries(1), NOW, stream.faults.begin("PutRecords", NOW))
        message = "Rate exceeded for shard shardId-000000000000 in stream posts under account 000000000000."
        assert failure == Failure(THROTTLED, message)

    def test_a_refused_request_stores_nothing(self) -> None:
        """A limit broken by one record refuses all of them."""
        stream = new_stream()
        with refused("ValidationException"):
            stream.put([*entries(3), Entry(b"", "")], NOW)
        assert stream.stored_bytes == 0

    def test_failures_are_counted_by_their_code(self) -> None:
        """Throttled, by a limit or by a fault, is not mixed with failed."""
        stream = new_stream()
        stream.faults.add(ThrottleShard(shard=0, requests=1), NOW)
        stream.put(entries(2), NOW, stream.faults.begin("PutRecords", NOW))
        stream.faults.add(FailRecords(every=1, requests=1), NOW)
        stream.put(entries(3), NOW, stream.faults.begin("PutRecords", NOW))
        stream.put(entries(6, 200 * 1024), NOW)
        facts = stream.map.shards[0].facts
        assert (facts.throttled, facts.failed, facts.accepted) == (2 + 1, 3, 5)


class TestReading:
    def test_what_was_put_is_read_in_order(self) -> None:
        """Bytes and keys come back as they were."""
        stream = new_stream()
        offered = [Entry(bytes([number]), f"k{number}") for number in range(200)]
        put(stream, offered)
        assert [(r.data, r.partition_key) for r in read_all(stream).records] == [
            (entry.data, entry.partition_key) for entry in offered
        ]

    def test_a_read_goes_on_where_the_last_one_ended(self) -> None:
        """The limit cuts, and nothing is read twice."""
        stream = new_stream()
        records = put(stream, entries(5))
        first = stream.read(stream.map.shards[0], 0, 3, NOW + 2)
        assert first.records == records[:3]
        assert first.behind_seconds == 2.0
        assert first.after is not None
        rest = stream.read(stream.map.shards[0], first.after, 3, NOW + 2)
        assert rest == Reading(records[3:], records[4].position, 0.0)

    def test_a_read_returns_at_most_10_mib(self) -> None:
        """Records that would pass 10 MiB wait for the next call."""
        stream = new_stream()
        for second in range(12):
            put(stream, entries(1, MIB), NOW + second)
        assert len(read_all(stream, now=NOW + 20).records) == 10

    def test_five_reads_a_second(self) -> None:
        """The sixth read within a second is refused, a fifth of a second later one passes."""
        stream = new_stream()
        for _ in range(5):
            read_all(stream)
        with refused(THROTTLED):
            read_all(stream)
        read_all(stream, now=NOW + 0.21)

    def test_two_mebibytes_a_second(self) -> None:
        """After 10 MiB at once, the shard is not read again until they are paid back."""
        stream = new_stream()
        for second in range(10):
            put(stream, entries(1, MIB), NOW + second)
        read_all(stream, now=NOW + 10)
        with refused(THROTTLED):
            read_all(stream, now=NOW + 13.9)
        read_all(stream, now=NOW + 14.1)

    def test_positions_by_sequence_number(self) -> None:
        """A sequence number leads back to its position; one of another shard or stream is refused."""
        stream = new_stream(2)
        shard, other = stream.map.shards
        assert stream.position(stream.sequence_number(77, 0), shard) == 77
        for number in (
            stream.sequence_number(77, other.index),
            Stream("posts", NOW + 1).sequence_number(77, 0),
            "12",
        ):
            with refused("InvalidArgumentException"):
                stream.position(number, shard)


class TestTrimming:
    def test_the_oldest_record_of_all_shards_goes_first(self) -> None:
        """Trimming follows arrival, not shards."""
        stream = new_stream(3)
        records = put(stream, entries(30))
        for gone in range(1, 30):
            stream.trim_oldest()
            assert stream.oldest == records[gone]
        assert stream.stored_bytes == 10

    def test_age_trims(self) -> None:
        """What is older than the retention period of 24 hours goes."""
        stream = new_stream()
        put(stream, entries(2))
        kept = put(stream, entries(1), NOW + 10)
        stream.trim_expired(NOW + DAY_SECONDS + 5)
        assert list(stream.map.shards[0].records) == kept


class TestMode:
    def test_it_changes_twice_a_day(self) -> None:
        """The third change within 24 hours is refused."""
        stream = new_stream()
        stream.set_mode("ON_DEMAND", NOW)
        stream.set_mode("PROVISIONED", NOW + 10)
        with refused("LimitExceededException"):
            stream.set_mode("ON_DEMAND", NOW + DAY_SECONDS - 1)
        stream.set_mode("ON_DEMAND", NOW + DAY_SECONDS)


class TestResharding:
    def test_a_split_moves_writes_and_keeps_records(self) -> None:
        """The parent ends and names its children; children take what is written."""
        stream = new_stream()
        before = put(stream, entries(50))
        stream.split(FIRST, HASH_KEYS // 2, NOW)
        after = put(stream, entries(50))
        assert {record.shard for record in before} == {0}
        assert {record.shard for record in after} == {1, 2}
        assert read_all(stream) == Reading(before, None, 0.0)

    def test_an_exhausted_parent_ends_only_after_its_last_record(self) -> None:
        """While records are left there is a next read."""
        stream = new_stream()
        records = put(stream, entries(3))
        stream.split(FIRST, HASH_KEYS // 2, NOW)
        shard = stream.map.shards[0]
        assert stream.read(shard, 0, 2, NOW).after == records[1].position
        assert stream.read(shard, records[1].position, 2, NOW).after is None
        assert stream.read(shard, records[2].position, 2, NOW) == Reading([], None, 0.0)

    def test_children_start_above_their_parents(self) -> None:
        """Sequence numbers of a key rise over a reshard."""
        stream = new_stream()
        before = put(stream, [Entry(b"", "k")])[0]
        stream.scale(2, NOW)
        after = put(stream, [Entry(b"", "k")])[0]
        assert stream.sequence_number(after.position, after.shard) > stream.sequence_number(before.position, 0)

    @pytest.mark.parametrize("key", [0, 1, HASH_KEYS // 2 - 1, HASH_KEYS // 2, HASH_KEYS - 1])
    def test_a_split_outside_the_shard_is_refused(self, key: int) -> None:
        """The new start lies more than one above the start and below the end."""
        stream = new_stream(2)
        with refused("InvalidArgumentException"):
            stream.split(FIRST, key, NOW)

    def test_only_neighbours_merge(self) -> None:
        """Shards with a gap between them are refused, neighbours pass in either order."""
        stream = new_stream(3)
        with refused("InvalidArgumentException"):
            stream.merge(FIRST, "shardId-000000000002", NOW)
        stream.merge("shardId-000000000002", "shardId-000000000001", NOW)
        assert [shard.index for shard in stream.map.open] == [0, 3]

    def test_unknown_and_closed_shards_are_refused(self) -> None:
        """A shard can be split once."""
        stream = new_stream()
        with refused("ResourceNotFoundException"):
            stream.split("shardId-000000000001", HASH_KEYS // 2, NOW)
        stream.split(FIRST, HASH_KEYS // 2, NOW)
        with refused("InvalidArgumentException"):
            stream.split(FIRST, HASH_KEYS // 2, NOW)

    @pytest.mark.parametrize(("count", "target"), [(4, 9), (4, 1), (5, 2), (1, 3)])
    def test_more_than_double_and_less_than_half_are_refused(self, count: int, target: int) -> None:
        """UpdateShardCount has its bounds."""
        with refused("LimitExceededException"):
            new_stream(count).scale(target, NOW)

    @pytest.mark.parametrize(("count", "target"), [(4, 8), (4, 2), (5, 3), (3, 4)])
    def test_double_and_half_pass(self, count: int, target: int) -> None:
        """The bounds themselves are allowed."""
        stream = new_stream(count)
        stream.scale(target, NOW)
        assert len(stream.map.open) == target

    def test_a_change_shows_for_a_while_and_bars_the_next(self) -> None:
        """While UPDATING, reads and writes go on and further changes are refused."""
        stream = new_stream(settle_seconds=2.0)
        stream.scale(2, NOW)
        assert stream.status(NOW + 1.9) == "UPDATING"
        put(stream, entries(1), NOW + 1)
        with refused("ResourceInUseException"):
            stream.scale(4, NOW + 1)
        assert stream.status(NOW + 2) == "ACTIVE"
        stream.scale(4, NOW + 2)

    def test_closed_shards_expire_with_their_records(self) -> None:
        """After the retention period a parent is no longer listed."""
        stream = new_stream()
        stream.scale(2, NOW + 5)
        assert [shard.index for shard in stream.unexpired(NOW + 6)] == [0, 1, 2]
        assert [shard.index for shard in stream.unexpired(NOW + DAY_SECONDS + 6)] == [1, 2]

    def test_a_snapshot_and_the_records_bring_the_stream_back(self) -> None:
        """It holds the same, and goes on above the numbers of the first."""
        stream = new_stream()
        records = put(stream, entries(3))
        stream.trim_oldest()
        stream.scale(2, NOW)
        copy = Stream("posts", NOW)
        copy.restore(stream.snapshot(), records[1:], NOW)
        assert list(copy.map.shards[0].records) == records[1:]
        assert (copy.map.shards[0].trimmed, copy.stored_bytes) == (1, 20)
        assert [shard.name for shard in copy.map.open] == [shard.name for shard in stream.map.open]
        assert put(copy, [Entry(b"", "k")]) == put(stream, [Entry(b"", "k")])
