"""
What stands for DynamoDB in these tests.

`FakeDynamo` is BatchWriteItem in memory, as strict as the real one, with faults in a given order. The clock of a
test moves only where something here takes time: a call, or the writer's sleep. `served_by_moto` is a server that
speaks DynamoDB's protocol, for boto3 itself; it knows expressions and indexes, but never throttles.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import ClientError, ConnectTimeoutError, ReadTimeoutError
from moto.server import ThreadedMotoServer

from processor.items import ITEM_BYTES, Item, item_size
from processor.table import connect_reader

TABLE = "stack-EventData"

# What may happen to a call; anything else is the code of an error that DynamoDB answers with.
STORED = "stored"
HALF = "half"  # every second item is left out
NONE = "none"  # all items are left out
LOST = "lost"  # stored, but the answer never comes
UNREACHABLE = "unreachable"


class Clock:
    """Seconds that only pass when someone sleeps."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


class Inline(Executor):
    """Runs each call at once, in its caller's thread: what a test does not want is the order of threads."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # any error belongs to the future's reader
            future.set_exception(error)
        return future


class FakeDynamo:
    """
    A table.

    Args:
        faults: what happens to each call, in order; after the last one all is well.
        invalid: tells which items the table will never take.
        clock: moves by `seconds` at each call.
    """

    def __init__(
        self,
        faults: Iterable[str] = (),
        *,
        invalid: Callable[[Item], bool] = lambda _: False,
        clock: Clock | None = None,
        seconds: float = 0,
    ) -> None:
        self.items: dict[str, Item] = {}
        self.batches: list[list[str]] = []
        self._faults: Iterator[str] = iter(faults)
        self._invalid = invalid
        self._clock = clock
        self._seconds = seconds

    def batch_write_item(self, *, RequestItems: Mapping[str, Any]) -> Any:  # noqa: N803 - the API's own name
        """Do as the API does, or as the next fault says."""
        if self._clock:
            self._clock.sleep(self._seconds)
        ((name, puts),) = RequestItems.items()
        items: list[Item] = [put["PutRequest"]["Item"] for put in puts]
        keys = [item["Id"]["S"] for item in items]
        self.batches.append(keys)
        if name != TABLE:
            raise _error("ResourceNotFoundException", "Requested resource not found")
        fault = next(self._faults, STORED)
        if fault == UNREACHABLE:
            raise ConnectTimeoutError(endpoint_url="http://127.0.0.1")
        if fault not in {STORED, HALF, NONE, LOST}:
            raise _error(fault, "as the test wants it")
        self._validate(RequestItems, items, keys)
        left_out = {HALF: puts[::2], NONE: puts}.get(fault, [])
        for put, key, item in zip(puts, keys, items, strict=True):
            if put not in left_out:
                self.items[key] = item
        if fault == LOST:
            raise ReadTimeoutError(endpoint_url="http://127.0.0.1")
        return {"UnprocessedItems": {name: left_out} if left_out else {}}

    def _validate(self, request: Mapping[str, Any], items: list[Item], keys: list[str]) -> None:
        if not 1 <= len(items) <= 25:
            raise _error("ValidationException", "Member must have length less than or equal to 25")
        if len(set(keys)) < len(keys):
            raise _error("ValidationException", "Provided list of item keys contains duplicates")
        if any(item_size(item) > ITEM_BYTES for item in items):
            raise _error("ValidationException", "Item size has exceeded the maximum allowed size")
        if any(self._invalid(item) for item in items):
            raise _error("ValidationException", "One or more parameter values were invalid")
        if len(json.dumps(request)) > 16 * 1024 * 1024:
            raise _error("413", "Request Entity Too Large")


def _error(code: str, message: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "BatchWriteItem")


@contextmanager
def served_by_moto(table: str = TABLE) -> Iterator[dict[str, str]]:
    """
    Serve a table, keyed and indexed as deploy/template.yaml has it; yields where, for boto3.client.

    All servers of moto in one process share their tables: each needs a name of its own.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    location = {
        "region_name": "eu-central-1",
        "aws_access_key_id": "local",
        "aws_secret_access_key": "local",
        "endpoint_url": f"http://{host}:{port}",
    }
    projection = {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["Username", "Timestamp", "RuleTags", "ExpiresAt"]}
    range_key = {"AttributeName": "SortId", "KeyType": "RANGE"}
    client = connect_reader(**location)
    client.create_table(
        TableName=table,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
        AttributeDefinitions=[
            {"AttributeName": name, "AttributeType": "S"} for name in ("Id", "AuthorId", "Bucket", "SortId")
        ],
        GlobalSecondaryIndexes=[
            {
                "IndexName": name,
                "KeySchema": [{"AttributeName": key, "KeyType": "HASH"}, range_key],
                "Projection": projection,
            }
            for name, key in (("ByAuthor", "AuthorId"), ("ByTime", "Bucket"))
        ],
    )
    try:
        yield location
    finally:
        client.delete_table(TableName=table)
        client.close()
        server.stop()
