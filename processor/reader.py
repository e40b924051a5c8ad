"""
Answers the questions of an operator about the table, by boto3.

An hour of the index ByTime is spread over TIME_SHARDS keys, so a question about time asks them all; one about a rule
asks the same and lets DynamoDB leave out what has other tags. What has expired is not shown, though DynamoDB may take
days to remove it. Indexes hold a part of each item, and are a moment behind the table: items are read from the table.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from datetime import datetime, timedelta
from heapq import nlargest
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from processor.items import Item, bucket
from processor.settings import SettingsError
from processor.table import PARALLEL_CALLS, TableError, line_of

# What boto3 finds out by itself, and the way out.
UNUSABLE = {
    "EndpointConnectionError": "nothing answers there; check the network, AWS_REGION and AWS_ENDPOINT_URL",
    "NoCredentialsError": "there are no credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "NoRegionError": "there is no region; set AWS_REGION",
}
UNUSABLE["PartialCredentialsError"] = UNUSABLE["NoCredentialsError"]  # one half of the key is not set
ALIVE = "(attribute_not_exists(ExpiresAt) OR ExpiresAt > :now)"


class TableReader:
    """
    Reads. Results are whole items, newest first; failures are a TableError.

    Args:
        name: of the table.
        connect: makes the client; called once.
        pool: runs the calls.
        now: what has expired until then is not shown; in UTC.
        shards: over how many keys an hour of ByTime is spread.
    """

    def __init__(self, name: str, connect: Callable[[], Any], pool: Executor, *, now: datetime, shards: int) -> None:
        self._name = name
        self._pool = pool
        self._now = now
        self._shards = shards
        with asking(name):
            self._client = connect()

    def get(self, key: str) -> Item | None:
        """Return the item with this Id, if there is one."""
        with asking(self._name):
            response = self._client.get_item(TableName=self._name, Key={"Id": {"S": key}})
        if "Item" not in response:
            return None
        item = plain(response["Item"])
        expires_at = item.get("ExpiresAt")
        return item if not isinstance(expires_at, int) or expires_at > self._now.timestamp() else None

    def of_author(self, author_id: str, count: int) -> list[Item]:
        """Return the newest items of an author, at most `count`."""
        return self._whole(self._query("ByAuthor", "AuthorId", author_id, None, count))

    def newest(self, count: int, hours: int, tag: str | None = None) -> list[Item]:
        """Return the newest items of the last `hours`, at most `count`, and only those with `tag` where it is given."""
        found: list[Item] = []
        for keys in self._buckets(hours):
            for entries in self._pool.map(lambda key: self._query("ByTime", "Bucket", key, tag, count), keys):
                found.extend(entries)
            if len(found) >= count:
                break
        return self._whole(nlargest(count, found, key=_age))

    def newest_of_all(self, count: int, tag: str | None = None) -> list[Item]:
        """Return the newest items of the whole table, at most `count`. Reads, and costs, every item there is."""
        # A tombstone has no SortId.
        pages = self._pages("scan", **self._filter(tag, "attribute_exists(SortId)"))
        return nlargest(count, (plain(item) for page in pages for item in page["Items"]), key=_age)

    def count(self, hours: int, tag: str | None = None) -> int:
        """Return how many items there are of the last `hours`, and with `tag` where it is given."""
        keys = [key for keys in self._buckets(hours) for key in keys]
        return sum(self._pool.map(lambda key: self._count("ByTime", "Bucket", key, tag), keys))

    def count_of_author(self, author_id: str) -> int:
        """Return how many items of an author there are."""
        return self._count("ByAuthor", "AuthorId", author_id, None)

    def ids_of_author(self, author_id: str) -> list[str]:
        """Return the ids of all items of an author, expired or not."""
        pages = self._pages(
            "query",
            IndexName="ByAuthor",
            KeyConditionExpression="AuthorId = :author",
            ExpressionAttributeValues={":author": {"S": author_id}},
            ProjectionExpression="Id",
        )
        return [item["Id"]["S"] for page in pages for item in page["Items"]]

    def _buckets(self, hours: int) -> Iterator[list[str]]:
        # It begins an hour ahead: the clock of X may be a little before ours.
        for hour in range(-1, hours):
            timestamp = (self._now - timedelta(hours=hour)).isoformat()
            yield [bucket(timestamp, shard) for shard in range(self._shards)]

    def _query(self, index: str, key: str, value: str, tag: str | None, count: int) -> list[Item]:
        limit = {"MaxItems": count} if tag else {"MaxItems": count, "PageSize": count}
        question = self._question(index, key, value, tag)
        pages = self._pages("query", **question, ScanIndexForward=False, PaginationConfig=limit)
        return [plain(entry) for page in pages for entry in page["Items"]]

    def _count(self, index: str, key: str, value: str, tag: str | None) -> int:
        pages = self._pages("query", **self._question(index, key, value, tag), Select="COUNT")
        return sum(page["Count"] for page in pages)

    def _pages(self, operation: str, **request: Any) -> Iterator[Any]:
        with asking(self._name):
            yield from self._client.get_paginator(operation).paginate(TableName=self._name, **request)

    def _question(self, index: str, key: str, value: str, tag: str | None) -> dict[str, Any]:
        request = self._filter(tag)
        request["ExpressionAttributeNames"] = {"#key": key}
        request["ExpressionAttributeValues"][":value"] = {"S": value}
        return {"IndexName": index, "KeyConditionExpression": "#key = :value", **request}

    def _filter(self, tag: str | None, *more: str) -> dict[str, Any]:
        conditions = [ALIVE, *more]
        values = {":now": {"N": str(int(self._now.timestamp()))}}
        if tag is not None:
            conditions.append("contains(RuleTags, :tag)")
            values[":tag"] = {"S": tag}
        return {"FilterExpression": " AND ".join(conditions), "ExpressionAttributeValues": values}

    def _whole(self, entries: Iterable[Item]) -> list[Item]:
        return [item for item in self._pool.map(self.get, (str(entry["Id"]) for entry in entries)) if item]


def plain(typed: Any) -> Item:
    """Return an item of the API as the processor has it; boto3 gives each value under the letter of its type."""
    item: Item = {}
    for name, value in typed.items():
        ((kind, content),) = value.items()
        item[name] = int(content) if kind == "N" else content
    return item


@contextmanager
def asking(table: str) -> Iterator[None]:
    """Turn what boto3 raises into a TableError with one line for an operator."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        raise TableError(line_of(table, code, f"{code}: {error.response['Error'].get('Message', '')}")) from error
    except BotoCoreError as error:
        raise TableError(line_of(table, "", told(error))) from error


def told(error: Exception) -> str:
    """Return one line about an error, with the way out where boto3 found out by itself what it is."""
    name = type(error).__name__
    return " ".join((f"{UNUSABLE[name]} ({name}: {error})" if name in UNUSABLE else str(error)).split())


def _age(item: Item) -> tuple[str, str]:
    return str(item["Timestamp"]), str(item["SortId"])


def location_of(environ: Mapping[str, str], service: str) -> dict[str, Any]:
    """
    Return what boto3.client is to be told of an environment: region, endpoint and keys, where they are set.

    boto3 itself reads the region from AWS_DEFAULT_REGION only; every other SDK, and this project, knows AWS_REGION.

    Raises:
        SettingsError: the endpoint is no URL.
    """
    names = {
        "region_name": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        "endpoint_url": (f"AWS_ENDPOINT_URL_{service.upper()}", "AWS_ENDPOINT_URL"),
        "aws_access_key_id": ("AWS_ACCESS_KEY_ID",),
        "aws_secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
        "aws_session_token": ("AWS_SESSION_TOKEN",),
    }
    found = {name: next(filter(None, map(environ.get, places)), None) for name, places in names.items()}
    url = urlsplit(found["endpoint_url"] or "https://by.region")
    if url.scheme not in {"http", "https"} or not url.netloc:
        variables = ", or ".join(names["endpoint_url"])
        raise SettingsError(f"{variables}, is {found['endpoint_url']!r}: set it to http(s)://host:port")
    return {name: value for name, value in found.items() if value is not None}


def connect_reader(**location: Any) -> Any:
    """Return a client for a person at a terminal, with botocore's own retries; `location` is for boto3.client."""
    import boto3  # noqa: PLC0415 - a quarter of a second that a call for help does not need
    from botocore.config import Config  # noqa: PLC0415 - as above

    config = Config(max_pool_connections=PARALLEL_CALLS, retries={"mode": "standard", "total_max_attempts": 3})
    return boto3.client("dynamodb", config=config, **location)
