"""A time that a test sets."""


class StillClock:
    """A clock that stands still; `now` is in seconds."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
