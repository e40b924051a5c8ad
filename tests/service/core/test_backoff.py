from random import Random

import pytest

from service.core.backoff import Trouble, delay
from tests.service.chance import Longest, Shortest


def test_the_bound_doubles_with_each_failure() -> None:
    """The first bound belongs to the first failure, and each further one doubles it."""
    assert [delay(Trouble.UNAVAILABLE, failures, Longest()) for failures in range(1, 5)] == [0.1, 0.2, 0.4, 0.8]


@pytest.mark.parametrize(
    ("trouble", "longest"), [(Trouble.THROTTLED, 1.0), (Trouble.UNAVAILABLE, 5.0), (Trouble.DENIED, 30.0)]
)
def test_the_bound_ends_at_the_troubles_own_last_one(trouble: Trouble, longest: float) -> None:
    """However long an outage lasts, no lane waits longer than its trouble deserves."""
    assert longest == delay(trouble, 10, Longest())
    assert longest == delay(trouble, 10**9, Longest())


def test_full_jitter_begins_at_zero() -> None:
    """The delay is drawn from zero upwards, not from a fixed part of the bound."""
    assert delay(Trouble.DENIED, 7, Shortest()) == 0


@pytest.mark.parametrize("trouble", Trouble)
def test_the_delay_is_within_its_bounds(trouble: Trouble) -> None:
    """Whatever chance says, the delay is neither negative nor over the bound."""
    rng = Random(1)
    first, last = trouble.value
    for failures in range(1, 100):
        assert 0 <= delay(trouble, failures, rng) <= min(last, first * 2 ** (failures - 1))


def test_lanes_that_failed_together_come_back_apart() -> None:
    """Over many lanes the delays fill the whole range evenly."""
    rng = Random(1)
    delays = [delay(Trouble.UNAVAILABLE, 20, rng) for _ in range(1000)]
    for quarter in range(4):
        assert 200 < sum(quarter <= wait / 1.25 < quarter + 1 for wait in delays) < 300
