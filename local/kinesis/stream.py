"""
A Kinesis stream as a pure model: writing, sequence numbers, reading, trimming, changes. Time is an argument.

The numbers are the published ones: the service model of API version 2013-12-02 (as shipped with botocore 1.43) and the
"quotas and limits" page of the Kinesis developer guide. What they leave open is decided so:

* A sequence number is a record's position in 56 digits, after the stream's time of creation and before the shard's
  number: a stream made anew under an old name starts above the old one.
* Streams with AUTO distribution place records in turn over the open shards.
* While a change settles only the status says so; reads and writes go on with the new shards.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from local import ACCOUNT, REGION
from local.kinesis.errors import CODES, THROTTLED, KinesisError
from local.kinesis.faults import Faults, Plan
from local.kinesis.limits import Entry, check_entries, hash_key
from local.kinesis.shards import MIB, Record, Shard, ShardFacts, ShardMap

MAX_READ_BYTES = 10 * MIB
RESCALES_PER_DAY = 10
MODE_CHANGES_PER_DAY = 2
DAY_SECONDS = 86_400.0


class Failure(NamedTuple):
    """One record of a request was not stored."""

    code: str
    message: str


class Reading(NamedTuple):
    """The answer to a read; `after` is where the next one goes on, None at the end of a closed shard."""

    records: list[Record]
    after: int | None
    behind_seconds: float


class StreamFacts(msgspec.Struct):
    """A stream's own facts, beside its shards and records."""

    name: str
    arn: str
    created_at: float
    mode: str = "PROVISIONED"
    strategy: str = "USER_PARTITION_KEY"
    max_record_kib: int = 1024
    retention_hours: int = 24
    busy_as: str = "CREATING"
    busy_until: float = 0.0
    rescaled_at: list[float] = []
    mode_changed_at: list[float] = []


class Snapshot(msgspec.Struct, tag="stream"):
    """A stream at one moment, `at`, without its records; an event of the log."""

    at: float
    facts: StreamFacts
    shards: list[ShardFacts]
    position: int


class Stream:
    """
    One stream. All methods that refuse raise KinesisError with the service's code.

    `faults` holds what is made to go wrong; `put` obeys it by itself. `settle_seconds` is how long a change of the
    stream shows as CREATING, UPDATING or DELETING.
    """

    def __init__(self, facts: StreamFacts, *, settle_seconds: float = 0.0) -> None:
        self.facts = facts
        self.faults = Faults()
        self.map = ShardMap()
        self.stored_bytes = 0
        self.settle_seconds = settle_seconds
        self._prefix = f"49{int(facts.created_at * 1000):016d}"
        self._arrivals: deque[Shard] = deque()
        self._turn = 0

    @classmethod
    def create(
        cls, name: str, shards: int, now: float, *, region: str = REGION, settle_seconds: float = 0.0
    ) -> "Stream":
        """Return a new provisioned stream, ACTIVE at once, whose shards have ranges of equal size."""
        facts = StreamFacts(name, f"arn:aws:kinesis:{region}:{ACCOUNT}:stream/{name}", now)
        stream = cls(facts, settle_seconds=settle_seconds)
        stream.map.create(shards, now)
        return stream

    def adopt(self, snapshot: Snapshot, now: float) -> None:
        """Take over a snapshot of the same stream, as read back from disk. Records stay."""
        self.facts = snapshot.facts
        self.map.adopt(snapshot.shards, snapshot.position, now)

    def snapshot(self, now: float) -> Snapshot:
        """Return what is to be kept of the stream as it is now, beside its records. Shares its values."""
        return Snapshot(now, self.facts, [shard.facts for shard in self.map.shards], self.map.position)

    # Facts

    @property
    def name(self) -> str:
        """The stream's name."""
        return self.facts.name

    @property
    def where(self) -> str:
        """The stream as the service's messages name it."""
        return f"stream {self.name} under account {ACCOUNT}"

    @property
    def is_automatic(self) -> bool:
        """Whether partition keys are ignored."""
        return self.facts.strategy == "AUTO"

    def status(self, now: float) -> str:
        """Return ACTIVE, or what the stream is busy with."""
        return self.facts.busy_as if now < self.facts.busy_until else "ACTIVE"

    def sequence_number(self, position: int, shard: int) -> str:
        """Return the 56 digits of a position in a shard."""
        return f"{self._prefix}{position:026d}{shard:012d}"

    def position(self, sequence_number: str, shard: Shard) -> int:
        """Return the position in a sequence number of this shard."""
        digits = sequence_number
        if len(digits) != 56 or not digits.startswith(self._prefix) or int(digits[44:]) != shard.index:
            raise KinesisError(
                "InvalidArgumentException",
                f"The sequence number {digits} did not come from {shard.name} in {self.where}.",
            )
        return int(digits[18:44])

    def shard(self, name: str, now: float) -> Shard:
        """Return the shard of this ShardId; expired ones are gone."""
        for shard in self.unexpired(now):
            if shard.name == name:
                return shard
        raise KinesisError("ResourceNotFoundException", f"Could not find shard {name} in {self.where}.")

    def horizon(self, now: float) -> float:
        """Return the time before which nothing is kept: the trim horizon."""
        return max(self.facts.created_at, now - self.facts.retention_hours * 3600)

    def unexpired(self, now: float) -> list[Shard]:
        """Return the shards that are open or were closed within the retention period, by number."""
        return self.open_between(self.horizon(now), now, now)

    def open_between(self, since: float, until: float, now: float) -> list[Shard]:
        """Return the unexpired shards that were open at some moment of the period, both ends included."""
        since = max(since, self.horizon(now))
        return [
            shard
            for shard in self.map.shards
            if shard.facts.opened_at <= until and (shard.facts.closed_at is None or shard.facts.closed_at >= since)
        ]

    # Writing

    def check(self, entries: Sequence[Entry]) -> list[int]:
        """Return the entries' sizes in bytes; raise KinesisError if the request breaks a limit."""
        return check_entries(
            entries, max_record_bytes=self.facts.max_record_kib * 1024, keys_required=not self.is_automatic
        )

    def put(self, entries: Sequence[Entry], now: float, plan: Plan | None = None) -> list[Record | Failure]:
        """
        Store what passes and return one result for each entry, in their order.

        Raises KinesisError if the request as a whole is refused, and then nothing is stored. `plan` is passed by a
        caller who has begun the request with `faults` already.
        """
        plan = self.faults.begin("PutRecords", now) if plan is None else plan
        if plan.error:
            raise plan.error
        sizes = self.check(entries)
        results: list[Record | Failure] = []
        accepted: list[Record] = []
        position = self.map.position
        automatic, faulty = self.is_automatic, plan.touches_records
        for entry, size in zip(entries, sizes, strict=True):
            if automatic:
                self._turn += 1
                shard = self.map.open[self._turn % len(self.map.open)]
            else:
                shard = self.map.at(hash_key(entry))
            if faulty and (code := plan.failure(shard.index)):
                if code == THROTTLED:
                    shard.facts.throttled_by_fault += 1
                else:
                    shard.facts.failed_by_fault += 1
                results.append(self._failure(code, shard))
            elif shard.admit(size, now):
                position += 1
                record = Record(
                    position, shard.index, now, size, entry.data, entry.partition_key, entry.explicit_hash_key
                )
                accepted.append(record)
                results.append(record)
            else:
                shard.facts.throttled += 1
                results.append(self._failure(THROTTLED, shard))
        self.store(accepted)
        return results

    def _failure(self, code: str, shard: Shard) -> Failure:
        if code == THROTTLED:
            return Failure(code, f"Rate exceeded for shard {shard.name} in {self.where}.")
        return Failure(code, CODES[code][1])

    def store(self, records: Sequence[Record]) -> None:
        """Append accepted records to their shards; also how they come back from disk."""
        shards, arrivals = self.map.shards, self._arrivals
        for record in records:
            shard = shards[record.shard]
            shard.records.append(record)
            shard.facts.accepted += 1
            shard.facts.accepted_bytes += record.size
            self.stored_bytes += record.size
            arrivals.append(shard)
        if records:
            self.map.position = records[-1].position

    # Reading

    def read(self, shard: Shard, after: int, limit: int, now: float) -> Reading:
        """
        Return up to `limit` records with a position above `after`.

        At most 10 MiB (one record at least), 5 calls a second and 2 MiB a second for each shard; what a call returns
        beyond that is paid back by waiting.
        """
        if not (shard.reads.holds(1, now) and shard.read_bytes.holds(1, now)):
            raise KinesisError(*self._failure(THROTTLED, shard))
        start = bisect_right(shard.records, after, key=_position)
        records: list[Record] = []
        size = 0
        for record in islice(shard.records, start, start + limit):
            if records and size + record.size > MAX_READ_BYTES:
                break
            size += record.size
            records.append(record)
        shard.reads.take(1)
        shard.read_bytes.take(size)
        if records:
            after = records[-1].position
            shard.facts.read_to = max(shard.facts.read_to, after)
        if start + len(records) < len(shard.records):
            return Reading(records, after, max(0.0, now - records[-1].arrival))
        return Reading(records, after if shard.is_open else None, 0.0)

    def position_at(self, shard: Shard, timestamp: float) -> int:
        """Return the position after which the records are that arrived at this time or later."""
        index = bisect_left(shard.records, timestamp, key=_arrival)
        return shard.records[index].position - 1 if index < len(shard.records) else self.map.position

    # Trimming

    @property
    def oldest(self) -> Record | None:
        """The oldest record that is kept."""
        return self._arrivals[0].records[0] if self._arrivals else None

    def trim_oldest(self) -> None:
        """Forget the oldest record; one that was never read is counted as such."""
        shard = self._arrivals.popleft()
        record = shard.records.popleft()
        self.stored_bytes -= record.size
        if record.position > shard.facts.read_to:
            shard.facts.trimmed_unread += 1

    def trim_expired(self, now: float) -> None:
        """Forget what is older than the retention period."""
        horizon = self.horizon(now)
        while self._arrivals and self._arrivals[0].records[0].arrival < horizon:
            self.trim_oldest()

    # Changing

    def split(self, name: str, new_start: int, now: float) -> None:
        """Close a shard; two children share its range, the upper one from `new_start` on."""
        shard = self._changeable(name, now)
        if not shard.start + 1 < new_start < shard.end:
            raise KinesisError(
                "InvalidArgumentException",
                f"NewStartingHashKey {new_start} used in SplitShard() on shard {name} in {self.where} is not both "
                f"greater than one plus the shard's StartingHashKey {shard.start} and less than the shard's "
                f"EndingHashKey {shard.end}.",
            )
        self.map.split(shard, new_start, now)
        self.settle("UPDATING", now)

    def merge(self, name: str, adjacent: str, now: float) -> None:
        """Close two neighbours; one child takes both ranges."""
        pair = self._changeable(name, now), self._changeable(adjacent, now)
        lower, upper = sorted(pair, key=lambda shard: shard.start)
        if lower.end + 1 != upper.start:
            raise KinesisError(
                "InvalidArgumentException",
                f"Shards {name} and {adjacent} in {self.where} are not an adjacent pair of shards eligible for merging",
            )
        self.map.merge(*pair, now)
        self.settle("UPDATING", now)

    def scale(self, target: int, now: float) -> None:
        """Split and merge until there are `target` shards of equal ranges, at most double and at least half."""
        self._require_provisioned()
        self.require_active(now)
        count = len(self.map.open)
        if not count <= target * 2 <= count * 4:
            raise KinesisError(
                "LimitExceededException",
                "UpdateShardCount cannot scale above double or below half of the current open shard count. "
                f"Current open shard count: {count}, target shard count: {target}",
            )
        self.facts.rescaled_at = self._one_more_today(self.facts.rescaled_at, RESCALES_PER_DAY, now)
        self.map.scale(target, now)
        self.settle("UPDATING", now)

    def set_mode(self, mode: str, now: float) -> None:
        """Change to PROVISIONED or ON_DEMAND; the shards stay."""
        self.require_active(now)
        self.facts.mode_changed_at = self._one_more_today(self.facts.mode_changed_at, MODE_CHANGES_PER_DAY, now)
        self.facts.mode = mode
        self.facts.strategy = "USER_PARTITION_KEY"
        self.settle("UPDATING", now)

    def set_strategy(self, strategy: str, now: float) -> None:
        """Change to AUTO or USER_PARTITION_KEY; on-demand streams only, in force at once."""
        if self.facts.mode != "ON_DEMAND":
            raise KinesisError("ValidationException", "The record distribution strategy needs ON_DEMAND mode.")
        self.require_active(now)
        self.facts.strategy = strategy

    def set_max_record_size(self, kib: int, now: float) -> None:
        """Change the largest size of a record, in KiB."""
        self.require_active(now)
        self.facts.max_record_kib = kib
        self.settle("UPDATING", now)

    def settle(self, state: str, now: float) -> None:
        """Show as busy with `state` for `settle_seconds`."""
        self.facts.busy_as = state
        self.facts.busy_until = now + self.settle_seconds

    def require_active(self, now: float) -> None:
        """Raise KinesisError while a change settles."""
        if self.status(now) != "ACTIVE":
            raise KinesisError(
                "ResourceInUseException",
                f"Stream {self.name} under account {ACCOUNT} not ACTIVE, instead in state {self.status(now)}",
            )

    def _require_provisioned(self) -> None:
        if self.facts.mode != "PROVISIONED":
            raise KinesisError("ValidationException", f"The {self.where} is not in PROVISIONED mode.")

    def _changeable(self, name: str, now: float) -> Shard:
        self._require_provisioned()
        self.require_active(now)
        shard = self.shard(name, now)
        if not shard.is_open:
            raise KinesisError("InvalidArgumentException", f"Shard {name} in {self.where} is closed.")
        return shard

    def _one_more_today(self, times: list[float], limit: int, now: float) -> list[float]:
        recent = [time for time in times if time > now - DAY_SECONDS]
        if len(recent) >= limit:
            raise KinesisError("LimitExceededException", f"The {self.where} was changed so {limit} times in 24 hours.")
        return [*recent, now]


def _position(record: Record) -> int:
    return record.position


def _arrival(record: Record) -> float:
    return record.arrival
