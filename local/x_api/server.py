"""
A faithful X API v2 on loopback: the streams of posts, rules, connections, usage, with faults on demand.

    python -m local.x_api.server --port 8900 --rate 500

Rules it obeys:

* A client must not be able to tell it from X: chunked answers whose headers leave at once, lower-case header names,
  CR LF when idle, gzip when accepted, rate limit headers that count down, bodies as recorded.
* X is a live stream, at most once: a post that falls due while nobody is connected is unsent for ever, unless there is
  Enterprise access and a backfill brings it. Posts begin to fall due with the first connection. With rate 0 they fall
  due as fast as a client reads, and never without one.
* All tokens belong to one app: they share its rules and its usage, and each has connections of its own.
* Fields and expansions of a request are checked by name. Unless they are to be honoured, the source decides what is on
  a line: a harder school than X, whose lines hold no more than was asked for.
* `local.x_api.admin` says how to ask for faults and how to read the ledger. It needs no token: never give this
  program an address that others can reach.
"""

import asyncio
import errno
import secrets
import signal
import ssl
import sys
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from email.utils import formatdate
from typing import Any, Self

from aiohttp import web

from local.posts import Generated, Recorded, Snowflakes
from local.x_api.account import Account, json_response
from local.x_api.admin import Admin
from local.x_api.answers import JSON_TYPE
from local.x_api.clock import Clock
from local.x_api.door import Door
from local.x_api.endings import Ending
from local.x_api.endpoints import ENDPOINTS, FILTERED, Subscription
from local.x_api.faults import DROP, Faults
from local.x_api.feed import Feed, Source
from local.x_api.gate import Gate, RefusedError
from local.x_api.ledger import ConnectionRecord, Ledger
from local.x_api.rulebook import Answer, RuleBook
from local.x_api.settings import Settings, from_arguments, parser
from local.x_api.stream import Stream

_STREAM_PATHS = {endpoint.path: endpoint for endpoint in ENDPOINTS}


class XApi:
    """
    The server; use it as an asynchronous context manager.

    Args:
        source: of the posts; invented ones if None.
        settings: its behaviour.
        host: address to listen on.
        port: 0 for any free one.
        tls: serves HTTPS if given.

    Attributes:
        url: where it listens.
        clock, rules, ledger, feed, faults: its parts, for use in process.
        refused: how many requests were refused, by reason.
        feeding: the task of the feed; it ends when the source is exhausted.
    """

    def __init__(
        self,
        source: Source | None = None,
        settings: Settings | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings or Settings()
        self._host, self._tls = host, tls
        self.clock = Clock(self._settings.speed)
        ids = Snowflakes()
        self.rules = RuleBook(
            lambda: str(ids.take(int(self.clock.now() * 1000))),
            cap=self._settings.rules_cap,
            length=self._settings.rule_length,
            now=self.clock.now,
            delay=self._settings.rule_delay,
            state=self._settings.state,
        )
        self.ledger = Ledger()
        source = source or Generated(self._settings.seed)
        self.feed = Feed(source, self.rules, self.ledger, self.clock, self._settings)
        self._door = Door(self.clock, host, port, tls)
        self.faults = Faults(self.feed, self._door, self.clock, self._settings.layout)
        self.refused: Counter[str] = Counter()
        self.url = ""
        self._gate = Gate(self._settings, self.clock, self.faults, lambda: self.ledger.connections)
        self._keep_alives = 0

    async def __aenter__(self) -> Self:
        """Listen; raises OSError if that is not possible."""
        app = web.Application(middlewares=[self._answer_refusals])
        app.on_response_prepare.append(self._complete_headers)
        app.add_routes(
            [
                *(web.get(endpoint.path, self._get_stream, allow_head=False) for endpoint in ENDPOINTS),
                *Account(self._settings, self._gate, self.ledger, self.feed, self.rules).routes(),
                *Admin(self.clock, self.faults, self.feed, self.ledger, self.stats).routes(),
            ]
        )
        # A cancelled handler is how a stream learns that its client has gone.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await self._door.open(self._runner)
        except BaseException:
            await self._runner.cleanup()
            raise
        self.url = f"{'https' if self._tls else 'http'}://{self._host}:{self._door.port}"
        self.feeding = asyncio.create_task(self.feed.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all streams and stop listening."""
        self.feeding.cancel()
        await self.faults.stop()
        for stream in list(self.feed.streams):
            stream.end(Ending.SHUTDOWN)
        await self._runner.cleanup()
        with suppress(asyncio.CancelledError):
            await self.feeding

    def stats(self) -> dict[str, Any]:
        """Return the numbers of GET /admin/stats: posts by state, connections, refusals by reason."""
        return {
            "sent": len(self.ledger),
            **self.ledger.counts,
            "unmatched": self.feed.unmatched,
            "rate": self.feed.rate,
            "exhausted": self.feed.exhausted,
            "rules": len(self.rules),
            "open": len(self.feed.streams),
            "connections": len(self.ledger.connections),
            "endings": Counter(record.ending for record in self.ledger.connections),
            "refused": self.refused,
            "keep_alives": self._keep_alives + sum(stream.keep_alives for stream in self.feed.streams),
        }

    @web.middleware
    async def _answer_refusals(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except RefusedError as error:
            self.refused[error.reason] += 1
            if request.path in _STREAM_PATHS:
                self._gate.give_back(request.headers.get("authorization", "").partition(" ")[2])
            if error.refusal is None:
                if error.reason == DROP and request.transport:
                    request.transport.abort()
                return await _never()
            if isinstance(error.refusal, Answer):
                return json_response(error.refusal, error.headers)
            status, text, content_type, location = error.refusal
            headers = error.headers | {"content-type": content_type} | ({"location": location} if location else {})
            if not error.hanging:
                return web.Response(status=status, text=text, headers=headers)
            response = web.StreamResponse(status=status, headers=headers | {"content-length": str(len(text))})
            await response.prepare(request)
            await response.write(text[: len(text) // 2].encode())
            return await _never()

    async def _get_stream(self, request: web.Request) -> web.StreamResponse:
        entry = self._gate.enter(request, "streams")
        endpoint = _STREAM_PATHS[request.path]
        has_rules = endpoint is not FILTERED or len(self.rules) > 0
        used = self.ledger.counts["written"]
        wanted, replaced = self._gate.admit(entry, endpoint, request.query, used=used, has_rules=has_rules)
        for stream in list(self.feed.streams):
            if stream.record in replaced:
                stream.end(Ending.REPLACED)
        record = ConnectionRecord(
            len(self.ledger.connections) + 1,
            str(uuid.uuid4()),
            endpoint.name,
            entry.token,
            request.remote or "",
            self.clock.now(),
            wanted.partition,
            not wanted.is_live,
            wanted.backfill_minutes,
        )
        self.ledger.connections.append(record)
        gzip = self._settings.gzip and "gzip" in request.headers.get("accept-encoding", "")
        headers = entry.headers | {"content-type": JSON_TYPE} | ({"content-encoding": "gzip"} if gzip else {})
        response = web.StreamResponse(headers=headers)
        response.enable_chunked_encoding()
        try:
            await self._serve(request, response, record, wanted, gzip=gzip)
        finally:
            if record.ending == "open":
                record.ending = Ending.CLIENT
            record.disconnected_at = self.clock.now()
            self._gate.ended(record)
            self.feed.changed()
        return response

    async def _serve(
        self,
        request: web.Request,
        response: web.StreamResponse,
        record: ConnectionRecord,
        wanted: Subscription,
        *,
        gzip: bool,
    ) -> None:
        writer = await response.prepare(request)
        if writer is None or request.transport is None:
            return
        stream = Stream(
            record,
            self.ledger,
            wanted,
            self._settings,
            self.clock,
            request.transport,
            writer.drain,
            moved=self._moved,
            gzip=gzip,
            layout=self.faults.layout,
        )
        self.feed.open(stream)
        if not wanted.is_live:
            stream.end(Ending.LAST_CHUNK)
        try:
            await stream.run()
        finally:
            self.feed.streams.remove(stream)
            self._keep_alives += stream.keep_alives

    def _moved(self) -> None:
        """End all streams once the usage cap is reached, and tell those who wait that posts have moved."""
        cap = self._settings.usage_cap
        if cap is not None and self.ledger.counts["written"] >= cap:
            self.faults.inject(Ending.OPERATIONAL_DISCONNECT)
        self.feed.changed()

    async def _complete_headers(self, _: web.Request, response: web.StreamResponse) -> None:
        """Add what X's edge adds to every answer, and write all names in lower case."""
        response.headers.setdefault("cache-control", "no-store")
        # The reset of a rate limit is told in X's time, so the date must be.
        response.headers["date"] = formatdate(self.clock.now(), usegmt=True)
        response.headers["server"] = "envoy"
        response.headers["strict-transport-security"] = "max-age=631138519"
        response.headers["x-transaction-id"] = secrets.token_hex(8)
        response.headers["x-response-time"] = "1"
        guest = f"guest_id=v1%3A{int(self.clock.now() * 1000)}; Path=/; Secure; SameSite=None"
        response.headers.add("set-cookie", guest)
        response.headers.add("set-cookie", f"personalization_id=v1_{secrets.token_hex(8)}; Path=/; Secure")
        lower = [(name.lower(), value) for name, value in response.headers.items()]
        response.headers.clear()
        response.headers.extend(lower)


async def _never() -> web.StreamResponse:
    """Wait until the client loses patience, or learns that it was dropped: either cancels this."""
    forever: asyncio.Future[web.StreamResponse] = asyncio.get_running_loop().create_future()
    return await forever


async def _serve_until_signalled(api: XApi) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with api:
        print(f"X API stand-in at {api.url}", flush=True)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({stopping, api.feeding}, return_when=asyncio.FIRST_COMPLETED)
        if api.feeding.done():
            # A feed that failed must not look like one that has nothing more to give.
            api.feeding.result()
        await stopping


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C and return the exit code."""
    arguments = parser().parse_args(argv)
    settings = from_arguments(arguments)
    tls = None
    try:
        if arguments.tls_cert:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(arguments.tls_cert, arguments.tls_key)
        source: Source = Recorded(arguments.posts) if arguments.posts else Generated(settings.seed)
        asyncio.run(_serve_until_signalled(XApi(source, settings, host=arguments.host, port=arguments.port, tls=tls)))
    except (OSError, ValueError) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            reason = f"port {arguments.port} on {arguments.host} is in use: choose another with --port"
        print(f"local.x_api.server: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
