"""async-kinesis with its own settings and a key for each post; its aggregating modes refuse keys."""

import uvloop
from kinesis import Producer, StringProcessor

from bench.peers import STREAM
from bench.peers.reading import chunks_async


async def main() -> None:
    """Carry all posts."""
    async with Producer(stream_name=STREAM, processor=StringProcessor()) as producer:
        async for posts, _ in chunks_async():
            for post in posts:
                await producer.put(post.data.decode(), partition_key=post.key)
        await producer.flush()


if __name__ == "__main__":
    uvloop.run(main())
