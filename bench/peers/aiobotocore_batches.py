"""aiobotocore, batches of 500, 16 requests in flight; what fails is sent again by its own request."""

import asyncio
from typing import Any

import uvloop
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from bench.peers import STREAM
from bench.peers.reading import Post, batches_async

_IN_FLIGHT = 16


async def _send(client: Any, batch: list[Post], slots: asyncio.Semaphore) -> None:
    records = [{"Data": post.data, "PartitionKey": post.key} for post in batch]
    while records:
        answers = (await client.put_records(StreamName=STREAM, Records=records))["Records"]
        records = [record for record, answer in zip(records, answers, strict=True) if "ErrorCode" in answer]
    slots.release()


async def main() -> None:
    """Carry all posts."""
    slots = asyncio.Semaphore(_IN_FLIGHT)
    config = AioConfig(max_pool_connections=_IN_FLIGHT, retries={"max_attempts": 0})
    async with AioSession().create_client("kinesis", config=config) as client, asyncio.TaskGroup() as tasks:
        async for batch in batches_async(500, 0.1):
            await slots.acquire()
            tasks.create_task(_send(client, batch, slots))


if __name__ == "__main__":
    uvloop.run(main())
