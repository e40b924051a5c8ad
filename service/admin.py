"""
The HTTP server for operators and orchestrators: the live page, metrics, health, readiness, status.

Rules:

* `/healthz` answers while the event loop turns, and depends on nothing else. If it failed because X or Kinesis is
  down, an orchestrator would add restarts, and so connection attempts, to an outage.
* `/readyz` says whether posts can flow, and if not, why and since when. Others set its conditions in `Health`.
* Everything is answered from memory, in one step of the loop, so that the figures of an answer belong together.
* Reasons and figures hold no text of a post, and no secret: whatever is answered is cleaned of the known ones, because
  reasons repeat what others wrote. Who may connect may read everything.
* The page is four files and a stream of server-sent events. Its policy for content forbids whatever is not from here,
  and all scripts and styles inside the text, so that nothing which finds its way into a figure can run.
"""

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

from service.core.verdict import STARTING, Check

# A health check that a proxy answers from its memory is worse than none.
_FRESH = {"Cache-Control": "no-store"}
_PAGE = Path(__file__).parent / "page"
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# Each open page is asked for figures once a second. More of them than this is a mistake, or not meant well.
LISTENERS = 16
FRAME_SECONDS = 1.0


class AdminError(Exception):
    """The server cannot listen; the text is one line that names the setting and the way out."""


class Health:
    """
    Named conditions; ready is who has all of them.

    Args:
        names: every condition there is. Each is not ok, for the reason "starting", until somebody sets it.
        clock: the time of day, in seconds since 1970.
    """

    def __init__(self, names: Iterable[str], clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._checks = {name: Check(False, STARTING, clock()) for name in names}

    def set(self, name: str, ok: bool, reason: str = "") -> None:
        """Set a condition. A new reason alone does not move the time since when it is as it is."""
        before = self._checks[name]
        self._checks[name] = Check(ok, reason, before.since if ok == before.ok else self._clock())

    @property
    def is_ready(self) -> bool:
        """Whether all conditions are met."""
        return all(check.ok for check in self._checks.values())

    @property
    def checks(self) -> dict[str, Check]:
        """All conditions by their names, as they are now."""
        return dict(self._checks)

    def report(self) -> dict[str, object]:
        """Give all conditions with their reasons, as `/readyz` shows them."""
        checks = {
            name: check._asdict() | {"since": datetime.fromtimestamp(check.since, UTC).isoformat("T", "seconds")}
            for name, check in self._checks.items()
        }
        return {"ready": self.is_ready, "checks": checks}


class Admin:
    """
    The server, as an asynchronous context manager: it listens inside of it.

    Args:
        host: address or name to listen on.
        port: 0 takes any free one.
        registry: what `/metrics` shows.
        health: what `/readyz` shows.
        status: gives what `/status` shows, called at each request.
        history: gives what a page needs that has just been opened, as values for JSON.
        frame: gives what the page shows now, in the same way; called for each open page.
        clean: takes the secrets out of an answer.
        frame_seconds: how often a page gets new figures.

    Raises: AdminError, when it is entered.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        health: Health,
        status: Callable[[], Mapping[str, object]],
        history: Callable[[], Mapping[str, object]],
        frame: Callable[[], Mapping[str, object]],
        clean: Callable[[bytes], bytes],
        frame_seconds: float = FRAME_SECONDS,
    ) -> None:
        self._host = host
        self._wanted_port = port
        self._health = health
        self._status = status
        self._history = history
        self._frame = frame
        self._clean = clean
        self._frame_seconds = frame_seconds
        self._listeners = 0
        self._closing = asyncio.Event()
        pages: list[tuple[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
            ("/metrics", make_aiohttp_handler(registry)),
            ("/healthz", self._get_health),
            ("/readyz", self._get_readiness),
            ("/status", self._get_status),
            ("/events", self._get_events),
            ("/", _file("index.html", "text/html")),
            ("/page.css", _file("page.css", "text/css")),
            ("/page.js", _file("page.js", "text/javascript")),
            ("/icon.svg", _file("icon.svg", "image/svg+xml")),
        ]
        application = web.Application(middlewares=[self._answer_cleanly])
        application.add_routes([web.get(path, handler) for path, handler in pages])
        # A scraper that holds its connection open must not hold up the end of the process.
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._wanted_port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise AdminError(explain(error, self._host, self._wanted_port)) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        await self._runner.cleanup()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self._runner.addresses[0][1]
        return port

    @web.middleware
    async def _answer_cleanly(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if isinstance(response, web.Response) and isinstance(response.body, bytes):
            response.body = self._clean(response.body)
        return response

    async def _get_health(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n", headers=_FRESH)

    async def _get_readiness(self, _request: web.Request) -> web.Response:
        return _json(self._health.report(), 200 if self._health.is_ready else 503)

    async def _get_status(self, _request: web.Request) -> web.Response:
        return _json(self._status())

    async def _get_events(self, request: web.Request) -> web.StreamResponse:
        """Tell the figures for as long as somebody reads; a slow reader gets fewer of them, never old ones."""
        if self._listeners >= LISTENERS:
            return web.Response(status=503, text=f"{LISTENERS} pages are open already; close one\n", headers=_FRESH)
        response = web.StreamResponse(headers={**_FRESH, **_SAFE, "Content-Type": "text/event-stream"})
        if request.method == "HEAD":
            return response
        self._listeners += 1
        try:
            await response.prepare(request)
            await response.write(self._event("history", self._history()))
            while not self._closing.is_set():
                await response.write(self._event("frame", self._frame()))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), self._frame_seconds)
            await response.write(self._event("end", {}))
        except ConnectionResetError:
            # The page was closed; aiohttp would write that to the log as an error, with a traceback.
            pass
        finally:
            self._listeners -= 1
        return response

    def _event(self, name: str, value: Mapping[str, object]) -> bytes:
        return b"event: %s\ndata: %s\n\n" % (name.encode(), self._clean(orjson.dumps(value)))


def explain(error: OSError, host: str, port: int) -> str:
    """Say in one line why nobody can listen there, with the setting and the way out."""
    match error.errno:
        case errno.EADDRINUSE:
            return f"MILLRACE_HTTP_PORT: {port} is in use; stop what uses it, or choose another (0 takes any free one)"
        case errno.EACCES:
            return f"MILLRACE_HTTP_PORT: {port} is not allowed for this user; choose one from 1024 upwards"
        case _:
            words = f"{host} cannot be used ({error.strerror or error})"
            return f"MILLRACE_HTTP_HOST: {words}; write an address of this machine"


def _file(name: str, kind: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return what answers with a file of the page, which is read now and once."""
    text = (_PAGE / name).read_text(encoding="utf-8")

    async def get(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind, headers={"Cache-Control": "no-cache", **_SAFE})

    return get


def _json(value: Mapping[str, object], status: int = 200) -> web.Response:
    body = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return web.Response(status=status, body=body, content_type="application/json", headers=_FRESH)
