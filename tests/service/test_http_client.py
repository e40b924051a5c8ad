import asyncio
import ssl
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from service import __version__
from service.http_client import BODY_BYTES, plain, session, start_of
from tests.service.scripted_server import Connection, FakeX, chunked, head, refuses

SHORT = aiohttp.ClientTimeout(total=0.05)
LONG = aiohttp.ClientTimeout(total=10)


async def trouble(url: str, patience: aiohttp.ClientTimeout = LONG, **options: object) -> str:
    """Ask, and say what goes wrong."""
    async with session("any", patience) as asking:
        with pytest.raises((aiohttp.ClientError, OSError)) as raised:
            async with asking.get(url, **options) as response:  # type: ignore[arg-type]
                await response.read()
    return plain(raised.value)


def place(url: str) -> str:
    """Give host and port of an URL."""
    return url.partition("//")[2]


async def hang_up(connection: Connection) -> None:
    """Take the request, and close the connection."""


async def reset(connection: Connection) -> None:
    """Break the connection off."""
    await connection.reset()


async def fall_silent(connection: Connection) -> None:
    """Take the request, and do nothing more."""
    await connection.until_closed()


async def stop_half_way(connection: Connection) -> None:
    """Begin an answer."""
    await connection.write(head() + chunked(b"half")[:-2])


@pytest.mark.parametrize(
    ("behaviour", "patience", "words"),
    [
        (hang_up, LONG, "the server hung up"),
        (reset, LONG, "Connection reset by peer"),
        (fall_silent, SHORT, "it took too long"),
        (stop_half_way, LONG, "the answer is cut short or damaged"),
    ],
)
async def test_what_ends_an_answer(
    behaviour: Callable[[Connection], Awaitable[None]], patience: aiohttp.ClientTimeout, words: str
) -> None:
    """Each way of not answering has its few words, none of them a `repr`."""
    async with FakeX(behaviour, behaviour) as x:
        assert words == await trouble(x.url, patience)


async def test_nobody_listens() -> None:
    """The words name host, port and the system's reason, also for the proxy and for a host with two addresses."""
    async with FakeX() as x:
        url = x.url
    port = url.rpartition(":")[2]
    assert await trouble(url) == f"no connection to {place(url)} (Connection refused)"
    assert await trouble(f"http://localhost:{port}") == f"no connection to localhost:{port} (Connection refused)"
    through = await trouble("http://x.invalid", proxy=url)
    assert through == f"no connection to the proxy {place(url)} (Connection refused)"


async def test_no_such_host() -> None:
    """A name that nobody knows is no trouble of the network, but of the setting."""
    assert await trouble("http://nowhere.invalid") == "there is no address for nowhere.invalid"


@pytest.mark.parametrize(("says", "reason"), [(b"no TLS\r\n", "[SSL"), (b"", "the server hung up")])
async def test_no_tls(says: bytes, reason: str) -> None:
    """A server that speaks none, or hangs up before it is set up, is named."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)  # or its end would be a reset
        writer.write(says)
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        words = await trouble(f"https://127.0.0.1:{port}")
    assert words.startswith(("no TLS with", "no connection to"))
    assert f" 127.0.0.1:{port} ({reason}" in words


async def test_a_certificate_that_is_not_trusted() -> None:
    """The reason is OpenSSL's."""
    key = aiohttp.client_reqrep.ConnectionKey("x.test", 443, True, True, None, None, None)
    fault = ssl.SSLCertVerificationError(1, "certificate has expired")
    words = plain(aiohttp.ClientConnectorCertificateError(key, fault))
    assert words.startswith("x.test is not trusted (")
    assert "certificate has expired" in words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (aiohttp.ClientError(), "ClientError"),
        (aiohttp.InvalidURL("x"), "x"),
        (OSError("Multiple exceptions: one,\n two"), "Multiple exceptions: one, two"),
        (FileNotFoundError(2, "No such file or directory", "ca.pem"), "No such file or directory"),
        (aiohttp.ClientOSError(), "the server hung up"),
    ],
)
def test_what_else_may_come(error: Exception, words: str) -> None:
    """There are always words, on one line."""
    assert words == plain(error)


async def test_each_request_carries_the_authorisation() -> None:
    """That is what a session is made for; and each says who asks, with the version, as X wants it."""
    async with FakeX(refuses(200, b"{}")) as x, session("Bearer token", LONG) as asking:
        await asking.get(x.url)
    assert b"Authorization: Bearer token\r\n" in x.requests[0]
    assert f"User-Agent: Millrace/{__version__}\r\n".encode() in x.requests[0]


async def test_of_a_refusal_the_start_is_read() -> None:
    """A page without end, or one that stops half-way, cannot hold anybody up."""

    async def endless(connection: Connection) -> None:
        await connection.write(head() + chunked(b"x" * BODY_BYTES) + chunked(b"more"))
        await connection.until_closed()

    async def slow(connection: Connection) -> None:
        await connection.write(head() + chunked(b"half"))
        await connection.until_closed()

    async with FakeX(endless, slow, stop_half_way) as x, session("any", LONG) as asking:
        bodies = []
        for seconds in (10, 0.05, 10):
            async with asyncio.timeout(10), asking.get(x.url) as response:
                bodies.append(await start_of(response, seconds))
                response.close()
    assert bodies == [b"x" * BODY_BYTES, b"half", b"half"]
