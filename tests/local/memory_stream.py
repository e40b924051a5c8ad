"""A stream of Kinesis in memory, for tests of the event source mapping over it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from typing import Any

from botocore.exceptions import EndpointConnectionError

from local.batches import Source
from local.mapping import EventSource
from local.template import MappingSettings

SOURCE = Source(
    stream_arn="arn:aws:kinesis:us-east-1:000000000000:stream/posts",
    function_arn="arn:aws:lambda:us-east-1:000000000000:function:it",
    role_arn="arn:aws:iam::000000000000:role/it",
    region="us-east-1",
)
SETTINGS = MappingSettings(
    batch_size=100,
    window_seconds=0,
    parallelization_factor=1,
    bisect=True,
    retry_attempts=2,
    record_age_seconds=-1,
    report_batch_item_failures=True,
    starting_position="TRIM_HORIZON",
)


class Events:
    """Lets a test wait until what it looks for is so; whoever changes something tells."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()

    async def tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(condition)


class Stream:
    """A stream in memory, with the three operations that read it. Iterators are shard, colon, place."""

    def __init__(self, *shards: str) -> None:
        self.records: dict[str, list[dict[str, Any]]] = {shard: [] for shard in shards}
        self.parents: dict[str, str] = {}
        self.closed: set[str] = set()
        self.is_down = False
        self.questions = 0
        self.events = Events()
        self._numbers = count(1)

    def put(self, shard: str, *texts: str | bytes, key: str = "key") -> None:
        for text in texts:
            self.records[shard].append(
                {
                    "SequenceNumber": str(next(self._numbers)),
                    "PartitionKey": key,
                    "Data": text if isinstance(text, bytes) else text.encode(),
                    "ApproximateArrivalTimestamp": datetime.now(UTC),
                }
            )

    def split(self, shard: str, *children: str) -> None:
        self.closed.add(shard)
        for child in children:
            self.records[child] = []
            self.parents[child] = shard

    async def list_shards(self, **request: Any) -> dict[str, Any]:
        """One shard a page, as if each page were full."""
        await self._ask()
        place = int(request.get("NextToken", "0"))
        shard = list(self.records)[place]
        parent = {"ParentShardId": self.parents[shard]} if shard in self.parents else {}
        more = {"NextToken": str(place + 1)} if place + 1 < len(self.records) else {}
        return {"Shards": [{"ShardId": shard, **parent}], **more}

    async def get_shard_iterator(self, **request: Any) -> dict[str, Any]:
        await self._ask()
        records = self.records[request["ShardId"]]
        number = int(request.get("StartingSequenceNumber", "0"))
        place = {
            "TRIM_HORIZON": 0,
            "LATEST": len(records),
            "AFTER_SEQUENCE_NUMBER": sum(int(record["SequenceNumber"]) <= number for record in records),
        }[request["ShardIteratorType"]]
        return {"ShardIterator": f"{request['ShardId']}:{place}"}

    async def get_records(self, **request: Any) -> dict[str, Any]:
        await self._ask()
        shard, _, place = request["ShardIterator"].partition(":")
        records = self.records[shard]
        following = None if shard in self.closed else f"{shard}:{len(records)}"
        return {"Records": records[int(place) :], "NextShardIterator": following, "MillisBehindLatest": 0}

    async def _ask(self) -> None:
        self.questions += 1
        await self.events.tell()
        if self.is_down:
            raise EndpointConnectionError(endpoint_url="http://127.0.0.1:1")


@asynccontextmanager
async def mapped(stream: Stream, function: Any, **arguments: Any) -> AsyncIterator[EventSource]:
    """Run a mapping of a stream to a function until the block ends, then let it stop in good order."""
    source = EventSource(
        stream, function, stream="posts", source=SOURCE, poll_seconds=0.001, chance=lambda: 0.001, **arguments
    )
    task = asyncio.create_task(source.run())
    try:
        yield source
    finally:
        source.stop()
        async with asyncio.timeout(10):
            await task
