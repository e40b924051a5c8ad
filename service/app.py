"""
The composition root: builds everything, owns the tasks, the signals and the order of shutdown.

**The order of shutdown is the order of nesting.** The admin server opens first and closes last. Inside it stand the
journal and Kinesis, inside those the sender's task, inside that the reader's. A signal ends the reader, which closes
its connection so that X frees the slot; then the sender drains, for SHUTDOWN_SECONDS at most; what is left then waits
in the journal for the next run. A second signal ends the process at once. If a task dies, all end, with the traceback
and a code that is not 0.
"""

import asyncio
import random
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import structlog

from service import __version__
from service import log as logs
from service.admin import Admin, AdminError, Health
from service.config import Settings
from service.core.board import Board
from service.core.look import Buffer, Inside
from service.core.posts import PostReader
from service.core.producer import POSTS_PART, Producer
from service.core.records import DropReason, Outcome
from service.dead_letters import DeadLetters
from service.intake import NO_ROOM, Intake
from service.journal import Journal
from service.journal_file import JournalError, JournalFile
from service.kinesis import Kinesis, KinesisError
from service.metrics import Metrics, new_registry
from service.rules import RulesError
from service.sender import Sender, Sink
from service.source import Source
from service.stdin import Stdin

# One line in the log that says how things go.
PROGRESS_SECONDS = 10.0
# From this part of its limit on the journal is as good as full.
FULL = 0.95
# How often it looks whether the journal and the memory are well.
LOOK_SECONDS = 1.0

# OpenTelemetry's own; one of them says that traces are wanted.
TRACE_SETTINGS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# AWS' own have 40 characters and more. Those that stand-ins take are short, open nothing, and would blot out words.
SHORTEST_AWS_SECRET = 16

log = structlog.get_logger()


class StartError(Exception):
    """The daemon cannot start; the text is one line that names the setting and the way out."""


class Daemon:
    """
    One run of the daemon.

    `environ` is where the settings came from; it is asked for AWS_REGION, which botocore does not read, and again for
    the rules when they may have changed. `stdin` is the descriptor of standard input.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str], stdin: int = 0) -> None:
        self._settings = settings
        self._environ = environ
        self._stdin = stdin
        self._started_at = time.time()
        self._rng = random.Random()  # noqa: S311 - jitter, not secrets
        secrets = _secrets(settings, environ)
        self._redactor = logs.configure(settings.log_level, settings.log_format, secrets=secrets)
        registry = new_registry()
        self._metrics = Metrics(registry)
        self._health = Health(["stream", "kinesis", "buffer"])
        self._journal: Journal | None = None
        self._letters = DeadLetters(
            settings.journal, time.time, lambda: self._journal is not None and self._journal.hangs
        )
        self._source: Source | None = None
        self._producer = Producer(
            aggregate=settings.aggregation == "kpl",
            lanes_per_shard=settings.lanes_per_shard,
            linger=settings.linger_seconds,
            memory_limit=settings.memory_limit,
            compress=settings.compression == "zstd",
            rng=self._rng,
        )
        self._metrics.read_buffer = self._buffer
        self._metrics.read_inside = self._inside
        about = {"version": __version__, "source": settings.source, "kinesis_stream": settings.stream}
        self._board = Board(about, shows_posts=settings.show_posts == "on")
        self._sender: Sender | None = None
        self._admin = Admin(
            settings.http_host,
            settings.http_port,
            registry,
            self._health,
            self._status,
            self._board.history,
            lambda: self._board.frame(self._metrics.look()),
            self._redactor.clean,
        )

    async def run(self) -> None:
        """
        Run until a signal comes, or until the input ends where it has an end.

        Raises: StartError, before anything was read from the source.
        """
        stopped = _stop_event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        async with AsyncExitStack() as stack:
            starting, stopping = asyncio.create_task(self._start(stack)), asyncio.create_task(stopped.wait())
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if starting.done():
                await self._carry(starting.result(), stopped)
                await self._leave()
            else:
                starting.cancel()
                await asyncio.wait([starting])
        log.info("stopped", **self._totals())

    async def _start(self, stack: AsyncExitStack) -> Sender:
        """Open all that posts need; raises StartError."""
        try:
            await stack.enter_async_context(self._admin)
            await self._open_journal(stack)
            self._open_source()
            region = self._environ.get("AWS_REGION") or None
            kinesis = await stack.enter_async_context(Kinesis(self._settings.stream, region=region))
            await kinesis.probe()
            sender = Sender(
                self._producer,
                self._traced(kinesis, stack),
                observer=self._metrics,
                on_outcomes=self._on_outcomes,
                on_sink=lambda ok, reason: self._health.set("kinesis", ok, reason),
                trouble=KinesisError,
            )
            facts = await sender.start()
        except (AdminError, JournalError, KinesisError) as error:
            raise StartError(str(error)) from None
        self._sender = sender
        self._health.set("kinesis", ok=True)
        self._check_room()
        if facts.ignores_keys:
            log.warning("order_not_kept", stream=facts.name, reason="the stream spreads records by itself (AUTO)")
        log.info("started", stream=facts.name, http_port=self._admin.port, source=self._settings.source)
        return sender

    def _traced(self, kinesis: Kinesis, stack: AsyncExitStack) -> Sink:
        """Put OpenTelemetry around Kinesis where it is wanted and there."""
        if not any(self._environ.get(name) for name in TRACE_SETTINGS):
            return kinesis
        try:
            from service.traces import Traces  # noqa: PLC0415 - an extra, and half a second of imports
        except ImportError as error:
            log.warning("traces_off", reason=str(error), way_out="install requirements/traces.txt")
            return kinesis
        traces = Traces(kinesis, self._settings.stream, asyncio.get_running_loop().time)
        stack.push_async_callback(traces.close)
        return traces

    async def _open_journal(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        if settings.journal is None:
            return
        journal = await Journal.open(JournalFile(settings.journal), settings.journal_limit, on_shed=self._on_shed)
        stack.push_async_callback(journal.close)
        self._journal = journal
        self._metrics.recovered(journal.recovered)
        if journal.recovered:
            log.info("posts_recovered", posts=journal.recovered)

    def _open_source(self) -> None:
        """Prepare for X. What it reads from the journal's directory is protected by the journal's lock."""
        if self._settings.source != "stdin":
            self._source = Source(
                self._settings,
                self._environ,
                self._metrics,
                self._health,
                self._board,
                self._redactor.add,
                self._rng,
            )
            self._metrics.read_source = self._source.figures

    def _reload(self) -> None:
        if self._source is not None:
            self._source.reload()

    async def _carry(self, sender: Sender, stopped: asyncio.Event) -> None:
        intake = Intake(
            PostReader(self._settings.partition_key),
            sender,
            self._journal,
            observer=self._metrics,
            on_outcomes=self._on_outcomes,
            keep=self._letters.add,
            on_posts=self._board.take if self._settings.show_posts == "on" else None,
            sift=self._source.sift if self._source else None,
        )
        async with asyncio.TaskGroup() as outer:
            sending = outer.create_task(sender.run())
            feeding = outer.create_task(intake.feed())
            stopping = outer.create_task(stopped.wait())
            watching = outer.create_task(self._watch())
            async with asyncio.TaskGroup() as inner:
                reading = inner.create_task(self._read(intake))
                await asyncio.wait([reading, stopping], return_when=asyncio.FIRST_COMPLETED)
                reading.cancel()
            self._health.set("stream", ok=False, reason="the source is closed")
            self._board.closing = True
            if self._source is not None:
                await self._source.close()
            # An input that ended by itself may take its time; a signal may not.
            feeding_out = outer.create_task(intake.room())
            await asyncio.wait([feeding_out, stopping], return_when=asyncio.FIRST_COMPLETED)
            feeding_out.cancel()
            feeding.cancel()
            await asyncio.wait([feeding])
            log.info("draining", posts=self._producer.statistics().posts)
            sender.close()
            await asyncio.wait([sending, stopping], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([sending], timeout=self._settings.shutdown_seconds)
            sending.cancel()
            stopping.cancel()
            watching.cancel()

    async def _leave(self) -> None:
        """See to the posts that have no outcome when all tasks have ended."""
        journal = self._journal
        if journal is not None:
            await journal.flush()
        left = self._producer.abandon()
        lost = [post for post in left if journal is None or not journal.keeps(post.position)]
        if lost:
            words = "MILLRACE_SHUTDOWN_SECONDS are over, and no journal has them"
            self._on_outcomes([Outcome(lost, DropReason.SHUTDOWN, 0, message=words)])
        kept = len(left) - len(lost) + (journal.backlog if journal else 0)
        if kept:
            log.info("posts_left_in_journal", posts=kept)

    async def _read(self, intake: Intake) -> None:
        if self._source is None:
            self._metrics.connected()
            self._health.set("stream", ok=True)
            await Stdin(self._stdin, intake.take, intake.reject, intake.room).run()
            return
        try:
            await self._source.run(intake)
        except RulesError as error:
            raise StartError("\n".join(error.problems)) from None

    def _on_outcomes(self, outcomes: list[Outcome]) -> None:
        self._metrics.outcomes(outcomes, asyncio.get_running_loop().time())
        for outcome in outcomes:
            if self._journal is not None:
                self._journal.confirm([post.position for post in outcome.posts])
            if outcome.reason is None:
                continue
            if self._source is not None and outcome.reason in NO_ROOM:
                self._source.forget(outcome.posts)
            for post in outcome.posts:
                self._letters.add(post.line, outcome.reason, outcome.attempts, outcome.message)
            log.warning("posts_dropped", reason=outcome.reason.value, posts=len(outcome.posts), message=outcome.message)

    def _on_shed(self, posts: int, lines: Sequence[bytes]) -> None:
        """Take the news from the journal that posts which only it had are lost."""
        self._metrics.shed(posts, DropReason.DISK_FAILED)
        for line in lines:
            self._letters.add(line, DropReason.DISK_FAILED)
        log.warning("posts_dropped", reason=DropReason.DISK_FAILED.value, posts=posts, message="the disk failed")

    def _buffer(self) -> Buffer:
        inside = self._producer.statistics()
        limit = int(self._settings.memory_limit * POSTS_PART)
        if self._journal is None:
            return Buffer(posts=inside.posts, bytes=inside.bytes, limit=limit)
        return Buffer(
            posts=inside.posts + self._journal.backlog,
            on_disk=self._journal.backlog,
            bytes=inside.bytes,
            limit=limit,
            journal_bytes=self._journal.held_bytes,
            journal_limit=self._settings.journal_limit,
        )

    def _inside(self) -> Inside:
        now = asyncio.get_running_loop().time()
        facts = self._sender.facts if self._sender else None
        mode = facts.mode if facts else ""
        return Inside(self._producer.statistics(), self._producer.shards(now), self._health.checks, mode)

    def _totals(self) -> Mapping[str, int]:
        look = self._metrics.look()
        return {
            "received": look.received,
            "recovered": look.recovered,
            "delivered": look.delivered,
            "duplicate": look.duplicate,
            "dropped": sum(look.dropped.values()),
        }

    def _status(self) -> Mapping[str, Any]:
        return {
            "uptime_seconds": round(time.time() - self._started_at, 1),
            "totals": self._totals(),
            "buffer": self._buffer()._asdict(),
            "producer": self._producer.statistics()._asdict(),
            "readiness": self._health.report(),
            "source": self._source.status() if self._source else {"name": "stdin"},
        }

    async def _watch(self) -> None:
        looks = 0
        now = asyncio.get_running_loop().time
        while True:
            due = now() + LOOK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)
            self._metrics.loop_delay(now() - due)
            self._check_room()
            self._board.add(self._metrics.look())
            looks += 1
            if looks % (PROGRESS_SECONDS // LOOK_SECONDS) == 0:
                log.info("progress", **self._board.summary(self._metrics.look()))

    def _check_room(self) -> None:
        """Set whether there is a place for what comes."""
        journal, reason = self._journal, ""
        if journal is not None:
            if journal.trouble:
                reason = f"MILLRACE_JOURNAL: {journal.trouble}"
            elif journal.held_bytes >= self._settings.journal_limit * FULL:
                reason = "MILLRACE_JOURNAL_LIMIT is nearly reached: Kinesis takes less than comes"
        elif not self._producer.has_room:
            reason = "MILLRACE_MEMORY_LIMIT is reached and MILLRACE_JOURNAL is off: new posts are dropped"
        self._health.set("buffer", not reason, reason)


def _secrets(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    of_x = [settings.bearer_token, settings.api_key, settings.api_key_secret]
    of_aws = [environ.get(name, "") for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")]
    known = [secret.reveal() for secret in of_x if secret]
    return known + [text for text in of_aws if len(text) >= SHORTEST_AWS_SECRET]


def _stop_event() -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets; the second one then acts as if nobody listened."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopped.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopped
