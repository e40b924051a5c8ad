"""
What the live page shows: one look a second, the last five minutes of them, and what happened last.

The shell makes the looks and serves what `frame` and `history` give; the page only draws.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from service.core.figures import Seen
from service.core.look import Look
from service.core.records import UNREADABLE, DropReason, Post
from service.core.verdict import STARTING, View, conditions

# Five minutes of looks; the strips of the shards show the same time in cells.
LOOKS = 300
CELL_SECONDS = 5
CELLS = 60
# What a number a second is the mean of: shorter, and it flickers; longer, and it lags.
RATE_LOOKS = 5
# "Lately", for lines of the log and for throttles.
RECENT_LOOKS = 10
# "Lately", for delays and for drops.
MINUTE_LOOKS = 60
# Frames overlap, so that a look is not missed by a page that asks a little later.
OVERLAP = 5
EVENTS = 12
# Of a trouble that comes and goes each second only the beginning and the end are events.
CALM_SECONDS = 10.0
POSTS = 8
# A page with more rows helps nobody: those in trouble come first.
ROWS = 48
PERCENTILE = 0.95


class _Kept(NamedTuple):
    """What stays of a look for a minute."""

    dropped: Mapping[str, int]
    lag: Seen
    delivery: Seen
    whole: Seen


class _Author(msgspec.Struct):
    id: str = ""
    username: str = ""


class _Data(msgspec.Struct):
    author_id: str = ""


class _Includes(msgspec.Struct):
    users: list[_Author] = []


class _Line(msgspec.Struct):
    data: _Data = msgspec.field(default_factory=_Data)
    includes: _Includes = msgspec.field(default_factory=_Includes)


_line = msgspec.json.Decoder(_Line)


class Board:
    """
    See the module's text.

    Args:
        about: what does not change: version, source, stream.
        shows_posts: ids and authors of posts may be shown.

    Attributes:
        closing: the source is closed for good.
    """

    def __init__(self, about: Mapping[str, object], *, shows_posts: bool) -> None:
        self._about = about
        self._shows_posts = shows_posts
        self.closing = False
        self._recent: deque[Look] = deque(maxlen=RECENT_LOOKS)
        self._minute: deque[_Kept] = deque(maxlen=MINUTE_LOOKS)
        # When, posts in and out a second, whether the source was connected.
        self._points: deque[tuple[float, float, float, bool]] = deque(maxlen=LOOKS)
        # Of each shard: the number of a cell -> the least share and the throttles in it.
        self._cells: dict[str, dict[int, tuple[float, int]]] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._posts: deque[Post] = deque(maxlen=POSTS)
        self._checks: dict[str, bool] = {}

    def take(self, posts: Sequence[Post]) -> None:
        """Take note of posts that came; only the last ones are kept."""
        self._posts.extend(posts[-POSTS:])

    def note(self, at: float, place: str, text: str, level: str = "ok") -> None:
        """Take note of something that happened; the same again is the same one, later and counted."""
        last = self._events[-1] if self._events else None
        if last is not None and (last["place"], last["text"]) == (place, text):
            last |= {"at": at, "count": last["count"] + 1}
        else:
            self._events.append({"at": at, "place": place, "text": text, "level": level, "count": 1})

    def add(self, look: Look) -> None:
        """Take a look; looks come about a second apart."""
        if look.at <= self._ago(1, look).at:
            # The clock was set back: rates begin anew.
            self._recent.clear()
        self._points.append((round(look.at, 1), *_rates(look, self._ago(1, look)), look.connected))
        self._fill_cells(look)
        self._note_throttles(look)
        self._note_checks(look)
        self._recent.append(look)
        self._minute.append(_Kept(look.dropped, look.lag, look.delivery, look.whole))

    def history(self) -> dict[str, object]:
        """Give what a page needs that has just been opened: all points, and the cells of the shards."""
        rows = {shard_id: _strip(row) for shard_id, row in islice(self._cells.items(), ROWS)}
        return {"points": list(self._points), "cells": rows, "cell_seconds": CELL_SECONDS, "cell_count": CELLS}

    def frame(self, look: Look) -> dict[str, object]:
        """Give everything as it is now; `look` is of this moment, and need not have been added."""
        before = self._ago(RATE_LOOKS, look)
        minute = self._minute[0] if self._minute else look
        came, went = _rates(look, before)
        surplus = _rate(before.buffer.posts - look.buffer.posts, look, before)
        inside = look.inside
        return {
            **self._about,
            **{name: value for name, value in look._asdict().items() if isinstance(value, int | float)},
            "conditions": [condition._asdict() for condition in conditions(self._view(look, surplus))],
            "points": list(islice(self._points, max(0, len(self._points) - OVERLAP), None)),
            "in_per_second": came,
            "out_per_second": went,
            "lag_p95": look.lag.quantile(PERCENTILE, minute.lag),
            "delivery_p95": look.delivery.quantile(PERCENTILE, minute.delivery),
            "whole_p95": look.whole.quantile(PERCENTILE, minute.whole),
            "dropped": {reason: count for reason, count in look.dropped.items() if count},
            "buffer": look.buffer._asdict(),
            "x": look.source._asdict(),
            "producer": inside.producer._asdict(),
            "checks": {name: check._asdict() for name, check in inside.checks.items()},
            "mode": inside.mode,
            # A record a post would be a unit a post at least, whatever its size.
            "saved_units": max(0, look.delivered - look.billed_units),
            "shards": self._rows(look, before),
            "shard_count": len(inside.shards),
            "events": list(self._events),
            "last_posts": [_named(post) for post in self._posts] if self._shows_posts else None,
        }

    def summary(self, look: Look) -> dict[str, object]:
        """Give the figures of a line in the log; rates and delays are of the last ten seconds."""
        before = self._ago(RECENT_LOOKS, look)
        came, went = _rates(look, before)
        delays = {
            "lag_p95": look.lag.quantile(PERCENTILE, before.lag),
            "delivery_p95": look.delivery.quantile(PERCENTILE, before.delivery),
        }
        return {
            "state": conditions(self._view(look, 0.0))[0].state,
            "in_per_second": came,
            "out_per_second": went,
            "received": look.received,
            "recovered": look.recovered,
            "delivered": look.delivered,
            "duplicate": look.duplicate,
            "dropped": sum(look.dropped.values()),
            "buffered": look.buffer.posts,
            "on_disk": look.buffer.on_disk,
            "journal_bytes": look.buffer.journal_bytes,
            "throttled": sum(look.shard_throttles.values()),
            "retries": look.retries,
            **{name: round(value, 3) for name, value in delays.items() if value is not None},
        }

    def _ago(self, looks: int, now: Look) -> Look:
        """Give the look of so many looks ago, or the oldest there is, or `now` before the first."""
        return self._recent[-min(looks, len(self._recent))] if self._recent else now

    def _view(self, look: Look, surplus: float) -> View:
        minute = self._minute[0] if self._minute else look
        lately = self._ago(RECENT_LOOKS, look).shard_throttles
        dropped = Counter(look.dropped) - Counter(minute.dropped)
        return View(
            checks=look.inside.checks,
            closing=self.closing,
            buffered=look.buffer.posts,
            on_disk=look.buffer.on_disk,
            surplus=surplus,
            throttled=sum(count > lately.get(name, 0) for name, count in look.shard_throttles.items()),
            shards=len(look.inside.shards),
            dropped={reason: dropped[reason.value] for reason in DropReason if reason.value in dropped},
            silence=look.at - look.received_at if look.received_at else None,
            retry_in=look.retry_at - look.at if look.retry_at else None,
        )

    def _fill_cells(self, look: Look) -> None:
        """Put the look into the cell of its time; shards that are gone lose theirs."""
        number = int(look.at // CELL_SECONDS)
        before = self._ago(1, look).shard_throttles
        rows = {}
        for shard in look.inside.shards:
            row = self._cells.get(shard.shard_id, {})
            share, throttles = row.get(number, (1.0, 0))
            new = look.shard_throttles.get(shard.shard_id, 0) - before.get(shard.shard_id, 0)
            row[number] = min(share, shard.share), throttles + max(0, new)
            while len(row) > CELLS:
                del row[next(iter(row))]
            rows[shard.shard_id] = row
        self._cells = rows

    def _rows(self, look: Look, before: Look) -> list[dict[str, object]]:
        shards = look.inside.shards
        if len(shards) > ROWS:
            worst = sorted(range(len(shards)), key=lambda place: (shards[place].share, -shards[place].posts))
            shards = [shards[place] for place in sorted(worst[:ROWS])]
        rows = []
        for shard in shards:
            name = shard.shard_id
            records = look.shard_records.get(name, 0) - before.shard_records.get(name, 0)
            size = look.shard_bytes.get(name, 0) - before.shard_bytes.get(name, 0)
            rows.append(
                {
                    "id": name,
                    "share": round(shard.share, 3),
                    "waiting": shard.posts,
                    "oldest_seconds": round(shard.oldest_seconds, 1),
                    "throttles": look.shard_throttles.get(name, 0),
                    "records_per_second": _rate(records, look, before),
                    "bytes_per_second": _rate(size, look, before),
                    # The cell that is being filled, and the one before it for pages that are late.
                    "cells": _strip(dict(islice(reversed(self._cells.get(name, {}).items()), 2))),
                }
            )
        return rows

    def _note_throttles(self, look: Look) -> None:
        """Take note of shards that throttle and lately did not."""
        lately, last = (self._ago(looks, look).shard_throttles for looks in (RECENT_LOOKS, 1))
        for name, count in look.shard_throttles.items():
            if count > last.get(name, 0) == lately.get(name, 0):
                self.note(look.at, "Kinesis", f"throttles {name}", "notice")

    def _note_checks(self, look: Look) -> None:
        """Take note of what Kinesis and the buffer came to; the source tells more than its check, so it does itself."""
        for name, place in (("kinesis", "Kinesis"), ("buffer", "buffer")):
            check = look.inside.checks.get(name)
            if check is None or (not check.ok and check.reason == STARTING):
                continue
            was_ok = self._checks.get(name, True)
            if was_ok and not check.ok:
                self._checks[name] = False
                self.note(check.since, place, check.reason, "bad")
            elif check.ok and not was_ok and look.at - check.since >= CALM_SECONDS:
                self._checks[name] = True
                self.note(check.since, place, "is well again")


def _rate(change: float, now: Look, before: Look) -> float:
    seconds = now.at - before.at
    return round(change / seconds, 1) if seconds > 0 else 0.0


def _rates(now: Look, before: Look) -> tuple[float, float]:
    """Give the posts a second that came and went between two looks."""
    return _rate(now.received - before.received, now, before), _rate(now.delivered - before.delivered, now, before)


def _strip(row: Mapping[int, tuple[float, int]]) -> dict[str, tuple[float, int]]:
    return {str(cell): (round(share, 3), throttles) for cell, (share, throttles) in row.items()}


def _named(post: Post) -> dict[str, str]:
    """Name a post: its id, and who wrote it as far as the line says so. Never its text."""
    try:
        line = _line.decode(post.line)
    except UNREADABLE:
        return {"id": post.id, "author": ""}
    author = line.data.author_id
    name = next((user.username for user in line.includes.users if user.id == author and user.username), "")
    return {"id": post.id, "author": f"@{name}" if name else author}
