"""
The operations of the Kinesis API on the model: a request and the time in, a reply or KinesisError out.

What is refused leaves no trace but a count; what changes a stream is handed to the account's `keep` before it is
answered.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import orjson

from local.kinesis import requests
from local.kinesis.account import Account, Call, Put
from local.kinesis.errors import KinesisError, UncountedError
from local.kinesis.limits import Entry, parse_hash_key
from local.kinesis.shards import Record
from local.kinesis.sigv4 import verify
from local.kinesis.stream import Failure
from local.kinesis.views import (
    Reply,
    describe_stream,
    describe_stream_summary,
    get_records,
    get_shard_iterator,
    list_shards,
    list_streams,
    stream_of,
)

API_VERSION = "Kinesis_20131202"
CONTENT_TYPE = "application/x-amz-json-1.1"
# What a new on-demand stream opens with, says the developer guide: 4 MB/s, in four shards.
ON_DEMAND_SHARDS = 4


class Answer(NamedTuple):
    """The body of the reply; to be sent after `delay` seconds, or not at all."""

    body: bytes
    delay: float = 0.0
    drop: bool = False


def answer(account: Account, headers: Mapping[str, str], body: bytes, now: float) -> Answer:
    """
    Do what a POST to `/` asks for; raise KinesisError if it is refused.

    `headers` finds a name whatever its case. As in the service, what cannot be read is refused before it is looked at
    who signed it.
    """
    account.tidy(now)
    plan = None
    try:
        operation, request = _parse(headers, body)
        verify(headers, body, keys=account.keys, region=account.region, now=now)
        account.requests[operation] += 1
        if operation in _DIRECTORY:
            account.count_call(operation, "", now)
            return Answer(_body(_DIRECTORY[operation](request, account, now)))
        stream = stream_of(request, account)
        account.count_call(operation, stream.name, now)
        plan = stream.faults.begin(operation, now)
        if plan.error:
            raise plan.error
        if stream.status(now) == "CREATING" and operation in _NEEDS_SHARDS:
            raise KinesisError(_NEEDS_SHARDS[operation], f"The {stream.where} is being created.")
        reply = _ON_STREAM[operation](request, Call(account, stream, now, plan))
    except UncountedError:
        raise
    except KinesisError as error:
        (account.injected if plan and plan.error is error else account.refused)[error.code] += 1
        raise
    return Answer(_body(reply), plan.delay, plan.drop)


def _parse(headers: Mapping[str, str], body: bytes) -> tuple[str, Any]:
    version, _, operation = headers.get("X-Amz-Target", "").partition(".")
    content_type = headers.get("Content-Type", "").partition(";")[0].strip()
    if version != API_VERSION or operation not in _DECODERS or content_type != CONTENT_TYPE:
        raise KinesisError("UnknownOperationException")
    return operation, requests.decode(_DECODERS[operation], body)


def _body(reply: Reply | None) -> bytes:
    return b"" if reply is None else orjson.dumps(reply)


# Writing


def _put_records(request: requests.PutRecords, call: Call) -> Reply:
    if request.dry_run:
        call.stream.check(request.records)
        raise UncountedError("DryRunOperationException")
    results = call.stream.put(request.records, call.now, call.plan)
    accepted = [result for result in results if isinstance(result, Record)]
    if accepted:
        call.account.happened(Put(call.stream.name, accepted))
    shards = call.stream.map.shards
    number = call.stream.sequence_number
    return {
        "FailedRecordCount": len(results) - len(accepted),
        "Records": [
            {"SequenceNumber": number(result.position, result.shard), "ShardId": shards[result.shard].name}
            if isinstance(result, Record)
            else {"ErrorCode": result.code, "ErrorMessage": result.message}
            for result in results
        ],
    }


def _put_record(request: requests.PutRecord, call: Call) -> Reply:
    stream = call.stream
    entry = Entry(request.data, request.partition_key, request.explicit_hash_key)
    stream.check([entry])
    if request.sequence_number_for_ordering is not None and stream.is_automatic:
        raise KinesisError("InvalidArgumentException", "SequenceNumberForOrdering has no meaning with AUTO.")
    if request.dry_run:
        raise UncountedError("DryRunOperationException")
    (result,) = stream.put([entry], call.now, call.plan)
    if isinstance(result, Failure):
        raise UncountedError(result.code, result.message)
    call.account.happened(Put(stream.name, [result]))
    return {
        "SequenceNumber": stream.sequence_number(result.position, result.shard),
        "ShardId": stream.map.shards[result.shard].name,
    }


# Changing


def _create_stream(request: requests.CreateStream, account: Account, now: float) -> None:
    on_demand = request.stream_mode_details.stream_mode == "ON_DEMAND"
    if request.stream_name is None:
        raise KinesisError("ValidationException", "StreamName must not be null.")
    if (request.shard_count is None) != on_demand:
        raise KinesisError("ValidationException", "ShardCount belongs to PROVISIONED mode, and only there.")
    if request.record_distribution_strategy is not None and not on_demand:
        raise KinesisError("ValidationException", "RecordDistributionStrategy belongs to ON_DEMAND mode.")
    account.require_free(request.stream_name, now)
    stream = account.create(request.stream_name, request.shard_count or ON_DEMAND_SHARDS, now)
    stream.facts.mode = request.stream_mode_details.stream_mode
    stream.facts.strategy = request.record_distribution_strategy or stream.facts.strategy
    stream.facts.max_record_kib = request.max_record_size
    stream.settle("CREATING", now)
    account.happened(stream.snapshot(now))


def _change(request: Any, call: Call) -> Reply | None:
    stream, now = call.stream, call.now
    reply: Reply | None = None
    match request:
        case requests.SplitShard():
            new_start = parse_hash_key(request.new_starting_hash_key, "NewStartingHashKey")
            stream.split(request.shard_to_split, new_start, now)
        case requests.MergeShards():
            stream.merge(request.shard_to_merge, request.adjacent_shard_to_merge, now)
        case requests.UpdateShardCount():
            reply = {
                "StreamName": stream.name,
                "StreamARN": stream.facts.arn,
                "CurrentShardCount": len(stream.map.open),
                "TargetShardCount": request.target_shard_count,
            }
            stream.scale(request.target_shard_count, now)
        case requests.UpdateStreamMode():
            stream.set_mode(request.stream_mode_details.stream_mode, now)
        case requests.UpdateMaxRecordSize():
            stream.set_max_record_size(request.max_record_size, now)
        case requests.UpdateStreamRecordDistributionStrategy():
            stream.set_strategy(request.record_distribution_strategy, now)
        case _:
            stream.settle("DELETING", now)
    call.account.happened(stream.snapshot(now))
    return reply


# What a stream without shards answers.
_NEEDS_SHARDS = {
    "GetShardIterator": "ResourceNotFoundException",
    "ListShards": "ResourceInUseException",
    "PutRecord": "ResourceNotFoundException",
    "PutRecords": "ResourceNotFoundException",
}
_DIRECTORY: dict[str, Callable[[Any, Account, float], Reply | None]] = {
    "CreateStream": _create_stream,
    "ListStreams": list_streams,
}
_ON_STREAM: dict[str, Callable[[Any, Call], Reply | None]] = {
    "DeleteStream": _change,
    "DescribeStream": describe_stream,
    "DescribeStreamSummary": describe_stream_summary,
    "GetRecords": get_records,
    "GetShardIterator": get_shard_iterator,
    "ListShards": list_shards,
    "MergeShards": _change,
    "PutRecord": _put_record,
    "PutRecords": _put_records,
    "SplitShard": _change,
    "UpdateMaxRecordSize": _change,
    "UpdateShardCount": _change,
    "UpdateStreamMode": _change,
    "UpdateStreamRecordDistributionStrategy": _change,
}
_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    operation: msgspec.json.Decoder(getattr(requests, operation, requests.Request))
    for operation in (*_DIRECTORY, *_ON_STREAM)
}
