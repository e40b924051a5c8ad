"""
What was missed while disconnected, what backfill to ask for, and which posts are repeats.

X's streams have no cursor: what a rule matched while nobody was connected does not come by itself. So three things
are kept here:

* **Gaps.** From the last sign of life to the next 200, each with the posts that it cost by estimate: the rate before,
  times its length, less what backfill brought back.
* **The rate**, as an average that forgets with a time constant of ten minutes of connection. Without it silence says
  nothing: a connection is *empty*, alive but without posts, only if 20 were to be expected and none came for a minute.
  X has been seen to leave connections like that after an operational disconnect; a new one helps. A stream that
  really has fallen silent is asked half as often each time.
* **The window**: the ids of the last 131,072 posts at least, twice as many at most (some 25 MB). X may deliver twice at
  any time, and backfill does so by design: asked for 2 minutes after 90 seconds, it repeats 30. The window covers five
  minutes of backfill at 430 posts a second; X delivers 250 to most. It does not outlive the process: what a backfill
  after a restart repeats goes out once more, and the table, keyed by id, holds it once.

Backfill (`backfill_minutes`, 1 to 5) belongs to X's Enterprise access. What X answers to others is not documented, so a
refusal (400 or 403) of a request that asked for it is taken as one of the backfill if the same request without it
succeeds. Then it is not asked for again for a week.

Times are seconds since 1970, because gaps outlive the process. A clock set back makes none shorter than nothing.
"""

import math
from collections.abc import Sequence

import msgspec

from service.core.reconnect import Reason
from service.core.records import Post

# X's ids count milliseconds from this moment, in seconds since 1970, above 22 bits of other things.
SNOWFLAKE_EPOCH = 1288834974.657
# They have 64 bits; what is longer is the id of something else.
SNOWFLAKE_DIGITS = 19

# X: backfill_minutes is 0 to 5.
BACKFILL_MINUTES = 5
# A post reaches the stream some seconds after it was written (X: the 99th percentile is 6 to 7 s).
MARGIN_SECONDS = 10.0
# How long a refusal of backfill is believed.
LEARNT_SECONDS = 7 * 86_400.0

# The time constant of the rate.
RATE_SECONDS = 600.0
# So long without a post, and so many expected meanwhile, and the connection is empty.
EMPTY_SECONDS = 60.0
EMPTY_POSTS = 20.0

WINDOW_POSTS = 131_072
# How many gaps are remembered: three a day, X's usual, for most of a year.
GAPS = 1000


def written_at(post_id: str) -> float | None:
    """When a post of X was written, in seconds since 1970, to the millisecond; None if that is no id of X's."""
    if post_id.isdecimal() and len(post_id) <= SNOWFLAKE_DIGITS:
        return (int(post_id) >> 22) / 1000 + SNOWFLAKE_EPOCH
    return None


class Gap(msgspec.Struct):
    """
    One time without a connection.

    Attributes:
        since: the last sign of life before it.
        until: when X answered 200 again; None while it lasts.
        reason: why it began, one of `core.reconnect.Reason`, or "restart".
        rate: posts a second before it.
        tries: connects that failed meanwhile.
        backfill_minutes: what was asked for at its end, 0 for none.
        backfilled: posts written during it that came all the same, by this backfill or, if it broke off, by the next.
        then: for what other reasons it went on, each once.
    """

    since: float
    reason: str
    rate: float
    until: float | None = None
    tries: int = 0
    backfill_minutes: int = 0
    backfilled: int = 0
    then: list[str] = []

    def seconds(self, now: float) -> float:
        """How long it lasted, or lasts."""
        return max(0.0, (now if self.until is None else self.until) - self.since)

    def missed(self, now: float) -> int:
        """About how many posts it cost."""
        return max(0, round(self.rate * self.seconds(now)) - self.backfilled)


class Kept(msgspec.Struct):
    """
    What a restart must not forget about the source.

    Attributes:
        source: whose it is; another source, or partition, begins anew.
        saved_at: when it was written down.
        heard_at: the last sign of life, None before the first connection.
        rate: posts a second.
        spare: connects that X still allows, as `core.reconnect.Budget` counts.
        gaps: oldest first.
        backfill_refused_at: None if it was not.
        connection: X's id of our last connection, for the Connections API; "" if it is not known.
        month: of `posts`, such as 2026-11, by UTC.
        posts: how many came in that month.
    """

    source: str = ""
    saved_at: float = 0.0
    heard_at: float | None = None
    rate: float = 0.0
    spare: float | None = None
    gaps: list[Gap] = []
    backfill_refused_at: float | None = None
    connection: str = ""
    month: str = ""
    posts: int = 0


class Rate:
    """Posts a second while connected, forgetting with a time constant of ten minutes."""

    def __init__(self) -> None:
        self._posts = 0.0
        self._seconds = 0.0
        self._at: float | None = None

    def resume(self, now: float) -> None:
        """Time counts from here on."""
        self._at = now

    def pause(self) -> None:
        """Time does not count: there is no connection."""
        self._at = None

    def add(self, posts: int, now: float) -> None:
        """Posts have come, or time has passed."""
        if self._at is not None and now > self._at:
            left = math.exp((self._at - now) / RATE_SECONDS)
            self._posts *= left
            self._seconds = self._seconds * left + RATE_SECONDS * (1 - left)
            self._at = now
        self._posts += posts

    @property
    def value(self) -> float:
        """Posts a second; in the first second of the first connection, posts so far."""
        return self._posts / max(1.0, self._seconds)


class Window:
    """Recognises posts that have come before, among the last `size` to twice as many. Meant for whole chunks."""

    def __init__(self, size: int = WINDOW_POSTS) -> None:
        self._size = size
        self._young: set[str] = set()
        self._old: set[str] = set()

    def fresh(self, posts: list[Post]) -> list[Post]:
        """Return those that have not come before, in order, and remember them. Without an id none is a repeat."""
        ids = {post.id for post in posts}
        if len(ids) < len(posts) or not (ids.isdisjoint(self._young) and ids.isdisjoint(self._old)):
            posts = self._without_repeats(posts, self._young & ids | self._old & ids)
            ids.discard("")
        self._young |= ids
        if len(self._young) > self._size:
            self._old, self._young = self._young, set()
        return posts

    @staticmethod
    def _without_repeats(posts: list[Post], seen: set[str]) -> list[Post]:
        fresh = []
        for post in posts:
            if post.id not in seen:
                fresh.append(post)
                if post.id:
                    seen.add(post.id)
        return fresh

    def forget(self, posts: Sequence[Post]) -> None:
        """Let posts come again: they were dropped for want of room, and a backfill may bring them back."""
        ids = {post.id for post in posts}
        self._young -= ids
        self._old -= ids


class Gaps:
    """
    Follows one stream: what came, when there was nobody to take it, and what that cost.

    Arguments:
        kept: of an earlier run. Its end was the beginning of a gap.

    Attributes:
        entries: all gaps that are remembered, oldest first; the last one may be open.
        missed: about how many posts they cost since the start of the process; each when backfill has had its chance.
        backfilled: how many posts of gaps came all the same since then.
    """

    def __init__(self, kept: Kept) -> None:
        self.entries = kept.gaps[-GAPS:]
        self.missed = 0
        self.backfilled = 0
        self._seconds = 0.0
        self._refused_at = kept.backfill_refused_at
        self._heard_at = kept.heard_at
        self._post_at = 0.0
        self._lag = 0.0
        self._rate = Rate()
        self._kept_rate = kept.rate
        self._patience = EMPTY_SECONDS
        self._open: Gap | None = None
        # Gaps whose backfill is under way, or was cut off by the next one; oldest first.
        self._filling: list[Gap] = []
        self._backfill_minutes = 0
        last = self.entries[-1] if self.entries else None
        if last is not None and last.until is None:
            self._open = last
        elif kept.heard_at is not None:
            self._begin(kept.heard_at, "restart")

    @property
    def rate(self) -> float:
        """Posts a second; of the earlier run, until one has come in this."""
        return self._rate.value or self._kept_rate

    @property
    def is_connected(self) -> bool:
        """Whether somebody takes what comes."""
        return self._heard_at is not None and self._open is None

    def seconds(self, now: float) -> float:
        """How long there was no connection since the start of the process, the gap that lasts included."""
        return self._seconds + (self._open.seconds(now) if self._open else 0.0)

    def missing(self, now: float) -> int:
        """About how many posts those gaps cost so far that do not count yet."""
        return sum(gap.missed(now) for gap in (*self._filling, self._open) if gap)

    # What happens

    def connected(self, now: float, backfill_minutes: int = 0) -> Gap | None:
        """X answered 200. Returns the gap that this ended."""
        gap, self._open = self._open, None
        self._heard_at = self._post_at = now
        self._rate.resume(now)
        if gap is not None:
            gap.until = now
            gap.backfill_minutes = backfill_minutes
            self._seconds += gap.seconds(now)
            self._filling.append(gap)
            self._backfill_minutes = backfill_minutes
            # Whether an empty connection had a reason to be one shows only now.
            if not backfill_minutes and gap.reason != Reason.EMPTY:
                self._settle(now)
        return gap

    def heard(self, now: float) -> None:
        """X gave a sign of life."""
        self._heard_at = now

    def arrived(self, posts: Sequence[Post], now: float) -> None:
        """Posts have come that had not come before."""
        self._heard_at = self._post_at = now
        self._patience = EMPTY_SECONDS
        live = len(posts)
        if self._filling:
            live -= self._fill(posts, now)
        self._rate.add(live, now)
        if posts and not self._filling:
            written = written_at(posts[-1].id)
            self._lag = max(0.0, now - written) if written is not None else 0.0

    def lost(self, reason: str, now: float) -> None:
        """
        There is no connection, or there is none again.

        A stall is only noticed: the gap began with the last sign of life. That of an empty connection began with the
        last post.
        """
        if self._open is not None:
            self._open.tries += 1
            if reason not in {self._open.reason, *self._open.then}:
                self._open.then.append(reason)
        elif self._heard_at is not None:
            if reason == Reason.STALL:
                self._begin(self._heard_at, reason)
            elif reason == Reason.EMPTY:
                self._begin(self._post_at, reason)
                self._patience *= 2
                # It may have fallen silent for a good reason: then less is to be expected from now on.
                self._rate.add(0, now)
            else:
                self._rate.add(0, now)
                self._begin(now, reason)
            self._rate.pause()

    def rules_changed(self) -> None:
        """What is to be expected is not known any more."""
        self._rate = Rate()
        self._kept_rate = 0.0
        if self.is_connected and self._heard_at is not None:
            self._rate.resume(self._heard_at)

    # What follows from it

    def is_empty(self, now: float) -> bool:
        """Whether the connection is alive and brings nothing, though posts were to be expected."""
        silent = now - self._post_at
        if not self.is_connected or silent < self._patience:
            return False
        # The rate is still that of the last post's moment: silence is added to it when it has an end.
        return self.rate * silent >= EMPTY_POSTS

    def backfill_minutes(self, now: float) -> int:
        """How much to ask for when connecting now; 0 for none."""
        if self._open is None or self.has_refused(now):
            return 0
        # A drop during a backfill leaves two gaps to fill.
        oldest = self._filling[0] if self._filling else self._open
        wanted = (max(0.0, now - oldest.since) + self._lag + MARGIN_SECONDS) / 60
        return min(BACKFILL_MINUTES, math.ceil(wanted))

    def has_refused(self, now: float) -> bool:
        """Whether X has refused backfill within the last week."""
        return self._refused_at is not None and 0 <= now - self._refused_at < LEARNT_SECONDS

    def backfill_refused(self, now: float) -> None:
        """X takes the request without backfill, and did not take it with."""
        self._refused_at = now

    def settle(self, now: float) -> None:
        """Close the account of a backfill that has had its time; call it now and then."""
        if self._filling and self.is_connected:
            until = self._filling[-1].until
            assert until is not None
            if now - until > max(self._backfill_minutes * 60, EMPTY_SECONDS):
                self._settle(now)

    def keep(self, kept: Kept) -> None:
        """Write into `kept` what the next run needs."""
        kept.heard_at = self._heard_at
        kept.rate = self.rate
        kept.gaps = self.entries
        kept.backfill_refused_at = self._refused_at

    def _begin(self, since: float, reason: str) -> None:
        self._open = Gap(since, reason, round(self.rate, 3))
        self.entries.append(self._open)
        del self.entries[:-GAPS]

    def _fill(self, posts: Sequence[Post], now: float) -> int:
        """Count the posts that were written during gaps, and how many those are; without any, the filling is over."""
        old = 0
        for post in posts:
            written = written_at(post.id)
            if written is None:
                continue
            for gap in self._filling:
                assert gap.until is not None
                # Live posts are younger than this: they too reach the stream some seconds after they were written.
                if written < gap.until - self._lag:
                    gap.backfilled += 1
                    old += 1
                    break
        self.backfilled += old
        # Backfill comes first, then what is live.
        if not old and any(written_at(post.id) is not None for post in posts):
            self._settle(now)
        return old

    def _settle(self, now: float) -> None:
        for gap in self._filling:
            if gap.reason == Reason.EMPTY and gap.until is not None and now - gap.until > EMPTY_SECONDS:
                # The new connection brought nothing either: posts have become rare, and none was missed.
                gap.rate = 0.0
        self.missed += sum(gap.missed(now) for gap in self._filling)
        self._filling.clear()
