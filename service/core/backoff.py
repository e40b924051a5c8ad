"""
How long a lane waits before it tries again: exponential, with full jitter.

Full jitter (a delay drawn evenly from zero to the bound) spreads lanes that failed together better than a fixed
delay with a little noise: see "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from enum import Enum
from random import Random


class Trouble(Enum):
    """What made the lane wait: the first bound and the last one, in seconds."""

    # A throttled shard opens again within a second, and the pace already holds the lane back.
    THROTTLED = (0.05, 1.0)
    # Kinesis does not answer, or answers with an inner failure. Five seconds keep the catching up prompt.
    UNAVAILABLE = (0.1, 5.0)
    # Credentials, permissions, a missing stream: somebody has to act first, and each try is a line in CloudTrail.
    DENIED = (1.0, 30.0)


def delay(trouble: Trouble, failures: int, rng: Random) -> float:
    """Seconds to wait after the given number of failures in a row (1 or more)."""
    first, last = trouble.value
    return rng.uniform(0, min(last, first * 2 ** min(failures - 1, 16)))
