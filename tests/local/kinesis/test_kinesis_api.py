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
from local.kinesis.shards import HASH_KEYS, Record
from local.kinesis.stream import Stream

THROTTLED = "ProvisionedThroughputExceededException"
ARN = "arn:aws:kinesis:us-east-1:000000000000:stream/posts"


class Service:
    """An account with one stream, asked without a server between; `now` is its clock."""

    def __init__(self, shards: int = 1) -> None:
        self.now = time.time()
        self.kept: list[Sequence[Record]] = []
        self.account = Account(memory_limit=1 << 30, settle_seconds=0.0)
        self.account.keep = self._keep
        self.stream = self.account.create("posts", shards, self.now)

    def _keep(self, stream: Stream, records: Sequence[Record]) -> None:
        assert stream is self.stream
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
