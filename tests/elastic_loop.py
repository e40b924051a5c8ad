"""
Time that passes only while nothing happens, for tests with real sockets on loopback.

While there is work the clock stands still, however slow the machine is. When nothing is ready it moves to the next
timer, thousands of times as fast as the clock on the wall: bytes that are still on their way get there first. While a
thread works for the loop it does not move at all. Both ends of each connection have to be in this loop.
"""

import asyncio
import functools
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, TypeVarTuple, Unpack

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SPEED = 5000.0
# No wait of a selector is shorter; shorter ones are saved up.
_LEAST_SECONDS = 0.001
# How often a thread is asked for, where only it can bring news.
_THREAD_SECONDS = 0.05


class _ElasticSelector(selectors.DefaultSelector):
    now = 0.0
    threads = 0
    _owed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.threads:
            return super().select(_THREAD_SECONDS)
        if timeout is None:
            return super().select(None)
        self._owed += timeout / SPEED
        if self._owed < _LEAST_SECONDS:
            self.now += timeout
            return ready
        begun = time.perf_counter()
        ready = super().select(self._owed)
        passed = (time.perf_counter() - begun) * SPEED
        self._owed = 0.0
        self.now += min(passed, timeout) if ready else timeout
        return ready


class ElasticLoop(asyncio.SelectorEventLoop):
    """An event loop with such a time; it begins at 0."""

    def __init__(self) -> None:
        self._elastic = _ElasticSelector()
        super().__init__(self._elastic)

    def time(self) -> float:
        return self._elastic.now

    def run_in_executor(self, executor: Any, func: Callable[[Unpack[Ts]], T], *args: *Ts) -> asyncio.Future[T]:
        self._elastic.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: object) -> None:
        self._elastic.threads -= 1


def elastic_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run this test on an elastic loop; a decorator."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=ElasticLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
