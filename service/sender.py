"""
Drives `core.Producer`: wakes, asks it what to send, sends, and reports the answers.

One loop with one timer. It holds no rule of its own: what goes when, and again, is the producer's to say.
"""

import asyncio
from collections.abc import Callable, Sequence
from logging import DEBUG
from typing import Protocol

import structlog

from service.core.backoff import Trouble, delay
from service.core.producer import Producer
from service.core.records import (
    KinesisRecord,
    Outcome,
    Post,
    PutRequest,
    RecordResult,
    RequestFailure,
    SealReason,
    Shard,
    StreamFacts,
)

# A stream can change without a word: its record limit, its mode, whether it follows keys.
REFRESH_SECONDS = 300.0
# A timer for a time that never comes; event loops do not take infinity.
_NEVER = 1e9

log = structlog.get_logger()


class Sink(Protocol):
    """What the sender needs of Kinesis."""

    async def put(self, records: Sequence[KinesisRecord]) -> list[RecordResult] | RequestFailure:
        """Send one request; trouble is a value."""

    async def shards(self) -> list[Shard]:
        """List the open shards; trouble is raised."""

    async def facts(self) -> StreamFacts:
        """Describe the stream; trouble is raised."""


class Observer(Protocol):
    """What the sender tells the metrics."""

    def request_done(
        self, request: PutRequest, seconds: float, answer: Sequence[RecordResult] | RequestFailure
    ) -> None:
        """Count a request that ended."""

    def record_results(self, delivered: int, throttled: int, failed: int) -> None:
        """Count the answers for single records."""

    def throttled(self, shard_id: str) -> None:
        """Count a throttled record of a shard."""

    def shards(self, shard_ids: Sequence[str]) -> None:
        """Learn the open shards."""

    def sealed(self, reason: SealReason) -> None:
        """Count a record that was sent for the first time."""

    def order_violation(self) -> None:
        """Count a record that Kinesis filed before an older one of its lane."""


class Sender:
    """
    See the module's text.

    Args:
        producer: what decides.
        sink: what sends.
        observer: what counts.
        on_outcomes: called with the outcomes of each moment.
        on_sink: called with (ok, reason) whenever the sink answered, or failed as a whole.
        trouble: what `sink.shards` and `sink.facts` raise when they fail.
    """

    def __init__(
        self,
        producer: Producer,
        sink: Sink,
        *,
        observer: Observer,
        on_outcomes: Callable[[list[Outcome]], None],
        on_sink: Callable[[bool, str], None],
        trouble: type[Exception],
    ) -> None:
        self._producer = producer
        self._sink = sink
        self._observer = observer
        self._on_outcomes = on_outcomes
        self._on_sink = on_sink
        self._trouble = trouble
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._closing = False
        self._order_violations = 0
        self._refreshing: asyncio.Task[None] | None = None
        self._refresh_at = float("inf")
        self._known: tuple[StreamFacts, list[Shard]] | None = None

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def start(self) -> StreamFacts:
        """Learn the stream and its shards; the trouble of it is raised."""
        facts, shards = await self._sink.facts(), await self._sink.shards()
        outcomes = self._producer.on_shards(
            shards, self._now, record_limit=facts.record_bytes, ignores_keys=facts.ignores_keys
        )
        self._observer.shards([shard.shard_id for shard in shards])
        self._refresh_at = self._now + REFRESH_SECONDS
        if (facts, shards) != self._known:
            self._known = (facts, shards)
            log.info("shards_listed", stream=facts.name, mode=facts.mode, shards=len(shards))
        if outcomes:
            self._on_outcomes(outcomes)
            self._room.set()
        return facts

    @property
    def facts(self) -> StreamFacts | None:
        """What the stream said of itself last; None before `start`."""
        return self._known[0] if self._known else None

    @property
    def has_room(self) -> bool:
        """Whether there is room in memory."""
        return self._producer.has_room

    def offer(self, posts: list[Post]) -> None:
        """Take posts. Whether there is room is for the caller to ask. Never waits."""
        outcomes = self._producer.offer(posts, self._now)
        if outcomes:
            self._on_outcomes(outcomes)
        self._wake.set()

    async def room(self) -> None:
        """Wait until there is room; for sources that can be held back."""
        while not self._producer.has_room:
            self._room.clear()
            await self._room.wait()

    def close(self) -> None:
        """No more posts will come; `run` ends when all are confirmed."""
        self._closing = True
        self._producer.close()
        self._wake.set()

    async def run(self) -> None:
        """Send until `close` was called and nothing is left. Cancel it to give up; what is inside stays inside."""
        loop = asyncio.get_running_loop()
        producer = self._producer
        async with asyncio.TaskGroup() as tasks:
            while not (self._closing and producer.is_drained):
                self._wake.clear()
                for request in producer.requests(loop.time()):
                    tasks.create_task(self._send(request))
                due = producer.wants_shards or loop.time() >= self._refresh_at
                if due and self._refreshing is None:
                    self._refreshing = tasks.create_task(self._refresh())
                    self._refresh_at = float("inf")
                timer = loop.call_at(
                    min(producer.next_deadline(), self._refresh_at, loop.time() + _NEVER), self._wake.set
                )
                await self._wake.wait()
                timer.cancel()
            if self._refreshing is not None:
                self._refreshing.cancel()

    async def _send(self, request: PutRequest) -> None:
        for record in request.records:
            if record.attempts == 1:
                self._observer.sealed(record.sealed)
        started = self._now
        answer = await self._sink.put(request.records)
        now = self._now
        self._observer.request_done(request, now - started, answer)
        if log.is_enabled_for(DEBUG):
            _tell(request, answer, now - started)
        if isinstance(answer, RequestFailure):
            outcomes = self._producer.on_failure(request, answer, now)
            self._on_sink(False, answer.message)
            log.warning("put_failed", code=answer.code, message=answer.message, records=len(request.records))
        else:
            outcomes = self._producer.on_response(request, answer, now)
            self._report(request, answer)
        if outcomes:
            self._on_outcomes(outcomes)
        self._room.set()
        self._wake.set()

    def _report(self, request: PutRequest, results: Sequence[RecordResult]) -> None:
        throttled = self._producer.take_throttled()
        delivered = sum(result.error_code is None for result in results)
        failed = len(results) - delivered - len(throttled)
        self._observer.record_results(delivered, len(throttled), failed)
        for shard_id in throttled:
            self._observer.throttled(shard_id)
        for _ in range(self._producer.order_violations - self._order_violations):
            self._observer.order_violation()
            log.error("order_violated", request=request.number)
        self._order_violations = self._producer.order_violations
        self._on_sink(True, "")
        if failed:
            codes = sorted({result.error_code for result in results if result.error_code})
            log.warning("records_failed", request=request.number, records=failed, codes=codes)

    async def _refresh(self) -> None:
        """Fetch the shards until they are had; the lanes that wait for them stand still meanwhile, no others."""
        failures = 0
        while True:
            try:
                await self.start()
            except self._trouble as error:
                failures += 1
                log.warning("shards_not_listed", message=str(error))
                await asyncio.sleep(delay(Trouble.UNAVAILABLE, failures, self._producer.rng))
            else:
                break
        self._refreshing = None
        self._wake.set()


def _tell(request: PutRequest, answer: Sequence[RecordResult] | RequestFailure, seconds: float) -> None:
    """Write the one line of a request, by which each of its posts can be followed into the stream."""
    results = (
        [RecordResult(error_code=answer.code)] * len(request.records) if isinstance(answer, RequestFailure) else answer
    )
    records = [
        {
            "lane": record.partition_key,
            "attempt": record.attempts,
            "bytes": record.size,
            "shard": result.shard_id,
            "sequence": result.sequence_number,
            "error": result.error_code,
            "posts": [post.id for post in record.posts],
        }
        for record, result in zip(request.records, results, strict=True)
    ]
    log.debug("request_done", request=request.number, milliseconds=round(seconds * 1000, 1), records=records)
