"""How many requests are under way, and what an outage changes."""

from random import Random

import pytest

from service.core.in_flight import FIRST_WINDOW, LARGEST_WINDOW, InFlight
from service.core.limits import RECORDS_PER_REQUEST
from service.core.records import FailureKind, PutRequest


def fill(in_flight: InFlight) -> list[PutRequest]:
    """Start as many requests as may go."""
    started = []
    while in_flight.has_room():
        started.append(in_flight.start([], [], 1))
    return started


def fail(in_flight: InFlight, kind: FailureKind, now: float) -> None:
    """Start a request and tell that it got no answer."""
    in_flight.end(in_flight.start([], [], 1))
    in_flight.note_silence(kind, now)


@pytest.fixture
def in_flight() -> InFlight:
    """Nothing under way, and room for 100 bytes."""
    return InFlight(100, Random(1))


def test_failures_halve_the_window_down_to_one(in_flight: InFlight) -> None:
    """A Kinesis that does not answer is asked by one request at a time."""
    seen = [in_flight.window]
    for second in range(5):
        fail(in_flight, FailureKind.UNKNOWN, second)
        seen.append(in_flight.window)
    assert seen == [FIRST_WINDOW, 4, 2, 1, 1, 1]


def test_a_full_window_grows_by_one_for_each_round_of_answers(in_flight: InFlight) -> None:
    """Up to the most that the connections serve."""
    seen = []
    for _ in range(2 * LARGEST_WINDOW):
        for request in fill(in_flight):
            in_flight.end(request)
            in_flight.note_answer()
        seen.append(in_flight.window)
    assert seen == sorted(seen)
    assert seen[0] == FIRST_WINDOW + 1
    assert LARGEST_WINDOW - FIRST_WINDOW <= seen.index(LARGEST_WINDOW) + 1 < 1.5 * LARGEST_WINDOW
    assert seen[-1] == LARGEST_WINDOW


def test_a_window_that_is_not_used_does_not_grow(in_flight: InFlight) -> None:
    """Successes of a calm stream say nothing about what Kinesis could take."""
    for _ in range(50):
        request = in_flight.start([], [], 1)
        in_flight.end(request)
        in_flight.note_answer()
    assert in_flight.window == FIRST_WINDOW


def test_bytes_bound_it_too(in_flight: InFlight) -> None:
    """With so many bytes under way, or about to be, nothing more is sent."""
    request = in_flight.start([], [], 60)
    assert in_flight.has_room(39)
    assert not in_flight.has_room(40)
    in_flight.end(request)
    assert in_flight.bytes == len(in_flight) == 0


def test_one_failure_is_no_outage(in_flight: InFlight) -> None:
    """It may be one broken connection among many that work; the second in a row stops all."""
    fail(in_flight, FailureKind.UNKNOWN, 1.0)
    assert in_flight.records_at_most == RECORDS_PER_REQUEST
    fail(in_flight, FailureKind.UNKNOWN, 1.0)
    assert in_flight.silent_until > 1.0
    assert in_flight.records_at_most == 1


def test_failures_of_requests_that_were_under_way_count_once(in_flight: InFlight) -> None:
    """They tell what is known already, and do not make the wait longer."""
    fail(in_flight, FailureKind.UNKNOWN, 1.0)
    fail(in_flight, FailureKind.UNKNOWN, 1.0)
    until = in_flight.silent_until
    fail(in_flight, FailureKind.UNKNOWN, 1.0)
    assert in_flight.silent_until == until


def test_the_first_answer_ends_an_outage(in_flight: InFlight) -> None:
    """And says so, once."""
    for _ in range(2):
        fail(in_flight, FailureKind.DENIED, 1.0)
    assert in_flight.note_answer()
    assert in_flight.records_at_most == RECORDS_PER_REQUEST
    assert not in_flight.note_answer()
