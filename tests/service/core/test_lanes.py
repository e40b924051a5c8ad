from itertools import count

import pytest

from service.core.lane import Lane, State
from service.core.lanes import Lanes, ShardState
from service.core.limits import HASH_KEYS
from service.core.pace import DECREASE
from service.core.records import KinesisRecord, Post, SealReason
from service.core.shard_map import Slice, hash_key

NUMBER = count()


def cut(*names: str) -> list[Slice]:
    """Cut all hash keys into equal slices; what stands before the dot of a name is its shard."""
    edges = [HASH_KEYS * number // len(names) for number in range(len(names) + 1)]
    return [Slice(name, name.split(".")[0], edges[n], edges[n + 1] - 1) for n, name in enumerate(names)]


def post(half: int = 0) -> Post:
    """Make a post of an author in this half of all hash keys, received at 0."""
    key = next(name for n in range(100) if hash_key(name := b"author-%d" % n) * 2 // HASH_KEYS == half)
    return Post(b"%d" % next(NUMBER), "1", key, 0.0)


def lanes_of(*names: str) -> Lanes:
    """Make the lanes of a first map."""
    lanes = Lanes()
    lanes.redraw(cut(*names), 0.0)
    return lanes


def fail(lane: Lane, *posts: Post, state: State = State.BACKING_OFF, perhaps_stored: bool = True) -> None:
    """Give the lane a head in this state."""
    lane.head = KinesisRecord(lane.slice.name, "0", b"", posts, SealReason.SIZE, perhaps_stored=perhaps_stored)
    lane.state = state


def waiting(lanes: Lanes) -> list[list[Post]]:
    """Tell what waits in each open lane."""
    return [list(lane.posts) for lane in lanes.open]


def test_there_is_no_map_at_first() -> None:
    """To ask for it then is a mistake of the caller."""
    with pytest.raises(RuntimeError, match="on_shards"):
        _ = Lanes().map


def test_a_slice_that_stays_keeps_its_lane_and_its_shard_its_pace() -> None:
    """All else is new; lanes of one shard share a pace."""
    lanes = lanes_of("a.0", "a.1", "b.0", "b.1")
    before = lanes.open
    assert before[0].pace is before[1].pace is not before[2].pace
    quarter = HASH_KEYS // 4
    lanes.redraw([*cut("a.0", "a.1", "b.0", "b.1")[:3], Slice("b.x", "b", 3 * quarter, HASH_KEYS - 1)], 1.0)
    assert lanes.generation == 2
    assert before[:3] == lanes.open[:3]
    assert before[3] is not lanes.open[3]
    assert before[3].pace is lanes.open[3].pace


def test_what_waits_is_dealt_out_anew() -> None:
    """In order, and what may be stored already stays known, with what stands before it."""
    lanes = lanes_of("a")
    posts = [post(half) for half in (0, 1, 0, 1, 0)]
    lanes.put_in_front(posts[2:], doubtful=False)
    lanes.put_in_front(posts[:2], doubtful=True)
    lanes.redraw(cut("b", "c"), 1.0)
    assert waiting(lanes) == [posts[0::2], posts[1::2]]
    assert [lane.doubtful for lane in lanes.open] == [1, 1]
    assert [lane.size for lane in lanes.open] == [3, 2]
    assert not lanes.retired


def test_what_backs_off_goes_before_what_waits() -> None:
    """Nothing of it is under way, so that nobody has to wait for it."""
    lanes = lanes_of("a")
    head, newer = post(), post()
    fail(lanes.open[0], head)
    lanes.put_in_front([newer], doubtful=False)
    lanes.redraw(cut("b", "c"), 1.0)
    assert waiting(lanes) == [[head, newer], []]
    assert [lane.doubtful for lane in lanes.open] == [1, 0]


def test_new_lanes_wait_for_what_is_under_way() -> None:
    """Through several maps; those of other slices do not. Released, what was not stored goes to the front."""
    lanes = lanes_of("a", "b")
    old = lanes.open[0]
    head = post()
    fail(old, head, state=State.IN_FLIGHT, perhaps_stored=False)
    for names in (("c", "d", "e", "f"), ("c", "d", "x", "y")):
        lanes.redraw(cut(*names), 1.0)
        assert [lane.blockers for lane in lanes.open] == [{old}, {old}, set(), set()]
    assert lanes.inside() == [old, *lanes.open]
    assert lanes.release(old) == lanes.open[:2]
    assert [lane.blockers for lane in lanes.open] == [set()] * 4
    assert [len(lane.posts) for lane in lanes.open].count(1) == 1
    assert [lane.doubtful for lane in lanes.open] == [0] * 4
    assert lanes.inside() == lanes.open


def test_shards_tell_how_they_are() -> None:
    """What waits, since when, and how much of its limits each may use after its throttles."""
    lanes = lanes_of("a.0", "a.1", "b.0", "b.1")
    lanes.open[2].pace.throttled(1.0)
    fail(lanes.open[2], post(1), post(1))
    lanes.open[3].posts.append(Post(b"older", "1", b"key", -1.0))
    assert lanes.states(1.0) == [ShardState("a", 1.0, 0, 0.0), ShardState("b", DECREASE, 3, 2.0)]
    assert lanes.states(100.0)[1].share == 1.0


def test_lanes_without_a_shard_are_one() -> None:
    """Their records go anywhere, so that nothing can be told of one shard."""
    lanes = Lanes()
    lanes.redraw([piece._replace(shard_id="") for piece in cut("lane-0", "lane-1")], 0.0)
    lanes.put_in_front([post(0), post(1)], doubtful=False)
    lanes.open[0].pace.throttled(2.0)
    assert lanes.states(2.0) == [ShardState("any", DECREASE, 2, 2.0)]
