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
    account = Account(memory_limit=1 << 30, settle_seconds=0.0)
    return account, account.create("posts", shards, NOW)


def call(account: Account, now: float = NOW) -> Call:
    """Return a call on the stream at this time."""
    return Call(account, account.streams["posts"], now, NO_FAULTS)


def put(stream: Stream, count: int, now: float = NOW) -> list[Record]:
    """Store small records, of which none may fail."""
    results = stream.put([Entry(f"data {number}".encode(), f"key {number}") for number in range(count)], now)
    return [result for result in results if isinstance(result, Record)]


def iterator(account: Account, kind: Any, number: str | None = None) -> str:
    """Return an iterator of the first shard."""
    request = requests.GetShardIterator(shard_id=FIRST, shard_iterator_type=kind, starting_sequence_number=number)
    token = get_shard_iterator(request, call(account))["ShardIterator"]
    assert isinstance(token, str)
    return token


def read(account: Account, token: str, now: float = NOW, limit: int = 10_000) -> dict[str, Any]:
    """Read on from an iterator."""
    return get_records(requests.GetRecords(shard_iterator=token, limit=limit), call(account, now))


def refused(code: str) -> pytest.RaisesExc[KinesisError]:
    """Expect a refusal with this code."""
    return pytest.RaisesExc(KinesisError, match=f"^{code}: ")


class TestReading:
    def test_each_iterator_starts_where_it_says(self) -> None:
        """At the beginning, behind a number, behind all that was there when it was made."""
        account, stream = new_stream()
        early = put(stream, 3)
        number = stream.sequence_number(early[1].position, 0)
        tokens = [
            iterator(account, "TRIM_HORIZON"),
            iterator(account, "AFTER_SEQUENCE_NUMBER", number=number),
            iterator(account, "LATEST"),
        ]
        records = early + put(stream, 2)
        for token, first in zip(tokens, (0, 2, 3), strict=True):
            numbers = [record["SequenceNumber"] for record in read(account, token)["Records"]]
            assert numbers == [stream.sequence_number(record.position, 0) for record in records[first:]]

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

    def test_a_closed_shard_ends(self) -> None:
        """There is no next iterator once the last record is read."""
        account, stream = new_stream()
        put(stream, 2)
        stream.split(FIRST, HASH_KEYS // 2, NOW)
        first = read(account, iterator(account, "TRIM_HORIZON"), limit=1)
        assert "NextShardIterator" not in read(account, first["NextShardIterator"])

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

    @pytest.mark.parametrize(("kind", "number"), [("AFTER_SEQUENCE_NUMBER", None), ("TRIM_HORIZON", "1")])
    def test_what_does_not_belong_together_is_refused(self, kind: str, number: str | None) -> None:
        """A number too many, or too few."""
        account, _ = new_stream()
        with refused("InvalidArgumentException"):
            iterator(account, kind, number=number)

    def test_five_iterators_a_second(self) -> None:
        """The sixth of a shard within a second is refused."""
        account, _ = new_stream()
        for _number in range(5):
            iterator(account, "LATEST")
        with refused("ProvisionedThroughputExceededException"):
            iterator(account, "LATEST")


class TestListing:
    @pytest.mark.parametrize(
        ("members", "hours", "numbers"),
        [
            ({}, 2, [0, 1, 2, 3, 4]),
            ({"shard_filter": requests.ShardFilter("FROM_TRIM_HORIZON")}, 2, [0, 1, 2, 3, 4]),
            ({"shard_filter": requests.ShardFilter("AT_LATEST")}, 2, [2, 4]),
            ({"shard_filter": requests.ShardFilter("AT_TRIM_HORIZON")}, 2, [0, 1]),
            ({"shard_filter": requests.ShardFilter("AT_TRIM_HORIZON")}, 25.5, [1, 2, 3]),
            ({"shard_filter": requests.ShardFilter("AFTER_SHARD_ID", "shardId-000000000002")}, 2, [3, 4]),
            ({"exclusive_start_shard_id": "shardId-000000000002"}, 2, [3, 4]),
        ],
    )
    def test_which_shards_a_filter_lets_through(
        self, members: dict[str, Any], hours: float, numbers: list[int]
    ) -> None:
        """All that have not expired, the open ones, those that were open 24 hours ago, and those behind one."""
        account, stream = new_stream(2)
        stream.split(FIRST, HASH_KEYS // 4, NOW + 3600)
        stream.merge("shardId-000000000003", "shardId-000000000001", NOW + 7200)
        reply = list_shards(requests.ListShards(stream_name="posts", **members), call(account, NOW + hours * 3600))
        assert [int(shard["ShardId"].removeprefix("shardId-")) for shard in reply["Shards"]] == numbers

    @pytest.mark.parametrize(("kind", "shard"), [("AFTER_SHARD_ID", None), ("AT_LATEST", FIRST)])
    def test_a_filter_with_a_shard_that_it_does_not_need_or_without_one_that_it_does(
        self, kind: Any, shard: str | None
    ) -> None:
        """Both are refused."""
        account, _ = new_stream()
        with refused("InvalidArgumentException"):
            list_shards(requests.ListShards(shard_filter=requests.ShardFilter(kind, shard)), call(account))

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


class TestDescribing:
    def test_the_summary_is_whole(self) -> None:
        """It has all that the service model requires."""
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

    def test_a_description_shows_a_page_of_shards(self) -> None:
        """Up to 100 of them, and whether there are more."""
        account, _ = new_stream(103)
        pages: list[Any] = []
        start = None
        for limit in (1000, 2, 2):
            request = requests.DescribeStream(limit=limit, exclusive_start_shard_id=start)
            pages.append(describe_stream(request, call(account))["StreamDescription"])
            start = pages[-1]["Shards"][-1]["ShardId"]
        assert [(len(page["Shards"]), page["HasMoreShards"]) for page in pages] == [(100, True), (2, True), (1, False)]

    def test_streams_are_listed_by_name_and_page(self) -> None:
        """The last name of a page, and its token, lead on to the next one."""
        account, _ = new_stream()
        account.create("other", 1, NOW)
        first = list_streams(requests.ListStreams(limit=1), account, NOW)
        assert (first["StreamNames"], first["HasMoreStreams"]) == (["other"], True)
        for request in (
            requests.ListStreams(next_token=first["NextToken"]),
            requests.ListStreams(exclusive_start_stream_name="other"),
        ):
            last = list_streams(request, account, NOW)
            assert (last["StreamNames"], last["HasMoreStreams"], "NextToken" in last) == (["posts"], False, False)
