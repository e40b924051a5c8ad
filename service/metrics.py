"""
Every metric of the daemon, on a registry that is passed in.

The shell reports what happens, in words of its own business; which series that moves is decided here and nowhere else.

Rules:

* All calls come from the event loop's thread, and so does a scrape. Therefore a scrape sees one moment, and
  `received + recovered = delivered + dropped + duplicate + buffered` holds in each of them, if what enters or leaves
  the buffer is reported in the same step.
* No label has values without a bound: no post, author or rule; X's words to an operator are one series. Shards that
  are gone lose their series.
* Series whose labels are known exist from the start with 0; without that, `rate()` misses their first event.
* Called per chunk, request or record, never per post. What can be had by looking is looked up at the scrape.

On CPython 3.11 a count costs 0.09 microseconds (the client library's own 0.6, with a label 3.7 in place of 0.2), a
request with one record 14, each further record one more, and a scrape of a stream with 4 shards 2 milliseconds of the
loop, with 100 shards 9. `python -m timeit` with `Metrics(new_registry())` shows it.
"""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Info, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from service import __version__
from service.core.figures import Count, Counts, Histogram
from service.core.gaps import written_at
from service.core.limits import ON_DEMAND_UNIT_BYTES, PAYLOAD_UNIT_BYTES
from service.core.look import Buffer, Inside, Look, SourceFigures
from service.core.reconnect import Reason
from service.core.records import DropReason, FailureKind, Outcome, PutRequest, RecordResult, RequestFailure, SealReason

# From the first linger to the longest back-off of a throttled shard.
_DELIVERY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 7.5, 10, 15, 30, 60, 300)
# X names 6 to 7 s as the 99th percentile of the filtered stream; backfill brings posts that are minutes old.
_LAG_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 7.5, 10, 15, 30, 60, 300, 900, 3600)
_PUT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# A request has at most 500 records and 10 MiB; a full container has 50 KiB, one that waited 200.
_RECORDS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 500)
_BYTES_BUCKETS = (1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 10485760)
# A tick of the loop that is late delays everything: answers, timers, the health check.
_LOOP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
# Kinesis documents about twenty; a proxy in between may invent any number of its own.
_CODES_AT_MOST = 40


class Metrics:
    """
    What the shell reports to.

    Args:
        registry: where the series are registered; `new_registry` makes one.
        wall: the time of day, in seconds since 1970.

    Attributes:
        read_buffer, read_inside, read_source: asked at each scrape and look; until somebody sets them there is nothing.
    """

    def __init__(self, registry: CollectorRegistry, wall: Callable[[], float] = time.time) -> None:
        self.read_buffer: Callable[[], Buffer] = Buffer
        self.read_inside: Callable[[], Inside] = Inside
        self.read_source: Callable[[], SourceFigures] = SourceFigures
        self._families: list[Callable[[], Metric]] = []
        self._wall = wall

        self._received = self._counter("posts_received_total", "Posts and lines that came from the source.")
        self._received_bytes = self._counter("received_bytes_total", "Bytes of the lines that came from the source.")
        self._recovered = self._counter("posts_recovered_total", "Posts of an earlier run that were taken up again.")
        self._duplicate = self._counter(
            "posts_duplicate_total", "Posts that had been received before and were left out."
        )
        self._delivered = self._counter("posts_delivered_total", "Posts that Kinesis has confirmed.")
        self._perhaps_repeated = self._counter(
            "posts_perhaps_repeated_total", "Delivered posts that Kinesis may hold twice: an earlier answer was lost."
        )
        self._dropped = self._counters(
            "posts_dropped_total",
            "Posts and lines that were not delivered, by reason.",
            "reason",
            [reason.value for reason in DropReason],
        )

        self._requests = self._counters(
            "put_requests_total",
            "PutRecords requests that ended, by outcome.",
            "outcome",
            ["ok", "partial", *(kind.value for kind in FailureKind)],
        )
        self._records = self._counters(
            "put_records_total",
            "Answers for single records, by outcome.",
            "outcome",
            ["delivered", "throttled", "failed"],
        )
        self._retries = self._counter(
            "put_record_retries_total", "Records in PutRecords requests that had been sent before."
        )
        self._errors = self._counters(
            "put_errors_total",
            "Error codes that Kinesis, or what stands before it, gave for records and for whole requests.",
            "code",
            ["ProvisionedThroughputExceededException", "InternalFailure"],
            most=_CODES_AT_MOST,
        )
        self._put_bytes = self._counter("put_bytes_total", "Bytes of all records sent: data and partition keys.")
        self._billed_units = self._counter(
            "billed_payload_units_total",
            "Payload units of 25 KB of the records that Kinesis took: by these it bills a provisioned stream.",
        )
        self._billed_bytes = self._counter(
            "billed_bytes_total",
            "Bytes of the records that Kinesis took, each rounded up to 1 KB: by these it bills an on-demand stream.",
        )
        self._flushes = self._counters(
            "flushes_total",
            "Kinesis records that were closed to be sent, by reason.",
            "reason",
            [reason.value for reason in SealReason],
        )
        self._shard_throttles = self._counters("shard_throttles_total", "Records that a shard throttled.", "shard")
        self._shard_records = self._counters("shard_records_total", "Records that a shard took.", "shard")
        self._shard_bytes = self._counters("shard_bytes_total", "Bytes of the records that a shard took.", "shard")
        self._order_violations = self._counter(
            "order_violations_total", "Records that were stored before an older one of their lane. Must stay 0."
        )

        self._reconnects = self._counters(
            "stream_reconnects_total",
            "Times that the source broke off or could not be opened, by reason.",
            "reason",
            list(Reason),
        )
        self._connected = False
        self._retry_at = 0.0
        self._received_at = self._delivered_at = self._signal_at = 0.0

        self._delivery = self._histogram(
            "post_delivery_seconds",
            "From the arrival of a post to its confirmation; all posts of a record count as its oldest, and those that"
            " waited on disk from when they were read back.",
            _DELIVERY_BUCKETS,
        )
        self._lag = self._histogram(
            "post_lag_seconds", "From the writing of a post, as its id tells, to its arrival.", _LAG_BUCKETS
        )
        self._whole = self._histogram(
            "post_whole_way_seconds",
            "From the writing of a post, as its id tells, to its confirmation, whatever it waited for; all posts of a"
            " record count as its oldest.",
            _LAG_BUCKETS,
        )
        self._put = self._histogram("put_seconds", "Duration of PutRecords requests.", _PUT_BUCKETS)
        self._request_records = self._histogram(
            "put_request_records", "Records in a PutRecords request.", _RECORDS_BUCKETS
        )
        self._request_bytes = self._histogram(
            "put_request_bytes", "Bytes of a PutRecords request: data and partition keys.", _BYTES_BUCKETS
        )
        self._loop_delay = self._histogram(
            "loop_delay_seconds", "How late a timer of the event loop came, looked at once a second.", _LOOP_BUCKETS
        )

        Info("millrace_build", "What is running.", registry=registry).info(
            {"version": __version__, "python": platform.python_version()}
        )
        registry.register(self)

    def _counter(self, name: str, documentation: str) -> Count:
        count = Count()
        self._families.append(lambda: CounterMetricFamily(f"millrace_{name}", documentation, count.value))
        return count

    def _counters(
        self, name: str, documentation: str, label: str, known: Sequence[str] = (), most: int = 1 << 30
    ) -> Counts:
        counts = Counts(known, most)
        self._families.append(
            lambda: _filled(CounterMetricFamily(f"millrace_{name}", documentation, labels=[label]), counts.items())
        )
        return counts

    def _histogram(self, name: str, documentation: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(buckets)
        bounds = [*(str(float(bound)) for bound in buckets), "+Inf"]

        def collect() -> Metric:
            seen = histogram.seen()
            totals = list(zip(bounds, accumulate(seen.counts), strict=True))
            return HistogramMetricFamily(f"millrace_{name}", documentation, totals, seen.sum)

        self._families.append(collect)
        return histogram

    # The source

    def received(self, posts: int, size: int) -> None:
        """Posts have come, `size` bytes in all, and are in the buffer from now on."""
        self._received.inc(posts)
        self._received_bytes.inc(size)
        self._received_at = self._signal_at = self._wall()

    def rejected(self, line: bytes, reason: DropReason) -> None:
        """One line has come that is not taken: it counts as received and dropped, and must not be reported twice."""
        self.received(1, len(line))
        self._dropped.labels(reason.value).inc()

    def recovered(self, posts: int) -> None:
        """Posts of an earlier run are in the buffer from now on."""
        self._recovered.inc(posts)

    def shed(self, posts: int, reason: DropReason) -> None:
        """Posts have left the buffer that are not known one by one any more."""
        self._dropped.labels(reason.value).inc(posts)

    def lag(self, seconds: float, posts: int) -> None:
        """Posts have come that were written `seconds` ago."""
        self._lag.observe(seconds, posts)

    def duplicate(self, posts: int) -> None:
        """Posts have come, and were reported as such, that had come before: they are not in the buffer."""
        self._duplicate.inc(posts)

    def connected(self) -> None:
        """Tell that the source is open."""
        self._connected = True
        self._retry_at = 0.0
        self._signal_at = self._wall()

    def disconnected(self, reason: str, retry_seconds: float) -> None:
        """Tell that the source is not open any more, or could not be opened; `reason` is one of a small fixed set."""
        self._connected = False
        self._retry_at = self._wall() + retry_seconds
        self._reconnects.labels(reason).inc()

    def keep_alive(self) -> None:
        """Tell that the source sent a sign of life."""
        self._signal_at = self._wall()

    # The sink

    def request_done(
        self, request: PutRequest, seconds: float, answer: Sequence[RecordResult] | RequestFailure
    ) -> None:
        """A PutRecords request has ended, with a result for each of its records or with none."""
        sizes = [record.size for record in request.records]
        size = sum(sizes)
        self._put.observe(seconds)
        self._request_records.observe(len(sizes))
        self._request_bytes.observe(size)
        self._put_bytes.inc(size)
        self._retries.inc(sum([record.attempts > 1 for record in request.records]))
        if isinstance(answer, RequestFailure):
            self._requests.labels(answer.kind.value).inc()
            self._errors.labels(answer.code).inc()
            return
        records, bytes_ = self._shard_records, self._shard_bytes
        taken = units = billed = 0
        for size, result in zip(sizes, answer, strict=True):
            if result.error_code is not None:
                self._errors.labels(result.error_code).inc()
                continue
            shard_id = result.shard_id or "any"
            records.labels(shard_id).inc()
            bytes_.labels(shard_id).inc(size)
            taken += 1
            units += -(-size // PAYLOAD_UNIT_BYTES)
            billed += -(-size // ON_DEMAND_UNIT_BYTES)
        self._billed_units.inc(units)
        self._billed_bytes.inc(billed * ON_DEMAND_UNIT_BYTES)
        self._requests.labels("ok" if taken == len(sizes) else "partial").inc()

    def record_results(self, delivered: int, throttled: int, failed: int) -> None:
        """Tell how the records of one request fared."""
        self._records.labels("delivered").inc(delivered)
        self._records.labels("throttled").inc(throttled)
        self._records.labels("failed").inc(failed)

    def throttled(self, shard_id: str) -> None:
        """Tell that a shard has throttled one record."""
        self._shard_throttles.labels(shard_id).inc()

    def shards(self, shard_ids: Iterable[str]) -> None:
        """Tell the open shards: each gets its series, and those of all others end."""
        present = list(shard_ids)
        for counts in (self._shard_throttles, self._shard_records, self._shard_bytes):
            counts.keep(present)

    def outcomes(self, outcomes: Iterable[Outcome], now: float) -> None:
        """Posts have left the buffer. `now` is of the clock of `Post.received_at`."""
        delivered, wall = 0, self._wall()
        for outcome in outcomes:
            count = len(outcome.posts)
            if outcome.reason is not None:
                self._dropped.labels(outcome.reason.value).inc(count)
                continue
            delivered += count
            oldest = outcome.posts[0]
            self._delivery.observe(now - oldest.received_at, count)
            if (written := written_at(oldest.id)) is not None:
                self._whole.observe(wall - written, count)
            if outcome.repeated:
                self._perhaps_repeated.inc(count)
        if delivered:
            self._delivered.inc(delivered)
            self._delivered_at = wall

    def sealed(self, reason: SealReason) -> None:
        """Tell that a record was closed to be sent."""
        self._flushes.labels(reason.value).inc()

    def order_violation(self) -> None:
        """Tell that a record was stored before an older one of its lane."""
        self._order_violations.inc()

    # The process

    def loop_delay(self, seconds: float) -> None:
        """Tell how late a timer of the event loop came."""
        self._loop_delay.observe(seconds)

    # The live page

    def look(self) -> Look:
        """Give the figures of this moment."""
        return Look(
            at=self._wall(),
            received=self._received.value,
            recovered=self._recovered.value,
            delivered=self._delivered.value,
            duplicate=self._duplicate.value,
            dropped=dict(self._dropped.items()),
            connected=self._connected,
            retry_at=self._retry_at,
            signal_at=self._signal_at,
            received_at=self._received_at,
            reconnects=self._reconnects.total,
            requests=self._requests.total,
            retries=self._retries.value,
            failed_requests=sum(self._requests.labels(kind.value).value for kind in FailureKind),
            order_violations=self._order_violations.value,
            billed_units=self._billed_units.value,
            billed_bytes=self._billed_bytes.value,
            shard_throttles=dict(self._shard_throttles.items()),
            shard_records=dict(self._shard_records.items()),
            shard_bytes=dict(self._shard_bytes.items()),
            lag=self._lag.seen(),
            delivery=self._delivery.seen(),
            whole=self._whole.seen(),
            buffer=self.read_buffer(),
            inside=self.read_inside(),
            source=self.read_source(),
        )

    # The scrape

    def collect(self) -> Iterator[Metric]:
        """Give all series, as the client library's collectors do."""
        for family in self._families:
            yield family()
        buffer, inside, source = self.read_buffer(), self.read_inside(), self.read_source()
        producer = inside.producer
        for name, documentation, total in (
            # A scrape during a long outage must see it grow.
            ("stream_gap_seconds", "Seconds between losing the source and having it again.", source.gap_seconds),
            (
                "posts_missed_estimate",
                "Posts that X had while nobody was connected and that did not come later: rate times time.",
                source.posts_missed,
            ),
            (
                "posts_backfilled",
                "Posts that X had while nobody was connected and that came later.",
                source.posts_backfilled,
            ),
        ):
            yield CounterMetricFamily(f"millrace_{name}_total", documentation, total)
        for name, documentation, value in (
            ("posts_buffered", "Posts that were received and have no outcome yet.", buffer.posts),
            ("posts_on_disk", "Posts of these that wait in the journal only.", buffer.on_disk),
            ("buffer_bytes", "What the posts in the buffer take of memory.", buffer.bytes),
            (
                "buffer_limit_bytes",
                "At this no more are taken into memory: their part of the memory limit.",
                buffer.limit,
            ),
            ("journal_bytes", "Bytes of the posts in the journal.", buffer.journal_bytes),
            ("journal_limit_bytes", "The journal's limit; 0 without a journal.", buffer.journal_limit),
            ("stream_connected", "1 while the source is connected.", int(self._connected)),
            (
                "stream_signal_timestamp_seconds",
                "When the source last gave a sign of life: a line or a keep-alive.",
                self._signal_at,
            ),
            ("posts_received_timestamp_seconds", "When the last post came.", self._received_at),
            ("posts_delivered_timestamp_seconds", "When Kinesis last confirmed a post.", self._delivered_at),
            (
                "stream_connects_left",
                "Connects that may be made at once within X's limit of 50 in 15 minutes.",
                source.connects_left,
            ),
            ("month_posts", "Posts that came from X this month, by UTC.", source.month_posts),
            ("month_posts_budget", "How many may come; 0: no limit.", source.month_budget),
            ("lanes", "Lanes: slices of shards, each with its own queue.", producer.lanes),
            ("lanes_in_flight", "Lanes whose record is under way.", producer.lanes_in_flight),
            ("lanes_backing_off", "Lanes whose record failed and waits to be sent again.", producer.lanes_backing_off),
            ("put_requests_in_flight", "PutRecords requests under way.", producer.requests_in_flight),
            ("put_requests_window", "How many may be under way at once.", producer.window),
        ):
            yield GaugeMetricFamily(f"millrace_{name}", documentation, value)
        for name, documentation, label, values in (
            (
                "ready",
                "1 while a condition of the readiness is met.",
                "check",
                [(check_name, int(check.ok)) for check_name, check in inside.checks.items()],
            ),
            (
                "shard_pace_ratio",
                "Share of a shard's limits that is used at most, from its throttles.",
                "shard",
                [(shard.shard_id, shard.share) for shard in inside.shards],
            ),
            (
                "shard_posts_waiting",
                "Posts of a shard that wait to be confirmed.",
                "shard",
                [(shard.shard_id, shard.posts) for shard in inside.shards],
            ),
            (
                "shard_oldest_post_seconds",
                "Age of the oldest post in memory that waits for a shard.",
                "shard",
                [(shard.shard_id, shard.oldest_seconds) for shard in inside.shards],
            ),
        ):
            yield _filled(GaugeMetricFamily(f"millrace_{name}", documentation, labels=[label]), values)
        trouble = GaugeMetricFamily(
            "millrace_stream_needs_operator",
            "1 while no retry can connect to X and somebody must act, with X's words; there is one series.",
            labels=["reason", "detail"],
        )
        trouble.add_metric(source.trouble, int(source.trouble[0] != ""))
        yield trouble


def _filled(family: CounterMetricFamily | GaugeMetricFamily, values: Iterable[tuple[str, float]]) -> Metric:
    for value, number in values:
        family.add_metric([value], number)
    return family


def new_registry() -> CollectorRegistry:
    """Make a registry that holds the figures of the process: CPU, memory, open files, start time."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    return registry
