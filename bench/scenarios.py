"""What is measured, in which order, with how many posts: the peers side by side, how cost grows, an outage."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import road
from bench.feed import RunError
from bench.measure import SHARDS, Load, Result, Workshop
from bench.roster import AGGREGATED, COMPRESSED, JOURNALED, PEERS, Peer, PeerError, is_missing

# The rate at which latency is measured: that of all of X is about 6,000.
PACED_RATE = 5_000.0
PACED_SECONDS = 6.0
# What the stub adds to each answer there: a request to Kinesis in its own region takes about as long.
ROUND_TRIP_SECONDS = 0.02
# A peer that is not this much faster than the paced rate falls behind, and shows its queue and not its latency.
_ROOM = 1.2
# Posts of 1.1 KB that a shard takes in three seconds; one shard gets more, because what a process does once is dear
# beside so few.
_POSTS_PER_SHARD = 2_800
_POSTS_OF_ONE_SHARD = 8_000
_RECORDED_POSTS = 15_000
# The module of the quickest peer that speaks without TLS.
QUICKEST = "aiobotocore_batches"


@dataclass
class Row:
    """
    One peer in the tables; a measurement that was not made, or failed, is None.

    Attributes:
        name: of the peer.
        plain: the file as fast as the peer reads it.
        tls: the same over TLS.
        paced: at PACED_RATE, with the round trip.
        note: why something is missing.
    """

    name: str
    plain: Result | None = None
    tls: Result | None = None
    paced: Result | None = None
    note: str = ""


@dataclass(frozen=True)
class Point:
    """A run under a label: its value on an axis, or its way."""

    label: str
    result: Result


@dataclass(frozen=True)
class Axis:
    """What was changed while all else stayed, and what came of it."""

    name: str
    points: list[Point]


Say = Callable[[str], None]


def beside_peers(workshop: Workshop, say: Say, *, scale: float, tls: bool, paced: bool) -> Iterator[Row]:
    """Measure every peer; `scale` shortens all runs. A peer that fails has a note instead of figures."""
    for peer in PEERS:
        row = Row(peer.name)
        if is_missing(peer):
            row.note = "not on this machine"
        else:
            say(peer.name)
            try:
                _fill(row, workshop, peer, scale=scale, tls=tls, paced=paced)
            except (RunError, PeerError) as error:
                row.note = f"failed: {error}"
        yield row
    say("the whole road")
    row = Row("Millrace, aggregated, from the X stand-in")
    count = int(60_000 * scale)
    try:
        row.plain = road.measure(workshop, AGGREGATED, Load(workshop.posts(count), count))
    except RunError as error:
        row.note = f"failed: {error}"
    yield row


def _fill(row: Row, workshop: Workshop, peer: Peer, *, scale: float, tls: bool, paced: bool) -> None:
    count = max(int(peer.posts * scale), 100)
    posts = workshop.posts(count)
    if not peer.tls_only:
        row.plain = workshop.measure(peer, Load(posts, count))
    if tls or peer.tls_only:
        row.tls = workshop.measure(peer, Load(posts, count, tls=True), rounds=1)
    if paced and peer.reads_pipes and row.plain and row.plain.rate > PACED_RATE * _ROOM:
        count = int(PACED_RATE * PACED_SECONDS * min(1.0, scale * 4))
        load = Load(workshop.posts(count), count, rate=PACED_RATE, delay=ROUND_TRIP_SECONDS)
        row.paced = workshop.measure(peer, load, rounds=1)


def on_archive(workshop: Workshop, archive: Path, say: Say, scale: float) -> Iterator[Row]:
    """Measure Millrace and its quickest peer on recorded posts; all peers would take minutes more."""
    count = int(_RECORDED_POSTS * scale)
    posts = workshop.posts(count, "--archive", str(archive))
    for peer in PEERS:
        if not (peer.is_millrace or peer.module == QUICKEST):
            continue
        say(f"recorded: {peer.name}")
        row = Row(peer.name)
        wanted = min(count, int(peer.posts * scale))
        try:
            row.plain = workshop.measure(peer, Load(workshop.head(posts, wanted), wanted), rounds=1)
        except (RunError, PeerError) as error:
            row.note = f"failed: {error}"
        yield row


def compression(workshop: Workshop, archive: Path, say: Say) -> Iterator[Point]:
    """
    Carry recorded posts once, plain and compressed, into one shard and into four.

    Once, because what comes again compresses too well; into few shards, so that an archive fills containers as a
    stream does.
    """
    posts = workshop.posts(_RECORDED_POSTS, "--archive", str(archive), "--once")
    with posts.open("rb") as lines:
        count = sum(1 for _ in lines)
    for shards in (1, 4):
        for peer in (AGGREGATED, COMPRESSED):
            label = f"{peer.name}, {shards} shard{'s' if shards > 1 else ''}"
            say(label)
            yield Point(label, workshop.measure(peer, Load(posts, count, shards=shards), rounds=1))


def growth(workshop: Workshop, say: Say, scale: float) -> Iterator[Axis]:
    """Change one thing at a time, for Millrace with aggregation and without a journal."""
    most = int(80_000 * scale)

    def point(label: str, count: int, *options: str, rate: float = 0.0, shards: int = SHARDS) -> Point:
        say(label)
        load = Load(workshop.posts(count, *options), count, shards=shards, rate=rate)
        return Point(label, workshop.measure(AGGREGATED, load, rounds=1))

    rates = [(100, 8), (1_000, 5), (5_000, 4), (20_000, 3)]
    paced = [point(f"{rate:,}", int(rate * seconds * min(1.0, scale * 4)), rate=rate) for rate, seconds in rates]
    yield Axis("posts a second", [*paced, point("as they come", most)])
    shards = (1, 4, 16, 64, 256, 512)
    yield Axis(
        "shards", [point(f"{n}", min(most, max(_POSTS_PER_SHARD * n, _POSTS_OF_ONE_SHARD)), shards=n) for n in shards]
    )
    # One key is one shard; a hundred keys are at most a hundred.
    keys = [(1, min(most, _POSTS_OF_ONE_SHARD)), (100, most), (10_000, most), (1_000_000, most)]
    yield Axis("keys", [point(f"{n:,}", count, "--alike", "--authors", str(n)) for n, count in keys])
    workshop.forget_posts()
    sizes = [
        (size, max(int(min(100_000, 220_000_000 // size) * scale), 50))
        for size in (300, 1_100, 10_000, 100_000, 900_000)
    ]
    yield Axis("bytes a post", [point(f"{size:,}", count, "--size", str(size)) for size, count in sizes])
    workshop.forget_posts()


def outage(workshop: Workshop, seconds: float) -> road.Outage:
    """Take Kinesis away for so many seconds, with the journal on."""
    return road.outage(workshop, JOURNALED, seconds, PACED_RATE, ROUND_TRIP_SECONDS)
