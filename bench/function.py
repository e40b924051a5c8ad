"""
The function, or boto3 in its place, in a process of its own, for `bench.processor`.

    python -m bench.function handler|boto3 EVENT CORE      many times, on one core; prints the best as JSON
    python -m bench.function start EVENT                   once: whoever started it looks at the clock

Nothing is imported here that the function itself does not import, since its start is measured.
"""

import json
import os
import sys
import time
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from processor import wire
from processor.handler import handle
from processor.items import Shape, item_of, to_json

ROUNDS = {"handler": 16, "boto3": 3}


class Context:
    """Lambda's context with a minute left."""

    aws_request_id = "bench"

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds."""
        return 60_000


def invoke(event: dict[str, Any]) -> None:
    """Have the function carry an event."""
    assert handle(event, Context()) == {"batchItemFailures": []}


def writer_by_boto3(lines: list[bytes]) -> Callable[[], None]:
    """Make items of posts; return what writes them from eight threads."""
    import boto3  # noqa: PLC0415 - the function imports neither
    from botocore.config import Config  # noqa: PLC0415 - as above

    items = [json.loads(to_json(item_of(line, 0, Shape()))) for line in lines]
    requests = [{"PutRequest": {"Item": item}} for item in items]
    batches = [requests[start : start + 25] for start in range(0, len(requests), 25)]
    client = boto3.client("dynamodb", config=Config(max_pool_connections=8, retries={"total_max_attempts": 1}))
    pool = ThreadPoolExecutor(8)

    def write(batch: Any) -> None:
        client.batch_write_item(RequestItems={os.environ["TABLE"]: batch})

    return lambda: list(pool.map(write, batches)).clear()


def best_of(rounds: int, items: int, work: Callable[[], None]) -> dict[str, float]:
    """Run some times; return the best items a second and the least CPU an item, in microseconds."""
    walls, costs = [], []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        costs.append((time.process_time() - cpu) / items * 1e6)
        walls.append(items / (time.perf_counter() - wall))
    # The first one connects.
    return {"items": items, "items_per_second": max(walls[1:]), "cpu_microseconds": min(costs[1:])}


def main(what: str, event_file: str, *core: str) -> None:
    """Do what the command line says."""
    event = json.loads(Path(event_file).read_bytes())
    if what == "start":
        invoke(event)
        return
    os.sched_setaffinity(0, map(int, core))
    containers = (b64decode(record["kinesis"]["data"]) for record in event["Records"])
    lines = [post.data for container in containers for post in wire.decode(container).records]
    work = writer_by_boto3(lines) if what == "boto3" else lambda: invoke(event)
    print(json.dumps(best_of(ROUNDS[what], len(lines), work)))


if __name__ == "__main__":
    main(*sys.argv[1:])
