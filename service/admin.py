"""
The HTTP server for operators and orchestrators: metrics, health, readiness, status.

Rules:

* `/healthz` answers while the event loop turns, and depends on nothing else. If it failed because X or Kinesis is
  down, an orchestrator would add restarts, and so connection attempts, to an outage.
* `/readyz` says whether posts can flow, and if not, why and since when. Others set its conditions in `Health`.
* Everything is answered from memory, in one step of the loop, so that the figures of an answer belong together.
* Reasons and figures hold no secret and no text of a post: who may connect may read everything.
"""

import errno
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

from service import __version__

# A health check that a proxy answers from its memory is worse than none.
_FRESH = {"Cache-Control": "no-store"}


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
        self._checks: dict[str, tuple[bool, str, float]] = {name: (False, "starting", clock()) for name in names}

    def set(self, name: str, ok: bool, reason: str = "") -> None:
        """Set a condition. A new reason alone does not move the time since when it is as it is."""
        was_ok, _, since = self._checks[name]
        self._checks[name] = (ok, reason, since if ok == was_ok else self._clock())

    @property
    def is_ready(self) -> bool:
        """Whether all conditions are met."""
        return all(ok for ok, _, _ in self._checks.values())

    @property
    def checks(self) -> dict[str, bool]:
        """Each condition, and whether it is met."""
        return {name: ok for name, (ok, _, _) in self._checks.items()}

    def report(self) -> dict[str, object]:
        """Give all conditions with their reasons, as `/readyz` shows them."""
        checks = {
            name: {"ok": ok, "reason": reason, "since": datetime.fromtimestamp(since, UTC).isoformat("T", "seconds")}
            for name, (ok, reason, since) in self._checks.items()
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

    Raises: AdminError, when it is entered.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        health: Health,
        status: Callable[[], Mapping[str, object]],
    ) -> None:
        self._host = host
        self._wanted_port = port
        self._health = health
        self._status = status
        pages: list[tuple[str, Callable[[web.Request], Awaitable[web.StreamResponse]], str]] = [
            ("/metrics", make_aiohttp_handler(registry), "for Prometheus"),
            ("/healthz", self._get_health, "200 while the process lives"),
            ("/readyz", self._get_readiness, "200 if posts can flow, else 503; the reasons as JSON"),
            ("/status", self._get_status, "figures as JSON"),
            ("/", self._get_index, "this list"),
        ]
        self._index = f"Millrace {__version__}\n\n" + "".join(f"{path:<10}{about}\n" for path, _, about in pages)
        application = web.Application()
        application.add_routes([web.get(path, handler) for path, handler, _ in pages])
        # A scraper that holds its connection open must not hold up the end of the process.
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._wanted_port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise AdminError(self._explain(error)) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self._runner.addresses[0][1]
        return port

    def _explain(self, error: OSError) -> str:
        match error.errno:
            case errno.EADDRINUSE:
                setting, way_out = "PORT", "is in use; stop what uses it, or choose another (0 takes any free one)"
            case errno.EACCES:
                setting, way_out = "PORT", "is not allowed for this user; choose one from 1024 upwards"
            case _:
                setting, way_out = (
                    "HOST",
                    f"cannot be used ({error.strerror or error}); write an address of this machine",
                )
        value = self._wanted_port if setting == "PORT" else self._host
        return f"MILLRACE_HTTP_{setting}: {value} {way_out}"

    async def _get_health(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n", headers=_FRESH)

    async def _get_readiness(self, _request: web.Request) -> web.Response:
        return _json(self._health.report(), 200 if self._health.is_ready else 503)

    async def _get_status(self, _request: web.Request) -> web.Response:
        return _json(self._status())

    async def _get_index(self, _request: web.Request) -> web.Response:
        return web.Response(text=self._index)


def _json(value: Mapping[str, object], status: int = 200) -> web.Response:
    body = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return web.Response(status=status, body=body, content_type="application/json", headers=_FRESH)
