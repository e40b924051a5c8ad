"""
The table, and the only file that knows DynamoDB: `TableWriter` for the Lambda, `TableReader` for the console.

Rules and traps of writing:

* BatchWriteItem takes 25 items and 16 MB. Two items with one key, or one item that is not valid, and it refuses
  all of them; so items come by key, and a refused batch is taken apart and sent one by one.
* It answers 200 with UnprocessedItems when a part was throttled, and an error only when all of it was. Both are
  sent again, packed together anew, with full jitter, until the deadline.
* Retries are ours alone: botocore never sends UnprocessedItems again, and its own retries would know no deadline.
* An item whose answer was lost may be stored. Writing it again changes nothing.
* A missing table or permission is no fault of an item: it is raised, so that the function shows as failed and
  everything is tried again once it is healed.

Limits: the DynamoDB API reference, BatchWriteItem and "Service, account, and table quotas".
"""

import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from datetime import datetime, timedelta
from heapq import nlargest
from typing import Any, NamedTuple, Protocol

from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from processor.items import Item, bucket

BATCH_ITEMS = 25
BATCH_BYTES = 16 * 1024 * 1024
# JSON may spell a character as two \u escapes of six bytes; around a value stand its name, its type and quotes.
JSON_BYTES_PER_CHARACTER = 12
JSON_BYTES_PER_VALUE = 64

# How many calls are under way at once. One core is busy with 8 at a table that answers in 8 ms.
PARALLEL_CALLS = 8
# DynamoDB answers in milliseconds. A call that is given up counts as not stored, so a short limit costs nothing.
CONNECT_SECONDS = 1
READ_SECONDS = 2
# The first pause is up to the base; each further one may be twice as long, up to the limit.
BACKOFF_BASE_SECONDS = 0.05
BACKOFF_LIMIT_SECONDS = 1.0

# The request is at fault: an item that is not valid, too large, or one that its neighbours clash with.
INVALID = frozenset({"ValidationException", "SerializationException", "413"})
# Neither the items nor a further attempt can change these; an operator can. What it means, and the way out.
HOPELESS = {
    "AccessDeniedException": "the role or user in use has no permission for it",
    "ExpiredTokenException": "the credentials in use are out of date",
    "IncompleteSignatureException": "the credentials in use are not valid",
    "InvalidSignatureException": "the secret key in use is wrong, or this machine's clock is",
    "MissingAuthenticationTokenException": "the credentials in use are not valid",
    "ResourceNotFoundException": "there is no such table or index in this region; check its name and AWS_REGION",
    "UnrecognizedClientException": "the credentials in use are not valid in this region",
}
# The same for what boto3 finds out by itself.
UNUSABLE = {
    "EndpointConnectionError": "nothing answers there; check the network, AWS_REGION and AWS_ENDPOINT_URL_DYNAMODB",
    "NoCredentialsError": "there are no credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "NoRegionError": "there is no region; set AWS_REGION",
}


class TableError(Exception):
    """The table cannot be used at all. The text is one line for an operator, with the way out where it is known."""


class Client(Protocol):
    """What the writer needs of boto3's low-level client."""

    def batch_write_item(self, *, RequestItems: Mapping[str, Any]) -> Any:  # noqa: N803 - the API's own name
        """Write up to 25 items; the answer names those that were left out."""


class Outcome(NamedTuple):
    """
    What became of the items of one `write`; those named nowhere are stored.

    Attributes:
        unwritten: keys of items that were not stored in time and may be stored later.
        refused: keys of items that DynamoDB will never take, with its reason.
        retried: how many items were sent again, each time counted.
        fault: what last kept an item from being stored at once: an error's code or name, or UnprocessedItems. None
            when there was nothing but too little time.
    """

    unwritten: frozenset[str]
    refused: dict[str, str]
    retried: int
    fault: str | None


class _Answer(NamedTuple):
    """Of one call: the keys that may yet be stored and what was the matter, or why all of it was refused."""

    unprocessed: Sequence[str] = ()
    fault: str | None = None
    refusal: str | None = None


class TableWriter:
    """
    Writes items, many at once.

    Args:
        name: of the table.
        connect: makes the client; called once, at the first write.
        pool: runs the calls; it should have PARALLEL_CALLS threads.
        clock: seconds, of the same clock as the deadlines.
        sleep: waits that many seconds.
        chance: picks a number between two, evenly.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Client],
        pool: Executor,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._name = name
        self._connect = connect
        self._client: Client | None = None
        self._pool = pool
        self._clock = clock
        self._sleep = sleep
        self._chance = chance

    def write(self, items: Mapping[str, Item], deadline: float) -> Outcome:
        """
        Store the items, given by their key. No call is begun after the deadline.

        Raises:
            TableError: the table does not exist or may not be written; region or credentials are missing.
        """
        with _explained(self._name):
            return self._write(items, deadline)

    def _write(self, items: Mapping[str, Item], deadline: float) -> Outcome:
        if self._client is None:
            self._client = self._connect()
        client = self._client

        def send(batch: Sequence[str]) -> _Answer:
            if self._clock() >= deadline:
                return _Answer(batch)
            return self._send(client, [items[key] for key in batch], batch)

        pending: Sequence[str] = list(items)
        suspects: set[str] = set()
        refused: dict[str, str] = {}
        fault: str | None = None
        retried = rounds = 0
        while pending:
            batches = list(_pack(items, pending, suspects))
            again: list[str] = []
            throttled = False
            for batch, answer in zip(batches, self._pool.map(send, batches), strict=True):
                if answer.unprocessed:
                    again.extend(answer.unprocessed)
                    fault = answer.fault or fault
                    throttled = True
                elif answer.refusal is None:
                    continue
                elif len(batch) == 1:
                    refused[batch[0]] = answer.refusal
                else:
                    suspects.update(batch)
                    again.extend(batch)
            pending = again
            rounds += 1
            if throttled and not self._pause(rounds, deadline):
                break
            retried += len(pending)
        return Outcome(frozenset(pending), refused, retried, fault)

    def _send(self, client: Client, items: Sequence[Item], keys: Sequence[str]) -> _Answer:
        puts = [{"PutRequest": {"Item": item}} for item in items]
        try:
            response = client.batch_write_item(RequestItems={self._name: puts})
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in HOPELESS:
                raise
            if code in INVALID:
                return _Answer(refusal=f"{code}: {error.response['Error'].get('Message', '')}")
            return _Answer(keys, code)
        except (BotoConnectionError, HTTPClientError, IncompleteReadError, ResponseParserError) as error:
            return _Answer(keys, type(error).__name__)
        left_out = response.get("UnprocessedItems", {}).values()
        return _Answer([put["PutRequest"]["Item"]["Id"]["S"] for puts in left_out for put in puts], "UnprocessedItems")

    def _pause(self, rounds: int, deadline: float) -> bool:
        longest = min(BACKOFF_LIMIT_SECONDS, BACKOFF_BASE_SECONDS * 2 ** (rounds - 1))
        delay = self._chance(0, longest)
        # To wait for a moment at which nothing may be begun any more would only cost time.
        if self._clock() + delay >= deadline:
            return False
        self._sleep(delay)
        return True


def _pack(items: Mapping[str, Item], keys: Iterable[str], alone: set[str]) -> Iterator[list[str]]:
    """Divide the keys into batches within DynamoDB's limits; those in `alone` get a batch of their own."""
    batch: list[str] = []
    batch_bytes = 0
    for key in keys:
        if key in alone:
            yield [key]
            continue
        size = _json_bytes(items[key])
        if len(batch) == BATCH_ITEMS or (batch and batch_bytes + size > BATCH_BYTES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(key)
        batch_bytes += size
    if batch:
        yield batch


def _json_bytes(item: Item) -> int:
    """Return what the item takes in a request at most. Exact would cost as much as the encoding itself."""
    characters = values = 0
    for value in item.values():
        for content in value.values():
            if isinstance(content, str):
                characters += len(content)
                values += 1
            else:
                characters += sum(map(len, content))
                values += 1 + len(content)
    return characters * JSON_BYTES_PER_CHARACTER + values * JSON_BYTES_PER_VALUE


class TableReader:
    """
    Answers the questions of an operator. Results are whole items, newest first; failures are a TableError.

    It shows what the table holds: an item whose ExpiresAt is over may be there until DynamoDB removes it.

    Args:
        name: of the table.
        connect: makes the client; called once.
        pool: runs the calls.
    """

    def __init__(self, name: str, connect: Callable[[], Any], pool: Executor) -> None:
        self._name = name
        self._pool = pool
        with _explained(name):
            self._client = connect()

    def get(self, post_id: str) -> Item | None:
        """Return the item with this Id, if there is one."""
        with _explained(self._name):
            response = self._client.get_item(TableName=self._name, Key={"Id": {"S": post_id}})
        item: Item | None = response.get("Item")
        return item

    def of_author(self, author_id: str, count: int) -> list[Item]:
        """Return the newest items of an author, at most `count`."""
        return self._whole(self._query("ByAuthor", "AuthorId", author_id, count))

    def newest(self, count: int, now: datetime, hours: int, shards: int) -> list[Item]:
        """Return the newest items of the last `hours` before `now` (UTC), at most `count`; `shards` as written."""
        found: list[Item] = []
        # It begins an hour ahead: the clock of X may be a little before ours.
        for hour in range(-1, hours):
            timestamp = (now - timedelta(hours=hour)).isoformat()
            buckets = [bucket(timestamp, shard) for shard in range(shards)]
            for entries in self._pool.map(lambda key: self._query("ByTime", "Bucket", key, count), buckets):
                found.extend(entries)
            if len(found) >= count:
                break
        return self._whole(nlargest(count, found, key=_age))

    def newest_of_all(self, count: int) -> list[Item]:
        """Return the newest items of the whole table, at most `count`. Reads, and costs, every item there is."""
        with _explained(self._name):
            pages = self._client.get_paginator("scan").paginate(TableName=self._name)
            return nlargest(count, (item for page in pages for item in page["Items"]), key=_age)

    def _query(self, index: str, key: str, value: str, count: int) -> list[Item]:
        with _explained(self._name):
            pages = self._client.get_paginator("query").paginate(
                TableName=self._name,
                IndexName=index,
                KeyConditionExpression="#key = :value",
                ExpressionAttributeNames={"#key": key},
                ExpressionAttributeValues={":value": {"S": value}},
                ScanIndexForward=False,
                PaginationConfig={"MaxItems": count, "PageSize": count},
            )
            return [entry for page in pages for entry in page["Items"]]

    def _whole(self, entries: Iterable[Item]) -> list[Item]:
        # An index holds a part of each item, and a moment longer than the table what was deleted.
        return [item for item in self._pool.map(self.get, (entry["Id"]["S"] for entry in entries)) if item]


@contextmanager
def _explained(table: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        detail = f"{code}: {error.response['Error'].get('Message', '')}"
        raise TableError(_line(table, HOPELESS.get(code), detail)) from error
    except BotoCoreError as error:
        name = type(error).__name__
        raise TableError(_line(table, UNUSABLE.get(name), f"{name}: {error}")) from error


def _line(table: str, meaning: str | None, detail: str) -> str:
    return " ".join(f"table {table}: {f'{meaning} ({detail})' if meaning else detail}".split())


def _age(item: Item) -> tuple[str, str]:
    return item["Timestamp"]["S"], item["SortId"]["S"]


def connect_writer(**location: Any) -> Client:
    """
    Return a client that writes fast: no validation, no retries, short time-outs, JSON made in one go.

    botocore would walk through every attribute of every item before it encodes them. The items have the form of
    the API already, so the body is encoded here and put into the request before it is signed: a third less CPU.

    `location` is for boto3.client (endpoint_url, region_name, ...) and goes before its own variables.
    """
    client = _connect(
        location,
        parameter_validation=False,
        # botocore would put its own together anew for each request, out of some thirty parts.
        user_agent="millrace-processor",
        tcp_keepalive=True,
        max_pool_connections=PARALLEL_CALLS,
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": 1},
    )

    # An item is a tree by its making: to look for circles in it is a fifth of the encoding.
    to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode

    def encode(params: dict[str, Any], context: dict[str, Any], **_: object) -> dict[str, Any]:
        context["encoded_body"] = to_json(params).encode()
        return {"RequestItems": dict.fromkeys(params["RequestItems"], ())}

    def replace(params: dict[str, Any], context: dict[str, Any], **_: object) -> None:
        params["body"] = context["encoded_body"]

    client.meta.events.register("provide-client-params.dynamodb.BatchWriteItem", encode)
    client.meta.events.register("before-call.dynamodb.BatchWriteItem", replace)
    writer: Client = client
    return writer


def connect_reader(**location: Any) -> Any:
    """Return a client for a person at a terminal, with botocore's own retries; `location` as above."""
    return _connect(
        location,
        max_pool_connections=PARALLEL_CALLS,
        retries={"mode": "standard", "total_max_attempts": 3},
    )


def _connect(location: dict[str, Any], **config: Any) -> Any:
    import boto3  # noqa: PLC0415 - a quarter of a second that a call for help does not need
    from botocore.config import Config  # noqa: PLC0415 - as above

    # boto3 itself reads the region from AWS_DEFAULT_REGION only; every other SDK, and this project, knows AWS_REGION.
    location.setdefault("region_name", os.environ.get("AWS_REGION") or None)
    return boto3.client("dynamodb", config=Config(**config), **location)
