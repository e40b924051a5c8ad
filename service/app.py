"""
The composition root: builds everything, owns the tasks, the signals and the order of shutdown.

**The order of shutdown is the order of nesting.** The admin server opens first and closes last. Inside it stands
Kinesis, inside that the sender's task, inside that the reader's. A signal ends the reader, which closes its
connection so that X frees the slot; then the sender drains, for SHUTDOWN_SECONDS at most; then the rest closes. A
second signal ends the process at once. If a task dies, all end, with the traceback and a code that is not 0.
"""

import asyncio
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import structlog

from service import log as logs
from service.admin import Admin, AdminError, Health
from service.config import Settings
from service.core.posts import PostReader
from service.core.producer import Producer
from service.core.reconnect import Ladders, Reason, Reconnect
from service.core.records import DropReason, Outcome
from service.core.rules import Rule
from service.dead_letters import DeadLetters
from service.kinesis import Kinesis, KinesisError
from service.metrics import Buffer, Metrics, new_registry
from service.rules import Rules, RulesError, RulesUnavailableError
from service.sender import Sender
from service.stdin import Stdin
from service.stream import FILTERED_STREAM, SAMPLE_STREAM, Stream, TokenError, bearer_token

# One line in the log that says how things go.
PROGRESS_SECONDS = 10.0
# X's ids count milliseconds from here, above 22 bits of other things.
SNOWFLAKE_EPOCH = 1288834974.657

log = structlog.get_logger()

_T = TypeVar("_T")


class StartError(Exception):
    """The daemon cannot start; the text is one line that names the setting and the way out."""


class Intake:
    """Takes lines from the source and hands posts to the sender; what is no post ends here, counted and kept."""

    def __init__(self, reader: PostReader, sender: Sender, metrics: Metrics, letters: DeadLetters) -> None:
        self._reader = reader
        self._sender = sender
        self._metrics = metrics
        self._letters = letters

    def take(self, lines: list[bytes]) -> list[bytes]:
        """Take lines, in order; return those in which X says what is wrong. Never waits."""
        now = asyncio.get_running_loop().time()
        posts, rejected = self._reader.read(lines, now)
        for line, reason in rejected:
            self.reject(line, reason)
        if posts:
            self._metrics.received(len(posts), sum(len(post.line) for post in posts))
            self._note_lag(posts[-1].id, len(posts))
            self._sender.offer(posts)
        return [line for line, reason in rejected if reason is DropReason.X_ERROR]

    def reject(self, line: bytes, reason: DropReason) -> None:
        """Count and keep a line that is no post."""
        self._metrics.rejected(line, reason)
        self._letters.add(line, reason)
        log.warning("line_rejected", reason=reason.value, bytes=len(line))

    def _note_lag(self, post_id: str, posts: int) -> None:
        if post_id.isdecimal():
            self._metrics.lag(time.time() - ((int(post_id) >> 22) / 1000 + SNOWFLAKE_EPOCH), posts)


class StreamWatch:
    """Tells metrics, readiness and the log how the connection to X is."""

    def __init__(self, metrics: Metrics, health: Health, reject: Callable[[bytes, DropReason], None]) -> None:
        self._metrics = metrics
        self._health = health
        self.rejected = reject
        self.keep_alive = metrics.keep_alive

    def connected(self) -> None:
        """X answered 200."""
        self._metrics.connected()
        self._health.set("stream", ok=True)
        log.info("stream_connected")

    def disconnected(self, reason: Reason, detail: str, retry_seconds: float, healable: bool) -> None:
        """There is no connection; the next try comes in so many seconds."""
        self._metrics.disconnected(reason, detail, retry_seconds, healable)
        self._health.set("stream", ok=False, reason=f"{reason}: {detail}")
        write = log.info if healable else log.error
        write("stream_disconnected", reason=reason, detail=detail, retry_seconds=round(retry_seconds, 2))


class Daemon:
    """One run of the daemon; `environ` is asked for AWS_REGION only, which botocore does not read."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._region = environ.get("AWS_REGION") or None
        self._started_at = time.time()
        self._rng = random.Random()  # noqa: S311 - jitter, not secrets
        secrets = [settings.bearer_token, settings.api_key, settings.api_key_secret]
        self._redactor = logs.configure(
            settings.log_level, settings.log_format, secrets=[secret.reveal() for secret in secrets if secret]
        )
        registry = new_registry()
        self._metrics = Metrics(registry)
        self._health = Health(["stream", "kinesis", "memory"])
        self._letters = DeadLetters(settings.journal, time.time)
        self._producer = Producer(
            aggregate=settings.aggregation == "kpl",
            lanes_per_shard=settings.lanes_per_shard,
            linger=settings.linger_seconds,
            memory_limit=settings.memory_limit,
            compress=settings.compression == "zstd",
            rng=self._rng,
        )
        self._metrics.read_buffer_with(self._buffer)
        self._admin = Admin(settings.http_host, settings.http_port, registry, self._health, self._status)
        self._totals = {"delivered": 0, "dropped": 0}

    async def run(self) -> None:
        """
        Run until a signal comes, or until the input ends where it has an end.

        Raises: StartError, before anything was read from the source.
        """
        stopped = _stop_event()
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._admin)
                kinesis = await stack.enter_async_context(Kinesis(self._settings.stream, region=self._region))
                await kinesis.probe()
                sender = Sender(
                    self._producer,
                    kinesis,
                    observer=self._metrics,
                    on_outcomes=self._on_outcomes,
                    on_sink=lambda ok, reason: self._health.set("kinesis", ok, reason),
                    trouble=KinesisError,
                )
                facts = await sender.start()
            except (AdminError, KinesisError) as error:
                raise StartError(str(error)) from None
            self._health.set("kinesis", ok=True)
            self._health.set("memory", ok=True)
            if facts.ignores_keys:
                log.warning("order_not_kept", stream=facts.name, reason="the stream spreads records by itself (AUTO)")
            log.info("started", stream=facts.name, http_port=self._admin.port, source=self._settings.source)
            await self._carry(sender, stopped)
        log.info("stopped", **self._totals)

    async def _carry(self, sender: Sender, stopped: asyncio.Event) -> None:
        intake = Intake(PostReader(self._settings.partition_key), sender, self._metrics, self._letters)
        async with asyncio.TaskGroup() as outer:
            sending = outer.create_task(sender.run())
            helpers = [outer.create_task(self._report_progress()), outer.create_task(stopped.wait())]
            async with asyncio.TaskGroup() as inner:
                reading = inner.create_task(self._read(intake, sender))
                await asyncio.wait([reading, helpers[1]], return_when=asyncio.FIRST_COMPLETED)
                reading.cancel()
            self._health.set("stream", ok=False, reason="the source is closed")
            log.info("draining", posts=self._producer.statistics().posts)
            sender.close()
            # An input that ended by itself may take its time; a signal may not.
            await asyncio.wait([sending, helpers[1]], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([sending], timeout=self._settings.shutdown_seconds)
            for task in [sending, *helpers]:
                task.cancel()
        left = self._producer.abandon()
        if left:
            posts = sum(len(outcome.posts) for outcome in left)
            log.error("posts_left", posts=posts, way_out="raise MILLRACE_SHUTDOWN_SECONDS, or see why Kinesis is slow")
            self._on_outcomes(left)

    async def _read(self, intake: Intake, sender: Sender) -> None:
        if self._settings.source == "stdin":
            self._health.set("stream", ok=True)
            await Stdin(sys.stdin.fileno(), intake.take, intake.reject, sender.room).run()
        else:
            await self._read_x(intake)

    async def _read_x(self, intake: Intake) -> None:
        settings = self._settings
        watch = StreamWatch(self._metrics, self._health, intake.reject)
        ladders = Ladders(self._rng)
        token = await self._insist(watch, lambda: fetch_token(settings, ladders))
        self._redactor.add(token)
        if settings.rules:
            rules = Rules(settings.x_url, token, self._rng)
            wanted = [Rule(rule.value, rule.tag) for rule in settings.rules]
            changes = await self._insist(watch, lambda: rules.sync(wanted, apply=True))
            log.info("rules_synced", added=len(changes.add), deleted=len(changes.delete), kept=len(changes.keep))
        clock = asyncio.get_running_loop().time
        stream = Stream(
            settings.x_url,
            token,
            intake.take,
            watch,
            Reconnect(clock(), self._rng),
            clock,
            path=SAMPLE_STREAM if settings.source == "sample" else FILTERED_STREAM,
        )
        await stream.run()

    async def _insist(self, watch: StreamWatch, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask X until it answers; what no retry can heal is retried slowly and shown in the readiness."""
        while True:
            try:
                return await ask()
            except (TokenError, RulesUnavailableError) as error:
                verdict = error.verdict
                watch.disconnected(verdict.reason, verdict.detail, verdict.delay, verdict.healable)
                await asyncio.sleep(verdict.delay)
            except RulesError as error:
                raise StartError("\n".join(error.problems)) from None

    def _on_outcomes(self, outcomes: list[Outcome]) -> None:
        self._metrics.outcomes(outcomes, asyncio.get_running_loop().time())
        for outcome in outcomes:
            if outcome.reason is None:
                self._totals["delivered"] += len(outcome.posts)
                continue
            self._totals["dropped"] += len(outcome.posts)
            for post in outcome.posts:
                self._letters.add(post.line, outcome.reason, outcome.attempts, outcome.message)
            log.warning("posts_dropped", reason=outcome.reason.value, posts=len(outcome.posts), message=outcome.message)
        full = not self._producer.has_room
        self._health.set("memory", not full, "MILLRACE_MEMORY_LIMIT is reached: new posts are dropped" if full else "")

    def _buffer(self) -> Buffer:
        statistics = self._producer.statistics()
        return Buffer(statistics.posts, statistics.bytes)

    def _status(self) -> Mapping[str, Any]:
        return {
            "uptime_seconds": round(time.time() - self._started_at, 1),
            "totals": self._totals,
            "producer": self._producer.statistics()._asdict(),
            "readiness": self._health.report(),
        }

    async def _report_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            log.info("progress", **self._totals, **self._producer.statistics()._asdict())


async def fetch_token(settings: Settings, ladders: Ladders) -> str:
    """Return the bearer token that is set, or exchange the API key for one; raises TokenError."""
    if settings.bearer_token:
        return settings.bearer_token.reveal()
    assert settings.api_key is not None
    assert settings.api_key_secret is not None
    return await bearer_token(settings.x_url, settings.api_key.reveal(), settings.api_key_secret.reveal(), ladders)


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
