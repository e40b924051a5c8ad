import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.limits import PARTITION_KEY_CHARACTERS
from service.core.posts import PARTITION_KEYS, POINTER, PostReader
from service.core.records import DropReason, Post, Rejected

TWEET = '{"data":{"id":"7","author_id":"42","conversation_id":"5","text":"日本語 😀"},"matching_rules":[{"id":"1"}]}'


def line(**data: object) -> bytes:
    """Make a line of the stream with this post in it."""
    return json.dumps({"data": data}).encode()


def read(*lines: bytes, key: str = "author_id") -> tuple[list[Post], list[Rejected]]:
    """Read lines that arrive at second 3."""
    return PostReader(key).read(lines, 3.0)


@pytest.mark.parametrize(("partition_key", "value"), [("author_id", b"42"), ("id", b"7"), ("conversation_id", b"5")])
def test_id_and_key_are_read_and_the_line_stays(partition_key: str, value: bytes) -> None:
    """A post is its line byte for byte, with the id and the key that was asked for."""
    assert partition_key in PARTITION_KEYS
    assert ([Post(TWEET.encode(), "7", value, 3.0, -1)], []) == read(TWEET.encode(), key=partition_key)


@pytest.mark.parametrize("data", [{"id": "7"}, {"id": "7", "author_id": ""}])
def test_a_post_without_the_key_is_keyed_by_its_id(data: dict[str, str]) -> None:
    """X sends author_id only where it was asked for; such a post has no neighbours to keep an order with."""
    posts, rejected = read(line(**data))
    assert [post.key for post in posts] == [b"7"]
    assert rejected == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", DropReason.NOT_JSON),
        (b"{", DropReason.NOT_JSON),
        (b"hello", DropReason.NOT_JSON),
        (b'{"data":{"id":"7"}} trailing', DropReason.NOT_JSON),
        (b'{"data":{"id":"\xff"}}', DropReason.NOT_JSON),
        (b'{"data":{"id":"\\ud800"}}', DropReason.NOT_JSON),
        (b'{"data":{"id":"7","text":' + b"[" * 50_000, DropReason.NOT_JSON),
        (b"{}", DropReason.NO_ID),
        (b"[]", DropReason.NO_ID),
        (b'"text"', DropReason.NO_ID),
        (b'{"data":null}', DropReason.NO_ID),
        (b'{"data":[]}', DropReason.NO_ID),
        (b'{"data":{}}', DropReason.NO_ID),
        (b'{"data":{"id":""}}', DropReason.NO_ID),
        (b'{"data":{"id":7}}', DropReason.NO_ID),
        (b'{"data":{},"errors":[{"title":"Not Found"}]}', DropReason.NO_ID),
        (b'{"errors":[{"title":"operational-disconnect"}]}', DropReason.X_ERROR),
        (b'{"data":null,"errors":[{"title":"operational-disconnect"}]}', DropReason.X_ERROR),
    ],
    ids=lambda value: None if isinstance(value, DropReason) else value[:60].decode(errors="replace"),
)
def test_what_is_no_post_comes_back_with_its_reason(text: bytes, reason: DropReason) -> None:
    """Such a line is handed back as it came, and never raises."""
    assert ([], [Rejected(text, reason)]) == read(text)


def test_a_post_with_errors_beside_it_is_a_post() -> None:
    """X reports expansions that it could not make in `errors`, next to a good post."""
    posts, rejected = read(b'{"data":{"id":"7"},"errors":[{"title":"Not Found Error"}]}')
    assert [post.id for post in posts] == ["7"]
    assert rejected == []


def test_one_bad_line_does_not_harm_its_neighbours() -> None:
    """Posts keep their order, and so does what was rejected."""
    posts, rejected = read(line(id="1"), b"bad", line(id="2"), b"worse", line(id="3"))
    assert [post.id for post in posts] == ["1", "2", "3"]
    assert [text for text, *_ in rejected] == [b"bad", b"worse"]


def test_places_in_the_journal_stay_with_their_lines() -> None:
    """What comes from the journal keeps its position, whether it is a post or not."""
    lines = [line(id="1"), b"bad", line(id="2"), line(id="3", author_id="a" * 257)]
    posts, rejected = PostReader("author_id").read(lines, 3.0, [70, 71, 90, 91])
    assert [(post.id, post.position) for post in posts] == [("1", 70), ("2", 90)]
    assert rejected == [
        Rejected(b"bad", DropReason.NOT_JSON, 71),
        Rejected(lines[3], DropReason.KEY_TOO_LONG, 91),
    ]


def test_what_comes_from_the_source_has_no_place_yet() -> None:
    """Posts and rejected lines alike stand at -1."""
    posts, rejected = read(line(id="1"), b"bad", line(id="2"), b"{}")
    assert [post.position for post in posts] == [-1, -1]
    assert [line.position for line in rejected] == [-1, -1]


def test_a_key_is_measured_in_characters() -> None:
    """Kinesis takes keys of 256 characters, however many bytes they have, and no longer ones."""
    fits, too_long = line(id="1", author_id="あ" * 256), line(id="2", author_id="あ" * 257)
    assert PARTITION_KEY_CHARACTERS == 256
    posts, rejected = read(fits, too_long)
    assert [post.key.decode() for post in posts] == ["あ" * 256]
    assert [Rejected(too_long, DropReason.KEY_TOO_LONG)] == rejected


def test_only_the_wanted_fields_are_read() -> None:
    """The rest of a line is not looked at: unknown fields and broken UTF-8 in the text go on as they came."""
    odd = b'{"new":[1,{"a":null}],"data":{"text":"\xff\xfe","id":"7","public_metrics":{"like_count":1}}}'
    posts, rejected = read(odd)
    assert [odd] == [post.line for post in posts]
    assert rejected == []


@settings(max_examples=30)
@given(
    st.lists(st.one_of(st.binary(), st.sampled_from([TWEET.encode(), b'{"errors":[1]}']))),
    st.integers(0, len(TWEET.encode()) - 1),
    st.integers(0, 255),
)
def test_every_line_ends_as_a_post_or_as_a_rejection(lines: list[bytes], place: int, byte: int) -> None:
    """Whatever X sends, garbage or a post with one damaged byte, nothing is lost in the reading and nothing raises."""
    damaged = bytearray(TWEET.encode())
    damaged[place] = byte
    lines.append(bytes(damaged))
    posts, rejected = read(*lines)
    assert sorted(lines) == sorted([post.line for post in posts] + [text for text, *_ in rejected])


class TestRecordsThatAreNotPosts:
    @pytest.mark.parametrize(
        ("pointer", "text", "value"),
        [
            ("/key", '{"key":"a"}', "a"),
            ("/user/id", '{"user":{"name":"b","id":"a"},"id":"c"}', "a"),
            ("/user/id", '{"user":{"id":7}}', "7"),
            ("/user/id", '{"user":{"id":123456789012345678901234567890}}', "123456789012345678901234567890"),
            ("/a~1b/~0c/~01", '{"a/b":{"~c":{"~1":"a"}}}', "a"),
            ("/利用者", '{"利用者":"猫"}', "猫"),
        ],
    )
    def test_a_pointer_finds_the_key(self, pointer: str, text: str, value: str) -> None:
        """RFC 6901: steps into objects, with ~1 for a slash and ~0 for a tilde; numbers count as their text."""
        assert POINTER.fullmatch(pointer)
        assert read(text.encode(), key=pointer) == ([Post(text.encode(), "", value.encode(), 3.0)], [])

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (b"{", DropReason.NOT_JSON),
            (b'{"user":{"id":"a"}', DropReason.NOT_JSON),
            (b'{"user":{"id":' + b"[" * 50_000, DropReason.NO_KEY),
            (b'{"a":' + b"[" * 50_000, DropReason.NOT_JSON),
            (b"{}", DropReason.NO_KEY),
            (b"[]", DropReason.NO_KEY),
            (b'{"user":"a"}', DropReason.NO_KEY),
            (b'{"user":{}}', DropReason.NO_KEY),
            (b'{"user":{"id":""}}', DropReason.NO_KEY),
            (b'{"user":{"id":null}}', DropReason.NO_KEY),
            (b'{"user":{"id":true}}', DropReason.NO_KEY),
            (b'{"user":{"id":["a"]}}', DropReason.NO_KEY),
            (b'{"user":{"id":"' + b"a" * 257 + b'"}}', DropReason.KEY_TOO_LONG),
        ],
        ids=lambda value: None if isinstance(value, DropReason) else value[:40].decode(),
    )
    def test_a_record_without_its_key_has_no_place(self, text: bytes, reason: DropReason) -> None:
        """It comes back with its reason; there is no id to take instead."""
        assert read(text, key="/user/id") == ([], [Rejected(text, reason)])

    @pytest.mark.parametrize("text", ["", "/", "key", "/key/", "//key", "/a~2", "/a~"])
    def test_what_is_no_pointer(self, text: str) -> None:
        """A pointer begins with a slash, has no empty step and no other escapes."""
        assert POINTER.fullmatch(text) is None


def test_half_a_character_in_half_a_line() -> None:
    """What is read more leniently for its broken character is still no JSON when it is cut."""
    text = rb'{"data":{"id":"7","text":"\ud83d"}'
    assert read(text) == ([], [Rejected(text, DropReason.NOT_JSON)])
