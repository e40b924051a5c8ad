from collections.abc import Iterable

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.core.gaps import SNOWFLAKE_EPOCH
from service.core.lanes import ShardState
from service.core.look import Buffer, Inside, SourceFigures
from service.core.producer import Statistics
from service.core.reconnect import Reason
from service.core.records import (
    DropReason,
    FailureKind,
    KinesisRecord,
    Outcome,
    Post,
    PutRequest,
    RecordResult,
    RequestFailure,
    SealReason,
)
from service.core.verdict import Check
from service.metrics import Metrics, new_registry
from tests.still_clock import StillClock

# Dashboards and alerts rely on these names; the parser gives counters without their _total.
FAMILIES = {
    *("posts_received", "posts_recovered", "posts_delivered", "posts_dropped", "posts_duplicate", "received_bytes"),
    *("posts_perhaps_repeated", "posts_buffered", "posts_on_disk", "posts_missed_estimate", "posts_backfilled"),
    *("buffer_bytes", "buffer_limit_bytes", "journal_bytes", "journal_limit_bytes", "month_posts"),
    *("month_posts_budget", "posts_received_timestamp_seconds", "posts_delivered_timestamp_seconds"),
    *("post_delivery_seconds", "post_lag_seconds", "post_whole_way_seconds", "loop_delay_seconds", "flushes"),
    *("put_requests", "put_requests_in_flight", "put_requests_window", "put_request_records", "put_request_bytes"),
    *("put_records", "put_record_retries", "put_seconds", "put_errors", "put_bytes", "billed_payload_units"),
    *("billed_bytes", "shard_throttles", "shard_records", "shard_bytes", "shard_pace_ratio", "shard_posts_waiting"),
    *("shard_oldest_post_seconds", "order_violations", "lanes", "lanes_in_flight", "lanes_backing_off"),
    *("stream_connected", "stream_reconnects", "stream_gap_seconds", "stream_signal_timestamp_seconds"),
    *("stream_needs_operator", "stream_connects_left", "ready", "build_info"),
}


WELL, BAD = Check(True, "", 0.0), Check(False, "no answer", 0.0)


class Scraper:
    """Reads a registry as Prometheus does: through its text."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def __call__(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = generate_latest(self._registry).decode()
        return {
            (sample.name.removeprefix("millrace_"), tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self()[name, tuple(sorted(labels.items()))]

    def labels(self, name: str, label: str) -> set[str]:
        return {dict(labels)[label] for key, labels in self() if key == name}

    def balance(self) -> float:
        """Received and recovered, without delivered, dropped, duplicate and buffered: must be 0."""
        series = self()
        dropped = sum(value for (name, _), value in series.items() if name == "posts_dropped_total")
        gone = sum(series[name, ()] for name in ("posts_delivered_total", "posts_duplicate_total", "posts_buffered"))
        return series["posts_received_total", ()] + series["posts_recovered_total", ()] - dropped - gone


@pytest.fixture
def registry() -> CollectorRegistry:
    """Give a registry like the daemon's."""
    return new_registry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    """Give all metrics, at their start."""
    return Metrics(registry)


@pytest.fixture
def scraper(registry: CollectorRegistry, metrics: Metrics) -> Scraper:
    """Give a reader of the metrics' registry."""
    assert metrics
    return Scraper(registry)


def posts(count: int, received_at: float = 0.0) -> list[Post]:
    """Make posts."""
    return [Post(b'{"data":{"id":"1"}}', "1", b"1", received_at) for _ in range(count)]


def request(sizes: Iterable[int]) -> PutRequest:
    """Make a request with records of these sizes, of which the key takes one byte."""
    return PutRequest(1, [KinesisRecord("k", "0", bytes(size - 1), posts(1), SealReason.SIZE) for size in sizes])


class TestExposition:
    def test_every_family(self, registry: CollectorRegistry, metrics: Metrics) -> None:
        """Each family has help and a type, only counters end in _total, and there are no series of birth times."""
        shards = [ShardState("shardId-000000000000", 1.0, 0, 0.0)]
        metrics.shards(["shardId-000000000000"])
        metrics.read_inside = lambda: Inside(shards=shards, checks={"stream": WELL})
        families = list(text_string_to_metric_families(generate_latest(registry).decode()))
        ours = [family for family in families if family.name.startswith("millrace_")]
        assert {family.name.removeprefix("millrace_") for family in ours} == FAMILIES
        for family in ours:
            assert family.documentation.endswith(".")
            assert family.type in {"counter", "gauge", "histogram"}
            names = {sample.name for sample in family.samples}
            assert names, family.name
            assert (family.type == "counter") == all(name.endswith("_total") for name in names)
            assert not [name for name in names if name.endswith("_created")]

    def test_known_labels(self, scraper: Scraper) -> None:
        """Series with known labels are there from the start."""
        assert scraper.labels("posts_dropped_total", "reason") == {reason.value for reason in DropReason}
        assert scraper.labels("flushes_total", "reason") == {reason.value for reason in SealReason}
        kinds = {kind.value for kind in FailureKind}
        assert scraper.labels("put_requests_total", "outcome") == {"ok", "partial"} | kinds
        assert scraper.labels("put_records_total", "outcome") == {"delivered", "throttled", "failed"}
        assert scraper.labels("stream_reconnects_total", "reason") == set(Reason)
        assert {value for (name, _), value in scraper().items() if name.endswith("_total")} >= {0.0}

    def test_build(self, scraper: Scraper) -> None:
        """What runs is told by one series of the value 1."""
        (labels,) = [dict(labels) for name, labels in scraper() if name == "build_info"]
        assert labels.keys() == {"version", "python"}
        assert scraper.value("build_info", **labels) == 1

    def test_the_process(self, scraper: Scraper) -> None:
        """The process's own figures are there too."""
        assert scraper.value("process_resident_memory_bytes") > 0


class TestPosts:
    def test_sum(self, metrics: Metrics, scraper: Scraper) -> None:
        """Received is delivered, dropped and buffered together, after each step."""
        buffered = 0
        metrics.read_buffer = lambda: Buffer(posts=buffered, bytes=buffered * 100)
        assert scraper.balance() == 0
        metrics.received(10, 1000)
        buffered = 10
        assert scraper.balance() == 0
        metrics.rejected(b"not a post", DropReason.NOT_JSON)
        assert scraper.balance() == 0
        metrics.outcomes([Outcome(posts(4)), Outcome(posts(1), DropReason.REFUSED)], 1.0)
        buffered = 5
        assert scraper.balance() == 0
        assert scraper.value("posts_received_total") == 11
        assert scraper.value("received_bytes_total") == 1010
        assert scraper.value("posts_delivered_total") == 4
        assert scraper.value("posts_dropped_total", reason="not_json") == 1
        assert scraper.value("posts_dropped_total", reason="refused") == 1
        assert scraper.value("posts_buffered") == 5
        assert scraper.value("buffer_bytes") == 500

    def test_sum_over_a_restart(self, metrics: Metrics, scraper: Scraper) -> None:
        """Posts of an earlier run enter the sum as recovered; those that were lost one and all leave it as dropped."""
        buffered = 0
        metrics.read_buffer = lambda: Buffer(posts=buffered, journal_bytes=buffered * 100)
        metrics.recovered(10)
        buffered = 10
        assert scraper.balance() == 0
        assert scraper.value("journal_bytes") == 1000
        metrics.outcomes([Outcome(posts(3))], 1.0)
        metrics.shed(5, DropReason.DISK_FAILED)
        buffered = 2
        assert scraper.balance() == 0
        assert scraper.value("posts_recovered_total") == 10
        assert scraper.value("posts_received_total") == 0
        assert scraper.value("posts_dropped_total", reason="disk_failed") == 5
        assert scraper.value("journal_bytes") == 200

    def test_sum_can_fail(self, metrics: Metrics, scraper: Scraper) -> None:
        """A post that is lost without a report shows in the sum."""
        metrics.received(1, 100)
        assert scraper.balance() == 1

    def test_delivery(self, metrics: Metrics, scraper: Scraper) -> None:
        """All posts of a record are counted with the age of its oldest, dropped ones not at all."""
        metrics.outcomes(
            [Outcome([*posts(1, 9.0), *posts(2, 9.9)]), Outcome(posts(5, 0.0), DropReason.POST_TOO_LARGE)], 10.0
        )
        assert scraper.value("post_delivery_seconds_count") == 3
        assert scraper.value("post_delivery_seconds_sum") == 3
        assert scraper.value("post_delivery_seconds_bucket", le="0.5") == 0
        assert scraper.value("post_delivery_seconds_bucket", le="1.0") == 3
        assert scraper.value("post_delivery_seconds_bucket", le="+Inf") == 3

    def test_the_whole_way(self, registry: CollectorRegistry) -> None:
        """From the writing, which the id tells, to the confirmation; who has no such id is not counted."""
        metrics = Metrics(registry, StillClock(SNOWFLAKE_EPOCH + 1000.0 + 7.0))
        written = [Post(b"{}", str(1_000_000 << 22), b"k", 0.0)] * 3
        metrics.outcomes([Outcome(written), Outcome([Post(b"{}", "", b"k", 0.0)])], 1.0)
        scraper = Scraper(registry)
        assert scraper.value("post_whole_way_seconds_count") == 3
        assert scraper.value("post_whole_way_seconds_sum") == pytest.approx(21)

    def test_perhaps_repeated(self, metrics: Metrics, scraper: Scraper) -> None:
        """Delivered posts whose first answer was lost are counted apart as well."""
        metrics.outcomes([Outcome(posts(2), repeated=True), Outcome(posts(3))], 1.0)
        assert scraper.value("posts_delivered_total") == 5
        assert scraper.value("posts_perhaps_repeated_total") == 2

    def test_lag(self, metrics: Metrics, scraper: Scraper) -> None:
        """The age of posts at their arrival is counted for many at once."""
        metrics.lag(6.5, 40)
        assert scraper.value("post_lag_seconds_count") == 40
        assert scraper.value("post_lag_seconds_bucket", le="5.0") == 0
        assert scraper.value("post_lag_seconds_bucket", le="7.5") == 40


class TestSource:
    def test_connection(self, metrics: Metrics, scraper: Scraper) -> None:
        """The state of the connection and the reasons of its ends are told."""
        assert scraper.value("stream_connected") == 0
        metrics.connected()
        assert scraper.value("stream_connected") == 1
        metrics.disconnected("stall", 0.5)
        assert scraper.value("stream_connected") == 0
        assert scraper.value("stream_reconnects_total", reason="stall") == 1

    def test_what_it_asks_the_source(self, metrics: Metrics, scraper: Scraper) -> None:
        """Gaps, what they cost, and the posts of the month are looked up at each scrape."""
        assert scraper.value("stream_gap_seconds_total") == 0
        metrics.read_source = lambda: SourceFigures(8.5, 300, 250, 12_000, 3_000_000, ("", ""), 17)
        assert scraper.value("stream_connects_left") == 17
        assert scraper.value("stream_gap_seconds_total") == 8.5
        assert scraper.value("posts_missed_estimate_total") == 300
        assert scraper.value("posts_backfilled_total") == 250
        assert scraper.value("month_posts") == 12_000
        assert scraper.value("month_posts_budget") == 3_000_000
        assert scraper.value("stream_needs_operator", reason="", detail="") == 0

    def test_what_somebody_must_act_on(self, metrics: Metrics, scraper: Scraper) -> None:
        """One series with the words of X, for as long as it is so."""
        words = 'X answered 402: CreditsDepleted: "no credits"\\n'
        metrics.read_source = lambda: SourceFigures(trouble=("payment_required", words))
        assert scraper.value("stream_needs_operator", reason="payment_required", detail=words) == 1
        assert len(scraper.labels("stream_needs_operator", "reason")) == 1

    def test_repeats(self, metrics: Metrics, scraper: Scraper) -> None:
        """A post that came before has come and is out again in the same step."""
        metrics.received(10, 1000)
        metrics.duplicate(4)
        metrics.read_buffer = lambda: Buffer(posts=6)
        assert scraper.value("posts_duplicate_total") == 4
        assert scraper.balance() == 0

    def test_moments(self, registry: CollectorRegistry) -> None:
        """When something last came is a moment, so that an alert can tell its age; so is the next try, for the page."""
        wall = StillClock(100.0)
        metrics = Metrics(registry, wall)
        scraper = Scraper(registry)
        names = ("posts_received", "posts_delivered", "stream_signal")

        def moments() -> list[float]:
            return [*(scraper.value(f"{name}_timestamp_seconds") for name in names), metrics.look().retry_at]

        assert moments() == [0, 0, 0, 0]
        metrics.connected()
        wall.now = 110
        metrics.received(1, 10)
        wall.now = 111
        metrics.outcomes([Outcome(posts(1))], 1.0)
        assert moments() == [110, 111, 110, 0]
        wall.now = 120
        metrics.keep_alive()
        assert moments() == [110, 111, 120, 0]
        metrics.disconnected("stall", 7.0)
        assert moments() == [110, 111, 120, 127]
        metrics.connected()
        assert moments() == [110, 111, 120, 0]


class TestSink:
    def test_requests(self, metrics: Metrics, scraper: Scraper) -> None:
        """A request is counted with its outcome, its duration and its bytes."""
        answer = [RecordResult("a", "1"), RecordResult(error_code="InternalFailure"), RecordResult("b", "2")]
        metrics.request_done(request([100, 25_600, 25_601]), 0.03, answer)
        metrics.request_done(request([50]), 0.01, RequestFailure(FailureKind.UNKNOWN, "500", "it failed"))
        assert scraper.value("put_requests_total", outcome="partial") == 1
        assert scraper.value("put_requests_total", outcome="unknown") == 1
        assert scraper.value("put_bytes_total") == 51_351
        assert scraper.value("put_seconds_count") == 2
        assert scraper.value("put_seconds_bucket", le="0.01") == 1
        assert scraper.value("put_request_records_sum") == 4
        assert scraper.value("put_request_bytes_sum") == 51_351
        assert scraper.value("put_errors_total", code="InternalFailure") == 1
        assert scraper.value("put_errors_total", code="500") == 1

    def test_bill(self, metrics: Metrics, scraper: Scraper) -> None:
        """Only records that Kinesis took are billed: by begun units of 25 KB, or by begun kilobytes."""
        answer = [RecordResult("a", "1"), RecordResult(error_code="InternalFailure"), RecordResult("b", "2")]
        metrics.request_done(request([100, 25_600, 25_601]), 0.03, answer)
        assert scraper.value("billed_payload_units_total") == 1 + 2
        assert scraper.value("billed_bytes_total") == 1024 + 26 * 1024
        assert scraper.value("shard_records_total", shard="b") == 1
        assert scraper.value("shard_bytes_total", shard="b") == 25_601

    def test_retries(self, metrics: Metrics, scraper: Scraper) -> None:
        """Records that had been sent before are counted apart."""
        again = request([10, 10, 10])
        again.records[1].attempts = 2
        metrics.request_done(again, 0.01, [RecordResult("a", "1")] * 3)
        assert scraper.value("put_record_retries_total") == 1

    def test_codes_without_end(self, metrics: Metrics, scraper: Scraper) -> None:
        """Whoever invents error codes does not fill Prometheus with series: beyond 40 they are one."""
        for number in range(100):
            metrics.request_done(request([1]), 0.01, RequestFailure(FailureKind.DENIED, str(number), ""))
        assert len(scraper.labels("put_errors_total", "code")) == 41
        assert scraper.value("put_errors_total", code="other") == 62

    def test_records(self, metrics: Metrics, scraper: Scraper) -> None:
        """Answers for records are counted by what they said."""
        metrics.record_results(7, 2, 1)
        metrics.record_results(1, 0, 0)
        assert scraper.value("put_records_total", outcome="delivered") == 8
        assert scraper.value("put_records_total", outcome="throttled") == 2
        assert scraper.value("put_records_total", outcome="failed") == 1

    def test_seals_and_order(self, metrics: Metrics, scraper: Scraper) -> None:
        """Closed records are counted by reason, violations of the order by themselves."""
        metrics.sealed(SealReason.LINGER)
        metrics.order_violation()
        assert scraper.value("flushes_total", reason="linger") == 1
        assert scraper.value("order_violations_total") == 1

    def test_shards(self, metrics: Metrics, scraper: Scraper) -> None:
        """Open shards have a series from the start, and shards that are gone have none any more."""
        metrics.shards(["a", "b"])
        metrics.throttled("a")
        metrics.throttled("late")
        assert scraper.labels("shard_throttles_total", "shard") == {"a", "b", "late"}
        metrics.shards(["a", "c"])
        for name in ("shard_throttles_total", "shard_records_total", "shard_bytes_total"):
            assert scraper.labels(name, "shard") == {"a", "c"}
        assert scraper.value("shard_throttles_total", shard="a") == 1


class TestInside:
    def test_looked_up(self, metrics: Metrics, scraper: Scraper) -> None:
        """Lanes, shards and readiness are asked for at the scrape; before anybody answers, there are none."""
        assert scraper.value("lanes") == 0
        assert scraper.labels("ready", "check") == set()
        producer = Statistics(7, 700, 2, 1, 1, 1, 8)
        shards = [ShardState("a", 0.7, 3, 2.5), ShardState("b", 1.0, 0, 0.0)]
        metrics.read_inside = lambda: Inside(producer, shards, {"stream": WELL, "kinesis": BAD})
        assert [scraper.value(f"lanes{name}") for name in ("", "_in_flight", "_backing_off")] == [2, 1, 1]
        assert (scraper.value("put_requests_in_flight"), scraper.value("put_requests_window")) == (1, 8)
        assert (scraper.value("ready", check="stream"), scraper.value("ready", check="kinesis")) == (1, 0)
        assert scraper.value("shard_pace_ratio", shard="a") == 0.7
        assert scraper.value("shard_posts_waiting", shard="a") == 3
        assert scraper.value("shard_oldest_post_seconds", shard="a") == 2.5

    def test_the_buffer(self, metrics: Metrics, scraper: Scraper) -> None:
        """What it may take stands beside what it takes."""
        metrics.read_buffer = lambda: Buffer(
            posts=9, on_disk=4, bytes=500, limit=1000, journal_bytes=7, journal_limit=8
        )
        assert (scraper.value("posts_buffered"), scraper.value("posts_on_disk")) == (9, 4)
        assert (scraper.value("buffer_bytes"), scraper.value("buffer_limit_bytes")) == (500, 1000)
        assert (scraper.value("journal_bytes"), scraper.value("journal_limit_bytes")) == (7, 8)

    def test_loop(self, metrics: Metrics, scraper: Scraper) -> None:
        """How late the loop's timers come is a histogram."""
        metrics.loop_delay(0.2)
        assert scraper.value("loop_delay_seconds_bucket", le="0.1") == 0
        assert scraper.value("loop_delay_seconds_bucket", le="0.25") == 1


def test_a_look(metrics: Metrics) -> None:
    """The live page sees the same figures as a scrape, as plain values."""
    buffer, source = Buffer(posts=3, on_disk=2), SourceFigures(4.0)
    inside = Inside(shards=[ShardState("a", 0.7, 3, 2.5)], checks={"stream": WELL}, mode="ON_DEMAND")
    metrics.read_buffer, metrics.read_inside, metrics.read_source = lambda: buffer, lambda: inside, lambda: source
    metrics.shards(["a"])
    metrics.received(9, 900)
    metrics.outcomes([Outcome(posts(5)), Outcome(posts(1), DropReason.REFUSED)], 1.0)
    answer = [RecordResult("a", "1"), RecordResult(error_code="InternalFailure")]
    metrics.request_done(request([100, 100]), 0.03, answer)
    metrics.request_done(request([100]), 0.03, RequestFailure(FailureKind.UNKNOWN, "500", "it failed"))
    metrics.disconnected("stall", 0.0)
    look = metrics.look()
    assert (look.received, look.delivered, look.dropped["refused"]) == (9, 5, 1)
    assert (look.requests, look.failed_requests, look.billed_units, look.billed_bytes) == (2, 1, 1, 1024)
    assert (look.shard_records, look.shard_bytes, look.shard_throttles) == ({"a": 1}, {"a": 100}, {"a": 0})
    assert (look.connected, look.reconnects) == (False, 1)
    assert (look.buffer, look.inside, look.source) == (buffer, inside, source)
