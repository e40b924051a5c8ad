"""
The time of the X stand-in: seconds since 1970, at a speed, and put forward on demand.

All that X does by the clock goes by it: keep-alives, rate limit windows, ghosts, faults, the ids of posts. Only the
rate of the posts is in seconds of this machine. With a speed of 60 a window of a quarter of an hour lasts 15 s.
"""

import asyncio
import time
from contextlib import suppress


class Clock:
    """
    The time of one stand-in; it begins when it is first asked, which must be in a running loop.

    Args:
        speed: its seconds in one of this machine.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self._speed = speed
        # One and the same moment on this clock and on the loop's, which carries it.
        self._origin: tuple[float, float] | None = None
        self._waiting: set[asyncio.Event] = set()

    def now(self) -> float:
        """Return the present moment."""
        passed = asyncio.get_running_loop().time()
        if self._origin is None:
            self._origin = time.time(), passed
        moment, then = self._origin
        return moment + (passed - then) * self._speed

    def advance(self, seconds: float) -> None:
        """Put it forward; whoever waits for a moment that is then past goes on at once."""
        self._origin = self.now() + seconds, asyncio.get_running_loop().time()
        for event in self._waiting:
            event.set()

    async def wait(self, event: asyncio.Event, moment: float) -> None:
        """Wait for an event, a moment or an advance, whichever comes first; an advance sets the event."""
        self._waiting.add(event)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout((moment - self.now()) / self._speed):
                    await event.wait()
        finally:
            self._waiting.discard(event)

    async def sleep(self, seconds: float) -> None:
        """Wait for so many of its seconds."""
        until = self.now() + seconds
        event = asyncio.Event()
        while self.now() < until:
            event.clear()
            await self.wait(event, until)
