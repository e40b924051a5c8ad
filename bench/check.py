"""
Is what arrived what was sent? Reads the spool files of a run and says so; also what it was in records and units.

    python -m bench.check --shards N (--posts FILE [--escaped] | --ledger URL) [--times FILE --delay SECONDS] SPOOL ...

It runs after the peer, in a process of its own, because memory that the benchmark's own process has ever used would
count as the next peer's: a child's peak begins at its parent's.

Rules:

* Posts are told apart by the MD5 of their lines: a changed one is unknown, and the one that it was is lost. Those
  expected are in a file, or in the ledger of the X stand-in.
* What arrived is decoded with `processor.wire`, as the Lambda does it.
* Order is judged for each key by the first copy of each post; the spool has the order in which Kinesis would file.
* A post is on the wrong shard when its own key leads elsewhere than its record went: consumers of the KPL's format
  drop it there.
* Latency runs from the moment when a post was due to be written into the peer's pipe, late or not, to its first answer.
"""

import argparse
import asyncio
import json
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from hashlib import md5
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec

from bench.findings import Findings
from bench.peers.reading import read_post
from bench.stub import SPOOL_HEADER, Shards
from local.reconcile import fetch_sent
from processor.wire import decode
from service.core.limits import DEFAULT_RECORD_BYTES, PAYLOAD_UNIT_BYTES, REQUEST_BYTES

_PERCENTILES = (50, 95, 99, 100)


class _Record(msgspec.Struct, rename="pascal"):
    data: bytes
    partition_key: str
    explicit_hash_key: str | None = None


class _Body(msgspec.Struct, rename="pascal"):
    # PutRecords has the list, PutRecord the members of one.
    records: list[_Record] | None = None
    data: bytes = b""
    partition_key: str = ""
    explicit_hash_key: str | None = None


class Sent(NamedTuple):
    """A post that was given to the peer: its partition key, and the MD5 of its line."""

    key: str
    digest: bytes


class Request(NamedTuple):
    """One call that puts: when it arrived, and (data, partition key, explicit hash key) of each record."""

    arrived_at: float
    records: list[tuple[bytes, str, str | None]]


def check(
    sent: Sequence[Sent],
    requests: Iterable[Request],
    shards: int,
    *,
    escaped: bool = False,
    times: Sequence[float] = (),
    delay: float = 0.0,
) -> Findings:
    """
    Compare.

    Args:
        sent: in their order.
        requests: in the order in which Kinesis would file them.
        shards: how many the stub had.
        escaped: what arrived are lines as the inside of a JSON string.
        times: for each post when it was due, in seconds of the monotonic clock; 0 for one that is not to count.
        delay: what the stub added to each answer, in seconds.
    """
    findings = Findings(len(sent))
    places = {post.digest: place for place, post in enumerate(sent)}
    where = Shards(shards)
    seen = bytearray(len(sent))
    newest: dict[str, int] = {}
    latencies: list[float] = []
    for request in requests:
        sizes = [len(data) + len(key.encode()) for data, key, _ in request.records]
        findings.records += len(sizes)
        findings.stored += sum(sizes)
        findings.units += sum(-(-size // PAYLOAD_UNIT_BYTES) for size in sizes)
        findings.over_limit += (sum(sizes) > REQUEST_BYTES) + sum(size > DEFAULT_RECORD_BYTES for size in sizes)
        for data, partition_key, explicit_hash_key in request.records:
            shard = where.index(partition_key, explicit_hash_key)
            decoded = decode(data)
            findings.damaged += decoded.damage is not None
            for record in decoded.records:
                line = _unescape(record.data) if escaped else record.data
                place = places.get(md5(line, usedforsecurity=False).digest())
                if place is None:
                    findings.unknown += 1
                    continue
                key = sent[place].key
                findings.wrong_shard += where.index(key) != shard
                if seen[place]:
                    findings.repeated += 1
                    continue
                seen[place] = 1
                findings.out_of_order += place < newest.get(key, -1)
                newest[key] = max(place, newest.get(key, -1))
                if times and times[place]:
                    latencies.append(request.arrived_at + delay - times[place])
    findings.lost = len(sent) - sum(seen)
    findings.latency = _percentiles(latencies)
    return findings


def _percentiles(latencies: list[float]) -> dict[str, float]:
    latencies.sort()
    last = len(latencies) - 1
    return {str(of): round(latencies[last * of // 100] * 1000, 1) for of in _PERCENTILES} if latencies else {}


def _unescape(data: bytes) -> bytes:
    text: str = json.loads(b'"' + data.removesuffix(b"\n") + b'"')
    return text.encode()


def read_posts(path: Path) -> list[Sent]:
    """Read a file of posts."""
    with path.open("rb") as file:
        posts = (read_post(line.removesuffix(b"\n")) for line in file)
        return [Sent(post.key, md5(post.data, usedforsecurity=False).digest()) for post in posts]


def read_spool(path: Path) -> Iterator[Request]:
    """Read what a stub has kept."""
    decoder = msgspec.json.Decoder(_Body)
    with path.open("rb") as spool:
        while head := spool.read(SPOOL_HEADER.size):
            arrived_at, length = SPOOL_HEADER.unpack(head)
            body = decoder.decode(spool.read(length))
            records = body.records if body.records is not None else [body]
            yield Request(
                arrived_at, [(record.data, record.partition_key, record.explicit_hash_key) for record in records]
            )


async def read_ledger(url: str) -> list[Sent]:
    """Read from the X stand-in what it has written, or may have written."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as http:
        rows = await fetch_sent(http, url)
    posts = {row.id: Sent(row.key, bytes.fromhex(row.md5)) for row in rows if row.state != "unsent"}
    return list(posts.values())


def main() -> int:
    """Print the findings as one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.check", description="Compare what arrived with what was sent."
    )
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--posts", type=Path, metavar="FILE", help="the posts that were sent")
    parser.add_argument("--escaped", action="store_true", help="the peer writes a line as a JSON string")
    parser.add_argument("--ledger", metavar="URL", help="of the X stand-in that sent them")
    parser.add_argument("--times", type=Path, metavar="FILE", help="when each post was due")
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="of the stub")
    parser.add_argument("spool", type=Path, nargs="+")
    options = parser.parse_args()
    sent = read_posts(options.posts) if options.posts else asyncio.run(read_ledger(options.ledger))
    times = array("d")
    if options.times:
        times.frombytes(options.times.read_bytes())
    requests = (request for path in options.spool for request in read_spool(path))
    findings = check(sent, requests, options.shards, escaped=options.escaped, times=times, delay=options.delay)
    print(json.dumps(asdict(findings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
