"""
Writes to the table, many items at once.

Rules and traps:

* BatchWriteItem takes 25 items and 16 MB. Two items with one key, or one item that is not valid, and it refuses
  all of them; so items come by key, and a refused batch is taken apart and sent one by one.
* It answers 200 with UnprocessedItems when a part was throttled, and an error only when all of it was. Both are
  sent again, packed together anew, with full jitter, until the deadline.
* Retries are ours alone: others would know no deadline.
* An item whose answer was lost may be stored. Writing it again changes nothing.
* A missing table or permission is no fault of an item: it is raised, so that the function shows as failed and
  everything is tried again once it is healed.

**Deleted stays deleted.** A record may come again long after its item was deleted, and a batch cannot be conditional.
So a deletion leaves a tombstone, an item of its own whose key is `deleted#` and the id, and only then deletes the item.
`write` looks for tombstones after it has put, and takes back out what has one. In whatever order the two meet: if the
tombstone was there before `write` looks, `write` takes the item out; if not, the deletion does, since it deletes after
the item was put. The look is strongly consistent; an item does not count as written before it.

Limits: the DynamoDB API reference, BatchWriteItem, BatchGetItem and "Service, account, and table quotas".
"""

import json
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from processor.dynamodb import ApiError, NoAnswerError, SetupError
from processor.items import TOMBSTONE_PREFIX, Item, to_json

BATCH_ITEMS = 25
BATCH_BYTES = 16 * 1024 * 1024
BATCH_KEYS = 100
# What stands around the items of a batch, beside the name of the table.
ENVELOPE_BYTES = 200

# How many calls are under way at once: at a table that answers in 8 ms, as many as keep one core busy.
PARALLEL_CALLS = 16
# The first pause is up to the base; each further one may be twice as long, up to the limit.
BACKOFF_BASE_SECONDS = 0.05
BACKOFF_LIMIT_SECONDS = 1.0
# After the deadline of the items: so long the look for tombstones may begin calls.
TOMBSTONE_SECONDS = 1.0

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


class TableError(Exception):
    """The table cannot be used at all. The text is one line for an operator, with the way out where it is known."""


class Client(Protocol):
    """What is needed of `processor.dynamodb.Dynamo`."""

    def call(self, operation: str, body: bytes) -> Any:
        """Do one operation; raises ApiError and NoAnswerError."""


class Outcome(NamedTuple):
    """
    What became of the items of one `write`; those named nowhere are stored.

    Attributes:
        unwritten: keys of items that were not stored in time and may be stored later.
        refused: keys of items that DynamoDB will never take, with its reason.
        deleted: keys of items that have a tombstone, and are not in the table.
        retried: how many items were sent again, each time counted.
        units: write units that DynamoDB counted, indexes included.
        fault: what last kept an item from being stored at once: an error's code or name, or UnprocessedItems. None
            when there was nothing but too little time.
    """

    unwritten: frozenset[str]
    refused: dict[str, str]
    deleted: frozenset[str]
    retried: int
    units: float
    fault: str | None


class _Answer(NamedTuple):
    """Of one call: what is left, and why; or why all of it was refused; write units; and what was found."""

    left: Collection[str] = ()
    fault: str | None = None
    refusal: str | None = None
    units: float = 0.0
    found: Collection[str] = ()


class _Tally:
    """What adds up over the calls of one `write`."""

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.found: set[str] = set()
        self.retried = 0
        self.units = 0.0
        self.fault: str | None = None


class TableWriter:
    """
    Writes and deletes.

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
        Store the items, given by their key, but for those that have a tombstone.

        No item is sent after the deadline. The look for tombstones has TOMBSTONE_SECONDS more.

        Raises:
            TableError: the table does not exist or may not be written; region or credentials are missing.
        """
        tally = _Tally()
        with explained(self._name):
            unwritten = self._put(items, deadline, tally)
            stored = items.keys() - unwritten - tally.refused.keys()
            deadline += TOMBSTONE_SECONDS
            unwritten |= self._repeat(list(stored), _by_number(BATCH_KEYS), self._look, deadline, tally)
            unwritten |= self._repeat(list(tally.found), _by_number(BATCH_ITEMS), self._delete, deadline, tally)
        deleted = frozenset(tally.found - unwritten)
        return Outcome(frozenset(unwritten), tally.refused, deleted, tally.retried, tally.units, tally.fault)

    def put(self, items: Mapping[str, Item], deadline: float) -> frozenset[str]:
        """Store items whatever tombstones there are; return the keys of those that were not stored in time."""
        tally = _Tally()
        with explained(self._name):
            unwritten = self._put(items, deadline, tally)
        if tally.refused:
            raise TableError(f"table {self._name}: {next(iter(tally.refused.values()))}")
        return frozenset(unwritten)

    def delete(self, keys: Sequence[str], deadline: float) -> frozenset[str]:
        """Delete items; return the keys of those that were not deleted in time."""
        with explained(self._name):
            return frozenset(self._repeat(keys, _by_number(BATCH_ITEMS), self._delete, deadline, _Tally()))

    def _put(self, items: Mapping[str, Item], deadline: float, tally: _Tally) -> set[str]:
        puts = {key: f'{{"PutRequest":{{"Item":{to_json(item)}}}}}'.encode() for key, item in items.items()}
        suspects: set[str] = set()

        def send(client: Client, keys: Sequence[str]) -> _Answer:
            answer = self._write(client, [puts[key] for key in keys], keys)
            if answer.refusal is None:
                return answer
            if len(keys) > 1:
                suspects.update(keys)
                return _Answer(keys)
            tally.refused[keys[0]] = answer.refusal
            return _Answer()

        return self._repeat(list(puts), lambda keys: _pack(puts, keys, suspects), send, deadline, tally)

    def _repeat(
        self,
        keys: Sequence[str],
        batches_of: Callable[[Sequence[str]], Iterable[Sequence[str]]],
        send: Callable[[Client, Sequence[str]], _Answer],
        deadline: float,
        tally: _Tally,
    ) -> set[str]:
        """Send all keys in batches, several at once, until none is left or the time is up; return what is left."""
        if self._client is None:
            self._client = self._connect()
        client = self._client

        def send_in_time(batch: Sequence[str]) -> _Answer:
            if self._clock() >= deadline:
                return _Answer(batch, _TOO_LATE)
            try:
                return send(client, batch)
            except NoAnswerError as error:
                return _Answer(batch, str(error))
            except ApiError as error:
                if error.code in HOPELESS:
                    raise
                return _Answer(batch, error.code)

        rounds = 0
        while keys:
            left: list[str] = []
            pause = False
            for answer in self._pool.map(send_in_time, batches_of(keys)):
                left += answer.left
                tally.units += answer.units
                tally.found.update(answer.found)
                pause = pause or answer.fault is not None
                if answer.fault not in {None, _TOO_LATE}:
                    tally.fault = answer.fault
            keys = left
            rounds += 1
            if pause and not self._pause(rounds, deadline):
                break
            tally.retried += len(keys)
        return set(keys)

    def _write(self, client: Client, requests: Sequence[bytes], keys: Sequence[str]) -> _Answer:
        body = (
            f'{{"RequestItems":{{{json.dumps(self._name)}:['.encode()
            + b",".join(requests)
            + b']},"ReturnConsumedCapacity":"TOTAL"}'
        )
        try:
            answer = client.call("BatchWriteItem", body)
        except ApiError as error:
            if error.code in INVALID:
                return _Answer(keys, refusal=str(error))
            raise
        left = [_key_of(request) for request in answer.get("UnprocessedItems", {}).get(self._name, ())]
        units = sum(table["CapacityUnits"] for table in answer.get("ConsumedCapacity", ()))
        return _Answer(left, "UnprocessedItems" if left else None, units=units)

    def _delete(self, client: Client, keys: Sequence[str]) -> _Answer:
        requests = [f'{{"DeleteRequest":{{"Key":{to_json({"Id": key})}}}}}'.encode() for key in keys]
        answer = self._write(client, requests, keys)
        # The keys are those of items that were put: a refusal is no fault of theirs.
        return answer if answer.refusal is None else _Answer(keys, answer.refusal.partition(":")[0])

    def _look(self, client: Client, keys: Sequence[str]) -> _Answer:
        wanted = ",".join(to_json({"Id": TOMBSTONE_PREFIX + key}) for key in keys)
        body = (
            f'{{"RequestItems":{{{json.dumps(self._name)}:'
            f'{{"Keys":[{wanted}],"ConsistentRead":true,"ProjectionExpression":"Id"}}}}}}'
        )
        answer = client.call("BatchGetItem", body.encode())
        found = [_id_of_tombstone(item) for item in answer.get("Responses", {}).get(self._name, ())]
        unread = answer.get("UnprocessedKeys", {}).get(self._name, {}).get("Keys", ())
        left = [_id_of_tombstone(key) for key in unread]
        return _Answer(left, "UnprocessedKeys" if left else None, found=found)

    def _pause(self, rounds: int, deadline: float) -> bool:
        longest = min(BACKOFF_LIMIT_SECONDS, BACKOFF_BASE_SECONDS * 2 ** (rounds - 1))
        delay = self._chance(0, longest)
        # To wait for a moment at which nothing may be begun any more would only cost time.
        if self._clock() + delay >= deadline:
            return False
        self._sleep(delay)
        return True


_TOO_LATE = "TooLate"


def _key_of(request: Any) -> str:
    (action,) = request.values()
    key: str = action.get("Item", action.get("Key"))["Id"]["S"]
    return key


def _id_of_tombstone(item: Any) -> str:
    key: str = item["Id"]["S"]
    return key.removeprefix(TOMBSTONE_PREFIX)


def _by_number(most: int) -> Callable[[Sequence[str]], Iterator[Sequence[str]]]:
    return lambda keys: (keys[start : start + most] for start in range(0, len(keys), most))


def _pack(puts: Mapping[str, bytes], keys: Iterable[str], alone: set[str]) -> Iterator[list[str]]:
    """Divide the keys into batches within DynamoDB's limits; those in `alone` get a batch of their own."""
    batch: list[str] = []
    size = ENVELOPE_BYTES
    for key in keys:
        if key in alone:
            yield [key]
            continue
        if len(batch) == BATCH_ITEMS or (batch and size + len(puts[key]) + 1 > BATCH_BYTES):
            yield batch
            batch, size = [], ENVELOPE_BYTES
        batch.append(key)
        size += len(puts[key]) + 1
    if batch:
        yield batch


@contextmanager
def explained(table: str) -> Iterator[None]:
    """Turn what a client raises into a TableError with one line for an operator."""
    try:
        yield
    except (ApiError, SetupError) as error:
        raise TableError(line_of(table, getattr(error, "code", ""), str(error))) from error


def line_of(table: str, code: str, detail: str) -> str:
    """Return one line that says what an error means for an operator, and the way out where it is known."""
    meaning = HOPELESS.get(code)
    return " ".join(f"table {table}: {f'{meaning} ({detail})' if meaning else detail}".split())
