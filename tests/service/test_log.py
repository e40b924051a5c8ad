import io
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from service.log import Redactor, configure
from tests.still_clock import StillClock

pytestmark = pytest.mark.usefixtures("own_logging")

TOKEN = "AAAA%2Fnever-to-be-seen"


class Terminal(io.TextIOWrapper):
    """A text stream that says of itself that it is a terminal."""

    def isatty(self) -> bool:
        return True


class Output:
    """Catches what the log writes."""

    def __init__(self, kind: type[io.TextIOWrapper] = io.TextIOWrapper) -> None:
        self._bytes = io.BytesIO()
        self.stream = kind(self._bytes, encoding="utf-8")

    @property
    def text(self) -> str:
        self.stream.flush()
        return self._bytes.getvalue().decode()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def output() -> Output:
    """Catch the log."""
    return Output()


def fail(message: str) -> None:
    """Raise an error with a local variable that nobody should read."""
    private = "a-local-variable"
    raise ValueError(message if private else "")


class TestJson:
    def test_line(self, output: Output) -> None:
        """A line is one JSON object with event, level, time in UTC and all fields."""
        configure("info", stream=output.stream)
        structlog.get_logger().info("stream_connected", attempts=3, host="api.x.com", text="猫")
        (event,) = output.events
        stamp = datetime.fromisoformat(event.pop("timestamp"))
        assert stamp.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - stamp) < timedelta(minutes=1)
        assert event == {"event": "stream_connected", "level": "info", "attempts": 3, "host": "api.x.com", "text": "猫"}

    def test_level(self, output: Output) -> None:
        """What is below the level is not written."""
        configure("warning", "json", output.stream)
        log = structlog.get_logger()
        log.debug("a")
        log.info("b")
        log.warning("c")
        log.error("d")
        assert [event["event"] for event in output.events] == ["c", "d"]

    def test_context(self, output: Output) -> None:
        """What is bound to the context is in every line of it."""
        configure("info", stream=output.stream)
        with structlog.contextvars.bound_contextvars(connection=7):
            structlog.get_logger().info("inside")
        structlog.get_logger().info("outside")
        assert [event.get("connection") for event in output.events] == [7, None]

    def test_exception(self, output: Output) -> None:
        """An exception is a structure with its causes, without local variables."""
        configure("info", stream=output.stream)
        try:
            try:
                fail("first")
            except ValueError as error:
                raise RuntimeError("second") from error
        except RuntimeError:
            structlog.get_logger().exception("task_failed")
        (event,) = output.events
        assert [(part["exc_type"], part["exc_value"]) for part in event["exception"]] == [
            ("RuntimeError", "second"),
            ("ValueError", "first"),
        ]
        assert event["level"] == "error"
        assert event["exception"][1]["frames"][-1]["name"] == "fail"
        assert "a-local-variable" not in output.text

    @pytest.mark.parametrize("value", [1 << 127, b"\xff", {(1, 2): 3}, "\ud800", object(), {1: 2}, float("nan")])
    def test_any_value(self, output: Output, value: object) -> None:
        """No value makes a log call fail; each gives one line of JSON."""
        configure("info", stream=output.stream)
        structlog.get_logger().info("odd_value", value=value)
        assert [event["event"] for event in output.events] == ["odd_value"]


class TestConsole:
    def test_on_a_terminal(self) -> None:
        """A terminal gets coloured text, unless JSON is wanted."""
        terminal = Output(Terminal)
        configure("info", stream=terminal.stream)
        structlog.get_logger().info("stream_connected", host="api.x.com")
        assert "stream_connected" in terminal.text
        assert "\x1b[" in terminal.text

    def test_json_on_a_terminal(self) -> None:
        """A terminal gets JSON if that is wanted."""
        terminal = Output(Terminal)
        configure("info", "json", terminal.stream)
        structlog.get_logger().info("stream_connected")
        assert [event["event"] for event in terminal.events] == ["stream_connected"]

    def test_off_a_terminal(self, output: Output) -> None:
        """Text in a file has no colours."""
        configure("info", "console", output.stream)
        structlog.get_logger().info("stream_connected", host="api.x.com")
        assert "host=api.x.com" in output.text
        assert "\x1b[" not in output.text

    def test_exception(self, output: Output) -> None:
        """An exception is a plain traceback, without local variables and secrets."""
        configure("info", "console", output.stream, [TOKEN])
        try:
            fail(f"refused: {TOKEN}")
        except ValueError:
            structlog.get_logger().exception("task_failed")
        assert "ValueError: refused: ***" in output.text
        assert "a-local-variable" not in output.text


class TestSecrets:
    def test_everywhere(self, output: Output) -> None:
        """A secret is in no field, nested value, key, event name or text of an exception."""
        configure("info", stream=output.stream, secrets=[TOKEN])
        log = structlog.get_logger()
        name = f"name {TOKEN}"
        log.info(name, plain=TOKEN, nested={"list": [f"Bearer {TOKEN}"], TOKEN: 1}, object=[TOKEN.encode()])
        try:
            fail(f"401 for {TOKEN}")
        except ValueError:
            log.exception("refused")
        logging.getLogger("other").error("token %s", TOKEN)
        assert len(output.events) == 3
        assert TOKEN not in output.text
        assert output.events[0]["nested"] == {"list": ["Bearer ***"], "***": 1}
        assert output.events[1]["exception"][0]["exc_value"] == "401 for ***"
        assert output.events[2]["message"] == "token ***"

    def test_escaped(self, output: Output) -> None:
        """A secret that JSON writes in another way is found too."""
        configure("info", stream=output.stream, secrets=['a"b\\c'])
        structlog.get_logger().info("got", text='<a"b\\c>')
        assert output.events[0]["text"] == "<***>"

    def test_learnt_later(self, output: Output) -> None:
        """A token that is got at the start can be added when it is known."""
        redactor = configure("info", stream=output.stream)
        log = structlog.get_logger()
        redactor.add(TOKEN)
        log.info("got", token=TOKEN)
        assert output.events[0]["token"] == "***"

    def test_other_texts(self) -> None:
        """What is not a line of the log, such as an answer of the admin server, can be cleaned too."""
        assert Redactor([TOKEN]).clean(f"Bearer {TOKEN}".encode()) == b"Bearer ***"

    def test_one_within_another(self) -> None:
        """Of a secret that begins with another one nothing is left over."""
        assert Redactor(["abc", "abcdef", ""])(None, "info", "abcdef abc") == "*** ***"


class TestRepeatedWarnings:
    def test_limited(self, output: Output) -> None:
        """A warning is written at once, then once in 10 s, with the number of those that were left out."""
        clock = StillClock(1000.0)
        configure("info", stream=output.stream, clock=clock)
        log = structlog.get_logger()
        for second in range(21):
            clock.now = 1000.0 + second
            log.warning("shard_throttled", second=second)
        assert [(event["second"], event.get("suppressed")) for event in output.events] == [
            (0, None),
            (10, 9),
            (20, 9),
        ]

    def test_by_name_and_reason(self, output: Output) -> None:
        """One warning does not hold back another; other levels are never held back."""
        configure("info", stream=output.stream, clock=StillClock(0.0))
        log = structlog.get_logger()
        for _ in range(2):
            log.warning("a", reason="one")
            log.warning("a", reason="two")
            log.warning("b")
            log.info("c")
            log.error("d")
        assert [event["event"] for event in output.events] == ["a", "a", "b", "c", "d", "c", "d"]

    def test_by_library(self, output: Output) -> None:
        """A talkative library does not hold back another one."""
        configure("info", stream=output.stream, clock=StillClock(0.0))
        for name in ("one", "one", "two"):
            logging.getLogger(name).warning("text")
        assert [event["logger"] for event in output.events] == ["one", "two"]


class TestLibraries:
    def test_warnings_and_above(self, output: Output) -> None:
        """Other packages' lines come as events from warning upwards, with their own text and logger."""
        configure("debug", stream=output.stream)
        logger = logging.getLogger("aiohttp.server")
        logger.info("not this")
        logger.warning("count %d", 3)
        logger.critical("last")
        assert [(e["event"], e["level"], e["logger"], e["message"]) for e in output.events] == [
            ("library_log", "warning", "aiohttp.server", "count 3"),
            ("library_log", "error", "aiohttp.server", "last"),
        ]

    def test_exception(self, output: Output) -> None:
        """Their exceptions are structures too."""
        configure("info", stream=output.stream)
        try:
            fail("broken")
        except ValueError:
            logging.getLogger("other").exception("handler failed")
        assert output.events[0]["exception"][0]["exc_value"] == "broken"

    def test_faulty_call(self, output: Output, capsys: pytest.CaptureFixture[str]) -> None:
        """A log call that does not fit its own text is written as it is, and nowhere without the redactor."""
        logging.getLogger().handlers.clear()  # pytest's own raise over faulty calls
        configure("info", stream=output.stream, secrets=[TOKEN])
        logging.getLogger("other").warning("%d", TOKEN)
        assert output.events[0]["message"] == "%d ('***',)"
        assert not any(capsys.readouterr())

    def test_set_up_twice(self, output: Output) -> None:
        """Being set up a second time does not double the lines."""
        configure("info", stream=Output().stream)
        configure("info", stream=output.stream)
        logging.getLogger("other").warning("once")
        assert len(output.events) == 1
