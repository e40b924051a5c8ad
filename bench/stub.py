"""
Kinesis with canned answers, as cheap as one process can give them: the other end of every run of the benchmark.

    python -m bench.stub --shards 256 --spool FILE [--port PORT] [--delay SECONDS] [--certificate FILE --key FILE]

Rules:

* Each record gets the shard that Kinesis would choose (explicit hash key, or MD5 of the partition key) and a sequence
  number higher than all before. A canned shard would make a producer that checks it believe in a reshard.
* It throttles nobody and refuses only a request of more than 500 records. All other limits are for the check.
* Whatever a run must know is kept, and looked at afterwards by `bench.check`: the bodies go to the spool file as they
  came. So the check costs the run nothing but the writing.
* Data is never decoded here: the JSON decoder skips it.
* SIGTERM ends it; then it prints one line of JSON: requests, bytes received, and the times of the first request and of
  the last answer.

A spool file is a sequence of: time of arrival (double, seconds of the monotonic clock), length of the body (unsigned
32 bit), both little endian, and the body.
"""

import argparse
import asyncio
import os
import signal
import ssl
import struct
import sys
import time
from bisect import bisect_right
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from service.core.limits import DEFAULT_RECORD_BYTES, HASH_KEYS, KIB, RECORDS_PER_REQUEST

STREAM = "bench"
SPOOL_HEADER = struct.Struct("<dI")
_ARN = f"arn:aws:kinesis:us-east-1:000000000000:stream/{STREAM}"
# Kinesis' sequence numbers have 56 digits. The last 20 count on from the time of the start, so that those of a second
# stub are higher than those of the one before it.
_SEQUENCE_HEAD = "49" + "0" * 34
_KNOWN_KEYS = 1 << 18
_HEAD = (
    "HTTP/1.1 {} stub\r\nx-amzn-requestid: 00000000-0000-0000-0000-000000000000\r\n"
    "content-type: application/x-amz-json-1.1\r\ncontent-length: {}\r\n\r\n"
)


class _Entry(msgspec.Struct, rename="pascal", gc=False):
    partition_key: str
    explicit_hash_key: str | None = None


class _PutRecords(msgspec.Struct, rename="pascal", gc=False):
    records: list[_Entry]


class Shards:
    """Open shards of equal size, and which of them Kinesis would choose."""

    def __init__(self, count: int) -> None:
        self._firsts = [HASH_KEYS * index // count for index in range(count)]
        self._known: dict[str, int] = {}

    def index(self, partition_key: str, explicit_hash_key: str | None = None) -> int:
        """The number of the shard for a record with these keys."""
        name = explicit_hash_key or partition_key
        index = self._known.get(name)
        if index is None:
            if explicit_hash_key:
                number = int(explicit_hash_key)
            else:
                number = int.from_bytes(md5(partition_key.encode(), usedforsecurity=False).digest(), "big")
            if len(self._known) >= _KNOWN_KEYS:
                self._known.clear()
            index = self._known[name] = bisect_right(self._firsts, number) - 1
        return index

    def describe(self) -> list[dict[str, Any]]:
        """All of them, as ListShards and DescribeStream write them."""
        ends = [*self._firsts[1:], HASH_KEYS]
        return [
            {
                "ShardId": shard_id(index),
                "HashKeyRange": {"StartingHashKey": str(first), "EndingHashKey": str(end - 1)},
                "SequenceNumberRange": {"StartingSequenceNumber": f"{_SEQUENCE_HEAD}{0:020d}"},
            }
            for index, (first, end) in enumerate(zip(self._firsts, ends, strict=True))
        ]


def shard_id(index: int) -> str:
    """The name of a shard, as Kinesis writes it."""
    return f"shardId-{index:012d}"


class Answers:
    """
    What a service of AWS says, and what its connections have seen of it.

    Attributes:
        received: bytes that came in, heads of requests included.
        first, last: when the first PutRecords or PutRecord began to arrive, and when the last call was answered; 0
            before that.
    """

    received = 0
    first = last = 0.0

    def answer(self, operation: str, body: memoryview) -> tuple[int, bytes]:
        """Answer one call: status and body."""
        raise NotImplementedError


class Stub(Answers):
    """
    Kinesis.

    Args:
        shards: how many there are.
        keep: takes the pieces of a spool entry.

    Attributes:
        requests: PutRecords and PutRecord calls that were answered.
    """

    def __init__(self, shards: int, keep: Callable[[list[Any]], object]) -> None:
        self._shards = Shards(shards)
        self._keep = keep
        self._number = time.time_ns()
        self._heads = [f'{{"ShardId":"{shard_id(index)}","SequenceNumber":"{_SEQUENCE_HEAD}' for index in range(shards)]
        self._put_records = msgspec.json.Decoder(_PutRecords)
        self._put_record = msgspec.json.Decoder(_Entry)
        self.requests = 0

    def answer(self, operation: str, body: memoryview) -> tuple[int, bytes]:
        """Answer one call: status and body."""
        match operation:
            case "PutRecords":
                entries = self._put_records.decode(body).records
                if len(entries) > RECORDS_PER_REQUEST:
                    return _error("InvalidArgumentException", f"{len(entries)} records")
                self._spool(body)
                return 200, f'{{"FailedRecordCount":0,"Records":[{",".join(map(self._stored, entries))}]}}'.encode()
            case "PutRecord":
                self._spool(body)
                return 200, self._stored(self._put_record.decode(body)).encode()
            case "ListShards":
                query = msgspec.json.decode(body)
                if "NextToken" in query and ("StreamName" in query or "StreamARN" in query):
                    return _error("InvalidArgumentException", "NextToken and StreamName exclude each other")
                return 200, msgspec.json.encode(self._list(query))
            case "DescribeStream" | "DescribeStreamSummary":
                return 200, msgspec.json.encode(self._describe(operation))
        return _error("UnknownOperationException", operation)

    def statistics(self) -> dict[str, float]:
        """What the last line of the program says."""
        return {
            "requests": self.requests,
            "received": self.received,
            "first": self.first,
            "last": self.last,
        }

    def _spool(self, body: memoryview) -> None:
        self.requests += 1
        self._keep([SPOOL_HEADER.pack(time.monotonic(), len(body)), body])

    def _stored(self, entry: _Entry) -> str:
        self._number += 1
        return f'{self._heads[self._shards.index(entry.partition_key, entry.explicit_hash_key)]}{self._number:020d}"}}'

    def _list(self, query: dict[str, Any]) -> dict[str, Any]:
        start, size = int(query.get("NextToken", 0)), query.get("MaxResults", 1000)
        shards = self._shards.describe()
        page = {"Shards": shards[start : start + size]}
        return page | ({"NextToken": str(start + size)} if start + size < len(shards) else {})

    def _describe(self, operation: str) -> dict[str, Any]:
        shards = self._shards.describe()
        common = {
            "StreamName": STREAM,
            "StreamARN": _ARN,
            "StreamStatus": "ACTIVE",
            "StreamModeDetails": {"StreamMode": "PROVISIONED"},
            "RetentionPeriodHours": 24,
            "StreamCreationTimestamp": 1767225600.0,
            "EnhancedMonitoring": [{"ShardLevelMetrics": []}],
            "EncryptionType": "NONE",
        }
        if operation == "DescribeStream":
            return {"StreamDescription": common | {"Shards": shards, "HasMoreShards": False}}
        limit = DEFAULT_RECORD_BYTES // KIB
        return {
            "StreamDescriptionSummary": common
            | {"OpenShardCount": len(shards), "ConsumerCount": 0, "MaxRecordSizeInKiB": limit}
        }


class Connection(asyncio.Protocol):
    """One connection; HTTP 1.1 as AWS' clients speak it: a content length, and one request at a time."""

    def __init__(self, stub: Answers, delay: float) -> None:
        self._stub = stub
        self._delay = delay
        self._pieces: list[bytes] = []
        self._size = 0
        self._head = 0
        self._end = 0
        self._operation = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._write = transport.write  # type: ignore[attr-defined]  # uvloop's transports are no subclass of asyncio's

    def data_received(self, data: bytes) -> None:
        """Collect a request; answer it when it is whole."""
        self._pieces.append(data)
        self._size += len(data)
        self._stub.received += len(data)
        if not self._end and not self._read_head():
            return
        if self._size >= self._end:
            whole = b"".join(self._pieces)
            self._pieces, self._size = [], 0
            body = memoryview(whole)[self._head : self._end]
            self._end = 0
            status, answer = self._stub.answer(self._operation, body)
            reply = _HEAD.format(status, len(answer)).encode() + answer
            if self._delay:
                asyncio.get_running_loop().call_later(self._delay, self._reply, reply)
            else:
                self._reply(reply)

    def _read_head(self) -> bool:
        whole = b"".join(self._pieces)
        self._pieces = [whole]
        end = whole.find(b"\r\n\r\n")
        if end < 0:
            return False
        for line in whole[:end].decode("latin-1").split("\r\n")[1:]:
            name, _, value = line.partition(":")
            if name.lower() == "content-length":
                self._head, self._end = end + 4, end + 4 + int(value)
            elif name.lower() == "x-amz-target":
                self._operation = value.rpartition(".")[2].strip()
        if self._operation.startswith("PutRecord"):
            self._stub.first = self._stub.first or time.monotonic()
        return True

    def _reply(self, reply: bytes) -> None:
        self._write(reply)
        self._stub.last = time.monotonic()


def _error(code: str, message: str) -> tuple[int, bytes]:
    return 400, msgspec.json.encode({"__type": code, "message": message})


async def serve(stub: Answers, port: int = 0, delay: float = 0.0, tls: ssl.SSLContext | None = None) -> asyncio.Server:
    """Listen on 127.0.0.1; `delay` is added to each answer, in seconds."""
    return await asyncio.get_running_loop().create_server(
        lambda: Connection(stub, delay), "127.0.0.1", port, ssl=tls, backlog=256
    )


async def _run(options: argparse.Namespace) -> None:
    tls = None
    if options.certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.certificate, options.key)
    spool = os.open(options.spool, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    stub = Stub(options.shards, lambda pieces: _write(spool, pieces))
    server = await serve(stub, options.port, options.delay, tls)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    print(f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await ended.wait()
    server.close()
    os.close(spool)
    print(msgspec.json.encode(stub.statistics()).decode(), flush=True)


def _write(spool: int, pieces: list[Any]) -> None:
    wanted = sum(map(len, pieces))
    if os.writev(spool, pieces) != wanted:
        raise OSError("the spool file cannot take a whole request: is the disk full?")


def main() -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m bench.stub", description="Kinesis with canned answers.")
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--spool", type=Path, required=True, metavar="FILE", help="where the bodies of all puts go")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one")
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="added to each answer")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="PEM; with --key: serve HTTPS")
    parser.add_argument("--key", type=Path, metavar="FILE", help="PEM")
    uvloop.run(_run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
