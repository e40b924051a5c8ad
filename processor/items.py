"""
A record -> a DynamoDB item.

`item_of` is a pure function of the record: nothing of it depends on when or how often it runs, so a batch that
Lambda sends again makes the same bytes and changes nothing in the table.

    attribute     type  of a post of X                                always
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

Records that are no posts (clicks, orders, readings of sensors) are told by ID_POINTER, a JSON pointer:

    Id            S     the text or whole number at ID_POINTER        yes
    Timestamp     S     the time at TIME_POINTER, else arrival        yes
    SortId        S     Timestamp and Id                              yes
    Message       S     the record as it came                         yes
    Bucket, ExpiresAt   as above

Rules and traps:

* X's ids are decimal strings of up to 19 digits. As strings "9" sorts after "10", so the range keys of both indexes
  are the padded id, and the order of the index is the order of time. An id that is no number sorts by itself.
* ByTime needs its writes spread, for one index key takes 1,000 write units a second. The spread is a CRC-32 of
  the id: the low bits of a snowflake are a sequence that is nearly always zero, and "modulo" would not spread.
* An empty string cannot be an index key: AuthorId is left out where X did not send it.
* X escapes `&`, `<` and `>` in the text of a post, and only there; a person wants to read them.
* A JSON string may hold half a surrogate pair. DynamoDB takes UTF-8, which has no such thing: it is left out.
* `deleted#ID` is the key of a tombstone (see table.py); no record may have such an id.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, NamedTuple
from zlib import crc32

# Attributes by name: a text, a number, or a set of texts. Never an empty set.
Item = dict[str, str | int | list[str]]

# A snowflake's upper bits are milliseconds since this moment (2010-11-04T01:42:54.657Z); X's published constant.
SNOWFLAKE_EPOCH_MILLISECONDS = 1_288_834_974_657
SNOWFLAKE_SEQUENCE_BITS = 22
# Lower ids were handed out one by one before November 2010 and hold no time (the boundary that TweetedAt found).
FIRST_SNOWFLAKE = 29_700_859_247
# A signed 64-bit number has at most as many digits.
ID_DIGITS = 19
TOMBSTONE_PREFIX = "deleted#"

# DynamoDB's limits: an item with its attribute names; a range key of an index.
ITEM_BYTES = 400 * 1024
SORT_KEY_BYTES = 1024

SECONDS_PER_DAY = 86_400
# A number of seconds that large would be after the year 5000; of milliseconds, it is after March 1973.
LEAST_MILLISECONDS = 100_000_000_000
# In milliseconds since 1970, the years that a Timestamp can be of.
YEAR_1 = -62_135_596_800_000
YEAR_10000 = 253_402_300_800_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class UnstorableError(ValueError):
    """The record can never become an item. The text says why and quotes nothing of the record."""


class Shape(NamedTuple):
    """
    What an operator may choose about items.

    Attributes:
        ttl_days: how long after its Timestamp a record is kept; 0 is for ever.
        time_shards: over how many keys an hour of ByTime is spread, 1 or more; a reader has to ask them all.
            Each carries 1,000 small posts a second.
        id_pointer: JSON pointer (RFC 6901) to what tells records apart; empty for posts of X.
        time_pointer: JSON pointer to the time of a record that is no post; empty for its arrival.
    """

    ttl_days: int = 30
    time_shards: int = 4
    id_pointer: str = ""
    time_pointer: str = ""


def item_of(data: bytes, arrived_at: float, shape: Shape) -> Item:
    """
    Return the item of one record.

    Args:
        data: JSON in UTF-8: a line of X's stream with the post under `data`, or whatever `shape.id_pointer` is for.
        arrived_at: when Kinesis took it, in epoch seconds; the record's time where it does not say it.
        shape: the operator's choices.

    Raises:
        UnstorableError: it is no post, or has no id, or no item can hold it.
    """
    text, value = _parse(data)
    arrived = round(arrived_at * 1000)
    item = _record(value, text, arrived, shape) if shape.id_pointer else _post(value, arrived, shape)
    # Nothing but ids is stored twice, and no character grows, so that a short record needs no closer look.
    if len(data) > SORT_KEY_BYTES // 2:
        _check_sizes(item, len(data))
    return item


def _post(line: Any, arrived: int, shape: Shape) -> Item:
    if not isinstance(line, dict):
        raise UnstorableError("not a post: the JSON is no object")
    post = _mapping(line, "data")
    post_id = _text(post, "id")
    if not post_id:
        raise UnstorableError("not a post: `data.id` is missing or no string")
    message = _text(_mapping(post, "note_tweet"), "text") or _text(post, "text")
    if not message and not isinstance(post.get("text"), str):
        raise UnstorableError("not a post: `data.text` is missing or no string")
    author_id = _text(post, "author_id")
    author = _author(line, author_id)
    if "&" in message:
        message = message.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    item = _keyed(post_id, sort_id(post_id), _posted(post, post_id, arrived), shape)
    item["Username"] = _text(author, "username") or author_id
    item["Message"] = message
    if author_id:
        item["AuthorId"] = author_id
    if name := _text(author, "name"):
        item["DisplayName"] = name
    if lang := _text(post, "lang"):
        item["Lang"] = lang
    if tags := _rule_tags(line):
        item["RuleTags"] = tags
    return item


def _record(value: Any, text: str, arrived: int, shape: Shape) -> Item:
    record_id = value_at(value, shape.id_pointer)
    if isinstance(record_id, int) and not isinstance(record_id, bool):
        record_id = str(record_id)
    if not isinstance(record_id, str) or not (record_id := _clean(record_id)):
        raise UnstorableError(f"no id: at {shape.id_pointer} there is no text and no whole number")
    moment = milliseconds_of(value_at(value, shape.time_pointer)) if shape.time_pointer else None
    item = _keyed(record_id, "", arrived if moment is None else moment, shape)
    # Ids of others do not sort by age, as those of X do.
    item["SortId"] = f"{item['Timestamp']}#{record_id}"
    item["Message"] = text
    return item


def _keyed(key: str, sort_key: str, moment: int, shape: Shape) -> Item:
    """Return what every item has; `moment` is in milliseconds since 1970."""
    if key.startswith(TOMBSTONE_PREFIX):
        raise UnstorableError(f"the id begins with {TOMBSTONE_PREFIX}, which only a tombstone's may")
    timestamp = f"{_second(moment // 1000)}.{moment % 1000:03}"
    item: Item = {
        "Id": key,
        "SortId": sort_key,
        "Bucket": bucket(timestamp, crc32(key.encode()) % shape.time_shards),
        "Timestamp": timestamp + "Z",
    }
    if shape.ttl_days:
        item["ExpiresAt"] = moment // 1000 + shape.ttl_days * SECONDS_PER_DAY
    return item


# A stream has many posts of one second.
@lru_cache(4096)
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]


def _check_sizes(item: Item, data_bytes: int) -> None:
    if len(str(item["SortId"]).encode()) > SORT_KEY_BYTES:
        raise UnstorableError(f"the id is longer than {SORT_KEY_BYTES} bytes, which no key of an index can be")
    if len(str(item.get("AuthorId", "")).encode()) > SORT_KEY_BYTES * 2:
        raise UnstorableError(f"the author's id is longer than {SORT_KEY_BYTES * 2} bytes, which no key can be")
    if data_bytes > ITEM_BYTES // 4 and (size := item_size(item)) > ITEM_BYTES:
        raise UnstorableError(f"the item would have {size} bytes, and DynamoDB takes {ITEM_BYTES}")


def sort_id(post_id: str) -> str:
    """Return the range key of the indexes: as a string it sorts as the number does."""
    return post_id.zfill(ID_DIGITS) if post_id.isascii() and post_id.isdigit() else post_id


def bucket(timestamp: str, shard: int) -> str:
    """Return the hash key of ByTime for a Timestamp and a shard from 0 on."""
    return f"{timestamp[:13]}#{shard}"


def to_json(item: Item) -> str:
    """Return the item as DynamoDB's API has it: each value under the letter of its type."""
    parts = []
    for name, value in item.items():
        if isinstance(value, str):
            parts.append(f'"{name}":{{"S":{encode_basestring(value)}}}')
        elif isinstance(value, int):
            parts.append(f'"{name}":{{"N":"{value}"}}')
        else:
            parts.append(f'"{name}":{{"SS":[{",".join(map(encode_basestring, value))}]}}')
    return f"{{{','.join(parts)}}}"


def item_size(item: Item) -> int:
    """
    Return the bytes that DynamoDB counts, at most.

    Names and values count in UTF-8, a set three more and one for each member. A number takes about half of its
    digits there; here it counts with all.
    """
    size = 0
    for name, value in item.items():
        size += len(name.encode())
        if isinstance(value, list):
            size += 3 + sum(len(member.encode()) + 1 for member in value)
        else:
            size += len(str(value).encode())
    return size


def value_at(value: Any, pointer: str) -> Any:
    """Return what a JSON pointer points at, None where there is nothing."""
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isascii() and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def milliseconds_of(time: Any) -> int | None:
    """Return the milliseconds since 1970 of an ISO 8601 text or of a number of seconds or milliseconds, else None."""
    try:
        if isinstance(time, str):
            moment = datetime.fromisoformat(time)
            # Without an offset it is UTC.
            milliseconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // _MILLISECOND
        elif isinstance(time, int | float) and not isinstance(time, bool):
            milliseconds = round(time if abs(time) >= LEAST_MILLISECONDS else time * 1000)
        else:
            return None
    except (ValueError, OverflowError):
        return None
    return milliseconds if YEAR_1 <= milliseconds < YEAR_10000 else None


def _parse(data: bytes) -> tuple[str, Any]:
    # Decoded here, because json.loads would guess UTF-16 from zero bytes and let broken UTF-8 pass.
    try:
        text = data.decode()
        return text, json.loads(text)
    except UnicodeDecodeError as error:
        raise UnstorableError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise UnstorableError(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise UnstorableError("not readable: nested too deeply") from None
    except ValueError:
        raise UnstorableError("not readable: a number with thousands of digits") from None


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
    return value if value.isascii() else _clean(value)


def _clean(text: str) -> str:
    return text.encode("utf-8", "ignore").decode()


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


def _posted(post: Mapping[str, Any], post_id: str, arrived: int) -> int:
    """Return the moment of a post in milliseconds since 1970."""
    created_at = _text(post, "created_at")
    # No time is longer, and what is kept must be small.
    written = _written(created_at) if len(created_at) < 40 else None
    told = _told_by(post_id)
    # X writes whole seconds, the id has the milliseconds that put posts in order; if they agree, it says more.
    if told is not None and (written is None or abs(told - written) < 1000):
        return told
    return arrived if written is None else written


_written = lru_cache(4096)(milliseconds_of)


def _told_by(post_id: str) -> int | None:
    if not (post_id.isascii() and post_id.isdigit() and len(post_id) <= ID_DIGITS):
        return None
    number = int(post_id)
    return (number >> SNOWFLAKE_SEQUENCE_BITS) + SNOWFLAKE_EPOCH_MILLISECONDS if number >= FIRST_SNOWFLAKE else None
