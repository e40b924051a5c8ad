from hypothesis import given, settings
from hypothesis import strategies as st

from processor import wire
from service.core.aggregator import COMPRESSED_GROWTH, LARGEST_BYTES, TARGET_BYTES, Batch
from service.core.limits import DEFAULT_RECORD_BYTES, PAYLOAD_UNIT_BYTES
from service.core.records import Post
from service.core.shard_map import NAME_BYTES


def post(line: bytes, key: bytes = b"author") -> Post:
    """Make a post with this line."""
    return Post(line, "1", key, 0.0)


def test_one_post_goes_raw() -> None:
    """A batch of one is the line itself, without an envelope."""
    batch = Batch(0.0)
    assert batch.add(post(b'{"data":{}}'), LARGEST_BYTES)
    assert batch.encode() == b'{"data":{}}'


@settings(max_examples=30)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=5), st.binary(max_size=300)), min_size=2, max_size=10))
def test_a_container_gives_back_its_posts(content: list[tuple[str, bytes]]) -> None:
    """Lines and keys come out as they went in, in order, and the size was known beforehand."""
    batch = Batch(0.0)
    for key, line in content:
        assert batch.add(post(line, key.encode()), LARGEST_BYTES)
    data = batch.encode()
    assert len(data) == batch.aggregate.size
    decoded = wire.decode(data)
    assert decoded.damage is None
    assert content == [(record.partition_key, record.data) for record in decoded.records]


def test_the_limit_is_kept_to_the_byte() -> None:
    """A post that would make the container larger than the limit stays outside, and the container stays the same."""
    exact = Batch(0.0)
    for _ in range(3):
        exact.add(post(b"x" * 100), LARGEST_BYTES)
    limit = exact.aggregate.size
    batch = Batch(0.0)
    assert [batch.add(post(b"x" * 100), limit) for _ in range(3)] == [True, True, True]
    assert not batch.add(post(b""), limit)
    assert len(batch.posts) == 3
    assert limit == batch.aggregate.size == len(batch.encode())


def test_the_first_post_always_fits() -> None:
    """A post over the limit of containers is carried alone: it was measured at the door."""
    batch = Batch(0.0)
    assert batch.add(post(b"x" * 100), 10)
    assert not batch.add(post(b"x"), 10)
    assert batch.encode() == b"x" * 100


def test_a_new_batch_says_when_it_was_opened() -> None:
    """The linger counts from the opening; nothing is known of earlier attempts."""
    batch = Batch(7.5)
    assert batch.opened_at == 7.5
    assert not batch.perhaps_stored
    assert batch.astray == 0


def test_the_sizes_waste_no_payload_unit() -> None:
    """Kinesis bills begun units whole, so both sizes are whole units, and the larger one fits any stream."""
    for size in (TARGET_BYTES, LARGEST_BYTES):
        assert (size + NAME_BYTES) % PAYLOAD_UNIT_BYTES == 0
    assert TARGET_BYTES < LARGEST_BYTES * COMPRESSED_GROWTH < DEFAULT_RECORD_BYTES
