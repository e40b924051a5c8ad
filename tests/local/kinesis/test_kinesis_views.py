from typing import Any

import pytest

from local.kinesis import requests
from local.kinesis.account import Account, Call
from local.kinesis.errors import KinesisError
from local.kinesis.faults import NO_FAULTS
from local.kinesis.limits import Entry
from local.kinesis.shards import HASH_KEYS, Record
from local.kinesis.stream import Stream
from local.kinesis.views import (
    describe_stream,
    describe_stream_summary,
    get_records,
    get_shard_iterator,
    list_shards,
    list_streams,
    stream_of,
)

NOW = 1_800_000_000.0
FIRST = "shardId-000000000000"


def new_stream(shards: int = 1) -> tuple[Account, Stream]:
    """Return an account with one ACTIVE stream."""
    account = Account(region="us-east-1", keys={}, memory_limit=1 << 30, settle_seconds=1.0)
    return account, account.create("posts", shards, NOW)


def call(account: Account, now: float = NOW) -> Call:
    """Return a call on the stream at this time."""
    return Call(account, account.streams["posts"], now, NO_FAULTS)


def put(stream: Stream, count: int, now: float = NOW) -> list[Record]:
    """Store small records, of which none may fail."""
    results = stream.put([Entry(f"data {number}".encode(), f"key {number}") for number in range(count)], now)
    return [result for result in results if isinstance(result, Record)]


def iterator(account: Account, kind: str, shard: str = FIRST, now: float = NOW, **where: Any) -> str:
    """Return an iterator."""
    request = requests.GetShardIterator(shard_id=shard, shard_iterator_type=kind, **where)
    token = get_shard_iterator(request, call(account, now))["ShardIterator"]
    assert isinstance(token, str)
    return token


def read(account: Account, token: str, now: float = NOW, limit: int = 10_000) -> dict[str, Any]:
    """Read on from an iterator."""
    return get_records(requests.GetRecords(shard_iterator=token, limit=limit), call(account, now))


def names(reply: dict[str, Any]) -> list[int]:
    """Return the numbers of the shards in a reply."""
    return [int(shard["ShardId"].removeprefix("shardId-")) for shard in reply["Shards"]]


def listed(account: Account, kind: str, now: float, **where: Any) -> list[int]:
    """Return the numbers of the shards that pass a filter."""
    request = requests.ListShards(stream_name="posts", shard_filter=requests.ShardFilter(kind, **where))
    return names(list_shards(request, call(account, now)))


def refused(code: str) -> pytest.RaisesExc[KinesisError]:
    """Expect a refusal with this code."""
    return pytest.RaisesExc(KinesisError, match=f"^{code}: ")


class TestReading:
    def test_each_iterator_starts_where_it_says(self) -> None:
        """Beginning, end, at or after a number, at a time."""
        account, stream = new_stream()
        early, late = put(stream, 3), put(stream, 3, NOW + 10)
        number = stream.sequence_number(early[1].position, 0)
        later = NOW + 20

        def positions(kind: str, **where: Any) -> list[int]:
            reply = read(account, iterator(account, kind, now=later, **where), later + len(seen))
            seen.append(kind)
            return [stream.position(record["SequenceNumber"], stream.map.shards[0]) for record in reply["Records"]]

        seen: list[str] = []
        everything = [record.position for record in early + late]
        assert positions("TRIM_HORIZON") == everything
        assert positions("AT_SEQUENCE_NUMBER", starting_sequence_number=number) == everything[1:]
        assert positions("AFTER_SEQUENCE_NUMBER", starting_sequence_number=number) == everything[2:]
        assert positions("AT_TIMESTAMP", timestamp=NOW + 5) == everything[3:]
        later += 10
        assert positions("LATEST") == []

    def test_latest_reads_what_comes_after_it(self) -> None:
        """Records put after the iterator was made are seen."""
        account, stream = new_stream()
        put(stream, 3)
        token = iterator(account, "LATEST")
        records = put(stream, 2)
        assert [record["PartitionKey"] for record in read(account, token)["Records"]] == ["key 0", "key 1"]
        assert stream.map.shards[0].facts.read_to == records[-1].position

    def test_a_record_is_shown_whole(self) -> None:
        """Data in base64, time in seconds with milliseconds, key as given."""
        account, stream = new_stream()
        put(stream, 1, NOW + 0.1234)
        (record,) = read(account, iterator(account, "TRIM_HORIZON"))["Records"]
        assert record == {
            "SequenceNumber": record["SequenceNumber"],
            "ApproximateArrivalTimestamp": NOW + 0.123,
            "Data": "ZGF0YSAw",
            "PartitionKey": "key 0",
        }

    def test_how_far_behind(self) -> None:
        """Zero at the tip, else the age of the last record read."""
        account, stream = new_stream()
        put(stream, 3)
        reply = read(account, iterator(account, "TRIM_HORIZON"), NOW + 2.5, limit=2)
        assert reply["MillisBehindLatest"] == 2500
        assert read(account, reply["NextShardIterator"], NOW + 2.5)["MillisBehindLatest"] == 0

    def test_the_end_of_a_closed_shard_names_the_children(self) -> None:
        """There is no next iterator, and what follows is told once the last record is read."""
        account, stream = new_stream()
        put(stream, 2)
        stream.split(FIRST, HASH_KEYS // 2, NOW)
        first = read(account, iterator(account, "TRIM_HORIZON"), limit=1)
        assert "ChildShards" not in first
        last = read(account, first["NextShardIterator"])
        assert "NextShardIterator" not in last
        assert last["ChildShards"] == [
            {
                "ShardId": "shardId-000000000001",
                "ParentShards": [FIRST],
                "HashKeyRange": {"StartingHashKey": "0", "EndingHashKey": str(HASH_KEYS // 2 - 1)},
            },
            {
                "ShardId": "shardId-000000000002",
                "ParentShards": [FIRST],
                "HashKeyRange": {"StartingHashKey": str(HASH_KEYS // 2), "EndingHashKey": str(HASH_KEYS - 1)},
            },
        ]

    def test_an_iterator_lives_five_minutes(self) -> None:
        """After 300 seconds it is expired."""
        account, _ = new_stream()
        token = iterator(account, "TRIM_HORIZON")
        read(account, token, NOW + 300)
        with refused("ExpiredIteratorException"):
            read(account, token, NOW + 300.1)

    @pytest.mark.parametrize("token", ["x", "eA==", "WzEsMl0=", "日本"])
    def test_an_iterator_of_ones_own_making_is_refused(self, token: str) -> None:
        """What was not handed out cannot be used."""
        account, _ = new_stream()
        with refused("InvalidArgumentException"):
            stream_of(requests.GetRecords(shard_iterator=token), account)

    def test_an_iterator_of_a_stream_that_is_gone_is_refused(self) -> None:
        """A stream made anew under the same name is another one."""
        account, _ = new_stream()
        token = iterator(account, "TRIM_HORIZON")
        account.create("posts", 1, NOW + 1)
        with refused("ResourceNotFoundException"):
            stream_of(requests.GetRecords(shard_iterator=token), account)

    @pytest.mark.parametrize(
        ("kind", "where"),
        [
            ("AT_SEQUENCE_NUMBER", {}),
            ("TRIM_HORIZON", {"starting_sequence_number": "1"}),
            ("AT_TIMESTAMP", {}),
            ("LATEST", {"timestamp": NOW}),
            ("AT_TIMESTAMP", {"timestamp": NOW + 1}),
        ],
    )
    def test_what_does_not_belong_together_is_refused(self, kind: str, where: dict[str, Any]) -> None:
        """A number or a time too many, too few, or in the future."""
        account, _ = new_stream()
        with refused("InvalidArgumentException"):
            iterator(account, kind, **where)

    def test_five_iterators_a_second(self) -> None:
        """The sixth of a shard within a second is refused."""
        account, _ = new_stream()
        for _number in range(5):
            iterator(account, "LATEST")
        with refused("ProvisionedThroughputExceededException"):
            iterator(account, "LATEST")


class TestListing:
    def test_filters(self) -> None:
        """Each filter gives the shards that were open when it says."""
        account, stream = new_stream(2)
        stream.split(FIRST, HASH_KEYS // 4, NOW + 10)
        stream.merge("shardId-000000000002", "shardId-000000000003", NOW + 20)
        now = NOW + 30
        assert listed(account, "AT_LATEST", now) == [1, 4]
        assert listed(account, "FROM_TRIM_HORIZON", now) == [0, 1, 2, 3, 4]
        assert listed(account, "AT_TRIM_HORIZON", now) == [0, 1]
        assert listed(account, "AT_TIMESTAMP", now, timestamp=NOW + 15) == [1, 2, 3]
        assert listed(account, "FROM_TIMESTAMP", now, timestamp=NOW + 15) == [1, 2, 3, 4]
        assert listed(account, "AFTER_SHARD_ID", now, shard_id="shardId-000000000002") == [3, 4]
        assert names(list_shards(requests.ListShards(stream_name="posts"), call(account, now))) == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("kind", ["AFTER_SHARD_ID", "AT_TIMESTAMP", "FROM_TIMESTAMP"])
    def test_a_filter_needs_its_value(self, kind: str) -> None:
        """A shard or a time is missing."""
        account, _ = new_stream()
        with refused("InvalidArgumentException"):
            listed(account, kind, NOW)

    def test_parents_and_ranges_are_shown(self) -> None:
        """A closed shard has an ending sequence number, a child its parents."""
        account, stream = new_stream(2)
        stream.merge("shardId-000000000001", FIRST, NOW)
        closed, _, child = list_shards(requests.ListShards(stream_name="posts"), call(account))["Shards"]
        assert child["ParentShardId"] == "shardId-000000000001"
        assert child["AdjacentParentShardId"] == FIRST
        assert "EndingSequenceNumber" not in child["SequenceNumberRange"]
        assert (
            closed["SequenceNumberRange"]["EndingSequenceNumber"]
            < child["SequenceNumberRange"]["StartingSequenceNumber"]
        )

    def test_pages_keep_the_filter_and_end(self) -> None:
        """A token leads to the next page of the same list, whatever its size."""
        account, stream = new_stream(5)
        stream.split(FIRST, HASH_KEYS // 10, NOW)
        chosen = requests.ShardFilter("AT_LATEST")
        reply = list_shards(requests.ListShards(stream_name="posts", shard_filter=chosen, max_results=2), call(account))
        pages = [names(reply)]
        while token := reply.get("NextToken"):
            request = requests.ListShards(next_token=token, max_results=3)
            assert stream_of(request, account) is stream
            reply = list_shards(request, call(account))
            pages.append(names(reply))
        assert pages == [[1, 2], [3, 4, 5], [6]]

    def test_a_token_lives_five_minutes_and_names_the_stream(self) -> None:
        """An expired token is refused, and so is one beside a stream's name."""
        account, _ = new_stream(2)
        reply = list_shards(requests.ListShards(stream_name="posts", max_results=1), call(account))
        request = requests.ListShards(next_token=reply["NextToken"])
        with refused("ExpiredNextTokenException"):
            list_shards(request, call(account, NOW + 301))
        request.stream_name = "posts"
        with refused("InvalidArgumentException"):
            stream_of(request, account)

    def test_streams_come_in_pages_by_name(self) -> None:
        """The token of a page leads to the next one."""
        account, _ = new_stream()
        for name in ("alpha", "zeta"):
            account.create(name, 1, NOW)
        first = list_streams(requests.ListStreams(limit=2), account, NOW)
        assert first["StreamNames"] == ["alpha", "posts"]
        assert first["HasMoreStreams"]
        rest = list_streams(requests.ListStreams(next_token=first["NextToken"]), account, NOW)
        assert rest["StreamNames"] == ["zeta"]
        assert not rest["HasMoreStreams"]
        assert rest["StreamSummaries"][0]["StreamARN"] == "arn:aws:kinesis:us-east-1:000000000000:stream/zeta"


class TestDescribing:
    def test_a_provisioned_stream(self) -> None:
        """The summary has all that the service model requires, and no distribution strategy."""
        account, _ = new_stream(3)
        summary = describe_stream_summary(requests.Request(), call(account))["StreamDescriptionSummary"]
        assert summary == {
            "StreamName": "posts",
            "StreamARN": "arn:aws:kinesis:us-east-1:000000000000:stream/posts",
            "StreamStatus": "ACTIVE",
            "StreamModeDetails": {"StreamMode": "PROVISIONED"},
            "RetentionPeriodHours": 24,
            "StreamCreationTimestamp": int(NOW),
            "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
            "EncryptionType": "NONE",
            "OpenShardCount": 3,
            "ConsumerCount": 0,
            "MaxRecordSizeInKiB": 1024,
            "ChannelCount": 0,
        }

    def test_an_on_demand_stream_shows_who_chooses_the_shard(self) -> None:
        """The strategy is there in ON_DEMAND mode only."""
        account, stream = new_stream()
        stream.set_mode("ON_DEMAND", NOW)
        stream.set_strategy("AUTO", NOW + 1)
        summary = describe_stream_summary(requests.Request(), call(account))["StreamDescriptionSummary"]
        assert summary["RecordDistributionStrategy"] == "AUTO"
        assert summary["StreamModeDetails"] == {"StreamMode": "ON_DEMAND"}

    def test_shards_come_a_hundred_at_a_time(self) -> None:
        """A larger limit does not help, the last shard leads on."""
        account, _ = new_stream(150)
        first = describe_stream(requests.DescribeStream(limit=10_000), call(account))["StreamDescription"]
        assert (len(first["Shards"]), first["HasMoreShards"]) == (100, True)
        last = first["Shards"][-1]["ShardId"]
        rest = describe_stream(requests.DescribeStream(exclusive_start_shard_id=last), call(account))
        assert (len(rest["StreamDescription"]["Shards"]), rest["StreamDescription"]["HasMoreShards"]) == (50, False)

    def test_a_stream_that_is_being_made_has_no_shards_yet(self) -> None:
        """While CREATING, none are shown."""
        account, stream = new_stream(4)
        stream.settle("CREATING", NOW)
        description = describe_stream(requests.DescribeStream(), call(account))["StreamDescription"]
        assert (description["StreamStatus"], description["Shards"]) == ("CREATING", [])
