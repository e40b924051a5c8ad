"""
The requests of the Kinesis API as typed values, and the rules that the service model puts on their members.

Reading is in two steps, as the service does it: what has the wrong type or is no JSON is a SerializationException, what
has the right type but breaks a rule is a ValidationException. Members that are not known are ignored.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from local.kinesis.errors import KinesisError
from local.kinesis.limits import Entry, constraint

T = TypeVar("T", bound=msgspec.Struct)


class Request(msgspec.Struct, rename="pascal", kw_only=True):
    """What nearly all operations share: the stream, by name, by ARN or by both."""

    stream_name: str | None = None
    stream_arn: str | None = msgspec.field(name="StreamARN", default=None)


class ModeDetails(msgspec.Struct, rename="pascal", frozen=True):
    """The capacity mode."""

    stream_mode: str


class ShardFilter(msgspec.Struct, rename="pascal"):
    """Which shards to list."""

    type: str
    shard_id: str | None = None
    timestamp: float | None = None


class CreateStream(Request):
    """Make a stream."""

    shard_count: int | None = None
    stream_mode_details: ModeDetails = ModeDetails("PROVISIONED")
    max_record_size: int = msgspec.field(name="MaxRecordSizeInKiB", default=1024)
    record_distribution_strategy: str | None = None


class DescribeStream(Request):
    """Describe a stream with its shards."""

    limit: int = 100
    exclusive_start_shard_id: str | None = None


class ListStreams(msgspec.Struct, rename="pascal"):
    """List the streams by name."""

    limit: int = 100
    exclusive_start_stream_name: str | None = None
    next_token: str | None = None


class ListShards(Request):
    """List shards."""

    next_token: str | None = None
    exclusive_start_shard_id: str | None = None
    max_results: int = 1000
    shard_filter: ShardFilter | None = None


class PutRecord(Request):
    """Write one record."""

    data: bytes
    partition_key: str | None = None
    explicit_hash_key: str | None = None
    sequence_number_for_ordering: str | None = None
    dry_run: bool = False


class PutRecords(Request):
    """Write up to 500 records."""

    records: list[Entry]
    dry_run: bool = False


class GetShardIterator(Request):
    """Where to start to read."""

    shard_id: str
    shard_iterator_type: str
    starting_sequence_number: str | None = None
    timestamp: float | None = None
    dry_run: bool = False


class GetRecords(Request):
    """Read on."""

    shard_iterator: str
    limit: int = 10_000
    dry_run: bool = False


class SplitShard(Request):
    """Make two shards of one."""

    shard_to_split: str
    new_starting_hash_key: str


class MergeShards(Request):
    """Make one shard of two."""

    shard_to_merge: str
    adjacent_shard_to_merge: str


class UpdateShardCount(Request):
    """Split and merge to a number of shards."""

    target_shard_count: int
    scaling_type: str


class UpdateStreamMode(Request):
    """Change the capacity mode."""

    stream_mode_details: ModeDetails


class UpdateMaxRecordSize(Request):
    """Change the largest size of a record."""

    max_record_size: int = msgspec.field(name="MaxRecordSizeInKiB")


class UpdateStreamRecordDistributionStrategy(Request):
    """Change who chooses the shard of a record."""

    record_distribution_strategy: str


def _matches(pattern: str, longest: int) -> tuple[str, Callable[[Any], bool]]:
    compiled = re.compile(pattern)
    rule = f"Member must have length between 1 and {longest} and satisfy regular expression pattern: {pattern}"
    return rule, lambda value: 1 <= len(value) <= longest and compiled.fullmatch(value) is not None


def _between(lowest: int, highest: int) -> tuple[str, Callable[[Any], bool]]:
    return f"Member must have value between {lowest} and {highest}", lambda value: lowest <= value <= highest


def _one_of(*values: str) -> tuple[str, Callable[[Any], bool]]:
    return f"Member must satisfy enum value set: [{', '.join(values)}]", lambda value: value in values


_NAME = _matches(r"[a-zA-Z0-9_.-]+", 128)
_SEQUENCE_NUMBER = _matches(r"0|([1-9]\d{0,128})", 129)
_STRATEGY = _one_of("AUTO", "USER_PARTITION_KEY")
_RULES = {
    "adjacent_shard_to_merge": _NAME,
    "exclusive_start_shard_id": _NAME,
    "exclusive_start_stream_name": _NAME,
    "limit": _between(1, 10_000),
    "max_record_size": _between(1024, 10_240),
    "max_results": _between(1, 10_000),
    "next_token": _matches(r"(?s).*", 1_048_576),
    "record_distribution_strategy": _STRATEGY,
    "scaling_type": _one_of("UNIFORM_SCALING"),
    "sequence_number_for_ordering": _SEQUENCE_NUMBER,
    "shard_count": _between(1, 10_000),
    "shard_id": _NAME,
    "shard_iterator": _matches(r"(?s).*", 512),
    "shard_iterator_type": _one_of(
        "AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER", "TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"
    ),
    "shard_to_merge": _NAME,
    "shard_to_split": _NAME,
    "starting_sequence_number": _SEQUENCE_NUMBER,
    "stream_arn": _matches(r"arn:aws.*:kinesis:.*:\d{12}:stream/\S+", 2048),
    "stream_mode": _one_of("PROVISIONED", "ON_DEMAND"),
    "stream_name": _NAME,
    "target_shard_count": _between(1, 10_000),
    "type": _one_of(
        "AFTER_SHARD_ID", "AT_TRIM_HORIZON", "FROM_TRIM_HORIZON", "AT_LATEST", "AT_TIMESTAMP", "FROM_TIMESTAMP"
    ),
}


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Read a request; raise KinesisError with SerializationException or ValidationException."""
    try:
        request = decoder.decode(body)
    except msgspec.ValidationError as error:
        # msgspec tells only in words that a member is not there, which is a broken rule and not a broken type.
        if "missing required field" in str(error) or "got `null`" in str(error):
            raise constraint(str(error), "Member must not be null") from error
        raise KinesisError("SerializationException", str(error)) from error
    except msgspec.DecodeError as error:
        raise KinesisError("SerializationException", str(error)) from error
    _check(request)
    return request


def _check(request: msgspec.Struct) -> None:
    for field in request.__struct_fields__:
        value = getattr(request, field)
        if isinstance(value, msgspec.Struct):
            _check(value)
        elif value is not None and field in _RULES:
            rule, holds = _RULES[field]
            if not holds(value):
                raise constraint(field, rule)
