import time
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from multidict import CIMultiDict

from local.kinesis.account import Account
from local.kinesis.api import Answer, answer
from local.kinesis.errors import KinesisError
from local.kinesis.faults import DropAnswer, RequestError, SlowAnswer, ThrottleShard
from local.kinesis.shards import HASH_KEYS, MIB, Record
from local.kinesis.stream import Stream

THROTTLED = "ProvisionedThroughputExceededException"
ARN = "arn:aws:kinesis:us-east-1:000000000000:stream/posts"


class Service:
    """An account with one stream, asked without a server between; `now` is its clock."""

    def __init__(self, shards: int = 1, settle_seconds: float = 0.0) -> None:
        self.now = time.time()
        self.kept: list[Sequence[Record]] = []
        self.account = Account(memory_limit=1 << 30, settle_seconds=settle_seconds)
        self.account.keep = self._keep
        self.stream = self.account.create("posts", shards, self.now)

    def _keep(self, stream: Stream, records: Sequence[Record]) -> None:
        assert self.account.streams[stream.name] is stream
        self.kept.append(records)

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

    def summary(self) -> tuple[str, str, int, int]:
        summary = self.reply("DescribeStreamSummary", StreamName="new")["StreamDescriptionSummary"]
        mode, size = summary["StreamModeDetails"]["StreamMode"], summary["MaxRecordSizeInKiB"]
        return summary["StreamStatus"], mode, size, summary["OpenShardCount"]


def records(*data: bytes) -> list[dict[str, str]]:
    """Return the entries of a PutRecords request."""
    return [{"Data": b64encode(item).decode(), "PartitionKey": f"k{number}"} for number, item in enumerate(data)]


class TestWriting:
    def test_put_records_tells_where_each_record_is(self) -> None:
        """One result a record, and what was stored is kept."""
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
        assert service.kept == [stored]

    def test_a_request_whose_every_record_is_throttled_is_answered(self) -> None:
        """Partial failures are no error, even if there is nothing but failures, and nothing is kept."""
        service = Service()
        service.stream.faults.add(ThrottleShard(shard=0), service.now)
        reply = service.reply("PutRecords", StreamARN=ARN, Records=records(b"a", b"b"))
        assert reply["FailedRecordCount"] == 2
        assert [record["ErrorCode"] for record in reply["Records"]] == [THROTTLED] * 2
        assert service.kept == []

    def test_a_single_record_fails_as_a_request(self) -> None:
        """PutRecord has no partial failures."""
        service = Service()
        assert "SequenceNumber" in service.reply("PutRecord", StreamName="posts", Data="YQ==", PartitionKey="k")
        service.stream.faults.add(ThrottleShard(shard=0), service.now)
        assert service.refusal("PutRecord", StreamName="posts", Data="YQ==", PartitionKey="k") == THROTTLED
        assert service.stream.map.shards[0].facts.throttled == 1
        assert service.account.refused == {THROTTLED: 1}


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
            {"X-Amz-Target": "Kinesis_20131202.ListShards", "Content-Type": "application/x-amz-cbor-1.1"},
            {"X-Amz-Target": "DynamoDB_20120810.ListShards", "Content-Type": "application/x-amz-json-1.1"},
        ):
            with pytest.raises(KinesisError, match=r"^UnknownOperationException"):
                answer(service.account, CIMultiDict(headers), b"{}", service.now)

    def test_refusals_are_counted_by_code(self) -> None:
        """What a client did wrong, and what was made to go wrong."""
        service = Service()
        service.stream.faults.add(RequestError(code="ExpiredTokenException", requests=1), service.now)
        service.refusal("PutRecords", StreamName="posts", Records=records(b"a"))
        service.refusal("PutRecords", StreamName="posts", Records=[])
        service.refusal("PutRecords", StreamName="other", Records=records(b"a"))
        service.refusal("PutRecords", StreamName="posts", Records=records(b"a"), secret="wrong")
        assert service.account.refused == {
            "ExpiredTokenException": 1,
            "ValidationException": 1,
            "ResourceNotFoundException": 1,
            "InvalidSignatureException": 1,
        }

    def test_an_answer_can_be_slow_or_lost(self) -> None:
        """The record is stored, the answer says how it is to be sent."""
        service = Service()
        service.stream.faults.add(SlowAnswer(milliseconds=250), service.now)
        service.stream.faults.add(DropAnswer(), service.now)
        result = service.ask("PutRecords", StreamName="posts", Records=records(b"a"))
        assert (result.delay, result.drop) == (0.25, True)
        assert len(service.stream.map.shards[0].records) == 1


class TestChanging:
    def test_the_life_of_a_stream(self) -> None:
        """CREATING, ACTIVE, UPDATING, DELETING and gone; what has to wait for that is refused, and all is kept."""
        service = Service(settle_seconds=2.0)
        one = {"Data": b64encode(bytes(MIB + 1)).decode(), "PartitionKey": "k"}
        arn = ARN.replace("posts", "new")
        assert service.ask("CreateStream", StreamName="new", ShardCount=2, MaxRecordSizeInKiB=1024).body == b""
        assert service.summary() == ("CREATING", "PROVISIONED", 1024, 0)
        for operation, members, code in (
            ("CreateStream", {"ShardCount": 2}, "ResourceInUseException"),
            ("DeleteStream", {}, "ResourceInUseException"),
            ("ListShards", {}, "ResourceInUseException"),
            ("PutRecord", {"Data": "", "PartitionKey": "k"}, "ResourceNotFoundException"),
            (
                "GetShardIterator",
                {"ShardId": "shardId-000000000000", "ShardIteratorType": "LATEST"},
                "ResourceNotFoundException",
            ),
        ):
            assert service.refusal(operation, StreamName="new", **members) == code
        service.now += 2
        assert service.refusal("PutRecord", StreamName="new", **one) == "InvalidArgumentException"
        service.ask("UpdateMaxRecordSize", StreamARN=arn, MaxRecordSizeInKiB=2048)
        assert service.summary() == ("UPDATING", "PROVISIONED", 2048, 2)
        mode = {"StreamMode": "ON_DEMAND"}
        assert service.refusal("UpdateStreamMode", StreamARN=arn, StreamModeDetails=mode) == "ResourceInUseException"
        service.ask("PutRecord", StreamName="new", **one)
        service.now += 2
        service.ask("UpdateStreamMode", StreamARN=arn, StreamModeDetails=mode)
        service.now += 2
        assert service.summary() == ("ACTIVE", "ON_DEMAND", 2048, 2)
        service.ask("DeleteStream", StreamName="new")
        assert service.summary()[0] == "DELETING"
        assert (
            service.refusal("UpdateMaxRecordSize", StreamARN=arn, MaxRecordSizeInKiB=1024) == "ResourceInUseException"
        )
        service.now += 2
        assert service.refusal("DescribeStream", StreamName="new") == "ResourceNotFoundException"
        assert service.reply("ListStreams")["StreamNames"] == ["posts"]
        assert len(service.kept) == 5

    def test_an_iterator_ends_with_its_stream(self) -> None:
        """On a stream made anew under the old name it is refused."""
        service = Service()
        members = {"ShardId": "shardId-000000000000", "ShardIteratorType": "LATEST"}
        token = service.reply("GetShardIterator", StreamName="posts", **members)
        service.ask("DeleteStream", StreamName="posts")
        service.now += 1
        service.ask("CreateStream", StreamName="posts", ShardCount=1)
        assert service.refusal("GetRecords", **token) == "InvalidArgumentException"

    def test_an_on_demand_stream_has_the_shards_of_the_service(self) -> None:
        """It opens with four, and whoever wants to choose them is refused until the mode is changed."""
        service = Service()
        on_demand, provisioned = ({"StreamMode": mode} for mode in ("ON_DEMAND", "PROVISIONED"))
        new: dict[str, Any] = {"StreamName": "new", "StreamModeDetails": on_demand}
        assert service.refusal("CreateStream", **new, ShardCount=1) == "ValidationException"
        assert service.refusal("CreateStream", StreamName="new") == "ValidationException"
        service.ask("CreateStream", **new)
        assert service.summary() == ("ACTIVE", "ON_DEMAND", 1024, 4)
        arn = ARN.replace("posts", "new")
        scale: dict[str, Any] = {"StreamARN": arn, "TargetShardCount": 2, "ScalingType": "UNIFORM_SCALING"}
        split = {"StreamARN": arn, "ShardToSplit": "shardId-000000000000", "NewStartingHashKey": "9"}
        assert service.refusal("UpdateShardCount", **scale) == "ValidationException"
        assert service.refusal("SplitShard", **split) == "ValidationException"
        service.ask("UpdateStreamMode", StreamARN=arn, StreamModeDetails=provisioned)
        service.ask("UpdateShardCount", **scale)

    def test_five_streams_are_made_at_once(self) -> None:
        """The sixth has to wait until they are ACTIVE."""
        service = Service(settle_seconds=2.0)
        for name in "abcde":
            service.ask("CreateStream", StreamName=name, ShardCount=1)
        service.now += 1
        assert service.refusal("CreateStream", StreamName="f", ShardCount=1) == "LimitExceededException"
        service.now += 1
        service.ask("CreateStream", StreamName="f", ShardCount=1)

    def test_resharding(self) -> None:
        """Split, merge and scale answer at once, and each is kept."""
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
        assert service.kept == [(), (), ()]

    def test_calls_are_limited(self) -> None:
        """The twenty-first DescribeStreamSummary within a second is refused."""
        service = Service()
        for _ in range(20):
            service.ask("DescribeStreamSummary", StreamName="posts")
        assert service.refusal("DescribeStreamSummary", StreamName="posts") == "LimitExceededException"
        assert service.account.refused == {"LimitExceededException": 1}
