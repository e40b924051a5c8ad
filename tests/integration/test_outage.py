"""Kinesis is gone for longer than memory lasts. Real processes, real time: some 30 seconds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from local.pipeline import Pipeline
from service.core.limits import MIB
from service.core.producer import POSTS_PART
from tests.integration.steps import delivered, until

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(150)]

# 0.65 MB a second, a quarter of that for each shard. A lane tries again 5 s after the end of the outage at the latest;
# the 15 s of posts that it has by then it delivers in 3, at 1 MiB a second: 8 s, and the outage must be longer.
RATE = 500
GONE_SECONDS = 10
MEMORY_LIMIT = 4 * MIB
# What is read back at once may pass the limit: 1 MiB and a chunk, with the objects that hold the posts.
OVERSHOOT = 2 * MIB
RESIDENT_LIMIT = 200 * MIB


@asynccontextmanager
async def watched(running: Pipeline) -> AsyncIterator[list[dict[str, float]]]:
    """Give a list that gets the daemon's metrics every tenth of a second."""
    seen: list[dict[str, float]] = []

    async def watch() -> None:
        while True:
            seen.append(await running.metrics())
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(watch())
        yield seen
        task.cancel()


async def test_posts_wait_on_disk_while_kinesis_is_gone(tmp_path: Path) -> None:
    """Memory keeps its limit, nothing is lost or late, and what waits is gone in less time than it took to pile up."""
    clock = asyncio.get_running_loop().time
    settings = {"MILLRACE_MEMORY_LIMIT": "4MiB"}
    async with Pipeline(tmp_path, rate=RATE, settings=settings, table=False) as running:
        await delivered(running, RATE)
        async with watched(running) as seen:
            start = clock()
            await running.restart_kinesis(after=GONE_SECONDS)
            gone = clock() - start
            # No more wait than half a second brings.
            await until(running, lambda metrics: metrics["posts_buffered"] < RATE / 2)
            catching_up = clock() - start - gone
        await running.stop_posts()
        await running.settle()
        # The journal counts a chunk until its next beat after the last confirmation.
        await until(running, lambda metrics: not metrics["journal_bytes"])
        metrics = await running.metrics()
        result = await running.reconcile()

    assert max(look["posts_buffered"] for look in seen) > RATE * GONE_SECONDS * 0.9
    assert max(look["journal_bytes"] for look in seen) > MEMORY_LIMIT, "nothing had to wait on disk only"
    part = MEMORY_LIMIT * POSTS_PART
    assert part <= max(look["buffer_bytes"] for look in seen) < part + OVERSHOOT
    assert max(look["process_resident_memory_bytes"] for look in seen) < RESIDENT_LIMIT
    assert catching_up < gone
    assert metrics["posts_dropped_total"] == 0
    assert result.ok, result.summary()
    assert result.sent == metrics["posts_received_total"] == metrics["posts_delivered_total"]
