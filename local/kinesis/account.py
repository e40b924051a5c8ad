"""
The streams of one account in one region: which there are, what they may hold together, what happened to them.

Whatever changes a stream is handed to `keep` as an event before the change is answered; the same events, applied in
their order to an empty account, bring everything back. Records are forgotten by age and, when all streams together hold
more than `memory_limit` bytes, oldest first. Deciding that depends on nothing but the events, so that it comes out the
same when they are replayed.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from local import ACCOUNT
from local.kinesis.errors import KinesisError
from local.kinesis.faults import Plan
from local.kinesis.shards import Bucket, Record
from local.kinesis.sigv4 import AccessKey
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


class Put(msgspec.Struct, tag="put"):
    """Records were accepted."""

    stream: str
    records: list[Record]

    @property
    def at(self) -> float:
        """When that was."""
        return self.records[-1].arrival


class Read(msgspec.Struct, tag="read"):
    """A shard was read up to a position."""

    at: float
    stream: str
    shard: int
    position: int


Event = Snapshot | Put | Read


class Account:
    """
    All streams by name, and who may sign. `memory_limit` is in bytes of data and keys, over all streams.

    `requests`, `refused` (by the client's fault) and `injected` (by a fault put in force) count requests, by operation
    and by error code.
    """

    def __init__(
        self,
        *,
        region: str,
        keys: Mapping[str, AccessKey],
        memory_limit: int,
        settle_seconds: float,
        keep: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self.streams: dict[str, Stream] = {}
        self.requests: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.keep = keep
        self.region = region
        self.keys = keys
        self._memory_limit = memory_limit
        self._settle_seconds = settle_seconds
        self._rates: dict[tuple[str, str], Bucket] = {}

    def create(self, name: str, shards: int, now: float) -> Stream:
        """Make a stream that is ACTIVE at once."""
        stream = Stream.create(name, shards, now, region=self.region, settle_seconds=self._settle_seconds)
        self.streams[name] = stream
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
        wanted = arn.rpartition(":stream/")[2] if name is None and arn is not None else name
        stream = self.streams.get(wanted or "")
        if stream is None or (arn is not None and arn != stream.facts.arn):
            raise KinesisError("ResourceNotFoundException", f"Stream {arn or name} under account {ACCOUNT} not found.")
        return stream

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
        for stream in list(self.streams.values()):
            if stream.facts.busy_as == "DELETING" and stream.status(now) == "ACTIVE":
                del self.streams[stream.name]
            else:
                stream.trim_expired(now)
        while sum(stream.stored_bytes for stream in self.streams.values()) > self._memory_limit:
            holders = [(record.arrival, stream.name) for stream in self.streams.values() if (record := stream.oldest)]
            self.streams[min(holders)[1]].trim_oldest()

    def happened(self, event: Event) -> None:
        """Keep an event whose change is made already."""
        self.tidy(event.at)
        self.keep(event)

    def apply(self, event: Event) -> None:
        """
        Do again what an event says was done.

        Records are forgotten at the same places as the first time: before a read, after a write, and before a snapshot,
        whose counts hold what was forgotten until then.
        """
        if isinstance(event, Put):
            self.streams[event.stream].store(event.records)
            self.tidy(event.at)
            return
        self.tidy(event.at)
        if isinstance(event, Snapshot):
            name = event.facts.name
            if name not in self.streams or self.streams[name].facts.created_at != event.facts.created_at:
                self.streams[name] = Stream(event.facts, settle_seconds=self._settle_seconds)
            self.streams[name].adopt(event, event.at)
        else:
            facts = self.streams[event.stream].map.shards[event.shard].facts
            facts.read_to = max(facts.read_to, event.position)

    def trimmed_to(self) -> dict[str, int]:
        """Return for each stream the position up to which no record is kept."""
        return {
            name: stream.oldest.position - 1 if stream.oldest else stream.map.position
            for name, stream in self.streams.items()
        }
