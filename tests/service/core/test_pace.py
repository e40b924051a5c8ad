import pytest

from service.core.limits import KIB, MIB
from service.core.pace import BURST_SECONDS, DECREASE, INCREASE, THROTTLE_PAUSE, Pace


def taken(pace: Pace, size: int, start: float, end: float) -> int:
    """Take records of this size whenever the pace allows it; say how many."""
    count, now = 0, start
    while (now := pace.ready_at(now)) < end:
        pace.take(size, now)
        count += 1
    return count


def test_the_first_record_goes_at_once() -> None:
    """A shard that was never asked has its burst."""
    assert Pace(7.0).ready_at(7.0) == 7.0


def test_small_records_are_held_to_a_thousand_a_second() -> None:
    """After the burst, the number of records is the limit."""
    assert taken(Pace(0.0), 100, 0.0, 10.0) == pytest.approx(1000 * (10 + BURST_SECONDS), abs=2)


def test_large_records_are_held_to_a_mebibyte_a_second() -> None:
    """After the burst, the bytes are the limit."""
    assert taken(Pace(0.0), 10 * KIB, 0.0, 10.0) * 10 * KIB == pytest.approx(MIB * (10 + BURST_SECONDS), abs=20 * KIB)


def test_a_record_larger_than_the_allowance_makes_the_next_one_wait() -> None:
    """A record of the largest size passes at once, on credit; the debt is paid in time."""
    pace = Pace(0.0)
    assert pace.ready_at(0.0) == 0.0
    pace.take(10 * MIB, 0.0)
    assert pace.ready_at(0.0) == pytest.approx(10 - BURST_SECONDS)


def test_unused_allowance_is_kept_for_a_burst_only() -> None:
    """A day of silence allows no more than half a second of it."""
    pace = Pace(0.0)
    assert pace.ready_at(86_400.0) == 86_400.0
    pace.take(MIB, 86_400.0)
    assert pace.ready_at(86_400.0) == pytest.approx(86_400 + 1 - BURST_SECONDS)


def test_a_throttle_takes_a_part_of_the_share_and_the_burst() -> None:
    """What the shard refused was too much: less from now on, and nothing in advance."""
    pace = Pace(0.0)
    pace.throttled(0.0)
    assert pace.share == pytest.approx(DECREASE)
    assert pace.ready_at(0.0) == 0.0
    pace.take(70 * KIB, 0.0)
    assert pace.ready_at(0.0) == pytest.approx(70 * KIB / (DECREASE * MIB), rel=0.01)


def test_a_throttle_takes_the_burst_of_small_records_too() -> None:
    """Both limits begin anew."""
    pace = Pace(0.0)
    pace.throttled(0.0)
    pace.take(1, 0.0)
    assert pace.ready_at(0.0) == pytest.approx(1 / (1000 * DECREASE))


def test_throttles_of_one_moment_are_one_event() -> None:
    """All lanes of a shard are refused together, and the retries under way with them; that counts once."""
    pace = Pace(0.0)
    for now in (0.0, 0.0, 0.01, THROTTLE_PAUSE - 0.01):
        pace.throttled(now)
    assert pace.share == pytest.approx(DECREASE)
    pace.throttled(THROTTLE_PAUSE)
    assert pace.share == pytest.approx((DECREASE + INCREASE * THROTTLE_PAUSE) * DECREASE)


def test_the_share_comes_back_when_the_throttles_end() -> None:
    """Each second without one adds a step, up to the whole shard."""
    pace = Pace(0.0)
    pace.throttled(0.0)
    pace.ready_at(2.0)
    assert pace.share == pytest.approx(DECREASE + 2 * INCREASE)
    pace.ready_at(100.0)
    assert pace.share == 1.0


def test_a_shard_that_only_throttles_is_still_tried() -> None:
    """The share never reaches zero, or nobody would learn that the shard is free again."""
    pace = Pace(0.0)
    for second in range(100):
        pace.throttled(second * THROTTLE_PAUSE)
    assert pace.share > 0.01
    pace.take(KIB, 25.0)
    assert pace.ready_at(25.0) < 26.0


def test_a_clock_that_stands_still_changes_nothing() -> None:
    """Asking again at the same time, or a moment earlier, adds no allowance."""
    pace = Pace(10.0)
    pace.take(MIB, 10.0)
    wait = pace.ready_at(10.0)
    assert wait == pace.ready_at(10.0)
    assert wait - 10.0 == pytest.approx(pace.ready_at(9.0) - 9.0)


@pytest.mark.parametrize("start", [0.1, 1e4 + 0.1, 1e8 + 0.1])
def test_the_time_that_was_named_is_late_enough(start: float) -> None:
    """Whoever comes back when told is never sent away again, or the caller's timer would spin."""
    pace = Pace(start)
    now = start
    for size in range(1, 500_000, 777):
        pace.take(size, now)
        if size % 10 == 0:
            pace.throttled(now)
        now = pace.ready_at(now)
        assert now == pace.ready_at(now)


def test_the_share_can_be_asked_for() -> None:
    """It is what it has grown to by now, and asking changes nothing."""
    pace = Pace(0.0)
    pace.throttled(0.0)
    assert pace.share_at(0.0) == DECREASE
    assert pace.share_at(2.0) == pytest.approx(DECREASE + 2 * INCREASE)
    assert pace.share_at(100.0) == 1.0
    assert pace.share == DECREASE
