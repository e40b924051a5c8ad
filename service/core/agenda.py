"""When each lane wants to be looked at: a heap, in which only the newest entry of a lane counts."""

from heapq import heappop, heappush

from service.core.lane import NEVER, Lane


class Agenda:
    """See the module's text; `len` counts outdated entries too. Times are seconds."""

    def __init__(self) -> None:
        # (due, tie-breaker, lane)
        self._entries: list[tuple[float, int, Lane]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, lane: Lane, when: float) -> None:
        """Look at the lane then, and not when it was to be looked at before."""
        lane.due_at = when
        self._count += 1
        heappush(self._entries, (when, self._count, lane))

    def next(self) -> float:
        """When the next lane is due; infinity if none is."""
        entries = self._entries
        while entries and entries[0][0] != entries[0][2].due_at:
            heappop(entries)
        return entries[0][0] if entries else NEVER

    def take(self, now: float) -> Lane | None:
        """Take the next lane off, if one is due by now."""
        entries = self._entries
        while entries and entries[0][0] <= now:
            due, _, lane = heappop(entries)
            if due == lane.due_at:
                lane.due_at = NEVER
                return lane
        return None
