"""
What one write request may hold, and where its records belong.

The numbers are those of the service model of API version 2013-12-02 (as shipped with botocore 1.43): 500 records and
10 MiB a request, keys of 1 to 256 Unicode characters; how large a record may be is the stream's setting. A record's
size is its data plus its partition key in UTF-8, for the record, the request and the shard alike. Where the model does
not tell which error a broken limit gets, the one seen from the service is used (records over the limit of a request:
InvalidArgumentException; a member that breaks its shape: ValidationException).
"""

from collections.abc import Sequence
from hashlib import md5

import msgspec

from local.kinesis.errors import KinesisError
from local.kinesis.shards import HASH_KEYS, MIB

MAX_REQUEST_RECORDS = 500
MAX_REQUEST_BYTES = 10 * MIB
MAX_KEY_CHARACTERS = 256


class Entry(msgspec.Struct, rename="pascal", forbid_unknown_fields=True, gc=False):
    """One record as it is offered: the members of a PutRecords entry."""

    data: bytes
    partition_key: str
    explicit_hash_key: str | None = None


def check_entries(entries: Sequence[Entry], max_record_bytes: int) -> list[int]:
    """Return the entries' sizes in bytes; raise KinesisError if the request breaks a limit."""
    if not 1 <= len(entries) <= MAX_REQUEST_RECORDS:
        relation = "greater than or equal to 1" if not entries else f"less than or equal to {MAX_REQUEST_RECORDS}"
        raise constraint("records", f"Member must have length {relation}")
    sizes: list[int] = []
    for number, entry in enumerate(entries, 1):
        key = entry.partition_key
        if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
            raise constraint(
                f"records.{number}.member.partitionKey",
                f"Member must have length between 1 and {MAX_KEY_CHARACTERS}, both included",
            )
        if entry.explicit_hash_key is not None:
            parse_hash_key(entry.explicit_hash_key, "ExplicitHashKey")
        size = len(entry.data) + len(key.encode())
        if size > max_record_bytes:
            raise KinesisError(
                "InvalidArgumentException",
                f"Record {number} has {size} bytes with its partition key; the stream takes {max_record_bytes}.",
            )
        sizes.append(size)
    if sum(sizes) > MAX_REQUEST_BYTES:
        raise KinesisError("InvalidArgumentException", "Records size exceeds 10 MB limit")
    return sizes


def hash_key(entry: Entry) -> int:
    """Return the hash key of an entry that was checked: its explicit one, or the MD5 of its partition key."""
    if entry.explicit_hash_key is not None:
        return int(entry.explicit_hash_key)
    return int.from_bytes(md5(entry.partition_key.encode(), usedforsecurity=False).digest(), "big")


def parse_hash_key(value: str, name: str) -> int:
    """Return the number; `name` is the member that the refusal names."""
    if not (value.isascii() and value.isdecimal() and len(value) <= 39 and (value == "0" or value[0] != "0")):
        raise constraint(name, "Member must satisfy regular expression pattern: 0|([1-9]\\d{0,38})")
    number = int(value)
    if number >= HASH_KEYS:
        raise KinesisError(
            "InvalidArgumentException",
            f"Invalid {name}. {name} must be in the range: [0, 2^128-1]. Specified value was {value}",
        )
    return number


def constraint(member: str, rule: str) -> KinesisError:
    """Return the refusal of a request that breaks a rule of the service model."""
    return KinesisError(
        "ValidationException", f"1 validation error detected: Value at '{member}' failed to satisfy constraint: {rule}"
    )
