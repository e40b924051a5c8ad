from pathlib import Path

from bench import posts
from bench.stages import Clock, floor, road, table


def chunks_of(directory: Path) -> list[bytes]:
    """Make some posts, in two chunks of which the first ends inside a line."""
    path = directory / "posts"
    posts.write(path, 300)
    data = path.read_bytes()
    return [data[:100_001], data[100_001:]]


def test_every_step_of_the_road_is_timed(tmp_path: Path) -> None:
    """All posts go through to the last answer, and each step shows up with a time of its own."""
    clock = Clock()
    for _ in range(2):
        road(clock, chunks_of(tmp_path), shards=4, rate=10_000.0)
    steps = clock.totals()
    assert list(steps)[:3] == ["lines", "id and key", "lanes"]
    assert set(list(steps)[3:]) == {"containers, requests", "body: base64, JSON", "SHA-256 of the body", "answers"}
    assert min(steps.values()) > 0


def test_the_floor_is_below_the_road(tmp_path: Path) -> None:
    """What cannot be left out costs less than what is done."""
    ours, least = Clock(), Clock()
    chunks = chunks_of(tmp_path)
    for _ in range(5):
        road(ours, chunks, shards=4, rate=10_000.0)
        floor(least, chunks)
    assert 0 < sum(least.totals().values()) < sum(ours.totals().values())


def test_the_quickest_round_counts() -> None:
    """Of two rounds of the same calls each call's quicker time is kept, and a step is the sum of its calls."""
    clock = Clock()
    for lengths in ((200_000, 1), (1, 200_000)):
        clock.begin()
        for length in lengths:
            clock.time("sum", sum, range(length))
    both = Clock()
    both.time("sum", sum, range(200_000))
    assert clock.totals()["sum"] < both.totals()["sum"]


def test_the_table_is_microseconds_a_post() -> None:
    """A step of a millisecond for a hundred posts is ten microseconds each; the last row is the sum."""
    rows = table({"one": 0.001, "other": 0.0005}, 100)
    assert [row.split() for row in rows] == [["one", "10.00"], ["other", "5.00"], ["together", "15.00"]]
