"""
A table in memory in the place of DynamoDB, as strict as the real one, with faults in a given order.

The clock of a test moves only where something here takes time: a call, or the writer's sleep.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

from processor.dynamodb import ApiError, NoAnswerError
from processor.items import ITEM_BYTES, TOMBSTONE_PREFIX, Item, item_size, to_json
from processor.reader import plain

TABLE = "stack-EventData"

# What may happen to a call; anything else is the code of an error that DynamoDB answers with.
STORED = "stored"
HALF = "half"  # every second item is left out
NONE = "none"  # all items are left out
LOST = "lost"  # stored, but the answer never comes
UNREACHABLE = "unreachable"
THROTTLED = "ProvisionedThroughputExceededException"


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
    A table, with the two operations that the processor uses.

    Args:
        faults: what happens to each call that writes, in order; after the last one all is well.
        look_faults: the same for each look at tombstones.
        invalid: tells which items the table will never take.
        clock: moves by `seconds` at each call.
    """

    def __init__(
        self,
        faults: Iterable[str] = (),
        *,
        look_faults: Iterable[str] = (),
        invalid: Callable[[Item], bool] = lambda _: False,
        clock: Clock | None = None,
        seconds: float = 0,
    ) -> None:
        self.everything: dict[str, Item] = {}
        self.batches: list[list[str]] = []
        self.looks: list[list[str]] = []
        self.before_look: Callable[[], None] = lambda: None
        self._faults: Iterator[str] = iter(faults)
        self._look_faults: Iterator[str] = iter(look_faults)
        self._invalid = invalid
        self._clock = clock
        self._seconds = seconds

    @property
    def items(self) -> dict[str, Item]:
        """What is in the table beside tombstones."""
        return {key: item for key, item in self.everything.items() if not key.startswith(TOMBSTONE_PREFIX)}

    def bury(self, *keys: str) -> None:
        """Delete as the console does: a tombstone, and then the item."""
        for key in keys:
            self.everything[TOMBSTONE_PREFIX + key] = {"Id": TOMBSTONE_PREFIX + key, "ExpiresAt": 2_000_000_000}
        for key in keys:
            self.everything.pop(key, None)

    def call(self, operation: str, body: bytes) -> Any:
        """Do as the API does, or as the next fault says."""
        if self._clock:
            self._clock.sleep(self._seconds)
        request = json.loads(body)
        ((name, content),) = request["RequestItems"].items()
        if name != TABLE:
            raise ApiError("ResourceNotFoundException", "Requested resource not found")
        if operation == "BatchGetItem":
            return self._get(content)
        assert operation == "BatchWriteItem"
        return self._write(content, len(body))

    def _write(self, requests: list[Any], size: int) -> Any:
        keys = [_key_of(request) for request in requests]
        self.batches.append(keys)
        fault = _raised(next(self._faults, STORED))
        self._validate(requests, keys, size)
        left_out = {HALF: requests[::2], NONE: requests}.get(fault, [])
        done = 0.0
        for request, key in zip(requests, keys, strict=True):
            if request in left_out:
                continue
            done += 1
            if "PutRequest" in request:
                self.everything[key] = plain(request["PutRequest"]["Item"])
            else:
                self.everything.pop(key, None)
        if fault == LOST:
            raise NoAnswerError("TimeoutError")
        capacity = {"ConsumedCapacity": [{"TableName": TABLE, "CapacityUnits": done}]} if done else {}
        return {"UnprocessedItems": {TABLE: left_out} if left_out else {}, **capacity}

    def _get(self, content: Any) -> Any:
        keys = [key["Id"]["S"] for key in content["Keys"]]
        assert content["ConsistentRead"] is True
        self.looks.append(keys)
        self.before_look()
        fault = _raised(next(self._look_faults, STORED))
        if not 1 <= len(set(keys)) == len(keys) <= 100:
            raise ApiError("ValidationException", "Member must have length less than or equal to 100")
        left_out = {HALF: content["Keys"][::2], NONE: content["Keys"]}.get(fault, [])
        if fault == LOST:
            raise NoAnswerError("TimeoutError")
        found = [key for key in content["Keys"] if key["Id"]["S"] in self.everything and key not in left_out]
        return {
            "Responses": {TABLE: found},
            "UnprocessedKeys": {TABLE: content | {"Keys": left_out}} if left_out else {},
        }

    def _validate(self, requests: list[Any], keys: list[str], size: int) -> None:
        items = [plain(request["PutRequest"]["Item"]) for request in requests if "PutRequest" in request]
        if not 1 <= len(requests) <= 25:
            raise ApiError("ValidationException", "Member must have length less than or equal to 25")
        if len(set(keys)) < len(keys):
            raise ApiError("ValidationException", "Provided list of item keys contains duplicates")
        if any(item_size(item) > ITEM_BYTES for item in items):
            raise ApiError("ValidationException", "Item size has exceeded the maximum allowed size")
        if any(self._invalid(item) for item in items):
            raise ApiError("ValidationException", "One or more parameter values were invalid")
        if size > 16 * 1024 * 1024:
            raise ApiError("413", "")


def _raised(fault: str) -> str:
    """Raise what happens instead of an answer; return what happens to it."""
    if fault == UNREACHABLE:
        raise NoAnswerError("ConnectionRefusedError")
    if fault not in {STORED, HALF, NONE, LOST}:
        raise ApiError(fault, "as the test wants it")
    return fault


def _key_of(request: Any) -> str:
    key: str = (request["PutRequest"]["Item"] if "PutRequest" in request else request["DeleteRequest"]["Key"])["Id"][
        "S"
    ]
    return key


def typed(item: Item) -> Any:
    """An item as boto3 takes it."""
    return json.loads(to_json(item))
