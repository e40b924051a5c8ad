import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from typing import Any

import pytest
import uvloop

from service.core.limits import LINE_BYTES
from service.core.lines import HEAD_BYTES
from service.core.reconnect import Cause, Ladders, Reason, Reconnect
from service.core.records import DropReason
from service.http_client import UnavailableError
from service.stream import Stream
from tests.service.chance import Longest, Shortest
from tests.service.scripted_server import Behaviour, Connection, FakeX, chunked, head, refuses, silent

SECONDS = 10
TOKEN = "secret-token"
PARAMETERS = {"tweet_fields": ("author_id", "note_tweet"), "expansions": ("author_id",), "media_fields": ()}
LINES = [b'{"data":{"id":"%d","text":"%s"}}' % (number, b"x" * 100) for number in range(20_000)]


def says(*lines: bytes, end: bytes = b"0\r\n\r\n") -> Behaviour:
    """Stream these lines, a chunk each, and end like that."""

    async def behaviour(connection: Connection) -> None:
        await connection.open()
        for line in lines:
            await connection.chunk(line + b"\r\n")
        await connection.write(end)

    return behaviour


class Watcher:
    """Takes lines and events, and lets a test wait for them."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.events: list[str] = []
        self.rejects: list[tuple[bytes, DropReason]] = []
        self.losses: list[tuple[Reason, str, float, bool]] = []
        self.connects = 0
        self.wants_backfill = 0
        self._news = asyncio.Event()

    def on_lines(self, lines: list[bytes]) -> list[bytes]:
        self.lines += lines
        self._news.set()
        return [line for line in lines if line.startswith(b'{"errors"')]

    async def connecting(self) -> None:
        self.connects += 1

    def backfill_minutes(self) -> int:
        return self.wants_backfill

    def backfill_refused(self) -> None:
        self._event("learnt: no backfill")

    def objection(self) -> Cause | None:
        return None

    def connected(self, backfill_minutes: int) -> None:
        self._event("connected")

    def disconnected(self, reason: Reason, detail: str, retry_seconds: float, healable: bool) -> None:
        self.losses.append((reason, detail, retry_seconds, healable))
        self._event(reason)

    def keep_alive(self) -> None:
        self._event("keep_alive")

    def on_rejected(self, line: bytes, reason: DropReason) -> None:
        self.rejects.append((line, reason))
        self._event(reason.value)

    def _event(self, name: str) -> None:
        self.events.append(name)
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def loss(self) -> tuple[Reason, str, float, bool]:
        """Wait for the first lost or refused connection."""
        await self.until(lambda: self.losses)
        return self.losses[0]


class FakeToken:
    """Has some tokens, and gives the next one when one was refused."""

    def __init__(self, *tokens: str) -> None:
        self._tokens = list(tokens)

    async def get(self) -> str:
        if not self._tokens:
            raise UnavailableError(Ladders(Random(1)).verdict(Cause(Reason.UNAUTHORIZED, "no")))
        return self._tokens[0]

    def refused(self, token: str) -> bool:
        self._tokens.remove(token)
        return bool(self._tokens)


def stream_by_hand(url: str, watcher: Watcher, token: FakeToken | None = None, **options: Any) -> Stream:
    """Make a stream whose connects the test makes."""
    clock = asyncio.get_running_loop().time
    token = token or FakeToken(TOKEN)
    reconnect = options.pop("reconnect", None) or Reconnect(clock(), Shortest())
    defaults: dict[str, Any] = {"path": "/", "parameters": {}}
    return Stream(
        url, token, watcher.on_lines, watcher.on_rejected, watcher, reconnect, clock, **{**defaults, **options}
    )


@contextlib.asynccontextmanager
async def running(url: str, watcher: Watcher, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    """Run a stream; at the end it must let itself be cancelled."""
    stream = stream_by_hand(url, watcher, **{"path": "/2/tweets/search/stream", "parameters": PARAMETERS} | options)
    task = asyncio.create_task(stream.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=SECONDS)
        assert task.done()


async def test_the_request() -> None:
    """X sees the fields that are wanted, the token, who we are, and that we take gzip."""
    watcher = Watcher()
    async with FakeX() as x, running(x.url + "/", watcher):
        await watcher.until(lambda: "connected" in watcher.events)
        request = x.requests[0].decode().lower()
    assert request.startswith("get /2/tweets/search/stream?")
    assert "?tweet.fields=author_id,note_tweet&expansions=author_id http/1.1" in request
    assert f"authorization: bearer {TOKEN}\r\n" in request
    assert "user-agent: millrace/" in request
    assert "accept-encoding: gzip\r\n" in request


async def test_another_stream_with_a_partition() -> None:
    """The path may bring a part of the query with it."""
    watcher = Watcher()
    path = "/2/tweets/sample10/stream?partition=2"
    async with FakeX() as x, running(x.url, watcher, path=path, parameters={"expansions": ["author_id"]}):
        await watcher.until(lambda: "connected" in watcher.events)
    assert x.requests[0].startswith(b"GET /2/tweets/sample10/stream?partition=2&expansions=author_id HTTP/1.1")


async def test_lines_and_keep_alives() -> None:
    """Lines come in order without their ending, empty ones are a sign of life, and chunk borders do not matter."""

    async def behaviour(connection: Connection) -> None:
        await connection.open()
        for byte in b'{"a":"\xe6\x97\xa5"}\r\n\r\n{"b":2}\r\n\r\n':
            await connection.chunk(bytes([byte]))
        await connection.until_closed()

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher):
        await watcher.until(lambda: len(watcher.lines) == watcher.events.count("keep_alive") == 2)
    assert watcher.lines == ['{"a":"日"}'.encode(), b'{"b":2}']
    assert watcher.events == ["connected", "keep_alive", "keep_alive"]


def on_every_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on asyncio's loop and on uvloop, which share out reads and tasks over their turns differently."""

    @pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(test())

    run.__doc__ = test.__doc__
    return run


@on_every_loop
async def test_a_drop_loses_no_complete_line() -> None:
    """Of 20,000 lines that were followed by a FIN without last chunk every one arrives, and the stream comes back."""
    body = b"".join(chunked(line + b"\r\n") for line in LINES)

    async def behaviour(connection: Connection) -> None:
        await connection.write(head() + body)

    watcher = Watcher()
    async with FakeX(behaviour, says(b'{"next":1}', end=b"")) as x, running(x.url, watcher):
        await watcher.until(lambda: b'{"next":1}' in watcher.lines)
    assert watcher.losses[0][:2] == (Reason.CUT, "the connection broke off: the answer is cut short or damaged")
    assert watcher.lines == [*LINES, b'{"next":1}']


@on_every_loop
async def test_an_answer_that_ends_before_it_is_read() -> None:
    """Head, lines and the end of the connection in one packet: the lines arrive."""

    async def behaviour(connection: Connection) -> None:
        await connection.write(head() + chunked(b"{}\r\n" * 3))

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher):
        assert (await watcher.loss())[0] is Reason.CUT
    assert watcher.lines == [b"{}"] * 3


@on_every_loop
async def test_a_reset_loses_no_line_that_arrived() -> None:
    """Whatever the kernel delivered before a reset comes through, in order and without holes."""

    async def behaviour(connection: Connection) -> None:
        await connection.open()
        for start in range(0, len(LINES), 1000):
            await connection.chunk(b"".join(line + b"\r\n" for line in LINES[start : start + 1000]))
        await connection.reset()

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher):
        assert (await watcher.loss())[0] is Reason.CUT
    assert watcher.lines
    assert watcher.lines == LINES[: len(watcher.lines)]


async def test_lines_before_a_damaged_chunk_arrive() -> None:
    """A chunk that is not gzip in a gzip stream costs the connection, not the lines before it."""
    packer = zlib.compressobj(wbits=31)
    data = packer.compress(b"{}\r\n" * 1000) + packer.flush(zlib.Z_SYNC_FLUSH)

    async def behaviour(connection: Connection) -> None:
        await connection.write(head("content-encoding: gzip") + chunked(data) + chunked(b"\xff" * 20))
        await connection.until_closed()

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher):
        assert (await watcher.loss())[0] is Reason.CUT
    assert watcher.lines == [b"{}"] * 1000


async def test_a_damaged_chunk_header_is_not_waited_on_for_ever() -> None:
    """Aiohttp never tells its reader of this one; the silence is noticed."""

    async def behaviour(connection: Connection) -> None:
        await connection.open()
        await connection.chunk(b"{}\r\n")
        await watcher.until(lambda: watcher.lines)
        await connection.write(b"no number\r\n")
        await connection.until_closed()

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher, stall_seconds=0.3):
        assert (await watcher.loss())[0] is Reason.STALL


async def test_gzip_cut_inside_a_line() -> None:
    """Each line that was flushed arrives, though the compressed stream has no end."""
    packer = zlib.compressobj(wbits=31)
    flushed = [packer.compress(line + b"\r\n") + packer.flush(zlib.Z_SYNC_FLUSH) for line in LINES[:500]]

    async def behaviour(connection: Connection) -> None:
        await connection.open("content-encoding: gzip")
        for data in flushed[:-1]:
            await connection.chunk(data)
        await connection.chunk(flushed[-1][:5])

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher):
        assert (await watcher.loss())[0] is Reason.CUT
    assert watcher.lines == LINES[:499]


@pytest.mark.parametrize("end", [b"", b"0\r\n\r\n"], ids=["cut", "clean"])
async def test_a_cut_line_is_kept_as_rejected(end: bytes) -> None:
    """The line that the end of the connection cut is handed over as such, however the answer ended."""

    async def behaviour(connection: Connection) -> None:
        await connection.open()
        await connection.chunk(b'{}\r\n{"data":{"id"')
        await connection.write(end)

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher):
        assert (await watcher.loss())[0] is (Reason.CLEAN_CLOSE if end else Reason.CUT)
    assert watcher.lines == [b"{}"]
    assert watcher.rejects == [(b'{"data":{"id"', DropReason.LINE_CUT)]


async def test_a_whole_post_without_its_line_end_is_kept() -> None:
    """When only CR LF is missing the post is complete."""

    async def behaviour(connection: Connection) -> None:
        await connection.open()
        await connection.chunk(b'{"data":{"id":"1"}}\r')

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher):
        await watcher.loss()
    assert watcher.lines == [b'{"data":{"id":"1"}}']
    assert watcher.rejects == []


async def test_an_overlong_line_is_skipped() -> None:
    """A line over 4 MiB leaves its head as rejected and does not disturb the connection, nor is it lost at its end."""

    async def behaviour(connection: Connection) -> None:
        await connection.open()
        await connection.chunk(b"{}\r\n")
        for end in (b'xx\r\n{"after":1}\r\n', b"x"):
            for _ in range(LINE_BYTES // 65_536):
                await connection.chunk(b"x" * 65_536)
            await connection.chunk(end)
        await connection.finish()

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher):
        assert (await watcher.loss())[0] is Reason.CLEAN_CLOSE
    assert watcher.lines == [b"{}", b'{"after":1}']
    assert watcher.rejects == [(b"x" * HEAD_BYTES, DropReason.LINE_TOO_LONG)] * 2


async def test_a_stall_is_noticed() -> None:
    """An open connection without a byte counts as dead."""
    watcher = Watcher()
    async with FakeX(says(b"{}", end=b""), silent) as x, running(x.url, watcher, stall_seconds=0.2):
        await watcher.until(lambda: len(watcher.losses) == 2)
    reason, detail, _, healable = watcher.losses[1]
    assert (reason, healable) == (Reason.STALL, True)
    assert detail == "X was silent for 0.2 s, without even a keep-alive"


async def test_keep_alives_hold_a_connection() -> None:
    """Empty lines alone, for several times the stall time, are life enough."""

    async def behaviour(connection: Connection) -> None:
        await connection.open()
        for _ in range(10):
            await asyncio.sleep(0.1)
            await connection.chunk(b"\r\n")
        await connection.finish()

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher, stall_seconds=0.4):
        assert (await watcher.loss())[0] is Reason.CLEAN_CLOSE
    assert watcher.events.count("keep_alive") == 10


async def test_an_operational_disconnect_is_named() -> None:
    """The last line of errors says why X closed the connection."""
    line = b'{"errors":[{"title":"operational-disconnect","detail":"maintenance","disconnect_type":"ForceDisconnect"}]}'
    watcher = Watcher()
    async with FakeX(says(b"{}", line, end=b"")) as x, running(x.url, watcher):
        reason, detail, _, _ = await watcher.loss()
    assert reason is Reason.OPERATIONAL_DISCONNECT
    assert detail == "X ended the stream: operational-disconnect: maintenance"


async def test_errors_that_posts_follow_are_no_farewell() -> None:
    """What X said in the middle of the stream does not explain its end."""
    said = asyncio.Event()

    async def behaviour(connection: Connection) -> None:
        await connection.open()
        await connection.chunk(b'{"errors":[{"title":"operational-disconnect"}]}\r\n')
        await watcher.until(lambda: watcher.lines)
        await connection.chunk(b"{}\r\n")
        await connection.finish()
        said.set()

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher):
        assert (await watcher.loss())[0] is Reason.CLEAN_CLOSE
    assert said.is_set()


async def test_errors_of_an_earlier_connection_are_forgotten() -> None:
    """A second drop is not explained by the first one's last line."""
    line = b'{"errors":[{"title":"operational-disconnect"}]}'
    watcher = Watcher()
    async with FakeX(says(line), says(b"{}")) as x, running(x.url, watcher):
        await watcher.until(lambda: len(watcher.losses) == 2)
    assert [loss[0] for loss in watcher.losses] == [Reason.OPERATIONAL_DISCONNECT, Reason.CLEAN_CLOSE]


PROBLEM = "https://api.twitter.com/2/problems/"


@pytest.mark.parametrize(
    ("status", "body", "reason", "healable"),
    [
        (401, b'{"title":"Unauthorized","status":401}', Reason.UNAUTHORIZED, False),
        (429, b'{"title":"x","connection_issue":"TooManyConnections"}', Reason.TOO_MANY_CONNECTIONS, True),
        (429, b'{"title":"UsageCapExceeded"}', Reason.USAGE_CAPPED, False),
        (503, b"<html>busy</html>", Reason.SERVER_ERROR, True),
    ],
)
async def test_a_refusal_is_read(status: int, body: bytes, reason: Reason, healable: bool) -> None:
    """Status and body of a refusal reach the policy, and its verdict the observer."""
    watcher = Watcher()
    async with FakeX(refuses(status, body)) as x, running(x.url, watcher):
        got, detail, _, can_heal = await watcher.loss()
    assert (got, can_heal) == (reason, healable)
    assert str(status) in detail
    assert TOKEN not in detail
    assert "connected" not in watcher.events


async def test_the_reset_header_reaches_the_policy() -> None:
    """A rate limit is waited out."""
    headers = ("date: Sun, 23 Aug 2026 10:00:00 GMT", "x-rate-limit-reset: 1787479500")
    watcher = Watcher()
    async with FakeX(refuses(429, b"{}", *headers)) as x, running(x.url, watcher):
        _, _, retry_seconds, _ = await watcher.loss()
    assert retry_seconds == 301


async def test_a_body_that_never_ends_is_not_waited_for() -> None:
    """A refusal whose body hangs is still that refusal."""

    async def behaviour(connection: Connection) -> None:
        await connection.answer(403, b'{"title":', length=100)
        await connection.until_closed()

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher, stall_seconds=0.2):
        assert (await watcher.loss())[0] is Reason.FORBIDDEN


async def test_a_redirect_is_not_followed() -> None:
    """The token goes to nobody but the configured address."""
    watcher = Watcher()
    async with FakeX() as other:
        location = f"{other.url}/2/tweets/search/stream"
        async with FakeX(refuses(307, b"", f"location: {location}")) as x, running(x.url, watcher):
            reason, detail, _, healable = await watcher.loss()
    assert (reason, healable) == (Reason.REDIRECT, False)
    assert location in detail
    assert other.requests == []


async def test_one_attempt_is_one_request() -> None:
    """A server that hangs up without an answer sees one request for each try that is counted."""

    async def behaviour(connection: Connection) -> None:
        await connection.reset()

    async def hang_up(connection: Connection) -> None:
        pass

    watcher = Watcher()
    async with FakeX(behaviour, hang_up, behaviour, hang_up) as x, running(x.url, watcher):
        await watcher.until(lambda: "connected" in watcher.events)
        assert len(x.requests) == 5
    assert [loss[0] for loss in watcher.losses] == [Reason.NETWORK_ERROR] * 4


async def test_nobody_listens() -> None:
    """A refused connection is a network error with the system's words; X has seen nothing, and has none to count."""
    async with FakeX() as x:
        url = x.url
    clock = asyncio.get_running_loop().time
    reconnect = Reconnect(clock(), Shortest())
    _, reason, detail, healable = await stream_by_hand(url, Watcher(), reconnect=reconnect)._connect_once()
    assert (reason, healable) == (Reason.NETWORK_ERROR, True)
    assert reconnect.budget.spare(clock()) == reconnect.budget.burst
    assert detail.startswith(
        f"X cannot be reached: no connection to {url.removeprefix('http://')} (Connection refused);"
    )
    assert "MILLRACE_X_URL" in detail


async def test_no_answer_at_all() -> None:
    """A server that takes the request and says nothing is given up after the stall time."""

    async def behaviour(connection: Connection) -> None:
        await connection.until_closed()

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher, stall_seconds=0.2):
        reason, detail, _, _ = await watcher.loss()
    assert (reason, detail) == (
        Reason.NETWORK_ERROR,
        "X cannot be reached: it took too long; check MILLRACE_X_URL and the network",
    )


async def test_a_server_that_hangs_up_is_not_called_in_a_hot_loop() -> None:
    """After the burst the budget spaces the connects, even where chance gives no wait at all."""
    watcher = Watcher()
    async with FakeX(*[says()] * 40) as x, running(x.url, watcher):
        await watcher.until(lambda: watcher.losses and watcher.losses[-1][2] > 1)
        assert len(x.requests) == watcher.connects == 20
    assert watcher.losses[-1][2] == pytest.approx(30, abs=5)


async def test_cancelling_closes_the_connection() -> None:
    """X sees the end of the connection at once, and the task ends as cancelled."""
    closed = asyncio.Event()

    async def behaviour(connection: Connection) -> None:
        await silent(connection)
        closed.set()

    watcher = Watcher()
    async with FakeX(behaviour) as x, running(x.url, watcher) as task:
        await watcher.until(lambda: "connected" in watcher.events)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        await asyncio.wait_for(closed.wait(), SECONDS)


async def test_cancelling_while_connecting() -> None:
    """A task that waits for X's answer can be cancelled too."""
    asked = asyncio.Event()
    closed = asyncio.Event()

    async def behaviour(connection: Connection) -> None:
        asked.set()
        await connection.until_closed()
        closed.set()

    async with FakeX(behaviour) as x, running(x.url, Watcher()) as task:
        await asyncio.wait_for(asked.wait(), SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(closed.wait(), SECONDS)


async def test_cancelling_while_waiting() -> None:
    """A task that waits for its next try can be cancelled too."""
    watcher = Watcher()
    async with FakeX(refuses(401, b"{}")) as x, running(x.url, watcher) as task:
        await watcher.loss()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_cancelled_stream_hands_on_what_has_arrived() -> None:
    """Lines that aiohttp holds when the daemon stops are not thrown away."""

    class Stopper(Watcher):
        def connected(self, backfill_minutes: int) -> None:
            super().connected(backfill_minutes)
            task.cancel()

    async def behaviour(connection: Connection) -> None:
        await connection.write(head() + chunked(b"{}\r\n{}\r\n"))
        await connection.until_closed()

    watcher = Stopper()
    async with FakeX(behaviour) as x, running(x.url, watcher) as task:
        await asyncio.wait([task], timeout=SECONDS)
    assert task.cancelled()
    assert watcher.lines == [b"{}", b"{}"]


async def test_a_bug_is_not_swallowed() -> None:
    """An exception in the code that takes the lines ends the task with that exception, and the connection."""

    class Broken(Watcher):
        def on_lines(self, lines: list[bytes]) -> list[bytes]:
            raise TimeoutError("a bug, though it looks like a network error")

    closed = asyncio.Event()

    async def behaviour(connection: Connection) -> None:
        await connection.open()
        await connection.chunk(b"{}\r\n")
        await connection.until_closed()
        closed.set()

    async with FakeX(behaviour) as x, running(x.url, Broken()) as task:
        with pytest.raises(TimeoutError, match="a bug"):
            await asyncio.wait_for(task, SECONDS)
        await asyncio.wait_for(closed.wait(), SECONDS)


class Objector(Watcher):
    """Wants no connection for a while, from some line on."""

    def __init__(self, objection: Cause, after: int) -> None:
        super().__init__()
        self._objection = objection
        self._after = after

    def objection(self) -> Cause | None:
        return self._objection if len(self.lines) >= self._after else None


async def test_a_connection_that_is_not_wanted_any_more() -> None:
    """It is closed, what had come is kept, and no connect is made before the time that was named."""
    watcher = Objector(Cause(Reason.BUDGET_SPENT, "enough", 3600), after=1)
    closed = asyncio.Event()

    async def behaviour(connection: Connection) -> None:
        await connection.write(head() + chunked(b"{}\r\n{}\r\n"))
        await connection.until_closed()
        closed.set()

    async with FakeX(behaviour) as x, running(x.url, watcher):
        reason, detail, delay, healable = await watcher.loss()
        await asyncio.wait_for(closed.wait(), SECONDS)
        assert len(x.requests) == 1
    assert (reason, delay, healable) == (Reason.BUDGET_SPENT, 3600, False)
    assert detail.startswith("enough; ")
    assert watcher.lines == [b"{}", b"{}"]


async def test_a_connection_that_is_not_wanted_at_all() -> None:
    """X is not asked."""
    watcher = Objector(Cause(Reason.BUDGET_SPENT, "enough", 3600), after=0)
    async with FakeX() as x, running(x.url, watcher):
        assert (await watcher.loss())[0] is Reason.BUDGET_SPENT
        assert x.requests == []


async def test_an_empty_connection_is_replaced() -> None:
    """An objection without a time is a loss like any other: the ladder decides."""

    async def behaviour(connection: Connection) -> None:
        await connection.open()
        await connection.chunk(b"\r\n")
        await connection.until_closed()

    class Impatient(Watcher):
        def objection(self) -> Cause | None:
            first = self.events.count("connected") == 1 and not self.losses
            return Cause(Reason.EMPTY, "nothing comes") if first else None

    watcher = Impatient()
    async with FakeX(behaviour) as x, running(x.url, watcher):
        await watcher.until(lambda: watcher.events.count("connected") == 2)
    assert watcher.losses[0][:2] == (Reason.EMPTY, "nothing comes")


async def test_backfill_is_asked_for() -> None:
    """The number of minutes is part of the query."""
    watcher = Watcher()
    watcher.wants_backfill = 3
    async with FakeX() as x, running(x.url, watcher):
        await watcher.until(lambda: "connected" in watcher.events)
    assert b"&backfill_minutes=3 HTTP/1.1" in x.requests[0]


@pytest.mark.parametrize("status", [400, 403])
async def test_backfill_that_is_refused(status: int) -> None:
    """The same request without it succeeds, so it was the backfill; whoever asked for it learns so."""
    watcher = Watcher()
    watcher.wants_backfill = 1
    body = b'{"title":"Invalid Request","errors":[{"message":"not for you"}]}'
    async with FakeX(refuses(status, body)) as x, running(x.url, watcher):
        await watcher.until(lambda: "learnt: no backfill" in watcher.events)
    assert [b"backfill_minutes" in request for request in x.requests] == [True, False]
    reason, detail, _, healable = watcher.losses[0]
    assert (reason, healable) == (Reason.BACKFILL_REFUSED, True)
    assert detail == f"X answered {status}: Invalid Request: not for you; trying without backfill"


async def test_a_bad_request_is_not_blamed_on_backfill() -> None:
    """If it is refused without backfill too, nothing is learnt, and the reason is X's."""
    watcher = Watcher()
    watcher.wants_backfill = 1
    bad = refuses(400, b'{"title":"Invalid Request"}')
    async with FakeX(bad, bad) as x, running(x.url, watcher):
        await watcher.until(lambda: len(watcher.losses) == 2)
    assert [loss[0] for loss in watcher.losses] == [Reason.BACKFILL_REFUSED, Reason.BAD_REQUEST]
    assert "learnt: no backfill" not in watcher.events


class FakeSlot:
    """Writes down what it is asked, and frees the slot."""

    def __init__(self) -> None:
        self.learnt: list[float] = []
        self.asked = asyncio.Event()
        self.freed = 0

    async def learn(self, connected_at: float, token: str) -> None:
        assert token == TOKEN
        self.learnt.append(connected_at)
        self.asked.set()
        await asyncio.Event().wait()

    async def free(self, token: str) -> bool:
        assert token == TOKEN
        self.freed += 1
        return True


CROWDED = refuses(429, b'{"title":"x","connection_issue":"TooManyConnections"}')


async def test_our_own_ghost_is_ended_from_the_second_refusal_on() -> None:
    """The first is waited out, because most slots are free by then; after the second the slot is freed."""
    slot = FakeSlot()
    watcher = Watcher()
    async with FakeX(CROWDED, CROWDED) as x:
        stream = stream_by_hand(x.url, watcher, slot=slot)
        first = await stream._connect_once()
        assert (first.reason, first.delay, slot.freed) == (Reason.TOO_MANY_CONNECTIONS, 5, 0)
        second = await stream._connect_once()
        assert (second.reason, second.delay, slot.freed) == (Reason.TOO_MANY_CONNECTIONS, 1, 1)


async def test_a_connection_between_refusals_begins_the_count_anew() -> None:
    """A refusal long ago and one of now are not two: the slot may be free the next time."""
    slot = FakeSlot()

    async def lives(connection: Connection) -> None:
        await connection.open("date: Sun, 23 Aug 2026 10:00:00 +999999999999999")

    async with FakeX(CROWDED, lives, CROWDED) as x:
        stream = stream_by_hand(x.url, Watcher(), slot=slot)
        for _ in range(3):
            verdict = await stream._connect_once()
        assert (verdict.reason, slot.freed) == (Reason.TOO_MANY_CONNECTIONS, 0)
    assert slot.learnt == [], "the date is none"


async def test_a_connection_is_learnt_while_it_stands() -> None:
    """The moment of the 200, by X's clock, says which one it is; the learning ends with the connection."""
    slot = FakeSlot()
    watcher = Watcher()

    async def behaviour(connection: Connection) -> None:
        await connection.open("date: Sun, 23 Aug 2026 10:00:00 GMT")
        await slot.asked.wait()

    async with FakeX(behaviour) as x, running(x.url, watcher, slot=slot):
        assert (await watcher.loss())[0] is Reason.CUT
    assert slot.learnt == [1787479200]


async def test_new_rules_end_the_wait_for_rules() -> None:
    """After a 409 the next try comes at once when rules have been added; after anything else it does not."""
    watcher = Watcher()

    async with FakeX(refuses(409, b"{}"), refuses(401, b"{}")) as x:
        stream = stream_by_hand(x.url, watcher, reconnect=Reconnect(0, Longest()))
        task = asyncio.create_task(stream.run())
        await watcher.until(lambda: stream._waiting_for is Reason.NO_RULES)
        stream.rules_changed()
        await watcher.until(lambda: len(watcher.losses) == 2)
        stream.rules_changed()
        task.cancel()
        await asyncio.wait([task])
        assert len(x.requests) == 2
    assert [loss[0] for loss in watcher.losses] == [Reason.NO_RULES, Reason.UNAUTHORIZED]


async def test_a_token_that_was_replaced_is_tried_at_once() -> None:
    """After a 401 the next connect takes what is set by then; only where that is the same there is a wait."""
    watcher = Watcher()
    async with FakeX(refuses(401, b"{}"), refuses(401, b"{}")) as x:
        stream = stream_by_hand(x.url, watcher, FakeToken("AAA", "BBB"))
        first = await stream._connect_once()
        assert (first.reason, first.delay, first.healable) == (Reason.TOKEN_REPLACED, 0, True)
        second = await stream._connect_once()
        assert (second.reason, second.delay, second.healable) == (Reason.UNAUTHORIZED, 60, False)
    assert [b"Bearer BBB" in request for request in x.requests] == [False, True]


async def test_no_token_for_a_connect() -> None:
    """X gives none: that is the reason why there is no connection, and no connect is counted."""
    watcher = Watcher()
    async with FakeX() as x:
        verdict = await stream_by_hand(x.url, watcher, FakeToken())._connect_once()
    assert (verdict.reason, watcher.connects, x.requests) == (Reason.UNAUTHORIZED, 0, [])
