from datetime import UTC, datetime, timedelta, timezone

from processor.table import TableWriter
from processor.tombstones import delete, tombstone
from tests.processor.fake_dynamodb import NONE, TABLE, Clock, FakeDynamo, Inline

NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)


def writer(table: FakeDynamo) -> TableWriter:
    """A writer on a clock of its own."""
    clock = Clock()
    return TableWriter(TABLE, lambda: table, Inline(), clock=clock, sleep=clock.sleep, chance=max)


def test_a_tombstone_lives_as_long_as_a_post_could() -> None:
    """It expires when a post of this moment would; where posts are kept for ever it is, too. Its time is UTC."""
    assert tombstone("17", NOW, 7) == {
        "Id": "deleted#17",
        "DeletedAt": "2026-11-23T14:30:00.000Z",
        "ExpiresAt": int((NOW + timedelta(days=7)).timestamp()),
    }
    assert tombstone("17", NOW.astimezone(timezone(timedelta(hours=9))), 0) == {
        "Id": "deleted#17",
        "DeletedAt": "2026-11-23T14:30:00.000Z",
    }


def test_all_tombstones_stand_before_the_first_item_goes() -> None:
    """The order is what makes a deletion safe against a writer that runs meanwhile."""
    table = FakeDynamo()
    keys = [str(number) for number in range(60)]
    writer(table).put({key: {"Id": key} for key in keys}, deadline=2_000)
    table.batches.clear()

    assert delete(writer(table), [*keys, "7"], NOW, 30, deadline=2_000) == frozenset()

    asked = [key.startswith("deleted#") for batch in table.batches for key in batch]
    assert asked == [True] * 60 + [False] * 60
    assert table.items == {}
    assert len(table.everything) == 60


def test_without_its_tombstone_no_item_is_deleted() -> None:
    """What the table does not take in time is left, named, and still there."""
    table = FakeDynamo([NONE] * 10_000)
    table.everything["1"] = {"Id": "1"}

    assert delete(writer(table), ["1"], NOW, 30, deadline=1_005) == {"1"}
    assert "1" in table.everything


def test_an_item_that_could_not_be_deleted_is_named() -> None:
    """Its tombstone stands already; calling again finishes the work."""
    table = FakeDynamo(["stored", *[NONE] * 10_000])
    table.everything["1"] = {"Id": "1"}

    assert delete(writer(table), ["1"], NOW, 30, deadline=1_005) == {"1"}
    assert set(table.everything) == {"1", "deleted#1"}
