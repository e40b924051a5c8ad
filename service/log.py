"""
The log: structlog, set up once, writing lines to standard output.

JSON off a terminal, coloured columns on one. Our own lines take structlog's native way (10 to 20 microseconds
a line, 2 for one below the level); lines of the standard library's logging, which only other packages write, come over
a small bridge from warning upwards.

Rules and traps:

* Event names are snake_case constants; what varies is a field. The limit on repeated warnings counts by
  event name and by `reason`, which therefore is a word of a fixed set; what else is said is a `message`.
* Secrets are removed from the finished line, so that none slips through in a nested value, in the text of an
  exception or in a field that nobody thought of.
* Tracebacks never show local variables: those hold posts and tokens. structlog's defaults do show them, and use rich
  where it is installed, which would also break a secret over two lines.
* A log call never raises over its values: what orjson refuses (a hash key has 128 bits) is written by json.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

WARNING_INTERVAL = 10.0
"""Seconds in which the same warning is written once."""


class Redactor:
    """
    Puts `***` in the place of every known secret, in a finished line.

    A line of JSON holds quotes and backslashes escaped, so such a secret is looked for in both spellings.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._texts: list[tuple[str, bytes]] = []
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str) -> None:
        """Learn one more secret, such as a token that X has just given; an empty text is none."""
        if secret:
            texts = {text for text, _ in self._texts} | {secret, json.dumps(secret, ensure_ascii=False)[1:-1]}
            # The longest first: one secret may be a part of another.
            self._texts = [(text, text.encode()) for text in sorted(texts, key=len, reverse=True)]

    def clean(self, text: bytes) -> bytes:
        """Give a text without secrets, in UTF-8."""
        for _, encoded in self._texts:
            text = text.replace(encoded, b"***")
        return text

    def __call__(self, _logger: WrappedLogger, _method: str, line: str | bytes) -> str | bytes:
        """Clean a line, as the last of structlog's processors."""
        if isinstance(line, bytes):
            return self.clean(line)
        for text, _ in self._texts:
            line = line.replace(text, "***")
        return line


class WarningLimiter:
    """
    Lets a warning of one name and `reason` through at once, and then once in `WARNING_INTERVAL` seconds.

    The next one that passes carries `suppressed`: how many like it did not. `clock` gives seconds. A name is the
    event's, together with the logger's for lines from the bridge; a reason is one of a fixed set of words. So there are
    only as many as in the code.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[tuple[str, str, str], float] = {}
        self._suppressed: dict[tuple[str, str, str], int] = {}

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Drop the line, or let it pass, as one of structlog's processors."""
        if method != "warning":
            return event
        name = (event["event"], event.get("logger", ""), event.get("reason", ""))
        now = self._clock()
        if now - self._last.get(name, -WARNING_INTERVAL) < WARNING_INTERVAL:
            self._suppressed[name] = self._suppressed.get(name, 0) + 1
            raise structlog.DropEvent
        self._last[name] = now
        if suppressed := self._suppressed.pop(name, 0):
            event["suppressed"] = suppressed
        return event


class _Bridge(logging.Handler):
    """Hands lines of the standard library's logging to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:  # a faulty call; logging's own way out would print its arguments past the redactor
            message = f"{record.msg} {record.args!r}"
        level = logging.ERROR if record.levelno >= logging.ERROR else logging.WARNING
        structlog.get_logger().log(level, "library_log", logger=record.name, message=message, exc_info=record.exc_info)


def configure(
    level: str,
    format: str = "auto",  # noqa: A002 - the name of the setting
    stream: TextIO | None = None,
    secrets: Iterable[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Redactor:
    """
    Set up logging for the whole process; a second call replaces the first for all loggers made after it.

    `level` is debug, info, warning or error; `format` is auto, console or json, where auto means console if `stream`
    (None: standard output) is a terminal. Returns the redactor, which can learn further `secrets`.
    """
    redactor = Redactor(secrets)
    stream = stream or sys.stdout
    terminal = stream.isatty()
    processors: list[Processor] = [
        WarningLimiter(clock),
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    factory: Callable[..., WrappedLogger]
    if format == "console" or (format == "auto" and terminal):
        processors.append(
            structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=structlog.dev.plain_traceback)
        )
        factory = structlog.PrintLoggerFactory(stream)
    else:
        exceptions = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        processors += [
            structlog.processors.ExceptionRenderer(exceptions),
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
        factory = structlog.BytesLoggerFactory(stream.buffer)
    structlog.configure(
        processors=[*processors, redactor],  # type: ignore[list-item]  # structlog types the last one as the others
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Bridge):
            root.removeHandler(handler)
    root.addHandler(_Bridge(logging.WARNING))
    return redactor


def _to_json(event: EventDict, default: Callable[[Any], Any]) -> bytes:
    try:
        return orjson.dumps(event, default=default, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return json.dumps(event, default=default, skipkeys=True).encode()
