"""
Every metric of the daemon, on a registry that is passed in.

The shell reports what happens, in words of its own business; which series that moves is decided here and nowhere else.

Rules:

* All calls come from the event loop's thread, and so does a scrape. Therefore a scrape sees one moment, and
  `received + recovered = delivered + dropped + duplicate + buffered` holds in each of them, if what enters or leaves
  the buffer is reported in the same step.
* No label has values without a bound: no post, author or rule. Shards that are gone lose their series.
* Series whose labels are known exist from the start with 0; without that, `rate()` misses their first event.
* Called per chunk, request or record, never per post: a counter of the client library costs about 0.8 microseconds.
"""

import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, ProcessCollector, disable_created_metrics
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from service import __version__
from service.core.limits import PAYLOAD_UNIT_BYTES
from service.core.records import DropReason, FailureKind, Outcome, PutRequest, SealReason

# From the first linger to the longest back-off of a throttled shard.
_DELIVERY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# X names 6 to 7 s as the 99th percentile of the filtered stream; backfill brings posts that are minutes old.
_LAG_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 7.5, 10, 15, 30, 60, 300, 900, 3600)
_PUT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# A second series for each counter, with the time of its birth, doubles a scrape and is read by nobody.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves this one function without types


class Buffer(NamedTuple):
    """What has been received and has no outcome yet, with what it takes of the memory limit and of the journal's."""

    posts: int
    bytes: int
    journal_bytes: int = 0


class Histogram:
    """
    A histogram that takes many equal observations at once, which the client library's own does not.

    `buckets` are the upper bounds, rising, without infinity.
    """

    def __init__(self, name: str, documentation: str, buckets: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._buckets = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count `value`, `count` times. Less than nothing, which skewed clocks bring about, counts as nothing."""
        value = max(value, 0.0)
        self._counts[bisect_left(self._buckets, value)] += count
        self._sum += value * count

    def collect(self) -> Metric:
        """Give the family of its series, as a scrape wants it."""
        bounds = (*(str(float(bound)) for bound in self._buckets), "+Inf")
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(self._name, self._documentation, buckets, self._sum)


class Metrics:
    """
    What the shell reports to.

    Args:
        registry: where the series are registered; `new_registry` makes one.
        clock: seconds, of any clock that only runs forward.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"millrace_{name}", documentation, labels, registry=registry)

        self._clock = clock
        self._read_buffer: Callable[[], Buffer] = lambda: Buffer(0, 0)

        self._received = counter("posts_received_total", "Posts and lines that came from the source.")
        self._received_bytes = counter("received_bytes_total", "Bytes of the lines that came from the source.")
        self._recovered = counter("posts_recovered_total", "Posts of an earlier run that were taken up again.")
        # It enters the sum of all posts; nothing in this version finds posts twice.
        counter("posts_duplicate_total", "Posts that had been received before and were left out.")
        self._delivered = counter("posts_delivered_total", "Posts that Kinesis has confirmed.")
        self._perhaps_repeated = counter(
            "posts_perhaps_repeated_total", "Delivered posts that Kinesis may hold twice: an earlier answer was lost."
        )
        dropped = counter("posts_dropped_total", "Posts and lines that were not delivered, by reason.", "reason")
        self._dropped = {reason: dropped.labels(reason.value) for reason in DropReason}

        self._requests = counter("put_requests_total", "PutRecords requests that ended, by outcome.", "outcome")
        for outcome in ("ok", "partial", *(kind.value for kind in FailureKind)):
            self._requests.labels(outcome)
        records = counter("put_records_total", "Answers for single records, by outcome.", "outcome")
        self._records = {outcome: records.labels(outcome) for outcome in ("delivered", "throttled", "failed")}
        self._put_bytes = counter("put_bytes_total", "Bytes of all records sent: data and partition keys.")
        self._payload_units = counter(
            "put_payload_units_total", "Payload units of 25 KB of all records sent; Kinesis bills those that it took."
        )
        flushes = counter("flushes_total", "Kinesis records that were closed to be sent, by reason.", "reason")
        self._flushes = {reason: flushes.labels(reason.value) for reason in SealReason}
        self._throttles = counter("shard_throttles_total", "Records that a shard throttled.", "shard")
        self._shards: set[str] = set()
        self._order_violations = counter(
            "order_violations_total", "Records that were stored before an older one of their lane. Must stay 0."
        )

        self._connected = Gauge("millrace_stream_connected", "1 while the source is connected.", registry=registry)
        self._reconnects = counter(
            "stream_reconnects_total", "Times that the source broke off or could not be opened, by reason.", "reason"
        )
        self._keep_alives = counter("stream_keep_alives_total", "Keep-alive signals that came from the source.")
        self._gap_seconds = 0.0
        self._gap_since: float | None = None

        self._delivery = Histogram(
            "millrace_post_delivery_seconds",
            "From the arrival of a post to its confirmation; all posts of a record count as its oldest, and those that"
            " waited on disk from when they were read back.",
            _DELIVERY_BUCKETS,
        )
        self._lag = Histogram(
            "millrace_post_lag_seconds", "From the writing of a post, as its id tells, to its arrival.", _LAG_BUCKETS
        )
        self._put = Histogram("millrace_put_seconds", "Duration of PutRecords requests.", _PUT_BUCKETS)

        Info("millrace_build", "What is running.", registry=registry).info(
            {"version": __version__, "python": platform.python_version()}
        )
        registry.register(self)

    # The source

    def received(self, posts: int, size: int) -> None:
        """Posts have come, `size` bytes in all, and are in the buffer from now on."""
        self._received.inc(posts)
        self._received_bytes.inc(size)

    def rejected(self, line: bytes, reason: DropReason) -> None:
        """One line has come that is not taken: it counts as received and dropped, and must not be reported twice."""
        self.received(1, len(line))
        self._dropped[reason].inc()

    def recovered(self, posts: int) -> None:
        """Posts of an earlier run are in the buffer from now on."""
        self._recovered.inc(posts)

    def shed(self, posts: int, reason: DropReason) -> None:
        """Posts have left the buffer that are not known one by one any more."""
        self._dropped[reason].inc(posts)

    def lag(self, seconds: float, posts: int = 1) -> None:
        """Posts have come that were written `seconds` ago."""
        self._lag.observe(seconds, posts)

    def connected(self) -> None:
        """Tell that the source is open."""
        self._connected.set(1)
        self._gap_seconds = self._gap()
        self._gap_since = None

    def disconnected(self, reason: str, detail: str, retry_seconds: float, healable: bool) -> None:  # noqa: ARG002 - the log says the rest
        """Tell that the source is not open any more, or could not be opened; `reason` is one of a small fixed set."""
        self._connected.set(0)
        self._reconnects.labels(reason).inc()
        if self._gap_since is None:
            self._gap_since = self._clock()

    def keep_alive(self) -> None:
        """Tell that the source sent a sign of life."""
        self._keep_alives.inc()

    # The sink

    def request_done(self, request: PutRequest, seconds: float, outcome: str) -> None:
        """A PutRecords request has ended: ok, partial, or the value of a FailureKind."""
        self._requests.labels(outcome).inc()
        self._put.observe(seconds)
        sizes = [record.size for record in request.records]
        self._put_bytes.inc(sum(sizes))
        self._payload_units.inc(sum(-(-size // PAYLOAD_UNIT_BYTES) for size in sizes))

    def record_results(self, delivered: int, throttled: int, failed: int) -> None:
        """Tell how the records of one request fared."""
        self._records["delivered"].inc(delivered)
        self._records["throttled"].inc(throttled)
        self._records["failed"].inc(failed)

    def throttled(self, shard_id: str) -> None:
        """Tell that a shard has throttled one record."""
        self._shards.add(shard_id)
        self._throttles.labels(shard_id).inc()

    def shards(self, shard_ids: Iterable[str]) -> None:
        """Tell the open shards: each gets its series, and those of all others end."""
        present = set(shard_ids)
        for gone in self._shards - present:
            self._throttles.remove(gone)
        for shard_id in present:
            self._throttles.labels(shard_id)
        self._shards = present

    def outcomes(self, outcomes: Iterable[Outcome], now: float) -> None:
        """Posts have left the buffer. `now` is of the clock of `Post.received_at`."""
        for outcome in outcomes:
            count = len(outcome.posts)
            if outcome.reason is not None:
                self._dropped[outcome.reason].inc(count)
                continue
            self._delivered.inc(count)
            self._delivery.observe(now - outcome.posts[0].received_at, count)
            if outcome.repeated:
                self._perhaps_repeated.inc(count)

    def sealed(self, reason: SealReason) -> None:
        """Tell that a record was closed to be sent."""
        self._flushes[reason].inc()

    def order_violation(self) -> None:
        """Tell that a record was stored before an older one of its lane."""
        self._order_violations.inc()

    # The scrape

    def read_buffer_with(self, read: Callable[[], Buffer]) -> None:
        """Ask `read` at each scrape what is in the buffer; before this call it is empty."""
        self._read_buffer = read

    def collect(self) -> Iterator[Metric]:
        """Give the series that are worked out at each scrape, as the client library's collectors do."""
        buffer = self._read_buffer()
        yield GaugeMetricFamily(
            "millrace_posts_buffered", "Posts that were received and have no outcome yet.", buffer.posts
        )
        yield GaugeMetricFamily(
            "millrace_buffer_bytes", "What the posts in the buffer take of the memory limit.", buffer.bytes
        )
        yield GaugeMetricFamily("millrace_journal_bytes", "Bytes of the posts in the journal.", buffer.journal_bytes)
        # A scrape during a long outage must see it grow.
        yield CounterMetricFamily(
            "millrace_stream_gap_seconds_total", "Seconds between losing the source and having it again.", self._gap()
        )
        yield self._delivery.collect()
        yield self._lag.collect()
        yield self._put.collect()

    def _gap(self) -> float:
        return self._gap_seconds + (0.0 if self._gap_since is None else self._clock() - self._gap_since)


def new_registry() -> CollectorRegistry:
    """Make a registry that holds the figures of the process: CPU, memory, open files, start time."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    return registry
