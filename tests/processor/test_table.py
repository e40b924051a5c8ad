import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, NoRegionError
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.items import Item, Shape, item_of
from processor.table import (
    BACKOFF_BASE_SECONDS,
    BACKOFF_LIMIT_SECONDS,
    Client,
    TableError,
    TableReader,
    TableWriter,
    connect_reader,
    connect_writer,
)
from tests.processor.fake_dynamodb import (
    HALF,
    LOST,
    NONE,
    STORED,
    TABLE,
    UNREACHABLE,
    Clock,
    FakeDynamo,
    Inline,
    served_by_moto,
)

THROTTLED = "ProvisionedThroughputExceededException"
NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)


def items_of(count: int, text: str = "x") -> dict[str, Item]:
    """So many small items by their key."""
    return {str(number): {"Id": {"S": str(number)}, "Message": {"S": text}} for number in range(count)}


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
        assert outcome == (frozenset(), {}, 0, None)

    def test_nothing_to_store_asks_nothing(self) -> None:
        """Without items there is no call."""
        table = FakeDynamo()

        assert writer(table).write({}, deadline=2_000) == (frozenset(), {}, 0, None)
        assert not table.batches

    @pytest.mark.parametrize("character", ["x", "あ", "\x01", "😀"])
    def test_large_items_share_a_request_only_within_16_mb(self, character: str) -> None:
        """However long its characters are in JSON, no request is larger than DynamoDB takes."""
        text = character * (400_000 // len(character.encode()))
        table = FakeDynamo()

        outcome = writer(table).write(items_of(30, text), deadline=2_000)

        assert outcome == (frozenset(), {}, 0, None)
        assert len(table.items) == 30

    def test_what_was_left_out_is_sent_again_packed_together(self) -> None:
        """The unprocessed items of several calls share the next ones."""
        table = FakeDynamo([HALF, HALF])

        outcome = writer(table).write(items_of(50), deadline=2_000)

        assert table.items == items_of(50)
        assert [len(batch) for batch in table.batches] == [25, 25, 25, 1]
        assert outcome == (frozenset(), {}, 26, "UnprocessedItems")

    @pytest.mark.parametrize(
        ("fault", "name"),
        [
            (THROTTLED, THROTTLED),
            ("InternalServerError", "InternalServerError"),
            (LOST, "ReadTimeoutError"),
            (UNREACHABLE, "ConnectTimeoutError"),
        ],
    )
    def test_a_failed_call_is_sent_again(self, fault: str, name: str) -> None:
        """Throttles, faults of the server and lost answers end in a stored item, and are named."""
        table = FakeDynamo([fault, fault])

        outcome = writer(table).write(items_of(3), deadline=2_000)

        assert table.items == items_of(3)
        assert outcome == (frozenset(), {}, 6, name)

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
        table = FakeDynamo(invalid=lambda item: item["Id"]["S"] == "7")
        items = items_of(30)

        outcome = writer(table).write(items, deadline=2_000)

        del items["7"]
        assert table.items == items
        assert outcome.unwritten == frozenset()
        assert list(outcome.refused) == ["7"]
        assert outcome.refused["7"].startswith("ValidationException: ")

    def test_a_suspect_that_is_throttled_stays_alone(self) -> None:
        """A throttle while a refused batch is taken apart does not put the culprit back among others."""
        table = FakeDynamo([STORED, THROTTLED, NONE], invalid=lambda item: item["Id"]["S"] == "1")

        outcome = writer(table).write(items_of(3), deadline=2_000)

        assert set(table.items) == {"0", "2"}
        assert list(outcome.refused) == ["1"]
        assert [len(batch) for batch in table.batches] == [3, 1, 1, 1, 1]

    @pytest.mark.parametrize("code", ["AccessDeniedException", "UnrecognizedClientException"])
    def test_what_only_an_operator_can_heal_is_raised(self, code: str) -> None:
        """A missing permission is no fault of an item: it fails the invocation in one line that names the table."""
        with pytest.raises(TableError, match=f"^table {TABLE}: .*{code}"):
            writer(FakeDynamo([code])).write(items_of(1), deadline=2_000)

    def test_a_missing_table_is_raised(self) -> None:
        """The line says what to check."""
        clock = Clock()
        lost = TableWriter("elsewhere", FakeDynamo, Inline(), clock=clock, sleep=clock.sleep)

        with pytest.raises(TableError, match=r"table elsewhere: there is no such table .*AWS_REGION"):
            lost.write(items_of(1), deadline=2_000)

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
        count=st.integers(0, 80),
        invalid=st.sets(st.integers(0, 79)),
        seconds=st.floats(0, 5),
    )
    def test_what_is_named_nowhere_is_stored(
        self, faults: list[str], count: int, invalid: set[int], seconds: float
    ) -> None:
        """Under any pattern of failures each item is stored, or named as unwritten, or as refused."""
        clock = Clock()
        table = FakeDynamo(faults, invalid=lambda item: int(item["Id"]["S"]) in invalid, clock=clock, seconds=0.1)
        items = items_of(count)

        outcome = writer(table, clock).write(items, deadline=clock.now + seconds)

        assert not outcome.unwritten & outcome.refused.keys()
        assert set(items) - outcome.unwritten - outcome.refused.keys() <= set(table.items)
        assert not {str(number) for number in invalid} & set(table.items)


@pytest.fixture(scope="module")
def location() -> Iterator[dict[str, str]]:
    """Where a DynamoDB made by moto answers."""
    with served_by_moto() as place:
        yield place


def post(number: int, at: datetime, **fields: Any) -> Item:
    """An item as the Lambda makes it."""
    data = {"id": str(number), "text": f"投稿 {number}", "created_at": at.isoformat(), "author_id": "42", **fields}
    return item_of(json.dumps({"data": data, "matching_rules": [{"tag": "mill"}]}).encode(), 0, Shape())


class TestRealClient:
    """boto3 itself, against moto's DynamoDB."""

    def test_items_written_are_the_items_read(self, location: dict[str, str]) -> None:
        """Through boto3, with its body encoded by us, each item arrives as it is, and the indexes know it."""
        # The first two are of the hour to come: the clock of X is before ours.
        posts = {str(number): post(number, NOW - timedelta(minutes=4 * number - 36)) for number in range(1, 41)}
        writing: Any = connect_writer(**location)
        reading = connect_reader(**location)

        with ThreadPoolExecutor(8) as pool:
            outcome = TableWriter(TABLE, lambda: writing, pool).write(posts, deadline=float("inf"))
            reader = TableReader(TABLE, lambda: reading, pool)
            newest = reader.newest(30, NOW, hours=48, shards=4)
            of_author = reader.of_author("42", 10)
            of_all = reader.newest_of_all(2)
            found, missing = reader.get("40"), reader.get("41")
        writing.close()
        reading.close()

        assert outcome == (frozenset(), {}, 0, None)
        assert newest == list(posts.values())[:30]
        assert of_author == [posts[str(number)] for number in range(40, 30, -1)]
        assert of_all == [posts["1"], posts["2"]]
        assert (found, missing) == (posts["40"], None)

    def test_dynamodb_itself_refuses_only_the_bad_item(self, location: dict[str, str]) -> None:
        """A real ValidationException, of an empty index key, is isolated."""
        good, bad = post(201, NOW), post(202, NOW)
        bad["AuthorId"] = {"S": ""}
        client: Any = connect_writer(**location)

        with ThreadPoolExecutor(8) as pool:
            outcome = TableWriter(TABLE, lambda: client, pool).write({"201": good, "202": bad}, deadline=float("inf"))
        client.close()

        assert list(outcome.refused) == ["202"]
        assert not outcome.unwritten

    def test_a_missing_table_is_told_in_one_line(self, location: dict[str, str]) -> None:
        """A reader turns the API's error into a line that names the table and the way out."""
        client = connect_reader(**location)
        reader = TableReader("elsewhere", lambda: client, Inline())

        with pytest.raises(TableError, match=r"^table elsewhere: there is no such table[^\n]*$"):
            reader.get("1")
        client.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NoRegionError(), "set AWS_REGION"),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), "nothing answers there"),
        (NoCredentialsError(), "AWS_PROFILE"),
    ],
)
def test_what_boto3_finds_out_by_itself_is_told_with_the_way_out(error: Exception, words: str) -> None:
    """Region, credentials or network missing: one line that names the setting, before anything is asked."""

    def connect() -> Any:
        raise error

    with pytest.raises(TableError, match=f"^table {TABLE}: .*{words}"):
        TableReader(TABLE, connect, Inline())
