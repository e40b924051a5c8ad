"""
The ledgers and the table side by side: what X sent, what Kinesis holds, what is in the table.

`reconcile` is a pure function of plain values; the functions below it get these from the stand-ins. Its rules:

* A post counts as sent when X wrote it, or when it arrived: of the last write to a connection that broke, X cannot
  know how much left, and calls it discarded. What neither was written nor arrived is missed: X did not repeat it.
* A post sent more than once is one post; its place in the order is that of the first time.
* The bytes in Kinesis must be the bytes that X wrote, by MD5.
* Order is judged for each key, by the first copy of each post: Kinesis' order within a shard, a parent before its
  children after a reshard. Two shards that are not related have no order between them, so a key on both has none.
* A copy outside its shard's range of hash keys (a record that was sent while the shard was split) says nothing about
  order: consumers of the format leave it out, and it comes again on the right shard.
* A second copy of a post in Kinesis is a repeat. It is no fault: delivery is at least once, and the table holds the
  post once, since its id is the table's key.
* What was put aside for a reason that is known (a dead letter, the quarantine) is counted by that reason, not as lost.
"""

import base64
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from aiohttp import ClientSession

from processor.wire import decode


class SentPost(NamedTuple):
    """A row of X's ledger: id, partition key, MD5 of the line in hexadecimal, state (see `local.x_api.ledger`)."""

    id: str
    key: str
    md5: str
    state: str = "written"


class ShardRecords(NamedTuple):
    """
    A shard with all that it ever took, in order.

    `parents` are the shards that it was made from; `first` and `last` are its hash keys.
    """

    shard_id: str
    parents: tuple[str, ...]
    records: Sequence[bytes]
    first: int = 0
    last: int = 2**128 - 1


@dataclass(frozen=True)
class Reconciliation:
    """
    What became of the posts. Each tuple names posts by id, in the order sent where they were sent.

    Attributes:
        sent: posts that X wrote, or that arrived.
        missed: posts that X had while no connection took them.
        in_kinesis: how many of the sent ones Kinesis holds.
        in_table: how many of them the table holds.
        lost_before_kinesis: sent, not in Kinesis, and not put aside.
        lost_before_table: in Kinesis, not in the table, and not put aside.
        out_of_order: in Kinesis behind a later post of the same key.
        changed: in Kinesis with other bytes than X wrote.
        unexpected: in Kinesis or in the table, but never sent.
        repeated: copies in Kinesis after the first.
        put_aside: how many lines for each known reason; they need not be posts.
    """

    sent: int
    missed: int
    in_kinesis: int
    in_table: int
    lost_before_kinesis: tuple[str, ...] = ()
    lost_before_table: tuple[str, ...] = ()
    out_of_order: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    repeated: int = 0
    put_aside: Mapping[str, int] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Posts that should be in the table and are not."""
        return len(self.lost_before_kinesis) + len(self.lost_before_table)

    @property
    def ok(self) -> bool:
        """Nothing is lost, changed or invented, and each key is in order."""
        return not (self.lost or self.out_of_order or self.changed or self.unexpected)

    def summary(self) -> str:
        """Return it as lines of plain text, each with a name and a number; a fault has a line with its first ids."""
        aside = "".join(f", {reason} {number}" for reason, number in sorted(self.put_aside.items()))
        lines = [
            f"sent          {self.sent:>9,}, and {self.missed:,} missed while X had nobody to send to",
            f"in Kinesis    {self.in_kinesis:>9,}",
            f"in the table  {self.in_table:>9,}",
            f"put aside     {sum(self.put_aside.values()):>9,}{aside}",
            f"lost          {self.lost:>9,}",
            f"repeated      {self.repeated:>9,}",
            f"out of order  {len(self.out_of_order):>9,}",
        ]
        for name, ids in (
            ("lost before Kinesis", self.lost_before_kinesis),
            ("lost before the table", self.lost_before_table),
            ("out of order", self.out_of_order),
            ("changed on the way", self.changed),
            ("never sent", self.unexpected),
        ):
            if ids:
                lines.append(f"{name}: {', '.join(ids[:5])}{f' and {len(ids) - 5:,} more' if len(ids) > 5 else ''}")
        return "\n".join(lines)


def reconcile(
    sent: Iterable[SentPost],
    shards: Sequence[ShardRecords],
    table_ids: Collection[str],
    put_aside: Mapping[str, str],
) -> Reconciliation:
    """
    Compare.

    Args:
        sent: X's ledger, in its order.
        shards: all shards of the stream, closed ones too.
        table_ids: the keys of the table's items.
        put_aside: the reason for each line that was put aside, by its MD5.
    """
    posts: dict[str, SentPost] = {}
    order: dict[str, int] = {}
    for number, post in enumerate(sent):
        if post.id not in posts or (post.state == "written" != posts[post.id].state):
            posts[post.id] = post
            order[post.id] = number
    ancestors = _ancestors(shards)
    stored: set[str] = set()
    judged: set[str] = set()
    aside = {post.md5: put_aside[post.md5] for post in posts.values() if post.md5 in put_aside}
    changed: dict[str, None] = {}
    unexpected: dict[str, None] = {}
    late: list[str] = []
    repeated = 0
    newest: dict[str, tuple[int, str]] = {}
    for shard in sorted(shards, key=lambda shard: len(ancestors[shard.shard_id])):
        for data in shard.records:
            for line in decode(data).records:
                post_id = post_id_of(line.data)
                digest = md5(line.data, usedforsecurity=False).hexdigest()
                if post_id not in posts:
                    if digest in put_aside:
                        aside[digest] = put_aside[digest]
                    else:
                        unexpected[post_id or f"something that is no post, in {shard.shard_id}"] = None
                    continue
                post = posts[post_id]
                if digest != post.md5:
                    changed[post_id] = None
                repeated += post_id in stored
                stored.add(post_id)
                at = int.from_bytes(md5(post.key.encode(), usedforsecurity=False).digest())
                if post_id in judged or not shard.first <= at <= shard.last:
                    continue
                judged.add(post_id)
                number, where = newest.get(post.key, (-1, shard.shard_id))
                related = where == shard.shard_id or where in ancestors[shard.shard_id]
                if order[post_id] < number or not related:
                    late.append(post_id)
                newest[post.key] = max(number, order[post_id]), shard.shard_id
    in_table = set(table_ids)
    unexpected.update(dict.fromkeys(sorted(in_table.difference(posts))))
    arrived = stored | in_table | {post.id for post in posts.values() if post.md5 in aside}
    sent_ids = [post.id for post in posts.values() if post.state == "written" or post.id in arrived]
    missing = [post_id for post_id in sent_ids if post_id not in in_table and posts[post_id].md5 not in aside]
    return Reconciliation(
        sent=len(sent_ids),
        missed=len(posts) - len(sent_ids),
        in_kinesis=len(stored),
        in_table=len(in_table.intersection(posts)),
        lost_before_kinesis=tuple(post_id for post_id in missing if post_id not in stored),
        lost_before_table=tuple(post_id for post_id in missing if post_id in stored),
        out_of_order=tuple(sorted(late, key=order.__getitem__)),
        changed=tuple(changed),
        unexpected=tuple(unexpected),
        repeated=repeated,
        put_aside=Counter(aside.values()),
    )


def post_id_of(line: bytes) -> str | None:
    """Return `data.id` of a line of X, or None where there is none."""
    try:
        post_id = json.loads(line)["data"]["id"]
    except (ValueError, KeyError, TypeError):
        return None
    return post_id if isinstance(post_id, str) else None


def _ancestors(shards: Sequence[ShardRecords]) -> dict[str, set[str]]:
    """Return all shards that each shard descends from. An ancestor always has fewer of them."""
    parents = {shard.shard_id: shard.parents for shard in shards}
    found: dict[str, set[str]] = {}

    def of(shard_id: str) -> set[str]:
        if shard_id not in found:
            found[shard_id] = set().union(*({parent} | of(parent) for parent in parents.get(shard_id, ())))
        return found[shard_id]

    for shard_id in parents:
        of(shard_id)
    return found


class Scanner(Protocol):
    """What is used of aiobotocore's DynamoDB client."""

    async def scan(self, **request: Any) -> dict[str, Any]:
        """Read one page of a table."""


async def fetch_sent(http: ClientSession, url: str) -> list[SentPost]:
    """Get the ledger of the X stand-in at `url`."""
    async with http.get(f"{url}/admin/ledger", raise_for_status=True) as response:
        rows = (await response.json())["posts"]
    return [SentPost(row["id"], row["key"], row["md5"], row["state"]) for row in rows]


async def fetch_shards(http: ClientSession, url: str, stream: str) -> list[ShardRecords]:
    """Get all that a stream of the local Kinesis at `url` holds. ValueError: it has let go of some already."""

    async def ledger(**query: int) -> dict[str, Any]:
        async with http.get(
            f"{url}/admin/ledger", params={"stream": stream, **query}, raise_for_status=True
        ) as response:
            found: dict[str, Any] = await response.json()
            return found

    shards: list[ShardRecords] = []
    for facts in (await ledger())["shards"]:
        if facts["trimmed"]:
            raise ValueError(f"Kinesis no longer has {facts['trimmed']:,} records: give it a larger --memory-limit")
        records: list[bytes] = []
        offset: int | None = 0
        while offset is not None:
            page = await ledger(shard=facts["shard"], offset=offset)
            records += [base64.b64decode(record["data"]) for record in page["records"]]
            offset = page["next"]
        parents = tuple(map(str, facts["parents"]))
        first, last = int(facts["starting_hash_key"]), int(facts["ending_hash_key"])
        shards.append(ShardRecords(str(facts["shard"]), parents, records, first, last))
    return shards


async def fetch_table_ids(dynamodb: Scanner, table: str) -> list[str]:
    """Get the ids of all items."""
    ids: list[str] = []
    request: dict[str, Any] = {"TableName": table, "ProjectionExpression": "Id", "ConsistentRead": True}
    while True:
        page = await dynamodb.scan(**request)
        ids += [item["Id"]["S"] for item in page["Items"]]
        if "LastEvaluatedKey" not in page:
            return ids
        request["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def read_quarantine(directory: Path) -> list[tuple[bytes, str]]:
    """Return each line, or record that holds none, that the processor put into a local quarantine, with its reason."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in directory.rglob("*.json")]
    return [(base64.b64decode(document["data"]), document["reason"]) for document in documents]


def read_letters(journal: Path) -> dict[str, str]:
    """Return the reason for each line that the daemon put aside beside its journal, by the MD5 of the line."""
    reasons: dict[str, str] = {}
    for name in ("dead-letters.1.jsonl", "dead-letters.jsonl"):
        path = journal / name
        for text in path.read_bytes().splitlines() if path.exists() else ():
            letter = json.loads(text)
            line = letter["line"].encode() if "line" in letter else base64.b64decode(letter["base64"])
            reasons[md5(line, usedforsecurity=False).hexdigest()] = letter["reason"]
    return reasons
