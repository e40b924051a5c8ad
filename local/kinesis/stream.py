"""
A Kinesis stream as a pure model: writing, sequence numbers, reading, trimming, changes. Time is an argument.

The numbers are the published ones: the service model of API version 2013-12-02 (as shipped with botocore 1.43) and the
"quotas and limits" page of the Kinesis developer guide. What they leave open is decided so:

* A sequence number is a record's position in 56 digits, after the stream's time of creation and before the shard's
  number: a stream made anew under an old name starts above the old one.
* An on-demand stream keeps the shards that it has.
* While a change settles only the status says so; reads and writes go on with the new shards.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import msgspec

from local import ACCOUNT, REGION
from local.kinesis.errors import CODES, THROTTLED, KinesisError
from local.kinesis.faults import NO_FAULTS, Faults, Plan
from local.kinesis.limits import Entry, check_entries, hash_key
from local.kinesis.shards import MIB, Record, Shard, ShardFacts, ShardMap

MAX_READ_BYTES = 10 * MIB
RETENTION_HOURS = 24
MODE_CHANGES_PER_DAY = 2


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
    """A stream's settings, and what it is busy with until when."""

    mode: str = "PROVISIONED"
    max_record_kib: int = 1024
    mode_changed_at: list[float] = []
    busy_as: str = "ACTIVE"
    busy_until: float = 0.0


class Snapshot(msgspec.Struct):
    """A stream without its records, as it is kept on disk."""

    name: str
    created_at: float
    shards: list[ShardFacts]
    position: int
    facts: StreamFacts = msgspec.field(default_factory=StreamFacts)


class Stream:
    """
    One stream. All methods that refuse raise KinesisError with the service's code.

    `faults` holds what is made to go wrong. `settle_seconds` is how long a change shows in the status.
    """

    def __init__(self, name: str, created_at: float, *, settle_seconds: float = 0.0) -> None:
        self.name = name
        self.created_at = created_at
        self.arn = f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/{name}"
        # As the service's messages name it.
        self.where = f"stream {name} under account {ACCOUNT}"
        self.facts = StreamFacts()
        self.faults = Faults()
        self.map = ShardMap()
        self.stored_bytes = 0
        self._settle_seconds = settle_seconds
        self._prefix = f"49{int(created_at * 1000):016d}"
        self._arrivals: deque[Shard] = deque()

    def snapshot(self) -> Snapshot:
        """Return what is to be kept of the stream as it is now, beside its records."""
        shards = [shard.facts for shard in self.map.shards]
        return Snapshot(self.name, self.created_at, shards, self.map.position, self.facts)

    def restore(self, snapshot: Snapshot, records: Sequence[Record], now: float) -> None:
        """Become what a snapshot says, with the records that were kept."""
        self.facts = snapshot.facts
        self.map.restore(snapshot.shards, snapshot.position, now)
        self._append(records)

    # Facts

    def status(self, now: float) -> str:
        """Return ACTIVE, or CREATING, UPDATING or DELETING while that settles."""
        return self.facts.busy_as if now < self.facts.busy_until else "ACTIVE"

    def is_gone(self, now: float) -> bool:
        """Whether it has been deleted."""
        return self.facts.busy_as == "DELETING" and now >= self.facts.busy_until

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

    def unexpired(self, now: float) -> list[Shard]:
        """Return the shards open now or within the retention period, by number; none while CREATING."""
        if self.status(now) == "CREATING":
            return []
        horizon = _horizon(now)
        return [shard for shard in self.map.shards if shard.facts.closed_at is None or shard.facts.closed_at >= horizon]

    # Writing

    def put(self, entries: Sequence[Entry], now: float, plan: Plan = NO_FAULTS) -> list[Record | Failure]:
        """
        Store what passes and return one result for each entry, in their order; `plan` says which shall not pass.

        Raises KinesisError if the request breaks a limit, and then nothing is stored.
        """
        if self.status(now) == "CREATING":
            raise KinesisError("ResourceNotFoundException", f"The {self.where} is being made.")
        sizes = check_entries(entries, self.facts.max_record_kib * 1024)
        results: list[Record | Failure] = []
        accepted: list[Record] = []
        position = self.map.position
        for entry, size in zip(entries, sizes, strict=True):
            shard = self.map.at(hash_key(entry))
            code = plan.failure(shard.index)
            if code is None and not shard.admit(size, now):
                code = THROTTLED
            if code is None:
                position += 1
                record = Record(
                    position, shard.index, now, size, entry.data, entry.partition_key, entry.explicit_hash_key
                )
                shard.facts.accepted += 1
                shard.facts.accepted_bytes += size
                accepted.append(record)
                results.append(record)
            elif code == THROTTLED:
                shard.facts.throttled += 1
                results.append(self._throttled(shard))
            else:
                shard.facts.failed += 1
                results.append(Failure(code, CODES[code][1]))
        self.map.position = position
        self._append(accepted)
        return results

    def _append(self, records: Sequence[Record]) -> None:
        for record in records:
            shard = self.map.shards[record.shard]
            shard.records.append(record)
            self.stored_bytes += record.size
            self._arrivals.append(shard)

    def _throttled(self, shard: Shard) -> Failure:
        return Failure(THROTTLED, f"Rate exceeded for shard {shard.name} in {self.where}.")

    # Reading

    def start_reading(self, shard: Shard, now: float) -> None:
        """Count an iterator of a shard, of which a shard gives five a second."""
        if not shard.iterators.holds(1, now):
            raise KinesisError(*self._throttled(shard))
        shard.iterators.take(1)

    def read(self, shard: Shard, after: int, limit: int, now: float) -> Reading:
        """
        Return up to `limit` records with a position above `after`.

        At most 10 MiB (one record at least), 5 calls a second and 2 MiB a second for each shard; what a call returns
        beyond that is paid back by waiting.
        """
        if not (shard.reads.holds(1, now) and shard.read_bytes.holds(1, now)):
            raise KinesisError(*self._throttled(shard))
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
        if start + len(records) < len(shard.records):
            return Reading(records, after, max(0.0, now - records[-1].arrival))
        return Reading(records, after if shard.is_open else None, 0.0)

    # Trimming

    @property
    def oldest(self) -> Record | None:
        """The oldest record that is kept."""
        return self._arrivals[0].records[0] if self._arrivals else None

    def trim_oldest(self) -> None:
        """Forget the oldest record."""
        self.stored_bytes -= self._arrivals.popleft().records.popleft().size

    def trim_expired(self, now: float) -> None:
        """Forget what is older than the retention period."""
        horizon = _horizon(now)
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
        self._require_active(now)
        count = len(self.map.open)
        if not count <= target * 2 <= count * 4:
            raise KinesisError(
                "LimitExceededException",
                "UpdateShardCount cannot scale above double or below half of the current open shard count. "
                f"Current open shard count: {count}, target shard count: {target}",
            )
        self.map.scale(target, now)
        self.settle("UPDATING", now)

    def set_mode(self, mode: str, now: float) -> None:
        """Change to PROVISIONED or ON_DEMAND, twice in 24 hours at most; the shards stay."""
        self._require_active(now)
        recent = [time for time in self.facts.mode_changed_at if time > now - 86_400]
        if len(recent) >= MODE_CHANGES_PER_DAY:
            times = f"{MODE_CHANGES_PER_DAY} times in 24 hours"
            raise KinesisError("LimitExceededException", f"The mode of {self.where} was changed {times}.")
        self.facts.mode, self.facts.mode_changed_at = mode, [*recent, now]
        self.settle("UPDATING", now)

    def set_max_record_size(self, kib: int, now: float) -> None:
        """Change how large a record may be, in KiB."""
        self._require_active(now)
        self.facts.max_record_kib = kib
        self.settle("UPDATING", now)

    def delete(self, now: float) -> None:
        """Be gone when that has settled; until then reads and writes go on."""
        self._require_active(now)
        self.settle("DELETING", now)

    def settle(self, state: str, now: float) -> None:
        """Have the status show for a while what is done."""
        self.facts.busy_as, self.facts.busy_until = state, now + self._settle_seconds

    def _require_provisioned(self) -> None:
        if self.facts.mode != "PROVISIONED":
            raise KinesisError("ValidationException", f"The {self.where} is not in PROVISIONED mode.")

    def _require_active(self, now: float) -> None:
        if self.status(now) != "ACTIVE":
            raise KinesisError(
                "ResourceInUseException",
                f"Stream {self.name} under account {ACCOUNT} not ACTIVE, instead in state {self.status(now)}",
            )

    def _changeable(self, name: str, now: float) -> Shard:
        self._require_provisioned()
        self._require_active(now)
        shard = self.shard(name, now)
        if not shard.is_open:
            raise KinesisError("InvalidArgumentException", f"Shard {name} in {self.where} is closed.")
        return shard


def _horizon(now: float) -> float:
    return now - RETENTION_HOURS * 3600


def _position(record: Record) -> int:
    return record.position
