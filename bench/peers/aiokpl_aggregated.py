"""aiokpl with its own settings, aggregated, and each post's outcome awaited."""

import asyncio
import os
from collections import deque

import aiokpl
import uvloop

from bench.peers import STREAM
from bench.peers.reading import chunks_async


async def main() -> None:
    """Carry all posts."""
    # It has no setting for a file of certificates, and does not read botocore's.
    config = aiokpl.Config(
        region=os.environ["AWS_REGION"],
        endpoint_url=os.environ["AWS_ENDPOINT_URL_KINESIS"],
        verify_ssl=False,
    )
    outcomes: deque[aiokpl.Outcome[aiokpl.RecordResult]] = deque()
    async with aiokpl.Producer(config) as producer:
        async for posts, _ in chunks_async():
            for post in posts:
                outcomes.append(await producer.put_record(stream=STREAM, partition_key=post.key, data=post.data))
            # It never yields by itself while there is room.
            await asyncio.sleep(0)
            while outcomes and outcomes[0].is_set():
                await _confirm(outcomes.popleft())
        await producer.flush()
        while outcomes:
            await _confirm(outcomes.popleft())


async def _confirm(outcome: "aiokpl.Outcome[aiokpl.RecordResult]") -> None:
    result = await outcome.wait()
    if not result.success:
        raise RuntimeError(f"not stored: {result.attempts[-1]}")


if __name__ == "__main__":
    uvloop.run(main())
