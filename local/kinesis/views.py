"""
The operations that show a stream: iterators, reading, describing, listing.

Iterators and pagination tokens are opaque to clients, live 300 seconds, and hold only positions: they outlive a restart
of the process.
"""

from base64 import b64decode, b64encode
from typing import Any, TypeVar

import msgspec

from local.kinesis import requests
from local.kinesis.account import Account, Call, Read
from local.kinesis.errors import THROTTLED, KinesisError, UncountedError
from local.kinesis.shards import Shard
from local.kinesis.stream import Stream

Reply = dict[str, Any]
T = TypeVar("T")
TOKEN_SECONDS = 300
DESCRIBED_SHARDS = 100
LISTED_SHARDS = 1000
LISTED_STREAMS = 100


class _Iterator(msgspec.Struct, array_like=True):
    stream: str
    created_at: float
    shard: int
    after: int
    issued_at: float


class _ShardsToken(msgspec.Struct, array_like=True):
    stream: str
    created_at: float
    last: str
    filter: requests.ShardFilter | None
    issued_at: float


_ITERATOR = msgspec.json.Decoder(_Iterator)
_SHARDS_TOKEN = msgspec.json.Decoder(_ShardsToken)


def stream_of(request: Any, account: Account) -> Stream:
    """Return the stream that a request names, by itself or through its iterator or token."""
    if isinstance(request, requests.GetRecords):
        token: _Iterator | _ShardsToken = _decode_token(_ITERATOR, request.shard_iterator, "ShardIterator")
    elif isinstance(request, requests.ListShards) and request.next_token is not None:
        if request.stream_name or request.stream_arn or request.exclusive_start_shard_id:
            raise KinesisError("InvalidArgumentException", "NextToken and StreamName cannot be provided together.")
        token = _decode_token(_SHARDS_TOKEN, request.next_token, "NextToken")
    else:
        return account.find(request.stream_name, request.stream_arn)
    stream = account.find(token.stream, None)
    if stream.facts.created_at != token.created_at:
        raise KinesisError("ResourceNotFoundException", f"The {stream.where} is not the one the token was made for.")
    return stream


# Reading


def get_shard_iterator(request: requests.GetShardIterator, call: Call) -> Reply:
    """Return an iterator that points before, at or after a place in a shard."""
    stream, kind = call.stream, request.shard_iterator_type
    shard = stream.shard(request.shard_id, call.now)
    number = request.starting_sequence_number
    if (number is not None) != kind.endswith("_SEQUENCE_NUMBER"):
        given = "no" if number is None else "also a"
        raise KinesisError("InvalidArgumentException", f"Request specified {kind} and {given} StartingSequenceNumber.")
    if (request.timestamp is not None) != (kind == "AT_TIMESTAMP"):
        given = "no" if request.timestamp is None else "also a"
        raise KinesisError("InvalidArgumentException", f"Request specified {kind} and {given} Timestamp.")
    if number is not None:
        after = stream.position(number, shard) - (kind == "AT_SEQUENCE_NUMBER")
    elif request.timestamp is not None:
        if request.timestamp > call.now:
            raise KinesisError("InvalidArgumentException", "The Timestamp lies in the future.")
        after = stream.position_at(shard, request.timestamp)
    else:
        after = 0 if kind == "TRIM_HORIZON" else stream.map.position
    if request.dry_run:
        raise UncountedError("DryRunOperationException")
    if not shard.iterators.holds(1, call.now):
        raise KinesisError(THROTTLED, f"Rate exceeded for shard {shard.name} in {stream.where}.")
    shard.iterators.take(1)
    return {"ShardIterator": _iterator(call, shard, after)}


def get_records(request: requests.GetRecords, call: Call) -> Reply:
    """Return the next records and the iterator behind them; at the end of a closed shard, its children."""
    stream = call.stream
    token = _decode_token(_ITERATOR, request.shard_iterator, "ShardIterator")
    if call.now > token.issued_at + TOKEN_SECONDS:
        raise KinesisError("ExpiredIteratorException", f"Iterators live {TOKEN_SECONDS} seconds.")
    shard = stream.shard(f"shardId-{token.shard:012d}", call.now)
    if request.dry_run:
        raise UncountedError("DryRunOperationException")
    reading = stream.read(shard, token.after, request.limit, call.now)
    if reading.records:
        call.account.happened(Read(call.now, stream.name, shard.index, reading.records[-1].position))
    reply: Reply = {
        "Records": [
            {
                "SequenceNumber": stream.sequence_number(record.position, record.shard),
                "ApproximateArrivalTimestamp": round(record.arrival, 3),
                "Data": b64encode(record.data).decode(),
                **({} if record.partition_key is None else {"PartitionKey": record.partition_key}),
            }
            for record in reading.records
        ],
        "MillisBehindLatest": int(reading.behind_seconds * 1000),
    }
    if reading.after is not None:
        return reply | {"NextShardIterator": _iterator(call, shard, reading.after)}
    children = [
        {
            "ShardId": child.name,
            "ParentShards": [stream.map.shards[parent].name for parent in child.facts.parents],
            "HashKeyRange": {"StartingHashKey": child.facts.start, "EndingHashKey": child.facts.end},
        }
        for child in stream.map.children(shard)
    ]
    return reply | {"ChildShards": children}


def _iterator(call: Call, shard: Shard, after: int) -> str:
    created_at = call.stream.facts.created_at
    return _encode_token(_Iterator(call.stream.name, created_at, shard.index, after, call.now))


def _encode_token(token: msgspec.Struct) -> str:
    return b64encode(msgspec.json.encode(token)).decode()


def _decode_token(decoder: msgspec.json.Decoder[T], token: str, name: str) -> T:
    try:
        return decoder.decode(b64decode(token, validate=True))
    except (ValueError, msgspec.MsgspecError) as error:
        raise KinesisError("InvalidArgumentException", f"Invalid {name}.") from error


# Describing


def describe_stream(request: requests.DescribeStream, call: Call) -> Reply:
    """Describe a stream with up to 100 of its shards."""
    stream = call.stream
    start = request.exclusive_start_shard_id or ""
    shards = [] if stream.status(call.now) == "CREATING" else stream.unexpired(call.now)
    shards = [shard for shard in shards if shard.name > start]
    count = min(request.limit, DESCRIBED_SHARDS)
    return {
        "StreamDescription": {
            **_description(call),
            "Shards": [_shard(stream, shard) for shard in shards[:count]],
            "HasMoreShards": len(shards) > count,
        }
    }


def describe_stream_summary(_request: requests.Request, call: Call) -> Reply:
    """Describe a stream without its shards."""
    facts = call.stream.facts
    summary: Reply = {
        **_description(call),
        "OpenShardCount": 0 if call.stream.status(call.now) == "CREATING" else len(call.stream.map.open),
        "ConsumerCount": 0,
        "MaxRecordSizeInKiB": facts.max_record_kib,
        "ChannelCount": 0,
    }
    if facts.mode == "ON_DEMAND":
        summary["RecordDistributionStrategy"] = facts.strategy
    return {"StreamDescriptionSummary": summary}


def _description(call: Call) -> Reply:
    facts = call.stream.facts
    return {
        "StreamName": facts.name,
        "StreamARN": facts.arn,
        "StreamStatus": call.stream.status(call.now),
        "StreamModeDetails": {"StreamMode": facts.mode},
        "RetentionPeriodHours": facts.retention_hours,
        "StreamCreationTimestamp": int(facts.created_at),
        "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
        "EncryptionType": "NONE",
    }


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


def list_shards(request: requests.ListShards, call: Call) -> Reply:
    """Return up to 1,000 shards that pass the filter, and a token if there are more."""
    stream, now = call.stream, call.now
    chosen, start = request.shard_filter, request.exclusive_start_shard_id or ""
    if request.next_token is not None:
        token = _decode_token(_SHARDS_TOKEN, request.next_token, "NextToken")
        if now > token.issued_at + TOKEN_SECONDS:
            raise KinesisError("ExpiredNextTokenException", f"Tokens live {TOKEN_SECONDS} seconds.")
        chosen, start = token.filter, token.last
    shards = [shard for shard in _filtered(stream, chosen, now) if shard.name > start]
    count = min(request.max_results, LISTED_SHARDS)
    reply: Reply = {"Shards": [_shard(stream, shard) for shard in shards[:count]]}
    if len(shards) > count:
        last = shards[count - 1].name
        reply["NextToken"] = _encode_token(_ShardsToken(stream.name, stream.facts.created_at, last, chosen, now))
    return reply


def _filtered(stream: Stream, chosen: requests.ShardFilter | None, now: float) -> list[Shard]:
    if chosen is None or chosen.type == "FROM_TRIM_HORIZON":
        return stream.unexpired(now)
    if chosen.type == "AT_LATEST":
        return [shard for shard in stream.unexpired(now) if shard.is_open]
    if chosen.type == "AT_TRIM_HORIZON":
        horizon = stream.horizon(now)
        return stream.open_between(horizon, horizon, now)
    if chosen.type == "AFTER_SHARD_ID":
        if chosen.shard_id is None:
            raise KinesisError("InvalidArgumentException", "AFTER_SHARD_ID needs a ShardId.")
        return [shard for shard in stream.unexpired(now) if shard.name > chosen.shard_id]
    if chosen.timestamp is None:
        raise KinesisError("InvalidArgumentException", f"{chosen.type} needs a Timestamp.")
    until = chosen.timestamp if chosen.type == "AT_TIMESTAMP" else now
    return stream.open_between(chosen.timestamp, until, now)


def list_streams(request: requests.ListStreams, account: Account, now: float) -> Reply:
    """Return up to 100 streams by name."""
    start = request.next_token or request.exclusive_start_stream_name or ""
    names = sorted(name for name in account.streams if name > start)
    count = min(request.limit, LISTED_STREAMS)
    page = names[:count]
    reply: Reply = {
        "StreamNames": page,
        "HasMoreStreams": len(names) > count,
        "StreamSummaries": [
            {
                "StreamName": name,
                "StreamARN": account.streams[name].facts.arn,
                "StreamStatus": account.streams[name].status(now),
                "StreamModeDetails": {"StreamMode": account.streams[name].facts.mode},
                "StreamCreationTimestamp": int(account.streams[name].facts.created_at),
            }
            for name in page
        ],
    }
    return reply | ({"NextToken": page[-1]} if len(names) > count else {})
