import asyncio

import pytest

from local.x_api.server import XApi
from local.x_api.settings import Settings
from tests.elastic_loop import elastic_time


def address(api: XApi) -> tuple[str, int]:
    """Return host and port."""
    host, _, port = api.url.removeprefix("http://").partition(":")
    return host, int(port)


async def knock(api: XApi) -> bytes:
    """Connect, and ask for something that is there."""
    reader, writer = await asyncio.open_connection(*address(api))
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer


@elastic_time
async def test_a_closed_door_refuses_and_opens_again() -> None:
    """The system refuses connections for as long as was asked; then the same address answers."""
    async with XApi(settings=Settings(limit=0)) as api:
        api.faults.inject("closed", seconds=30)
        await asyncio.sleep(1)
        with pytest.raises(ConnectionRefusedError):
            await knock(api)
        await asyncio.sleep(30)
        assert (await knock(api)).startswith(b"HTTP/1.1 200")


@elastic_time
async def test_in_a_black_hole_nothing_answers() -> None:
    """Not even the system says no; afterwards the same address answers."""
    async with XApi(settings=Settings(limit=0)) as api:
        api.faults.inject("black_hole", seconds=30)
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.open_connection(*address(api))
        await asyncio.sleep(30)
        assert (await knock(api)).startswith(b"HTTP/1.1 200")


@elastic_time
async def test_open_connections_live_on_behind_a_closed_door() -> None:
    """Only new ones are kept out."""
    async with XApi(settings=Settings(limit=0, keep_alive=10)) as api:
        reader, writer = await asyncio.open_connection(*address(api))
        writer.write(b"GET /2/tweets/sample/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer t\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        api.faults.inject("closed", seconds=60)
        for _ in range(3):
            assert await reader.readuntil(b"\r\n\r\n\r\n") == b"2\r\n\r\n\r\n"
        writer.close()
