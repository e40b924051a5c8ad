"""
The Lambda: a batch of Kinesis records in, the first one that has to come again out.

    Kinesis event -> wire.decode -> items.item_of -> newest version of each key -> TableWriter.write
                         |               |                                             |
                         +---- what can never be stored, with its reason --------------+--> Quarantine

Rules and traps:

* Lambda goes on from the LOWEST sequence number that is reported, and sends everything from there again, also
  what was stored. So at most one is reported; naming more would change nothing.
* A record is done when each of its posts is in the table, or a newer version of it, or in the quarantine, or was
  deleted. One that can be neither stored nor kept in quarantine is reported.
* Of a damaged aggregate what is whole is stored, and the quarantine has all of it.
* A bad record never stops its shard: it is kept with its reason and counts as done.
* A batch may come any number of times. Items and quarantine keys are pure functions of the record.
* All posts of an aggregate have one sequence number.
* A payload never reaches the log. One line of JSON an invocation is the log, and in CloudWatch's embedded metric
  format the metrics as well, which CloudWatch bills.
"""

import functools
import json
import os
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TextIO

from processor import wire
from processor.dynamodb import connect
from processor.failures import Quarantine, Source, store_at
from processor.items import Item, Shape, UnstorableError, item_of, milliseconds_of
from processor.settings import Settings
from processor.table import PARALLEL_CALLS, TOMBSTONE_SECONDS, TableError, TableWriter

# Kept free of the time that Lambda gives: a call begun at the last moment may take its 3 s (connect and read), and
# the log line and the answer a little. A function with little time gives half of it.
RESERVE_SECONDS = 6.0
# Out of the reserve: what the table refuses is known at the end, after its look for tombstones, and may still go to
# quarantine for so long.
QUARANTINE_SECONDS = TOMBSTONE_SECONDS + 1.0

# Of each invocation, in this order. Posts = Written + Duplicates + Deleted + Quarantined + Unwritten; a record that is
# damaged is one post beside those that are whole, and Unwritten are those that Lambda has to send again. Retried counts
# items sent again, WriteUnits what DynamoDB bills for.
COUNTS = ("Records", "Posts", "Written", "Duplicates", "Deleted", "Quarantined", "Unwritten", "Retried", "WriteUnits")
# The longest of each invocation: the whole of it, from the first post of a record to the record's arrival in Kinesis,
# and from there to the end of the invocation.
TIMES = ("Milliseconds", "PostToKinesisMilliseconds", "KinesisToTableMilliseconds")
METRICS = {
    "Namespace": "Millrace",
    "Dimensions": [["FunctionName"]],
    "Metrics": [
        *({"Name": name, "Unit": "Count"} for name in COUNTS),
        *({"Name": name, "Unit": "Milliseconds"} for name in TIMES),
    ],
}


class Context(Protocol):
    """What is used of Lambda's context object."""

    aws_request_id: str

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda ends the invocation."""


class _Version(NamedTuple):
    """One post: its item, and the record it came in."""

    source: Source
    item: Item


class _Failure(NamedTuple):
    """A record that can never be stored, and why."""

    source: Source
    reason: str


class _Batch(NamedTuple):
    """What an event holds: posts by key, each from old to new; what is no post; and how late it is, in seconds."""

    versions: dict[str, list[_Version]]
    failures: list[_Failure]
    post_to_kinesis: float
    first_arrival: float


class _Run:
    """What became of an event until now: the counts, and what has to come again."""

    def __init__(self, counts: dict[str, int], failures: list[_Failure]) -> None:
        self.counts = counts
        self.failures = failures
        self.again: list[Source] = []
        self.troubles: list[str] = []
        self.fault: str | None = None

    @property
    def first(self) -> str | None:
        """The lowest sequence number that has to come again."""
        return min((source.sequence_number for source in self.again), key=int, default=None)


class Processor:
    """
    Carries batches of records into a table.

    Args:
        shape: the operator's choices about items.
        table: where the items go.
        quarantine: where the rest goes.
        pool: runs the quarantine's calls.
        function_name: the dimension of the metrics.
        with_metrics: whether CloudWatch is to make metrics of the log line.
        clock: seconds; the table's own clock.
        now: epoch seconds, for the log line alone.
        output: where the log line goes; standard output unless given.
    """

    def __init__(
        self,
        shape: Shape,
        table: TableWriter,
        quarantine: Quarantine,
        pool: Executor,
        *,
        function_name: str = "local",
        with_metrics: bool = True,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        output: TextIO | None = None,
    ) -> None:
        self._shape = shape
        self._table = table
        self._quarantine = quarantine
        self._pool = pool
        self._function_name = function_name
        self._with_metrics = with_metrics
        self._clock = clock
        self._now = now
        self._output = output

    def process(self, event: Mapping[str, Any], context: Context) -> dict[str, Any]:
        """Store what the event holds, and return Lambda's partial batch response."""
        started = self._clock()
        remaining = context.get_remaining_time_in_millis() / 1000
        deadline = started + max(remaining - RESERVE_SECONDS, remaining / 2)
        batch = self._read(event["Records"])
        run = _Run(dict.fromkeys(COUNTS, 0), batch.failures)
        run.counts["Records"] = len(event["Records"])
        posts = run.counts["Posts"] = len(batch.failures) + sum(map(len, batch.versions.values()))
        try:
            self._store(batch.versions, run, deadline)
            run.counts["Quarantined"] = len(run.failures) - len(run.troubles)
            run.counts["Unwritten"] = len(run.again)
        except TableError as error:
            # The function fails, and Lambda sends everything again, whatever was done.
            run.fault = str(error)
            run.counts.update(dict.fromkeys(COUNTS[2:], 0), Unwritten=posts)
            raise
        finally:
            times = (self._clock() - started, batch.post_to_kinesis, self._now() - batch.first_arrival)
            self._log(run, times, context.aws_request_id)
        return {"batchItemFailures": [] if run.first is None else [{"itemIdentifier": run.first}]}

    def _store(self, versions: Mapping[str, list[_Version]], run: _Run, deadline: float) -> None:
        self._isolate(run.failures, run, deadline)
        pending = {key: posts[-1].item for key, posts in versions.items()}
        while pending:
            outcome = self._table.write(pending, deadline)
            run.counts["Retried"] += outcome.retried
            run.counts["WriteUnits"] += round(outcome.units)
            run.fault = outcome.fault or run.fault
            for key in pending.keys() - outcome.refused.keys():
                posts = versions[key]
                if key in outcome.unwritten:
                    # Also the older versions: they are done only when a newer one is stored.
                    run.again.extend(version.source for version in posts)
                else:
                    run.counts["Deleted" if key in outcome.deleted else "Written"] += 1
                    run.counts["Duplicates"] += len(posts) - 1
            refused = [_Failure(versions[key].pop().source, reason) for key, reason in outcome.refused.items()]
            run.failures.extend(refused)
            self._isolate(refused, run, deadline + QUARANTINE_SECONDS)
            # A version that the table refuses must not take an older, good one with it.
            pending = {key: versions[key][-1].item for key in outcome.refused if versions[key]}

    def _read(self, records: Sequence[Mapping[str, Any]]) -> _Batch:
        """Return the posts by key, each with its versions from old to new, and what is no post."""
        versions: dict[str, list[_Version]] = {}
        failures: list[_Failure] = []
        delay = 0.0
        for record in records:
            kinesis = record["kinesis"]
            arrived_at = float(kinesis["approximateArrivalTimestamp"])
            try:
                data = b64decode(kinesis["data"])
            except ValueError as error:
                whole = Source(record, None, wire.UserRecord(str(kinesis["data"]).encode()))
                failures.append(_Failure(whole, f"not base64: {error}"))
                continue
            decoded = wire.decode(data)
            if decoded.damage is not None:
                whole = Source(record, None, wire.UserRecord(data))
                found = f"; {len(decoded.records)} records in it looked whole" if decoded.records else ""
                failures.append(_Failure(whole, f"damaged aggregate: {decoded.damage}{found}"))
            for index, user_record in enumerate(decoded.records):
                source = Source(record, index, user_record)
                try:
                    item = item_of(user_record.data, arrived_at, self._shape)
                except UnstorableError as error:
                    failures.append(_Failure(source, str(error)))
                else:
                    versions.setdefault(str(item["Id"]), []).append(_Version(source, item))
                    if index == 0:
                        delay = max(delay, arrived_at - (milliseconds_of(item["Timestamp"]) or 0) / 1000)
        arrivals = (float(record["kinesis"]["approximateArrivalTimestamp"]) for record in records)
        return _Batch(versions, failures, delay, min(arrivals, default=self._now()))

    def _isolate(self, failures: Sequence[_Failure], run: _Run, deadline: float) -> None:
        """Put failures into quarantine; those that could not be are to come again."""

        def keep(failure: _Failure) -> str | None:
            if self._clock() >= deadline:
                return "no time is left for the quarantine"
            return self._quarantine.keep(failure.source, failure.reason)

        for failure, trouble in zip(failures, self._pool.map(keep, failures), strict=True):
            if trouble is not None:
                run.again.append(failure.source)
                run.troubles.append(trouble)

    def _log(self, run: _Run, times: Sequence[float], request_id: str) -> None:
        details = {
            "RequestId": request_id,
            "RetryFrom": run.first,
            "TableFault": run.fault,
            "QuarantineFault": next(iter(run.troubles), None),
        }
        metrics = {"_aws": {"Timestamp": int(self._now() * 1000), "CloudWatchMetrics": [METRICS]}}
        line = {
            **(metrics if self._with_metrics else {}),
            "FunctionName": self._function_name,
            **run.counts,
            **{name: round(seconds * 1000, 3) for name, seconds in zip(TIMES, times, strict=True)},
            **{name: detail for name, detail in details.items() if detail is not None},
        }
        output = sys.stdout if self._output is None else self._output
        output.write(json.dumps(line) + "\n")
        output.flush()


@functools.cache
def _processor() -> Processor:
    settings = Settings.from_environment(os.environ)
    pool = ThreadPoolExecutor(PARALLEL_CALLS)
    table = TableWriter(settings.table, connect, pool)
    quarantine = Quarantine(store_at(settings.quarantine))
    return Processor(
        settings.shape,
        table,
        quarantine,
        pool,
        function_name=settings.function_name,
        with_metrics=settings.with_metrics,
    )


def handle(event: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Lambda's entry. What it builds is used for the life of the execution environment."""
    return _processor().process(event, context)
