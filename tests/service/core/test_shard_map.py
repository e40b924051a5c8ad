import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.limits import HASH_KEYS, RECORDS_PER_REQUEST
from service.core.records import Shard
from service.core.shard_map import KNOWN_KEYS, ShardMap, Slice, hash_key, slices, slices_without_shards

LAST = HASH_KEYS - 1


def between(*edges: int) -> list[Shard]:
    """Make the shards that begin at zero and at these edges, and together cover all hash keys."""
    firsts = [0, *edges]
    lasts = [edge - 1 for edge in edges] + [LAST]
    return [Shard(f"shardId-{n}", first, last) for n, (first, last) in enumerate(zip(firsts, lasts, strict=True))]


@pytest.mark.parametrize(
    ("key", "digest"),
    [(b"", "d41d8cd98f00b204e9800998ecf8427e"), (b"message digest", "f96b697d7cb7938d525a2f31aaf161d0")],
)
def test_the_hash_key_is_the_md5_as_a_number(key: bytes, digest: str) -> None:
    """The examples are those of RFC 1321; the first byte counts most."""
    assert int(digest, 16) == hash_key(key)


@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("edges", [(), (HASH_KEYS // 2,), (10, 1000, 1 << 64, LAST - 10)])
def test_slices_tile_all_hash_keys(edges: tuple[int, ...], lanes: int) -> None:
    """However the shards are cut, the slices follow each other without gap or overlap, each inside its shard."""
    shards = between(*edges)
    pieces = slices(shards, lanes)
    assert len(shards) * lanes == len(pieces) == len({piece.name for piece in pieces})
    assert [0, *(piece.last + 1 for piece in pieces[:-1])] == [piece.first for piece in pieces]
    assert pieces[-1].last == LAST
    for number, piece in enumerate(pieces):
        shard = shards[number // lanes]
        assert shard.shard_id == piece.shard_id
        assert shard.first <= piece.first <= piece.last <= shard.last


def test_one_lane_a_shard_has_the_shards_name() -> None:
    """The name becomes the partition key of the lane's containers."""
    assert [Slice("shardId-0", "shardId-0", 0, 99), Slice("shardId-1", "shardId-1", 100, LAST)] == slices(
        between(100), 1
    )


def test_several_lanes_a_shard_are_numbered() -> None:
    """Each has a name of its own, so that Lambda can spread a shard's records."""
    pieces = slices([Shard("shardId-7", 0, 9)], 3)
    assert [(piece.name, piece.first, piece.last) for piece in pieces] == [
        ("shardId-7.0", 0, 2),
        ("shardId-7.1", 3, 5),
        ("shardId-7.2", 6, 9),
    ]


def test_shards_may_come_in_any_order() -> None:
    """ListShards lists by id, which says nothing about hash keys once a stream was resharded."""
    assert slices(between(100, 200), 2) == slices(between(100, 200)[::-1], 2)


@settings(max_examples=30)
@given(st.sets(st.integers(1, LAST), max_size=8), st.binary(max_size=20))
def test_a_key_is_found_in_the_slice_that_holds_its_hash(edges: set[int], key: bytes) -> None:
    """The search agrees with looking at every range."""
    table = ShardMap(slices(between(*sorted(edges)), 1))
    piece = table.slices[table.index(key)]
    assert piece.first <= hash_key(key) <= piece.last


def test_what_is_known_of_keys_is_bounded() -> None:
    """More authors than are remembered change nothing but the time that it takes."""
    table = ShardMap(slices(between(HASH_KEYS // 3), 1))
    keys = [b"author-%d" % number for number in range(KNOWN_KEYS + 10)]
    found = [table.index(key) for key in keys]
    assert len(table.known) <= KNOWN_KEYS
    places = [int(hash_key(key) >= HASH_KEYS // 3) for key in keys[-20:]]
    assert found[-20:] == places == [table.index(key) for key in keys[-20:]]


@pytest.mark.parametrize(("edge", "place"), [(0, 1), (1, 0)])
def test_both_ends_of_a_range_belong_to_it(edge: int, place: int) -> None:
    """A key at the very border is on the right side of it."""
    table = ShardMap(slices(between(hash_key(b"at the border") + edge), 1))
    assert place == table.index(b"at the border")


def test_nothing_falls_out_at_the_bottom() -> None:
    """A first slice that begins above zero still takes all keys below it."""
    table = ShardMap([Slice("a", "a", LAST - 1, LAST - 1), Slice("b", "b", LAST, LAST)])
    assert table.index(b"any") == 0


def test_a_map_needs_a_shard() -> None:
    """An empty list of shards is the caller's mistake."""
    with pytest.raises(ValueError, match="at least one open shard"):
        ShardMap([])


@pytest.mark.parametrize(
    ("first", "last", "places"),
    [(0, 9, [0]), (9, 10, [0, 1]), (12, 15, [1]), (19, 30, [1, 2]), (20, 30, [2]), (0, LAST, [0, 1, 2])],
)
def test_overlap_counts_both_ends(first: int, last: int, places: list[int]) -> None:
    """A slice of another map overlaps with each of this one that shares a single hash key with it."""
    shards = ShardMap([Slice("a", "a", 0, 9), Slice("b", "b", 10, 19), Slice("c", "c", 20, LAST)])
    assert places == list(shards.overlapping(Slice("x", "x", first, last)))


def test_a_stream_that_ignores_keys_has_as_many_slices_as_fill_a_request() -> None:
    """They cover all hash keys and expect no shard."""
    pieces = slices_without_shards()
    assert len(pieces) == RECORDS_PER_REQUEST == len({piece.name for piece in pieces})
    assert {piece.shard_id for piece in pieces} == {""}
    assert pieces[0].first == 0
    assert pieces[-1].last == LAST
