from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from service.connections import Connections

TOKEN = "secret-token"
NOW = 1_795_644_000


def iso(moment: float) -> str:
    """Write a moment as X does."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def connection(number: int, connected_at: float, endpoint: str = "filtered_stream") -> dict[str, str]:
    """Make a connection as X lists it."""
    return {"id": f"id-{number}", "endpoint_name": endpoint, "connected_at": iso(connected_at)}


class FakeX:
    """The Connections API: those in `active` can be listed and ended. `answer`, if set, is what it says instead."""

    def __init__(self, *active: dict[str, str], answer: Callable[[], web.Response] | None = None) -> None:
        self.active = list(active)
        self.requests: list[tuple[str, Any]] = []
        self.answer = answer

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.add_routes([web.get("/2/connections", self._list), web.delete("/2/connections", self._delete)])
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def connections(self, own: str = "") -> Connections:
        """Make the client of it."""
        host, port = self._runner.addresses[0]
        return Connections(f"http://{host}:{port}/", "filtered_stream", own, settle_seconds=0)

    async def _list(self, request: web.Request) -> web.Response:
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        self.requests.append(("list", dict(request.query)))
        if self.answer:
            return self.answer()
        body: dict[str, Any] = {"meta": {"result_count": len(self.active)}}
        return web.json_response(body | ({"data": self.active} if self.active else {}))

    async def _delete(self, request: web.Request) -> web.Response:
        wanted = (await request.json())["uuids"]
        self.requests.append(("delete", wanted))
        if self.answer:
            return self.answer()
        left = [one for one in self.active if one["id"] not in wanted]
        killed = len(self.active) - len(left)
        self.active = left
        return web.json_response({"data": {"successful_kills": killed, "failed_kills": len(wanted) - killed}})


async def test_our_connection_is_the_one_that_began_when_we_did() -> None:
    """By X's clock, within two seconds; those of other streams do not matter."""
    others = [connection(1, NOW - 60), connection(2, NOW, "sample_stream")]
    async with FakeX(*others, connection(3, NOW + 1)) as x:
        connections = x.connections("an-older-one")
        await connections.learn(NOW, TOKEN)
        assert connections.own == "id-3"
    ((_, query),) = x.requests
    assert query["status"] == "active"
    assert query["endpoints"] == "filtered_stream"


@pytest.mark.parametrize("others", [[], [connection(1, NOW - 9)], [connection(1, NOW), connection(2, NOW + 1)]])
async def test_a_doubt_is_no_knowledge(others: list[dict[str, str]]) -> None:
    """With none, or two, that began then, ours is not known: another client's must never be taken for it."""
    async with FakeX(*others) as x:
        connections = x.connections("an-older-one")
        await connections.learn(NOW, TOKEN)
        assert connections.own == ""
        assert not await connections.free(TOKEN)
        assert [what for what, _ in x.requests] == ["list"]


async def test_our_ghost_is_ended_and_no_other() -> None:
    """The id that was learnt, once."""
    async with FakeX(connection(1, NOW), connection(2, NOW)) as x:
        connections = x.connections("id-2")
        with capture_logs() as logs:
            assert await connections.free(TOKEN)
            assert not await connections.free(TOKEN)
        assert [one["id"] for one in x.active] == ["id-1"]
        assert x.requests == [("delete", ["id-2"])]
    assert [(entry["event"], entry["connection"]) for entry in logs] == [("ghost_ended", "id-2")]


async def test_a_ghost_that_is_gone() -> None:
    """Then somebody else has the slot."""
    async with FakeX(connection(1, NOW)) as x:
        with capture_logs() as logs:
            assert not await x.connections("id-9").free(TOKEN)
        assert len(x.active) == 1
    assert [entry["event"] for entry in logs] == ["ghost_not_ended"]


def refused(status: int) -> Callable[[], web.Response]:
    """Make an answer that refuses."""
    return lambda: web.json_response({"title": "Nope", "detail": "not for you"}, status=status)


@pytest.mark.parametrize(("status", "asks"), [(403, 1), (404, 1), (400, 1), (401, 2), (429, 2), (503, 2)])
async def test_an_access_level_without_it_is_not_asked_again(status: int, asks: int) -> None:
    """What may pass is asked again; the words are in the log, the token is not."""
    async with FakeX(answer=refused(status)) as x:
        connections = x.connections()
        with capture_logs() as logs:
            await connections.learn(NOW, TOKEN)
            await connections.learn(NOW, TOKEN)
        assert len(x.requests) == asks
    assert logs[0]["event"] == "connections_unknown"
    assert "Nope: not for you" in logs[0]["error"]
    assert TOKEN not in str(logs)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b'{"data": 1}',
        b'{"data": [{"id": "a", "connected_at": "soon"}]}',
        b"{}",
        b'{"data": [{"id": "\xff"}]}',
    ],
)
async def test_an_answer_of_another_shape(body: bytes) -> None:
    """It costs the knowledge, nothing else."""
    async with FakeX(answer=lambda: web.Response(body=body)) as x:
        connections = x.connections("id-1")
        assert not await connections.free(TOKEN)
        await connections.learn(NOW, TOKEN)
        assert connections.own == ""


async def test_nobody_listens() -> None:
    """The ghost is waited out."""
    async with FakeX() as x:
        connections = x.connections("id-1")
    with capture_logs() as logs:
        assert not await connections.free(TOKEN)
    assert [entry["event"] for entry in logs] == ["connections_unknown", "ghost_not_ended"]
