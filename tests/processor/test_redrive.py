import json
from base64 import b64encode
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local.batches import Batch, GivenUp, Source, failure_record, lambda_record
from processor import failures
from processor.failures import Directory, Quarantine
from processor.items import Item, Shape, item_of
from processor.redrive import Redrive, Redriven
from processor.table import TableError
from processor.wire import UserRecord, compress
from tests.processor.aws_by_moto import Aws
from tests.processor.fake_dynamodb import TABLE, Inline
from tests.processor.fake_surroundings import aggregate, post

ARRIVED_AT = 1_795_165_200.5
STREAM = "arn:aws:kinesis:eu-central-1:123456789012:stream/posts"


def quarantined(directory: Path, number: int, data: bytes, position: int | None = 0) -> None:
    """Put a record aside as the function does."""
    record = {
        "kinesis": {
            "partitionKey": "lane-0",
            "sequenceNumber": str(number),
            "data": b64encode(data).decode(),
            "approximateArrivalTimestamp": ARRIVED_AT,
        },
        "eventID": f"shardId-000000000000:{number}",
        "eventSourceARN": STREAM,
    }
    source = failures.Source(record, position, UserRecord(data))
    assert Quarantine(Directory(directory / "quarantine")).keep(source, "for a test") is None


def given_up(directory: Path, name: str, *data: bytes) -> None:
    """Put a batch aside as Lambda does, by the words of the local mapping."""
    source = Source(STREAM, "arn:aws:lambda:eu-central-1:123456789012:function:it", "arn:aws:iam::1:role/it", "r")
    records = tuple(
        lambda_record(
            {
                "SequenceNumber": str(number),
                "PartitionKey": "lane-0",
                "Data": content,
                "ApproximateArrivalTimestamp": datetime.fromtimestamp(ARRIVED_AT, UTC),
            },
            "shardId-000000000000",
            source,
        )
        for number, content in enumerate(data)
    )
    document = failure_record(GivenUp(Batch(records), "RetryAttemptsExhausted"), "shardId-0", source, ARRIVED_AT)
    path = directory / "aws" / "lambda" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def redriven(directory: Path, client: Any, table: str = TABLE) -> list[Redriven]:
    """Put back what is in a directory."""
    return list(Redrive(Directory(directory), client, table, Shape(), Inline()).run())


def left_in(directory: Path) -> list[str]:
    """The names of what is still there."""
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


class House:
    """A table of moto's, and a place with failures."""

    def __init__(self, aws: Aws, table: str, directory: Path) -> None:
        self.aws = aws
        self.table = table
        self.directory = directory

    def run(self) -> list[Redriven]:
        return redriven(self.directory, self.aws.dynamodb, self.table)

    def counts(self) -> Counter[str]:
        return sum((result.counts for result in self.run()), Counter())

    @property
    def messages(self) -> dict[str, Any]:
        return {key: item.get("Message") for key, item in self.aws.items(self.table).items()}

    @property
    def left(self) -> list[str]:
        return left_in(self.directory)


@pytest.fixture
def house(aws: Aws, table: str, tmp_path: Path) -> House:
    """An empty table and an empty place."""
    return House(aws, table, tmp_path)


def test_both_kinds_of_failures_are_put_back_and_removed(house: House) -> None:
    """A quarantined post, and a batch of raw and aggregated ones that Lambda gave up, end as the Lambda's items."""
    quarantined(house.directory, 5, post(1))
    given_up(house.directory, "batch", post(2), aggregate(post(3), post(4, "水車")))

    assert house.counts() == {"stored": 4}
    assert house.messages == {"1": "hello", "2": "hello", "3": "hello", "4": "水車"}
    assert house.aws.items(house.table)["4"] == item_of(post(4, "水車"), ARRIVED_AT, Shape())
    assert house.left == []


def test_a_container_that_an_older_function_took_for_a_record_is_taken_apart(house: House) -> None:
    """Who updates the function and the console gets back what the one before could not read."""
    quarantined(house.directory, 5, compress(aggregate(post(1), post(2))))

    assert house.counts() == {"stored": 2}
    assert house.left == []


def test_what_is_there_stays_and_what_was_deleted_stays_away(house: House) -> None:
    """Neither a newer version nor a tombstone is overcome; the failures are done with all the same."""
    # The last is as an invocation leaves it that was ended between its put and its look.
    present: list[Item] = [
        {"Id": "1", "Message": "newer"},
        {"Id": "deleted#2"},
        {"Id": "deleted#3"},
        {"Id": "3", "Message": "risen"},
    ]
    for item in present:
        house.aws.put(house.table, item)
    given_up(house.directory, "batch", post(1), post(2), post(3))

    assert house.counts() == {"present": 1, "deleted": 2}
    assert house.messages == {"1": "newer", "deleted#2": None, "deleted#3": None}
    assert house.left == []


def test_of_two_versions_the_newest_is_put_back(house: House) -> None:
    """Within a batch and between quarantined records of a shard the later one goes first, and stays."""
    given_up(house.directory, "batch", post(1, "old"), post(1, "new"))
    for number, text in ((5, "old"), (6, "new")):
        quarantined(house.directory, number, post(2, text))

    assert house.counts() == {"stored": 2, "present": 1}
    assert house.messages == {"1": "new", "2": "new"}


def test_what_can_still_not_be_stored_stays_with_its_reason(house: House) -> None:
    """Its object stays whole, though the good records in it are put back; a second run changes nothing."""
    quarantined(house.directory, 5, b"no post")
    quarantined(house.directory, 6, aggregate(post(1), post(2))[:-20], None)
    given_up(house.directory, "batch", post(3), b"{}")

    for expected in ({"stored": 2, "unstorable": 2}, {"present": 2, "unstorable": 2}):
        assert house.counts() == expected
        assert set(house.messages) == {"1", "3"}
        assert house.left == ["5-0.json", "6.json", "batch"]
    assert [result.reason for result in house.run()] == [
        "damaged aggregate: the digest does not fit the content",
        "not JSON: Expecting value at character 0",
        "not a post: `data.id` is missing or no string",
    ]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"payload": "x"}', '{"data": "YQ==", "position": 0}', "null"])
def test_what_is_none_of_ours_is_left_alone(house: House, content: str) -> None:
    """Another file in the place is named and stays."""
    (house.directory / "notes.txt").write_text(content)

    ((key, counts, reason),) = house.run()
    assert (key, counts) == ("notes.txt", Counter())
    assert reason == "not an object of the quarantine or of Lambda"
    assert house.left == ["notes.txt"]


class Busy:
    """A table that answers with an error."""

    def __init__(self, code: str, *reasons: str) -> None:
        self._answer: Any = {"Error": {"Code": code, "Message": "as the test wants it"}}
        if reasons:
            self._answer["CancellationReasons"] = [{"Code": reason} for reason in reasons]

    def transact_write_items(self, **_: Any) -> None:
        raise ClientError(self._answer, "TransactWriteItems")


@pytest.mark.parametrize(
    ("table", "counts", "words"),
    [
        (
            Busy("TransactionCanceledException", "None", "TransactionConflict"),
            "not_now",
            "not now: TransactionConflict",
        ),
        (Busy("ThrottlingException"), "not_now", "not now: ThrottlingException"),
        (Busy("TransactionCanceledException", "None", "ValidationError"), "unstorable", "the table refuses it"),
        (Busy("ValidationException"), "unstorable", "the table refuses it"),
    ],
)
def test_what_the_table_does_not_take_stays(tmp_path: Path, table: Busy, counts: str, words: str) -> None:
    """A throttle or a conflict is for another run, a refusal for a person; the record stays where it is."""
    quarantined(tmp_path, 5, post(1))

    (result,) = redriven(tmp_path, table)
    assert result.counts == {counts: 1}
    assert words in (result.reason or "")
    assert left_in(tmp_path) == ["5-0.json"]


def test_a_table_that_cannot_be_used_ends_it(tmp_path: Path) -> None:
    """A missing permission is told in one line, and nothing is removed."""
    quarantined(tmp_path, 5, post(1))

    with pytest.raises(TableError, match=f"^table {TABLE}: the role or user in use has no permission"):
        redriven(tmp_path, Busy("AccessDeniedException"))
    assert left_in(tmp_path) == ["5-0.json"]
