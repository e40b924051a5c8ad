"""
SOURCE=stdin: JSON lines from a pipe or a file, until its end.

Unlike X, a pipe can be held back: nothing is read while there is no room, and so nothing is ever shed.
"""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable

from service.core.limits import KIB
from service.core.lines import LineSplitter
from service.core.records import DropReason

_CHUNK_BYTES = 256 * KIB


class Stdin:
    """
    Reads lines from a file descriptor.

    Args:
        descriptor: of a pipe, a socket, a terminal or a file.
        take: takes complete lines, in order; must not wait.
        reject: takes what is no whole line, with the reason.
        room: waits until lines may be handed on.
    """

    def __init__(
        self,
        descriptor: int,
        take: Callable[[list[bytes]], object],
        reject: Callable[[bytes, DropReason], None],
        room: Callable[[], Awaitable[None]],
    ) -> None:
        self._descriptor = descriptor
        self._take = take
        self._reject = reject
        self._room = room

    async def run(self) -> None:
        """Read until the end of the input."""
        splitter = LineSplitter()
        try:
            while True:
                await self._room()
                await self._readable()
                chunk = os.read(self._descriptor, _CHUNK_BYTES)
                if not chunk:
                    break
                self._hand_on(splitter, splitter.feed(chunk))
        except asyncio.CancelledError:
            if (cut := splitter.end()) is not None:
                self._reject(cut, DropReason.LINE_CUT)
            raise
        # The last line of a file may lack its line end; if it was cut, it is no JSON and is rejected as such.
        last = splitter.end()
        self._hand_on(splitter, [] if last is None else [last])

    def _hand_on(self, splitter: LineSplitter, lines: list[bytes]) -> None:
        if lines:
            self._take(lines)
        for head in splitter.overlong:
            self._reject(head, DropReason.LINE_TOO_LONG)
        splitter.overlong.clear()

    async def _readable(self) -> None:
        """Wait until a read will not block. A file never blocks, and no event loop can watch one."""
        if stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        try:
            loop.add_reader(self._descriptor, readable.set)
        except PermissionError:  # /dev/null, which a container without -i has: it never blocks either
            await asyncio.sleep(0)
            return
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._descriptor)
