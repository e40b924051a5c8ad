"""
Faults on demand for the local Kinesis: what goes wrong, for how long, and for whom. Pure: time is an argument.

A fault is in force until its `seconds` have passed, until it has seen `requests` requests of its `operations`, or, with
neither, until it is removed. `probability` is drawn once a request from a generator seeded with `seed`, so that a run
can be repeated exactly.

    kind             what happens while it is in force
    throttle_shard   each record for shard number `shard` fails with ProvisionedThroughputExceededException
    fail_records     each `every`-th record that is offered fails with InternalFailure
    error            the request is refused with `code`, nothing is stored
    slow             the request is done at once, its answer comes `milliseconds` later
    drop             the request is done, then the connection is closed without an answer

`slow` and `drop` act after storing because that is the case that matters: the client cannot know, sends again, and the
stream holds the record twice.
"""

from random import Random
from typing import Annotated, Literal

import msgspec

from local.kinesis.errors import CODES, INTERNAL_FAILURE, THROTTLED, KinesisError

Operation = Literal[
    "CreateStream",
    "DeleteStream",
    "DescribeStream",
    "DescribeStreamSummary",
    "GetRecords",
    "GetShardIterator",
    "ListShards",
    "ListStreams",
    "MergeShards",
    "PutRecord",
    "PutRecords",
    "SplitShard",
    "UpdateMaxRecordSize",
    "UpdateShardCount",
    "UpdateStreamMode",
    "UpdateStreamRecordDistributionStrategy",
]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class _Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    seconds: Positive | None = None
    requests: Count | None = None
    operations: tuple[Operation, ...] = ("PutRecord", "PutRecords")
    probability: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    seed: int = 0


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
        self.until = None if fault.seconds is None else now + fault.seconds
        self.requests = fault.requests
        self.offered = 0
        self._chance = Random(fault.seed)

    def is_over(self, now: float) -> bool:
        return self.requests == 0 or (self.until is not None and now >= self.until)

    def strikes(self, operation: str) -> bool:
        """Count one request; say whether this one is hit."""
        if operation not in self.fault.operations:
            return False
        if self.requests is not None:
            self.requests -= 1
        return self.fault.probability == 1.0 or self._chance.random() < self.fault.probability


class Plan:
    """What goes wrong with one request."""

    __slots__ = ("_failing", "_throttled", "delay", "drop", "error")

    def __init__(self, struck: list[_Live]) -> None:
        self.error: KinesisError | None = None
        self.delay = 0.0
        self.drop = False
        self._failing: list[_Live] = []
        self._throttled: set[int] = set()
        for live in struck:
            fault = live.fault
            if isinstance(fault, ThrottleShard):
                self._throttled.add(fault.shard)
            elif isinstance(fault, FailRecords):
                self._failing.append(live)
            elif isinstance(fault, RequestError):
                self.error = self.error or KinesisError(fault.code)
            elif isinstance(fault, SlowAnswer):
                self.delay += fault.milliseconds / 1000
            else:
                self.drop = True

    @property
    def touches_records(self) -> bool:
        """Whether `failure` can ever say anything; spares the call for each record."""
        return bool(self._failing or self._throttled)

    def failure(self, shard: int) -> str | None:
        """Return the error code of the next record offered, whose place is this shard, or None."""
        code = None
        for live in self._failing:
            live.offered += 1
            fault = live.fault
            if isinstance(fault, FailRecords) and live.offered % fault.every == 0:
                code = INTERNAL_FAILURE
        return THROTTLED if shard in self._throttled else code


class Faults:
    """The faults of one stream."""

    def __init__(self) -> None:
        self._live: list[_Live] = []

    def add(self, fault: Fault, now: float) -> None:
        """Put a fault in force from `now` on."""
        self._live.append(_Live(fault, now))

    def clear(self) -> int:
        """Remove all faults; return how many there were."""
        count = len(self._live)
        self._live.clear()
        return count

    def active(self, now: float) -> list[Fault]:
        """Return the faults in force, oldest first."""
        self._live = [live for live in self._live if not live.is_over(now)]
        return [live.fault for live in self._live]

    def begin(self, operation: str, now: float) -> Plan:
        """Count a request of this operation and return what goes wrong with it."""
        if not self._live:
            return NO_FAULTS
        self.active(now)
        return Plan([live for live in self._live if live.strikes(operation)])


NO_FAULTS = Plan([])
