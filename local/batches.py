"""
What Lambda's event source mapping decides: which records make a batch, and what a failure means for them.

The rules are those that Lambda documents for a Kinesis stream:

* A batch ends at BatchSize records or 6 MB of event, or when its window closes. With ParallelizationFactor N a
  shard has N batches at once, and the records of a partition key are always in the same one, in order.
* A failed invocation, or a report of a record that was not in the batch, fails the whole batch. Otherwise all
  from the lowest reported sequence number on is sent again.
* Bisecting cuts at that number, or in half where nothing was done; it uses up no retry. A batch that is not cut
  uses one, and after MaximumRetryAttempts of them it is given up, as is a record of MaximumRecordAgeInSeconds.
* A shard made by a reshard waits until its parents are done.

Lambda does not say how long it waits before a retry, nor what bisecting does when the function itself reports the
first record of a batch; here that is a failure of the whole batch like any other.

Nothing here waits, reads or calls: the time, in seconds since 1970, and chance are arguments.
"""

import base64
import json
import uuid
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import md5
from itertools import takewhile
from typing import Any, NamedTuple

from local.template import MappingSettings
from local.worker import Answer

# Lambda's quota for the payload of a synchronous invocation.
EVENT_BYTES = 6 * 1024 * 1024
SEPARATOR = b", "

# Before a batch is tried again; with full jitter.
RETRY_SECONDS = 0.2
LONGEST_RETRY_SECONDS = 10.0


class Source(NamedTuple):
    """Whose records these are, and who reads them, as it stands in every event."""

    stream_arn: str
    function_arn: str
    role_arn: str
    region: str


class Record(NamedTuple):
    """A record of a shard. `entry` is its place in a Lambda event, as JSON; `arrived_at` is in seconds since 1970."""

    sequence_number: str
    partition_key: str
    arrived_at: float
    entry: bytes


class Batch(NamedTuple):
    """Records for one invocation: the retries they have used up, how often they were sent, and what came of it."""

    records: tuple[Record, ...]
    retries: int = 0
    invocations: int = 0
    answer: Answer | None = None


class GivenUp(NamedTuple):
    """Records that go to the failure destination. `condition` is RetryAttemptsExhausted or RecordAgeExceeded."""

    batch: Batch
    condition: str


class Position(NamedTuple):
    """Where to read on, in the words of GetShardIterator."""

    iterator_type: str
    sequence_number: str | None = None


def lambda_record(raw: Mapping[str, Any], shard_id: str, source: Source) -> Record:
    """Turn a record of GetRecords into one for the function."""
    arrived_at = raw["ApproximateArrivalTimestamp"].timestamp()
    entry = {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": raw["PartitionKey"],
            "sequenceNumber": raw["SequenceNumber"],
            "data": base64.b64encode(raw["Data"]).decode(),
            "approximateArrivalTimestamp": round(arrived_at, 3),
        },
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": f"{shard_id}:{raw['SequenceNumber']}",
        "eventName": "aws:kinesis:record",
        "invokeIdentityArn": source.role_arn,
        "awsRegion": source.region,
        "eventSourceARN": source.stream_arn,
    }
    return Record(raw["SequenceNumber"], raw["PartitionKey"], arrived_at, json.dumps(entry).encode())


def lambda_event(records: Sequence[Record]) -> bytes:
    """Return the Lambda event of these records."""
    return b'{"Records": [' + SEPARATOR.join(record.entry for record in records) + b"]}"


def place(partition_key: str, places: int) -> int:
    """Which of a shard's concurrent batches takes this key: 0 to `places` - 1, always the same one."""
    return int.from_bytes(md5(partition_key.encode(), usedforsecurity=False).digest()) % places


def delay(failures: int, chance: float) -> float:
    """Seconds to wait after so many failures in a row, from 1; `chance` is from 0 to 1."""
    return chance * min(LONGEST_RETRY_SECONDS, RETRY_SECONDS * 2.0 ** min(failures, 16))


def startable(shards: Sequence[Mapping[str, Any]], started: Collection[str], done: Collection[str]) -> list[str]:
    """Return the shards of ListShards that may be read now: not started yet, and no parent left that is not done."""
    listed = {shard["ShardId"] for shard in shards}
    waited_for = listed.difference(done)
    return [
        shard["ShardId"]
        for shard in shards
        if shard["ShardId"] in waited_for.difference(started)
        and waited_for.isdisjoint({shard.get("ParentShardId"), shard.get("AdjacentParentShardId")})
    ]


def first_failure(batch: Batch, answer: Answer, settings: MappingSettings) -> int | None:
    """Return the place in the batch from which on it must be sent again; None when all of it is done."""
    if answer.error is not None:
        return 0
    if not settings.report_batch_item_failures or answer.payload is None:
        return None
    if not isinstance(answer.payload, dict):
        return 0
    failures = answer.payload.get("batchItemFailures")
    if failures is None or failures == []:
        return None
    if not isinstance(failures, list):
        return 0
    places = {record.sequence_number: index for index, record in enumerate(batch.records)}
    reported = [str(failure.get("itemIdentifier")) if isinstance(failure, dict) else "" for failure in failures]
    return min(places.get(sequence_number, 0) for sequence_number in reported)


class BatchQueue:
    """
    One of a shard's concurrent batches: what is sent next, and what becomes of it. One batch is out at a time.

    Args:
        settings: of the mapping.
        chance: gives a number from 0 to 1, for the jitter.
    """

    def __init__(self, settings: MappingSettings, chance: Callable[[], float]) -> None:
        self._settings = settings
        self._chance = chance
        self._new: deque[Record] = deque()
        self._new_bytes = 0
        self._again: deque[Batch] = deque()
        self._out: Batch | None = None
        self._closed = False
        self._window_start = 0.0
        self._due = 0.0
        self._failures = 0

    @property
    def first(self) -> Record | None:
        """The oldest record that is not done."""
        batch = self._out or (self._again[0] if self._again else None)
        if batch is not None:
            return batch.records[0]
        return self._new[0] if self._new else None

    @property
    def is_full(self) -> bool:
        """A whole batch waits already."""
        return len(self._new) >= self._settings.batch_size or self._new_bytes >= EVENT_BYTES

    @property
    def is_done(self) -> bool:
        """Nothing is left and nothing will come."""
        return self._closed and self.first is None

    @property
    def next_time(self) -> float | None:
        """When `take` will have a batch, if nothing else happens; None when it needs more records."""
        if self._again:
            return self._due
        return self._window_start + self._settings.window_seconds if self._new else None

    def add(self, record: Record, now: float) -> None:
        """Append a record of the shard."""
        if not self._new:
            self._window_start = now
        self._new.append(record)
        self._new_bytes += len(record.entry)

    def close(self) -> None:
        """No more will come: do not wait for a fuller batch."""
        self._closed = True

    def expire(self, now: float) -> GivenUp | None:
        """Take out what is too old to be sent, if the next batch begins with such records."""
        age, first = self._settings.record_age_seconds, self.first
        if age < 0 or first is None or now - first.arrived_at <= age:
            return None
        batch = self._again.popleft() if self._again else self._cut()
        old = tuple(takewhile(lambda record: now - record.arrived_at > age, batch.records))
        if len(old) < len(batch.records):
            self._again.appendleft(batch._replace(records=batch.records[len(old) :]))
        return GivenUp(batch._replace(records=old), "RecordAgeExceeded")

    def take(self, now: float) -> Batch | None:
        """Return the batch to send now, if one is due; tell `settle` what came of it."""
        if self._again:
            self._out = self._again.popleft() if now >= self._due else None
        elif self._new and (self.is_full or self._closed or now >= self._window_start + self._settings.window_seconds):
            self._out = self._cut()
        return self._out

    def settle(self, answer: Answer, now: float) -> tuple[int, GivenUp | None]:
        """Return how many records of the batch that is out are done, and which are given up."""
        batch, self._out = self._out, None
        assert batch is not None
        self._window_start = now
        done = first_failure(batch, answer, self._settings)
        if done is None:
            self._failures = 0
            return len(batch.records), None
        if done > 0:
            self._failures = 0
        self._failures += 1
        self._due = now + delay(self._failures, self._chance())
        rest = Batch(batch.records[done:], batch.retries, batch.invocations + 1, answer)
        middle = (len(rest.records) + 1) // 2
        if self._settings.bisect and done > 0:
            self._again.appendleft(rest)
        elif self._settings.bisect and len(rest.records) > 1:
            self._again.appendleft(rest._replace(records=rest.records[middle:]))
            self._again.appendleft(rest._replace(records=rest.records[:middle]))
        elif self._settings.retry_attempts < 0 or rest.retries < self._settings.retry_attempts:
            self._again.appendleft(rest._replace(retries=rest.retries + 1))
        else:
            self._failures, self._due = 0, now
            return done, GivenUp(rest, "RetryAttemptsExhausted")
        return done, None

    def _cut(self) -> Batch:
        records: list[Record] = []
        size = len(lambda_event([])) - len(SEPARATOR)
        while self._new and len(records) < self._settings.batch_size:
            size += len(self._new[0].entry) + len(SEPARATOR)
            if records and size > EVENT_BYTES:
                break
            records.append(self._new.popleft())
            self._new_bytes -= len(records[-1].entry)
        return Batch(tuple(records))


def failure_record(given_up: GivenUp, shard_id: str, source: Source, now: float) -> dict[str, Any]:
    """Return what Lambda writes to an S3 failure destination. `payload` is the event, as a string."""
    batch, condition = given_up
    first, last = batch.records[0], batch.records[-1]
    answer = batch.answer
    response = {"statusCode": 200, "executedVersion": "$LATEST", "functionError": None}
    if answer is not None and answer.error is not None:
        response["functionError"] = "Unhandled"
    return {
        "requestContext": {
            "requestId": answer.request_id if answer else str(uuid.uuid4()),
            "functionArn": source.function_arn,
            "condition": condition,
            "approximateInvokeCount": batch.invocations,
        },
        **({"responseContext": response} if answer else {}),
        "version": "1.0",
        "timestamp": _timestamp(now),
        "KinesisBatchInfo": {
            "shardId": shard_id,
            "startSequenceNumber": first.sequence_number,
            "endSequenceNumber": last.sequence_number,
            "approximateArrivalOfFirstRecord": _timestamp(first.arrived_at),
            "approximateArrivalOfLastRecord": _timestamp(last.arrived_at),
            "batchSize": len(batch.records),
            "streamArn": source.stream_arn,
        },
        "payload": lambda_event(batch.records).decode(),
    }


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
