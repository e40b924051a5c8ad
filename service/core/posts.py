"""
Lines of the source -> posts, or why not.

Only the id and the partition key are read; the bytes of the line stay as they came and are the payload. A full
parse would cost ten times as much and could only lose something.

A post of X without the field that PARTITION_KEY names (X sends `author_id` only where it was asked for) is keyed by
its id: it has no neighbours to keep an order with. Records that are not X's posts are keyed by a JSON pointer
(RFC 6901), such as `/user/id`; they need no id, but without a key they have no place.
"""

import json
import re
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

import msgspec

from service.core.limits import PARTITION_KEY_CHARACTERS
from service.core.records import DropReason, Post, Rejected

# What PARTITION_KEY may name, beside a JSON pointer.
PARTITION_KEYS = ("author_id", "id", "conversation_id")
POINTER = re.compile(r'(/([^/~"\\\x00-\x1f]|~[01])+)+')


class PostReader:
    """Reads posts out of lines; `partition_key` is one of `PARTITION_KEYS`, or a JSON pointer into an object."""

    def __init__(self, partition_key: str = "author_id") -> None:
        if partition_key.startswith("/"):
            self._find = _record_finder(partition_key)
        else:
            self._find = _post_finder(partition_key)

    def read(
        self, lines: Iterable[bytes], now: float, positions: Iterable[int] = repeat(-1)
    ) -> tuple[list[Post], list[Rejected]]:
        """
        Turn lines into posts, in order; what is no post comes back with its reason.

        `now` is when they arrived, in seconds; `positions` are their places in the journal, if they come from there.
        """
        posts: list[Post] = []
        rejected: list[Rejected] = []
        find = self._find
        for line, position in zip(lines, positions, strict=False):
            try:
                post_id, key = find(line)
                post = Post(line, post_id, key.encode(), now, position)
            except msgspec.ValidationError:
                rejected.append(Rejected(line, DropReason.NO_ID, position))
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                rejected.append(Rejected(line, DropReason.NOT_JSON, position))
            except _NotAPostError as error:
                rejected.append(Rejected(line, error.reason, position))
            else:
                if len(key) > PARTITION_KEY_CHARACTERS:
                    rejected.append(Rejected(line, DropReason.KEY_TOO_LONG, position))
                else:
                    posts.append(post)
        return posts, rejected


class _NotAPostError(Exception):
    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


_Finder = Callable[[bytes], tuple[str, str]]


def _post_finder(partition_key: str) -> _Finder:
    """Return what finds (id, partition key) in a post of X."""
    # A struct of just the wanted fields lets the decoder skip everything else without building it.
    # Where the id is the key, the second field has a name that no post has: a post without a key is keyed by its id.
    fields: list[tuple[str, Any, object]] = [("id", str, ""), ("key", str | None, None)]
    name = partition_key if partition_key != "id" else "-"
    data = msgspec.defstruct("Data", fields, rename={"key": name}, gc=False)
    line = msgspec.defstruct("Line", [("data", data | None, None), ("errors", msgspec.Raw, msgspec.Raw())], gc=False)
    decode: Callable[[bytes], Any] = msgspec.json.Decoder(line).decode

    def find(text: bytes) -> tuple[str, str]:
        try:
            read = decode(text)
        except msgspec.DecodeError as error:
            # Half a surrogate pair, as a cut emoji leaves it: JSON allows it, and the standard library reads it.
            if isinstance(error, msgspec.ValidationError) or b"\\ud" not in text.lower():
                raise
            read = msgspec.convert(_read_leniently(text), line)
        data = read.data
        if data is None or not data.id:
            raise _NotAPostError(DropReason.X_ERROR if data is None and bytes(read.errors) else DropReason.NO_ID)
        return data.id, data.key or data.id

    return find


def _read_leniently(text: bytes) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise msgspec.DecodeError(str(error)) from None


def _record_finder(pointer: str) -> _Finder:
    """Return what finds ("", partition key) in any JSON object."""
    names = [part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/")]
    kind: Any = str | int | float
    for name in reversed(names):
        kind = msgspec.defstruct("Part", [("part", kind)], rename={"part": name}, gc=False)
    decode: Callable[[bytes], Any] = msgspec.json.Decoder(kind).decode

    def find(line: bytes) -> tuple[str, str]:
        try:
            value = decode(line)
        except msgspec.ValidationError:
            raise _NotAPostError(DropReason.NO_KEY) from None
        for _ in names:
            value = value.part
        if value == "":
            raise _NotAPostError(DropReason.NO_KEY)
        return "", str(value)

    return find
