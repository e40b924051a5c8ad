"""
Where a post's CPU goes: the steps of the daemon in one process, without input and output, each on its own clock.

    python -m bench.stages [--shards 64] [--rate 50000] [--rounds 12]

Rules:

* The same posts and the same moments in each round; of each call the quickest round counts. So what else the machine
  does hardly shows, and the sum is what the steps cost at least. Input, output, the fixed part of signing and the event
  loop come on top.
* The floor is what nobody can leave out: finding the ends of lines, a JSON decoder that builds two fields and skips all
  else, the MD5 of the container format, base64, the SHA-256 of the signature.
"""

import argparse
import gc
import hashlib
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import ParamSpec, TypeVar

import msgspec
import pybase64

from bench import posts
from service.core.limits import HASH_KEYS, KIB
from service.core.lines import LineSplitter
from service.core.posts import PostReader
from service.core.producer import Producer
from service.core.records import PutRequest, RecordResult, Shard
from service.kinesis import Kinesis

_POSTS = 40_000
_CHUNK_BYTES = 256 * KIB
_CONTAINER_BYTES = 50 * KIB
_REQUEST_BYTES = 1024 * KIB
_ROUND_TRIP_SECONDS = 0.02

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Data(msgspec.Struct, gc=False):
    id: str
    author_id: str


class _Line(msgspec.Struct, gc=False):
    data: _Data


class Clock:
    """The quickest time of each call of each step, in seconds; `begin` starts the next round."""

    def __init__(self) -> None:
        self._quickest: dict[tuple[str, int], float] = defaultdict(lambda: float("inf"))
        self._calls: Counter[str] = Counter()

    def begin(self) -> None:
        """Count the calls from the first one again: the next round makes the same ones."""
        self._calls.clear()

    def time(self, step: str, work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        """Do it, and keep how long it took if no round was quicker."""
        call = step, self._calls[step]
        self._calls[step] += 1
        started = time.perf_counter()
        result = work(*arguments, **named)
        self._quickest[call] = min(self._quickest[call], time.perf_counter() - started)
        return result

    def totals(self) -> dict[str, float]:
        """Give the seconds of each step, all its calls together."""
        totals: dict[str, float] = defaultdict(float)
        for (step, _), seconds in self._quickest.items():
            totals[step] += seconds
        return totals


def road(clock: Clock, chunks: list[bytes], shards: int, rate: float) -> None:
    """Carry all chunks through the steps, with a Kinesis that takes everything."""
    clock.begin()
    splitter, reader, kinesis = LineSplitter(), PostReader(), Kinesis("bench")
    producer = Producer(
        aggregate=True, lanes_per_shard=1, linger=0.1, memory_limit=128 << 20, compress=False, rng=Random(0)
    )
    edges = [HASH_KEYS * number // shards for number in range(shards + 1)]
    producer.on_shards([Shard(f"shard-{n}", edges[n], edges[n + 1] - 1) for n in range(shards)], 0.0)
    under_way: deque[tuple[float, PutRequest]] = deque()
    now = 0.0
    sequence = 0

    def serve() -> None:
        nonlocal sequence
        for request in clock.time("containers, requests", producer.requests, now):
            body = clock.time("body: base64, JSON", kinesis.body, request.records)
            clock.time("SHA-256 of the body", hashlib.sha256, body)
            under_way.append((now + _ROUND_TRIP_SECONDS, request))
        while under_way and under_way[0][0] <= now:
            request = under_way.popleft()[1]
            sequence += 1
            results = [RecordResult(record.partition_key, str(sequence)) for record in request.records]
            clock.time("answers", producer.on_response, request, results, now)

    for chunk in chunks:
        lines = clock.time("lines", splitter.feed, chunk)
        found, _ = clock.time("id and key", reader.read, lines, now)
        clock.time("lanes", producer.offer, found, now)
        now += len(found) / rate
        serve()
    producer.close()
    while not producer.is_drained:
        now += _ROUND_TRIP_SECONDS
        serve()


def floor(clock: Clock, chunks: list[bytes]) -> None:
    """Do only what cannot be left out."""
    clock.begin()
    decoder = msgspec.json.Decoder(_Line)
    for chunk in chunks:
        lines = clock.time("lines", chunk.split, b"\n")
        # The first and the last may be parts of one.
        clock.time("JSON", list, map(decoder.decode, lines[1:-1]))
    whole = b"".join(chunks)
    for start in range(0, len(whole), _CONTAINER_BYTES):
        piece = whole[start : start + _CONTAINER_BYTES]
        clock.time("MD5", hashlib.md5, piece, usedforsecurity=False)
        clock.time("base64", pybase64.b64encode, piece)
    encoded = pybase64.b64encode(whole)
    for start in range(0, len(encoded), _REQUEST_BYTES):
        clock.time("SHA-256", hashlib.sha256, encoded[start : start + _REQUEST_BYTES])


def table(steps: dict[str, float], count: int) -> list[str]:
    """Give the rows: a step and its microseconds a post, and the sum."""
    rows = [f"{step:<24}{seconds / count * 1e6:6.2f}" for step, seconds in steps.items()]
    return [*rows, f"{'together':<24}{sum(steps.values()) / count * 1e6:6.2f}"]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.stages", description="Where a post's CPU goes.")
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--rate", type=float, default=50_000.0, help="posts a second; more fill larger containers")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "posts"
        posts.write(path, _POSTS)
        data = path.read_bytes()
    chunks = [data[start : start + _CHUNK_BYTES] for start in range(0, len(data), _CHUNK_BYTES)]
    ours, least = Clock(), Clock()
    gc.disable()
    for _ in range(options.rounds):
        road(ours, chunks, options.shards, options.rate)
        floor(least, chunks)
        gc.collect()
    print(f"Microseconds of CPU a post of {len(data) / _POSTS:,.0f} bytes, {options.shards} shards.\n")
    print("\n".join(table(ours.totals(), _POSTS)))
    print("\nthe floor\n")
    print("\n".join(table(least.totals(), _POSTS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
