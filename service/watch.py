"""
Follows the connection to X over time, and says what it is for: gaps, backfill, repeats, empty connections, the budget.

What is decided is decided in `core.gaps` and `core.spend`; here it meets the clock, the metrics, the readiness and
the log. The stream reports to it as to its `Observer`, and posts go through `sift` on their way in.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from service.core.gaps import Gap, Gaps, Kept, Window
from service.core.reconnect import Cause, Reason
from service.core.records import Post
from service.core.spend import Spend

# Of the gaps, /status shows so many of the newest.
SHOWN_GAPS = 20

log = structlog.get_logger()


class Metrics(Protocol):
    """What counts."""

    def connected(self) -> None:
        """There is a connection."""

    def disconnected(self, reason: str, retry_seconds: float) -> None:
        """There is none, or none again."""

    def keep_alive(self) -> None:
        """A sign of life has come."""

    def duplicate(self, posts: int) -> None:
        """Posts have come that had come before."""


class Health(Protocol):
    """What says whether posts can flow."""

    def set(self, name: str, ok: bool, reason: str = "") -> None:
        """Set a condition."""


class Board(Protocol):
    """What the live page shows."""

    def note(self, at: float, place: str, text: str, level: str = "ok") -> None:
        """Something has happened."""


class Watch:
    """
    See the module's text.

    Arguments:
        kept: what an earlier run has left of the same source.
        spend: counts posts against the budget.
        backfill: whether it may be asked for.
        metrics, health, board: are told.
        save: writes down what is to be kept; called before each connect.
        clock: the time of day, in seconds since 1970.

    Attributes:
        trouble: what somebody must act on, as a reason and X's words; empty texts if there is nothing.
        changed: something has happened that should be written down soon; whoever does so sets it back.
    """

    def __init__(
        self,
        kept: Kept,
        spend: Spend,
        *,
        backfill: bool,
        metrics: Metrics,
        health: Health,
        board: Board,
        save: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.trouble = ("", "")
        self.changed = False
        self.gaps = Gaps(kept)
        self.spend = spend
        self._window = Window()
        self._backfill = backfill
        self._metrics = metrics
        self._health = health
        self._board = board
        self._save = save
        self._clock = clock

    # The stream's observer

    async def connecting(self) -> None:
        """Write down that a connect is made."""
        await self._save()

    def backfill_minutes(self) -> int:
        """Say how much to ask for with the next connect; 0 for none."""
        return self.gaps.backfill_minutes(self._clock()) if self._backfill else 0

    def backfill_refused(self) -> None:
        """X answers 200 without backfill, and did not with it."""
        self.gaps.backfill_refused(self._clock())
        self.changed = True
        log.warning("backfill_refused", way_out="get X's Enterprise access, or set MILLRACE_BACKFILL=off")

    def connected(self, backfill_minutes: int) -> None:
        """X answered 200."""
        now = self._clock()
        gap = self.gaps.connected(now, backfill_minutes)
        self.trouble = ("", "")
        self.changed = True
        self._metrics.connected()
        self._health.set("stream", ok=True)
        more: dict[str, Any] = {}
        if gap is not None:
            more = {"gap_seconds": round(gap.seconds(now), 1), "posts_missed": gap.missed(now)}
        if backfill_minutes:
            more["backfill_minutes"] = backfill_minutes
        self._board.note(now, "X", f"connected after {more['gap_seconds']:g} s" if gap else "connected")
        log.info("stream_connected", **more)

    def disconnected(self, reason: Reason, detail: str, retry_seconds: float, healable: bool) -> None:
        """There is no connection; the next try comes in so many seconds."""
        now = self._clock()
        self.gaps.lost(reason, now)
        self.changed = True
        self.trouble = ("", "") if healable else (reason.value, detail)
        self._metrics.disconnected(reason, retry_seconds)
        self._health.set("stream", ok=False, reason=f"{reason}: {detail}")
        self._board.note(now, "X", f"{reason}: {detail}", "bad")
        write = log.info if healable else log.error
        write("stream_disconnected", reason=reason, detail=detail, retry_seconds=round(retry_seconds, 2))

    def keep_alive(self) -> None:
        """X wrote an empty line."""
        self.gaps.heard(self._clock())
        self._metrics.keep_alive()

    def objection(self) -> Cause | None:
        """Say why no connection is wanted now."""
        now = self._clock()
        if self.spend.is_spent(now):
            ends_at = self.spend.ends_at(now)
            words = f"{self.spend.posts:,} posts have come this month, and MILLRACE_MONTHLY_POSTS allows"
            words += f" {self.spend.budget:,}; nothing more is read before {_iso(ends_at)}"
            return Cause(Reason.BUDGET_SPENT, words, ends_at - now)
        if self.gaps.is_empty(now):
            return Cause(Reason.EMPTY, "X sends keep-alives but no posts, though there should be some")
        return None

    # Posts

    def sift(self, posts: list[Post]) -> list[Post]:
        """Take posts as they come, and give back those that have not come before."""
        fresh = self._window.fresh(posts)
        if len(fresh) < len(posts):
            self._metrics.duplicate(len(posts) - len(fresh))
        now = self._clock()
        self.gaps.arrived(fresh, now)
        self.spend.add(len(fresh), now)
        return fresh

    def forget(self, posts: Sequence[Post]) -> None:
        """Let posts come again: there was no room for them."""
        self._window.forget(posts)

    # Now and then

    def look(self) -> None:
        """Do what is due by time; call it every second or so."""
        now = self._clock()
        self.gaps.settle(now)
        if self.spend.should_warn(now):
            log.warning(
                "budget_nearly_spent",
                posts=self.spend.posts,
                budget=self.spend.budget,
                way_out="raise MILLRACE_MONTHLY_POSTS, or narrow the rules: at the budget nothing more is read",
            )

    def rules_changed(self) -> None:
        """Other posts are to be expected than before."""
        self.gaps.rules_changed()

    def stopped(self) -> None:
        """The stream is not read any more: what comes from now on is missed."""
        if self.gaps.is_connected:
            self.gaps.heard(self._clock())

    def keep(self, kept: Kept) -> None:
        """Write into `kept` what the next run needs."""
        self.gaps.keep(kept)
        kept.month, kept.posts = self.spend.month, self.spend.posts

    def gap_seconds(self) -> float:
        """How long there was no connection since the start of the process, and between it and the run before."""
        return self.gaps.seconds(self._clock())

    def status(self) -> Mapping[str, Any]:
        """Give what /status shows."""
        now = self._clock()
        reason, words = self.trouble
        return {
            "connected": self.gaps.is_connected,
            "needs_operator": {"reason": reason, "detail": words} if reason else None,
            "posts_per_second": round(self.gaps.rate, 2),
            "backfill": "off" if not self._backfill else "refused" if self.gaps.has_refused(now) else "on",
            "month": {"month": self.spend.month, "posts": self.spend.posts, "budget": self.spend.budget},
            "gaps": [describe(gap, now) for gap in self.gaps.entries[-SHOWN_GAPS:]],
        }


def describe(gap: Gap, now: float) -> Mapping[str, Any]:
    """Give a gap in words and figures; `until` is None while it lasts."""
    return {
        "from": _iso(gap.since),
        "until": None if gap.until is None else _iso(gap.until),
        "seconds": round(gap.seconds(now), 1),
        "reason": ", ".join((gap.reason, *gap.then)),
        "failed_tries": gap.tries,
        "backfill_minutes": gap.backfill_minutes,
        "backfilled": gap.backfilled,
        "missed_estimate": gap.missed(now),
    }


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
