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
* The start is that of a process: from its start to its end after a first event with one post, on warm file caches.
"""

import argparse
import asyncio
import base64
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench import document, posts
from bench.feed import RunError
from bench.measure import ROOT
from bench.stub import Answers, serve
from processor.wire import Aggregate

ANSWER_SECONDS = 0.008
TABLE = "bench-EventData"
EVENT_BYTES = 6_000_000
CONTAINER_BYTES = 50 * 1024
STARTS = 10
AIMS = {"items_per_second": 8_000, "cpu_microseconds": 60, "start_milliseconds": 400}


class Table(Answers):
    """DynamoDB: whatever is asked is answered with success."""

    def answer(self, operation: str, body: memoryview) -> tuple[int, bytes]:
        """Answer one call: status and body."""
        if operation == "BatchGetItem":
            return 200, json.dumps({"Responses": {TABLE: []}, "UnprocessedKeys": {}}).encode()
        units = [{"TableName": TABLE, "CapacityUnits": 3.0 * bytes(body).count(b'"PutRequest"')}]
        return 200, json.dumps({"UnprocessedItems": {}, "ConsumedCapacity": units}).encode()


def event_of(lines: Sequence[bytes]) -> dict[str, Any]:
    """Return an event with as many of the posts as Lambda would give at once."""
    records: list[dict[str, Any]] = []
    size = 0
    waiting = list(reversed(lines))
    while waiting and size + CONTAINER_BYTES * 4 // 3 < EVENT_BYTES:
        container = Aggregate()
        while waiting and container.add(b"author", waiting[-1], CONTAINER_BYTES):
            waiting.pop()
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
        size += len(json.dumps(records[-1]))
    return {"Records": records}


async def child(url: str, what: str, event: Path, *core: int) -> tuple[dict[str, float], float]:
    """Run `bench.function`; return what it found, if anything, and how many seconds it took."""
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_ENDPOINT_URL": url,
        "TABLE": TABLE,
        "QUARANTINE": str(event.parent / "quarantine"),
    }
    command = [sys.executable, "-m", "bench.function", what, str(event), *map(str, core)]
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RunError(f"bench.function {what} ended with exit code {process.returncode}")
    # What comes before is the function's log.
    return json.loads(output.splitlines()[-1]), seconds


def events_of(path: Path) -> tuple[Path, Path]:
    """Write two events with the posts of a file, a full one and one with a single post."""
    lines = path.read_bytes().splitlines()
    full, least = path.with_suffix(".full"), path.with_suffix(".least")
    full.write_text(json.dumps(event_of(lines)))
    least.write_text(json.dumps(event_of(lines[:1])))
    return full, least


async def measure(full: Path, least: Path) -> dict[str, float]:
    """Return all figures for these events."""
    server = await serve(Table(), delay=ANSWER_SECONDS)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-1:])
    found, _ = await child(url, "handler", full, cores[0])
    reference, _ = await child(url, "boto3", full, cores[0])
    os.sched_setaffinity(0, cores)
    starts = [(await child(url, "start", least))[1] for _ in range(STARTS)]
    server.close()
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
    options = parser.parse_args(arguments)
    head = document.head("python -m bench.processor")
    with tempfile.TemporaryDirectory() as directory:
        files = {"invented, 1.1 KB": Path(directory) / "invented"}
        posts.write(files["invented, 1.1 KB"], 8_000)
        if options.posts:
            files["recorded"] = Path(directory) / "recorded"
            posts.write_recorded(files["recorded"], options.posts, 8_000)
        rows = {name: uvloop.run(measure(*events_of(path))) for name, path in files.items()}
    text = f"{head}\n\n{table_of(rows)}"
    print(text)
    document.write("python -m bench.processor", text)
    row = rows["invented, 1.1 KB"]
    is_good = (
        row["items_per_second"] >= AIMS["items_per_second"]
        and row["cpu_microseconds"] <= AIMS["cpu_microseconds"]
        and row["start_milliseconds"] <= AIMS["start_milliseconds"]
    )
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
