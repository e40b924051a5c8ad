from itertools import product

import pytest

from service.core.lane import MOVES, Event, Lane, State
from service.core.pace import Pace
from service.core.records import KinesisRecord, Post, SealReason
from service.core.shard_map import Slice


def a_lane() -> Lane:
    """Make a lane for the whole stream."""
    return Lane(Slice("shardId-0", "shardId-0", 0, (1 << 128) - 1), Pace(0.0))


def lane_in(state: State) -> Lane:
    """Make a lane whose head failed once and is now in this state."""
    lane = a_lane()
    lane.head = KinesisRecord("shardId-0", "0", b"data", [], SealReason.SIZE)
    lane.state = state
    lane.failures = 1
    return lane


def post(size: int = 10) -> Post:
    """Make a post with a line of this size."""
    return Post(b"x" * size, "1", b"key", 0.0)


@pytest.mark.parametrize(("state", "event"), MOVES)
def test_a_move_of_the_table(state: State, event: Event) -> None:
    """The lane follows the table; its head leaves exactly when it becomes idle."""
    lane = lane_in(state)
    lane.move(event)
    assert MOVES[state, event] is lane.state
    assert (lane.head is None) == (lane.state is State.IDLE)
    assert (lane.failures == 0) == (lane.state is State.IDLE)


@pytest.mark.parametrize(("state", "event"), sorted(set(product(State, Event)) - set(MOVES), key=str))
def test_a_move_that_is_not_in_the_table(state: State, event: Event) -> None:
    """Any other move is a bug: it raises, and the lane stays as it was."""
    lane = lane_in(state)
    with pytest.raises(KeyError):
        lane.move(event)
    assert state is lane.state
    assert lane.head is not None


def test_a_retry_keeps_the_head_until_it_is_accepted() -> None:
    """Sent, failed, sent again, accepted: only then is the lane free for the next."""
    lane = lane_in(State.IDLE)
    head = lane.head
    for event in (Event.SENT, Event.RETRY, Event.SENT, Event.RETRY, Event.SENT):
        lane.move(event)
        assert head is lane.head
    lane.move(Event.ACCEPTED)
    assert lane.head is None


def test_posts_leave_in_the_order_in_which_they_came() -> None:
    """What is taken comes from the front; the size follows."""
    lane = a_lane()
    posts = [post(size) for size in (10, 20, 30)]
    lane.put_in_front(posts, doubtful=False, astray=0)
    assert lane.take(2) == posts[:2]
    assert lane.size == 30
    assert lane.take(1) == posts[2:]
    assert lane.size == 0


def test_what_comes_back_stands_before_all_others() -> None:
    """Posts put in front keep their own order; until they are taken, the lane knows how many may be stored already."""
    lane = a_lane()
    newer, older = [post()], [post(), post()]
    lane.put_in_front(newer, doubtful=False, astray=0)
    lane.put_in_front(older, doubtful=True, astray=1)
    assert list(lane.posts) == [*older, *newer]
    assert (lane.doubtful, lane.astray) == (2, 1)
    lane.take(1)
    assert lane.doubtful == 1
    lane.take(2)
    assert lane.doubtful == 0


def test_what_stands_before_doubtful_posts_counts_with_them() -> None:
    """Only the first posts of a lane can be doubtful, so what is put before them becomes so."""
    lane = a_lane()
    lane.put_in_front([post()], doubtful=True, astray=2)
    lane.put_in_front([post()], doubtful=False, astray=0)
    assert (lane.doubtful, lane.astray) == (2, 2)


def test_sequence_numbers_must_rise() -> None:
    """A number that is not above the one before it is out of order; the next is held against it."""
    lane = a_lane()
    # Kinesis' numbers have 56 digits: as floats, or as texts of unlike length, they would compare wrongly.
    numbers = ["9", "49590338271490256608559692538361571095921575989136588898", "11", "12", "12"]
    assert [lane.in_sequence(number) for number in numbers] == [True, True, False, True, False]


def test_the_text_of_a_lane_says_what_it_does() -> None:
    """A lane in a traceback or a debugger shows name, state and load."""
    lane = lane_in(State.BACKING_OFF)
    lane.posts.append(post())
    assert repr(lane) == "<Lane shardId-0 backing off, 1 posts waiting, 1 failures>"
