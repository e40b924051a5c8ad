"""
The operations that show streams: iterators, reading, describing, listing.

An iterator is opaque to clients, lives 300 seconds, and holds only a sequence number: it outlives a restart of the
process, but not its stream.
"""

from base64 import b64decode, b64encode
from typing import Any

import msgspec

from local.kinesis import requests
from local.kinesis.account import Account, Call
from local.kinesis.errors import KinesisError
from local.kinesis.shards import Shard
from local.kinesis.stream import RETENTION_HOURS, Stream

Reply = dict[str, Any]
ITERATOR_SECONDS = 300
DESCRIBED_SHARDS = 100
LISTED_STREAMS = 100


class _Iterator(msgspec.Struct, array_like=True):
    stream: str
    shard: str
    after: str
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
    reading = stream.read(shard, stream.position(iterator.after, shard), request.limit, call.now)
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
    number = call.stream.sequence_number(after, shard.index)
    return b64encode(msgspec.json.encode(_Iterator(call.stream.name, shard.name, number, call.now))).decode()


def _decoded(iterator: str) -> _Iterator:
    try:
        return msgspec.json.decode(b64decode(iterator, validate=True), type=_Iterator)
    except (ValueError, msgspec.MsgspecError) as error:
        raise KinesisError("InvalidArgumentException", "Invalid ShardIterator.") from error


def describe_stream_summary(_request: requests.Request, call: Call) -> Reply:
    """Describe a stream without its shards."""
    stream = call.stream
    summary = {
        **_description(stream, call.now),
        "OpenShardCount": sum(shard.is_open for shard in stream.unexpired(call.now)),
        "ConsumerCount": 0,
        "MaxRecordSizeInKiB": stream.facts.max_record_kib,
        "ChannelCount": 0,
    }
    return {"StreamDescriptionSummary": summary}


def describe_stream(request: requests.DescribeStream, call: Call) -> Reply:
    """Describe a stream with up to 100 of its shards."""
    stream, start = call.stream, request.exclusive_start_shard_id or ""
    shards = [shard for shard in stream.unexpired(call.now) if shard.name > start]
    count = min(request.limit, DESCRIBED_SHARDS)
    description = {
        **_description(stream, call.now),
        "Shards": [_shard(stream, shard) for shard in shards[:count]],
        "HasMoreShards": len(shards) > count,
    }
    return {"StreamDescription": description}


def _description(stream: Stream, now: float) -> Reply:
    return {
        **_listed(stream, now),
        "RetentionPeriodHours": RETENTION_HOURS,
        "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
        "EncryptionType": "NONE",
    }


def _listed(stream: Stream, now: float) -> Reply:
    return {
        "StreamName": stream.name,
        "StreamARN": stream.arn,
        "StreamStatus": stream.status(now),
        "StreamModeDetails": {"StreamMode": stream.facts.mode},
        "StreamCreationTimestamp": int(stream.created_at),
    }


def list_streams(request: requests.ListStreams, account: Account, now: float) -> Reply:
    """Return up to 100 streams by name, and the token of the next ones."""
    start = request.next_token or request.exclusive_start_stream_name or ""
    names = sorted(name for name in account.streams if name > start)
    page = names[: min(request.limit, LISTED_STREAMS)]
    reply: Reply = {
        "StreamNames": page,
        "HasMoreStreams": page != names,
        "StreamSummaries": [_listed(account.streams[name], now) for name in page],
    }
    return reply if page == names else reply | {"NextToken": page[-1]}


def list_shards(request: requests.ListShards, call: Call) -> Reply:
    """Return the shards that have not expired and pass the filter, by number."""
    stream, now, chosen = call.stream, call.now, request.shard_filter
    if stream.status(now) == "CREATING":
        raise KinesisError("ResourceInUseException", f"The {stream.where} is being made.")
    if (chosen.shard_id is not None) != (chosen.type == "AFTER_SHARD_ID"):
        raise KinesisError("InvalidArgumentException", "ShardId belongs to the filter AFTER_SHARD_ID, and only there.")
    start = chosen.shard_id or request.exclusive_start_shard_id or ""
    unexpired = stream.unexpired(now)
    shards = [shard for shard in unexpired if shard.name > start]
    if chosen.type == "AT_LATEST":
        shards = [shard for shard in shards if shard.is_open]
    elif chosen.type == "AT_TRIM_HORIZON":
        # A shard opens when its parents close, and those that closed before the horizon have expired.
        indexes = {shard.index for shard in unexpired}
        shards = [shard for shard in shards if indexes.isdisjoint(shard.facts.parents)]
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
