from typing import Any, get_args

import botocore.session
import msgspec
import orjson
import pytest

from local.kinesis import requests
from local.kinesis.errors import KinesisError
from local.kinesis.faults import Operation

MODEL = botocore.session.get_session().get_service_model("kinesis")
# Members the model has and the local Kinesis does not read: reserved, or of features it does not play.
NOT_READ = {"StreamId", "StreamCreationTimestamp", "Tags", "WarmThroughputMiBps", "EnforceConsumerDeletion"}


def read(operation: str, **members: Any) -> Any:
    """Read a request of the operation."""
    kind = getattr(requests, operation)
    return requests.decode(msgspec.json.Decoder(kind), orjson.dumps(members))


def refusal(operation: str, **members: Any) -> str:
    """Return the code with which the request is refused."""
    with pytest.raises(KinesisError) as caught:
        read(operation, **members)
    return caught.value.code


@pytest.mark.parametrize("operation", get_args(Operation))
def test_members_are_those_of_the_service_model(operation: str) -> None:
    """Each operation reads all members that the model has, under the model's names."""
    shape = MODEL.operation_model(operation).input_shape
    assert shape is not None
    kind = getattr(requests, operation, requests.Request)
    names = {field.encode_name for field in msgspec.structs.fields(kind)}
    assert set(shape.members) - names <= NOT_READ
    assert names - set(shape.members) <= {"StreamName", "StreamARN"}
    required = {field.encode_name for field in msgspec.structs.fields(kind) if field.required}
    assert required <= set(shape.required_members)


def test_a_request_is_read_with_its_data_decoded() -> None:
    """Data comes as bytes, unknown members do not matter."""
    request = read("PutRecords", StreamName="posts", Records=[{"Data": "aGk=", "PartitionKey": "k"}], Later=True)
    assert request.records[0].data == b"hi"
    assert request.records[0].partition_key == "k"
    assert request.stream_name == "posts"


@pytest.mark.parametrize(
    ("operation", "members"),
    [
        ("PutRecords", {"Records": "no list"}),
        ("PutRecords", {"Records": [{"Data": "not base64!", "PartitionKey": "k"}]}),
        ("PutRecords", {"Records": [{"Data": "aGk=", "PartitionKey": 7}]}),
        ("GetRecords", {"ShardIterator": "x", "Limit": "many"}),
    ],
)
def test_a_wrong_type_cannot_be_read(operation: str, members: dict[str, Any]) -> None:
    """Types are looked at first."""
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
        ("PutRecord", {"Data": "", "SequenceNumberForOrdering": "x"}),
        ("DescribeStream", {"Limit": 0}),
        ("DescribeStream", {"Limit": 10_001}),
        ("ListShards", {"MaxResults": 0}),
        ("ListShards", {"ShardFilter": {"Type": "NEWEST"}}),
        ("GetRecords", {"ShardIterator": ""}),
        ("GetRecords", {"ShardIterator": "x", "Limit": 10_001}),
        ("GetShardIterator", {"ShardId": "s", "ShardIteratorType": "OLDEST"}),
        ("CreateStream", {"ShardCount": 0}),
        ("CreateStream", {"StreamModeDetails": {"StreamMode": "FREE"}}),
        ("UpdateMaxRecordSize", {"MaxRecordSizeInKiB": 1023}),
        ("UpdateMaxRecordSize", {"MaxRecordSizeInKiB": 10_241}),
        ("UpdateShardCount", {"TargetShardCount": 2, "ScalingType": "CURVED"}),
    ],
)
def test_a_broken_rule_of_the_model_is_refused(operation: str, members: dict[str, Any]) -> None:
    """Missing members, lengths, ranges, patterns and enumerations."""
    assert refusal(operation, **members) == "ValidationException"


@pytest.mark.parametrize("kib", [1024, 10_240])
def test_the_ends_of_a_range_pass(kib: int) -> None:
    """Both ends are included."""
    assert read("UpdateMaxRecordSize", MaxRecordSizeInKiB=kib).max_record_size == kib
