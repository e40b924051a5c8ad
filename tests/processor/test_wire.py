import base64
from hashlib import md5
from random import Random
from typing import Any

import pytest
from aws_kinesis_agg.aggregator import RecordAggregator
from aws_kinesis_agg.deaggregator import deaggregate_records
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.wire import (
    COMPRESSED_MAGIC,
    DIGEST_BYTES,
    ENVELOPE_BYTES,
    LARGEST_MESSAGE_BYTES,
    MAGIC,
    Aggregate,
    UserRecord,
    compress,
    decode,
    varint,
)

# Kinesis takes partition keys of 1 to 256 Unicode characters; UTF-8 knows no surrogates.
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)
HASH_KEYS = st.integers(0, 2**128 - 1).map(str)
RECORDS = st.lists(st.tuples(KEYS, st.binary(max_size=300)), max_size=30)
# 127 and 128, 16,383 and 16,384: where a varint grows by a byte, and where the look-up table ends.
EDGES = [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152]

THREE_POSTS = [("42", b'{"data":{"id":"1"}}'), ("横浜", "こんにちは".encode()), ("42", b"")]


def sealed(records: list[tuple[str, bytes]]) -> bytes:
    """A container of Millrace with these records."""
    aggregate = Aggregate()
    for key, data in records:
        aggregate.add(key.encode(), data)
    return aggregate.seal()


def enveloped(message: bytes) -> bytes:
    """Any message under the right magic and digest."""
    return MAGIC + message + md5(message, usedforsecurity=False).digest()


def flipped(data: bytes, bit: int) -> bytes:
    """The same bytes with one bit changed."""
    return bytes(byte ^ (1 << bit % 8) if place == bit // 8 else byte for place, byte in enumerate(data))


def lambda_record(data: bytes) -> dict[str, Any]:
    """A Kinesis record in the shape that AWS's library wants: all that Lambda sends."""
    return {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": "lane-0",
            "sequenceNumber": "49590338271490256608559692538361571095921575989136588898",
            "data": base64.b64encode(data).decode(),
            "approximateArrivalTimestamp": 1_795_442_400.123,
        },
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": "shardId-000000000000:49590338271490256608559692538361571095921575989136588898",
        "eventName": "aws:kinesis:record",
        "invokeIdentityArn": "arn:aws:iam::123456789012:role/processor",
        "awsRegion": "eu-central-1",
        "eventSourceARN": "arn:aws:kinesis:eu-central-1:123456789012:stream/posts",
    }


def split_by_aws(data: bytes) -> list[UserRecord]:
    """What AWS's library makes of a container."""
    return [
        UserRecord(
            base64.b64decode(record["kinesis"]["data"]),
            record["kinesis"]["partitionKey"],
            record["kinesis"]["explicitHashKey"],
        )
        for record in deaggregate_records([lambda_record(data)])
    ]


class TestRoundTrip:
    @settings(deadline=None)
    @given(RECORDS)
    def test_records_come_back_in_order_with_their_keys(self, records: list[tuple[str, bytes]]) -> None:
        """What was added comes out, the same bytes under the same keys in the same order."""
        decoded = decode(sealed(records))

        assert [UserRecord(data, key) for key, data in records] == decoded.records
        assert decoded.damage is None

    @settings(deadline=None)
    @given(RECORDS)
    def test_size_is_exact_at_every_moment(self, records: list[tuple[str, bytes]]) -> None:
        """`size` is the length of the sealed container, before the first record and after each."""
        aggregate = Aggregate()
        assert ENVELOPE_BYTES == aggregate.size == len(aggregate.seal())
        for key, data in records:
            assert aggregate.add(key.encode(), data)
            assert aggregate.size == len(aggregate.seal())
        assert len(records) == aggregate.count

    @pytest.mark.parametrize("length", EDGES[:6])
    def test_size_is_exact_where_a_length_needs_one_more_byte(self, length: int) -> None:
        """Sizes stay exact at the borders of varints, for data and for keys."""
        for key, data in ((b"k", b"x" * length), (b"k" * length, b"x")):
            aggregate = Aggregate()
            aggregate.add(key, data)
            assert aggregate.size == len(aggregate.seal())

    @settings(deadline=None)
    @given(RECORDS, st.integers(0, 2_000))
    def test_the_limit_is_used_to_the_last_byte(self, records: list[tuple[str, bytes]], limit: int) -> None:
        """A record that fits exactly is taken, one byte more is refused without a trace, and the first always goes."""
        aggregate = Aggregate()
        for key, data in records:
            before = aggregate.seal()
            grown = Aggregate()
            for taken in decode(before).records:
                grown.add((taken.partition_key or "").encode(), taken.data)
            grown.add(key.encode(), data)

            taken_now = aggregate.add(key.encode(), data, limit)

            assert taken_now == (grown.size <= limit or grown.count == 1)
            assert aggregate.seal() == (grown.seal() if taken_now else before)

    def test_more_keys_than_one_byte_can_number(self) -> None:
        """The 129th key and later ones, whose index takes two bytes, come back right."""
        records = [(f"author-{number}", b"x") for number in range(300)]

        assert [UserRecord(data, key) for key, data in records] == decode(sealed(records)).records

    @pytest.mark.parametrize("number", EDGES)
    def test_a_varint_holds_seven_bits_a_byte(self, number: int) -> None:
        """The low bits come first, and every byte but the last has its high bit set."""
        encoded = varint(number)

        assert number == sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded))
        assert [True] * (len(encoded) - 1) + [False] == [byte >= 0x80 for byte in encoded]


class TestAgainstAws:
    """AWS's own aws_kinesis_agg is the reference, in both directions."""

    @settings(deadline=None)
    @given(RECORDS.filter(bool))
    def test_aws_reads_ours(self, records: list[tuple[str, bytes]]) -> None:
        """AWS's library finds in our containers exactly what was added."""
        assert [UserRecord(data, key) for key, data in records] == split_by_aws(sealed(records))

    @settings(deadline=None)
    @given(st.lists(st.tuples(KEYS, st.binary(max_size=300), HASH_KEYS), min_size=1, max_size=30))
    def test_we_read_theirs(self, records: list[tuple[str, bytes, str]]) -> None:
        """Containers of AWS's library, explicit hash keys included, are read as it reads them itself."""
        aggregator = RecordAggregator()
        for key, data, hash_key in records:
            aggregator.add_user_record(key, data, hash_key)
        _, _, data = aggregator.clear_and_get().get_contents()

        decoded = decode(data)

        assert [UserRecord(data, key, hash_key) for key, data, hash_key in records] == decoded.records
        assert split_by_aws(data) == decoded.records
        assert decoded.damage is None

    def test_the_bytes_are_the_same_but_for_their_hash_keys(self) -> None:
        """Both write the fields in the same order: without the hash keys that AWS adds, the bytes are equal."""
        aggregator = RecordAggregator()
        for key, data in THREE_POSTS:
            aggregator.add_user_record(key, data)
        record = aggregator.clear_and_get()
        record.agg_record.ClearField("explicit_hash_key_table")
        for user_record in record.agg_record.records:
            user_record.ClearField("explicit_hash_key_index")

        assert record.get_contents()[2] == sealed(THREE_POSTS)


class TestRawRecords:
    @settings(deadline=None)
    @given(st.binary(max_size=300).filter(lambda data: not data.startswith((MAGIC, COMPRESSED_MAGIC[:3]))))
    def test_a_record_without_the_magic_is_one_raw_record(self, data: bytes) -> None:
        """Bytes that do not claim to be an aggregate are handed on as they are."""
        assert ([UserRecord(data)], None) == decode(data)


class TestCompression:
    def test_a_compressed_container_gives_back_its_records(self) -> None:
        """Keys and bytes come out as they went in, from fewer bytes."""
        aggregate = Aggregate()
        lines = [b'{"data":{"id":"%d","text":"the same words again and again"}}' % number for number in range(200)]
        for line in lines:
            aggregate.add(b"author", line)
        container = aggregate.seal()
        frame = compress(container)
        assert len(frame) < len(container) / 4
        assert (([UserRecord(line, "author") for line in lines]), None) == decode(frame)

    @settings(deadline=None)
    @given(st.data())
    def test_a_damaged_frame_is_told_and_never_raises(self, data: st.DataObject) -> None:
        """A flipped bit or a missing end is found by zstd's own checksum."""
        aggregate = Aggregate()
        aggregate.add(b"author", b"x" * 50)
        aggregate.add(b"author", b"y" * 50)
        frame = bytearray(compress(aggregate.seal()))
        place = data.draw(st.integers(len(COMPRESSED_MAGIC), len(frame) - 1))
        if data.draw(st.booleans()):
            del frame[place:]
        else:
            frame[place] ^= 1 << data.draw(st.integers(0, 7))
        records, damage = decode(bytes(frame))
        assert damage or [record.data for record in records] == [b"x" * 50, b"y" * 50]

    @pytest.mark.parametrize("after", [b"", b"\xff" * 200_000])
    def test_a_damaged_frame_gives_what_can_be_unpacked(self, after: bytes) -> None:
        """Records in blocks before the damage, or before a cut, are there: zstd makes a block of 128 KiB at most."""
        rng = Random(7)
        aggregate = Aggregate()
        for _ in range(300):
            aggregate.add(b"author", rng.randbytes(1_000))
        frame = compress(aggregate.seal())
        whole = decode(frame).records
        records, damage = decode(frame[: len(frame) * 2 // 3] + after)
        assert damage is not None
        assert records[:100] == whole[:100]

    def test_what_follows_a_frame_is_told_and_costs_no_record(self) -> None:
        """Bytes after the end of a frame are none of ours, and do not reach the records before them."""
        aggregate = Aggregate()
        aggregate.add(b"author", b"{}")
        records, damage = decode(compress(aggregate.seal()) + b"more")
        assert damage is not None
        assert records == [UserRecord(b"{}", "author")]

    def test_a_frame_of_a_newer_version_is_told(self) -> None:
        """It is no raw record, and what is in it is not guessed."""
        frame = compress(sealed(THREE_POSTS))
        assert decode(b"MZS2" + frame[4:]) == ([], "compressed by a newer version of Millrace: update this one")

    def test_a_frame_that_would_fill_the_memory_is_unpacked_up_to_a_limit(self) -> None:
        """It need not say its size, and 32 KiB may hold a gigabyte."""
        # A zstd header without a size, and blocks of one byte that is repeated 2^17 times; the last has a bit for it.
        blocks = b"\x02\x00\x10\x00" * (LARGEST_MESSAGE_BYTES >> 17) + b"\x03\x00\x10\x00"
        bomb = COMPRESSED_MAGIC + bytes.fromhex("28b52ffd 0038") + blocks
        assert decode(bomb) == ([], "the content would be larger than any container")


class TestDamage:
    def test_every_truncation_is_noticed_and_loses_no_whole_record(self) -> None:
        """Wherever a container is cut, that is told, and the records before the cut are there."""
        whole = sealed(THREE_POSTS)
        ends = [whole.index(data) + len(data) for _, data in THREE_POSTS[:2]] + [len(whole) - DIGEST_BYTES]
        for length in range(len(MAGIC), len(whole)):
            decoded = decode(whole[:length])
            assert decoded.damage is not None
            before = [
                UserRecord(data, key) for (key, data), end in zip(THREE_POSTS, ends, strict=True) if end <= length
            ]
            assert decoded.records[: len(before)] == before
            # What is left of the digest may look like a record; it is never a post.
            assert all(not record.data.startswith(b"{") for record in decoded.records[len(before) :])

    def test_a_cut_magic_is_a_raw_record(self) -> None:
        """Without its whole magic nothing claims to be a container."""
        for length in range(len(MAGIC)):
            assert decode(MAGIC[:length]) == ([UserRecord(MAGIC[:length])], None)

    def test_every_flipped_bit_is_noticed_and_costs_one_record_at_most(self) -> None:
        """A wrong bit in a record's data or in the digest is told, and leaves the other records as they are."""
        whole = sealed(THREE_POSTS)
        for number, (_, data) in enumerate(THREE_POSTS[:2]):
            start = whole.index(data)
            others = [UserRecord(data, key) for index, (key, data) in enumerate(THREE_POSTS) if index != number]
            for bit in range(start * 8, (start + len(data)) * 8):
                decoded = decode(flipped(whole, bit))
                assert decoded.damage == "the digest does not fit the content"
                assert [record for index, record in enumerate(decoded.records) if index != number] == others
        for bit in range(len(MAGIC) * 8, len(whole) * 8):
            assert decode(flipped(whole, bit)).damage is not None
        for bit in range((len(whole) - DIGEST_BYTES) * 8, len(whole) * 8):
            assert decode(flipped(whole, bit)).records == [UserRecord(data, key) for key, data in THREE_POSTS]

    def test_a_bad_member_does_not_take_the_others_with_it(self) -> None:
        """Where AWS's library drops all that follows a malformed member, here only that member is missing."""
        good = [b"\x1a\x06\x08\x00\x1a\x02" + name for name in (b"n1", b"n2", b"n3")]
        message = b"\x0a\x01k" + good[0] + b"\x1a\x04\x08\x00\x1a\x63" + good[1] + b"\x1a\x02\x08\x00" + good[2]
        decoded = decode(enveloped(message))

        assert decoded.records == [UserRecord(name, "k") for name in (b"n1", b"n2", b"n3")]
        assert decoded.damage == "a field is longer than the message"

    @settings(deadline=None)
    @given(st.binary(max_size=200), st.booleans())
    def test_any_message_is_read_without_an_exception(self, message: bytes, right: bool) -> None:
        """Whatever a foreign producer made, under a right digest or a wrong one, is read or told."""
        data = enveloped(message) if right else MAGIC + message + bytes(DIGEST_BYTES)
        assert right or decode(data).damage is not None

    @pytest.mark.parametrize(
        ("message", "words", "records"),
        [
            (b"\x0a\x05ab", "longer than the message", []),
            (b"\x0a", "index out of range", []),
            (b"\x0a\x80", "index out of range", []),
            (b"\x08" + b"\xff" * 10, "64 bits", []),
            (b"\x0b", "wire type 3", []),
            (b"\x0a\x01\xff\x1a\x06\x08\x00\x1a\x02hi", "utf-8", [UserRecord(b"hi", "\ufffd")]),
            (b"\x0a\x01k\x1a\x06\x08\x01\x1a\x02hi", "its place", [UserRecord(b"hi")]),
            (b"\x0a\x01k\x1a\x06\x08\x00\x10\x00\x1a\x00", "its place", [UserRecord(b"")]),
            (b"\x0a\x01k\x1a\x02\x08\x00", "lacks its data", []),
            (b"\x0a\x01k\x1a\x02\x1a\x00", "lacks its partition key", [UserRecord(b"")]),
            (b"\x0a\x01k\x1a\x00", "lacks its data", []),
        ],
    )
    def test_a_sealed_message_that_is_wrong_says_why(
        self, message: bytes, words: str, records: list[UserRecord]
    ) -> None:
        """A container whose digest fits but whose structure does not tells why, and has all data that is whole."""
        decoded = decode(enveloped(message))

        assert decoded.records == records
        assert words in (decoded.damage or "")

    def test_an_empty_container_holds_nothing(self) -> None:
        """The shortest whole container, magic and digest of nothing, has no records and no damage."""
        assert decode(enveloped(b"")) == ([], None)
        assert ENVELOPE_BYTES == len(MAGIC) + DIGEST_BYTES == len(enveloped(b""))

    def test_what_the_format_may_hold_beside_our_fields_is_skipped(self) -> None:
        """Tags and unknown fields of every wire type, in the message and in a record, change nothing."""
        tag = b"\x22\x05\x0a\x01t\x12\x00"
        unknown = b"\x78\x01" + b"\x79" + b"\x00" * 8 + b"\x7d" + b"\x00" * 4 + b"\x7a\x01x"
        # Known field numbers with a number where bytes belong, and the other way round.
        odd = b"\x08\x07" + b"\x10\x07" + b"\x18\x07"
        record = b"\x08\x00" + tag + unknown + b"\x0a\x01x" + b"\x12\x01x" + b"\x18\x07" + b"\x1a\x02hi"
        message = unknown + odd + b"\x0a\x01k" + b"\x1a" + varint(len(record)) + record

        assert ([UserRecord(b"hi", "k")], None) == decode(enveloped(message))
