"""
Counts and distributions as plain values: they are told, and can be read at any time.

The client library of Prometheus has both too. Its counters lock and check at each call, which costs ten times as much;
its histograms take one observation at a time; and neither can be read back, which the live page and the log want.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

OTHER = "other"
"""The label of what came when a `Counts` had no room for one more."""


class Count:
    """What only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Add `amount`, 0 or more."""
        self.value += amount


class Counts:
    """
    A count for each value of one label.

    Args:
        known: values that are there from the start, with 0.
        most: so many values at most; those beyond are counted as `OTHER`.
    """

    def __init__(self, known: Iterable[str] = (), most: int = 1 << 30) -> None:
        self._counts = {value: Count() for value in known}
        self._most = most

    def labels(self, value: str) -> Count:
        """Give the count of one value; callers in hot loops keep it."""
        count = self._counts.get(value)
        if count is None:
            if len(self._counts) >= self._most:
                value = OTHER
            count = self._counts.setdefault(value, Count())
        return count

    def keep(self, values: Iterable[str]) -> None:
        """Have counts for exactly these values: new ones begin at 0, all others end."""
        self._counts = {value: self._counts.get(value) or Count() for value in values}

    def items(self) -> Iterator[tuple[str, int]]:
        """Give each value with its count."""
        for value, count in self._counts.items():
            yield value, count.value

    @property
    def total(self) -> int:
        """All counts together."""
        return sum(count.value for count in self._counts.values())


class Seen(NamedTuple):
    """
    What a histogram had seen at one moment.

    Attributes:
        bounds: the upper bounds of its buckets, rising, without infinity.
        counts: by bucket, not added up; one more than there are bounds.
        sum: of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    def quantile(self, share: float, since: "Seen") -> float | None:
        """
        Estimate the value that `share` (0 to 1) of what came after `since` does not exceed, as Prometheus does.

        None where nothing came; what lies above all bounds counts as the highest of them.
        """
        counts = [now - then for now, then in zip(self.counts, since.counts, strict=True)]
        rank = share * sum(counts)
        if not rank:
            return None
        low = 0.0
        for bound, count in zip(self.bounds, counts, strict=False):
            if rank <= count:
                return low + (bound - low) * rank / count
            rank -= count
            low = bound
        return self.bounds[-1]


class Histogram:
    """A distribution; `bounds` are the upper bounds of its buckets, rising, without infinity."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count `value`, `count` times. Less than nothing, which skewed clocks bring about, counts as nothing."""
        value = max(value, 0.0)
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def seen(self) -> Seen:
        """Give what it has seen so far."""
        return Seen(self._bounds, tuple(self._counts), self._sum)
