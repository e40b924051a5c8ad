"""
What goes wrong at X, on demand: faults of open streams, and refusals of the requests to come.

Kinds, with their parameters; all that act on streams take `connection`, a number, or act on all open ones:

* `last_chunk`, `last_chunk_mid_line`, `fin`, `fin_mid_line`, `reset`, `slow_reader`: endings, see `local.x_api.stream`;
* `operational_disconnect` (`disconnect_type`): the line that announces it, then the end;
* `stall` (`seconds`): no byte at all; posts wait in the queue;
* `silence` (`seconds`): keep-alives only; posts wait in the queue;
* `empty`: keep-alives only until the connection ends; posts that fall due are unsent;
* `line` (`line`): any text as a line of the stream, such as one that is not JSON;
* `layout` (`layout`): where chunks end, from now on and for later connections;
* `refuse` (`answer`, `times`, `endpoint`): the next requests to `stream` or `rules` get one of `x_answers.REFUSALS`, or
  `hang` (no answer), or `drop` (closed without an answer). 0 times means until `clear`;
* `clear`: no more refusals.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from local.x_api.answers import DISCONNECT_TYPES, REFUSALS, disconnect_line
from local.x_api.stream import Ending, Layout, Stream

HANG, DROP = "hang", "drop"
_ENDINGS = {
    Ending.LAST_CHUNK,
    Ending.LAST_CHUNK_MID_LINE,
    Ending.FIN,
    Ending.FIN_MID_LINE,
    Ending.RESET,
    Ending.SLOW_READER,
}


class Faults:
    """
    Injects faults.

    Args:
        streams: returns the open streams.
        layout: of connections until a fault changes it.
    """

    def __init__(self, streams: Callable[[], Sequence[Stream]], layout: Layout) -> None:
        self._streams = streams
        # Endpoint -> answer and how often still; 0 is for ever.
        self._refusals: dict[str, list[tuple[str, int]]] = {"stream": [], "rules": []}
        self.layout = layout

    def inject(self, kind: str, *, after: float = 0.0, **parameters: Any) -> None:
        """
        Inject a fault now, or after some seconds.

        Raises:
            ValueError: kind or parameters are not what the head of this module says.
        """
        act = self._action(kind, parameters)
        if parameters:
            raise ValueError(f"fault {kind} does not know {', '.join(sorted(parameters))}")
        if after > 0:
            asyncio.get_running_loop().call_later(after, act)
        else:
            act()

    def refusal(self, endpoint: str) -> str | None:
        """Return the name of the refusal that the next request to an endpoint gets, and use it up."""
        waiting = self._refusals[endpoint]
        if not waiting:
            return None
        answer, times = waiting[0]
        if times == 1:
            waiting.pop(0)
        elif times:
            waiting[0] = answer, times - 1
        return answer

    def _action(self, kind: str, parameters: dict[str, Any]) -> Callable[[], None]:
        """Check a fault, take its parameters out and return what does it."""
        if kind == "refuse":
            answer = _choice(parameters, "answer", [*REFUSALS, HANG, DROP])
            endpoint = _choice(parameters, "endpoint", list(self._refusals), "stream")
            times = int(_number(parameters, "times", 1))
            return lambda: self._refusals[endpoint].append((answer, times))
        if kind == "clear":
            return self._clear
        if kind == "layout":
            layout = Layout(_choice(parameters, "layout", list(Layout)))
            return lambda: self._set_layout(layout)
        number = int(_number(parameters, "connection", 0))
        do = self._stream_action(kind, parameters)

        def act() -> None:
            for stream in list(self._streams()):
                if number in {0, stream.record.number}:
                    do(stream)

        return act

    def _stream_action(self, kind: str, parameters: dict[str, Any]) -> Callable[[Stream], None]:
        if kind in _ENDINGS:
            ending = Ending(kind)
            return lambda stream: stream.end(ending)
        if kind == Ending.OPERATIONAL_DISCONNECT:
            line = disconnect_line(_choice(parameters, "disconnect_type", DISCONNECT_TYPES, DISCONNECT_TYPES[0]))

            def disconnect(stream: Stream) -> None:
                if stream.takes_posts:
                    stream.offer(None, line)
                    stream.end(Ending.OPERATIONAL_DISCONNECT)

            return disconnect
        if kind in {"stall", "silence"}:
            seconds = _number(parameters, "seconds")
            return lambda stream: stream.hold(seconds, mute=kind == "stall")
        if kind == "empty":
            return Stream.go_empty
        if kind == "line":
            text = str(parameters.pop("line", "")).encode()
            return lambda stream: stream.offer(None, text)
        raise ValueError(f"unknown fault {kind!r}")

    def _clear(self) -> None:
        for waiting in self._refusals.values():
            waiting.clear()

    def _set_layout(self, layout: Layout) -> None:
        self.layout = layout
        for stream in self._streams():
            stream.layout = layout


def _choice(parameters: dict[str, Any], name: str, allowed: Sequence[str], default: str | None = None) -> str:
    value = parameters.pop(name, default)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}")
    return str(value)


def _number(parameters: dict[str, Any], name: str, default: float | None = None) -> float:
    value = parameters.pop(name, default)
    if not isinstance(value, int | float) or value < 0:
        raise ValueError(f"{name} must be a number of 0 or more")
    return value
