"""
The operations that show a stream: iterators, reading, describing, listing.

An iterator is opaque to clients, lives 300 seconds, and holds only a position: it outlives a restart of the process.
"""

from base64 import b64decode, b64encode
from typing import Any

import msgspec

from local.kinesis import requests
from local.kinesis.account import Account, Call
from local.kinesis.errors import KinesisError
from local.kinesis.limits import MAX_RECORD_BYTES
from local.kinesis.shards import Shard
from local.kinesis.stream import RETENTION_HOURS, Stream

Reply = dict[str, Any]
ITERATOR_SECONDS = 300


class _Iterator(msgspec.Struct, array_like=True):
    stream: str
    shard: str
    after: int
    issued_at: float


def stream_of(request: Any, account: Account) -> Stream:
    """Return the stream that a request names, by itself or through its iterator."""
    if isinstance(request, requests.GetRecords):
        return account.find(_decoded(request.shard_iterator).stream, None)
    return account.find(request.stream_name, request.stream_arn)


def get_shard_iterator(request: requests.GetShardIterator, call: Call) -> Reply:
    """Return an iterator that points before, behind or after a place in a shard."""
    stream, kind, number = call.stream, request.shard_iterator_type, request.starting_sequence_number
    shard = stream.shard(request.shard_id, call.now)
    if (number is not None) != (kind == "AFTER_SEQUENCE_NUMBER"):
        given = "no" if number is None else "also a"
        raise KinesisError("InvalidArgumentException", f"Request specified {kind} and {given} StartingSequenceNumber.")
    if number is not None:
        after = stream.position(number, shard)
    else:
        after = 0 if kind == "TRIM_HORIZON" else stream.map.position
    stream.start_reading(shard, call.now)
    return {"ShardIterator": _iterator(call, shard, after)}


def get_records(request: requests.GetRecords, call: Call) -> Reply:
    """Return the next records and the iterator behind them; at the end of a closed shard there is none."""
    stream = call.stream
    iterator = _decoded(request.shard_iterator)
    if call.now > iterator.issued_at + ITERATOR_SECONDS:
        raise KinesisError("ExpiredIteratorException", f"Iterators live {ITERATOR_SECONDS} seconds.")
    shard = stream.shard(iterator.shard, call.now)
    reading = stream.read(shard, iterator.after, request.limit, call.now)
    reply: Reply = {
        "Records": [
            {
                "SequenceNumber": stream.sequence_number(record.position, record.shard),
                "ApproximateArrivalTimestamp": round(record.arrival, 3),
                "Data": b64encode(record.data).decode(),
                "PartitionKey": record.partition_key,
            }
            for record in reading.records
        ],
        "MillisBehindLatest": int(reading.behind_seconds * 1000),
    }
    return reply if reading.after is None else reply | {"NextShardIterator": _iterator(call, shard, reading.after)}


def _iterator(call: Call, shard: Shard, after: int) -> str:
    return b64encode(msgspec.json.encode(_Iterator(call.stream.name, shard.name, after, call.now))).decode()


def _decoded(iterator: str) -> _Iterator:
    try:
        return msgspec.json.decode(b64decode(iterator, validate=True), type=_Iterator)
    except (ValueError, msgspec.MsgspecError) as error:
        raise KinesisError("InvalidArgumentException", "Invalid ShardIterator.") from error


def describe_stream_summary(_request: requests.Request, call: Call) -> Reply:
    """Describe a stream without its shards."""
    stream = call.stream
    summary = {
        "StreamName": stream.name,
        "StreamARN": stream.arn,
        "StreamStatus": stream.status(call.now),
        "StreamModeDetails": {"StreamMode": "PROVISIONED"},
        "RetentionPeriodHours": RETENTION_HOURS,
        "StreamCreationTimestamp": int(stream.created_at),
        "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
        "EncryptionType": "NONE",
        "OpenShardCount": len(stream.map.open),
        "ConsumerCount": 0,
        "MaxRecordSizeInKiB": MAX_RECORD_BYTES // 1024,
        "ChannelCount": 0,
    }
    return {"StreamDescriptionSummary": summary}


def list_shards(request: requests.ListShards, call: Call) -> Reply:
    """Return the shards that have not expired, by number: all, or the open ones."""
    stream = call.stream
    shards = [shard for shard in stream.unexpired(call.now) if shard.is_open or request.shard_filter is None]
    return {"Shards": [_shard(stream, shard) for shard in shards]}


def _shard(stream: Stream, shard: Shard) -> Reply:
    facts = shard.facts
    numbers = {"StartingSequenceNumber": stream.sequence_number(facts.opened, shard.index)}
    if facts.closed is not None:
        numbers["EndingSequenceNumber"] = stream.sequence_number(facts.closed, shard.index)
    parents = [stream.map.shards[parent].name for parent in facts.parents]
    return {
        "ShardId": shard.name,
        **dict(zip(("ParentShardId", "AdjacentParentShardId"), parents, strict=False)),
        "HashKeyRange": {"StartingHashKey": facts.start, "EndingHashKey": facts.end},
        "SequenceNumberRange": numbers,
    }
