from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.dynamodb import connect
from processor.items import TOMBSTONE_PREFIX, Item
from processor.table import (
    BACKOFF_BASE_SECONDS,
    BACKOFF_LIMIT_SECONDS,
    TOMBSTONE_SECONDS,
    Client,
    Outcome,
    TableError,
    TableWriter,
)
from tests.processor.aws_by_moto import Aws
from tests.processor.fake_dynamodb import (
    HALF,
    LOST,
    NONE,
    STORED,
    TABLE,
    THROTTLED,
    UNREACHABLE,
    Clock,
    FakeDynamo,
    Inline,
)


def items_of(count: int, text: str = "x") -> dict[str, Item]:
    """So many small items by their key."""
    return {str(number): {"Id": str(number), "Message": text} for number in range(count)}


def done(outcome: Outcome) -> tuple[int, str | None]:
    """What was the matter with a write that stored all."""
    assert (outcome.unwritten, outcome.refused, outcome.deleted) == (frozenset(), {}, frozenset())
    return outcome.retried, outcome.fault


def writer(table: Client, clock: Clock | None = None, chance: Callable[[float, float], float] = max) -> TableWriter:
    """A writer that runs in the test's thread, on a clock of its own, and always waits as long as it may."""
    clock = clock or Clock()
    return TableWriter(TABLE, lambda: table, Inline(), clock=clock, sleep=clock.sleep, chance=chance)


class TestWriting:
    def test_items_are_stored_25_at_a_time(self) -> None:
        """Any number of items ends in the table, in batches as large as the API takes."""
        table = FakeDynamo()

        outcome = writer(table).write(items_of(60), deadline=2_000)

        assert table.items == items_of(60)
        assert [len(batch) for batch in table.batches] == [25, 25, 10]
        assert done(outcome) == (0, None)

    def test_nothing_to_store_asks_nothing(self) -> None:
        """Without items there is no call."""
        table = FakeDynamo()

        assert done(writer(table).write({}, deadline=2_000)) == (0, None)
        assert not table.batches

    def test_large_items_share_a_request_only_within_16_mb(self) -> None:
        """However long its characters are in JSON, no request is larger than DynamoDB takes."""
        table = FakeDynamo()

        outcome = writer(table).write(items_of(10, "\x01" * 400_000), deadline=2_000)

        assert done(outcome) == (0, None)
        assert [len(batch) for batch in table.batches] == [6, 4]

    def test_what_was_left_out_is_sent_again_packed_together(self) -> None:
        """The unprocessed items of several calls share the next ones."""
        table = FakeDynamo([HALF, HALF])

        outcome = writer(table).write(items_of(50), deadline=2_000)

        assert table.items == items_of(50)
        assert [len(batch) for batch in table.batches] == [25, 25, 25, 1]
        assert done(outcome) == (26, "UnprocessedItems")

    @pytest.mark.parametrize(
        ("fault", "name"),
        [
            (THROTTLED, THROTTLED),
            ("InternalServerError", "InternalServerError"),
            (LOST, "TimeoutError"),
            (UNREACHABLE, "ConnectionRefusedError"),
        ],
    )
    def test_a_failed_call_is_sent_again(self, fault: str, name: str) -> None:
        """Throttles, faults of the server and lost answers end in a stored item, and are named."""
        table = FakeDynamo([fault, fault])

        outcome = writer(table).write(items_of(3), deadline=2_000)

        assert table.items == items_of(3)
        assert done(outcome) == (6, name)

    def test_pauses_double_up_to_a_limit_with_full_jitter(self) -> None:
        """Each pause is drawn between nothing and twice the last one's most, never above the limit."""
        asked: list[tuple[float, float]] = []

        def chance(least: float, most: float) -> float:
            asked.append((least, most))
            return most / 2

        clock = Clock()
        writer(FakeDynamo([NONE] * 7), clock, chance).write(items_of(1), deadline=2_000)

        assert [least for least, _ in asked] == [0] * 7
        assert [most for _, most in asked] == [
            min(BACKOFF_LIMIT_SECONDS, BACKOFF_BASE_SECONDS * 2**attempt) for attempt in range(7)
        ]
        assert clock.now == 1_000 + sum(most / 2 for _, most in asked)

    def test_a_table_throttled_for_ever_ends_before_the_deadline(self) -> None:
        """What cannot be stored in time is named, and no time is spent on a pause that could not help."""
        clock = Clock()
        table = FakeDynamo([NONE] * 1_000)

        outcome = writer(table, clock).write(items_of(30), deadline=1_010)

        assert outcome.unwritten == frozenset(items_of(30))
        assert 1_010 - BACKOFF_LIMIT_SECONDS <= clock.now < 1_010

    def test_no_call_is_begun_after_the_deadline(self) -> None:
        """When the calls themselves are slow, those that are left are not begun."""
        clock = Clock()
        table = FakeDynamo(clock=clock, seconds=1)

        outcome = writer(table, clock).write(items_of(100), deadline=1_002)

        assert len(table.batches) == 2
        assert outcome.fault is None
        assert outcome.unwritten == frozenset(items_of(100)) - frozenset(table.items)
        assert len(table.items) == 50

    def test_one_invalid_item_does_not_fail_its_neighbours(self) -> None:
        """A refused batch is sent one by one; only the culprit is refused, with DynamoDB's reason."""
        table = FakeDynamo(invalid=lambda item: str(item["Id"]) == "7")
        items = items_of(30)

        outcome = writer(table).write(items, deadline=2_000)

        del items["7"]
        assert table.items == items
        assert outcome.unwritten == frozenset()
        assert list(outcome.refused) == ["7"]
        assert outcome.refused["7"].startswith("ValidationException: ")

    def test_a_suspect_that_is_throttled_stays_alone(self) -> None:
        """A throttle while a refused batch is taken apart does not put the culprit back among others."""
        table = FakeDynamo([STORED, THROTTLED, NONE], invalid=lambda item: str(item["Id"]) == "1")

        outcome = writer(table).write(items_of(3), deadline=2_000)

        assert set(table.items) == {"0", "2"}
        assert list(outcome.refused) == ["1"]
        assert [len(batch) for batch in table.batches] == [3, 1, 1, 1, 1]

    @pytest.mark.parametrize("code", ["AccessDeniedException", "UnrecognizedClientException"])
    def test_what_only_an_operator_can_heal_is_raised(self, code: str) -> None:
        """A missing permission is no fault of an item: it fails the invocation in one line that names the table."""
        with pytest.raises(TableError, match=f"^table {TABLE}: .*{code}"):
            writer(FakeDynamo([code])).write(items_of(1), deadline=2_000)

    def test_the_client_is_made_once(self) -> None:
        """The first write connects, further ones use what is there."""
        tables = [FakeDynamo()]
        clock = Clock()
        once = TableWriter(TABLE, tables.pop, Inline(), clock=clock, sleep=clock.sleep)

        once.write(items_of(1), deadline=2_000)
        once.write(items_of(2), deadline=2_000)

        assert not tables

    @settings(deadline=None)
    @given(
        faults=st.lists(st.sampled_from([STORED, HALF, NONE, LOST, UNREACHABLE, THROTTLED, "ValidationException"])),
        look_faults=st.lists(st.sampled_from([STORED, HALF, NONE, LOST, UNREACHABLE, THROTTLED])),
        buried=st.sets(st.integers(0, 79)),
        count=st.integers(0, 80),
        invalid=st.sets(st.integers(0, 79)),
        seconds=st.floats(0, 5),
    )
    def test_what_is_named_nowhere_is_stored(
        self,
        faults: list[str],
        look_faults: list[str],
        buried: set[int],
        count: int,
        invalid: set[int],
        seconds: float,
    ) -> None:
        """Under any pattern of failures each item is stored, or named as unwritten, as refused, or as deleted."""
        clock = Clock()
        table = FakeDynamo(
            faults,
            look_faults=look_faults,
            invalid=lambda item: int(str(item["Id"])) in invalid,
            clock=clock,
            seconds=0.1,
        )
        table.bury(*map(str, buried))
        items = items_of(count)

        outcome = writer(table, clock).write(items, deadline=clock.now + seconds)

        assert not outcome.unwritten & outcome.refused.keys()
        assert not outcome.deleted & (outcome.unwritten | outcome.refused.keys())
        assert outcome.deleted <= {str(number) for number in buried}
        stored = set(items) - outcome.unwritten - outcome.refused.keys() - outcome.deleted
        assert stored <= set(table.items)
        assert not {str(number) for number in buried} & stored
        assert not outcome.deleted & set(table.items)
        assert not {str(number) for number in invalid} & set(table.items)


class TestTombstones:
    def test_what_was_deleted_is_taken_out_again(self) -> None:
        """Each look asks for up to 100 tombstones; what has one is deleted, and named."""
        table = FakeDynamo()
        table.bury("3", "140")

        outcome = writer(table).write(items_of(150), deadline=2_000)

        assert outcome.deleted == {"3", "140"}
        assert set(table.items) == set(items_of(150)) - {"3", "140"}
        assert [len(keys) for keys in table.looks] == [100, 50]
        assert outcome.units == 152

    def test_only_what_was_put_is_looked_for(self) -> None:
        """An item that was refused or not stored needs no look."""
        table = FakeDynamo(invalid=lambda item: item["Id"] == "1")

        writer(table).write(items_of(3), deadline=2_000)

        assert [sorted(keys) for keys in table.looks] == [[TOMBSTONE_PREFIX + "0", TOMBSTONE_PREFIX + "2"]]

    def test_a_throttled_look_is_repeated(self) -> None:
        """Keys that were not read, throttles and lost answers are asked for again."""
        table = FakeDynamo(look_faults=[HALF, THROTTLED, LOST])
        table.bury("0")

        outcome = writer(table).write(items_of(4), deadline=2_000)

        assert outcome.deleted == {"0"}
        assert outcome.unwritten == frozenset()
        assert [len(keys) for keys in table.looks] == [4, 2, 2, 2]

    def test_the_look_has_a_moment_after_the_deadline(self) -> None:
        """What was stored at the last moment is looked at; a look that does not end in time leaves it unwritten."""
        clock = Clock()
        table = FakeDynamo(clock=clock, seconds=1.0)
        assert writer(table, clock).write(items_of(1), deadline=clock.now + 0.5).unwritten == frozenset()

        table = FakeDynamo(clock=clock, seconds=0.6 + TOMBSTONE_SECONDS)
        assert writer(table, clock).write(items_of(1), deadline=clock.now + 0.5).unwritten == {"0"}

    def test_items_are_put_and_deleted_without_a_look(self) -> None:
        """What the console asks for is done as it is, through throttles."""
        table = FakeDynamo([THROTTLED, HALF, NONE, HALF])

        assert writer(table).put(items_of(3), deadline=2_000) == frozenset()
        assert writer(table).delete(["0", "2", "7"], deadline=2_000) == frozenset()

        assert set(table.items) == {"1"}
        assert not table.looks

    def test_a_refusal_of_a_look_or_a_deletion_is_no_end(self) -> None:
        """Whatever made the table refuse it, the item is looked for again, or named as unwritten."""
        table = FakeDynamo([STORED, "ValidationException"], look_faults=["ValidationException"])
        table.bury("0")
        assert writer(table).write(items_of(2), deadline=2_000).deleted == {"0"}

        table = FakeDynamo([STORED, *["ValidationException"] * 1_000])
        table.bury("0")
        assert writer(table).write(items_of(2), deadline=1_005).unwritten == {"0"}

    def test_what_was_not_done_in_time_is_named(self) -> None:
        """A table that is throttled for ever leaves its keys."""
        assert writer(FakeDynamo([NONE] * 1_000)).put(items_of(2), deadline=1_005) == {"0", "1"}
        assert writer(FakeDynamo([NONE] * 1_000)).delete(["0"], deadline=1_005) == {"0"}

    def test_an_item_that_cannot_be_put_is_an_error(self) -> None:
        """The console makes its items itself: one that is refused is told in the words of the table."""
        with pytest.raises(TableError, match=f"^table {TABLE}: ValidationException"):
            writer(FakeDynamo(invalid=lambda _: True)).put(items_of(1), deadline=2_000)


class TestRealTable:
    """The client itself, against moto's DynamoDB."""

    def test_only_the_bad_item_is_refused_and_the_deleted_one_taken_out(self, aws: Aws, table: str) -> None:
        """A real ValidationException, of an empty index key, is isolated; a tombstone is found among others."""
        items: dict[str, Item] = {
            str(number): {"Id": str(number), "SortId": str(number), "AuthorId": "42"} for number in range(130)
        }
        items["7"]["AuthorId"] = ""
        client = connect(aws.environ)
        with ThreadPoolExecutor(8) as pool:
            writer = TableWriter(table, lambda: client, pool)
            writer.put({"deleted#129": {"Id": "deleted#129"}}, deadline=float("inf"))
            outcome = writer.write(items, deadline=float("inf"))
            again = writer.write({"8": items["8"]}, deadline=float("inf"))
            left = writer.delete(["8"], deadline=float("inf"))
        client.close()

        assert list(outcome.refused) == ["7"]
        assert outcome.deleted == {"129"}
        assert not outcome.unwritten
        assert outcome.units > 0
        assert done(again) == (0, None)
        assert left == frozenset()
        assert aws.items(table) == {"deleted#129": {"Id": "deleted#129"}} | {
            key: item for key, item in items.items() if key not in {"7", "8", "129"}
        }

    def test_a_missing_table_is_told_in_one_line(self, aws: Aws) -> None:
        """The API's own error becomes a line that names the table and the way out."""
        client = connect(aws.environ)
        with pytest.raises(TableError, match=r"^table elsewhere: there is no such table[^\n]*$"):
            TableWriter("elsewhere", lambda: client, Inline()).write(items_of(1), deadline=float("inf"))
        client.close()
