import json
from datetime import UTC, datetime
from typing import Any

import pytest
from boto3.dynamodb.types import TypeSerializer
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.items import (
    ITEM_BYTES,
    Item,
    Shape,
    UnstorableError,
    bucket,
    item_of,
    item_size,
    milliseconds_of,
    sort_id,
    to_json,
    value_at,
)

# 2026-11-23T14:00:00.000Z, and a snowflake of a quarter of a second later.
POSTED_AT = datetime(2026, 11, 23, 14, tzinfo=UTC)
ARRIVED_AT = POSTED_AT.timestamp() + 3600
SNOWFLAKE = str((int(POSTED_AT.timestamp() * 1000) + 250 - 1_288_834_974_657) << 22)

FULL: dict[str, Any] = {
    "data": {
        "id": SNOWFLAKE,
        "author_id": "42",
        "created_at": "2026-11-23T14:00:00.000Z",
        "lang": "ja",
        "text": "水車は今日も回る &amp; 回る",
    },
    "includes": {
        "users": [
            {"id": "7", "name": "Somebody Else", "username": "somebody"},
            {"id": "42", "name": "粉屋", "username": "miller"},
        ]
    },
    "matching_rules": [{"id": "1", "tag": "mill"}, {"id": "2", "tag": "bread"}],
}
# Any value that JSON can hold: what a field must survive being.
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def line(**changes: Any) -> bytes:
    """The full post as a line of the stream, with other values in `data`; None takes a field away."""
    data = {name: value for name, value in (FULL["data"] | changes).items() if value is not None}
    return json.dumps(FULL | {"data": data}, ensure_ascii=False).encode()


def item_from(value: object, shape: Shape | None = None) -> Item:
    """The item of any JSON value."""
    return item_of(json.dumps(value).encode(), ARRIVED_AT, shape or Shape())


def refusal(data: bytes) -> str:
    """Why these bytes can be no item."""
    with pytest.raises(UnstorableError) as caught:
        item_of(data, ARRIVED_AT, Shape())
    return str(caught.value)


def as_boto3_has_it(item: Item) -> dict[str, Any]:
    """What boto3's own serializer makes of an item; it knows sets by Python's sets."""
    return {
        name: {"SS": value} if isinstance(value, list) else TypeSerializer().serialize(value)
        for name, value in item.items()
    }


def test_a_full_post_becomes_a_full_item() -> None:
    """Each attribute stands under its name, typed as DynamoDB wants it, and Japanese stays Japanese."""
    item = item_of(line(), ARRIVED_AT, Shape(ttl_days=30, time_shards=4))

    expires_at = int(POSTED_AT.timestamp()) + 30 * 86_400
    assert item.pop("Bucket") in {f"2026-11-23T14#{shard}" for shard in range(4)}
    assert item == {
        "Id": SNOWFLAKE,
        "SortId": SNOWFLAKE,
        "Timestamp": "2026-11-23T14:00:00.250Z",
        "Username": "miller",
        "Message": "水車は今日も回る & 回る",
        "AuthorId": "42",
        "DisplayName": "粉屋",
        "Lang": "ja",
        "RuleTags": ["bread", "mill"],
        "ExpiresAt": expires_at,
    }


def test_the_least_post_becomes_an_item() -> None:
    """With no more than id and text there is still a name, a time and a message, and no empty attribute."""
    item = item_from({"data": {"id": SNOWFLAKE, "text": "hello"}}, Shape(ttl_days=0))

    assert set(item) == {"Id", "SortId", "Bucket", "Timestamp", "Username", "Message"}
    assert item["Username"] == ""
    assert item["Message"] == "hello"


def test_the_same_record_always_makes_the_same_item() -> None:
    """A replay writes the same bytes, tags in the same order included."""
    turned = dict(FULL, matching_rules=list(reversed(FULL["matching_rules"])))

    assert json.dumps(item_from(FULL)) == json.dumps(item_from(turned))


class TestTime:
    def test_created_at_goes_first(self) -> None:
        """What the post itself says counts, whatever its id would say."""
        assert item_of(line(id="1"), 0, Shape())["Timestamp"] == "2026-11-23T14:00:00.000Z"

    def test_created_at_is_turned_to_utc(self) -> None:
        """Another offset, or finer digits, end in UTC and milliseconds."""
        item = item_of(line(created_at="2026-11-23T23:30:00.123456+09:00"), 0, Shape())

        assert item["Timestamp"] == "2026-11-23T14:30:00.123Z"
        assert str(item["Bucket"]).startswith("2026-11-23T14#")

    def test_the_snowflake_adds_the_milliseconds(self) -> None:
        """X writes whole seconds; where the id agrees with them, it says the moment more exactly."""
        flake = ((1_795_442_400_789 - 1_288_834_974_657) << 22) + 7
        item = item_of(line(id=str(flake), created_at="2026-11-23T14:00:00.000Z"), 0, Shape())
        assert item["Timestamp"] == "2026-11-23T14:00:00.789Z"

    @pytest.mark.parametrize("created_at", [None, "", "yesterday", 1_795_442_400, "0001-01-01T00:00:00+14:00"])
    def test_without_it_the_snowflake_tells(self, created_at: object) -> None:
        """The id holds the time to the millisecond, where created_at is missing or no time."""
        item = item_of(line(created_at=created_at), 0, Shape())

        assert item["Timestamp"] == "2026-11-23T14:00:00.250Z"

    @pytest.mark.parametrize("post_id", ["sensor-7", "29700859246", "１２３", "9" * 20, "-5"])
    def test_without_both_the_arrival_counts(self, post_id: str) -> None:
        """An id that is no snowflake, or older than snowflakes are, has the time at which Kinesis took it."""
        item = item_of(line(id=post_id, created_at=None), ARRIVED_AT + 0.5, Shape())

        assert item["Id"] == post_id
        assert item["Timestamp"] == "2026-11-23T15:00:00.500Z"

    def test_an_item_expires_days_after_its_post(self) -> None:
        """The end of an item follows from the post's time, not from the moment of writing; 0 days is no end."""
        assert item_from(FULL, Shape(ttl_days=1))["ExpiresAt"] == int(POSTED_AT.timestamp()) + 86_400
        assert "ExpiresAt" not in item_from(FULL, Shape(ttl_days=0))


class TestKeys:
    def test_sort_ids_sort_as_numbers_do(self) -> None:
        """Padded to 19 digits, ids sort by age as strings; an id that is no number is left alone."""
        ids = ["9", "10", "1234567890123456789", "29700859247"]

        assert sorted(ids, key=int) == sorted(ids, key=sort_id)
        assert sort_id("sensor-7") == "sensor-7"

    def test_snowflakes_with_the_same_low_bits_spread_evenly(self) -> None:
        """Posts of one hour, all with sequence number zero, fill every shard of their hour alike."""
        shards = 4
        buckets = [
            item_from({"data": {"id": str(int(SNOWFLAKE) + (number << 22)), "text": ""}}, Shape(30, shards))["Bucket"]
            for number in range(4_000)
        ]

        counts = [buckets.count(bucket("2026-11-23T14", shard)) for shard in range(shards)]
        assert sum(counts) == 4_000
        assert all(900 < count < 1_100 for count in counts)


class TestText:
    def test_what_x_escapes_is_read_as_a_person_would(self) -> None:
        """The three escapes of X are undone once, and no others."""
        item = item_of(line(text="&lt;b&gt; &amp;amp; &quot; &amp;lt;"), 0, Shape())

        assert item["Message"] == "<b> &amp; &quot; &lt;"

    def test_a_long_post_is_stored_whole(self) -> None:
        """Where there is a note_tweet its text is the message, for `text` is cut short there."""
        item = item_of(line(text="short…", note_tweet={"text": "長い話 " * 1000}), 0, Shape())

        assert item["Message"] == "長い話 " * 1000

    def test_half_a_surrogate_pair_is_left_out(self) -> None:
        """DynamoDB takes only what UTF-8 can say: a lone surrogate goes, a whole pair is one character."""
        data = b'{"data":{"id":"1","text":"a\\ud83db \\uD83D\\uDE00 \\u6a2a"}}'

        assert item_of(data, 0, Shape())["Message"] == "ab 😀 横"

    def test_the_username_falls_back_to_the_author_id(self) -> None:
        """Where X sent no users the item still says whose post it is."""
        item = item_from({"data": FULL["data"]})

        assert item["Username"] == "42"
        assert "DisplayName" not in item

    def test_rules_without_a_tag_leave_no_trace(self) -> None:
        """Missing, empty and repeated tags never make an empty set, which DynamoDB would refuse."""
        rules: list[object] = [{"id": "1"}, {"id": "2", "tag": ""}, {"id": "3", "tag": None}, "x"]

        assert "RuleTags" not in item_from(dict(FULL, matching_rules=rules))
        assert item_from(dict(FULL, matching_rules=[*rules, {"tag": "a"}, {"tag": "a"}]))["RuleTags"] == ["a"]


class TestUnstorable:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "not JSON"),
            (b'{"data":', "not JSON"),
            (b"\xff\xfe{\x00}\x00", "not UTF-8 at byte 0"),
            ("今日".encode("shift_jis"), "not UTF-8"),
            (b"\xed\xa0\xbd", "not UTF-8"),
            (b"[" * 200_000, "nested too deeply"),
            (b'{"data":{"id":' + b"1" * 5_000 + b"}}", "thousands of digits"),
            (b"[]", "no object"),
            (b"{}", "`data.id`"),
            (b'{"data":[]}', "`data.id`"),
            (b'{"data":{"text":"a"}}', "`data.id`"),
            (b'{"data":{"id":17,"text":"a"}}', "`data.id`"),
            (b'{"data":{"id":"","text":"a"}}', "`data.id`"),
            (b'{"data":{"id":"17"}}', "`data.text`"),
            (b'{"data":{"id":"17","text":null}}', "`data.text`"),
            (b'{"data":{"id":"' + b"x" * 1_025 + b'","text":"a"}}', "1024 bytes"),
            (b'{"data":{"id":"1","author_id":"' + b"x" * 2_049 + b'","text":"a"}}', "author's id"),
            (b'{"data":{"id":"deleted#1","text":"a"}}', "tombstone"),
        ],
    )
    def test_what_is_no_post_is_refused_with_its_reason(self, data: bytes, words: str) -> None:
        """Each kind of broken record has its own words."""
        assert words in refusal(data)

    def test_a_reason_quotes_nothing_of_the_record(self) -> None:
        """What a post says must not reach a place where reasons are shown."""
        assert "secret" not in refusal(b'{"data":{"id":"1","text":"secret}}')
        assert "secret" not in refusal(b'{"data":"secret"}')
        assert "secret" not in refusal(b'"secret" secret')

    def test_the_largest_item_is_kept_and_one_byte_more_is_refused(self) -> None:
        """DynamoDB's limit counts names and values in UTF-8, and it is used to the last byte."""
        room = ITEM_BYTES - item_size(item_of(line(text="あ"), 0, Shape())) + len("あ".encode())
        text = "あ" * (room // 3) + "x" * (room % 3)

        assert item_size(item_of(line(text=text), 0, Shape())) == ITEM_BYTES
        assert f"{ITEM_BYTES + 1} bytes" in refusal(line(text=text + "x"))

    def test_sizes_are_counted_as_dynamodb_does(self) -> None:
        """Names and values count in bytes of UTF-8; a set costs three, and one for each member."""
        assert item_size({"Id": "横浜", "Tags": ["a", "bc"]}) == 2 + 6 + 4 + 3 + (1 + 1) + (2 + 1)

    @settings(deadline=None)
    @given(
        st.dictionaries(st.sampled_from(["id", "text", "author_id", "created_at", "lang", "note_tweet"]), JSON_VALUES),
        JSON_VALUES,
        JSON_VALUES,
    )
    def test_any_values_make_an_item_or_a_reason(self, data: dict[str, Any], includes: object, rules: object) -> None:
        """No value in any field raises anything but the one error, and every item has what a reader counts on."""
        value = {"data": {"id": SNOWFLAKE, "text": "x"} | data, "includes": includes, "matching_rules": rules}
        try:
            item = item_from(value)
        except UnstorableError:
            return
        assert {"Id", "SortId", "Bucket", "Timestamp", "Username", "Message"} <= set(item)
        assert as_boto3_has_it(item) == json.loads(to_json(item))
        for name in {"Id", "SortId", "Bucket", "AuthorId"} & set(item):
            assert item[name]
        json.dumps(item, ensure_ascii=False).encode()

    @settings(deadline=None)
    @given(st.binary(max_size=100))
    def test_any_bytes_make_an_item_or_a_reason(self, data: bytes) -> None:
        """Noise never raises anything but the one error."""
        with pytest.raises(UnstorableError):
            item_of(data, 0, Shape())


EVENTS = Shape(ttl_days=30, time_shards=4, id_pointer="/event/id", time_pointer="/at")


class TestOtherRecords:
    def test_a_record_that_is_no_post_is_told_by_its_pointers(self) -> None:
        """Id and time come from where the pointers say; the message is the record as it came."""
        data = '{"event": {"id": "click-7"},  "at": "2026-11-23T14:00:00.250+00:00", "page": "水車"}'.encode()
        item = item_of(data, ARRIVED_AT, EVENTS)

        assert str(item.pop("Bucket")).startswith("2026-11-23T14#")
        assert item == {
            "Id": "click-7",
            "SortId": "2026-11-23T14:00:00.250Z#click-7",
            "Timestamp": "2026-11-23T14:00:00.250Z",
            "Message": data.decode(),
            "ExpiresAt": int(POSTED_AT.timestamp()) + 30 * 86_400,
        }

    def test_a_whole_number_is_an_id_too(self) -> None:
        """Sensors count; the key of the table is a text."""
        assert item_from({"event": {"id": 17}}, EVENTS)["Id"] == "17"

    @pytest.mark.parametrize("value", [None, "", True, 1.5, [], {}, "\ud83d"])
    def test_without_an_id_it_is_refused(self, value: object) -> None:
        """Nothing, or what no key can be, is a reason that names the pointer."""
        with pytest.raises(UnstorableError, match="no id: at /event/id"):
            item_from({"event": {"id": value}}, EVENTS)

    @pytest.mark.parametrize(
        ("time", "timestamp"),
        [
            ("2026-11-23T23:30:00+09:00", "2026-11-23T14:30:00.000Z"),
            ("2026-11-23T14:30:00", "2026-11-23T14:30:00.000Z"),
            (1_795_444_200, "2026-11-23T14:30:00.000Z"),
            (1_795_444_200.5, "2026-11-23T14:30:00.500Z"),
            (1_795_444_200_500, "2026-11-23T14:30:00.500Z"),
            ("half past two", "2026-11-23T15:00:00.000Z"),
            (None, "2026-11-23T15:00:00.000Z"),
            (True, "2026-11-23T15:00:00.000Z"),
            (1e300, "2026-11-23T15:00:00.000Z"),
        ],
    )
    def test_a_time_may_be_written_in_several_ways(self, time: object, timestamp: str) -> None:
        """ISO 8601, seconds or milliseconds; what is none of them has the time of its arrival."""
        assert item_from({"event": {"id": "1"}, "at": time}, EVENTS)["Timestamp"] == timestamp

    def test_without_a_pointer_to_the_time_the_arrival_counts(self) -> None:
        """Kinesis knows when a record came."""
        shape = EVENTS._replace(time_pointer="")

        assert item_from({"event": {"id": "1"}, "at": 0}, shape)["Timestamp"] == "2026-11-23T15:00:00.000Z"

    @pytest.mark.parametrize(("size", "fits"), [(1_024 - 25, True), (1_025 - 25, False)])
    def test_a_key_of_the_index_holds_time_and_id(self, size: int, fits: bool) -> None:
        """The longest id is refused only where the range key of an index could not hold it."""
        data = json.dumps({"event": {"id": "x" * size}}).encode()
        if fits:
            assert item_of(data, ARRIVED_AT, EVENTS)["Id"] == "x" * size
        else:
            with pytest.raises(UnstorableError, match="1024 bytes"):
                item_of(data, ARRIVED_AT, EVENTS)

    @settings(deadline=None)
    @given(JSON_VALUES, JSON_VALUES, st.floats(0, 2e9))
    def test_any_values_make_an_item_or_a_reason(self, record_id: object, time: object, arrived_at: float) -> None:
        """No value raises anything but the one error, and every item has what a reader counts on."""
        data = json.dumps({"event": {"id": record_id}, "at": time}).encode()
        try:
            item = item_of(data, arrived_at, EVENTS)
        except UnstorableError:
            return
        assert {"Id", "SortId", "Bucket", "Timestamp", "Message", "ExpiresAt"} == set(item)
        assert as_boto3_has_it(item) == json.loads(to_json(item))


DOCUMENT: dict[str, Any] = {"foo": ["bar", {"baz": 1}], "": 0, "a/b": 1, "m~n": 8, "0": "zero"}


class TestPointers:
    @pytest.mark.parametrize(
        ("pointer", "value"),
        [
            ("", DOCUMENT),
            ("/foo/0", "bar"),
            ("/foo/1/baz", 1),
            ("/", 0),
            ("/a~1b", 1),
            ("/m~0n", 8),
            ("/0", "zero"),
            ("/foo/2", None),
            ("/foo/-1", None),
            ("/foo/x", None),
            ("/foo/0/0", None),
            ("/nothing/there", None),
        ],
    )
    def test_a_pointer_finds_what_rfc_6901_says(self, pointer: str, value: object) -> None:
        """Names and places, escapes undone; where there is nothing there is None."""
        assert value_at(DOCUMENT, pointer) == value

    @pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", 1e11, -7e13, float("nan"), float("inf"), [], {}])
    def test_a_time_without_a_year_of_four_digits_is_none(self, time: object) -> None:
        """What no Timestamp can say is no time; 1e11 is of milliseconds."""
        assert milliseconds_of(time) == (1e11 if time == 1e11 else None)
