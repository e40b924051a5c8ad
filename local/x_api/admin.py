"""
The admin side of the X stand-in, for tests, the demo and people with curl. It needs no token.

    POST /admin/faults   {"kind": ..., "after": seconds, ...}, see `local.x_api.faults`
    POST /admin/stop     no more posts fall due
    POST /admin/clock    {"advance": seconds} puts X's time forward
    GET  /admin/stats    numbers
    GET  /admin/ledger   {"posts": [...], "connections": [...]}
    GET  /healthz        ok

A request that makes no sense is answered with 400 and {"error": why}.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from local.x_api.clock import Clock
from local.x_api.faults import Faults
from local.x_api.feed import Feed
from local.x_api.ledger import Ledger

# Rows written before the other tasks get their turn.
_ROWS_AT_ONCE = 2000


class Admin:
    """
    The routes.

    Args:
        clock: takes POST /admin/clock.
        faults: takes POST /admin/faults.
        feed: takes POST /admin/stop.
        ledger: is shown.
        stats: returns the numbers.
    """

    def __init__(
        self, clock: Clock, faults: Faults, feed: Feed, ledger: Ledger, stats: Callable[[], dict[str, Any]]
    ) -> None:
        self._clock, self._faults, self._feed, self._ledger, self._stats = clock, faults, feed, ledger, stats

    def routes(self) -> list[web.RouteDef]:
        """Return the routes for an application."""
        return [
            web.post("/admin/faults", self._post_fault),
            web.post("/admin/stop", self._post_stop),
            web.post("/admin/clock", self._post_clock),
            web.get("/admin/stats", self._get_stats),
            web.get("/admin/ledger", self._get_ledger),
            web.get("/healthz", self._get_health),
        ]

    async def _post_fault(self, request: web.Request) -> web.Response:
        try:
            wanted = await request.json()
            if not isinstance(wanted, dict):
                raise TypeError("the body must be an object")
            self._faults.inject(wanted.pop("kind", ""), **wanted)
        except (ValueError, TypeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({})

    async def _post_clock(self, request: web.Request) -> web.Response:
        try:
            seconds = float((await request.json())["advance"])
        except (ValueError, TypeError, KeyError):
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            return web.json_response({"error": "advance must be a number of 0 or more"}, status=400)
        self._clock.advance(seconds)
        return web.json_response({})

    async def _post_stop(self, _: web.Request) -> web.Response:
        self._feed.stop()
        return web.json_response({})

    async def _get_stats(self, _: web.Request) -> web.Response:
        return web.json_response(self._stats())

    async def _get_ledger(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"posts": [')
        comma = ""
        rows: list[str] = []
        for row in self._ledger.rows():
            rows.append(comma + json.dumps(row._asdict()))
            comma = ",\n"
            if len(rows) >= _ROWS_AT_ONCE:
                await response.write("".join(rows).encode())
                rows.clear()
                await asyncio.sleep(0)
        connections = json.dumps([record.as_object() for record in self._ledger.connections])
        await response.write(f'{"".join(rows)}],\n"connections": {connections}}}\n'.encode())
        await response.write_eof()
        return response

    async def _get_health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")
