"""
Requests under way: how many may be, who waits for which answer, and what happens when no answers come.

**Window.** As many requests are under way as the window says. It grows by one for each round of answers while it is
full, and halves with each request that gets none.

**Outage.** When one request after the other gets no answer, nothing is sent until `silent_until`, and then one record
alone asks whether Kinesis is back. A full request would be made and signed in vain.
"""

from random import Random

from service.core.backoff import Trouble, delay
from service.core.lane import NEVER, Lane
from service.core.limits import RECORDS_PER_REQUEST
from service.core.records import FailureKind, KinesisRecord, PutRequest

# Requests under way: where the window starts, and the most that the connections of the shell serve.
FIRST_WINDOW = 8
LARGEST_WINDOW = 48


class InFlight:
    """
    See the module's text.

    Args:
        most_bytes: of records under way; with so many nothing more is sent.
        rng: for the jitter of the delays.

    Attributes:
        bytes: of the records under way.
        silent_until: nothing is sent before, in seconds; minus infinity outside an outage.
    """

    def __init__(self, most_bytes: float, rng: Random) -> None:
        self.bytes = 0
        self.silent_until = -NEVER
        self._most_bytes = most_bytes
        self._rng = rng
        self._lanes: dict[int, list[Lane]] = {}
        self._requests = 0
        self._window = float(FIRST_WINDOW)
        self._was_filled = False
        # Rounds in a row in which Kinesis answered nothing.
        self._silent_rounds = 0

    def __len__(self) -> int:
        """How many requests are under way."""
        return len(self._lanes)

    @property
    def window(self) -> int:
        """How many may be under way at once."""
        return int(self._window)

    @property
    def records_at_most(self) -> int:
        """How many records the next request may have."""
        return RECORDS_PER_REQUEST if self.silent_until == -NEVER else 1

    def has_room(self, size: int = 0) -> bool:
        """Whether one more request may go, beside `size` bytes of records that are about to."""
        return len(self._lanes) < int(self._window) and self.bytes + size < self._most_bytes

    def start(self, records: list[KinesisRecord], lanes: list[Lane], size: int) -> PutRequest:
        """Make the request of the heads of some lanes, `size` bytes together."""
        self._requests += 1
        self._lanes[self._requests] = lanes
        self.bytes += size
        self._was_filled = len(self._lanes) >= self.window
        return PutRequest(self._requests, records, size)

    def end(self, request: PutRequest) -> list[Lane]:
        """Give the lanes of a request, in the order of its records; it is not under way any more."""
        self.bytes -= request.size
        return self._lanes.pop(request.number)

    def note_answer(self) -> bool:
        """Tell that Kinesis has answered. Returns whether that ended an outage."""
        if self._was_filled:
            self._window = min(LARGEST_WINDOW, self._window + 1 / int(self._window))
        was_silent = self._silent_rounds > 0
        self._silent_rounds, self.silent_until = 0, -NEVER
        return was_silent

    def note_silence(self, kind: FailureKind, now: float) -> None:
        """Tell that a request got no answer: send less; if nothing at all is answered, wait before the next try."""
        self._window = max(1.0, self._window / 2)
        if now < self.silent_until:
            return
        # The first failure alone may be one broken connection among many that work.
        if self._silent_rounds:
            trouble = Trouble.DENIED if kind is FailureKind.DENIED else Trouble.UNAVAILABLE
            self.silent_until = now + delay(trouble, self._silent_rounds, self._rng)
        self._silent_rounds += 1
