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

A Kinesis record without the magic is one user record, raw. One that has the magic but whose digest does
not fit is no aggregate either, says the format; it is passed on raw, and `Decoded.damage` says why.

**Compressed.** With COMPRESSION=zstd a container travels in a frame of our own, which no other consumer reads:

    +-------------+--------------------------------------------+
    | 4D 5A 53 31 | one zstd frame, with content size and      |
    | "MZS1", 4 B | checksum, of an AggregatedRecord message   |
    +-------------+--------------------------------------------+

The format of the container is described in `aggregation-format.md` of awslabs/amazon-kinesis-producer.

The daemon and the Lambda share this file, so it needs the standard library only. zstd is in it from Python 3.14 on,
which is what the Lambda runs; before that `backports.zstd`, the same code, stands in for it.
"""

import sys
from hashlib import md5
from typing import NamedTuple

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


class UserRecord(NamedTuple):
    """One record as its producer meant it. Keys are None for a raw Kinesis record: its own keys count."""

    data: bytes
    partition_key: str | None = None
    explicit_hash_key: str | None = None


class Decoded(NamedTuple):
    """What a Kinesis record holds, and what is wrong with it, if anything."""

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


class Aggregate:
    """
    A container that grows in encoded bytes, so that its size is known exactly at every moment.

    `size` is the length of what `seal` would return now, `count` the number of user records in it.
    """

    __slots__ = ("_indices", "_records", "_table", "count", "size")

    def __init__(self) -> None:
        self._indices: dict[bytes, bytes] = {}
        self._table: list[bytes] = []
        self._records: list[bytes] = []
        self.count = 0
        self.size = ENVELOPE_BYTES

    def add(self, key: bytes, data: bytes, limit: int | None = None) -> bool:
        """
        Append one user record; `key` is its partition key in UTF-8.

        Returns False, and changes nothing, if `size` would pass `limit`. The first record is always taken.
        """
        index = self._indices.get(key)
        entry = b""
        if index is None:
            number = len(self._indices)
            index = _KEY_INDEX[number] if number < _SMALL else b"\x08" + varint(number)
            entry = (_KEY_LENGTH[len(key)] if len(key) < _SMALL else b"\x0a" + varint(len(key))) + key
        count = len(data)
        if count < _SMALL - _HEAD:
            length = _LENGTH[count]
            inner = len(index) + len(length) + count
            head = _LENGTH[inner]
        else:
            length = b"\x1a" + varint(count)
            inner = len(index) + len(length) + count
            head = b"\x1a" + varint(inner)
        size = self.size + len(entry) + len(head) + inner
        if limit is not None and size > limit and self.count:
            return False
        if entry:
            self._indices[key] = index
            self._table.append(entry)
        self._records += (head, index, length, data)
        self.size = size
        self.count += 1
        return True

    def seal(self) -> bytes:
        """Return the finished container."""
        message = b"".join(self._table) + b"".join(self._records)
        return MAGIC + message + md5(message, usedforsecurity=False).digest()


def decode(data: bytes) -> Decoded:
    """
    Return the user records of one Kinesis record, in order.

    Never raises for its content: what cannot be read as an aggregate is handed on as one raw record, with
    `damage` saying what was wrong if it claimed to be one.
    """
    if data.startswith(COMPRESSED_MAGIC):
        return _decode_compressed(data)
    if not data.startswith(MAGIC):
        return Decoded([UserRecord(data)])
    message = data[len(MAGIC) : -DIGEST_BYTES]
    if len(data) < ENVELOPE_BYTES or md5(message, usedforsecurity=False).digest() != data[-DIGEST_BYTES:]:
        return Decoded([UserRecord(data)], "the digest does not fit the content")
    return _decode_message(message, data)


def compress(container: bytes) -> bytes:
    """Put what `Aggregate.seal` returned into a compressed frame."""
    return COMPRESSED_MAGIC + zstd.compress(container[len(MAGIC) : -DIGEST_BYTES], options=_COMPRESSION)


def _decode_compressed(data: bytes) -> Decoded:
    frame = data[len(COMPRESSED_MAGIC) :]
    try:
        if not 0 <= (zstd.get_frame_info(frame).decompressed_size or 0) <= LARGEST_MESSAGE_BYTES:
            return Decoded([UserRecord(data)], "the content would be larger than any container")
        message = zstd.decompress(frame)
    except zstd.ZstdError as error:
        return Decoded([UserRecord(data)], f"not a zstd frame: {error}")
    return _decode_message(message, data)


def _decode_message(message: bytes, data: bytes) -> Decoded:
    try:
        return Decoded(_read_message(message))
    except (ValueError, IndexError) as error:
        return Decoded([UserRecord(data)], str(error) or "cut short")


def _read_message(message: bytes) -> list[UserRecord]:
    keys: list[str] = []
    hash_keys: list[str] = []
    raw: list[bytes] = []
    for field, value in _fields(message):
        if not isinstance(value, bytes):
            continue
        if field == 1:
            keys.append(value.decode())
        elif field == 2:
            hash_keys.append(value.decode())
        elif field == 3:
            raw.append(value)
    return [_read_record(record, keys, hash_keys) for record in raw]


def _read_record(record: bytes, keys: list[str], hash_keys: list[str]) -> UserRecord:
    key: str | None = None
    hash_key: str | None = None
    data: bytes | None = None
    for field, value in _fields(record):
        if field == 1 and isinstance(value, int):
            key = keys[value]
        elif field == 2 and isinstance(value, int):
            hash_key = hash_keys[value]
        elif field == 3 and isinstance(value, bytes):
            data = value
    if key is None or data is None:
        raise ValueError("a record lacks its partition key or its data")
    return UserRecord(data, key, hash_key)


def _fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """Split a protobuf message into (field number, value); raise ValueError where it cannot be one."""
    fields: list[tuple[int, int | bytes]] = []
    position, end = 0, len(message)
    while position < end:
        tag, position = _read_varint(message, position)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            number, position = _read_varint(message, position)
            fields.append((field, number))
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
        fields.append((field, message[position : position + length]))
        position += length
    return fields


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
