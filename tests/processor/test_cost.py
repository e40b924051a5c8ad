"""What a million posts cost in write units, by the sizes of the items of recorded posts, or of invented ones."""

import os
from collections.abc import Iterable
from math import ceil
from pathlib import Path

import pytest

from local.posts import Generated
from local.template import load
from processor.items import Item, Shape, UnstorableError, item_of, item_size

# us-east-1, on demand: a million write units, of up to 1 KB each, says the price list of DynamoDB (November 2026).
DOLLARS_PER_MILLION_UNITS = 0.625
UNIT_BYTES = 1024
# What DynamoDB stores of each entry of an index beside its attributes; the developer guide's number for its storage.
INDEX_ENTRY_BYTES = 100
AIM_DOLLARS = 1.9

ARCHIVE = Path(
    os.environ.get("MILLRACE_TEST_POSTS") or Path(__file__).resolve().parents[3] / "shared/data/x/posts.jsonl"
)
TABLE = load().table_definition("mill")
TABLE_KEYS = {key["AttributeName"] for key in TABLE["KeySchema"]}


def units_of(item: Item) -> int:
    """Write units of one item: its own, and those of its entry in each index that it has the keys of."""
    units = ceil(item_size(item) / UNIT_BYTES)
    for index in TABLE["GlobalSecondaryIndexes"]:
        keys = {key["AttributeName"] for key in index["KeySchema"]}
        if keys <= item.keys():
            projected = TABLE_KEYS | keys | set(index["Projection"]["NonKeyAttributes"])
            entry = {name: value for name, value in item.items() if name in projected}
            units += ceil((item_size(entry) + INDEX_ENTRY_BYTES) / UNIT_BYTES)
    return units


def dollars_per_million(items: Iterable[Item]) -> float:
    """The price of a million such items."""
    units = [units_of(item) for item in items]
    return sum(units) / len(units) * DOLLARS_PER_MILLION_UNITS


def items_of(lines: Iterable[bytes]) -> list[Item]:
    """The items of lines; what is no post is left out."""
    items = []
    for line in lines:
        try:
            items.append(item_of(line, 0, Shape()))
        except UnstorableError:
            continue
    return items


def test_a_long_post_costs_one_unit_more_for_each_begun_kilobyte() -> None:
    """Only the item itself grows with its text: no index has it."""
    item = items_of([b'{"data":{"id":"2123700000000000001","author_id":"42","text":"x"}}'])[0]
    assert units_of(item) == 3
    assert units_of({**item, "Message": "x" * 5_000}) == 8
    assert units_of({name: value for name, value in item.items() if name != "AuthorId"}) == 2


@pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"there are no recorded posts at {ARCHIVE.name}")
def test_recorded_posts_cost_what_was_promised() -> None:
    """Real posts stay below the aim, those that have an author too, and nearly all items are below a kilobyte."""
    items = items_of(ARCHIVE.read_bytes().splitlines())
    small = sum(item_size(item) <= UNIT_BYTES for item in items) / len(items)
    price, dearer = dollars_per_million(items), dollars_per_million(item for item in items if "AuthorId" in item)
    words = f"{price:.3f} USD a million, {dearer:.3f} of those with an author; {small:.1%} of items up to 1 KB"
    print(f"{len(items):,} recorded posts: {words}")  # noqa: T201 - for `pytest -s`

    assert len(items) > 500
    assert price <= dearer <= AIM_DOLLARS
    assert small > 0.98


def test_invented_posts_cost_what_was_promised() -> None:
    """So do those that the demo sends, a long post in a hundred included."""
    generated = Generated(seed=1)
    items = items_of(generated.take(1_795_442_400_000 + number).line for number in range(3_000))
    price = dollars_per_million(items)
    print(f"{len(items):,} invented posts: {price:.3f} USD a million")  # noqa: T201 - as above

    assert len(items) == 3_000
    assert price <= AIM_DOLLARS
