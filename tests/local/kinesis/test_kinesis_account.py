from itertools import pairwise

import pytest

from local.kinesis.account import Account, Event, Put, Read
from local.kinesis.errors import KinesisError
from local.kinesis.limits import Entry
from local.kinesis.shards import Record
from local.kinesis.stream import Stream

NOW = 1_800_000_000.0
DAY = 86_400.0


def new_account(memory_limit: int = 1 << 30, settle_seconds: float = 0.0) -> Account:
    """Return an account without streams."""
    return Account(region="eu-west-1", keys={}, memory_limit=memory_limit, settle_seconds=settle_seconds)


def put(stream: Stream, count: int, now: float) -> Put:
    """Store records of 10 bytes; return the event that says so."""
    results = stream.put([Entry(b"d" * 6, f"{number:04d}") for number in range(count)], now)
    return Put(stream.name, [result for result in results if isinstance(result, Record)])


def refused(code: str) -> pytest.RaisesExc[KinesisError]:
    """Expect a refusal with this code."""
    return pytest.RaisesExc(KinesisError, match=f"^{code}: ")


def ledger(account: Account) -> dict[str, list[tuple[list[Record], int, int, int]]]:
    """Return what is kept and counted of each shard of each stream."""
    return {
        name: [
            (list(shard.records), shard.facts.accepted, shard.trimmed, shard.facts.trimmed_unread)
            for shard in stream.map.shards
        ]
        for name, stream in account.streams.items()
    }


class TestFinding:
    def test_by_name_by_arn_and_by_both(self) -> None:
        """All three lead to the stream; its ARN has region and account."""
        account = new_account()
        stream = account.create("posts", 1, NOW)
        arn = "arn:aws:kinesis:eu-west-1:000000000000:stream/posts"
        assert stream.facts.arn == arn
        assert account.find("posts", None) is stream
        assert account.find(None, arn) is stream
        assert account.find("posts", arn) is stream

    @pytest.mark.parametrize(
        ("name", "arn", "code"),
        [
            (None, None, "InvalidArgumentException"),
            ("other", None, "ResourceNotFoundException"),
            (None, "arn:aws:kinesis:us-east-1:000000000000:stream/posts", "ResourceNotFoundException"),
            (None, "arn:aws:kinesis:eu-west-1:111111111111:stream/posts", "ResourceNotFoundException"),
            ("posts", "arn:aws:kinesis:eu-west-1:000000000000:stream/other", "ResourceNotFoundException"),
        ],
    )
    def test_what_is_not_there(self, name: str | None, arn: str | None, code: str) -> None:
        """Another name, region or account is another stream."""
        account = new_account()
        account.create("posts", 1, NOW)
        with refused(code):
            account.find(name, arn)

    def test_a_deleted_stream_is_gone_when_it_has_settled(self) -> None:
        """It shows as DELETING first."""
        account = new_account(settle_seconds=2.0)
        stream = account.create("posts", 1, NOW)
        stream.settle("DELETING", NOW)
        account.tidy(NOW + 1)
        assert account.find("posts", None).status(NOW + 1) == "DELETING"
        account.tidy(NOW + 2)
        with refused("ResourceNotFoundException"):
            account.find("posts", None)

    def test_a_name_is_given_once(self) -> None:
        """A stream that is there is not made again."""
        account = new_account()
        account.create("posts", 1, NOW)
        with refused("ResourceInUseException"):
            account.require_free("posts", NOW)

    def test_five_streams_at_most_are_being_made(self) -> None:
        """The sixth in the CREATING state is refused, until one is ACTIVE."""
        account = new_account(settle_seconds=1.0)
        for number in range(5):
            account.create(f"s{number}", 1, NOW).settle("CREATING", NOW)
        with refused("LimitExceededException"):
            account.require_free("s5", NOW)
        account.require_free("s5", NOW + 1)


class TestCallRates:
    def test_describing_twenty_times_a_second(self) -> None:
        """The twenty-first DescribeStreamSummary within a second is refused."""
        account = new_account()
        for _ in range(20):
            account.count_call("DescribeStreamSummary", "posts", NOW)
        with refused("LimitExceededException"):
            account.count_call("DescribeStreamSummary", "other", NOW)
        account.count_call("DescribeStreamSummary", "posts", NOW + 0.06)

    def test_listing_shards_is_counted_for_each_stream(self) -> None:
        """1,000 calls a second on one stream leave another one alone."""
        account = new_account()
        for _ in range(1000):
            account.count_call("ListShards", "posts", NOW)
        with refused("LimitExceededException"):
            account.count_call("ListShards", "posts", NOW)
        account.count_call("ListShards", "other", NOW)

    def test_writes_have_no_such_limit(self) -> None:
        """Only shards limit writes."""
        account = new_account()
        for _ in range(5000):
            account.count_call("PutRecords", "posts", NOW)


class TestMemory:
    def test_the_oldest_records_of_all_streams_go_first(self) -> None:
        """Above the limit it is age that counts, whichever stream holds the record."""
        account = new_account(memory_limit=100)
        one, two = account.create("one", 1, NOW), account.create("two", 1, NOW)
        for second in range(10):
            put(one if second % 2 else two, 2, NOW + second)
        account.tidy(NOW + 10)
        assert one.stored_bytes + two.stored_bytes == 100
        assert [record.arrival - NOW for record in one.map.shards[0].records] == [5, 5, 7, 7, 9, 9]
        assert [record.arrival - NOW for record in two.map.shards[0].records] == [6, 6, 8, 8]

    def test_age_trims_all_streams(self) -> None:
        """A stream nobody writes to forgets as well."""
        account = new_account()
        put(account.create("one", 1, NOW), 3, NOW)
        account.tidy(NOW + DAY + 1)
        assert account.streams["one"].stored_bytes == 0


class TestReplay:
    def test_events_bring_everything_back(self) -> None:
        """Records, topology, trims and what was read come out of the events as they were."""
        account = new_account(memory_limit=600)
        stream = account.create("posts", 2, NOW)
        account.create("gone", 1, NOW).settle("DELETING", NOW)
        events: list[Event] = [stream.snapshot(NOW), account.streams["gone"].snapshot(NOW)]
        replayed = new_account(memory_limit=600)
        for second in range(8):
            events.append(put(stream, 10, NOW + second))
            if second == 3:
                stream.scale(3, NOW + second)
                account.tidy(NOW + second)
                events.append(stream.snapshot(NOW + second))
            if second == 5:
                shard = stream.map.shards[0]
                reading = stream.read(shard, 0, 3, NOW + second)
                events.append(Read(NOW + second, "posts", shard.index, reading.records[-1].position))
            account.tidy(NOW + second)
            for event in events:
                replayed.apply(event)
            events.clear()
        replayed.tidy(NOW + 8)
        account.tidy(NOW + 8)
        assert ledger(replayed) == ledger(account)
        again, original = put(replayed.streams["posts"], 5, NOW + 20), put(stream, 5, NOW + 20)
        assert again == original

    def test_a_stream_made_anew_replaces_the_old_one(self) -> None:
        """Records of a deleted stream do not come back under its name."""
        account, replayed = new_account(), new_account()
        old = account.create("posts", 1, NOW)
        for event in (old.snapshot(NOW), put(old, 3, NOW)):
            replayed.apply(event)
        replayed.apply(account.create("posts", 2, NOW + 10).snapshot(NOW + 10))
        assert replayed.streams["posts"].stored_bytes == 0
        assert len(replayed.streams["posts"].map.open) == 2

    def test_trimmed_to_names_the_last_position_that_is_gone(self) -> None:
        """Everything up to it is not kept, what follows is."""
        account = new_account()
        stream = account.create("posts", 1, NOW)
        records = put(stream, 3, NOW).records
        positions = [account.trimmed_to()["posts"]]
        for _ in records:
            stream.trim_oldest()
            positions.append(account.trimmed_to()["posts"])
        assert positions == [records[0].position - 1, *(record.position for record in records)]
        assert all(before < after for before, after in pairwise(positions))
