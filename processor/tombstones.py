"""
Deleting for good: a tombstone first, then the item. Why in this order, and what for: see table.py.

A tombstone lives as long as what it keeps out could live in the table. It has no attribute of an index, so that no
question but one for its own key meets it, and it says nothing about the post but its id.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from processor.items import SECONDS_PER_DAY, TOMBSTONE_PREFIX, Item
from processor.table import TableWriter


def tombstone(key: str, now: datetime, ttl_days: int) -> Item:
    """Return the tombstone of the item with this key; `ttl_days` as in `Shape`."""
    deleted_at = now.astimezone(UTC).isoformat(timespec="milliseconds")[:23]
    item: Item = {"Id": TOMBSTONE_PREFIX + key, "DeletedAt": deleted_at + "Z"}
    if ttl_days:
        item["ExpiresAt"] = int(now.timestamp()) + ttl_days * SECONDS_PER_DAY
    return item


def delete(table: TableWriter, keys: Sequence[str], now: datetime, ttl_days: int, deadline: float) -> frozenset[str]:
    """
    Delete items, whether they are in the table or not, and keep them out.

    Returns the keys of those that were not deleted before the deadline, which is of the table's own clock. For them
    it can be called again.
    """
    buried = table.put({TOMBSTONE_PREFIX + key: tombstone(key, now, ttl_days) for key in keys}, deadline)
    left = {key.removeprefix(TOMBSTONE_PREFIX) for key in buried}
    return table.delete([key for key in dict.fromkeys(keys) if key not in left], deadline) | left
