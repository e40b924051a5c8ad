"""
What a shard may take now, in records and bytes a second, learnt from its throttles.

A shard takes 1,000 records and 1 MiB a second from all producers together. Alone, we may use all of it; beside
others only a share, which nobody tells us. So the share is found as TCP finds its window: a throttle multiplies it
by `DECREASE`, every second without one adds `INCREASE`. Producers that do the same converge to equal shares.

The buckets may go into debt by one record: a record larger than what is left must still pass some time, and pays
by making the next one wait.
"""

from service.core.limits import SHARD_BYTES_PER_SECOND, SHARD_RECORDS_PER_SECOND

DECREASE = 0.7
INCREASE = 0.05
# All records of a request that a shard throttles are one event, and so are the retries that were already under way.
THROTTLE_PAUSE = 0.25
# Unused allowance is kept for this long; Kinesis itself allows about a second.
BURST_SECONDS = 0.5


class Pace:
    """One shard's allowance. Times are seconds of any clock that only runs forward."""

    __slots__ = ("_bytes", "_records", "_refilled_at", "_throttled_at", "share")

    def __init__(self, now: float) -> None:
        self.share = 1.0
        self._records = SHARD_RECORDS_PER_SECOND * BURST_SECONDS
        self._bytes = SHARD_BYTES_PER_SECOND * BURST_SECONDS
        self._refilled_at = now
        self._throttled_at = float("-inf")

    def ready_at(self, now: float) -> float:
        """When the next record may go: `now` if at once."""
        self._refill(now)
        debt = max(
            -self._records / (SHARD_RECORDS_PER_SECOND * self.share),
            -self._bytes / (SHARD_BYTES_PER_SECOND * self.share),
        )
        # Less than a microsecond is the rounding of the sum above, not a debt.
        return now + debt if debt > 1e-6 else now

    def share_at(self, now: float) -> float:
        """The share of the shard's limits that may be used by now; unlike the others it changes nothing."""
        return min(1.0, self.share + INCREASE * max(0.0, now - self._refilled_at))

    def take(self, size: int, now: float) -> None:
        """Count a record of `size` bytes that is sent now."""
        self._refill(now)
        self._records -= 1
        self._bytes -= size

    def throttled(self, now: float) -> None:
        """Kinesis refused a record of this shard for its rate."""
        if now - self._throttled_at < THROTTLE_PAUSE:
            return
        self._refill(now)
        self._throttled_at = now
        self.share *= DECREASE
        self._records = min(self._records, 0.0)
        self._bytes = min(self._bytes, 0.0)

    def _refill(self, now: float) -> None:
        elapsed = now - self._refilled_at
        if elapsed <= 0:
            return
        self._refilled_at = now
        self.share = min(1.0, self.share + INCREASE * elapsed)
        records = SHARD_RECORDS_PER_SECOND * self.share
        size = SHARD_BYTES_PER_SECOND * self.share
        self._records = min(records * BURST_SECONDS, self._records + records * elapsed)
        self._bytes = min(size * BURST_SECONDS, self._bytes + size * elapsed)
