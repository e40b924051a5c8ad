"""The invented posts of the stand-in for X, made once for all tests of a process: that takes a quarter of a second."""

from copy import copy

from local.posts import Generated, Snowflakes

_GENERATED = Generated(3)


def posts() -> Generated:
    """Give them once more, with ids that begin now: those of another test's time may be later."""
    again = copy(_GENERATED)
    again._ids = Snowflakes()
    return again
