import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import md5
from typing import Any

import aiohttp
import pytest

from local.x_api.server import XApi
from tests.elastic_loop import elastic_time
from tests.local.x_api.serving import LINE, serving

STREAM = "/2/tweets/sample/stream"


@asynccontextmanager
async def streaming(**settings: Any) -> AsyncIterator[tuple[XApi, aiohttp.ClientSession, aiohttp.ClientResponse]]:
    """Serve, and read the sample stream."""
    async with serving(**settings) as (api, http), http.get(STREAM, raise_for_status=True) as stream:
        yield api, http, stream


async def post(http: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    """Post JSON and return the answer."""
    async with http.post(path, json=body) as response:
        return response.status, await response.json()


async def get(http: aiohttp.ClientSession, path: str) -> Any:
    """Return the JSON at a path."""
    async with http.get(path, raise_for_status=True) as response:
        return await response.json()


async def test_faults_are_injected_over_http() -> None:
    """The stream ends as asked."""
    async with streaming() as (_, http, stream):
        assert await post(http, "/admin/faults", {"kind": "last_chunk"}) == (200, {})
        assert await stream.read() == b""


async def test_fault_can_wait() -> None:
    """`after` is in seconds."""
    async with streaming(keep_alive=0.02) as (_, http, stream):
        await post(http, "/admin/faults", {"kind": "last_chunk", "after": 0.1})
        assert (await stream.read()).startswith(b"\r\n")


@pytest.mark.parametrize(
    ("body", "why"),
    [([], "must be an object"), ({}, "unknown fault"), ({"kind": "fin", "typo": 1}, "does not know typo")],
)
async def test_senseless_fault_is_400(body: Any, why: str) -> None:
    """The answer says what is wrong, and nothing happens."""
    async with streaming() as (api, http, _):
        status, answer = await post(http, "/admin/faults", body)
        assert status == 400
        assert why in answer["error"]
        assert len(api.feed.streams) == 1


async def test_stats_add_up() -> None:
    """Every post that fell due is in one state; connections and refusals are counted."""
    async with streaming(rate=0, limit=30) as (api, http, _):
        await api.feed.until(lambda: api.ledger.counts["written"] == 30)
        async with http.get(STREAM, headers={"authorization": ""}) as refused:
            assert refused.status == 401
        stats = await get(http, "/admin/stats")
        assert stats["sent"] == 30
        assert [stats[name] for name in ("queued", "written", "discarded", "unsent")] == [0, 30, 0, 0]
        assert (stats["open"], stats["connections"], stats["exhausted"]) == (1, 1, True)
        assert stats["refused"] == {"unauthorized": 1}
        assert stats["endings"] == {"open": 1}


async def test_ledger_is_shown() -> None:
    """Posts in the order of sending, and every connection with its ending."""
    async with streaming(rate=0, limit=5000) as (api, http, _):
        await api.feed.until(lambda: api.ledger.counts["written"] == 5000)
        ledger = await get(http, "/admin/ledger")
        row = {"id": "1", "key": "author", "md5": md5(LINE).hexdigest(), "state": "written", "connection": 1}
        assert ledger["posts"] == [row] * 5000
        assert [(one["number"], one["ending"], one["written"]) for one in ledger["connections"]] == [(1, "open", 5000)]


async def test_stop() -> None:
    """Then the source is exhausted."""
    async with streaming(rate=0.001, limit=None) as (api, http, _):
        assert await post(http, "/admin/stop", {}) == (200, {})
        await api.feeding
        assert (await get(http, "/admin/stats"))["exhausted"]


async def test_health() -> None:
    """Whoever waits for the stand-in asks here."""
    async with streaming() as (_, http, _), http.get("/healthz") as response:
        assert (response.status, await response.text()) == (200, "ok\n")


@elastic_time
async def test_clock_is_put_forward() -> None:
    """A keep-alive of a quarter of an hour comes at once."""
    async with streaming(keep_alive=900) as (_, http, stream):
        began = asyncio.get_running_loop().time()
        assert await post(http, "/admin/clock", {"advance": 1000}) == (200, {})
        assert await stream.content.readuntil(b"\r\n") == b"\r\n"
        assert asyncio.get_running_loop().time() - began < 60
        senseless: list[Any] = [{}, {"advance": -1}, {"advance": "far"}, {"advance": None}, []]
        assert [(await post(http, "/admin/clock", body))[0] for body in senseless] == [400] * 5


@elastic_time
async def test_fault_comes_again_and_again_until_cleared() -> None:
    """A drop every few minutes, as X once had it for everybody."""
    async with streaming(connects=1000) as (api, http, stream):
        await post(http, "/admin/faults", {"kind": "fin", "every": 200})
        began = api.clock.now()
        with pytest.raises(aiohttp.ClientPayloadError):
            await stream.read()
        async with http.get(STREAM) as again:
            with pytest.raises(aiohttp.ClientPayloadError):
                await again.read()
            assert 399 < api.clock.now() - began < 402
        await post(http, "/admin/faults", {"kind": "clear"})
        async with http.get(STREAM):
            await asyncio.sleep(1000)
            assert len(api.feed.streams) == 1
