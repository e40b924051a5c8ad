from hashlib import md5

import pytest

from local.kinesis.errors import KinesisError
from local.kinesis.limits import Entry, check_entries, hash_key, parse_hash_key
from local.kinesis.shards import HASH_KEYS, MIB


def refusal(*entries: Entry) -> str:
    """Return the code with which a request is refused."""
    with pytest.raises(KinesisError) as caught:
        check_entries(entries, MIB)
    return caught.value.code


def test_a_size_is_data_and_key_in_utf8() -> None:
    """A key counts in bytes, not in characters."""
    assert check_entries([Entry(b"abc", "k"), Entry(b"abc", "日本"), Entry(b"abc", "😀")], MIB) == [3 + 1, 3 + 6, 3 + 4]


@pytest.mark.parametrize("count", [0, 501])
def test_a_request_has_1_to_500_records(count: int) -> None:
    """An empty list and a list of 501 are refused, 500 pass."""
    assert refusal(*[Entry(b"", "k")] * count) == "ValidationException"
    assert len(check_entries([Entry(b"", "k")] * 500, MIB)) == 500


def test_a_record_may_be_have_a_mebibyte_with_its_key() -> None:
    """Data and key together reach the limit exactly, and not one byte more."""
    assert check_entries([Entry(bytes(MIB - 3), "key")], MIB) == [MIB]
    assert refusal(Entry(bytes(MIB - 2), "key")) == "InvalidArgumentException"


def test_a_request_holds_10_mib_of_data_and_keys() -> None:
    """Ten records of 1 MiB pass, one byte more does not."""
    full = [Entry(bytes(MIB - 1), "k")] * 10
    assert sum(check_entries(full, MIB)) == 10 * MIB
    assert refusal(*full, Entry(b"", "k")) == "InvalidArgumentException"


@pytest.mark.parametrize("key", ["k", "k" * 256, "😀" * 256])
def test_keys_of_1_to_256_characters_pass(key: str) -> None:
    """Characters are counted, not bytes and not UTF-16 units."""
    assert check_entries([Entry(b"", key)], MIB) == [len(key.encode())]


@pytest.mark.parametrize("key", ["", "k" * 257, "😀" * 257])
def test_other_keys_are_refused(key: str) -> None:
    """An empty key and one of 257 characters break the shape."""
    assert refusal(Entry(b"", key)) == "ValidationException"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (str(HASH_KEYS), "InvalidArgumentException"),
        ("9" * 39, "InvalidArgumentException"),
        ("1" * 40, "ValidationException"),
        ("-1", "ValidationException"),
        ("01", "ValidationException"),
        ("", "ValidationException"),
        ("٣", "ValidationException"),
        ("0x10", "ValidationException"),
    ],
)
def test_an_explicit_hash_key_is_a_decimal_below_2_to_the_128(value: str, code: str) -> None:
    """What is no plain decimal breaks the shape, what is too large breaks the range."""
    assert refusal(Entry(b"", "k", value)) == code


def test_hash_keys_at_both_ends_pass() -> None:
    """0 and 2^128-1 are hash keys."""
    assert parse_hash_key("0", "ExplicitHashKey") == 0
    assert parse_hash_key(str(HASH_KEYS - 1), "ExplicitHashKey") == HASH_KEYS - 1


def test_the_hash_key_is_the_md5_of_the_partition_key() -> None:
    """The digest is read as a big-endian number, of the key in UTF-8."""
    assert hash_key(Entry(b"", "日本")) == int(md5("日本".encode(), usedforsecurity=False).hexdigest(), 16)


def test_an_explicit_hash_key_goes_before_the_partition_key() -> None:
    """The partition key is stored but does not place the record."""
    assert hash_key(Entry(b"", "k", "7")) == 7
