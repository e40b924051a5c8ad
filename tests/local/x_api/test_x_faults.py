from typing import Any

import pytest

from local.x_api.clock import Clock
from local.x_api.faults import Faults, Refuse
from local.x_api.layout import Layout
from local.x_api.stream import Stream


class Quiet:
    """A feed without streams, and a door that nobody closes."""

    def __init__(self) -> None:
        self.streams = list[Stream]()
        self.rate = 0.0

    def set_rate(self, rate: float) -> None:
        self.rate = rate

    def enlarge_next(self, size: int) -> None:
        raise AssertionError

    async def close(self, seconds: float, *, silent: bool) -> None:
        raise AssertionError


@pytest.fixture
def faults() -> Faults:
    """Return faults of an app without streams."""
    return Faults(Quiet(), Quiet(), Clock(), Layout.LINE)


def test_refusals_are_used_up_in_their_order(faults: Faults) -> None:
    """Each comes as often as asked."""
    faults.inject("refuse", answer="service_unavailable", times=2)
    faults.inject("refuse", answer="hang")
    got = [faults.refusal("stream") for _ in range(4)]
    assert got == [Refuse("service_unavailable"), Refuse("service_unavailable"), Refuse("hang"), None]


def test_refusals_without_end_last_until_cleared(faults: Faults) -> None:
    """0 times is for ever."""
    faults.inject("refuse", answer="drop", times=0, endpoint="rules")
    assert {faults.refusal("rules") for _ in range(100)} == {Refuse("drop")}
    assert faults.refusal("stream") is None
    faults.inject("clear")
    assert faults.refusal("rules") is None


def test_layout_holds_for_later_connections(faults: Faults) -> None:
    """It stays until it is changed again."""
    faults.inject("layout", layout="bytes")
    assert faults.layout is Layout.BYTES


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("nonsense", {}),
        ("shutdown", {}),
        ("stall", {}),
        ("silence", {"seconds": "long"}),
        ("fin", {"seconds": 1}),
        ("fin", {"connection": -1}),
        ("operational_disconnect", {"disconnect_type": "Wild"}),
        ("layout", {"layout": "wild"}),
        ("refuse", {"answer": "wild"}),
        ("refuse", {"answer": "hang", "endpoint": "x"}),
        ("refuse", {"answer": "hang", "hanging": 1}),
        ("spike", {"seconds": 1}),
        ("fin", {"every": -1}),
        ("fin", {"after": "soon"}),
    ],
)
def test_what_is_not_a_fault_is_refused_before_anything_happens(
    faults: Faults, kind: str, parameters: dict[str, Any]
) -> None:
    """A typing error must not look like a fault that had no effect."""
    with pytest.raises(ValueError, match=r"unknown fault|must be|does not know"):
        faults.inject(kind, **parameters)
