"""
A post -> a DynamoDB item.

`item_of` is a pure function of the record: nothing of it depends on when or how often it runs, so a batch that
Lambda sends again makes the same bytes and changes nothing in the table.

    attribute     type  from                                          always
    Id            S     data.id, exactly as X writes it; the key      yes
    SortId        S     Id, zero-padded to 19 digits; see below       yes
    Bucket        S     "2026-11-23T14#3": hour of Timestamp, shard   yes
    Timestamp     S     the id's, else created_at, else arrival       yes
    Username      S     the author's handle, else AuthorId, else ""   yes
    Message       S     note_tweet.text, else text, unescaped         yes
    AuthorId      S     data.author_id                                no
    DisplayName   S     the author's name                             no
    Lang          S     data.lang                                     no
    RuleTags      SS    the tags of matching_rules                    no
    ExpiresAt     N     epoch seconds: Timestamp + the days to keep   no

Rules and traps:

* Ids are decimal strings of up to 19 digits. As strings "9" sorts after "10", so the range keys of both indexes
  are the padded id, and the order of the index is the order of time. An id that is no number sorts by itself.
* ByTime needs its writes spread, for one index key takes 1,000 write units a second. The spread is a CRC-32 of
  the id: the low bits of a snowflake are a sequence that is nearly always zero, and "modulo" would not spread.
* An empty string cannot be an index key: AuthorId is left out where X did not send it.
* X escapes `&`, `<` and `>` in the text of a post, and only there; a person wants to read them.
* A JSON string may hold half a surrogate pair. DynamoDB takes UTF-8, which has no such thing: it is left out.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zlib import crc32

# An item as DynamoDB's API has it: each value under the letter of its type.
Item = dict[str, dict[str, Any]]

# A snowflake's upper bits are milliseconds since this moment (2010-11-04T01:42:54.657Z); X's published constant.
SNOWFLAKE_EPOCH_MILLISECONDS = 1_288_834_974_657
SNOWFLAKE_SEQUENCE_BITS = 22
# Lower ids were handed out one by one before November 2010 and hold no time (the boundary that TweetedAt found).
FIRST_SNOWFLAKE = 29_700_859_247
# A signed 64-bit number has at most as many digits.
ID_DIGITS = 19

# DynamoDB's limits: an item with its attribute names; a range key of an index.
ITEM_BYTES = 400 * 1024
SORT_KEY_BYTES = 1024

SECONDS_PER_DAY = 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UnstorableError(ValueError):
    """The record can never become an item. The text says why and quotes nothing of the record."""


class Shape(NamedTuple):
    """
    What an operator may choose about items.

    Attributes:
        ttl_days: how long after its Timestamp a post is kept; 0 is for ever.
        time_shards: over how many keys an hour of ByTime is spread, 1 or more; a reader has to ask them all.
            Each carries 1,000 small posts a second.
    """

    ttl_days: int = 30
    time_shards: int = 4


def item_of(data: bytes, arrived_at: float, shape: Shape) -> Item:
    """
    Return the item of one record.

    Args:
        data: a line of X's stream: JSON in UTF-8 with the post under `data`.
        arrived_at: when Kinesis took it, in epoch seconds; the post's time where the post does not say it.
        shape: the operator's choices.

    Raises:
        UnstorableError: it is no post, or no item can hold it.
    """
    line = _parse(data)
    post = _mapping(line, "data")
    post_id = _text(post, "id")
    if not post_id:
        raise UnstorableError("not a post: `data.id` is missing or no string")
    message = _text(_mapping(post, "note_tweet"), "text") or _text(post, "text")
    if not message and not isinstance(post.get("text"), str):
        raise UnstorableError("not a post: `data.text` is missing or no string")
    if len(post_id) > ID_DIGITS and len(post_id.encode()) > SORT_KEY_BYTES:
        raise UnstorableError(f"the id is longer than {SORT_KEY_BYTES} bytes, which no key of an index can be")
    author_id = _text(post, "author_id")
    author = _author(line, author_id)
    posted_at = _posted_at(post, post_id, arrived_at)
    timestamp = posted_at.isoformat(timespec="milliseconds")[:23]
    shard = crc32(post_id.encode()) % shape.time_shards

    item: Item = {
        "Id": {"S": post_id},
        "SortId": {"S": sort_id(post_id)},
        "Bucket": {"S": bucket(timestamp, shard)},
        "Timestamp": {"S": timestamp + "Z"},
        "Username": {"S": _text(author, "username") or author_id},
        "Message": {"S": message.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")},
    }
    if author_id:
        item["AuthorId"] = {"S": author_id}
    if name := _text(author, "name"):
        item["DisplayName"] = {"S": name}
    if lang := _text(post, "lang"):
        item["Lang"] = {"S": lang}
    if tags := _rule_tags(line):
        item["RuleTags"] = {"SS": tags}
    if shape.ttl_days:
        expires_at = int(posted_at.timestamp()) + shape.ttl_days * SECONDS_PER_DAY
        item["ExpiresAt"] = {"N": str(expires_at)}

    # Nothing but the author's id is stored twice, so that a short record needs no closer look.
    if len(data) > ITEM_BYTES // 4 and (size := item_size(item)) > ITEM_BYTES:
        raise UnstorableError(f"the item would have {size} bytes, and DynamoDB takes {ITEM_BYTES}")
    return item


def sort_id(post_id: str) -> str:
    """Return the range key of the indexes: as a string it sorts as the number does."""
    return post_id.zfill(ID_DIGITS) if post_id.isascii() and post_id.isdigit() else post_id


def bucket(timestamp: str, shard: int) -> str:
    """Return the hash key of ByTime for a Timestamp and a shard from 0 on."""
    return f"{timestamp[:13]}#{shard}"


def item_size(item: Item) -> int:
    """Return the bytes that DynamoDB counts: names and values in UTF-8; three for a set and one for each member."""
    size = 0
    for name, value in item.items():
        size += len(name.encode())
        for content in value.values():
            if isinstance(content, str):
                size += len(content.encode())
            else:
                size += 3 + sum(len(member.encode()) + 1 for member in content)
    return size


def _parse(data: bytes) -> Mapping[str, Any]:
    # Decoded here, because json.loads would guess UTF-16 from zero bytes and let broken UTF-8 pass.
    try:
        line = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise UnstorableError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise UnstorableError(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise UnstorableError("not readable: nested too deeply") from None
    except ValueError:
        raise UnstorableError("not readable: a number with thousands of digits") from None
    if not isinstance(line, dict):
        raise UnstorableError("not a post: the JSON is no object")
    return line


def _mapping(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = of.get(name)
    return value if isinstance(value, dict) else {}


def _list(of: Mapping[str, Any], name: str) -> list[Any]:
    value = of.get(name)
    return value if isinstance(value, list) else []


def _text(of: Mapping[str, Any], name: str) -> str:
    value = of.get(name)
    if not isinstance(value, str):
        return ""
    return value if value.isascii() else value.encode("utf-8", "ignore").decode()


def _author(line: Mapping[str, Any], author_id: str) -> Mapping[str, Any]:
    for user in _list(_mapping(line, "includes"), "users"):
        if isinstance(user, dict) and user.get("id") == author_id:
            return user
    return {}


def _rule_tags(line: Mapping[str, Any]) -> list[str]:
    tags = {_text(rule, "tag") for rule in _list(line, "matching_rules") if isinstance(rule, dict)}
    tags.discard("")
    # Sorted, because a set has no order and the item must not depend on X's.
    return sorted(tags)


def _posted_at(post: Mapping[str, Any], post_id: str, arrived_at: float) -> datetime:
    written = _created_at(post)
    told = _told_by(post_id)
    # X writes whole seconds, the id has the milliseconds that put posts in order; if they agree, it says more.
    if told is not None and (written is None or abs(told - written) < timedelta(seconds=1)):
        return told
    return written or _EPOCH + timedelta(seconds=arrived_at)


def _created_at(post: Mapping[str, Any]) -> datetime | None:
    try:
        moment = datetime.fromisoformat(_text(post, "created_at"))
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _told_by(post_id: str) -> datetime | None:
    if not (post_id.isascii() and post_id.isdigit() and len(post_id) <= ID_DIGITS and int(post_id) >= FIRST_SNOWFLAKE):
        return None
    milliseconds = (int(post_id) >> SNOWFLAKE_SEQUENCE_BITS) + SNOWFLAKE_EPOCH_MILLISECONDS
    return _EPOCH + timedelta(milliseconds=milliseconds)
