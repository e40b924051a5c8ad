import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import NamedTuple

import pytest

from local.posts import Post
from local.x_api.answers import disconnect_line
from local.x_api.endings import Ending
from local.x_api.layout import Layout
from local.x_api.server import XApi
from local.x_api.settings import Settings
from tests.elastic_loop import elastic_time

CRLF = b"\r\n"
GZIP = "accept-encoding: gzip\r\n"
# A character of two bytes, an escape, and what `str.splitlines` takes for the end of a line.
TEXT = "millrace M\u00fchle \u2028 \u0085 " + r"\"quoted\" \u0000 \n"


class Numbered:
    """A source of equal posts with the ids 1, 2, 3 ...; `size` is roughly that of a line in bytes."""

    takes_rules = False

    def __init__(self, size: int = 0) -> None:
        self._number = 0
        self._text = TEXT + "x" * size

    def take(self, now_ms: int) -> Post:
        self._number += 1
        return Post(str(self._number), "author", self.line(self._number), 0, None)

    def line(self, number: int) -> bytes:
        return f'{{"data":{{"id":"{number}","author_id":"author","text":"{self._text}"}}}}'.encode()


class Client(NamedTuple):
    """A client that sees the chunks as they are."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> bytes:
        return await self.reader.readuntil(CRLF + CRLF)

    async def chunk(self) -> bytes:
        """Read one chunk; the last one is empty."""
        size = int(await self.reader.readuntil(CRLF), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def chunks_to_end(self) -> list[bytes]:
        """Read all chunks until the connection or the body ends; an empty one at the end is the last chunk."""
        chunks: list[bytes] = []
        try:
            while not chunks or chunks[-1]:
                chunks.append(await self.chunk())
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        return chunks


@asynccontextmanager
async def serving(settings: Settings, source: Numbered | None = None) -> AsyncIterator[XApi]:
    """Serve posts that all match."""
    async with XApi(source or Numbered(), settings) as api:
        api.rules.change({"add": [{"value": "millrace"}]}, dry_run=False, delete_all=False)
        yield api


@asynccontextmanager
async def connected(api: XApi, headers: str = "") -> AsyncIterator[Client]:
    """Ask for the filtered stream."""
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    request = f"GET /2/tweets/search/stream HTTP/1.1\r\nhost: api.x.com\r\nauthorization: Bearer t\r\n{headers}\r\n"
    writer.write(request.encode())
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def streaming(
    settings: Settings, source: Numbered | None = None, headers: str = ""
) -> AsyncIterator[tuple[XApi, Client]]:
    """Serve, ask for the filtered stream, and read the head of the answer."""
    async with serving(settings, source) as api, connected(api, headers) as client:
        await client.head()
        yield api, client


async def test_headers_come_before_any_post_and_are_lower_case() -> None:
    """The answer begins at once, although nothing is to be said."""
    async with serving(Settings(limit=0)) as api, connected(api) as client:
        head = (await client.head()).decode()
        names = [line.partition(":")[0] for line in head.splitlines()[1:] if line]
        assert head.startswith("HTTP/1.1 200 OK\r\n")
        assert names == [name.lower() for name in names]
        assert "transfer-encoding: chunked" in head
        assert {"x-rate-limit-limit", "x-rate-limit-remaining", "x-rate-limit-reset", "set-cookie"} <= set(names)


async def test_lines_leave_in_the_chunks_of_the_layout() -> None:
    """Here with a border inside each CR LF."""
    line = Numbered().line(1)
    async with streaming(Settings(rate=0, limit=1, layout=Layout.CRLF)) as (_, client):
        assert [await client.chunk() for _ in range(2)] == [line + b"\r", b"\n"]


async def test_batch_layout_puts_waiting_lines_into_one_chunk() -> None:
    """What waits together leaves together, so that a fast stream needs few writes."""
    source = Numbered()
    async with streaming(Settings(rate=0, limit=50), source) as (_, client):
        assert b"".join(source.line(number) + CRLF for number in range(1, 51)) == await client.chunk()


async def test_keep_alive_when_idle() -> None:
    """CR LF comes again and again while there is nothing to send."""
    async with streaming(Settings(limit=0, keep_alive=0.02)) as (api, client):
        assert [await client.chunk() for _ in range(3)] == [CRLF] * 3
        assert api.stats()["keep_alives"] >= 3


@elastic_time
async def test_keep_alives_come_after_20_seconds_and_a_little() -> None:
    """The little is a matter of chance, and some do not come at all if that is asked for."""
    async with streaming(Settings(limit=0)) as (api, client):
        loop = asyncio.get_running_loop()
        moments = [loop.time()]
        for number in range(6):
            if number == 4:
                api.faults.inject("missed_beats", beats=2)
            assert await client.chunk() == CRLF
            moments.append(loop.time())
        pauses = [after - before for before, after in pairwise(moments)]
        assert all(19.9 < pause < 21.6 for pause in pauses[1:4])
        assert len({round(pause, 2) for pause in pauses[1:4]}) == 3
        assert 59.9 < pauses[4] < 64.6
        assert 19.9 < pauses[5] < 21.6


@elastic_time
async def test_trickle_is_so_many_bytes_a_second() -> None:
    """A line of 200 bytes takes 40 seconds at 5; afterwards the stream runs again."""
    source = Numbered()
    size = len(source.line(1)) + 2
    async with streaming(Settings(rate=0.001, limit=2), source) as (api, client):
        await api.feed.until(lambda: api.feed.streams)
        api.faults.inject("trickle", seconds=1000, bytes=5)
        api.feed.set_rate(0)
        first = await client.chunk()
        began = asyncio.get_running_loop().time()
        rest = [await client.chunk() for _ in range((2 * size - 1) // 5)]
        assert {len(chunk) for chunk in (first, *rest[:-1])} == {5}
        assert first + b"".join(rest) == source.line(1) + CRLF + source.line(2) + CRLF
        assert round(asyncio.get_running_loop().time() - began) == len(rest)


@pytest.mark.parametrize("layout", [Layout.BATCH, Layout.SPLIT])
async def test_gzip_can_be_read_chunk_by_chunk(layout: Layout) -> None:
    """Each write is flushed: what a client has received it can inflate without waiting for more."""
    source = Numbered()
    async with (
        serving(Settings(rate=0, limit=1, layout=layout), source) as api,
        connected(api, GZIP) as client,
    ):
        assert b"content-encoding: gzip" in await client.head()
        inflate = zlib.decompressobj(wbits=31)
        received = b""
        while not received.endswith(CRLF):
            piece = inflate.decompress(await client.chunk())
            assert piece
            received += piece
        assert source.line(1) + CRLF == received


async def test_gzip_ends_well_formed_with_the_last_chunk() -> None:
    """A clean end closes the compressed stream too."""
    async with streaming(Settings(rate=0, limit=1), headers=GZIP) as (api, client):
        first = await client.chunk()
        api.faults.inject("last_chunk")
        inflate = zlib.decompressobj(wbits=31)
        inflate.decompress(first + b"".join(await client.chunks_to_end()))
        assert inflate.eof


async def test_no_gzip_unless_accepted() -> None:
    """A client that does not ask for gzip gets none."""
    async with serving(Settings(limit=0)) as api, connected(api) as client:
        assert b"content-encoding" not in await client.head()


@pytest.mark.parametrize(
    ("ending", "tail"),
    [
        (Ending.LAST_CHUNK, [b""]),
        (Ending.FIN, []),
        (Ending.CUT, []),
        (
            Ending.OPERATIONAL_DISCONNECT,
            [disconnect_line("OperationalDisconnect") + CRLF],
        ),
    ],
)
async def test_orderly_endings(ending: Ending, tail: list[bytes]) -> None:
    """What waits is written first; then come the announcement, the last chunk, or nothing."""
    source = Numbered()
    async with streaming(Settings(rate=0, limit=3), source) as (api, client):
        first = await client.chunk()
        api.faults.inject(ending)
        assert tail == await client.chunks_to_end()
        assert b"".join(source.line(number) + CRLF for number in (1, 2, 3)) == first
        await api.feed.until(lambda: not api.feed.streams)
        assert (ending, 3, 0) == _end_of_first(api)


@pytest.mark.parametrize(
    ("ending", "tail"),
    [
        (Ending.FIN_MID_LINE, []),
        (Ending.LAST_CHUNK_MID_LINE, [b""]),
        (Ending.FIN_MID_BLOCK, []),
        (Ending.LAST_CHUNK_MID_BLOCK, [b""]),
    ],
)
async def test_endings_in_the_middle_of_a_line(ending: Ending, tail: list[bytes]) -> None:
    """Half of the next line comes; the ledger calls it discarded."""
    source = Numbered()
    async with streaming(Settings(rate=0.001, limit=1), source) as (api, client):
        await api.feed.until(lambda: api.feed.streams)
        (stream,) = api.feed.streams
        api.faults.inject(ending)
        api.feed.set_rate(0)
        line = source.line(1)
        assert await client.chunks_to_end() == [line[: len(line) // 2], *tail]
        await api.feed.until(lambda: not api.feed.streams)
        assert (ending, 0, 1) == _end_of_first(api)
        assert not stream.takes_posts


@pytest.mark.parametrize("ending", [Ending.FIN_MID_BLOCK, Ending.LAST_CHUNK_MID_BLOCK])
async def test_gzip_can_end_in_the_middle_of_a_block(ending: Ending) -> None:
    """What came of the compressed stream can be inflated, and is neither the whole line nor an end."""
    source = Numbered()
    async with streaming(Settings(rate=0.001, limit=1), source, headers=GZIP) as (api, client):
        await api.feed.until(lambda: api.feed.streams)
        api.faults.inject(ending)
        api.feed.set_rate(0)
        inflate = zlib.decompressobj(wbits=31)
        text = inflate.decompress(b"".join(await client.chunks_to_end()))
        assert source.line(1).startswith(text)
        assert len(text) < len(source.line(1))
        assert not inflate.eof


async def test_operational_disconnect_need_not_be_told() -> None:
    """X warns that the line may not come; the Connections API knows the reason all the same."""
    async with streaming(Settings(limit=0)) as (api, client):
        await api.feed.until(lambda: api.feed.streams)
        api.faults.inject("operational_disconnect", told=False)
        assert await client.chunks_to_end() == []
        assert _end_of_first(api) == (Ending.OPERATIONAL_DISCONNECT, 0, 0)


@elastic_time
async def test_reset_takes_back_what_it_destroys() -> None:
    """Lines that the client's system had not confirmed are discarded: all that is called written can be read."""
    source = Numbered(size=2000)
    async with streaming(Settings(rate=0, limit=20_000), source) as (api, client):
        # Nobody reads any more, so the systems of both ends fill up.
        await api.feed.until(lambda: api.ledger.counts["queued"] and api.ledger.counts["written"] > 1000)
        await asyncio.sleep(0.1)
        api.faults.inject("reset")
        await api.feed.until(lambda: not api.feed.streams)
        _, written, discarded = _end_of_first(api)
        received = b"".join(await client.chunks_to_end()).split(CRLF)
        assert discarded
        assert [source.line(number) for number in range(1, written + 1)] == received[:written]


async def test_reset_is_a_reset() -> None:
    """The client sees RST, not an end."""
    async with streaming(Settings(rate=0, limit=1)) as (api, client):
        await client.chunk()
        api.faults.inject("reset")
        with pytest.raises(ConnectionResetError):
            await client.reader.read()
        await api.feed.until(lambda: not api.feed.streams)
        assert _end_of_first(api) == (Ending.RESET, 1, 0)


async def test_stall_sends_no_byte_and_loses_nothing() -> None:
    """Neither posts nor keep-alives come while it lasts; the posts come afterwards."""
    async with streaming(Settings(limit=0, keep_alive=0.01)) as (api, client):
        await client.chunk()
        begun = asyncio.get_running_loop().time()
        api.faults.inject("stall", seconds=0.2)
        before = api.stats()["keep_alives"]
        api.faults.inject("line", line="late")
        assert await _keep_alives_before(client, b"late\r\n") == before - 1
        assert asyncio.get_running_loop().time() - begun >= 0.19


async def test_silence_sends_keep_alives_only() -> None:
    """Posts wait while keep-alives go on."""
    async with streaming(Settings(limit=0, keep_alive=0.02)) as (api, client):
        await client.chunk()
        api.faults.inject("silence", seconds=0.3)
        before = api.stats()["keep_alives"]
        api.faults.inject("line", line="late")
        assert await _keep_alives_before(client, b"late\r\n") > before - 1


async def test_an_ending_breaks_a_stall() -> None:
    """A stalled stream can be ended; what waited is written first."""
    async with streaming(Settings(rate=0, limit=1)) as (api, client):
        await client.chunk()
        api.faults.inject("stall", seconds=60)
        api.faults.inject("line", line="late")
        api.faults.inject("last_chunk")
        assert await client.chunks_to_end() == [b"late\r\n", b""]


async def test_empty_stream_is_alive_without_posts() -> None:
    """Keep-alives go on, and the posts that fall due are unsent."""
    async with streaming(Settings(rate=0.001, limit=200, keep_alive=0.02)) as (api, client):
        await api.feed.until(lambda: api.feed.streams)
        api.faults.inject("empty")
        api.feed.set_rate(100_000)
        await api.feeding
        assert [await client.chunk() for _ in range(3)] == [CRLF] * 3
        assert [(row.state, row.connection) for row in api.ledger.rows()] == [("unsent", 1)] * 200


async def test_slow_reader_is_dropped_and_its_queue_is_counted() -> None:
    """Over its limit the queue is discarded; all that is called written can still be read."""
    source = Numbered(size=50_000)
    settings = Settings(rate=20_000, limit=2000, queue_limit=1_000_000)
    async with streaming(settings, source) as (api, client):
        await api.feed.until(lambda: api.ledger.connections[0].ending != "open")
        await api.feed.until(lambda: api.feed.exhausted)
        ending, written, discarded = _end_of_first(api)
        assert ending == Ending.SLOW_READER
        assert discarded * len(source.line(1)) > 1_000_000
        received = b"".join(await client.chunks_to_end()).split(CRLF)
        assert [source.line(number) for number in range(1, written + 1)] == received[:written]
        assert written + discarded + api.ledger.counts["unsent"] == 2000


async def test_queue_has_a_limit_of_posts_too() -> None:
    """Over it the reader is too slow, however small the posts are."""
    settings = Settings(rate=100_000, limit=50_000, queue_posts=1000)
    async with streaming(settings, Numbered(size=3000)) as (api, _):
        await api.feed.until(lambda: api.ledger.connections[0].ending != "open")
        ending, _, discarded = _end_of_first(api)
        assert (ending, discarded > 1000) == (Ending.SLOW_READER, True)


async def test_slow_reader_can_be_told() -> None:
    """The news stands behind what it has not read."""
    settings = Settings(rate=20_000, limit=2000, queue_limit=1_000_000, tells_slow_readers=True)
    async with streaming(settings, Numbered(size=50_000)) as (api, client):
        await api.feed.until(lambda: api.ledger.connections[0].ending != "open")
        assert (await client.chunks_to_end())[-1] == disconnect_line("SlowReader") + CRLF
        assert _end_of_first(api)[0] == Ending.SLOW_READER


async def test_reset_does_not_wait_for_another_ending() -> None:
    """An orderly end waits for a client that does not read; a reset comes all the same."""
    settings = Settings(rate=20_000, queue_limit=1_000_000_000)
    async with streaming(settings, Numbered(size=50_000)) as (api, _):
        await api.feed.until(lambda: api.ledger.counts["queued"] > 100)
        api.faults.inject("fin")
        api.faults.inject("reset")
        await api.feed.until(lambda: not api.feed.streams)
        ending, _, discarded = _end_of_first(api)
        assert ending == Ending.RESET
        assert discarded > 100


async def test_reader_sets_the_pace_with_rate_zero() -> None:
    """However slow the client is, the queue does not grow: all posts are written, in order."""
    source = Numbered(size=20_000)
    settings = Settings(rate=0, limit=500, queue_limit=2_000_000)
    async with streaming(settings, source) as (api, client):
        lines = b"".join(source.line(number) + CRLF for number in range(1, 501))
        received = bytearray()
        while len(received) < len(lines):
            received += await client.chunk()
        assert lines == received
        await api.feed.until(lambda: api.ledger.counts["written"] == 500)


async def test_client_that_closes_frees_its_slot() -> None:
    """The end of the client is seen at once."""
    async with serving(Settings(limit=0)) as api:
        async with connected(api) as client:
            await client.head()
        await api.feed.until(lambda: not api.feed.streams)
        assert _end_of_first(api) == (Ending.CLIENT, 0, 0)


async def test_shutdown_ends_open_streams() -> None:
    """When the stand-in stops, its streams end and the ledger says why."""
    async with AsyncExitStack() as stack:
        async with serving(Settings(limit=0)) as api:
            client = await stack.enter_async_context(connected(api))
            await client.head()
        assert await client.chunks_to_end() == []
        assert _end_of_first(api) == (Ending.SHUTDOWN, 0, 0)


async def _keep_alives_before(client: Client, chunk: bytes) -> int:
    """Read up to a chunk and return how many keep-alives, and nothing else, came before it."""
    number = 0
    while (read := await client.chunk()) == CRLF:
        number += 1
    assert read == chunk
    return number


def _end_of_first(api: XApi) -> tuple[str, int, int]:
    record = api.ledger.connections[0]
    return record.ending, record.written, record.discarded
