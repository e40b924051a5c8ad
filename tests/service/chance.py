"""Chance at its two ends, for delays with jitter."""

from random import Random


class Longest(Random):
    """Each delay is its bound."""

    def random(self) -> float:
        return 1.0


class Shortest(Random):
    """Each delay is the least that it may be."""

    def random(self) -> float:
        return 0.0
