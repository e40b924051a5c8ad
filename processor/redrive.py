"""
Puts back what failed: the quarantine's records, and the batches that Lambda gave up, out of a bucket or a directory.

Both lie below the same place, each as a JSON object (failures.py describes the first; of the second, `payload` is the
event of Lambda). A record is written only if the table has neither its item nor its tombstone: what came later than
the failure stays, and what was deleted stays deleted. Both conditions are one transaction. So that of two versions the
newer one is stored, the objects are read once to put them into the order of the stream, and taken from its end.

An object is removed when each of its records is in the table or was deleted. What can still not be stored stays, with
its reason in the report; so does what the table does not take now.
"""

import json
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from processor import wire
from processor.failures import Bucket, Directory
from processor.items import TOMBSTONE_PREFIX, Item, Shape, UnstorableError, item_of, to_json
from processor.reader import asking
from processor.table import HOPELESS, INVALID

# What may become of a record; the last two keep its object where it is.
STORED, PRESENT, DELETED, UNSTORABLE, NOT_NOW = "stored", "present", "deleted", "unstorable", "not_now"


class Redriven(NamedTuple):
    """What became of one object: how many records of each kind, and why it stays, or None if it was removed."""

    key: str
    counts: Counter[str]
    reason: str | None


class Redrive:
    """
    Puts records back.

    Args:
        place: where the objects lie.
        client: boto3's low-level client of DynamoDB.
        table: its name.
        shape: as the function has it, or the items would be others.
        pool: runs the calls.
    """

    def __init__(self, place: Directory | Bucket, client: Any, table: str, shape: Shape, pool: Executor) -> None:
        self._place = place
        self._client = client
        self._table = table
        self._shape = shape
        self._pool = pool

    def run(self) -> Iterator[Redriven]:
        """Take one object after the other; the newest first, because what is there first stays."""
        keys = self._place.keys()
        ordered = sorted(zip(self._pool.map(self._place_in_stream, keys), keys, strict=True), reverse=True)
        for _, key in ordered:
            yield self._take(key)

    def _place_in_stream(self, key: str) -> tuple[int, int]:
        """Return sequence number and position of the first record of an object; zeros where there is none."""
        try:
            document = json.loads(self._place.get(key))
            if "payload" in document:
                return int(document["KinesisBatchInfo"]["startSequenceNumber"]), 0
            return int(document["sequenceNumber"]), document["position"] or 0
        except (ValueError, KeyError, TypeError):
            return 0, 0

    def _take(self, key: str) -> Redriven:
        counts: Counter[str] = Counter()
        reasons: list[str] = []
        try:
            items = self._items(json.loads(self._place.get(key)), counts, reasons)
        except (ValueError, KeyError, TypeError):
            return Redriven(key, counts, "not an object of the quarantine or of Lambda")
        for what, reason in self._pool.map(self._write, items.values()):
            counts[what] += 1
            if reason:
                reasons.append(reason)
        if not reasons:
            self._place.remove(key)
        return Redriven(key, counts, reasons[0] if reasons else None)

    def _items(self, document: Mapping[str, Any], counts: Counter[str], reasons: list[str]) -> dict[str, Item]:
        """Return the newest version of each item in an object; what can be none is counted, with its reason."""
        items: dict[str, Item] = {}
        for data, arrived_at in _records(document, reasons):
            try:
                item = item_of(data, arrived_at, self._shape)
            except UnstorableError as error:
                counts[UNSTORABLE] += 1
                reasons.append(str(error))
            else:
                items[str(item["Id"])] = item
        return items

    def _write(self, item: Item) -> tuple[str, str | None]:
        tombstone = {"Id": {"S": f"{TOMBSTONE_PREFIX}{item['Id']}"}}
        absent = {"TableName": self._table, "ConditionExpression": "attribute_not_exists(Id)"}
        with asking(self._table):
            try:
                self._client.transact_write_items(
                    TransactItems=[
                        {"ConditionCheck": {**absent, "Key": tombstone}},
                        {"Put": {**absent, "Item": json.loads(to_json(item))}},
                    ]
                )
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code in HOPELESS:
                    raise
                reasons = error.response.get("CancellationReasons", [])
                codes = [reason.get("Code") for reason in reasons] or [code]
                if codes[0] == "ConditionalCheckFailed":
                    # An invocation that was ended between its put and its look may have left the item.
                    self._client.delete_item(TableName=self._table, Key={"Id": {"S": str(item["Id"])}})
                    return DELETED, None
                if codes[-1] == "ConditionalCheckFailed":
                    return PRESENT, None
                if "ValidationError" in codes or code in INVALID:
                    return UNSTORABLE, f"the table refuses it: {error.response['Error'].get('Message', code)}"
                return NOT_NOW, f"not now: {', '.join(sorted({code for code in codes if code and code != 'None'}))}"
        return STORED, None


def _records(document: Mapping[str, Any], reasons: list[str]) -> Iterator[tuple[bytes, float]]:
    """Give the records of an object with the time of their arrival; what is damaged is told in `reasons`."""
    if "payload" in document:
        records = [record["kinesis"] for record in json.loads(document["payload"])["Records"]]
    else:
        records = [document]
    for record in records:
        # Also one that came out of a container: an older function may not have known that it was one itself.
        decoded = wire.decode(b64decode(record["data"]))
        if decoded.damage is not None:
            reasons.append(f"damaged aggregate: {decoded.damage}")
        for user_record in decoded.records:
            yield user_record.data, float(record["approximateArrivalTimestamp"])
