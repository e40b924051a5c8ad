"""
The daemon between the stand-ins for X and Kinesis, in one process and in elastic time, and the proof at the end.

All of the daemon's road is real: source, intake, journal, producer, sender, Kinesis client, dead letters, metrics. Only
its composition is repeated here, without signals and without the logging of a whole process. `carried` ends the flow
and lays the ledgers side by side: what X wrote is in Kinesis, or is put aside with a reason, or the test fails.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
from aiobotocore.session import AioSession

from local.kinesis.server import LocalKinesis
from local.reconcile import Reconciliation, SentPost, fetch_shards, post_id_of, read_letters, reconcile
from local.x_api.feed import Source as Posts
from local.x_api.server import XApi
from local.x_api.settings import Settings
from processor.wire import decode
from service import config
from service.admin import Health
from service.core.board import Board
from service.core.limits import MIB
from service.core.look import Buffer
from service.core.posts import PostReader
from service.core.producer import Producer
from service.core.reconnect import Reason
from service.core.records import DropReason, Outcome
from service.dead_letters import DeadLetters
from service.intake import Intake
from service.journal import Journal
from service.journal_file import JournalFile
from service.kinesis import Kinesis, KinesisError
from service.metrics import Metrics, new_registry
from service.sender import Sender
from service.source import Source
from tests.invented import posts

STREAM = "posts"
TOKEN = "secret-token"
# Its limits are those of real time, in which all happens within moments: enough for the posts of a test at once.
SHARDS = 16
# More than the longest wait between two tries that the daemon ever makes.
PATIENCE_SECONDS = 2000.0
# One for all, because to make one and to read botocore's models takes long. It knows no file and no machine of AWS.
SESSION = AioSession(profile="here")
SESSION.set_config_variable("config_file", os.devnull)
SESSION.set_config_variable("credentials_file", os.devnull)
SESSION.set_credentials("test", "test")


class Rig:
    """
    The daemon and what is around it.

    Attributes:
        x: the stand-in for X.
        directory: where the journal lies.
        others: numbers of connections that are no daemon's.
        result: what the ledgers say, once the flow has ended.
    """

    def __init__(self, x: XApi, kinesis: LocalKinesis, directory: Path, settings: Mapping[str, str]) -> None:
        self.x = x
        self.directory = directory
        self._kinesis = kinesis
        self._environ = {
            "MILLRACE_STREAM": STREAM,
            "MILLRACE_X_URL": x.url,
            "MILLRACE_BEARER_TOKEN": TOKEN,
            "MILLRACE_RULES": "millrace",
            "MILLRACE_JOURNAL": str(directory),
            **settings,
        }
        self._rng = Random(5)
        self.registry = new_registry()
        self.metrics = Metrics(self.registry)
        self.health = Health(["stream", "kinesis", "buffer"])
        self._letters = DeadLetters(directory, x.clock.now)
        self._producer = Producer(
            aggregate=True, lanes_per_shard=1, linger=1.0, memory_limit=64 * MIB, compress=False, rng=self._rng
        )
        self._journal: Journal | None = None
        self.source: Source | None = None
        self.running: asyncio.Task[None] | None = None
        self.others: set[int] = set()
        self._fellows: list[Rig] = []
        self.result = Reconciliation(0, 0, 0, 0)

    # What the daemon does

    async def run(self, stop: asyncio.Event) -> None:
        """Carry posts until told to stop; then drain."""
        settings = config.load(self._environ)
        async with AsyncExitStack() as stack:
            self._journal = await Journal.open(
                JournalFile(self.directory), settings.journal_limit, on_shed=self._on_shed
            )
            stack.push_async_callback(self._journal.close)
            self.metrics.read_buffer = self._buffer
            board = Board({}, shows_posts=False)
            source = self.source = Source(
                settings,
                self._environ,
                self.metrics,
                self.health,
                board,
                lambda _: None,
                self._rng,
                self.x.clock.now,
            )
            self.metrics.read_source = source.figures
            SESSION.full_config["profiles"] = {"here": {"services": "here"}}
            SESSION.full_config["services"] = {"here": {"kinesis": {"endpoint_url": self._kinesis.url}}}
            kinesis = await stack.enter_async_context(Kinesis(STREAM, region="us-east-1", session=SESSION))
            sender = Sender(
                self._producer,
                kinesis,
                observer=self.metrics,
                on_outcomes=self._on_outcomes,
                on_sink=lambda ok, reason: self.health.set("kinesis", ok, reason),
                trouble=KinesisError,
            )
            await sender.start()
            intake = Intake(
                PostReader(settings.partition_key),
                sender,
                self._journal,
                observer=self.metrics,
                on_outcomes=self._on_outcomes,
                keep=self._letters.add,
                sift=source.sift,
            )
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(sender.run())
                feeding = tasks.create_task(intake.feed())
                reading = tasks.create_task(source.run(intake))
                stopping = tasks.create_task(stop.wait())
                await asyncio.wait([stopping, reading], return_when=asyncio.FIRST_COMPLETED)
                reading.cancel()
                await asyncio.wait([reading])
                await source.close()
                await intake.room()
                feeding.cancel()
                sender.close()
                await sending

    def _on_outcomes(self, outcomes: list[Outcome]) -> None:
        assert self._journal is not None
        self.metrics.outcomes(outcomes, asyncio.get_running_loop().time())
        for outcome in outcomes:
            self._journal.confirm([post.position for post in outcome.posts])
            if outcome.reason is not None:
                for post in outcome.posts:
                    self._letters.add(post.line, outcome.reason, outcome.attempts, outcome.message)

    def _on_shed(self, posts: int, lines: object) -> None:
        raise AssertionError("the disk failed")

    def _buffer(self) -> Buffer:
        assert self._journal is not None
        inside = self._producer.statistics()
        return Buffer(posts=inside.posts + self._journal.backlog, bytes=inside.bytes)

    # What a test asks

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds, for `PATIENCE_SECONDS` at most; who has waited long is asked less often."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not condition():
            waited = loop.time() - began
            if waited > PATIENCE_SECONDS:
                raise TimeoutError("what is waited for does not come")
            await asyncio.sleep(max(0.02, waited / 50))
            if self.running is not None and self.running.done():
                self.running.result()
                raise AssertionError("the daemon has ended")

    def reconnects(self, reason: Reason) -> int:
        """How often the connection was lost or refused for a reason."""
        return int(self.metrics._reconnects.labels(reason).value)

    def dropped(self, reason: DropReason) -> int:
        """How many lines were not delivered for a reason."""
        return int(self.metrics._dropped.labels(reason.value).value)

    @property
    def arrived(self) -> int:
        """How many posts and lines have come."""
        return int(self.metrics._received.value)

    async def reconnected(self, reason: Reason, times: int = 1) -> None:
        """Wait until the connection was lost or refused so often for a reason, and posts come again."""
        await self.until(lambda: self.reconnects(reason) >= times)
        await self.received(20)

    async def received(self, posts: int) -> None:
        """Wait until so many more posts have come."""
        wanted = self.arrived + posts
        await self.until(lambda: self.arrived >= wanted)

    def letters(self) -> dict[str, str]:
        """The reason for each line that the daemon has put aside, by its MD5."""
        return read_letters(self.directory)

    async def settle(self) -> None:
        """Let no more posts fall due, and wait until all that was written is delivered or put aside."""
        self.x.feed.stop()
        await self.until(lambda: not self.x.ledger.counts["queued"])
        await self.until(self._has_settled)

    def _has_settled(self) -> bool:
        records = self.x.ledger.connections
        written = sum(record.written for record in records if record.number not in self.others)
        rigs = (self, *self._fellows)
        return sum(rig.arrived for rig in rigs) >= written and not any(rig._buffer().posts for rig in rigs)

    @asynccontextmanager
    async def another(self, directory: Path, **settings: str) -> AsyncIterator["Rig"]:
        """Run one more daemon between the same stand-ins; the flow ends for both when this ends."""
        rig = Rig(self.x, self._kinesis, directory, self._environ | {"MILLRACE_JOURNAL": str(directory)} | settings)
        # So that its connection is the second one.
        await self.received(1)
        async with _running(rig):
            self._fellows.append(rig)
            await rig.received(1)
            yield rig
            await self.settle()
            assert rig.balance() == 0

    async def reconcile(self) -> Reconciliation:
        """Lay the ledgers side by side."""
        async with aiohttp.ClientSession() as http:
            shards = await fetch_shards(http, self._kinesis.url, STREAM)
        stored = {post_id_of(line.data) or "" for s in shards for data in s.records for line in decode(data).records}
        rows = (row for row in self.x.ledger.rows() if row.connection not in self.others)
        sent = [SentPost(row.id, row.key, row.md5, row.state) for row in rows]
        return reconcile(sent, shards, stored, self.letters())

    @property
    def duplicates(self) -> int:
        """How many posts had come before and were left out."""
        return int(self.metrics._duplicate.value)

    def balance(self) -> float:
        """What has come less what has gone or waits; always 0."""
        metrics = self.metrics
        gone = metrics._delivered.value + metrics._duplicate.value + self._buffer().posts
        gone += sum(self.dropped(reason) for reason in DropReason)
        return metrics._received.value + metrics._recovered.value - gone


@asynccontextmanager
async def carried(
    directory: Path,
    *,
    source: Posts | None = None,
    settings: Mapping[str, str] | None = None,
    before: Callable[[XApi], Awaitable[None]] | None = None,
    ordered: bool = True,
    **x_settings: Any,
) -> AsyncIterator[Rig]:
    """
    Run the daemon between X and Kinesis; at the end all that X wrote must be in Kinesis, or put aside with a reason.

    `settings` are more of the daemon's, `x_settings` those of X, which has 200 posts a second unless they say
    otherwise; `before` may do something to X before the daemon starts. Without `ordered` the
    order of a key is not looked at, for several daemons that write at once.
    """
    options: dict[str, Any] = {"rate": 200.0, "tokens": (TOKEN,)} | x_settings
    async with XApi(source or posts(), Settings(**options)) as x, LocalKinesis({STREAM: SHARDS}) as kinesis:
        if before is not None:
            await before(x)
        rig = Rig(x, kinesis, directory, settings or {})
        async with _running(rig):
            yield rig
            await rig.settle()
            assert rig.balance() == 0
            rig.result = result = await rig.reconcile()
            # Of an overlong line only the head is put aside, which does not say whose it is.
            assert result.lost == rig.dropped(DropReason.LINE_TOO_LONG), result.summary()
            assert not result.out_of_order or not ordered, result.summary()
            assert (result.changed, result.unexpected) == ((), ()), result.summary()
            assert result.sent, "nothing was sent, so nothing is proven"


@asynccontextmanager
async def _running(rig: Rig) -> AsyncIterator[None]:
    stop = asyncio.Event()
    rig.running = asyncio.create_task(rig.run(stop))
    try:
        yield
    finally:
        stop.set()
        await rig.running
