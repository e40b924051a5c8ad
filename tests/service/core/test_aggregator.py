from hypothesis import given, settings
from hypothesis import strategies as st

from processor import wire
from service.core.aggregator import COMPRESSED_GROWTH, LARGEST_BYTES, TARGET_BYTES, pack, whole_units
from service.core.limits import DEFAULT_RECORD_BYTES, PAYLOAD_UNIT_BYTES
from service.core.records import Post
from service.core.shard_map import NAME_BYTES


def post(line: bytes, key: bytes = b"author") -> Post:
    """Make a post with this line."""
    return Post(line, "1", key, 0.0)


def test_one_post_goes_raw() -> None:
    """A post alone is the line itself, without an envelope."""
    assert pack([post(b'{"data":{}}')], LARGEST_BYTES) == (1, b'{"data":{}}')


@settings(max_examples=30)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=5), st.binary(max_size=300)), min_size=2, max_size=10))
def test_a_container_gives_back_its_posts(content: list[tuple[str, bytes]]) -> None:
    """Lines and keys come out as they went in, in order, compressed or not."""
    posts = [post(line, key.encode()) for key, line in content]
    for compressed in (False, True):
        count, data = pack(posts, LARGEST_BYTES, compressed=compressed)
        decoded = wire.decode(data)
        assert count == len(content)
        assert decoded.damage is None
        assert content == [(record.partition_key, record.data) for record in decoded.records]


def test_the_limit_is_kept_to_the_byte() -> None:
    """A post that would make the container larger than the limit stays outside."""
    posts = [post(b"x" * 100) for _ in range(4)]
    _, three = pack(posts[:3], LARGEST_BYTES)
    assert pack(posts, len(three)) == (3, three)
    assert pack(posts, len(three) - 1)[0] == 2


def test_the_first_post_always_fits() -> None:
    """A post over the limit of containers is carried alone: it was measured at the door."""
    assert pack([post(b"x" * 100), post(b"x")], 10) == (1, b"x" * 100)


def test_the_sizes_waste_no_payload_unit() -> None:
    """Kinesis bills begun units whole, so all sizes are whole units, and the largest one fits any stream."""
    for size in (TARGET_BYTES, LARGEST_BYTES, whole_units(3 * PAYLOAD_UNIT_BYTES + 1)):
        assert (size + NAME_BYTES) % PAYLOAD_UNIT_BYTES == 0
    assert TARGET_BYTES < LARGEST_BYTES * COMPRESSED_GROWTH < DEFAULT_RECORD_BYTES


def test_a_container_grows_by_whole_units_with_what_waits() -> None:
    """The limit follows the waiting bytes, never below the target and never above the largest."""
    units = [whole_units(tenth * PAYLOAD_UNIT_BYTES // 10) + NAME_BYTES for tenth in (0, 19, 29, 30, 39, 79, 80, 500)]
    assert [unit / PAYLOAD_UNIT_BYTES for unit in units] == [2, 2, 2, 3, 3, 7, 8, 8]
    assert whole_units(0, COMPRESSED_GROWTH) == TARGET_BYTES * COMPRESSED_GROWTH
