from typing import Any, get_args

import botocore.session
import msgspec
import orjson
import pytest

from local.kinesis import requests
from local.kinesis.errors import KinesisError
from local.kinesis.faults import Operation

MODEL = botocore.session.get_session().get_service_model("kinesis")
# Members the model has and the local Kinesis refuses: reserved, or of features it does not play.
REFUSED = {
    *("DryRun", "EnforceConsumerDeletion", "MaxResults", "NextToken", "RecordDistributionStrategy"),
    *("SequenceNumberForOrdering", "StreamCreationTimestamp", "StreamId", "Tags", "Timestamp", "WarmThroughputMiBps"),
}


def read(operation: str, **members: Any) -> Any:
    """Read a request of the operation."""
    kind = getattr(requests, operation)
    return requests.decode(msgspec.json.Decoder(kind), orjson.dumps(members))


def refusal(operation: str, **members: Any) -> str:
    """Return the code with which the request is refused."""
    with pytest.raises(KinesisError) as caught:
        read(operation, **members)
    return caught.value.code


@pytest.mark.parametrize("operation", [*get_args(Operation), "CreateStream", "ListStreams"])
def test_members_are_those_of_the_service_model(operation: str) -> None:
    """Each operation reads members that the model has, under the model's names, and none of the others is required."""
    shape = MODEL.operation_model(operation).input_shape
    assert shape is not None
    kind = getattr(requests, operation, requests.Request)
    names = {field.encode_name for field in msgspec.structs.fields(kind)}
    assert set(shape.members) - names <= REFUSED
    assert names - set(shape.members) <= {"StreamName", "StreamARN"}
    required = {field.encode_name for field in msgspec.structs.fields(kind) if field.required}
    # Only a stream that places records by itself (AUTO) does without partition keys.
    assert required - {"PartitionKey"} <= set(shape.required_members)


def test_a_request_is_read_with_its_data_decoded() -> None:
    """Data comes as bytes."""
    request = read("PutRecords", StreamName="posts", Records=[{"Data": "aGk=", "PartitionKey": "k"}])
    assert request.records[0].data == b"hi"
    assert request.records[0].partition_key == "k"
    assert request.stream_name == "posts"


@pytest.mark.parametrize(
    ("operation", "members"),
    [
        ("PutRecords", {"Records": "no list"}),
        ("PutRecords", {"Records": [{"Data": "not base64!", "PartitionKey": "k"}]}),
        ("PutRecords", {"Records": [{"Data": "aGk=", "PartitionKey": 7}]}),
        ("PutRecords", {"Records": [], "DryRun": True}),
        ("GetRecords", {"ShardIterator": "x", "Limit": "many"}),
    ],
)
def test_what_cannot_be_read(operation: str, members: dict[str, Any]) -> None:
    """A member of a wrong type, or one that would not be obeyed."""
    assert refusal(operation, **members) == "SerializationException"


def test_what_is_no_json_cannot_be_read() -> None:
    """CBOR, half a request and an empty body are all the same."""
    for body in (b"", b"\xa1\x61a", b'{"Records": ['):
        with pytest.raises(KinesisError, match=r"^SerializationException"):
            requests.decode(msgspec.json.Decoder(requests.PutRecords), body)


@pytest.mark.parametrize(
    ("operation", "members"),
    [
        ("PutRecords", {}),
        ("PutRecords", {"Records": None}),
        ("PutRecords", {"Records": [{"PartitionKey": "k"}]}),
        ("PutRecords", {"Records": [], "StreamName": "no/name"}),
        ("PutRecords", {"Records": [], "StreamARN": "arn:aws:s3:::bucket"}),
        ("PutRecords", {"Records": [{"Data": ""}]}),
        ("CreateStream", {"ShardCount": 1}),
        ("CreateStream", {"StreamName": "new", "MaxRecordSizeInKiB": 10_241}),
        ("UpdateMaxRecordSize", {"MaxRecordSizeInKiB": 1023}),
        ("UpdateStreamMode", {"StreamModeDetails": {"StreamMode": "FREE"}}),
        ("ListShards", {"ShardFilter": {"Type": "NEWEST"}}),
        ("GetRecords", {"ShardIterator": ""}),
        ("GetRecords", {"ShardIterator": "x", "Limit": 10_001}),
        ("GetShardIterator", {"ShardId": "s", "ShardIteratorType": "OLDEST"}),
        ("UpdateShardCount", {"TargetShardCount": 0, "ScalingType": "UNIFORM_SCALING"}),
        ("UpdateShardCount", {"TargetShardCount": 2, "ScalingType": "CURVED"}),
    ],
)
def test_a_broken_rule_of_the_model_is_refused(operation: str, members: dict[str, Any]) -> None:
    """Missing members, lengths, ranges, patterns and enumerations."""
    assert refusal(operation, **members) == "ValidationException"


@pytest.mark.parametrize("limit", [1, 10_000])
def test_the_ends_of_a_range_pass(limit: int) -> None:
    """Both ends are included."""
    assert read("GetRecords", ShardIterator="x", Limit=limit).limit == limit
