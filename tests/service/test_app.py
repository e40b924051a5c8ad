"""What the composition root puts together; the daemon as a whole runs in tests/integration."""

import logging
from collections.abc import Iterator

import pytest
import structlog

from service.app import Daemon
from service.config import load
from service.core.limits import HASH_KEYS
from service.core.records import DropReason, Outcome, Post, Shard


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Leave the process's logging as it was found: a daemon sets it up."""
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = handlers
    structlog.reset_defaults()


def daemon_of(**settings: str) -> Daemon:
    """Make a daemon of these settings; no logger may keep its set-up beyond the test."""
    environ = {"MILLRACE_STREAM": "posts", "MILLRACE_JOURNAL": "off"}
    daemon = Daemon(load(environ | {f"MILLRACE_{name}": value for name, value in settings.items()}), {})
    structlog.configure(cache_logger_on_first_use=False)
    return daemon


async def test_the_limit_that_is_told_is_where_the_room_ends() -> None:
    """Alerts and the live page compare what posts take with what they may take, which is a part of MEMORY_LIMIT."""
    daemon = daemon_of(SOURCE="stdin", MEMORY_LIMIT="1MiB")
    producer = daemon._producer
    producer.on_shards([Shard("a", 0, HASH_KEYS - 1)], 0.0)
    while producer.has_room:
        look = daemon._metrics.look()
        assert look.buffer.bytes < look.buffer.limit
        producer.offer([Post(b"x" * 1000, "1", b"key", 0.0)], 0.0)
    look = daemon._metrics.look()
    assert look.buffer.bytes >= look.buffer.limit


@pytest.mark.parametrize(
    ("reason", "comes_again"),
    [(DropReason.MEMORY_FULL, True), (DropReason.JOURNAL_FULL, True), (DropReason.REFUSED, False), (None, False)],
)
async def test_what_had_no_room_may_come_again(reason: DropReason | None, comes_again: bool) -> None:
    """A backfill may bring it back; what was delivered, or can never be, is left out as a repeat."""
    daemon = daemon_of(BEARER_TOKEN="token", RULES="cats")
    daemon._open_source()
    assert daemon._source is not None
    post = Post(b"{}", "1860000000000000000", b"key", 0.0)
    assert daemon._source.sift([post]) == [post]
    assert daemon._source.sift([post]) == []
    daemon._on_outcomes([Outcome([post], reason, 0)])
    assert daemon._source.sift([post]) == [post] * comes_again
