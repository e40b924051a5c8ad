"""The stream's shards are split and merged under load. Real processes, real time: some 20 seconds."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiobotocore.session import AioSession

from local import CLIENT
from local.pipeline import STREAM, Pipeline
from local.reconcile import Reconciliation, SentPost, ShardRecords, fetch_sent, fetch_shards, post_id_of, reconcile
from processor.wire import decode
from service.core.limits import HASH_KEYS
from service.core.shard_map import hash_key
from tests.integration.steps import delivered

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(100)]

RATE = 1000
# The first split, and the two shards (one of them a merged one) that are wider than an eighth before there are eight.
SPLITS = 3


class Operator:
    """Who changes the stream while the daemon runs, with the API's own calls, and lets 1.5 seconds of posts pass."""

    def __init__(self, running: Pipeline, kinesis: Any) -> None:
        self._running = running
        self._kinesis = kinesis

    async def change(self, operation: str, **parameters: Any) -> None:
        """Make one change and wait until it is made, or Kinesis would refuse the next."""
        await getattr(self._kinesis, operation)(StreamName=STREAM, **parameters)
        while True:
            answer = await self._kinesis.describe_stream_summary(StreamName=STREAM)
            if answer["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE":
                break
            # The account may ask 20 times a second, and the daemon asks too.
            await asyncio.sleep(0.2)
        await self.carried(RATE * 3 // 2)

    async def carried(self, posts: int) -> None:
        """Wait until so many more posts are delivered."""
        start = (await self._running.metrics())["posts_delivered_total"]
        await delivered(self._running, start + posts)


@asynccontextmanager
async def watched(running: Pipeline) -> AsyncIterator[list[float]]:
    """Give a list of the moments at which more posts were delivered than a tenth of a second before."""
    rises: list[float] = []

    async def watch() -> None:
        delivered = 0.0
        while True:
            now = (await running.metrics())["posts_delivered_total"]
            if now > delivered:
                rises.append(asyncio.get_running_loop().time())
            delivered = now
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(watch())
        yield rises
        rises.append(asyncio.get_running_loop().time())
        task.cancel()


class Reading(NamedTuple):
    """
    What a consumer of the KPL format makes of the stream: it drops posts outside the range of the shard they lie on.

    Attributes:
        result: of comparing what it keeps with what X sent.
        dropped: how many posts it drops from each Kinesis record that holds such posts.
    """

    result: Reconciliation
    dropped: Sequence[int]


def read(sent: Sequence[SentPost], shards: Sequence[ShardRecords], ranges: Mapping[str, range]) -> Reading:
    """Read as such a consumer does; each post that it keeps stands as a record of its own."""
    keys = {post.id: post.key.encode() for post in sent}
    kept: list[ShardRecords] = []
    dropped: list[int] = []
    for shard in shards:
        inside: list[bytes] = []
        for record in shard.records:
            posts = [line.data for line in decode(record).records]
            fitting = [post for post in posts if hash_key(keys[post_id_of(post) or ""]) in ranges[shard.shard_id]]
            inside += fitting
            if len(fitting) < len(posts):
                dropped.append(len(posts) - len(fitting))
        kept.append(shard._replace(records=inside))
    ids = {post_id_of(post) or "" for shard in kept for post in shard.records}
    return Reading(reconcile(sent, kept, ids, {}), dropped)


async def test_splits_and_merges_under_load(tmp_path: Path) -> None:
    """Nothing is lost, late or refused, no second passes without a delivery, and only what strayed is sent again."""
    async with Pipeline(tmp_path, rate=RATE, table=False) as running:
        client = AioSession().create_client("kinesis", endpoint_url=running.kinesis.url, **CLIENT)
        async with client as kinesis, watched(running) as rises:
            stream = Operator(running, kinesis)
            await stream.carried(RATE)
            await stream.change(
                "split_shard", ShardToSplit="shardId-000000000000", NewStartingHashKey=str(HASH_KEYS // 8)
            )
            await stream.change(
                "merge_shards", ShardToMerge="shardId-000000000002", AdjacentShardToMerge="shardId-000000000003"
            )
            await stream.change("update_shard_count", TargetShardCount=8, ScalingType="UNIFORM_SCALING")
            await stream.change("update_shard_count", TargetShardCount=4, ScalingType="UNIFORM_SCALING")
        await running.stop_posts()
        await running.settle()
        metrics = await running.metrics()
        refused = (await running.kinesis_stats())["refused"]
        result = await running.reconcile()
        async with aiohttp.ClientSession() as http:
            sent = await fetch_sent(http, running.x.url)
            shards = await fetch_shards(http, running.kinesis.url, STREAM)
            async with http.get(f"{running.kinesis.url}/admin/ledger", params={"stream": STREAM}) as response:
                facts = (await response.json())["shards"]
    ranges = {
        str(shard["shard"]): range(int(shard["starting_hash_key"]), int(shard["ending_hash_key"]) + 1)
        for shard in facts
    }
    reading = read(sent, shards, ranges)

    assert [shard["open"] for shard in facts].count(True) == 4
    assert len(facts) >= 4 + 2 + 1 + 4
    assert result.sent > 5 * RATE
    assert not result.lost
    assert not result.changed
    assert reading.result.ok, reading.result.summary()
    assert reading.result.in_kinesis == result.sent
    assert reading.result.repeated == 0
    # A lane stops at the first record that strays, so there is one for each shard that was split.
    assert 1 <= len(reading.dropped) <= SPLITS
    assert result.repeated == sum(reading.dropped)
    # Newer posts may join those that go again, and the daemon tells of whole records.
    assert metrics["posts_perhaps_repeated_total"] >= result.repeated
    assert metrics["order_violations_total"] == 0
    assert not metrics["posts_dropped_total"]
    assert refused == {}
    assert max(later - earlier for earlier, later in pairwise(rises)) < 1
