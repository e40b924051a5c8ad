"""
The aggregated-record format of the Kinesis Producer Library: many user records in one Kinesis record.

    +-------------+--------------------------------------+------------------+
    | F3 89 9A C2 | message AggregatedRecord (protobuf)  | MD5 of the       |
    | magic, 4 B  |                                      | message, 16 B    |
    +-------------+--------------------------------------+------------------+

    AggregatedRecord                          tag byte
      1  partition_key_table      string *    0A  length  UTF-8
      2  explicit_hash_key_table  string *    12  length  decimal digits
      3  records                  Record *    1A  length  Record

    Record
      1  partition_key_index      uint        08  varint   place in the table above
      2  explicit_hash_key_index  uint ?      10  varint   place in the table above
      3  data                     bytes       1A  length   the user record
      4  tags                     Tag *       22  length   not used by anyone; skipped

Lengths and numbers are protobuf varints: seven bits a byte, low bits first, the high bit says "more".
Millrace writes the tables first and gives its records no explicit hash key: a user record belongs to the
shard that the MD5 of its partition key points at, which is where its container is sent.

A Kinesis record without the magic is one user record, raw. One that has the magic but whose digest or structure does
not fit is damaged: `Decoded.damage` says why, and `Decoded.records` has those user records that are still whole.
Nothing vouches for their bytes then, so whoever takes them should keep the container as well. (The format's own rule,
to take a container without its digest for one raw record, would give up all of its records for one wrong byte.)

**Compressed.** With COMPRESSION=zstd a container travels in a frame of our own, which no other consumer reads:

    +-------------+--------------------------------------------+
    | 4D 5A 53 31 | one zstd frame, with content size and      |
    | "MZS1", 4 B | checksum, of an AggregatedRecord message   |
    +-------------+--------------------------------------------+

The last byte of that magic is the frame's version; of another one nothing is read.

The format of the container is described in `aggregation-format.md` of awslabs/amazon-kinesis-producer.

The daemon and the Lambda share this file, so it needs the standard library only. zstd is in it from Python 3.14 on,
which is what the Lambda runs; before that `backports.zstd`, the same code, stands in for it.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import md5
from typing import NamedTuple, Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"\xf3\x89\x9a\xc2"
DIGEST_BYTES = 16
ENVELOPE_BYTES = len(MAGIC) + DIGEST_BYTES
COMPRESSED_MAGIC = b"MZS1"
# Of the levels 1 to 6 on recorded posts, the one after which a per cent more costs twice the time.
COMPRESSION_LEVEL = 3
_COMPRESSION: dict[int, int] = {
    zstd.CompressionParameter.compression_level: COMPRESSION_LEVEL,
    zstd.CompressionParameter.checksum_flag: 1,
}
# No record of Kinesis is larger than 10 MiB, and no post of X shrinks a hundred times: beyond lies a bomb.
LARGEST_MESSAGE_BYTES = 64 << 20
_UNPACKED_AT_ONCE = 64


class UserRecord(NamedTuple):
    """One record as its producer meant it. Keys are None for a raw Kinesis record: its own keys count."""

    data: bytes
    partition_key: str | None = None
    explicit_hash_key: str | None = None


class Decoded(NamedTuple):
    """The user records of a Kinesis record; and what is wrong with it, if anything, when there may have been more."""

    records: list[UserRecord]
    damage: str | None = None


def varint(number: int) -> bytes:
    """Protobuf's encoding of a non-negative integer."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


# Nearly every length and index is below this: one look-up instead of a loop and a concatenation.
_SMALL = 1 << 14
_KEY_LENGTH = [b"\x0a" + varint(number) for number in range(_SMALL)]
_KEY_INDEX = [b"\x08" + varint(number) for number in range(_SMALL)]
_LENGTH = [b"\x1a" + varint(number) for number in range(_SMALL)]
# What stands in a record before its data is shorter than this.
_HEAD = 32


class Keyed(Protocol):
    """What goes into a container: `key` is the partition key in UTF-8, `line` the data."""

    @property
    def key(self) -> bytes: ...  # noqa: D102 - the class says it
    @property
    def line(self) -> bytes: ...  # noqa: D102 - the class says it


class _Keyed(NamedTuple):
    key: bytes
    line: bytes


class Aggregate:
    """
    A container that grows in encoded bytes, so that its size is known exactly at every moment.

    `size` is the length of what `seal` would return now, `count` the number of user records in it.
    """

    __slots__ = ("_indices", "_records", "_table", "count", "size")

    def __init__(self) -> None:
        self._indices: dict[bytes, bytes] = {}
        self._table: list[bytes] = [MAGIC]
        self._records: list[bytes] = []
        self.count = 0
        self.size = ENVELOPE_BYTES

    def extend(self, records: Iterable[Keyed], limit: int | None = None) -> int:
        """
        Append user records until one would make `size` pass `limit`.

        Returns how many were taken. The first record of a container is always taken.
        """
        indices, table, pieces = self._indices, self._table, self._records
        size, before = self.size, self.count
        count = before
        for record in records:
            key, data = record.key, record.line
            index = indices.get(key)
            entry = b""
            if index is None:
                number = len(indices)
                index = _KEY_INDEX[number] if number < _SMALL else b"\x08" + varint(number)
                entry = (_KEY_LENGTH[len(key)] if len(key) < _SMALL else b"\x0a" + varint(len(key))) + key
            length = len(data)
            if length < _SMALL - _HEAD:
                prefix = _LENGTH[length]
                inner = len(index) + len(prefix) + length
                head = _LENGTH[inner]
            else:
                prefix = b"\x1a" + varint(length)
                inner = len(index) + len(prefix) + length
                head = b"\x1a" + varint(inner)
            grown = size + len(entry) + len(head) + inner
            if limit is not None and grown > limit and count:
                break
            if entry:
                indices[key] = index
                table.append(entry)
            pieces += (head, index, prefix, data)
            size = grown
            count += 1
        self.size, self.count = size, count
        return count - before

    def add(self, key: bytes, data: bytes, limit: int | None = None) -> bool:
        """Append one user record; False, and nothing has changed, if `extend` would not take it."""
        return self.extend([_Keyed(key, data)], limit) == 1

    def seal(self) -> bytes:
        """Return the finished container."""
        container = b"".join(self._table + self._records)
        return container + md5(memoryview(container)[len(MAGIC) :], usedforsecurity=False).digest()


def decode(data: bytes) -> Decoded:
    """Return the user records of one Kinesis record, in order. Never raises for its content."""
    if data.startswith(COMPRESSED_MAGIC):
        return _decode_compressed(data[len(COMPRESSED_MAGIC) :])
    if data.startswith(COMPRESSED_MAGIC[:-1]):
        return Decoded([], "compressed by a newer version of Millrace: update this one")
    if not data.startswith(MAGIC):
        return Decoded([UserRecord(data)])
    message = data[len(MAGIC) : -DIGEST_BYTES]
    if len(data) >= ENVELOPE_BYTES and md5(message, usedforsecurity=False).digest() == data[-DIGEST_BYTES:]:
        return _read_message(message)
    # It may be cut short: then what stands at its end is no digest.
    return Decoded(_read_message(data[len(MAGIC) :]).records, "the digest does not fit the content")


def compress(container: bytes) -> bytes:
    """Put what `Aggregate.seal` returned into a compressed frame."""
    return COMPRESSED_MAGIC + zstd.compress(container[len(MAGIC) : -DIGEST_BYTES], options=_COMPRESSION)


def _decode_compressed(frame: bytes) -> Decoded:
    unpacking = zstd.ZstdDecompressor()
    try:
        message = unpacking.decompress(frame, LARGEST_MESSAGE_BYTES)
    except zstd.ZstdError as error:
        return Decoded(_read_message(b"".join(_up_to_the_damage(frame))).records, f"not a zstd frame: {error}")
    if unpacking.eof and not unpacking.unused_data:
        return _read_message(message)
    if not unpacking.eof and not unpacking.needs_input:
        return Decoded([], "the content would be larger than any container")
    return Decoded(_read_message(message).records, "the zstd frame does not end where the record does")


def _up_to_the_damage(frame: bytes) -> Iterator[bytes]:
    """Unpack what can be of a damaged frame, bit by bit: a call that meets the damage returns nothing of before."""
    unpacking = zstd.ZstdDecompressor()
    pieces = (frame[place : place + _UNPACKED_AT_ONCE] for place in range(0, len(frame), _UNPACKED_AT_ONCE))
    with suppress(zstd.ZstdError):
        yield from map(unpacking.decompress, pieces)


def _read_message(message: bytes) -> Decoded:
    keys: list[str] = []
    hash_keys: list[str] = []
    raw: list[bytes] = []
    damage: list[str] = []
    try:
        for field, value in _fields(message):
            if not isinstance(value, bytes):
                continue
            if field == 3:
                raw.append(value)
            elif field in {1, 2}:
                (keys if field == 1 else hash_keys).append(_key(value, damage))
    except (ValueError, IndexError) as error:
        damage.append(str(error))
    records = [found for record in raw if (found := _read_record(record, keys, hash_keys, damage))]
    return Decoded(records, damage[0] if damage else None)


def _key(value: bytes, damage: list[str]) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        damage.append(str(error))
        return value.decode(errors="replace")


def _read_record(record: bytes, keys: list[str], hash_keys: list[str], damage: list[str]) -> UserRecord | None:
    """Return a record, if all of its data is there; what is wrong with it goes to `damage`."""
    key: int | None = None
    hash_key: int | None = None
    data: bytes | None = None
    try:
        # What Millrace writes, and nearly all that comes here: a small index, then the data, to the end.
        if record[:1] == b"\x08" and record[1] < 0x80 and record[2:3] == b"\x1a":
            length, start = _read_varint(record, 3)
            if start + length == len(record) and record[1] < len(keys):
                return UserRecord(record[start:], keys[record[1]])
        for field, value in _fields(record):
            if field == 1 and isinstance(value, int):
                key = value
            elif field == 2 and isinstance(value, int):
                hash_key = value
            elif field == 3 and isinstance(value, bytes):
                data = value
    except (ValueError, IndexError) as error:
        damage.append(str(error))
    if data is None:
        damage.append("a record lacks its data")
        return None
    if key is None or key >= len(keys) or (hash_key is not None and hash_key >= len(hash_keys)):
        damage.append("a record lacks its partition key, or a key lacks its place in the table")
        return UserRecord(data)
    return UserRecord(data, keys[key], None if hash_key is None else hash_keys[hash_key])


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Split a protobuf message into (field number, value); raise ValueError or IndexError where it cannot be one."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _read_varint(message, position)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            number, position = _read_varint(message, position)
            yield field, number
            continue
        if wire_type == 2:
            length, position = _read_varint(message, position)
        elif wire_type == 1:
            length = 8
        elif wire_type == 5:
            length = 4
        else:
            raise ValueError(f"wire type {wire_type} is not one of this format")
        if position + length > end:
            raise ValueError("a field is longer than the message")
        yield field, message[position : position + length]
        position += length


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
