"""
The Lambda: a batch of Kinesis records in, the first one that has to come again out.

    Kinesis event -> wire.decode -> items.item_of -> newest version of each key -> TableWriter.write
                         |               |                                             |
                         +---- what can never be stored, with its reason --------------+--> Quarantine

Rules and traps:

* Lambda goes on from the LOWEST sequence number that is reported, and sends everything from there again, also
  what was stored. So at most one is reported; naming more would change nothing.
* A record is done when each of its posts is in the table, or a newer version of it, or in the quarantine. One that
  can be neither stored nor kept in quarantine is reported.
* A bad record never stops its shard: it is kept with its reason and counts as done.
* A batch may come any number of times. Items and quarantine keys are pure functions of the record.
* All posts of an aggregate have one sequence number.
* A payload never reaches the log. One line of JSON an invocation is the log, and in CloudWatch's embedded metric
  format the metrics as well.

Environment: TABLE (its name), QUARANTINE (s3://bucket/prefix or a directory), TTL_DAYS (30; 0 keeps for ever),
TIME_SHARDS (4). Region, endpoint and credentials are botocore's own.
"""

import functools
import json
import os
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TextIO

from processor import wire
from processor.failures import Quarantine, Source, store_at
from processor.items import Item, Shape, UnstorableError, item_of
from processor.table import PARALLEL_CALLS, TableWriter, connect_writer

# Kept free of the time that Lambda gives: a call begun at the last moment may take its 3 s (connect and read), and
# the log line and the answer a little. A function with little time gives half of it.
RESERVE_SECONDS = 5.0
# What the table refuses is known at the end; it may still go to quarantine for so long, out of the reserve.
QUARANTINE_SECONDS = 1.0

# Of each invocation, in this order. Posts = Written + Duplicates + Quarantined + Unwritten; a record that cannot be
# taken apart is one post, and Unwritten are those that Lambda has to send again. Retried counts items sent again.
COUNTS = ("Records", "Posts", "Written", "Duplicates", "Quarantined", "Unwritten", "Retried")
METRICS = {
    "Namespace": "Millrace",
    "Dimensions": [["FunctionName"]],
    "Metrics": [
        *({"Name": name, "Unit": "Count"} for name in COUNTS),
        {"Name": "Milliseconds", "Unit": "Milliseconds"},
    ],
}


class SettingsError(Exception):
    """The environment is not usable. The text is one line that names each fault and the way out."""


class Settings(NamedTuple):
    """What the function is told by its environment."""

    table: str
    quarantine: str
    shape: Shape
    function_name: str

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Read all of it, or raise SettingsError with all faults."""
        faults: list[str] = []
        table = environ.get("TABLE", "")
        if not table:
            faults.append("TABLE is missing: set it to the name of the table")
        quarantine = environ.get("QUARANTINE", "")
        if not quarantine.removeprefix("s3://").strip("/"):
            faults.append("QUARANTINE is missing: set it to s3://bucket/prefix or to a directory")
        ttl_days = whole_number(environ, "TTL_DAYS", Shape().ttl_days, 0, 36_500, faults)
        time_shards = whole_number(environ, "TIME_SHARDS", Shape().time_shards, 1, 1_000, faults)
        if faults:
            raise SettingsError("; ".join(faults))
        name = environ.get("AWS_LAMBDA_FUNCTION_NAME", "local")
        return cls(table, quarantine, Shape(ttl_days, time_shards), name)


def whole_number(environ: Mapping[str, str], name: str, default: int, least: int, most: int, faults: list[str]) -> int:
    """Return the setting `name` as a number; what is wrong with it is added to `faults`."""
    text = environ.get(name) or str(default)
    if text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most:
        return int(text)
    faults.append(f"{name} is {text!r}: set it to a whole number from {least} to {most}")
    return default


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


class Processor:
    """
    Carries batches of records into a table.

    Args:
        shape: the operator's choices about items.
        table: where the items go.
        quarantine: where the rest goes.
        pool: runs the quarantine's calls.
        function_name: the dimension of the metrics.
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
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        output: TextIO | None = None,
    ) -> None:
        self._shape = shape
        self._table = table
        self._quarantine = quarantine
        self._pool = pool
        self._function_name = function_name
        self._clock = clock
        self._now = now
        self._output = output

    def process(self, event: Mapping[str, Any], context: Context) -> dict[str, Any]:
        """Store what the event holds, and return Lambda's partial batch response."""
        started = self._clock()
        remaining = context.get_remaining_time_in_millis() / 1000
        deadline = started + max(remaining - RESERVE_SECONDS, remaining / 2)
        counts = dict.fromkeys(COUNTS, 0)

        versions, failures = self._read(event["Records"])
        counts["Records"] = len(event["Records"])
        counts["Posts"] = len(failures) + sum(map(len, versions.values()))
        again, troubles = self._isolate(failures, deadline)
        fault: str | None = None
        pending = {key: posts[-1].item for key, posts in versions.items()}
        while pending:
            outcome = self._table.write(pending, deadline)
            counts["Retried"] += outcome.retried
            fault = outcome.fault or fault
            for key in pending.keys() - outcome.refused.keys():
                posts = versions[key]
                if key in outcome.unwritten:
                    # Also the older versions: they are done only when a newer one is stored.
                    again.extend(version.source for version in posts)
                else:
                    counts["Written"] += 1
                    counts["Duplicates"] += len(posts) - 1
            refused = [_Failure(versions[key].pop().source, reason) for key, reason in outcome.refused.items()]
            failures += refused
            lost, more_troubles = self._isolate(refused, deadline + QUARANTINE_SECONDS)
            again += lost
            troubles += more_troubles
            # A version that the table refuses must not take an older, good one with it.
            pending = {key: versions[key][-1].item for key in outcome.refused if versions[key]}

        counts["Quarantined"] = len(failures) - len(troubles)
        counts["Unwritten"] = len(again)
        first = min((source.sequence_number for source in again), key=int, default=None)
        details = {
            "RequestId": context.aws_request_id,
            "RetryFrom": first,
            "TableFault": fault,
            "QuarantineFault": next(iter(troubles), None),
        }
        self._log(counts, self._clock() - started, details)
        return {"batchItemFailures": [] if first is None else [{"itemIdentifier": first}]}

    def _read(self, records: Iterable[Mapping[str, Any]]) -> tuple[dict[str, list[_Version]], list[_Failure]]:
        """Return the posts by key, each with its versions from old to new, and what is no post."""
        versions: dict[str, list[_Version]] = {}
        failures: list[_Failure] = []
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
                failures.append(_Failure(whole, f"damaged aggregate: {decoded.damage}"))
                continue
            for index, user_record in enumerate(decoded.records):
                source = Source(record, index, user_record)
                try:
                    item = item_of(user_record.data, arrived_at, self._shape)
                except UnstorableError as error:
                    failures.append(_Failure(source, str(error)))
                else:
                    versions.setdefault(item["Id"]["S"], []).append(_Version(source, item))
        return versions, failures

    def _isolate(self, failures: Sequence[_Failure], deadline: float) -> tuple[list[Source], list[str]]:
        """Put failures into quarantine; return those that could not be, and why, one for one."""

        def keep(failure: _Failure) -> str | None:
            if self._clock() >= deadline:
                return "no time is left for the quarantine"
            return self._quarantine.keep(failure.source, failure.reason)

        again: list[Source] = []
        troubles: list[str] = []
        for failure, trouble in zip(failures, self._pool.map(keep, failures), strict=True):
            if trouble is not None:
                again.append(failure.source)
                troubles.append(trouble)
        return again, troubles

    def _log(self, counts: Mapping[str, int], seconds: float, details: Mapping[str, str | None]) -> None:
        line = {
            "_aws": {"Timestamp": int(self._now() * 1000), "CloudWatchMetrics": [METRICS]},
            "FunctionName": self._function_name,
            **counts,
            "Milliseconds": round(seconds * 1000, 3),
            **{name: detail for name, detail in details.items() if detail is not None},
        }
        output = sys.stdout if self._output is None else self._output
        output.write(json.dumps(line) + "\n")
        output.flush()


@functools.cache
def _processor() -> Processor:
    settings = Settings.from_environment(os.environ)
    pool = ThreadPoolExecutor(PARALLEL_CALLS)
    table = TableWriter(settings.table, connect_writer, pool)
    quarantine = Quarantine(store_at(settings.quarantine))
    return Processor(settings.shape, table, quarantine, pool, function_name=settings.function_name)


def handle(event: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Lambda's entry. What it builds is used for the life of the execution environment."""
    return _processor().process(event, context)
