"""
The processor beside a table that answers in 8 ms: what an item costs, how many a second there are, how soon it starts.

    python -m bench.processor [--posts FILE]      half a minute; writes its part of docs/performance.md

Rules:

* The function runs as Lambda runs it: its handler, with its settings in the environment, on one core, and an event of
  6 MB, as full as Lambda makes them. The stub of the table has another core.
* The posts are those of the producer's benchmark, in containers of 50 KB; with --posts, recorded ones as well.
* CPU is the whole of it, from the event as an object to the answer: base64, digests, JSON, items, signatures, HTTP, and
  the look for tombstones. Each figure is the best of some invocations; whatever else the machine does makes it worse.
* Beside it stands boto3, as AWS documents it: one client, eight threads, BatchWriteItem. It writes the same items, made
  beforehand, and does nothing else.
* The start is that of a process: from its start to the answer to a first event with one post, on warm file caches.
"""

import argparse
import asyncio
import base64
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

from bench import document, posts
from processor.wire import Aggregate

ROOT = Path(__file__).parent.parent

ANSWER_SECONDS = 0.008
TABLE = "bench-EventData"
EVENT_BYTES = 6_000_000
CONTAINER_BYTES = 50 * 1024
ROUNDS = 16
STARTS = 10
AIMS = {"items_per_second": 8_000, "cpu_microseconds": 60, "start_milliseconds": 400}


class Stub(asyncio.Protocol):
    """One connection to the table: whatever is asked is answered with success, ANSWER_SECONDS later."""

    items = 0

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer when the request is whole."""
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        self._received = b""
        if b"BatchGetItem" in head:
            answer = json.dumps({"Responses": {TABLE: []}, "UnprocessedKeys": {}})
        elif b"BatchWriteItem" in head:
            count = body.count(b'"PutRequest"')
            Stub.items += count
            units = [{"TableName": TABLE, "CapacityUnits": 3.0 * count}]
            answer = json.dumps({"UnprocessedItems": {}, "ConsumedCapacity": units})
        else:
            answer = json.dumps({"items": Stub.items})
        reply = (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: {len(answer)}\r\n"
            f"x-amzn-RequestId: 0\r\nx-amz-crc32: {crc32(answer.encode())}\r\nServer: stub\r\n"
            f"Connection: keep-alive\r\n\r\n{answer}"
        ).encode()
        asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._transport.write, reply)


async def serve() -> None:
    """Be the table; print the port and stay until the input ends."""
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


def event_of(lines: Sequence[bytes]) -> tuple[dict[str, Any], int]:
    """Return an event that is as full as Lambda makes it, and how many of the posts it holds."""
    records: list[dict[str, Any]] = []
    size = held = 0
    container = Aggregate()

    def seal() -> int:
        number = str(len(records))
        kinesis = {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": "lane-0",
            "sequenceNumber": number,
            "data": base64.b64encode(container.seal()).decode(),
            "approximateArrivalTimestamp": time.time(),
        }
        stream = "arn:aws:kinesis:us-east-1:000000000000:stream/bench"
        records.append({"kinesis": kinesis, "eventID": f"shardId-0:{number}", "eventSourceARN": stream})
        return len(json.dumps(records[-1]))

    for line in lines:
        if not container.add(b"author", line, CONTAINER_BYTES):
            size += seal()
            held += container.count
            container = Aggregate()
            if size + CONTAINER_BYTES * 4 // 3 > EVENT_BYTES:
                break
            container.add(b"author", line)
    else:
        seal()
        held += container.count
    return {"Records": records}, held


class Context:
    """Lambda's context with a minute left."""

    aws_request_id = "bench"

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds."""
        return 60_000


def best_of(rounds: int, work: Callable[[], int]) -> dict[str, float]:
    """Run some times; return the best items a second and the least CPU an item, in microseconds."""
    walls, costs = [], []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        items = work()
        costs.append((time.process_time() - cpu) / items * 1e6)
        walls.append(items / (time.perf_counter() - wall))
    # The first one connects.
    return {"items": items, "items_per_second": max(walls[1:]), "cpu_microseconds": min(costs[1:])}


def run_function(path: Path) -> dict[str, float]:
    """Run the handler on the posts of a file."""
    from processor.handler import handle  # noqa: PLC0415 - in the process of the function only

    event, held = event_of(path.read_bytes().splitlines())

    def invoke() -> int:
        assert handle(event, Context()) == {"batchItemFailures": []}
        return held

    return best_of(ROUNDS, invoke)


def run_boto3(path: Path) -> dict[str, float]:
    """Write the same items by boto3 from eight threads."""
    import boto3  # noqa: PLC0415 - as above
    from botocore.config import Config  # noqa: PLC0415 - as above

    from processor.items import Shape, item_of, to_json  # noqa: PLC0415 - as above

    event, held = event_of(path.read_bytes().splitlines())
    del event
    items = [json.loads(to_json(item_of(line, 0, Shape()))) for line in path.read_bytes().splitlines()[:held]]
    client = boto3.client("dynamodb", config=Config(max_pool_connections=8, retries={"total_max_attempts": 1}))
    batches = [items[start : start + 25] for start in range(0, held, 25)]

    def write(batch: list[Any]) -> None:
        client.batch_write_item(RequestItems={TABLE: [{"PutRequest": {"Item": item}} for item in batch]})

    with ThreadPoolExecutor(8) as pool:

        def write_all() -> int:
            list(pool.map(write, batches))
            return held

        return best_of(3, write_all)


def run_start(path: Path) -> dict[str, float]:
    """Answer one event with one post."""
    from processor.handler import handle  # noqa: PLC0415 - what is measured

    event, _ = event_of(path.read_bytes().splitlines()[:1])
    assert handle(event, Context()) == {"batchItemFailures": []}
    return {}


CHILDREN: dict[str, Callable[[Path], dict[str, float]]] = {
    "function": run_function,
    "boto3": run_boto3,
    "start": run_start,
}


def child(what: str, path: Path, port: int) -> tuple[dict[str, float], float]:
    """Run one of CHILDREN in a process of its own, on one core; return what it found, and its seconds."""
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "TABLE": TABLE,
        "QUARANTINE": str(path.parent / "quarantine"),
    }
    started = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-m", "bench.processor", "--child", what, str(path)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found, time.perf_counter() - started


def measure(path: Path, port: int) -> dict[str, float]:
    """Return all figures for the posts of a file."""
    found, _ = child("function", path, port)
    reference, _ = child("boto3", path, port)
    starts = [child("start", path, port)[1] for _ in range(STARTS)]
    return {
        **found,
        "boto3_items_per_second": reference["items_per_second"],
        "boto3_cpu_microseconds": reference["cpu_microseconds"],
        "start_milliseconds": min(starts) * 1000,
    }


def table_of(rows: dict[str, dict[str, float]]) -> str:
    """Return the figures as a table of Markdown."""
    head = "| posts | items an invocation | items/s | CPU an item | boto3, 8 threads | its CPU an item | start |"
    lines = [head, "|---|---:|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {name} | {row['items']:,.0f} | {row['items_per_second']:,.0f} | {row['cpu_microseconds']:.0f} µs"
        f" | {row['boto3_items_per_second']:,.0f}/s | {row['boto3_cpu_microseconds']:.0f} µs"
        f" | {row['start_milliseconds']:.0f} ms |"
        for name, row in rows.items()
    ]
    lines.append(
        f"| *aim* | | *{AIMS['items_per_second']:,}* | *{AIMS['cpu_microseconds']} µs* | | |"
        f" *{AIMS['start_milliseconds']} ms* |"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write; return 1 if an aim was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.processor", description="Measure the processor.")
    parser.add_argument("--posts", type=Path, metavar="FILE", help="a recorded archive to measure too")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--stub", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    if options.stub:
        os.sched_setaffinity(0, cores[-1:])
        asyncio.run(serve())
        return 0
    if options.child:
        if options.child[0] != "start":
            os.sched_setaffinity(0, cores[:1])
        print(json.dumps(CHILDREN[options.child[0]](Path(options.child[1]))))
        return 0
    rows: dict[str, dict[str, float]] = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        files = {"invented, 1.1 KB": Path(directory) / "invented.jsonl"}
        posts.write(files["invented, 1.1 KB"], 8_000)
        if options.posts:
            name = "recorded"
            files[name] = Path(directory) / "recorded.jsonl"
            posts.write_recorded(files[name], options.posts, 8_000)
        stub = subprocess.Popen(
            [sys.executable, "-m", "bench.processor", "--stub"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert stub.stdout is not None
            port = int(stub.stdout.readline())
            for name, path in files.items():
                rows[name] = measure(path, port)
        finally:
            with suppress(ProcessLookupError):
                stub.terminate()
            stub.communicate()
    text = (
        f"Measured on {datetime.now(UTC):%Y-%m-%d} with `python -m bench.processor`: {len(cores)} cores,"
        f" {platform.machine()}, {platform.python_implementation()} {platform.python_version()}; load before the run"
        f" {load:.1f}.\n\n{table_of(rows)}"
    )
    print(text)
    document.write("python -m bench.processor", text)
    row = next(iter(rows.values()))
    good = (
        row["items_per_second"] >= AIMS["items_per_second"]
        and row["cpu_microseconds"] <= AIMS["cpu_microseconds"]
        and row["start_milliseconds"] <= AIMS["start_milliseconds"]
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
