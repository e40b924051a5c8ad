from service.core.agenda import Agenda
from service.core.lane import NEVER, Lane
from service.core.pace import Pace
from service.core.shard_map import Slice


def lane(name: str) -> Lane:
    """Make a lane."""
    return Lane(Slice(name, name, 0, 1), Pace(0.0))


def test_lanes_are_taken_when_they_are_due() -> None:
    """The one that is due first comes first, those of one moment as they were added, and none before its time."""
    agenda = Agenda()
    late, first, second = lane("late"), lane("first"), lane("second")
    for which, when in ((late, 3.0), (first, 1.0), (second, 1.0)):
        agenda.add(which, when)
    assert agenda.next() == 1.0
    assert agenda.take(0.9) is None
    assert [agenda.take(1.0), agenda.take(1.0), agenda.take(1.0)] == [first, second, None]
    assert (agenda.next(), agenda.take(3.0), agenda.next()) == (3.0, late, NEVER)


def test_only_the_newest_entry_of_a_lane_counts() -> None:
    """A lane that was put off, put forward or taken is not due at the times before."""
    agenda = Agenda()
    moved = lane("moved")
    for when in (2.0, 5.0, 1.0, 4.0):
        agenda.add(moved, when)
    assert agenda.next() == 4.0
    assert agenda.take(4.0) is moved
    assert moved.due_at == NEVER
    assert agenda.take(9.0) is None
