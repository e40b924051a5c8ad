from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from local.kinesis.shards import HASH_KEYS, MIB, Bucket, Record, Shard, ShardFacts, ShardMap, uniform_ranges

WHOLE = (str(0), str(HASH_KEYS - 1))


def new_map(count: int) -> ShardMap:
    """Return the map of a new stream."""
    shard_map = ShardMap()
    shard_map.create(count, 0.0)
    return shard_map


def new_shard() -> Shard:
    """Return a shard that takes everything."""
    return Shard(ShardFacts(0, *WHOLE, (), 1), 0.0)


def ranges(shard_map: ShardMap) -> list[tuple[int, int]]:
    """Return the ranges of the open shards, both ends included."""
    return [(shard.start, shard.end) for shard in shard_map.open]


def assert_covered(shard_map: ShardMap) -> None:
    """Fail unless the open shards have every hash key exactly once."""
    edges = ranges(shard_map)
    assert edges[0][0] == 0
    assert edges[-1][1] == HASH_KEYS - 1
    assert all(end + 1 == start for (_, end), (start, _) in pairwise(edges))


class TestBucket:
    def test_it_starts_full_and_holds_one_second(self) -> None:
        """A full bucket gives one second of its rate, and no more after a long pause."""
        bucket = Bucket(5, now=0.0)
        bucket.take(5)
        assert not bucket.holds(1, now=0.0)
        assert bucket.holds(5, now=100.0)
        bucket.take(5)
        assert not bucket.holds(1, now=100.0)

    def test_it_fills_with_time(self) -> None:
        """A fifth of a second gives a fifth of the rate."""
        bucket = Bucket(5, now=0.0)
        bucket.take(5)
        assert not bucket.holds(1, now=0.19)
        assert bucket.holds(1, now=0.21)

    def test_a_clock_that_steps_back_neither_fills_nor_empties_it(self) -> None:
        """Time that runs backwards changes nothing."""
        bucket = Bucket(5, now=10.0)
        bucket.take(3)
        assert bucket.holds(2, now=5.0)
        assert not bucket.holds(3, now=5.0)


class TestAdmit:
    def test_a_thousand_records_at_once_then_one_a_millisecond(self) -> None:
        """A shard takes 1,000 records at once and refills at 1,000 a second."""
        shard = new_shard()
        assert [shard.admit(1, 0.0) for _ in range(1001)] == [True] * 1000 + [False]
        assert [shard.admit(1, 0.0105) for _ in range(11)] == [True] * 10 + [False]

    def test_one_mebibyte_at_once(self) -> None:
        """A shard takes 1 MiB at once, however few records that is."""
        shard = new_shard()
        assert [shard.admit(MIB // 4, 0.0) for _ in range(5)] == [True] * 4 + [False]

    def test_a_record_of_more_than_a_mebibyte_waits_for_a_full_tank_and_is_paid_back(self) -> None:
        """3 MiB pass at once, and the next byte after more than two seconds."""
        shard = new_shard()
        assert shard.admit(3 * MIB, 0.0)
        assert not shard.admit(1, 2.0)
        assert shard.admit(1, 2.1)
        assert not shard.admit(3 * MIB, 3.0)

    def test_what_is_refused_costs_nothing(self) -> None:
        """A record that does not fit leaves the room to a smaller one."""
        shard = new_shard()
        assert shard.admit(MIB - 10, 0.0)
        assert not shard.admit(11, 0.0)
        assert shard.admit(10, 0.0)

    def test_trimmed_is_what_was_accepted_and_is_not_kept(self) -> None:
        """The number of trimmed records follows from the other two."""
        shard = new_shard()
        shard.facts.accepted = 3
        shard.records.append(Record(3, 0, 0.0, 1, b"", "k", None))
        assert shard.trimmed == 2


class TestShardMap:
    def test_ranges_are_equal_and_leave_no_gap(self) -> None:
        """The last range takes what the division leaves over."""
        cut = uniform_ranges(3)
        assert cut[0] == (0, HASH_KEYS // 3 - 1)
        assert cut[2][1] == HASH_KEYS - 1
        assert cut[1][0] == cut[0][1] + 1

    def test_each_hash_key_has_its_shard(self) -> None:
        """The first and the last key of a range belong to its shard."""
        shard_map = new_map(4)
        for shard in shard_map.shards:
            assert shard_map.at(shard.start) is shard
            assert shard_map.at(shard.end) is shard

    def test_a_split_closes_the_parent_and_opens_two_children_above_it(self) -> None:
        """Parents keep their place in the history; positions rise."""
        shard_map = new_map(2)
        parent = shard_map.shards[1]
        shard_map.split(parent, parent.start + 10, now=5.0)
        assert [shard.index for shard in shard_map.open] == [0, 2, 3]
        assert [child.facts.parents for child in shard_map.open[1:]] == [(1,), (1,)]
        assert parent.facts.closed_at == 5.0
        assert parent.facts.closed is not None
        assert all(child.facts.opened > parent.facts.closed for child in shard_map.open[1:])
        assert shard_map.at(parent.start + 9).index == 2
        assert shard_map.at(parent.start + 10).index == 3

    def test_a_merge_closes_both_and_opens_one(self) -> None:
        """The child knows both parents, the one named first first."""
        shard_map = new_map(3)
        child = shard_map.merge(shard_map.shards[1], shard_map.shards[0], now=5.0)
        assert child.facts.parents == (1, 0)
        assert (child.start, child.end) == (0, shard_map.shards[1].end)
        assert [shard.index for shard in shard_map.open] == [3, 2]

    @given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    def test_scaling_gives_equal_ranges_whatever_was_there(self, targets: list[int]) -> None:
        """After scaling, the open shards are exactly the uniform ranges, and every closed one has children."""
        shard_map = new_map(2)
        for target in targets:
            shard_map.scale(target, now=1.0)
            assert ranges(shard_map) == uniform_ranges(target)
        parents = {parent for shard in shard_map.shards for parent in shard.facts.parents}
        assert all(shard.is_open or shard.index in parents for shard in shard_map.shards)
        assert all(len(shard.facts.parents) <= 2 for shard in shard_map.shards)

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, HASH_KEYS - 1)), max_size=12))
    def test_any_series_of_splits_and_merges_covers_all_hash_keys_once(self, steps: list[tuple[bool, int]]) -> None:
        """No reshard leaves a gap or an overlap."""
        shard_map = new_map(3)
        for is_split, hash_key in steps:
            shard = shard_map.at(hash_key)
            if is_split and hash_key > shard.start:
                shard_map.split(shard, hash_key, now=1.0)
            elif shard.end + 1 < HASH_KEYS:
                shard_map.merge(shard, shard_map.at(shard.end + 1), now=1.0)
            assert_covered(shard_map)

    def test_facts_read_back_rebuild_the_map(self) -> None:
        """A map that is made of another's facts routes as that one does and goes on counting after it."""
        shard_map = new_map(2)
        shard_map.scale(3, now=1.0)
        copy = ShardMap()
        copy.restore([shard.facts for shard in shard_map.shards], shard_map.position, now=1.0)
        assert ranges(copy) == ranges(shard_map)
        assert copy.position == shard_map.position
