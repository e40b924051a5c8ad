import base64
from typing import Any

import aiohttp
import pytest

from local.x_api.answers import REFUSALS
from tests.local.x_api.serving import serving

STREAM = "/2/tweets/sample/stream"


async def connections(http: aiohttp.ClientSession, **query: str) -> list[dict[str, Any]]:
    """Return the connections that X tells of."""
    async with http.get("/2/connections", params=query) as response:
        body = await response.json()
        assert body["meta"]["result_count"] == len(body.get("data", []))
        found: list[dict[str, Any]] = body.get("data", [])
        return found


async def test_connections_are_listed_by_status() -> None:
    """Open ones are active; ended ones say when and why they ended."""
    async with serving() as (api, http):
        async with http.get(STREAM):
            (active,) = await connections(http)
            assert active["endpoint_name"] == "sample_stream"
            assert active["client_ip"] == "127.0.0.1"
            assert "disconnected_at" not in active
            assert await connections(http, status="inactive") == []
        await api.feed.until(lambda: not api.feed.streams)
        (ended,) = await connections(http, status="inactive")
        assert (ended["id"], ended["disconnect_reason"]) == (active["id"], "client")
        assert len(await connections(http, status="all")) == 1


async def test_connections_come_in_pages_and_by_endpoint() -> None:
    """Newest first; a page says how to ask for the next."""
    async with serving(connections=5) as (_, http):
        async with http.get(STREAM), http.get(STREAM), http.get("/2/tweets/sample10/stream?partition=1"):
            assert [one["endpoint_name"] for one in await connections(http, max_results="1")] == ["sample10_stream"]
            async with http.get("/2/connections", params={"endpoints": "sample_stream", "max_results": "1"}) as page:
                first = await page.json()
            rest = await connections(http, endpoints="sample_stream", pagination_token=first["meta"]["next_token"])
            assert len({first["data"][0]["id"], rest[0]["id"]}) == 2
        async with http.get("/2/connections", params={"status": "odd"}) as response:
            assert response.status == 400


@pytest.mark.parametrize(("path", "body"), [("/2/connections/odd", None), ("/2/connections", {"uuids": []})])
async def test_senseless_kill_is_400(path: str, body: dict[str, list[str]] | None) -> None:
    """There is no such endpoint, and no list is empty."""
    async with serving() as (_, http), http.delete(path, json=body) as response:
        assert response.status == 400


@pytest.mark.parametrize("path", ["/2/connections/all", "/2/connections/sample_stream", "/2/connections"])
async def test_connections_can_be_killed(path: str) -> None:
    """All of them, those of an endpoint, or by uuid."""
    async with serving() as (api, http), http.get(STREAM) as stream:
        (active,) = await connections(http)
        body = {"uuids": [active["id"], "nobody"]} if path == "/2/connections" else None
        async with http.delete(path, json=body) as response:
            data = (await response.json())["data"]
        assert (data["successful_kills"], data["failed_kills"]) == (1, 1 if body else 0)
        with pytest.raises(aiohttp.ClientPayloadError):
            await stream.read()
        await api.feed.until(lambda: not api.feed.streams)
        (ended,) = await connections(http, status="inactive")
        assert ended["disconnect_reason"] == "operator_disconnect"


async def test_ghost_is_active_until_it_is_killed() -> None:
    """The way out of TooManyConnections."""
    async with serving(ghost_seconds=60) as (api, http):
        async with http.get(STREAM):
            pass
        await api.feed.until(lambda: not api.feed.streams)
        async with http.get(STREAM) as refused:
            assert refused.status == 429
        assert len(await connections(http)) == 1
        async with http.delete("/2/connections/all") as response:
            assert (await response.json())["data"]["successful_kills"] == 1
        async with http.get(STREAM) as again:
            assert again.status == 200


async def test_usage_counts_delivered_posts() -> None:
    """What was written is what is billed."""
    async with serving(rate=0, limit=7, usage_cap=100) as (api, http), http.get(STREAM):
        await api.feed.until(lambda: api.ledger.counts["written"] == 7)
        async with http.get("/2/usage/tweets") as response:
            data = (await response.json())["data"]
        assert (data["project_usage"], data["project_cap"]) == ("7", "100")


async def exchange(http: aiohttp.ClientSession, pair: str, grant: str = "client_credentials") -> tuple[int, Any]:
    """Ask for a token in exchange for "key:secret"."""
    headers = {"authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    async with http.post("/oauth2/token", data={"grant_type": grant}, headers=headers) as response:
        return response.status, await response.json()


async def test_keys_are_exchanged_for_the_token() -> None:
    """The token that comes back opens the stream; keys are percent-encoded."""
    async with serving(keys="k:s/1", tokens=["good"]) as (_, http):
        assert await exchange(http, "k:s%2F1") == (200, {"token_type": "bearer", "access_token": "good"})


@pytest.mark.parametrize(("pair", "grant"), [("k:bad", "client_credentials"), ("", "client_credentials"), ("k:s", "x")])
async def test_wrong_keys_are_refused(pair: str, grant: str) -> None:
    """As recorded: 403 with code 99."""
    async with serving(keys="k:s", tokens=["good"]) as (_, http):
        status, body = await exchange(http, pair, grant)
        assert status == REFUSALS["wrong_keys"].status
        assert body["errors"][0]["code"] == 99


async def test_without_named_keys_any_pair_gets_a_token() -> None:
    """And the stand-in takes it."""
    async with serving() as (_, http):
        _, body = await exchange(http, "any:pair")
        async with http.get(STREAM, headers={"authorization": f"Bearer {body['access_token']}"}) as response:
            assert response.status == 200
