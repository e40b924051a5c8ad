"""
X streams as lines of bytes: connect, read, and connect again for as long as the daemon runs.

tweepy's here: the names of the query's parameters, and their encoding. Ours: the address, because tweepy has it fixed;
and the loop, because of what tweepy 4.17's does, measured with aiohttp 3.14:

* it reads a line at a time and awaits a hook for each: at a drop aiohttp raises before it hands out what has
  already arrived, and of 200 complete lines 29 came through;
* a line over 512 KiB, a line cut by the end of the answer, or an exception in a hook ends it for good, silently;
* it swallows cancellation, so a task that waits for it cannot be stopped;
* after a 200 it reconnects without any pause: hundreds of connects a second to a server that hangs up;
* its hooks see neither headers nor body, which alone tell the three kinds of 429 apart.

The rules of the loop here:

* The reading task awaits nothing but the socket. Lines go to a plain function that may not wait.
* What aiohttp holds when a connection ends, for whatever reason, is taken out and handed on. aiohttp offers that
  only through an underscore; tests fail if it ever goes away.
* Silence is measured here. aiohttp's `sock_read` is switched off while aiohttp itself pauses the socket, and after
  a damaged chunk header aiohttp closes the connection and never wakes the reader.
* One attempt is one request. aiohttp would repeat a GET whose connection broke, unasked and uncounted.
* A redirect is not followed: aiohttp would drop the token on the way, and X has no reason to send one.
* Being cancelled closes the connection, so that X frees its slot.

`core.reconnect` says when to come back, `core.gaps` what backfill to ask for. A request with backfill that is refused
is made again without: only if that one succeeds it was the backfill.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Protocol

import aiohttp
import msgspec
from tweepy.asynchronous import AsyncStreamingClient

from service.core.lines import LineSplitter
from service.core.reconnect import Cause, Reason, Reconnect, Verdict, refusal
from service.core.records import UNREADABLE, DropReason
from service.http_client import CONNECT_SECONDS, UnavailableError, plain, session, start_of, unreachable

# X writes a keep-alive at least every 20 s; clients that gave up after 21 s dropped healthy connections.
STALL_SECONDS = 30.0
# For the body of a refusal.
BODY_SECONDS = 5.0
# X asks for 5 s after a taken slot; once the slot is freed there is nothing to wait for but X's own bookkeeping.
FREED_SECONDS = 1.0


class Observer(Protocol):
    """Whoever follows the connection, and knows what it is for. All but `connecting` return at once; none raises."""

    async def connecting(self) -> None:
        """Write down that a connect is made: X counts it also if this process ends now."""

    def backfill_minutes(self) -> int:
        """Say how much to ask for with the next connect; 0 for none."""

    def backfill_refused(self) -> None:
        """X answers 200 without backfill, and did not with it."""

    def connected(self, backfill_minutes: int) -> None:
        """X answered 200."""

    def disconnected(self, reason: Reason, detail: str, retry_seconds: float, healable: bool) -> None:
        """There is no connection; the next try comes in so many seconds. `healable` is False if somebody must act."""

    def keep_alive(self) -> None:
        """X wrote an empty line."""

    def objection(self) -> Cause | None:
        """Say why no connection is wanted now; asked before each connect, and after each chunk of an open one."""


class Token(Protocol):
    """The app's bearer token."""

    async def get(self) -> str:
        """Give it; raises UnavailableError."""

    def refused(self, token: str) -> bool:
        """X does not take this one. Whether another one is set now."""


class Slot(Protocol):
    """What X believes of our connection."""

    async def learn(self, connected_at: float, token: str) -> None:
        """Find out which of X's connections began then, by X's clock, and is ours. Runs beside it."""

    async def free(self, token: str) -> bool:
        """End the connection that we had, if X believes it to be open. Whether it did."""


class Stream:
    """
    One stream of X.

    Arguments:
        url: base URL of the X API.
        token: gives the app-only bearer token.
        on_lines: takes complete lines, in order; returns those that hold nothing but X's errors. It must not wait.
        on_rejected: takes a line that was cut, or the head of one that was overlong.
        observer: hears of connections and keep-alives.
        reconnect: says when to connect again.
        clock: the clock of `reconnect`, in seconds.
        path: of the stream, with what query tweepy does not know, such as `partition`.
        parameters: of the query, by the names that tweepy's `filter` has for them.
        slot: frees the slot of a connection that X still counts; None leaves it to time.
        on_no_rules: called whenever X refuses to connect for want of rules.
        stall_seconds: so long without a byte, not even a keep-alive, and the connection counts as dead.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        on_lines: Callable[[list[bytes]], list[bytes]],
        on_rejected: Callable[[bytes, DropReason], None],
        observer: Observer,
        reconnect: Reconnect,
        clock: Callable[[], float],
        *,
        path: str,
        parameters: Mapping[str, Sequence[str]],
        slot: Slot | None = None,
        on_no_rules: Callable[[], None] = lambda: None,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._url = url.rstrip("/") + path
        self._token = token
        self._on_lines = on_lines
        self._on_rejected = on_rejected
        self._observer = observer
        self._reconnect = reconnect
        self._clock = clock
        self._parameters = {name: list(values) for name, values in parameters.items() if values}
        self._slot = slot
        self._on_no_rules = on_no_rules
        self._stall_seconds = stall_seconds
        self._last_error = b""
        self._doubts_backfill = False
        self._crowded = 0  # refusals since the last connection because the slot was taken
        self._waiting_for: Reason | None = None
        self._called = asyncio.Event()

    async def run(self) -> None:
        """Keep connected until cancelled. Only a bug raises."""
        while True:
            # Not to be cut short by anybody.
            await asyncio.sleep(self._reconnect.budget.wait(self._clock()))
            verdict = await self._connect_once()
            self._observer.disconnected(verdict.reason, verdict.detail, verdict.delay, verdict.healable)
            self._waiting_for = verdict.reason
            self._called.clear()
            if verdict.reason is Reason.NO_RULES:
                self._on_no_rules()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(verdict.delay):
                    await self._called.wait()
            self._waiting_for = None

    def rules_changed(self) -> None:
        """Try again at once if there were no rules."""
        if self._waiting_for is Reason.NO_RULES:
            self._called.set()

    async def _connect_once(self) -> Verdict:
        objection = self._observer.objection()
        if objection is not None and objection.wait is not None:
            return self._reconnect.put_off(objection)
        try:
            token = await self._token.get()
        except UnavailableError as error:
            return error.verdict
        minutes = 0 if self._doubts_backfill else self._observer.backfill_minutes()
        self._reconnect.budget.take(self._clock())
        await self._observer.connecting()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        async with session(f"Bearer {token}", timeout, [_send_once]) as asking:
            client = _Client(self._url, asking)
            query = {**self._parameters, **({"backfill_minutes": str(minutes)} if minutes else {})}
            try:
                async with asyncio.timeout(self._stall_seconds):
                    response: aiohttp.ClientResponse = await client.filter(**query)
            except (aiohttp.ClientError, OSError) as error:
                if isinstance(error.__cause__, aiohttp.ClientConnectorError):
                    # X has not seen it.
                    self._reconnect.budget.give_back()
                return self._reconnect.lost(Cause(Reason.NETWORK_ERROR, unreachable(error)), self._clock())
            try:
                if response.status == 200:
                    return await self._stay(response, minutes, token)
                verdict = await self._refused(response, minutes, token)
            finally:
                response.close()
        if await self._frees_slot(verdict.reason, token):
            return verdict._replace(delay=max(FREED_SECONDS, self._reconnect.budget.wait(self._clock())))
        return verdict

    async def _refused(self, response: aiohttp.ClientResponse, minutes: int, token: str) -> Verdict:
        body = await start_of(response, min(BODY_SECONDS, self._stall_seconds))
        cause = refusal(response.status, response.headers, body)
        if minutes and cause.reason in {Reason.BAD_REQUEST, Reason.FORBIDDEN}:
            self._doubts_backfill = True
            return self._reconnect.lost(cause._replace(reason=Reason.BACKFILL_REFUSED), self._clock())
        if cause.reason in {Reason.BAD_REQUEST, Reason.FORBIDDEN}:
            self._doubts_backfill = False
        if cause.reason is Reason.UNAUTHORIZED and self._token.refused(token):
            return self._reconnect.lost(cause._replace(reason=Reason.TOKEN_REPLACED), self._clock())
        return self._reconnect.refused(cause, self._clock())

    async def _stay(self, response: aiohttp.ClientResponse, minutes: int, token: str) -> Verdict:
        self._reconnect.connected(self._clock())
        self._observer.connected(minutes)
        self._crowded = 0
        if self._doubts_backfill:
            self._doubts_backfill = False
            self._observer.backfill_refused()
        connected_at = _date(response.headers)
        learning = None
        if self._slot is not None and connected_at is not None:
            learning = asyncio.create_task(self._slot.learn(connected_at, token))
        try:
            end = await self._read(response.content)
        finally:
            if learning is not None and not learning.cancel():
                learning.result()
        if end.wait is not None:
            return self._reconnect.put_off(end)
        return self._reconnect.lost(end, self._clock(), self._last_error)

    async def _frees_slot(self, reason: Reason, token: str) -> bool:
        """Have X end our own older connection, from the second refusal on: most are gone by then."""
        if reason is not Reason.TOO_MANY_CONNECTIONS:
            return False
        self._crowded += 1
        return self._slot is not None and self._crowded > 1 and await self._slot.free(token)

    async def _read(self, content: aiohttp.StreamReader) -> Cause:
        """Read until the connection ends; say how it ended."""
        self._last_error = b""
        splitter = LineSplitter()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._stall_seconds) as silence:
                while True:
                    try:
                        chunk = await content.readany()
                    except (aiohttp.ClientError, OSError) as error:
                        return Cause(Reason.CUT, f"the connection broke off: {plain(error)}")
                    if not chunk:
                        return Cause(Reason.CLEAN_CLOSE, "X ended the stream")
                    self._take(splitter, splitter.feed(chunk))
                    objection = self._observer.objection()
                    if objection is not None:
                        return objection
                    # After the work, so that a slow moment of ours is not X's silence.
                    silence.reschedule(loop.time() + self._stall_seconds)
        except TimeoutError:
            if not silence.expired():
                raise
            return Cause(Reason.STALL, f"X was silent for {self._stall_seconds:g} s, without even a keep-alive")
        finally:
            self._take_rest(splitter, content)

    def _take(self, splitter: LineSplitter, lines: list[bytes]) -> None:
        if lines:
            errors = self._on_lines(lines)
            # A farewell is the last that X writes: posts behind it show that it was none.
            self._last_error = errors[-1] if errors else b""
        if splitter.keep_alives:
            for _ in range(splitter.keep_alives):
                self._observer.keep_alive()
            splitter.keep_alives = 0
        if splitter.overlong:
            for head in splitter.overlong:
                self._on_rejected(head, DropReason.LINE_TOO_LONG)
            splitter.overlong.clear()

    def _take_rest(self, splitter: LineSplitter, content: aiohttp.StreamReader) -> None:
        """Hand on what had arrived before the connection ended, and the line that the end cut."""
        while not content.at_eof():
            chunk = content._read_nowait(-1)  # noqa: SLF001 - the public way raises and keeps what it holds
            if not chunk:
                break
            self._take(splitter, splitter.feed(chunk))
        last = splitter.end()
        if last is not None and not _is_whole(last):
            self._on_rejected(last, DropReason.LINE_CUT)
            last = None
        self._take(splitter, [] if last is None else [last])


class _Client(AsyncStreamingClient):  # type: ignore[misc]  # tweepy has no types
    """tweepy's client with another address, and with one request in place of its loop."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        super().__init__(None)
        self._url = url
        self.session = session

    async def _connect(self, method: str, _endpoint: str, params: Mapping[str, str]) -> aiohttp.ClientResponse:
        headers = {"Accept-Encoding": "gzip"}
        response: aiohttp.ClientResponse = await self.session.request(
            method, self._url, params=params, headers=headers, allow_redirects=False
        )
        return response


async def _send_once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    try:
        return await send(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        # aiohttp repeats the request after these two, and after no other.
        raise aiohttp.ClientConnectionError(plain(error)) from error


def _is_whole(line: bytes) -> bool:
    """Whether only the line's end is missing: no part of a JSON object is one itself."""
    try:
        msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except UNREADABLE:
        return False
    return True


def _date(headers: Mapping[str, str]) -> float | None:
    """X's clock at its answer, in seconds since 1970."""
    try:
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError, OverflowError):
        return None
