import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, NoRegionError, PartialCredentialsError

from processor.dynamodb import connect
from processor.items import Item, Shape, item_of
from processor.reader import TableReader
from processor.table import TableError, TableWriter
from tests.processor.aws_by_moto import Aws
from tests.processor.fake_dynamodb import Inline

NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)


def post(number: int, at: datetime) -> Item:
    """An item as the Lambda makes it; every third one has a second tag."""
    data = {"id": str(number), "text": f"投稿 {number}", "created_at": at.isoformat(), "author_id": "42"}
    tags = [{"tag": "mill"}, {"tag": "third"}] if number % 3 == 0 else [{"tag": "mill"}]
    line = {"data": data, "matching_rules": tags}
    return item_of(json.dumps(line).encode(), 0, Shape())


# The first two are of the hour to come: the clock of X is before ours.
POSTS = {str(number): post(number, NOW - timedelta(minutes=4 * number - 36)) for number in range(1, 41)}
EXPIRED = {str(number): post(number, NOW) | {"ExpiresAt": int(NOW.timestamp())} for number in (90, 91)}
# Nothing above is older.
HOURS = 3


@pytest.fixture(scope="module")
def reader(aws: Aws) -> Iterator[TableReader]:
    """A reader of a table with these posts, two that have expired, and a tombstone."""
    client = connect(aws.environ)
    with aws.table() as name, ThreadPoolExecutor(8) as pool:
        writer = TableWriter(name, lambda: client, pool)
        assert not writer.write(POSTS | EXPIRED, deadline=float("inf")).unwritten
        assert not writer.put({"deleted#5": {"Id": "deleted#5"}}, deadline=float("inf"))
        client.close()
        yield TableReader(name, lambda: aws.dynamodb, pool, now=NOW, shards=4)


def test_items_written_are_the_items_read(reader: TableReader) -> None:
    """What the Lambda's client wrote boto3 reads, attribute for attribute."""
    assert reader.get("40") == POSTS["40"]
    assert reader.get("41") is None


def test_the_newest_come_first_across_hours_and_shards(reader: TableReader) -> None:
    """By time, by author, and of the whole table, the order is that of the posts."""
    assert reader.newest(30, hours=HOURS) == list(POSTS.values())[:30]
    assert reader.of_author("42", 10) == [POSTS[str(number)] for number in range(40, 30, -1)]
    assert reader.newest_of_all(2) == [POSTS["1"], POSTS["2"]]


def test_a_rule_shows_its_posts_only(reader: TableReader) -> None:
    """A tag among several is found, by time and in the whole table."""
    thirds = [POSTS[str(number)] for number in range(3, 40, 3)]

    assert reader.newest(5, hours=HOURS, tag="third") == thirds[:5]
    assert reader.newest(100, hours=HOURS, tag="third") == thirds
    assert reader.newest_of_all(100, tag="third") == thirds
    assert reader.newest(5, hours=HOURS, tag="thir") == []


def test_what_has_expired_is_not_shown(reader: TableReader) -> None:
    """DynamoDB removes it within days; until then nobody sees or counts it, but a purge finds it."""
    assert reader.get("90") is None
    assert (
        len(reader.newest(100, hours=HOURS)) == len(reader.newest_of_all(100)) == len(reader.of_author("42", 100)) == 40
    )
    assert sorted(reader.ids_of_author("42")) == sorted(POSTS | EXPIRED)


def test_posts_are_counted(reader: TableReader) -> None:
    """Of some hours, of a rule, of an author."""
    assert reader.count(hours=HOURS) == 40
    assert reader.count(hours=1) == len([item for item in POSTS.values() if str(item["Timestamp"]) >= "2026-11-23T14"])
    assert reader.count(hours=HOURS, tag="third") == 13
    assert reader.count_of_author("42") == 40
    assert reader.count_of_author("43") == 0


def test_a_missing_table_is_told_in_one_line(aws: Aws) -> None:
    """A reader turns the API's error into a line that names the table and the way out."""
    reader = TableReader("elsewhere", lambda: aws.dynamodb, Inline(), now=NOW, shards=4)

    with pytest.raises(TableError, match=r"^table elsewhere: there is no such table[^\n]*$"):
        reader.get("1")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NoRegionError(), "set AWS_REGION"),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), "nothing answers there"),
        (NoCredentialsError(), "AWS_PROFILE"),
        (PartialCredentialsError(provider="explicit", cred_var="aws_access_key_id"), "AWS_PROFILE"),
    ],
)
def test_what_boto3_finds_out_by_itself_is_told_with_the_way_out(error: Exception, words: str) -> None:
    """Region, credentials or network missing: one line that names the setting, before anything is asked."""

    def connect() -> Any:
        raise error

    with pytest.raises(TableError, match=f"^table posts: .*{words}"):
        TableReader("posts", connect, Inline(), now=NOW, shards=4)
