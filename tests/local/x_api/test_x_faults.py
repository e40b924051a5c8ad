from typing import Any

import pytest

from local.x_api.faults import Faults
from local.x_api.stream import Layout


@pytest.fixture
def faults() -> Faults:
    """Return faults of an app without streams."""
    return Faults(list, Layout.LINE)


def test_refusals_are_used_up_in_their_order(faults: Faults) -> None:
    """Each comes as often as asked."""
    faults.inject("refuse", answer="service_unavailable", times=2)
    faults.inject("refuse", answer="hang")
    got = [faults.refusal("stream") for _ in range(4)]
    assert got == ["service_unavailable", "service_unavailable", "hang", None]


def test_refusals_without_end_last_until_cleared(faults: Faults) -> None:
    """0 times is for ever."""
    faults.inject("refuse", answer="drop", times=0, endpoint="rules")
    assert {faults.refusal("rules") for _ in range(100)} == {"drop"}
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
        ("refuse", {"answer": "wild"}),
    ],
)
def test_what_is_not_a_fault_is_refused_before_anything_happens(
    faults: Faults, kind: str, parameters: dict[str, Any]
) -> None:
    """A typing error must not look like a fault that had no effect."""
    with pytest.raises(ValueError, match=r"unknown fault|must be|does not know"):
        faults.inject(kind, **parameters)
