"""The daemon is killed, again and again, under load, at moments that nobody chose."""

import asyncio
import json
from itertools import islice
from pathlib import Path
from random import Random

import aiohttp
import pytest

from local.pipeline import Pipeline
from service.state import FILE_NAME as STATE
from tests.integration.steps import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

# What was read longer ago than this must not be lost.
PROMISE_SECONDS = 0.1


def forget_connects(directory: Path) -> None:
    """Have the next daemon not know of X's 50 connects in 15 minutes, or each of the last 30 kills waits for them."""
    (path,) = directory.rglob(STATE)
    path.unlink()


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.long)])
async def test_nothing_is_lost_by_kill_9(tmp_path: Path, kills: int) -> None:
    """What was read more than 100 ms before any of the kills is in Kinesis; no key is out of order."""
    rng = Random(9)
    read: dict[int, int] = {}
    settings = {"MILLRACE_MEMORY_LIMIT": "1MiB"}  # so that posts wait on disk only, too
    async with Pipeline(
        tmp_path, rate=1500, settings=settings, x_options=["--connects", "1000"], table=False
    ) as running:
        for kill in range(1, kills + 1):
            # Now and then posts pile up before the kill, and what was left is being sent again when the next one comes.
            if rng.random() < 0.5:
                await running.fault_at_kinesis("throttle_shard", shard=rng.randrange(4), seconds=rng.uniform(0.2, 1.0))
            if rng.random() < 0.2:
                await running.fault_at_kinesis("drop", requests=1)
            await asyncio.sleep(rng.uniform(0.05, 0.8))
            received = int((await running.metrics())["posts_received_total"])
            connection = (await running.x_stats())["connections"]
            await asyncio.sleep(PROMISE_SECONDS)
            await running.daemon.kill()
            forget_connects(tmp_path)
            await running.restart_daemon()
            read[connection] = received
            assert connection == kill, "every daemon has one connection"
        recovered = (await running.metrics())["posts_recovered_total"]
        await running.stop_posts()
        await until(running, lambda metrics: not metrics["posts_buffered"])
        result = await running.reconcile()
        async with aiohttp.ClientSession() as http, http.get(f"{running.x.url}/admin/ledger") as response:
            ledger = (await response.json(content_type=None))["posts"]
    log = [json.loads(line) for line in (tmp_path / "daemon.log").read_text().splitlines()]

    lost = set(result.lost_before_kinesis)
    for connection, count in read.items():
        posts = (post["id"] for post in ledger if post["connection"] == connection)
        assert not lost.intersection(islice(posts, count)), f"lost by the kill of connection {connection}"
    assert not result.out_of_order
    assert not result.changed
    assert not result.unexpected
    assert sum(read.values()) > 200 * kills
    assert recovered + sum(entry["posts"] for entry in log if entry["event"] == "posts_recovered") > 20 * kills
