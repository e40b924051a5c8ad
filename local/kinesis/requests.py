"""
The requests of the Kinesis API that are answered here, as typed values with the rules of the service model.

As in the service, what is no JSON or has the wrong type is a SerializationException, and what breaks a rule a
ValidationException. Unlike there a member that is not known is refused: what it asks for would not be done.
"""

import re
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from local.kinesis.errors import KinesisError
from local.kinesis.limits import Entry

T = TypeVar("T")
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_.-]+$")]
Arn = Annotated[str, Meta(max_length=2048, pattern=r"^arn:aws.*:kinesis:.*:\d{12}:stream/\S+$")]
SequenceNumber = Annotated[str, Meta(pattern=r"^(0|[1-9]\d{0,128})$")]
Count = Annotated[int, Meta(ge=1, le=10_000)]
RecordKib = Annotated[int, Meta(ge=1024, le=10_240)]
# msgspec tells only in words whether a type is wrong or a rule is broken.
_WRONG_TYPE = re.compile("got `(?!null`)|base64|unknown field")


class Request(msgspec.Struct, rename="pascal", kw_only=True, forbid_unknown_fields=True):
    """What operations on a stream share: its name, its ARN or both."""

    stream_name: Name | None = None
    stream_arn: Arn | None = msgspec.field(name="StreamARN", default=None)


class ModeDetails(msgspec.Struct, rename="pascal", forbid_unknown_fields=True, frozen=True):
    """The capacity mode."""

    stream_mode: Literal["ON_DEMAND", "PROVISIONED"]


class CreateStream(msgspec.Struct, rename="pascal", kw_only=True, forbid_unknown_fields=True):
    """Make a stream."""

    stream_name: Name
    shard_count: Count | None = None
    stream_mode_details: ModeDetails = ModeDetails("PROVISIONED")
    max_record_kib: RecordKib = msgspec.field(name="MaxRecordSizeInKiB", default=1024)


class ListStreams(msgspec.Struct, rename="pascal", kw_only=True, forbid_unknown_fields=True):
    """List streams by name."""

    limit: Count = 100
    exclusive_start_stream_name: Name | None = None
    next_token: str | None = None


class DescribeStream(Request):
    """Describe a stream with its shards."""

    limit: Count = 100
    exclusive_start_shard_id: Name | None = None


class UpdateStreamMode(Request):
    """Change the capacity mode."""

    stream_mode_details: ModeDetails


class UpdateMaxRecordSize(Request):
    """Change how large a record may be."""

    max_record_kib: RecordKib = msgspec.field(name="MaxRecordSizeInKiB")


class ShardFilter(msgspec.Struct, rename="pascal", forbid_unknown_fields=True, frozen=True):
    """Which shards to list."""

    type: Literal["AFTER_SHARD_ID", "AT_LATEST", "AT_TRIM_HORIZON", "FROM_TRIM_HORIZON"]
    shard_id: Name | None = None


class ListShards(Request):
    """List shards, all of them on one page."""

    exclusive_start_shard_id: Name | None = None
    shard_filter: ShardFilter = ShardFilter("FROM_TRIM_HORIZON")


class PutRecord(Request):
    """Write one record."""

    data: bytes
    partition_key: str
    explicit_hash_key: str | None = None


class PutRecords(Request):
    """Write up to 500 records."""

    records: list[Entry]


class GetShardIterator(Request):
    """Where to start to read."""

    shard_id: Name
    shard_iterator_type: Literal["AFTER_SEQUENCE_NUMBER", "LATEST", "TRIM_HORIZON"]
    starting_sequence_number: SequenceNumber | None = None


class GetRecords(Request):
    """Read on."""

    shard_iterator: Annotated[str, Meta(min_length=1, max_length=512)]
    limit: Count = 10_000


class SplitShard(Request):
    """Make two shards of one."""

    shard_to_split: Name
    new_starting_hash_key: str


class MergeShards(Request):
    """Make one shard of two."""

    shard_to_merge: Name
    adjacent_shard_to_merge: Name


class UpdateShardCount(Request):
    """Split and merge to a number of shards."""

    target_shard_count: Count
    scaling_type: Literal["UNIFORM_SCALING"]


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Read a request; raise KinesisError with SerializationException or ValidationException."""
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        breaks_rule = isinstance(error, msgspec.ValidationError) and not _WRONG_TYPE.search(str(error))
        code = "ValidationException" if breaks_rule else "SerializationException"
        raise KinesisError(code, str(error)) from error
