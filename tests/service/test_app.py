"""The parts of the composition root that stand by themselves; the daemon as a whole runs in tests/integration."""

from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs

from local.x_api.server import XApi
from local.x_api.settings import Settings as XSettings
from service.admin import Health
from service.app import StreamWatch, fetch_token
from service.config import load
from service.core.board import Board
from service.core.reconnect import Ladders, Reason
from service.core.records import DropReason
from service.metrics import Metrics, new_registry
from service.stream import TokenError

NEEDED = {"MILLRACE_STREAM": "posts"}


class Rig:
    """A watch over real metrics and a real readiness."""

    def __init__(self) -> None:
        self.registry = new_registry()
        self.health = Health(["stream"], lambda: 0.0)
        self.metrics = Metrics(self.registry)
        self.board = Board({}, shows_posts=False)
        self.rejected: list[tuple[bytes, DropReason]] = []
        self.watch = StreamWatch(
            self.metrics, self.health, self.board, lambda line, reason: self.rejected.append((line, reason))
        )

    def value(self, name: str, **labels: str) -> float | None:
        """Read a metric."""
        return self.registry.get_sample_value(f"millrace_{name}", labels)

    def events(self) -> list[str]:
        """Say what the live page has noted."""
        events: Any = self.board.frame(self.metrics.look())["events"]
        return [event["text"] for event in events]

    def reason(self) -> str:
        """Say why the stream is not ready; empty if it is."""
        checks = self.health.report()["checks"]
        assert isinstance(checks, dict)
        return str(checks["stream"]["reason"])


def test_a_connection_is_told_to_everybody() -> None:
    """Metrics, readiness, live page and log agree, from the first connection on."""
    rig = Rig()
    with capture_logs() as logs:
        rig.watch.connected()
    assert rig.health.is_ready
    assert rig.value("stream_connected") == 1
    assert rig.events() == ["connected"]
    assert logs == [{"event": "stream_connected", "log_level": "info"}]


@pytest.mark.parametrize(
    ("reason", "healable", "level"), [(Reason.STALL, True, "info"), (Reason.UNAUTHORIZED, False, "error")]
)
def test_a_lost_connection_is_told_with_its_reason(reason: Reason, healable: bool, level: str) -> None:
    """What heals by itself is no error in the log; what an operator must mend is."""
    rig = Rig()
    rig.watch.connected()
    with capture_logs() as logs:
        rig.watch.disconnected(reason, "what X said", 1.2345, healable)
    assert not rig.health.is_ready
    assert rig.reason() == f"{reason}: what X said"
    assert rig.events() == ["connected", f"{reason}: what X said"]
    assert rig.value("stream_connected") == 0
    assert rig.value("stream_reconnects_total", reason=reason) == 1
    (entry,) = logs
    assert (entry["event"], entry["log_level"]) == ("stream_disconnected", level)
    assert (entry["reason"], entry["detail"], entry["retry_seconds"]) == (reason, "what X said", 1.23)


def test_keep_alives_and_rejected_lines_are_passed_on() -> None:
    """The first are counted, the others go the way of all lines that are no posts."""
    rig = Rig()
    rig.watch.keep_alive()
    rig.watch.rejected(b'{"data', DropReason.LINE_CUT)
    assert rig.value("stream_keep_alives_total") == 1
    assert rig.rejected == [(b'{"data', DropReason.LINE_CUT)]


async def test_a_token_that_is_set_is_taken_as_it_is() -> None:
    """X is not asked: nobody listens at the address that is given."""
    settings = load(NEEDED | {"MILLRACE_BEARER_TOKEN": "a-token", "MILLRACE_X_URL": "http://127.0.0.1:1"})
    assert await fetch_token(settings, Ladders(Random(1))) == "a-token"


async def test_key_and_secret_are_exchanged_at_x() -> None:
    """What X gives for them is the token; others than X knows raise, and the reason is the same as for a token."""
    async with XApi(settings=XSettings(tokens=("a-token",), keys="key:secret")) as x:
        environ = NEEDED | {"MILLRACE_X_URL": x.url, "MILLRACE_API_KEY": "key"}
        settings = load(environ | {"MILLRACE_API_KEY_SECRET": "secret"})
        assert await fetch_token(settings, Ladders(Random(1))) == "a-token"
        with pytest.raises(TokenError) as raised:
            await fetch_token(load(environ | {"MILLRACE_API_KEY_SECRET": "other"}), Ladders(Random(1)))
    assert raised.value.verdict.reason is Reason.UNAUTHORIZED
