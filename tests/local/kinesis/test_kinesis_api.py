import time
from base64 import b64encode
from typing import Any

import orjson
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from multidict import CIMultiDict

from local.kinesis.account import Account, Event, Put, Read
from local.kinesis.api import Answer, answer
from local.kinesis.errors import KinesisError
from local.kinesis.faults import DropAnswer, RequestError, SlowAnswer, ThrottleShard
from local.kinesis.shards import HASH_KEYS
from local.kinesis.sigv4 import AccessKey
from local.kinesis.stream import Snapshot

THROTTLED = "ProvisionedThroughputExceededException"
ARN = "arn:aws:kinesis:us-east-1:000000000000:stream/posts"


class Service:
    """An account with one stream, asked without a server between; `now` is its clock."""

    def __init__(self, shards: int = 1, settle_seconds: float = 0.0) -> None:
        self.now = time.time()
        self.events: list[Event] = []
        self.account = Account(
            region="us-east-1",
            keys={"test": AccessKey("test")},
            memory_limit=1 << 30,
            settle_seconds=settle_seconds,
            keep=self.events.append,
        )
        self.stream = self.account.create("posts", shards, self.now)

    def ask(self, operation: str, *, secret: str = "test", **members: Any) -> Answer:
        body = orjson.dumps(members)
        headers = {
            "Host": "127.0.0.1",
            "X-Amz-Target": f"Kinesis_20131202.{operation}",
            "Content-Type": "application/x-amz-json-1.1",
        }
        request = AWSRequest("POST", "http://127.0.0.1/", data=body, headers=headers)
        SigV4Auth(Credentials("test", secret), "kinesis", "us-east-1").add_auth(request)
        return answer(self.account, CIMultiDict(request.headers.items()), body, self.now)

    def reply(self, operation: str, **members: Any) -> Any:
        return orjson.loads(self.ask(operation, **members).body)

    def refusal(self, operation: str, **members: Any) -> str:
        with pytest.raises(KinesisError) as caught:
            self.ask(operation, **members)
        return caught.value.code


def records(*data: bytes) -> list[dict[str, str]]:
    """Return the entries of a PutRecords request."""
    return [{"Data": b64encode(item).decode(), "PartitionKey": f"k{number}"} for number, item in enumerate(data)]


class TestWriting:
    def test_put_records_tells_where_each_record_is(self) -> None:
        """One result a record, and an event with what was stored."""
        service = Service(2)
        reply = service.reply("PutRecords", StreamName="posts", Records=records(b"a", b"b", b"c"))
        assert reply["FailedRecordCount"] == 0
        stored = sorted((r for s in service.stream.map.shards for r in s.records), key=lambda r: r.position)
        assert reply["Records"] == [
            {
                "SequenceNumber": service.stream.sequence_number(record.position, record.shard),
                "ShardId": f"shardId-{record.shard:012d}",
            }
            for record in stored
        ]
        assert service.events == [Put("posts", stored)]

    def test_a_request_whose_every_record_is_throttled_is_answered(self) -> None:
        """Partial failures are no error, even if there is nothing but failures, and no event."""
        service = Service()
        service.stream.faults.add(ThrottleShard(shard=0), service.now)
        reply = service.reply("PutRecords", StreamARN=ARN, Records=records(b"a", b"b"))
        assert reply["FailedRecordCount"] == 2
        assert [record["ErrorCode"] for record in reply["Records"]] == [THROTTLED] * 2
        assert service.events == []

    def test_a_single_record_fails_as_a_request(self) -> None:
        """PutRecord has no partial failures; the record is counted once, with the records."""
        service = Service()
        assert "SequenceNumber" in service.reply("PutRecord", StreamName="posts", Data="YQ==", PartitionKey="k")
        service.stream.faults.add(ThrottleShard(shard=0), service.now)
        assert service.refusal("PutRecord", StreamName="posts", Data="YQ==", PartitionKey="k") == THROTTLED
        assert service.stream.map.shards[0].facts.throttled_by_fault == 1
        assert not service.account.refused

    @pytest.mark.parametrize(
        ("operation", "members"),
        [("PutRecords", {"Records": records(b"a")}), ("PutRecord", {"Data": "YQ==", "PartitionKey": "k"})],
    )
    def test_a_dry_run_checks_and_stores_nothing(self, operation: str, members: dict[str, Any]) -> None:
        """A request that would succeed gets DryRunOperationException, one that would not gets its own error."""
        service = Service()
        members = {"StreamName": "posts", "DryRun": True} | members
        assert service.refusal(operation, **members) == "DryRunOperationException"
        assert service.refusal(operation, **members | {"StreamName": "other"}) == "ResourceNotFoundException"
        assert service.refusal(operation, **members, secret="wrong") == "InvalidSignatureException"
        service.stream.faults.add(RequestError(code="AccessDeniedException"), service.now)
        assert service.refusal(operation, **members) == "AccessDeniedException"
        assert service.stream.stored_bytes == 0
        assert "DryRunOperationException" not in service.account.refused

    def test_the_order_of_an_automatic_stream_cannot_be_asked_for(self) -> None:
        """SequenceNumberForOrdering is refused with AUTO, and taken without."""
        service = Service()
        members = {"StreamName": "posts", "Data": "YQ==", "PartitionKey": "k", "SequenceNumberForOrdering": "1"}
        service.ask("PutRecord", **members)
        service.ask("UpdateStreamMode", StreamARN=ARN, StreamModeDetails={"StreamMode": "ON_DEMAND"})
        service.ask("UpdateStreamRecordDistributionStrategy", StreamARN=ARN, RecordDistributionStrategy="AUTO")
        assert service.refusal("PutRecord", **members) == "InvalidArgumentException"

    def test_a_read_is_an_event(self) -> None:
        """What was read is known after a restart."""
        service = Service()
        service.ask("PutRecord", StreamName="posts", Data="YQ==", PartitionKey="k")
        token = service.reply(
            "GetShardIterator", StreamName="posts", ShardId="shardId-000000000000", ShardIteratorType="TRIM_HORIZON"
        )
        reply = service.reply("GetRecords", **token)
        assert [record["Data"] for record in reply["Records"]] == ["YQ=="]
        assert service.events[1:] == [Read(service.now, "posts", 0, service.stream.map.position)]


class TestRefusing:
    def test_what_cannot_be_read_is_refused_before_who_signed_it(self) -> None:
        """As in the service, the body comes first."""
        service = Service()
        assert service.refusal("PutRecords", secret="wrong", Records="x") == "SerializationException"
        assert service.refusal("PutRecords", secret="wrong", Records=[]) == "InvalidSignatureException"

    def test_an_operation_that_is_not_there(self) -> None:
        """An unknown operation, another service and another content type are all unknown."""
        service = Service()
        assert service.refusal("PutRecordz") == "UnknownOperationException"
        for headers in (
            {},
            {"X-Amz-Target": "Kinesis_20131202.ListStreams", "Content-Type": "application/x-amz-cbor-1.1"},
            {"X-Amz-Target": "DynamoDB_20120810.ListStreams", "Content-Type": "application/x-amz-json-1.1"},
        ):
            with pytest.raises(KinesisError, match=r"^UnknownOperationException"):
                answer(service.account, CIMultiDict(headers), b"{}", service.now)

    def test_refusals_are_counted_by_code_apart_from_faults(self) -> None:
        """What a client did wrong is not mixed with what was made to go wrong."""
        service = Service()
        service.stream.faults.add(RequestError(code="ExpiredTokenException", requests=1), service.now)
        service.refusal("PutRecords", StreamName="posts", Records=records(b"a"))
        service.refusal("PutRecords", StreamName="posts", Records=[])
        service.refusal("PutRecords", StreamName="other", Records=records(b"a"))
        service.refusal("PutRecords", StreamName="posts", Records=records(b"a"), secret="wrong")
        assert service.account.injected == {"ExpiredTokenException": 1}
        assert service.account.refused == {
            "ValidationException": 1,
            "ResourceNotFoundException": 1,
            "InvalidSignatureException": 1,
        }
        assert service.account.requests == {"PutRecords": 3}

    def test_an_answer_can_be_slow_or_lost(self) -> None:
        """The record is stored, the answer says how it is to be sent."""
        service = Service()
        service.stream.faults.add(SlowAnswer(milliseconds=250), service.now)
        service.stream.faults.add(DropAnswer(), service.now)
        result = service.ask("PutRecords", StreamName="posts", Records=records(b"a"))
        assert (result.delay, result.drop) == (0.25, True)
        assert len(service.stream.map.shards[0].records) == 1


class TestChanging:
    def test_creating_and_deleting(self) -> None:
        """A stream is CREATING, ACTIVE, DELETING and gone; it takes records when it is ACTIVE."""
        service = Service(settle_seconds=2.0)
        assert service.ask("CreateStream", StreamName="new", ShardCount=2, MaxRecordSizeInKiB=2048).body == b""
        assert service.refusal("CreateStream", StreamName="new", ShardCount=2) == "ResourceInUseException"
        assert service.refusal("PutRecords", StreamName="new", Records=records(b"a")) == "ResourceNotFoundException"
        assert service.refusal("ListShards", StreamName="new") == "ResourceInUseException"
        service.now += 2
        service.ask("PutRecords", StreamName="new", Records=records(b"a"))
        summary = service.reply("DescribeStreamSummary", StreamName="new")["StreamDescriptionSummary"]
        assert (summary["StreamStatus"], summary["OpenShardCount"]) == ("ACTIVE", 2)
        assert summary["MaxRecordSizeInKiB"] == 2048
        service.ask("DeleteStream", StreamName="new")
        summary = service.reply("DescribeStreamSummary", StreamName="new")["StreamDescriptionSummary"]
        assert summary["StreamStatus"] == "DELETING"
        service.now += 2
        assert service.refusal("DescribeStreamSummary", StreamName="new") == "ResourceNotFoundException"
        assert service.reply("ListStreams")["StreamNames"] == ["posts"]

    def test_an_on_demand_stream_starts_with_four_shards(self) -> None:
        """Its shards are the service's to choose, its strategy is the caller's."""
        service = Service()
        mode = {"StreamMode": "ON_DEMAND"}
        service.ask("CreateStream", StreamName="new", StreamModeDetails=mode, RecordDistributionStrategy="AUTO")
        assert len(service.reply("ListShards", StreamName="new")["Shards"]) == 4
        reply = service.reply("PutRecords", StreamName="new", Records=[{"Data": "YQ=="}] * 4)
        assert len({record["ShardId"] for record in reply["Records"]}) == 4

    @pytest.mark.parametrize(
        "members",
        [
            {"StreamName": "new"},
            {"ShardCount": 1},
            {"StreamName": "new", "ShardCount": 1, "StreamModeDetails": {"StreamMode": "ON_DEMAND"}},
            {"StreamName": "new", "ShardCount": 1, "RecordDistributionStrategy": "AUTO"},
        ],
    )
    def test_what_does_not_belong_to_the_mode_is_refused(self, members: dict[str, Any]) -> None:
        """Shards belong to provisioned streams, strategies to on-demand ones, a name to both."""
        assert Service().refusal("CreateStream", **members) == "ValidationException"

    def test_resharding(self) -> None:
        """Split, merge and scale answer at once, and each is an event."""
        service = Service()
        service.ask(
            "SplitShard",
            StreamName="posts",
            ShardToSplit="shardId-000000000000",
            NewStartingHashKey=str(HASH_KEYS // 2),
        )
        service.ask(
            "MergeShards",
            StreamName="posts",
            ShardToMerge="shardId-000000000001",
            AdjacentShardToMerge="shardId-000000000002",
        )
        reply = service.reply("UpdateShardCount", StreamName="posts", TargetShardCount=2, ScalingType="UNIFORM_SCALING")
        assert reply == {"StreamName": "posts", "StreamARN": ARN, "CurrentShardCount": 1, "TargetShardCount": 2}
        assert [shard.index for shard in service.stream.map.open] == [4, 5]
        assert all(isinstance(event, Snapshot) for event in service.events)
        assert len(service.events) == 3

    def test_the_record_limit(self) -> None:
        """UpdateMaxRecordSize lets larger records in."""
        service = Service()
        large = [{"Data": b64encode(bytes(2 << 20)).decode(), "PartitionKey": "k"}]
        assert service.refusal("PutRecords", StreamName="posts", Records=large) == "InvalidArgumentException"
        service.ask("UpdateMaxRecordSize", StreamARN=ARN, MaxRecordSizeInKiB=10_240)
        assert service.reply("PutRecords", StreamName="posts", Records=large)["FailedRecordCount"] == 0

    def test_calls_are_limited(self) -> None:
        """The twenty-first DescribeStreamSummary within a second is refused."""
        service = Service()
        for _ in range(20):
            service.ask("DescribeStreamSummary", StreamName="posts")
        assert service.refusal("DescribeStreamSummary", StreamName="posts") == "LimitExceededException"
        assert service.account.refused == {"LimitExceededException": 1}
