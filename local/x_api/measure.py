"""
How fast the stand-in feeds a client that does nothing but read: its own limit, for whoever measures with it.

    python -m local.x_api.measure [POSTS]

The stand-in is a process of its own, the reader this one: a blocking socket on loopback that counts line ends. Each
wants a core for itself. The posts are the invented ones, some 1.3 KB each with their rules.
"""

import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

from local.processes import Process

POSTS = 1_000_000
_READ_BYTES = 1 << 20
_REQUEST = b"GET /2/tweets/search/stream HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer any\r\n\r\n"


class Reading(NamedTuple):
    """What a reader got: posts, bytes with their frames, and the seconds from the first byte to the last."""

    posts: int
    bytes: int
    seconds: float


def read(host: str, port: int, posts: int) -> Reading:
    """Read the filtered stream until so many posts have come, or it ends."""
    with socket.create_connection((host, port)) as connection:
        connection.sendall(_REQUEST)
        count = size = 0
        started = 0.0
        last = b""
        while count < posts:
            data = connection.recv(_READ_BYTES)
            if not data:
                break
            started = started or time.perf_counter()
            size += len(data)
            # Each line ends so, and nothing else does; an end may lie across two reads.
            count += data.count(b"}\r\n") + (last + data[:2]).count(b"}\r\n")
            last = data[-2:]
        return Reading(count, size, time.perf_counter() - started)


async def measure(posts: int) -> Reading:
    """Start the stand-in, read from it and stop it; raises ProcessError if it does not start."""
    with tempfile.TemporaryDirectory(prefix="millrace-measure-") as directory:
        arguments = ["local.x_api.server", "--port", "0", "--rate", "0", "--match", "all", "--limit", str(posts)]
        x = Process("x", arguments, os.environ | {"PYTHONUNBUFFERED": "1"}, Path(directory))
        await x.start()
        try:
            rule = json.dumps({"add": [{"value": "millrace"}]}).encode()
            headers = {"authorization": "Bearer any", "content-type": "application/json"}
            request = Request(f"{x.url}/2/tweets/search/stream/rules", rule, headers)  # noqa: S310 - our own process
            await asyncio.to_thread(lambda: urlopen(request).close())  # noqa: S310 - as above
            host, _, port = x.url.removeprefix("http://").partition(":")
            return await asyncio.to_thread(read, host, int(port), posts)
        finally:
            await x.stop()


def main(arguments: Sequence[str]) -> int:
    """Measure, and say it in one line."""
    found = asyncio.run(measure(int(arguments[0]) if arguments else POSTS))
    rate, speed = found.posts / found.seconds, found.bytes / found.seconds / 1e6
    print(f"{found.posts:,} posts in {found.seconds:.1f} s: {rate:,.0f} posts/s, {speed:,.0f} MB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
