"""The figures of a run as Markdown. Nothing here is measured, and nothing stands in a table that was not."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.measure import Result
from bench.road import Outage
from bench.scenarios import PACED_RATE, PACED_SECONDS, ROUND_TRIP_SECONDS, Axis, Point, Row
from service.config import load
from service.core.limits import SHARD_BYTES_PER_SECOND, SHARD_RECORDS_PER_SECOND

_MIB = 1 << 20
_NONE = "–"
LINGER_SECONDS = load({"MILLRACE_STREAM": "posts", "MILLRACE_SOURCE": "stdin"}).linger_seconds


@dataclass
class Figures:
    """All that one run of the benchmark has measured."""

    rows: list[Row] = field(default_factory=list)
    recorded: list[Row] = field(default_factory=list)
    compression: list[Point] = field(default_factory=list)
    axes: list[Axis] = field(default_factory=list)
    outage: Outage | None = None

    def row(self, name: str) -> Row:
        """The row of a peer; an empty one if it was not measured."""
        return next((row for row in self.rows if row.name == name), Row(name))


def cost(rows: Sequence[Row]) -> str:
    """What a post costs: the first table."""
    ours = next((row.plain.cpu for row in rows if row.plain), None)
    lines = []
    for row in rows:
        plain, tls = row.plain, row.tls
        shown = plain or tls
        lines.append(
            [
                row.name,
                f"{plain.rate:,.0f}" if plain else _NONE,
                f"**{plain.cpu:.1f}**" if plain else _NONE,
                f"{plain.cpu / ours:.1f}" if plain and ours else _NONE,
                f"{tls.rate:,.0f}" if tls else _NONE,
                f"{tls.cpu:.1f}" if tls else _NONE,
                f"{shown.start:.2f}" if shown and shown.start else _NONE,
                f"{shown.peak / _MIB:.0f}" if shown else _NONE,
                f"{shown.count:,}" if shown else row.note,
            ]
        )
    heads = ["", "posts/s", "CPU µs a post", "ratio", "TLS: posts/s", "CPU µs", "start, CPU s", "peak MiB", "posts"]
    return _table(heads, lines)


def delivery(rows: Sequence[Row]) -> str:
    """How posts arrive, and what AWS bills: the second table."""
    lines = []
    for row in rows:
        shown, paced = row.plain or row.tls, row.paced
        if shown is None:
            continue
        found = shown.findings
        latency = paced.findings.latency if paced else {}
        order = "kept" if not found.out_of_order else f"{found.out_of_order:,} of {found.sent:,} late"
        astray = f"; {found.wrong_shard:,} on another shard than their key's" if found.wrong_shard else ""
        lines.append(
            [
                row.name,
                *(f"{latency[of]:.0f}" if of in latency else _NONE for of in ("50", "95", "99", "100")),
                f"{paced.cpu:.0f}" if paced else _NONE,
                f"{shown.received / found.sent * 1e6 / _MIB:,.0f}",
                f"{found.units / found.sent * 1e6:,.0f}",
                f"{found.sent / found.records:.1f}",
                f"{shown.requests / found.sent * 1e6:,.0f}",
                order + astray,
            ]
        )
    heads = [
        "",
        "p50 ms",
        "p95",
        "p99",
        "all",
        "CPU µs",
        "MiB per million",
        "units",
        "posts a record",
        "requests",
        "order of a key",
    ]
    return _table(heads, lines)


def growth(axes: Sequence[Axis]) -> str:
    """How cost grows: a table for each axis."""
    tables = []
    for axis in axes:
        lines = []
        for point in axis.points:
            result, found = point.result, point.result.findings
            volume = result.received / result.count / 1024
            lines.append(
                [
                    point.label,
                    f"{result.rate:,.0f}",
                    f"**{result.cpu:.1f}**",
                    f"{result.cpu / volume:.1f}",
                    f"{found.sent / found.records:.1f}",
                    f"{found.records / result.requests:.1f}",
                    f"{result.peak / _MIB:.0f}",
                    f"{found.sent:,}",
                ]
            )
        heads = [
            axis.name,
            "posts/s",
            "CPU µs a post",
            "µs a KiB sent",
            "posts a record",
            "records a request",
            "peak MiB",
            "posts",
        ]
        tables.append(_table(heads, lines))
    return "\n\n".join(tables)


def compression(points: Sequence[Point]) -> str:
    """What compression saves; the shards are those that PACED_RATE needs, by bytes and by records."""
    lines = []
    for point in points:
        found = point.result.findings
        size, records = found.stored / found.sent, found.records / found.sent
        shards = max(size * PACED_RATE / SHARD_BYTES_PER_SECOND, records * PACED_RATE / SHARD_RECORDS_PER_SECOND)
        lines.append(
            [
                point.label,
                f"{size:,.0f}",
                f"{1 / records:.1f}",
                f"{found.units / found.sent * 1e6:,.0f}",
                f"{shards:.1f}",
                f"{point.result.cpu:.1f}",
                f"{found.sent:,}",
            ]
        )
    wanted = f"shards for {PACED_RATE:,.0f} posts/s"
    return _table(["", "bytes a post", "posts a record", "units per million", wanted, "CPU µs a post", "posts"], lines)


def outage(seen: Outage) -> str:
    """How an outage went."""
    found = seen.findings
    return _table(
        ["", ""],
        [
            ["Kinesis away for", f"{seen.seconds:g} s, at {seen.rate:,.0f} posts a second"],
            ["posts waiting when it came back", f"{seen.waiting:,}"],
            ["caught up after", f"**{seen.caught_up:.1f} s**"],
            ["peak memory", f"**{seen.peak / _MIB:.0f} MiB**"],
            ["journal at most", f"{seen.journal / _MIB:.0f} MiB"],
            ["posts sent, lost, repeated", f"{found.sent:,}, **{found.lost:,}**, {found.repeated:,}"],
            ["posts out of order", f"**{found.out_of_order:,}**"],
        ],
    )


def aims(figures: Figures) -> str:
    """The figures that the project has set itself, beside those of this run."""
    aggregated, journaled = figures.row("Millrace, aggregated"), figures.row("Millrace, aggregated, journal on")
    single = figures.row("Millrace, not aggregated")
    lines: list[list[str]] = []

    def aim(what: str, value: float | None, limit: float, unit: str) -> None:
        if value is None:
            lines.append([what, f"{limit:g} {unit}", "not measured", ""])
        else:
            lines.append([what, f"{limit:g} {unit}", f"{value:.1f} {unit}", "yes" if value <= limit else "**no**"])

    aim("CPU a post, aggregated, journal off", _cpu(aggregated.plain), 12, "µs")
    aim("CPU a post, aggregated, journal on", _cpu(journaled.plain), 14, "µs")
    over_tls, plain = _cpu(aggregated.tls), _cpu(aggregated.plain)
    aim("TLS adds", over_tls - plain if over_tls is not None and plain is not None else None, 3, "µs")
    aim("CPU a post, not aggregated", _cpu(single.plain), 25, "µs")
    limit = (LINGER_SECONDS + ROUND_TRIP_SECONDS + 0.02) * 1000
    p99 = aggregated.paced.findings.latency.get("99") if aggregated.paced else None
    aim(f"p99 at {PACED_RATE:,.0f} posts/s: linger + round trip + 20 ms", p99, limit, "ms")
    gone = figures.outage
    away = f"{gone.seconds:g} s" if gone else "60 s"
    aim(f"memory, Kinesis away for {away}", gone.peak / _MIB if gone else None, 200, "MiB")
    aim("caught up in less than it was away", gone.caught_up if gone else None, gone.seconds if gone else 60, "s")
    aim("lost or out of order after it", gone.findings.lost + gone.findings.out_of_order if gone else None, 0, "posts")
    for name in ("shards", "keys"):
        costs = [point.result.cpu for axis in figures.axes if axis.name == name for point in axis.points]
        aim(f"cost over all {name}: most over least", max(costs) / min(costs) if costs else None, 1.2, "times")
    return _table(["", "aim", "this run", "reached"], lines)


def explanation() -> str:
    """What the columns mean: said once, under the tables."""
    trip = ROUND_TRIP_SECONDS * 1000
    return (
        f"Latency is measured at {PACED_RATE:,.0f} posts a second for {PACED_SECONDS:g} s, with {trip:g} ms added to"
        " each answer as its round trip: from when a post is due at the peer's pipe to when its answer leaves. The CPU"
        " beside it is that of the same run. A dash: not measured, because the peer does not carry this rate, or reads"
        " no pipe, or speaks TLS only."
    )


def _cpu(result: Result | None) -> float | None:
    return result.cpu if result else None


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, rule, *lines])
