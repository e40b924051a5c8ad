"""The daemon as a whole, between its stand-ins; as a process it runs in tests/integration."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from local.kinesis.faults import RequestError
from local.kinesis.server import LocalKinesis
from local.posts import Generated
from local.x_api.server import XApi
from local.x_api.settings import Settings as XSettings
from service.app import Daemon, StartError
from service.config import load
from service.core.limits import HASH_KEYS
from service.core.records import DropReason, Outcome, Post, Shard

pytestmark = pytest.mark.usefixtures("own_aws", "own_logging")

Said = Callable[[], dict[str, dict[str, Any]]]

TOKEN = "a-token-of-x"
POSTS = b"".join(b'{"data":{"id":"%d","author_id":"5"}}\n' % number for number in range(3))


def daemon_of(stdin: int = 0, **settings: str) -> Daemon:
    """Make a daemon of these settings."""
    environ = {"MILLRACE_STREAM": "posts", "MILLRACE_JOURNAL": "off", "MILLRACE_HTTP_PORT": "0"}
    environ |= {f"MILLRACE_{name}": value for name, value in settings.items()}
    return Daemon(load(environ), environ | {"AWS_REGION": "us-east-1"}, stdin)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Give what the log has said since, by the name of the event."""

    def read() -> dict[str, dict[str, Any]]:
        return {line["event"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}

    return read


@asynccontextmanager
async def kinesis() -> AsyncIterator[LocalKinesis]:
    """Run a Kinesis, and have daemons find it."""
    async with LocalKinesis({"posts": 2}) as running:
        os.environ["AWS_ENDPOINT_URL_KINESIS"] = running.url
        yield running


@asynccontextmanager
async def piped() -> AsyncIterator[tuple[int, int]]:
    """Give both ends of a pipe, of which the test may have closed the second one."""
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, closefd=False):
        yield reading, writing


async def until(condition: Callable[[], object], running: asyncio.Task[None]) -> None:
    """Wait until a condition holds, while the daemon runs."""
    async with asyncio.timeout(30):
        while not condition():
            if running.done():
                running.result()
            await asyncio.sleep(0.01)


async def end(running: asyncio.Task[None]) -> None:
    """Send the signal that ends a daemon, and wait for the end."""
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(30):
        await running


class TestRun:
    async def test_to_the_end_of_the_input(self, said: Said) -> None:
        """What stdin holds is in Kinesis when the daemon ends by itself, and the last line of the log sums it up."""
        async with kinesis(), piped() as (reading, writing), asyncio.timeout(30):
            os.write(writing, POSTS)
            os.close(writing)
            daemon = daemon_of(reading, SOURCE="stdin", SHOW_POSTS="on")
            await daemon.run()
        events = said()
        assert list(events) == ["shards_listed", "started", "draining", "stopped"]
        assert (events["stopped"]["received"], events["stopped"]["delivered"]) == (3, 3)
        assert daemon._health.checks["stream"].reason == "the source is closed"
        page = json.dumps(daemon._board.frame(daemon._metrics.look()))
        assert all(word in page for word in ('"state": "draining"', '"mode": "PROVISIONED"', '"id": "2"'))

    async def test_from_x(self, said: Said) -> None:
        """It tells how it is while it runs, reads the rules again on SIGHUP, and drains on SIGTERM."""
        async with XApi(Generated(3), XSettings(tokens=(TOKEN,), rate=500)) as x, kinesis(), ClientSession() as client:
            daemon = daemon_of(BEARER_TOKEN=TOKEN, X_URL=x.url, RULES="millrace")
            running = asyncio.create_task(daemon.run())
            await until(lambda: daemon._totals()["delivered"] > 20, running)
            async with client.get(f"http://127.0.0.1:{daemon._admin.port}/status") as answer:
                status = await answer.json()
            os.kill(os.getpid(), signal.SIGHUP)
            await end(running)
        assert status["readiness"]["ready"]
        assert status["totals"]["delivered"] > 20
        assert status["source"]["connected"]
        totals = said()["stopped"]
        assert totals["received"] == totals["delivered"] + totals["duplicate"]

    async def test_a_start_that_waits_ends_at_a_signal(self, said: Said) -> None:
        """Whoever does not answer, here Kinesis, does not keep it: it ends well, as later on."""

        async def signalled(_request: web.Request) -> web.Response:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
            raise AssertionError

        application = web.Application()
        application.router.add_post("/", signalled)
        async with TestServer(application) as silent, asyncio.timeout(30):
            os.environ["AWS_ENDPOINT_URL_KINESIS"] = str(silent.make_url(""))
            await daemon_of(SOURCE="stdin").run()
        assert list(said()) == ["stopped"]

    async def test_records_that_may_not_be_put(self) -> None:
        """A host of AWS is asked before anything is read: what it has against the question is told at once."""
        async with kinesis() as running:
            os.environ |= {"AWS_ENDPOINT_URL_KINESIS": "http://kinesis.us-east-1.amazonaws.com"}
            os.environ |= {"HTTP_PROXY": running.url, "NO_PROXY": ""}
            with pytest.raises(StartError, match="DryRun"):
                await daemon_of(SOURCE="stdin").run()

    async def test_rules_that_x_refuses(self) -> None:
        """It does not start, and says what X said."""
        async with XApi(settings=XSettings(tokens=(TOKEN,))) as x, kinesis():
            with pytest.raises(ExceptionGroup) as caught:
                await daemon_of(BEARER_TOKEN=TOKEN, X_URL=x.url, RULES="-tea").run()
        found: BaseException = caught.value
        while isinstance(found, BaseExceptionGroup):
            (found,) = found.exceptions
        assert isinstance(found, StartError)
        assert str(found).startswith("X refuses the rule '-tea'")

    async def test_a_journal_that_cannot_be_opened(self, tmp_path: Path) -> None:
        """It does not start, and names the setting."""
        (tmp_path / "file").touch()
        with pytest.raises(StartError, match=r"^MILLRACE_JOURNAL: "):
            await daemon_of(SOURCE="stdin", JOURNAL=str(tmp_path / "file")).run()

    @pytest.mark.parametrize("journal", [True, False])
    async def test_without_kinesis(self, tmp_path: Path, said: Said, journal: bool) -> None:
        """What the drain limit leaves waits in the journal for the next run; without one it is dropped, and counted."""
        settings = {"SOURCE": "stdin", "SHUTDOWN_SECONDS": "0", "JOURNAL": str(tmp_path) if journal else "off"}
        async with kinesis() as broken, piped() as (reading, writing):
            broken.stream("posts").faults.add(RequestError(code="ServiceUnavailable"), now=0.0)
            daemon = daemon_of(reading, **settings)
            running = asyncio.create_task(daemon.run())
            os.write(writing, POSTS)
            await until(lambda: daemon._buffer().posts == 3, running)
            await end(running)
            os.close(writing)
        events = said()
        if not journal:
            assert (events["posts_dropped"]["reason"], events["stopped"]["dropped"]) == ("shutdown", 3)
            assert events["posts_dropped"]["message"].startswith("MILLRACE_SHUTDOWN_SECONDS")
            return
        assert (events["posts_left_in_journal"]["posts"], events["stopped"]["dropped"]) == (3, 0)
        async with kinesis(), piped() as (reading, writing), asyncio.timeout(30):
            os.close(writing)
            await daemon_of(reading, **settings).run()
        events = said()
        assert events["posts_recovered"]["posts"] == 3
        assert (events["stopped"]["recovered"], events["stopped"]["delivered"]) == (3, 3)


class Disk:
    """A journal as far as it is looked at."""

    def __init__(self, trouble: str, held_bytes: int) -> None:
        self.trouble = trouble
        self.held_bytes = held_bytes


class TestBuffer:
    @pytest.mark.parametrize(
        ("disk", "reason"),
        [
            (Disk("", 949_999), ""),
            (Disk("", 1_000_000), "MILLRACE_JOURNAL_LIMIT is nearly reached: Kinesis takes less than comes"),
            (Disk("no space left", 0), "MILLRACE_JOURNAL: no space left"),
        ],
    )
    async def test_a_disk_that_takes_no_more(self, disk: Disk, reason: str) -> None:
        """The readiness names the setting, from the moment on when the limit is near."""
        daemon = daemon_of(SOURCE="stdin", JOURNAL_LIMIT="1MiB")
        daemon._journal = disk  # type: ignore[assignment]
        daemon._check_room()
        assert daemon._health.checks["buffer"][:2] == (not reason, reason)

    async def test_what_a_failed_disk_had(self, tmp_path: Path, said: Said) -> None:
        """Posts that nobody has any more are counted, and those that could still be read are dead letters."""
        daemon = daemon_of(SOURCE="stdin", JOURNAL=str(tmp_path))
        daemon._on_shed(3, [b"one", b"two"])
        assert daemon._totals()["dropped"] == 3
        assert list(daemon._letters.read(["disk_failed"])) == [b"one", b"two"]
        assert said()["posts_dropped"]["posts"] == 3

    async def test_the_limit_that_is_told_is_where_the_room_ends(self) -> None:
        """Alerts and the live page compare what posts take with what they may take, which is a part of MEMORY_LIMIT."""
        daemon = daemon_of(SOURCE="stdin", MEMORY_LIMIT="1MiB")
        producer = daemon._producer
        producer.on_shards([Shard("a", 0, HASH_KEYS - 1)], 0.0)
        daemon._check_room()
        assert daemon._health.checks["buffer"].ok
        while producer.has_room:
            look = daemon._metrics.look()
            assert look.buffer.bytes < look.buffer.limit
            producer.offer([Post(b"x" * 1000, "1", b"key", 0.0)], 0.0)
        look = daemon._metrics.look()
        assert look.buffer.bytes >= look.buffer.limit
        daemon._check_room()
        assert daemon._health.checks["buffer"].reason.startswith("MILLRACE_MEMORY_LIMIT is reached")


async def test_secrets() -> None:
    """Those of X and of AWS are blotted out wherever something is shown; what is too short for one of AWS is a word."""
    environ = {"MILLRACE_STREAM": "posts", "MILLRACE_API_KEY": "a-key", "MILLRACE_API_KEY_SECRET": "a-secret"}
    of_aws = {"AWS_SECRET_ACCESS_KEY": "0123456789abcdef", "AWS_SESSION_TOKEN": "test"}
    daemon = Daemon(load(environ), environ | of_aws)
    assert daemon._redactor.clean(b"a-key a-secret 0123456789abcdef test") == b"*** *** *** test"


@pytest.mark.parametrize(
    ("reason", "comes_again"),
    [
        (DropReason.MEMORY_FULL, True),
        (DropReason.JOURNAL_FULL, True),
        (DropReason.DISK_FAILED, True),
        (DropReason.REFUSED, False),
        (None, False),
    ],
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
