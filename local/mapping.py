"""
The event source mapping at work: reads each shard, sends what is due to the function, sees to what fails.

Each shard is read by a task of its own and sent by one task for each of its concurrent batches, so that a failing batch
holds up nothing else. A stream that does not answer is waited for. What makes a batch, and what a failure means for it,
is decided in batches.py.
"""

import asyncio
import json
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from local.batches import (
    BatchQueue,
    GivenUp,
    Position,
    Source,
    delay,
    failure_record,
    lambda_event,
    lambda_record,
    place,
    startable,
)
from local.template import MappingSettings
from local.worker import Answer

# Lambda polls a shard about once a second, and a shard allows five reads a second; four make a demo lively.
POLL_SECONDS = 0.25
LIST_SECONDS = 1.0
READ_RECORDS = 10_000  # the most that GetRecords returns
LONGEST_SILENCE_SECONDS = 2.0  # between two questions to a stream that does not answer

NO_ANSWER = (BotoCoreError, ClientError, ResponseParserError, OSError)

T = TypeVar("T")


class Kinesis(Protocol):
    """What is used of aiobotocore's Kinesis client: three operations of the API."""

    async def list_shards(self, **request: Any) -> dict[str, Any]:
        """List one page of the stream's shards."""

    async def get_shard_iterator(self, **request: Any) -> dict[str, Any]:
        """Say where to read."""

    async def get_records(self, **request: Any) -> dict[str, Any]:
        """Read."""


class Invoker(Protocol):
    """What is used of `local.worker.Function`."""

    async def invoke(self, event: bytes) -> Answer:
        """Run the handler with the event."""


class _Shard:
    """One shard that is being read: where the next read begins, and what is not done of the earlier ones."""

    def __init__(self, shard_id: str, start: Position, settings: MappingSettings, chance: Callable[[], float]) -> None:
        self.id = shard_id
        self.position = start
        self.iterator: str | None = None
        self.behind_seconds = 0.0
        self.queues = [BatchQueue(settings, chance) for _ in range(settings.parallelization_factor)]
        self.changed = [asyncio.Event() for _ in self.queues]
        self.has_room = asyncio.Event()

    def wake(self) -> None:
        for event in self.changed:
            event.set()


class EventSource:
    """
    The mapping at work, from `run` to `stop`.

    Args:
        kinesis: client of the stream.
        function: what is called with the events.
        stream: name of the stream.
        source: what the events say of it.
        settings: of the mapping.
        failures: the directory for what is given up.
        log: takes one line for an operator.
        poll_seconds: pause between two reads of a shard.
        clock: seconds since 1970.
        chance: a number from 0 to 1, for the jitter.
    """

    def __init__(
        self,
        kinesis: Kinesis,
        function: Invoker,
        *,
        stream: str,
        source: Source,
        settings: MappingSettings,
        failures: Path,
        log: Callable[[str], None],
        poll_seconds: float = POLL_SECONDS,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._kinesis = kinesis
        self._function = function
        self._stream = stream
        self._source = source
        self._settings = settings
        self._failures = failures
        self._log = log
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._chance = chance
        # It begins where the template says; shards that come later are read from their beginning.
        self._start = Position(settings.starting_position)
        self._shards: dict[str, _Shard] = {}
        self._done: set[str] = set()
        self._readers: list[asyncio.Task[None]] = []
        self._silent: set[str] = set()
        self._stopping = asyncio.Event()
        self._shard_ended = asyncio.Event()
        self._counters = dict.fromkeys(("records", "invocations", "retries", "failures", "given_up"), 0)

    async def run(self) -> None:
        """Work until `stop`. What cannot be survived, such as a full disk, is raised in an exception group."""
        async with asyncio.TaskGroup() as group:
            self._readers.append(group.create_task(self._follow(group)))
            await self._stopping.wait()
            for reader in self._readers:
                reader.cancel()
            for shard in self._shards.values():
                shard.wake()

    def stop(self) -> None:
        """Read no more and send no more; `run` returns when the invocations in flight have ended."""
        self._stopping.set()

    def statistics(self) -> dict[str, Any]:
        """
        Return the counters since the start, and how far the function is behind.

        `records` are done and `given_up` are not; `retries` are invocations with records that were sent before, and
        `failures` those that did not do all of theirs; `iterator_age_seconds` is the age of the oldest record that
        is not done, as far as is known.
        """
        now = self._clock()
        waiting = [q.first for shard in self._shards.values() for q in shard.queues if q.first is not None]
        ages = [now - record.arrived_at for record in waiting]
        ages += [shard.behind_seconds for shard in self._shards.values()]
        return {
            **self._counters,
            "iterator_age_seconds": round(max(ages, default=0.0), 3),
        }

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        """Start each shard when its time has come."""
        while True:
            listed = await self._answered("ListShards", self._list_shards)
            for shard_id in startable(listed, self._shards.keys(), self._done):
                shard = _Shard(shard_id, self._start, self._settings, self._chance)
                self._shards[shard_id] = shard
                self._readers.append(group.create_task(self._read(shard)))
                group.create_task(self._send_all(shard))
            self._start = Position("TRIM_HORIZON")
            await _wait(self._shard_ended, LIST_SECONDS)

    async def _list_shards(self) -> list[dict[str, Any]]:
        page = await self._kinesis.list_shards(StreamName=self._stream)
        shards: list[dict[str, Any]] = page["Shards"]
        while "NextToken" in page:
            page = await self._kinesis.list_shards(NextToken=page["NextToken"])
            shards += page["Shards"]
        return shards

    async def _read(self, shard: _Shard) -> None:
        """Fill the shard's queues until it ends."""
        while True:
            while any(queue.is_full for queue in shard.queues):
                shard.has_room.clear()
                await shard.has_room.wait()
            answer = await self._answered(shard.id, partial(self._get_records, shard))
            now = self._clock()
            for raw in answer["Records"]:
                record = lambda_record(raw, shard.id, self._source)
                shard.queues[place(record.partition_key, len(shard.queues))].add(record, now)
                shard.position = Position("AFTER_SEQUENCE_NUMBER", record.sequence_number)
            shard.behind_seconds = answer.get("MillisBehindLatest", 0) / 1000
            if shard.iterator is None:
                for queue in shard.queues:
                    queue.close()
            shard.wake()
            if shard.iterator is None:
                return
            await asyncio.sleep(self._poll_seconds)

    async def _get_records(self, shard: _Shard) -> dict[str, Any]:
        # An iterator is used once: after a failure the next try asks for a new one.
        iterator, shard.iterator = shard.iterator, None
        if iterator is None:
            start = {"ShardIteratorType": shard.position.iterator_type}
            if shard.position.sequence_number is not None:
                start["StartingSequenceNumber"] = shard.position.sequence_number
            found = await self._kinesis.get_shard_iterator(StreamName=self._stream, ShardId=shard.id, **start)
            iterator = found["ShardIterator"]
        answer = await self._kinesis.get_records(ShardIterator=iterator, Limit=READ_RECORDS)
        shard.iterator = answer.get("NextShardIterator")
        return answer

    async def _answered(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is an answer. The log has a line when the first question fails and when all succeed again."""
        for failures in count(1):
            try:
                answer = await ask()
            except NO_ANSWER as error:
                if not self._silent:
                    self._log(f"no answer from Kinesis, waiting for it: {' '.join(str(error).split())}")
                self._silent.add(what)
                await asyncio.sleep(min(LONGEST_SILENCE_SECONDS, delay(failures, self._chance())))
            else:
                if self._silent == {what}:
                    self._log("Kinesis answers again")
                self._silent.discard(what)
                return answer
        raise AssertionError("count() has no end")

    async def _send_all(self, shard: _Shard) -> None:
        async with asyncio.TaskGroup() as group:
            for queue, changed in zip(shard.queues, shard.changed, strict=True):
                group.create_task(self._send(shard, queue, changed))
        if all(queue.is_done for queue in shard.queues):
            self._done.add(shard.id)
            self._shard_ended.set()

    async def _send(self, shard: _Shard, queue: BatchQueue, changed: asyncio.Event) -> None:
        """Send what is due of one queue, one batch after the other, until the shard is done."""
        while not (queue.is_done or self._stopping.is_set()):
            now = self._clock()
            given_up = queue.expire(now)
            if given_up is None:
                batch = queue.take(now)
                if batch is None:
                    due = queue.next_time
                    await _wait(changed, None if due is None else max(0.0, due - now))
                    continue
                answer = await self._function.invoke(lambda_event(batch.records))
                done, given_up = queue.settle(answer, self._clock())
                self._counters["records"] += done
                self._counters["invocations"] += 1
                self._counters["retries"] += batch.invocations > 0
                if done < len(batch.records):
                    self._counters["failures"] += 1
                    self._log(f"{shard.id}: {len(batch.records) - done} records not done: {answer.error or 'reported'}")
            if given_up is not None:
                self._give_up(shard, given_up)
            shard.has_room.set()

    def _give_up(self, shard: _Shard, given_up: GivenUp) -> None:
        """Write the record to where Lambda would put it in a bucket."""
        now = self._clock()
        day, second = time.strftime("%Y/%m/%d %Y-%m-%dT%H.%M.%S", time.gmtime(now)).split()
        mapping = uuid.uuid5(uuid.NAMESPACE_URL, self._source.stream_arn + self._source.function_arn)
        path = self._failures / "aws" / "lambda" / str(mapping) / shard.id / day / f"{second}-{uuid.uuid4()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(failure_record(given_up, shard.id, self._source, now)), encoding="utf-8")
        self._counters["given_up"] += len(given_up.batch.records)
        self._log(f"{shard.id}: {len(given_up.batch.records)} records given up, {given_up.condition}: {path}")


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()
