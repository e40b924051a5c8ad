"""What tests of the whole do again and again: wait for what the daemon's metrics say, and run a command beside it."""

import asyncio
import sys
from collections.abc import Callable, Mapping

from local.pipeline import Pipeline


async def until(running: Pipeline, reached: Callable[[dict[str, float]], bool]) -> None:
    """Wait until the daemon's metrics are so; raises ProcessError if meanwhile a process ends."""
    async with asyncio.timeout(60):
        while not reached(await running.metrics()):
            running.check()
            await asyncio.sleep(0.1)


async def delivered(running: Pipeline, posts: float) -> None:
    """Wait until so many posts are delivered."""
    await until(running, lambda metrics: metrics["posts_delivered_total"] >= posts)


async def run(environment: Mapping[str, str], *arguments: str, given: bytes = b"") -> tuple[int, str, str]:
    """Run `python -m` with these arguments to its end; return the exit code and what it wrote: output and errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate(given)
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()
