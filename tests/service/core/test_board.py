import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from service.core.board import CELL_SECONDS, CELLS, EVENTS, LOOKS, POSTS, ROWS, Board
from service.core.figures import Histogram
from service.core.lanes import ShardState
from service.core.look import Buffer, Inside, Look, SourceFigures
from service.core.records import Post
from service.core.verdict import Check

START = 1_700_000_000.0
SHARD = "shardId-000000000000"
WELL = {name: Check(True, "", START) for name in ("stream", "kinesis", "buffer")}
NO_DELAY = Histogram((1, 2)).seen()
NOTHING = Look(
    at=START,
    received=0,
    recovered=0,
    delivered=0,
    duplicate=0,
    dropped={},
    connected=True,
    retry_at=0.0,
    signal_at=0.0,
    received_at=0.0,
    reconnects=0,
    requests=0,
    retries=0,
    failed_requests=0,
    order_violations=0,
    billed_units=0,
    billed_bytes=0,
    shard_throttles={},
    shard_records={},
    shard_bytes={},
    lag=NO_DELAY,
    delivery=NO_DELAY,
    whole=NO_DELAY,
    buffer=Buffer(),
    inside=Inside(checks=WELL),
    source=SourceFigures(),
)


def look(
    second: float, *, shards: Sequence[ShardState] = (), checks: Mapping[str, Check] = WELL, **changes: Any
) -> Look:
    """Make a look some seconds after the start."""
    return NOTHING._replace(at=START + second, inside=Inside(shards=shards, checks=checks), **changes)


def board(*, shows_posts: bool = False) -> Board:
    """Make a board."""
    return Board({"version": "1"}, shows_posts=shows_posts)


def shard(share: float = 1.0, name: str = SHARD) -> ShardState:
    """Make a shard with this pace."""
    return ShardState(name, share, 0, 0.0)


def frame(board: Board, look: Look) -> dict[str, Any]:
    """Give a frame as a page gets it: through JSON."""
    found: dict[str, Any] = json.loads(json.dumps(board.frame(look)))
    return found


def test_before_the_first_look() -> None:
    """A page that is opened at once gets a frame without rates and points, and with what does not change."""
    found = frame(board(), NOTHING)
    assert found["version"] == "1"
    assert (found["in_per_second"], found["out_per_second"]) == (0, 0)
    assert found["points"] == []
    assert (found["lag_p95"], found["delivery_p95"], found["whole_p95"]) == (None, None, None)
    assert board().history()["points"] == []
    assert board().history()["cells"] == {}


def test_rates() -> None:
    """They are the mean of the last five seconds; the curve has each second."""
    page = board()
    for second in range(8):
        page.add(look(second, received=500 * (second > 3), delivered=450 * (second > 3)))
    found = frame(page, look(8, received=500, delivered=450))
    assert (found["in_per_second"], found["out_per_second"]) == (100, 90)
    points: Any = page.history()["points"]
    assert points[3:6] == [(START + 3, 0, 0, True), (START + 4, 500, 450, True), (START + 5, 0, 0, True)]
    assert found["points"] == [list(point) for point in points[3:]]


def test_the_curve_ends() -> None:
    """It has five minutes, however long the daemon runs."""
    page = board()
    for second in range(LOOKS + 50):
        page.add(look(second))
    assert len(page.history()["points"]) == LOOKS  # type: ignore[arg-type]


def test_a_clock_that_is_set_back() -> None:
    """It gives no negative rate, and rates begin anew."""
    page = board()
    page.add(look(100, received=1000))
    page.add(look(50, received=1100))
    page.add(look(51, received=1200))
    assert [point[1] for point in page.history()["points"]] == [0, 0, 100]  # type: ignore[attr-defined]
    assert frame(page, look(52, received=1300))["in_per_second"] == 100


def test_delays() -> None:
    """They are those of the last minute; what was before does not count."""
    page = board()
    lag = Histogram((1, 2))
    lag.observe(0.5, 1000)
    for second in range(70):
        page.add(look(second, lag=lag.seen()))
    lag.observe(1.5, 10)
    assert frame(page, look(70, lag=lag.seen()))["lag_p95"] == pytest.approx(1.95)


def test_cells() -> None:
    """A cell has the lowest pace and all throttles of its five seconds; there are five minutes of them."""
    page = board()
    paces = [1.0, 1.0, 0.7, 0.8, 0.9, 1.0]
    for second, pace in enumerate(paces):
        throttles = {SHARD: 0 if second < 2 else 3}
        page.add(look(second, shards=[shard(pace)], shard_throttles=throttles))
    first = int(START // CELL_SECONDS)
    cells: Any = page.history()["cells"]
    assert cells == {SHARD: {str(first): (0.7, 3), str(first + 1): (1.0, 0)}}
    for second in range(6, CELL_SECONDS * (CELLS + 10)):
        # A count that begins anew is no throttle taken back.
        page.add(look(second, shards=[shard()], shard_throttles={SHARD: 3} if second < 100 else {}))
    cells = page.history()["cells"]
    assert len(cells[SHARD]) == CELLS
    assert set(cells[SHARD].values()) == {(1.0, 0)}


def test_shards_that_are_gone() -> None:
    """They leave the page, and new ones begin with an empty strip."""
    page = board()
    page.add(look(0, shards=[shard()]))
    page.add(look(1, shards=[shard(name="b")]))
    assert list(page.history()["cells"]) == ["b"]  # type: ignore[call-overload]


def test_rows() -> None:
    """Each shard has what it takes a second, and what it has throttled."""
    page = board()
    for second in range(6):
        counts = {SHARD: 10 * second}
        page.add(look(second, shards=[shard()], shard_records=counts, shard_bytes=counts, shard_throttles=counts))
    counts = {SHARD: 60}
    now = look(6, shards=[shard(0.5)], shard_records=counts, shard_bytes=counts, shard_throttles=counts)
    (row,) = frame(page, now)["shards"]
    assert (row["id"], row["share"], row["throttles"]) == (SHARD, 0.5, 60)
    assert (row["records_per_second"], row["bytes_per_second"]) == (10, 10)
    assert len(row["cells"]) == 2


def test_many_shards() -> None:
    """Those in trouble are shown, in their order; the page learns how many there are."""
    shards = [*(shard(name=f"s{number}") for number in range(ROWS)), shard(0.2, "slow"), ShardState("full", 1.0, 7, 0)]
    found = frame(board(), look(0, shards=shards))
    names = [row["id"] for row in found["shards"]]
    assert len(names) == ROWS
    assert names[-2:] == ["slow", "full"]
    assert found["shard_count"] == ROWS + 2


def test_the_verdict_is_of_lately() -> None:
    """Throttles count for ten seconds, drops for a minute."""
    page = board()
    states = []
    for second in range(80):
        now = look(
            second,
            received_at=START + second,
            shards=[shard()],
            shard_throttles={SHARD: 0 if second < 5 else 4},
            dropped={"refused": 0 if second < 5 else 2},
        )
        states.append([condition["state"] for condition in frame(page, now)["conditions"]])
        page.add(now)
    assert states[4] == ["flowing"]
    assert states[5] == ["dropping", "throttled"]
    assert states[14] == ["dropping", "throttled"]
    assert states[16] == ["dropping"]
    assert states[64] == ["dropping"]
    assert states[66] == ["flowing"]


def test_draining() -> None:
    """The page is told that the source is closed for good."""
    page = board()
    page.closing = True
    assert frame(page, look(0, buffer=Buffer(posts=3)))["conditions"][0]["state"] == "draining"


def test_the_bill() -> None:
    """What aggregation saves is what a record a post would cost more, at the least."""
    found = frame(board(), look(0, delivered=1000, billed_units=80, billed_bytes=4096))
    assert (found["billed_units"], found["billed_bytes"], found["saved_units"]) == (80, 4096, 920)
    assert frame(board(), look(0, delivered=10, billed_units=80))["saved_units"] == 0


def test_a_line_of_the_log() -> None:
    """It sums up the last ten seconds: the state in a word, what came and went, and what waits."""
    page = board()
    for second in range(30):
        page.add(look(second, received=100 * second, delivered=90 * second, received_at=START + second))
    now = look(30, received=3000, delivered=2700, buffer=Buffer(posts=7), dropped={"refused": 2})
    line = page.summary(now)
    assert (line["in_per_second"], line["out_per_second"]) == (100, 90)
    assert (line["received"], line["delivered"], line["dropped"], line["buffered"]) == (3000, 2700, 2, 7)
    assert line["state"] == "dropping"
    assert board().summary(look(0))["in_per_second"] == 0


class TestEvents:
    def test_repeats(self) -> None:
        """The same again is the same line, with its count and its last time."""
        page = board()
        page.note(START, "X", "connected")
        page.note(START + 1, "X", "stall: silent", "bad")
        page.note(START + 9, "X", "stall: silent", "bad")
        first, second = frame(page, look(0))["events"]
        assert (first["text"], first["count"]) == ("connected", 1)
        assert (second["text"], second["count"], second["at"]) == ("stall: silent", 2, START + 9)

    def test_an_end(self) -> None:
        """Only the last ones are kept."""
        page = board()
        for number in range(EVENTS + 5):
            page.note(START, "X", str(number))
        assert [event["text"] for event in frame(page, look(0))["events"]] == [str(n) for n in range(5, EVENTS + 5)]

    def test_checks(self) -> None:
        """What Kinesis and the buffer come to is an event, their recovery too; being well from the start is none."""
        page = board()
        page.add(look(0))
        page.add(look(1, checks={"kinesis": Check(False, "no answer", START + 1)}))
        page.add(look(2, checks={"kinesis": Check(False, "no answer", START + 1)}))
        page.add(look(3, checks={"kinesis": Check(True, "", START + 3)}))
        page.add(look(14, checks={"kinesis": Check(True, "", START + 3)}))
        events = frame(page, look(14))["events"]
        assert [(event["text"], event["level"]) for event in events] == [("no answer", "bad"), ("is well again", "ok")]
        assert events[1]["at"] == START + 3

    def test_a_trouble_that_comes_and_goes(self) -> None:
        """It is one event, until it has been away for ten seconds: the others are not pushed out."""
        page = board()
        for second in range(0, 20, 2):
            page.add(look(second, checks={"kinesis": Check(False, "no answer", START + second)}))
            page.add(look(second + 1, checks={"kinesis": Check(True, "", START + second + 1)}))
        assert [event["text"] for event in frame(page, look(20))["events"]] == ["no answer"]

    def test_starting(self) -> None:
        """Before anything was tried, nothing happened."""
        page = board()
        page.add(look(0, checks={"kinesis": Check(False, "starting", START)}))
        assert frame(page, look(0))["events"] == []

    def test_throttles(self) -> None:
        """A shard that begins to throttle is an event, not each of its throttles."""
        page = board()
        for second in range(30):
            count = 0 if second < 3 else second
            page.add(look(second, shards=[shard()], shard_throttles={SHARD: count}))
        events = frame(page, look(30))["events"]
        assert [(event["text"], event["count"]) for event in events] == [(f"throttles {SHARD}", 1)]


class TestPosts:
    LINE = b'{"data":{"id":"7","author_id":"5","text":"secret"},"includes":{"users":[{"id":"5","username":"cat"}]}}'

    def test_off(self) -> None:
        """By default nobody is named."""
        page = board()
        page.take([Post(self.LINE, "7", b"5", 0.0)])
        assert frame(page, look(0))["last_posts"] is None

    def test_on(self) -> None:
        """Id and author, never the text."""
        page = board(shows_posts=True)
        page.take([Post(self.LINE, "7", b"5", 0.0)])
        found = frame(page, look(0))
        assert found["last_posts"] == [{"id": "7", "author": "@cat"}]
        assert "secret" not in json.dumps(found)

    @pytest.mark.parametrize(
        ("line", "author"),
        [
            (b'{"data":{"id":"7","author_id":"5"}}', "5"),
            (b'{"data":{"id":"7"}}', ""),
            (b'{"data":{"id":"7","author_id":"5"},"includes":{"users":[{"id":"6","username":"dog"}]}}', "5"),
            (b'{"data":{"id":"7","author_id":"5"},"includes":{"users":[{"id":"5"}]}}', "5"),
            (b'{"user":1}', ""),
            (b"[1]", ""),
            (b"\xff", ""),
        ],
    )
    def test_other_lines(self, line: bytes, author: str) -> None:
        """Whatever the line is, the page goes on; who is not named by the line is not guessed."""
        page = board(shows_posts=True)
        page.take([Post(line, "7", b"5", 0.0)])
        assert frame(page, look(0))["last_posts"] == [{"id": "7", "author": author}]

    def test_an_end(self) -> None:
        """Only the last ones are kept, over chunks."""
        page = board(shows_posts=True)
        for number in range(3):
            page.take([Post(b"{}", f"{number}-{n}", b"", 0.0) for n in range(POSTS - 2)])
        ids = [post["id"] for post in frame(page, look(0))["last_posts"]]
        assert ids == [*(f"1-{n}" for n in (4, 5)), *(f"2-{n}" for n in range(POSTS - 2))]
