"""
The panels of the dashboards: what each shows, what it means, and what is normal. generate.py writes the files from it.

An expression writes `$s` for the selection of job and instance that every series gets; `$__rate_interval` is Grafana's
own.
"""

from typing import NamedTuple

# Grafana's own names of units.
COUNT, RATE, RATIO, SECONDS, BYTES, BYTES_RATE = "short", "cps", "percentunit", "s", "bytes", "Bps"


class Panel(NamedTuple):
    """
    One panel.

    Attributes:
        title: what it shows, in two or three words.
        description: what it means, and what is normal.
        unit: one of the names above.
        queries: expression -> the legend of its series.
        kind: lines, stacked, figure or heat.
        width: in columns of the 24 of a row.
        bad_from: the value from which on it is red, where there is one.
        texts: words in the place of values, for figures.
    """

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    kind: str = "lines"
    width: int = 8
    bad_from: float | None = None
    texts: dict[str, str] | None = None


class Board(NamedTuple):
    """A dashboard: its rows by title, in the order of a post's road."""

    uid: str
    title: str
    description: str
    rows: dict[str, list[Panel]]


def _quantiles(name: str) -> dict[str, str]:
    rate = f"sum by (le) (rate(millrace_{name}_bucket{{$s}}[$__rate_interval]))"
    return {f"histogram_quantile({share}, {rate})": f"{share:.0%} below" for share in (0.5, 0.95, 0.99)}


def _rate(name: str, label: str = "") -> str:
    total = f"rate(millrace_{name}{{$s}}[$__rate_interval])"
    return f"sum by ({label}) ({total})" if label else f"sum({total})"


OVERVIEW = Board(
    "millrace-overview",
    "Millrace",
    "From X to Kinesis: is it connected, does it keep up, is anything lost.",
    {
        "At a glance": [
            Panel(
                "Connection to X",
                "Whether all selected instances are connected. If not: /readyz of the instance has the reason.",
                COUNT,
                {"min(millrace_stream_connected{$s})": ""},
                "figure",
                4,
                texts={"0": "not connected", "1": "connected"},
            ),
            Panel(
                "Posts received",
                "Posts a second that come from X.",
                RATE,
                {_rate("posts_received_total"): ""},
                "figure",
                4,
            ),
            Panel(
                "Posts delivered",
                "Posts a second that Kinesis confirms. About as many as are received.",
                RATE,
                {_rate("posts_delivered_total"): ""},
                "figure",
                4,
            ),
            Panel(
                "Posts waiting",
                "Received and without an outcome yet, in memory and on disk. Normal: what comes within a second.",
                COUNT,
                {"sum(millrace_posts_buffered{$s})": ""},
                "figure",
                4,
            ),
            Panel(
                "Dropped in 24 hours",
                "Posts and lines that were not delivered, for any reason; the panel Dropped names it. Normal: 0.",
                COUNT,
                {"sum(increase(millrace_posts_dropped_total{$s}[24h]))": ""},
                "figure",
                4,
                bad_from=1,
            ),
            Panel(
                "Order violations",
                "Records stored before an older one of their lane, since the start. Must stay 0.",
                COUNT,
                {"sum(millrace_order_violations_total{$s})": ""},
                "figure",
                4,
                bad_from=1,
            ),
        ],
        "From X": [
            Panel(
                "Received and delivered",
                "Posts a second, in and out. The lines lie upon each other while Kinesis keeps up.",
                RATE,
                {
                    _rate("posts_received_total"): "received",
                    _rate("posts_delivered_total"): "delivered",
                    _rate("posts_recovered_total"): "taken up from an earlier run",
                },
            ),
            Panel(
                "Age at arrival",
                "From the writing of a post, by the time in its id, to its arrival. X names 6 to 7 s for 99 %.",
                SECONDS,
                _quantiles("post_lag_seconds"),
            ),
            Panel(
                "Bytes received",
                "Bytes a second of the lines from X.",
                BYTES_RATE,
                {_rate("received_bytes_total"): "bytes"},
            ),
            Panel(
                "Connection",
                "1 while connected. Short breaks are normal: X drops each connection now and then.",
                COUNT,
                {"millrace_stream_connected{$s}": "{{instance}}"},
            ),
            Panel(
                "Reconnects",
                "Times in 15 minutes that the connection broke or did not open, by reason. X allows 50 attempts.",
                COUNT,
                {
                    "sum by (reason) (increase(millrace_stream_reconnects_total{$s}[15m]))": "{{reason}}",
                },
                "stacked",
            ),
            Panel(
                "Time without X",
                "Seconds of each hour without a connection. X does not repeat what it had then.",
                SECONDS,
                {"sum by (instance) (increase(millrace_stream_gap_seconds_total{$s}[1h]))": "{{instance}}"},
                bad_from=300,
            ),
            Panel(
                "Missed and brought back",
                "Posts in an hour that X had while nobody was connected, by estimate, and those that came by backfill.",
                COUNT,
                {
                    "sum(increase(millrace_posts_missed_estimate_total{$s}[1h]))": "missed",
                    "sum(increase(millrace_posts_backfilled_total{$s}[1h]))": "brought back",
                },
            ),
            Panel(
                "Posts of the month",
                "Posts from X this month, and the budget of MILLRACE_MONTHLY_POSTS; 0 where there is none.",
                COUNT,
                {
                    "sum(millrace_month_posts{$s})": "posts",
                    "sum(millrace_month_posts_budget{$s})": "budget",
                },
            ),
            Panel(
                "Silence",
                "Seconds since X last sent anything; it does so in 20 s at least. After 30 s a new connection is made.",
                SECONDS,
                {"time() - (millrace_stream_signal_timestamp_seconds{$s} > 0)": "{{instance}}"},
                bad_from=30,
            ),
            Panel(
                "Connects left",
                "How often the daemon may connect at once within X's limit of 50 in 15 minutes. At 0 it waits.",
                COUNT,
                {"min by (instance) (millrace_stream_connects_left{$s})": "{{instance}}"},
                width=12,
            ),
            Panel(
                "From writing to confirmation",
                "The whole way of a post: from its writing, by the time in its id, to Kinesis' confirmation.",
                SECONDS,
                _quantiles("post_whole_way_seconds"),
                width=12,
            ),
        ],
        "Inside": [
            Panel(
                "Waiting posts",
                "Where posts without an outcome are. On disk only: Kinesis takes less than comes.",
                COUNT,
                {
                    "sum(millrace_posts_buffered{$s} - millrace_posts_on_disk{$s})": "in memory",
                    "sum(millrace_posts_on_disk{$s})": "on disk only",
                },
                "stacked",
            ),
            Panel(
                "Fill",
                "Share of MILLRACE_MEMORY_LIMIT's part for posts, and of MILLRACE_JOURNAL_LIMIT, where they drop.",
                RATIO,
                {
                    "max(millrace_buffer_bytes{$s} / millrace_buffer_limit_bytes{$s})": "memory",
                    "max(millrace_journal_bytes{$s} / (millrace_journal_limit_bytes{$s} > 0))": "journal",
                },
                bad_from=0.85,
            ),
            Panel(
                "Time to confirmation",
                "From the arrival of a post to Kinesis' confirmation. Linger (0.1 s) and one round trip are normal.",
                SECONDS,
                _quantiles("post_delivery_seconds"),
            ),
            Panel(
                "CPU",
                "Cores that the process uses. At 1 it is at its end: one process uses one core.",
                COUNT,
                {"rate(process_cpu_seconds_total{$s}[$__rate_interval])": "{{instance}}"},
                bad_from=0.9,
            ),
            Panel(
                "Memory",
                "Memory of the process. About 80 MiB and what the posts take.",
                BYTES,
                {"process_resident_memory_bytes{$s}": "{{instance}}"},
            ),
            Panel(
                "Delay of the event loop",
                "How late a timer comes. Some milliseconds are normal; above a quarter of a second CPU is missing.",
                SECONDS,
                _quantiles("loop_delay_seconds"),
                bad_from=0.25,
            ),
        ],
        "To Kinesis": [
            Panel(
                "Requests",
                "PutRecords requests a second by outcome. ok, and now and then partial, are normal.",
                RATE,
                {_rate("put_requests_total", "outcome"): "{{outcome}}"},
                "stacked",
            ),
            Panel(
                "Records",
                "Answers a second for single records. Throttled and failed ones are sent again.",
                RATE,
                {
                    _rate("put_records_total", "outcome"): "{{outcome}}",
                    _rate("put_record_retries_total"): "sent again",
                },
            ),
            Panel(
                "Errors",
                "Error codes a second, for records and whole requests.",
                RATE,
                {_rate("put_errors_total", "code"): "{{code}}"},
                "stacked",
            ),
            Panel(
                "Round trip",
                "Duration of a request. Within a region some tens of milliseconds.",
                SECONDS,
                _quantiles("put_seconds"),
            ),
            Panel(
                "Under way",
                "Requests under way and how many may be; lanes, and those that wait for an answer or for another try.",
                COUNT,
                {
                    "sum(millrace_put_requests_in_flight{$s})": "requests",
                    "sum(millrace_put_requests_window{$s})": "requests allowed",
                    "sum(millrace_lanes{$s})": "lanes",
                    "sum(millrace_lanes_in_flight{$s})": "lanes in flight",
                    "sum(millrace_lanes_backing_off{$s})": "lanes backing off",
                },
            ),
            Panel(
                "Why records are closed",
                "Linger at low rates, size at high ones, drain at the end; single without aggregation.",
                RATE,
                {_rate("flushes_total", "reason"): "{{reason}}"},
                "stacked",
            ),
            Panel(
                "Records per request",
                "Records that a PutRecords request carries; 500 at most. With one lane a shard: one for each shard.",
                COUNT,
                _quantiles("put_request_records"),
                width=12,
            ),
            Panel(
                "Bytes per request",
                "Data and partition keys of a PutRecords request; 10 MiB at most.",
                BYTES,
                _quantiles("put_request_bytes"),
                width=12,
            ),
        ],
        "Lost, repeated, paid": [
            Panel(
                "Dropped",
                "Posts and lines in 10 minutes that were not delivered, by reason. Normal: none.",
                COUNT,
                {"sum by (reason) (increase(millrace_posts_dropped_total{$s}[10m]))": "{{reason}}"},
                "stacked",
            ),
            Panel(
                "Repeated",
                "Posts in 10 minutes that came twice from X, or that Kinesis may hold twice. The table has each once.",
                COUNT,
                {
                    "sum(increase(millrace_posts_duplicate_total{$s}[10m]))": "came twice, left out",
                    "sum(increase(millrace_posts_perhaps_repeated_total{$s}[10m]))": "perhaps twice in Kinesis",
                },
            ),
            Panel(
                "Posts per payload unit",
                "Posts for each unit of 25 KB that a provisioned stream bills. Without aggregation it is 1 at most.",
                COUNT,
                {f"{_rate('posts_delivered_total')} / {_rate('billed_payload_units_total')}": "posts"},
            ),
            Panel(
                "Billed units",
                "Payload units of 25 KB a second that a provisioned stream bills.",
                RATE,
                {_rate("billed_payload_units_total"): "units"},
                width=12,
            ),
            Panel(
                "Billed bytes",
                "Bytes a second that an on-demand stream bills: each record rounded up to 1 KB.",
                BYTES_RATE,
                {_rate("billed_bytes_total"): "billed", _rate("put_bytes_total"): "sent"},
                width=12,
            ),
        ],
    },
)

_SHARD_BYTES = _rate("shard_bytes_total", "shard")
SHARDS = Board(
    "millrace-shards",
    "Millrace shards",
    "Each shard of the stream: what it takes, what it refuses, what waits for it.",
    {
        "What they take": [
            Panel(
                "Records",
                "Records a second. A shard takes 1,000 at most.",
                RATE,
                {_rate("shard_records_total", "shard"): "{{shard}}"},
                width=12,
                bad_from=1000,
            ),
            Panel(
                "Bytes",
                "Bytes a second. A shard takes 1 MiB at most.",
                BYTES_RATE,
                {_SHARD_BYTES: "{{shard}}"},
                width=12,
                bad_from=1 << 20,
            ),
            Panel(
                "Unevenness",
                "Bytes of the busiest shard for each byte of the average one. 1 is even; above 2 a key is hot.",
                COUNT,
                {f"max({_SHARD_BYTES}) / avg({_SHARD_BYTES})": "busiest to average"},
                width=12,
                bad_from=2,
            ),
            Panel(
                "Bytes per shard over time",
                "The same bytes as colours: a row that stands out is a hot shard.",
                BYTES_RATE,
                {_SHARD_BYTES: "{{shard}}"},
                "heat",
                12,
            ),
        ],
        "What they refuse": [
            Panel(
                "Throttled records",
                "Records a second that a shard refused; they are sent again. Now and then is normal.",
                RATE,
                {_rate("shard_throttles_total", "shard"): "{{shard}}"},
                "stacked",
                12,
            ),
            Panel(
                "Pace",
                "Share of a shard's limits that is used at most. It falls with each throttle and rises by itself.",
                RATIO,
                {"min by (shard) (millrace_shard_pace_ratio{$s})": "{{shard}}"},
                width=12,
            ),
        ],
        "What waits": [
            Panel(
                "Waiting posts",
                "Posts in memory that wait to be confirmed.",
                COUNT,
                {"sum by (shard) (millrace_shard_posts_waiting{$s})": "{{shard}}"},
                width=12,
            ),
            Panel(
                "Oldest waiting post",
                "Age of the oldest post in memory that waits for a shard. Normal: below a second.",
                SECONDS,
                {"max by (shard) (millrace_shard_oldest_post_seconds{$s})": "{{shard}}"},
                width=12,
                bad_from=60,
            ),
        ],
    },
)
