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
from local.kinesis.account import Account, Call
from local.kinesis.errors import KinesisError
from local.kinesis.faults import NO_FAULTS
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
    delay: float
    drop: bool


def answer(account: Account, headers: Mapping[str, str], body: bytes, now: float) -> Answer:
    """
    Do what a POST to `/` asks for; raise KinesisError if it is refused.

    `headers` finds a name whatever its case. As in the service, what cannot be read is refused before it is looked at
    who signed it.
    """
    account.tidy(now)
    plan = NO_FAULTS
    try:
        operation, request = _parse(headers, body)
        verify(headers, body, now)
        if operation in _ON_ACCOUNT:
            account.count_call(operation, "", now)
            reply = _ON_ACCOUNT[operation](request, account, now)
        else:
            stream = stream_of(request, account)
            account.count_call(operation, stream.name, now)
            plan = stream.faults.begin(operation, now)
            if plan.error:
                raise plan.error
            reply = _ON_STREAM[operation](request, Call(account, stream, now, plan))
    except KinesisError as error:
        account.refused[error.code] += 1
        raise
    return Answer(b"" if reply is None else orjson.dumps(reply), plan.delay, plan.drop)


def _parse(headers: Mapping[str, str], body: bytes) -> tuple[str, Any]:
    version, _, operation = headers.get("X-Amz-Target", "").partition(".")
    content_type = headers.get("Content-Type", "").partition(";")[0].strip()
    if version != API_VERSION or operation not in _DECODERS or content_type != CONTENT_TYPE:
        raise KinesisError("UnknownOperationException")
    return operation, requests.decode(_DECODERS[operation], body)


def _put_records(request: requests.PutRecords, call: Call) -> Reply:
    results = _put(request.records, call)
    return {
        "FailedRecordCount": sum(isinstance(result, Failure) for result in results),
        "Records": [
            {"ErrorCode": result.code, "ErrorMessage": result.message}
            if isinstance(result, Failure)
            else _place(result, call)
            for result in results
        ],
    }


def _put_record(request: requests.PutRecord, call: Call) -> Reply:
    (result,) = _put([Entry(request.data, request.partition_key, request.explicit_hash_key)], call)
    if isinstance(result, Failure):
        raise KinesisError(*result)
    return _place(result, call)


def _put(entries: list[Entry], call: Call) -> list[Record | Failure]:
    results = call.stream.put(entries, call.now, call.plan)
    accepted = [result for result in results if isinstance(result, Record)]
    if accepted:
        call.account.changed(call.stream, call.now, accepted)
    return results


def _place(record: Record, call: Call) -> Reply:
    stream = call.stream
    number = stream.sequence_number(record.position, record.shard)
    return {"SequenceNumber": number, "ShardId": stream.map.shards[record.shard].name}


def _create_stream(request: requests.CreateStream, account: Account, now: float) -> None:
    mode = request.stream_mode_details.stream_mode
    if (request.shard_count is None) != (mode == "ON_DEMAND"):
        raise KinesisError("ValidationException", "ShardCount belongs to PROVISIONED mode, and only there.")
    account.require_free(request.stream_name, now)
    stream = account.create(request.stream_name, request.shard_count or ON_DEMAND_SHARDS, now)
    stream.facts.mode, stream.facts.max_record_kib = mode, request.max_record_kib
    stream.settle("CREATING", now)
    account.changed(stream, now)


def _delete_stream(_request: requests.Request, call: Call) -> None:
    call.stream.delete(call.now)
    call.account.changed(call.stream, call.now)


def _update_stream_mode(request: requests.UpdateStreamMode, call: Call) -> None:
    call.stream.set_mode(request.stream_mode_details.stream_mode, call.now)
    call.account.changed(call.stream, call.now)


def _update_max_record_size(request: requests.UpdateMaxRecordSize, call: Call) -> None:
    call.stream.set_max_record_size(request.max_record_kib, call.now)
    call.account.changed(call.stream, call.now)


def _split_shard(request: requests.SplitShard, call: Call) -> None:
    new_start = parse_hash_key(request.new_starting_hash_key, "NewStartingHashKey")
    call.stream.split(request.shard_to_split, new_start, call.now)
    call.account.changed(call.stream, call.now)


def _merge_shards(request: requests.MergeShards, call: Call) -> None:
    call.stream.merge(request.shard_to_merge, request.adjacent_shard_to_merge, call.now)
    call.account.changed(call.stream, call.now)


def _update_shard_count(request: requests.UpdateShardCount, call: Call) -> Reply:
    stream = call.stream
    reply = {
        "StreamName": stream.name,
        "StreamARN": stream.arn,
        "CurrentShardCount": len(stream.map.open),
        "TargetShardCount": request.target_shard_count,
    }
    stream.scale(request.target_shard_count, call.now)
    call.account.changed(stream, call.now)
    return reply


_ON_ACCOUNT: dict[str, Callable[[Any, Account, float], Reply | None]] = {
    "CreateStream": _create_stream,
    "ListStreams": list_streams,
}
_ON_STREAM: dict[str, Callable[[Any, Call], Reply | None]] = {
    "DeleteStream": _delete_stream,
    "DescribeStream": describe_stream,
    "DescribeStreamSummary": describe_stream_summary,
    "GetRecords": get_records,
    "GetShardIterator": get_shard_iterator,
    "ListShards": list_shards,
    "MergeShards": _merge_shards,
    "PutRecord": _put_record,
    "PutRecords": _put_records,
    "SplitShard": _split_shard,
    "UpdateMaxRecordSize": _update_max_record_size,
    "UpdateShardCount": _update_shard_count,
    "UpdateStreamMode": _update_stream_mode,
}
_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    operation: msgspec.json.Decoder(getattr(requests, operation, requests.Request))
    for operation in (*_ON_ACCOUNT, *_ON_STREAM)
}
