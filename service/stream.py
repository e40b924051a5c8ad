"""
X streams as lines of bytes: connect, read, and connect again for as long as the daemon runs.

tweepy's here: the names of the query's parameters, their encoding, and its User-Agent behind ours. The address is
ours because tweepy has it fixed, and the loop is ours because of what tweepy 4.17's does, measured with aiohttp 3.14:

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
* Proxies come from the environment (`HTTPS_PROXY`, `NO_PROXY`), and so do certificates (`SSL_CERT_FILE`).
* Being cancelled closes the connection, so that X frees its slot.
"""

import asyncio
import base64
import contextlib
from collections.abc import Callable, Mapping
from typing import Protocol

import aiohttp
import msgspec
from tweepy.asynchronous import AsyncStreamingClient

from service import __version__
from service.core.limits import KIB
from service.core.lines import LineSplitter
from service.core.reconnect import Cause, Ladders, Reason, Reconnect, Verdict, refusal
from service.core.records import DropReason

FILTERED_STREAM = "/2/tweets/search/stream"
SAMPLE_STREAM = "/2/tweets/sample/stream"

# What the processor stores and the partition keys need. A long post has its whole text in note_tweet.
PARAMETERS: Mapping[str, list[str]] = {
    "tweet_fields": ["author_id", "conversation_id", "created_at", "lang", "note_tweet", "referenced_tweets"],
    "expansions": ["author_id"],
    "user_fields": ["name", "username"],
}

# X writes a keep-alive at least every 20 s; clients that gave up after 21 s dropped healthy connections.
STALL_SECONDS = 30.0
CONNECT_SECONDS = 10.0
# For the body of a refusal.
BODY_SECONDS = 5.0
BODY_BYTES = 64 * KIB


class Observer(Protocol):
    """Whoever wants to know how the connection is. Its methods return at once and do not raise."""

    def connected(self) -> None:
        """X answered 200."""

    def disconnected(self, reason: Reason, detail: str, retry_seconds: float, healable: bool) -> None:
        """There is no connection; the next try comes in so many seconds. `healable` is False if somebody must act."""

    def keep_alive(self) -> None:
        """X wrote an empty line."""

    def rejected(self, line: bytes, reason: DropReason) -> None:
        """A line was overlong (its head is here) or cut."""


class TokenError(Exception):
    """X gave no bearer token. `verdict` says why, and when to ask again; its detail is this error's one line."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.detail)
        self.verdict = verdict


class Stream:
    """
    One stream of X.

    Arguments:
        url: base URL of the X API.
        token: app-only bearer token.
        on_lines: takes complete lines, in order; returns those that hold nothing but X's errors. It must not wait.
        observer: hears of connections, keep-alives and lines that are lost.
        reconnect: says when to connect again.
        clock: the clock of `reconnect`, in seconds.
        path: of the stream, with what query tweepy does not know, such as `partition`.
        parameters: of the query, by the names that tweepy's `filter` has for them.
        stall_seconds: so long without a byte, not even a keep-alive, and the connection counts as dead.
    """

    def __init__(
        self,
        url: str,
        token: str,
        on_lines: Callable[[list[bytes]], list[bytes]],
        observer: Observer,
        reconnect: Reconnect,
        clock: Callable[[], float],
        path: str = FILTERED_STREAM,
        parameters: Mapping[str, list[str]] = PARAMETERS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._url = url.rstrip("/") + path
        self._token = token
        self._on_lines = on_lines
        self._observer = observer
        self._reconnect = reconnect
        self._clock = clock
        self._parameters = parameters
        self._stall_seconds = stall_seconds
        self._last_error = b""

    async def run(self) -> None:
        """Keep connected until cancelled. Only a bug raises."""
        await asyncio.sleep(self._reconnect.budget.wait(self._clock()))
        while True:
            verdict = await self._connect_once()
            self._observer.disconnected(verdict.reason, verdict.detail, verdict.delay, verdict.healable)
            await asyncio.sleep(verdict.delay)

    async def _connect_once(self) -> Verdict:
        self._reconnect.connecting(self._clock())
        async with _session(f"Bearer {self._token}") as session:
            client = _Client(self._url, session)
            try:
                async with asyncio.timeout(self._stall_seconds):
                    response: aiohttp.ClientResponse = await client.filter(**self._parameters)
            except (aiohttp.ClientError, OSError) as error:
                return self._reconnect.lost(
                    Reason.NETWORK_ERROR, f"X cannot be reached: {_words(error)}", self._clock()
                )
            try:
                if response.status != 200:
                    body = await _body(response, min(BODY_SECONDS, self._stall_seconds))
                    return self._reconnect.refused(response.status, response.headers, body, self._clock())
                self._reconnect.connected(self._clock())
                self._observer.connected()
                reason, words = await self._read(response.content)
                return self._reconnect.lost(reason, words, self._clock(), self._last_error)
            finally:
                response.close()

    async def _read(self, content: aiohttp.StreamReader) -> tuple[Reason, str]:
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
                        return Reason.CUT, f"the connection broke off: {_words(error)}"
                    if not chunk:
                        return Reason.CLEAN_CLOSE, "X ended the stream"
                    self._take(splitter, splitter.feed(chunk))
                    # After the work, so that a slow moment of ours is not X's silence.
                    silence.reschedule(loop.time() + self._stall_seconds)
        except TimeoutError:
            if not silence.expired():
                raise
            return Reason.STALL, f"X was silent for {self._stall_seconds:g} s, without even a keep-alive"
        finally:
            self._take_rest(splitter, content)

    def _take(self, splitter: LineSplitter, lines: list[bytes]) -> None:
        if lines:
            errors = self._on_lines(lines)
            if errors:
                self._last_error = errors[-1]
        if splitter.keep_alives:
            for _ in range(splitter.keep_alives):
                self._observer.keep_alive()
            splitter.keep_alives = 0
        if splitter.overlong:
            for head in splitter.overlong:
                self._observer.rejected(head, DropReason.LINE_TOO_LONG)
            splitter.overlong.clear()

    def _take_rest(self, splitter: LineSplitter, content: aiohttp.StreamReader) -> None:
        """Hand on what had arrived before the connection ended, and the line that the end cut."""
        while not content.at_eof():
            chunk = content._read_nowait(-1)  # noqa: SLF001 - the public way raises and keeps what it holds
            if not chunk:
                break
            self._take(splitter, splitter.feed(chunk))
        cut = splitter.end()
        if cut is None:
            return
        if _is_whole(cut):
            self._take(splitter, [cut])
        else:
            self._observer.rejected(cut, DropReason.LINE_CUT)


class _Client(AsyncStreamingClient):  # type: ignore[misc]  # tweepy has no types
    """tweepy's client with another address, and with one request in place of its loop."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        super().__init__(None)
        self._url = url
        self.session = session

    async def _connect(self, method: str, _endpoint: str, params: Mapping[str, str]) -> aiohttp.ClientResponse:
        headers = {"User-Agent": f"Millrace/{__version__} {self.user_agent}", "Accept-Encoding": "gzip"}
        response: aiohttp.ClientResponse = await self.session.request(
            method, self._url, params=params, headers=headers, allow_redirects=False
        )
        return response


async def bearer_token(url: str, key: str, secret: str, ladders: Ladders) -> str:
    """
    Exchange the app's key and secret for its bearer token; X gives the same one every time.

    Raises TokenError. `ladders` says how long to wait then, and remembers how often it failed.
    """
    basic = "Basic " + base64.b64encode(f"{key}:{secret}".encode()).decode()
    form = {"grant_type": "client_credentials"}
    try:
        async with (
            asyncio.timeout(STALL_SECONDS),
            _session(basic) as session,
            session.post(url.rstrip("/") + "/oauth2/token", data=form, allow_redirects=False) as response,
        ):
            body = await _body(response, BODY_SECONDS)
    except (aiohttp.ClientError, OSError) as error:
        cause = Cause(Reason.NETWORK_ERROR, f"X cannot be reached: {_words(error)}")
        raise TokenError(ladders.verdict(cause)) from None
    if response.status == 200:
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(body, type=_Token).access_token
    raise TokenError(ladders.verdict(refusal(response.status, response.headers, body)))


class _Token(msgspec.Struct):
    access_token: str


def _session(authorization: str) -> aiohttp.ClientSession:
    """Make a session for one connection, so that nothing of the last one, not even its address, is used again."""

    async def send_once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        # Set here because aiohttp refuses the header beside an entry in ~/.netrc.
        request.headers["Authorization"] = authorization
        try:
            return await send(request)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            # aiohttp repeats the request after these two, and after no other.
            raise aiohttp.ClientConnectionError(str(error)) from error

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    return aiohttp.ClientSession(timeout=timeout, trust_env=True, middlewares=(send_once,))


async def _body(response: aiohttp.ClientResponse, seconds: float) -> bytes:
    """Read what a refusal says, as far as it comes."""
    body = bytearray()
    with contextlib.suppress(aiohttp.ClientError, OSError):
        async with asyncio.timeout(seconds):
            while len(body) < BODY_BYTES and (chunk := await response.content.readany()):
                body += chunk
    return bytes(body[:BODY_BYTES])


def _is_whole(line: bytes) -> bool:
    """Whether only the line's end is missing: no part of a JSON object is one itself."""
    try:
        msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or "no answer in time"
