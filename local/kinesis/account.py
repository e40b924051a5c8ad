"""
The streams of one account in one region: which there are, and what they may hold together.

Whatever changes a stream is handed to `keep` before the change is answered, and one that is gone to `forget`. Records
are forgotten by age and, when all streams together hold more than `memory_limit` bytes, oldest first.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from local import ACCOUNT
from local.kinesis.errors import KinesisError
from local.kinesis.faults import Plan
from local.kinesis.shards import Bucket, Record
from local.kinesis.stream import Snapshot, Stream

# Calls a second that the service model allows; ListShards counts per stream, the others per account.
CONTROL_RATES = {
    "CreateStream": 5,
    "DeleteStream": 5,
    "DescribeStream": 10,
    "DescribeStreamSummary": 20,
    "ListShards": 1000,
    "ListStreams": 5,
    "MergeShards": 5,
    "SplitShard": 5,
    "UpdateShardCount": 10,
}
MAX_CREATING = 5


class Call(NamedTuple):
    """One request on one stream: what the operations work on."""

    account: "Account"
    stream: Stream
    now: float
    plan: Plan


class Account:
    """
    All streams by name. `memory_limit` is in bytes of data and keys, over all of them.

    `refused` counts the requests that were refused, by error code.
    """

    def __init__(self, *, memory_limit: int, settle_seconds: float) -> None:
        self.streams: dict[str, Stream] = {}
        self.refused: Counter[str] = Counter()
        self.keep: Callable[[Stream, Sequence[Record]], None] = lambda _stream, _records: None
        self.forget: Callable[[str], None] = lambda _name: None
        self._memory_limit = memory_limit
        self._settle_seconds = settle_seconds
        self._rates: dict[tuple[str, str], Bucket] = {}

    def create(self, name: str, shards: int, now: float) -> Stream:
        """Make a stream that is ACTIVE at once, whose shards have ranges of equal size."""
        stream = self.streams[name] = Stream(name, now, settle_seconds=self._settle_seconds)
        stream.map.create(shards, now)
        return stream

    def require_free(self, name: str, now: float) -> None:
        """Raise KinesisError if there is such a stream already, or too many are being made."""
        if name in self.streams:
            raise KinesisError("ResourceInUseException", f"Stream {name} under account {ACCOUNT} already exists.")
        if sum(stream.status(now) == "CREATING" for stream in self.streams.values()) >= MAX_CREATING:
            raise KinesisError("LimitExceededException", f"{MAX_CREATING} streams are in the CREATING state already.")

    def find(self, name: str | None, arn: str | None) -> Stream:
        """Return the stream of this name, of this ARN or of both."""
        if name is None and arn is None:
            raise KinesisError("InvalidArgumentException", "Either StreamName or StreamARN should be provided.")
        for stream in self.streams.values():
            if name in {None, stream.name} and arn in {None, stream.arn}:
                return stream
        raise KinesisError("ResourceNotFoundException", f"Stream {arn or name} under account {ACCOUNT} not found.")

    def count_call(self, operation: str, stream: str, now: float) -> None:
        """Raise KinesisError if the operation is called more often than the service allows."""
        rate = CONTROL_RATES.get(operation)
        if rate is None:
            return
        key = operation, stream if operation == "ListShards" else ""
        bucket = self._rates.setdefault(key, Bucket(rate, now))
        if not bucket.holds(1, now):
            raise KinesisError("LimitExceededException", f"Rate exceeded for account {ACCOUNT}.")
        bucket.take(1)

    def tidy(self, now: float) -> None:
        """Forget deleted streams, expired records, and the oldest records above the memory limit."""
        for name in [stream.name for stream in self.streams.values() if stream.is_gone(now)]:
            self.forget(name)
            del self.streams[name]
        self._trim(now)

    def _trim(self, now: float) -> None:
        for stream in self.streams.values():
            stream.trim_expired(now)
        while sum(stream.stored_bytes for stream in self.streams.values()) > self._memory_limit:
            holders = [(record.arrival, stream.name) for stream in self.streams.values() if (record := stream.oldest)]
            self.streams[min(holders)[1]].trim_oldest()

    def changed(self, stream: Stream, now: float, records: Sequence[Record] = ()) -> None:
        """Keep a stream whose change is made already, with the records that it took."""
        self._trim(now)
        self.keep(stream, records)

    def restore(self, snapshot: Snapshot, records: Sequence[Record], now: float) -> None:
        """Make a stream anew from what was kept of it."""
        stream = Stream(snapshot.name, snapshot.created_at, settle_seconds=self._settle_seconds)
        stream.restore(snapshot, records, now)
        self.streams[stream.name] = stream
        self.tidy(now)
