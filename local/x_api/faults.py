"""
What goes wrong at X, on demand: faults of open streams, of the address, and refusals of the requests to come.

Kinds, with their parameters; all that act on streams take `connection`, a number, or act on all open ones:

* `last_chunk`, `last_chunk_mid_line`, `last_chunk_mid_block`, `fin`, `fin_mid_line`, `fin_mid_block`, `cut`, `reset`:
  endings, see `local.x_api.endings`;
* `slow_reader` (`told`): dropped with its queue, and told so or not;
* `operational_disconnect` (`disconnect_type`, `told`): the line that announces it, unless `told` is false, and the end;
* `stall` (`seconds`): no byte at all; posts wait in the queue;
* `silence` (`seconds`): keep-alives only; posts wait in the queue;
* `trickle` (`seconds`, `bytes`): no more than so many bytes a second;
* `missed_beats` (`beats`): so many keep-alives do not come;
* `empty`: keep-alives only until the connection ends; posts that fall due are unsent;
* `line` (`line`): any text as a line of the stream, such as one that is not JSON;
* `layout` (`layout`): where chunks end, from now on and for later connections;
* `enlarge` (`bytes`): the next post is larger by so many bytes, under a key that nobody knows;
* `spike` (`seconds`, `factor`): so many times the posts a second;
* `closed` (`seconds`): new connections are refused by the system; open ones live on;
* `black_hole` (`seconds`): new connections get no answer at all, not even from the system;
* `refuse` (`answer`, `times`, `endpoint`, `hanging`): the next requests to `stream` or `rules` get one of the refusals
  of `local.x_api.answers`, or `hang` (no answer), or `drop` (closed without an answer). 0 times means until `clear`;
  `hanging`: half of the body comes, and then nothing;
* `clear`: no more refusals, and nothing more of what was to come later or again.

All take `after` (seconds) and `every` (seconds): from then on again and again, until `clear`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from local.x_api.answers import DISCONNECT_TYPES, REFUSALS, disconnect_line
from local.x_api.clock import Clock
from local.x_api.endings import Ending
from local.x_api.layout import Layout
from local.x_api.stream import Stream

HANG, DROP = "hang", "drop"
_ENDINGS = {
    Ending.LAST_CHUNK,
    Ending.LAST_CHUNK_MID_LINE,
    Ending.LAST_CHUNK_MID_BLOCK,
    Ending.FIN,
    Ending.FIN_MID_LINE,
    Ending.FIN_MID_BLOCK,
    Ending.CUT,
    Ending.RESET,
}


class Refuse(NamedTuple):
    """A refusal that a request gets: a name, and whether its body hangs."""

    answer: str
    hanging: bool = False


class Feed(Protocol):
    """What faults need of the feed."""

    streams: list[Stream]
    rate: float

    def set_rate(self, rate: float) -> None:
        """Change the rate from now on."""

    def enlarge_next(self, size: int) -> None:
        """Give the next post so many bytes more."""


class Door(Protocol):
    """What faults need of the address."""

    async def close(self, seconds: float, *, silent: bool) -> None:
        """Let nobody in for some seconds."""


class Faults:
    """
    Injects faults.

    Args:
        feed: knows the open streams.
        door: of the stand-in.
        clock: of the stand-in.
        layout: of connections until a fault changes it.
    """

    def __init__(self, feed: Feed, door: Door, clock: Clock, layout: Layout) -> None:
        self._feed, self._door, self._clock = feed, door, clock
        # Endpoint -> answer and how often still; 0 is for ever.
        self._refusals: dict[str, list[tuple[Refuse, int]]] = {"stream": [], "rules": []}
        self._plans: set[asyncio.Task[None]] = set()
        self._lasting: set[asyncio.Task[None]] = set()
        self.layout = layout

    def inject(self, kind: str, *, after: float = 0.0, every: float = 0.0, **parameters: Any) -> None:
        """
        Inject a fault now, or after some seconds, once or again and again.

        Raises:
            ValueError: kind or parameters are not what the head of this module says.
        """
        times = {"after": after, "every": every}
        first, again = _number(times, "after"), _number(times, "every")
        act = self._action(kind, parameters)
        if parameters:
            raise ValueError(f"fault {kind} does not know {', '.join(sorted(parameters))}")
        if first or again:
            self._start(self._plans, self._carry_out(act, first, again))
        else:
            act()

    def refusal(self, endpoint: str) -> Refuse | None:
        """Return the refusal that the next request to an endpoint gets, and use it up."""
        waiting = self._refusals[endpoint]
        if not waiting:
            return None
        answer, times = waiting[0]
        if times == 1:
            waiting.pop(0)
        elif times:
            waiting[0] = answer, times - 1
        return answer

    async def stop(self) -> None:
        """Forget what was to come; for the end of the stand-in."""
        self._clear()
        for task in list(self._lasting):
            task.cancel()
        await asyncio.gather(*self._plans, *self._lasting, return_exceptions=True)

    async def _carry_out(self, act: Callable[[], None], after: float, every: float) -> None:
        await self._clock.sleep(after or every)
        act()
        while every:
            await self._clock.sleep(every)
            act()

    def _start(self, tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _action(self, kind: str, parameters: dict[str, Any]) -> Callable[[], None]:
        """Check a fault, take its parameters out and return what does it."""
        if kind == "refuse":
            answer = _choice(parameters, "answer", [*REFUSALS, HANG, DROP])
            endpoint = _choice(parameters, "endpoint", list(self._refusals), "stream")
            times = int(_number(parameters, "times", 1))
            refuse = Refuse(answer, _flag(parameters, "hanging", default=False))
            return lambda: self._refusals[endpoint].append((refuse, times))
        if kind == "clear":
            return self._clear
        if kind == "layout":
            layout = Layout(_choice(parameters, "layout", list(Layout)))
            return lambda: self._set_layout(layout)
        if kind == "enlarge":
            size = int(_number(parameters, "bytes"))
            return lambda: self._feed.enlarge_next(size)
        if kind == "spike":
            lasts, factor = _number(parameters, "seconds"), _number(parameters, "factor")
            return lambda: self._start(self._lasting, self._spike(lasts, factor))
        if kind in {"closed", "black_hole"}:
            lasts = _number(parameters, "seconds")
            return lambda: self._start(self._lasting, self._door.close(lasts, silent=kind == "black_hole"))
        number = int(_number(parameters, "connection", 0))
        do = self._stream_action(kind, parameters)

        def act() -> None:
            for stream in list(self._feed.streams):
                if number in {0, stream.record.number}:
                    do(stream)

        return act

    def _stream_action(self, kind: str, parameters: dict[str, Any]) -> Callable[[Stream], None]:
        if kind in _ENDINGS:
            ending = Ending(kind)
            return lambda stream: stream.end(ending)
        if kind == Ending.SLOW_READER:
            told = _flag(parameters, "told", default=False)
            return lambda stream: stream.end(Ending.SLOW_READER, told=told)
        if kind == Ending.OPERATIONAL_DISCONNECT:
            line = disconnect_line(_choice(parameters, "disconnect_type", DISCONNECT_TYPES, DISCONNECT_TYPES[0]))
            told = _flag(parameters, "told", default=True)

            def disconnect(stream: Stream) -> None:
                if stream.takes_posts:
                    if told:
                        stream.offer(None, line)
                    stream.end(Ending.OPERATIONAL_DISCONNECT)

            return disconnect
        if kind in {"stall", "silence"}:
            seconds = _number(parameters, "seconds")
            return lambda stream: stream.hold(seconds, mute=kind == "stall")
        if kind == "trickle":
            seconds, size = _number(parameters, "seconds"), max(1, int(_number(parameters, "bytes")))
            return lambda stream: stream.trickle(seconds, size)
        if kind == "missed_beats":
            beats = int(_number(parameters, "beats"))
            return lambda stream: setattr(stream, "missed_beats", beats)
        if kind == "empty":
            return Stream.go_empty
        if kind == "line":
            text = str(parameters.pop("line", "")).encode()
            return lambda stream: stream.offer(None, text)
        raise ValueError(f"unknown fault {kind!r}")

    async def _spike(self, seconds: float, factor: float) -> None:
        before = self._feed.rate
        self._feed.set_rate(before * factor)
        await self._clock.sleep(seconds)
        self._feed.set_rate(before)

    def _clear(self) -> None:
        for waiting in self._refusals.values():
            waiting.clear()
        for task in list(self._plans):
            task.cancel()

    def _set_layout(self, layout: Layout) -> None:
        self.layout = layout
        for stream in self._feed.streams:
            stream.layout = layout


def _choice(parameters: dict[str, Any], name: str, allowed: Sequence[str], default: str | None = None) -> str:
    value = parameters.pop(name, default)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}")
    return str(value)


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.pop(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false")  # noqa: TRY004 - one kind of error for all that is wrong
    return value


def _number(parameters: dict[str, Any], name: str, default: float | None = None) -> float:
    value = parameters.pop(name, default)
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a number of 0 or more")
    return value
