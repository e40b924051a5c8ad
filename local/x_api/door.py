"""
The address of the X stand-in: open, closed, or a hole in which connections vanish.

Connections that are open live on whatever happens to the door. The admin side is behind the same door: what is to
happen while it is closed has to be asked for before, or over a connection that is already open.
"""

import asyncio
import socket
import ssl
from contextlib import ExitStack, suppress

from aiohttp import web

from local.x_api.clock import Clock

# More than a system accepts for a program that does not: the rest of the SYNs it then drops.
_FILLERS = 3


class Door:
    """
    Listens; `host`, `port` (0 for any free one) and `tls` as for aiohttp.

    Attributes:
        port: where it listens; from the first opening on always the same.
    """

    def __init__(self, clock: Clock, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._clock = clock
        self._host, self._tls = host, tls
        self._site: web.TCPSite | None = None
        self._runner: web.AppRunner | None = None
        self._shut = asyncio.Lock()
        self.port = port

    async def open(self, runner: web.AppRunner) -> None:
        """Listen for the first time; raises OSError if that is not possible."""
        self._runner = runner
        await self._listen()

    async def close(self, seconds: float, *, silent: bool) -> None:
        """Let nobody in for some seconds: refuse, or with `silent` do not answer at all."""
        async with self._shut:
            assert self._site is not None
            await self._site.stop()
            with ExitStack() as stack:
                if silent:
                    self._dig_hole(stack)
                await self._clock.sleep(seconds)
            await self._listen()

    async def _listen(self) -> None:
        assert self._runner is not None
        self._site = web.TCPSite(self._runner, self._host, self.port, ssl_context=self._tls)
        await self._site.start()
        self.port = self._site.port

    def _dig_hole(self, stack: ExitStack) -> None:
        """Listen without accepting, and fill the queue of those who wait."""
        listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._host, self.port))
        listener.listen(0)
        for _ in range(_FILLERS):
            filler = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect((self._host, self.port))
