"""
Faults on demand for the local Kinesis: what goes wrong, for how long, and for whom. Pure: time is an argument.

A fault is in force until its `seconds` have passed, until it has seen `requests` requests of its `operations`, or, with
neither, until all are removed.

    kind             what happens while it is in force
    throttle_shard   each record for shard number `shard` fails with ProvisionedThroughputExceededException
    fail_records     each `every`-th record that is offered fails with InternalFailure
    error            the request is refused with `code`, nothing is stored
    slow             the request is done at once, its answer comes `milliseconds` later
    drop             the request is done, then the connection is closed without an answer

`slow` and `drop` act after storing because that is the case that matters: the client cannot know, sends again, and the
stream holds the record twice.
"""

from math import inf
from typing import Annotated, Literal

import msgspec

from local.kinesis.errors import CODES, INTERNAL_FAILURE, THROTTLED, KinesisError

Operation = Literal[
    "DeleteStream",
    "DescribeStream",
    "DescribeStreamSummary",
    "GetRecords",
    "GetShardIterator",
    "ListShards",
    "MergeShards",
    "PutRecord",
    "PutRecords",
    "SplitShard",
    "UpdateMaxRecordSize",
    "UpdateShardCount",
    "UpdateStreamMode",
]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class _Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    seconds: Positive | None = None
    requests: Count | None = None
    operations: tuple[Operation, ...] = ("PutRecord", "PutRecords")


class ThrottleShard(_Fault, tag="throttle_shard"):
    """Every record for the shard with this number is throttled."""

    shard: Annotated[int, msgspec.Meta(ge=0)]


class FailRecords(_Fault, tag="fail_records"):
    """Every k-th record offered fails with InternalFailure, counted over requests."""

    every: Count


class RequestError(_Fault, tag="error"):
    """Whole requests are refused; `code` is one of `errors.CODES`. Raises ValueError for another."""

    code: str

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"no such error code: {self.code}; known are {', '.join(CODES)}")


class SlowAnswer(_Fault, tag="slow"):
    """The answer waits, in milliseconds; what was asked is done before."""

    milliseconds: Positive


class DropAnswer(_Fault, tag="drop"):
    """The connection is closed in place of an answer; what was asked is done before."""


Fault = ThrottleShard | FailRecords | RequestError | SlowAnswer | DropAnswer


class _Live:
    """A fault in force, with what it still has to count."""

    def __init__(self, fault: Fault, now: float) -> None:
        self.fault = fault
        self.until = now + (fault.seconds or inf)
        self.requests = fault.requests or inf
        self.offered = 0


class Plan:
    """What goes wrong with one request."""

    __slots__ = ("_failing", "_throttled", "delay", "drop", "error")

    def __init__(self, struck: list[_Live]) -> None:
        self.error: KinesisError | None = None
        self.delay = 0.0
        self.drop = False
        self._failing: list[tuple[_Live, int]] = []
        self._throttled: set[int] = set()
        for live in struck:
            fault = live.fault
            if isinstance(fault, ThrottleShard):
                self._throttled.add(fault.shard)
            elif isinstance(fault, FailRecords):
                self._failing.append((live, fault.every))
            elif isinstance(fault, RequestError):
                self.error = self.error or KinesisError(fault.code)
            elif isinstance(fault, SlowAnswer):
                self.delay += fault.milliseconds / 1000
            else:
                self.drop = True

    def failure(self, shard: int) -> str | None:
        """Return the error code of the next record offered, whose place is this shard, or None."""
        code = None
        for live, every in self._failing:
            live.offered += 1
            if live.offered % every == 0:
                code = INTERNAL_FAILURE
        return THROTTLED if shard in self._throttled else code


class Faults:
    """The faults of one stream."""

    def __init__(self) -> None:
        self._live: list[_Live] = []

    def add(self, fault: Fault, now: float) -> None:
        """Put a fault in force from `now` on."""
        self._live.append(_Live(fault, now))

    def clear(self) -> None:
        """Remove all faults."""
        self._live.clear()

    def begin(self, operation: str, now: float) -> Plan:
        """Count a request of this operation and return what goes wrong with it."""
        self._live = [live for live in self._live if live.requests > 0 and now < live.until]
        struck = [live for live in self._live if operation in live.fault.operations]
        for live in struck:
            live.requests -= 1
        return Plan(struck)


NO_FAULTS = Plan([])
