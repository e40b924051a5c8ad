"""A server on loopback that says, byte by byte, what a test has written for it."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Self


class Connection:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def request(self) -> bytes:
        return await self._reader.readuntil(b"\r\n\r\n")

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, status: int, body: bytes, *headers: str, length: int | None = None) -> None:
        fields = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body) if length is None else length}", *headers]
        await self.write("\r\n".join([*fields, "", ""]).encode() + body)

    async def open(self, *headers: str) -> None:
        await self.write(head(*headers))

    async def chunk(self, data: bytes) -> None:
        await self.write(chunked(data))

    async def finish(self) -> None:
        await self.write(b"0\r\n\r\n")

    async def reset(self) -> None:
        peer = self._writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def until_closed(self) -> None:
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65_536):
                pass


def head(*headers: str) -> bytes:
    """Make the beginning of a stream."""
    return "\r\n".join(["HTTP/1.1 200 OK", "transfer-encoding: chunked", *headers, "", ""]).encode()


def chunked(data: bytes) -> bytes:
    """Frame one chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


Behaviour = Callable[[Connection], Awaitable[None]]


class FakeX:
    """
    A server that treats each connection as the script says, and closes it when the behaviour returns.

    The connections after the script's end are answered with a stream that stays silent.
    """

    def __init__(self, *script: Behaviour) -> None:
        self.requests: list[bytes] = []
        self._script = list(script)
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    @property
    def url(self) -> str:
        host, port = self._server.sockets[0].getsockname()
        return f"http://{host}:{port}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._handlers.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        try:
            self.requests.append(await connection.request())
            behaviour = self._script.pop(0) if self._script else silent
            await behaviour(connection)
        finally:
            writer.close()


async def silent(connection: Connection) -> None:
    """Open the stream and say nothing."""
    await connection.open()
    await connection.until_closed()


def refuses(status: int, body: bytes, *headers: str) -> Behaviour:
    """Answer with something that is no stream."""

    async def behaviour(connection: Connection) -> None:
        await connection.answer(status, body, *headers)

    return behaviour
