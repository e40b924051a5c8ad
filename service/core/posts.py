"""
Lines of the stream -> posts, or why not.

Only the id and the partition key are read; the bytes of the line stay as they came and are the payload. A full
parse would cost ten times as much and could only lose something.

A post without the field that PARTITION_KEY names (X sends `author_id` only where it was asked for) is keyed by
its id: it has no neighbours to keep an order with.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from service.core.limits import PARTITION_KEY_CHARACTERS
from service.core.records import DropReason, Post, Rejected

# What PARTITION_KEY may name.
PARTITION_KEYS = ("author_id", "id", "conversation_id")


class PostReader:
    """Reads posts out of lines; `partition_key` is one of `PARTITION_KEYS`."""

    def __init__(self, partition_key: str = "author_id") -> None:
        # A struct of just the wanted fields lets the decoder skip everything else without building it.
        fields: list[tuple[str, type, object]] = [("id", str, "")]
        if partition_key != "id":
            fields.append((partition_key, str, ""))
        data = msgspec.defstruct("Data", fields, gc=False)
        line = msgspec.defstruct(
            "Line", [("data", data | None, None), ("errors", msgspec.Raw, msgspec.Raw())], gc=False
        )
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(line).decode
        self._partition_key = partition_key

    def read(self, lines: Iterable[bytes], now: float) -> tuple[list[Post], list[Rejected]]:
        """
        Turn lines into posts, in order; what is no post comes back with its reason.

        `now` is when they arrived, in seconds.
        """
        posts: list[Post] = []
        rejected: list[Rejected] = []
        decode, partition_key = self._decode, self._partition_key
        for line in lines:
            try:
                read = decode(line)
            except msgspec.ValidationError:
                rejected.append(Rejected(line, DropReason.NO_ID))
                continue
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                rejected.append(Rejected(line, DropReason.NOT_JSON))
                continue
            data = read.data
            if data is None or not data.id:
                x_error = data is None and bytes(read.errors)
                rejected.append(Rejected(line, DropReason.X_ERROR if x_error else DropReason.NO_ID))
                continue
            key = getattr(data, partition_key) or data.id
            if len(key) > PARTITION_KEY_CHARACTERS:
                rejected.append(Rejected(line, DropReason.KEY_TOO_LONG))
                continue
            posts.append(Post(line, data.id, key.encode(), now))
        return posts, rejected
