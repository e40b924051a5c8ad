"""The time that tests of faults run in: wrong, it would make them pass or fail by chance."""

import asyncio
import time
from threading import Event

from tests.elastic_loop import elastic_time


@elastic_time
async def test_a_timer_is_not_waited_for() -> None:
    """An hour is over at once, and exactly an hour."""
    began, loop = time.perf_counter(), asyncio.get_running_loop()
    await asyncio.sleep(3600)
    assert loop.time() == 3600
    assert time.perf_counter() - began < 30


@elastic_time
async def test_work_takes_no_time() -> None:
    """However long it computes, no timer comes nearer."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    sum(number * number for number in range(200_000))
    await asyncio.sleep(0)
    assert loop.time() == started


@elastic_time
async def test_time_stands_still_while_a_thread_works() -> None:
    """What the thread brings comes before any timer."""
    loop = asyncio.get_running_loop()
    release = Event()
    timer = loop.call_later(0.001, release.set)
    # A timer of this loop cannot end the wait: only the wall's clock does.
    assert not await asyncio.to_thread(release.wait, 0.2)
    assert loop.time() == 0
    timer.cancel()


@elastic_time
async def test_bytes_on_loopback_are_faster_than_a_timer() -> None:
    """A megabyte there and back takes less than a second of this time."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with asyncio.timeout(1):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        reading = asyncio.create_task(reader.readexactly(1 << 20))
        writer.write(bytes(1 << 20))
        await writer.drain()
        assert len(await reading) == 1 << 20
    writer.close()
    await writer.wait_closed()
    server.close()
    # So that the other end has closed too.
    await asyncio.sleep(1)
