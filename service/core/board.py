"""
What the live page shows: one look a second, the last five minutes of them, and what happened last.

The shell makes the looks and serves what `frame` and `history` give; the page only draws.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import msgspec

from service.core.figures import Histogram, Seen
from service.core.lanes import ShardState
from service.core.producer import Statistics
from service.core.records import DropReason, Post
from service.core.verdict import STARTING, Check, View, conditions

# Five minutes of looks; the strips of the shards show the same time in cells.
LOOKS = 300
CELL_SECONDS = 5
CELLS = 60
# What a number a second is the mean of: shorter, and it flickers; longer, and it lags.
RATE_LOOKS = 5
# "Lately", for delays and for drops.
MINUTE_LOOKS = 60
SUMMARY_LOOKS = 10
THROTTLED_LOOKS = 10
# Frames overlap, so that a look is not missed by a page that asks a little later.
OVERLAP = 5
EVENTS = 12
# Of a trouble that comes and goes each second only the beginning and the end are events.
CALM_SECONDS = 10.0
POSTS = 8
# A page with more rows helps nobody: those in trouble come first.
ROWS = 48
PERCENTILE = 0.95


class Look(NamedTuple):
    """
    All figures at one moment; counts are since the start.

    Attributes:
        at: seconds since 1970.
        retry_at: when the source is tried again, 0 while it is connected; `signal_at` when it last gave a sign of life,
            `received_at` when the last post came: seconds since 1970, 0 for never.
        missed: posts that X sent to nobody, by estimate; `backfilled` came after all.
        month_posts: posts that came this month, of `month_budget`; 0 for no limit.
        billed_units: payload units of 25 KB; `billed_bytes` begun kilobytes.
        mode: how the stream is billed, PROVISIONED or ON_DEMAND; "" while that is not known.
        lag: from the writing of a post to its arrival; `delivery` from there to its confirmation, without the time that
            it may have waited on disk; `whole` is all of it.
    """

    at: float
    received: int
    recovered: int
    delivered: int
    duplicate: int
    dropped: Mapping[str, int]
    buffered: int
    on_disk: int
    buffer_bytes: int
    buffer_limit: int
    journal_bytes: int
    journal_limit: int
    connected: bool
    retry_at: float
    signal_at: float
    received_at: float
    reconnects: int
    gap_seconds: float
    missed: int
    backfilled: int
    month_posts: int
    month_budget: int
    requests: int
    retries: int
    failed_requests: int
    order_violations: int
    billed_units: int
    billed_bytes: int
    mode: str
    shard_throttles: Mapping[str, int]
    shard_records: Mapping[str, int]
    shard_bytes: Mapping[str, int]
    shards: Sequence[ShardState]
    producer: Statistics
    checks: Mapping[str, Check]
    lag: Histogram
    delivery: Histogram
    whole: Histogram


class _Kept(NamedTuple):
    """What stays of a look for a minute: rates and quantiles are told from it."""

    at: float
    received: int
    delivered: int
    buffered: int
    dropped: Mapping[str, int]
    lag: Seen
    delivery: Seen
    whole: Seen


class _Shards(NamedTuple):
    """What the shards had done at one moment, by their names."""

    at: float
    throttles: Mapping[str, int]
    records: Mapping[str, int]
    bytes: Mapping[str, int]


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
        self._kept: deque[_Kept] = deque(maxlen=MINUTE_LOOKS)
        self._shards: deque[_Shards] = deque(maxlen=THROTTLED_LOOKS)
        self._points: deque[tuple[float, float, float, int, bool]] = deque(maxlen=LOOKS)
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
        last = self._kept[-1] if self._kept else None
        if last and look.at <= last.at:
            # The clock was set back: rates begin anew.
            self._kept.clear()
            self._shards.clear()
            last = None
        came = (look.received - last.received) / (look.at - last.at) if last else 0.0
        went = (look.delivered - last.delivered) / (look.at - last.at) if last else 0.0
        self._points.append((round(look.at, 1), round(came, 1), round(went, 1), look.buffered, look.connected))
        self._fill_cells(look)
        self._note_throttles(look)
        self._kept.append(
            _Kept(
                look.at,
                look.received,
                look.delivered,
                look.buffered,
                dict(look.dropped),
                look.lag.seen(),
                look.delivery.seen(),
                look.whole.seen(),
            )
        )
        self._shards.append(_Shards(look.at, look.shard_throttles, look.shard_records, look.shard_bytes))
        self._note_checks(look)

    def history(self) -> dict[str, object]:
        """Give what a page needs that has just been opened: all points, and the cells of the shards."""
        rows = {shard_id: _strip(row) for shard_id, row in islice(self._cells.items(), ROWS)}
        return {"points": list(self._points), "cells": rows, "cell_seconds": CELL_SECONDS, "cell_count": CELLS}

    def frame(self, look: Look) -> dict[str, object]:
        """Give everything as it is now; `look` is of this moment, and need not have been added."""
        minute = self._kept[0] if self._kept else None
        before = _ago(self._kept, RATE_LOOKS)
        came = went = less = 0.0
        if before and look.at > before.at:
            seconds = look.at - before.at
            came, went = (look.received - before.received) / seconds, (look.delivered - before.delivered) / seconds
            less = (before.buffered - look.buffered) / seconds
        found = conditions(self._view(look, less))
        return {
            **self._about,
            "at": round(look.at, 1),
            "conditions": [condition._asdict() for condition in found],
            "points": list(islice(self._points, max(0, len(self._points) - OVERLAP), None)),
            "rates": {"in": round(came, 1), "out": round(went, 1)},
            "posts": {
                "received": look.received,
                "recovered": look.recovered,
                "delivered": look.delivered,
                "duplicate": look.duplicate,
                "buffered": look.buffered,
                "dropped": {reason: count for reason, count in look.dropped.items() if count},
            },
            "delay": {
                "x": look.lag.quantile(PERCENTILE, minute.lag if minute else None),
                "kinesis": look.delivery.quantile(PERCENTILE, minute.delivery if minute else None),
                "whole": look.whole.quantile(PERCENTILE, minute.whole if minute else None),
            },
            "stream": {
                "connected": look.connected,
                "retry_at": look.retry_at,
                "signal_at": look.signal_at,
                "received_at": look.received_at,
                "reconnects": look.reconnects,
                "gap_seconds": round(look.gap_seconds, 1),
                "missed": look.missed,
                "backfilled": look.backfilled,
                "month_posts": look.month_posts,
                "month_budget": look.month_budget,
            },
            "checks": {name: check._asdict() for name, check in look.checks.items()},
            "buffer": {
                "bytes": look.buffer_bytes,
                "limit": look.buffer_limit,
                "journal_bytes": look.journal_bytes,
                "journal_limit": look.journal_limit,
                "on_disk": look.on_disk,
            },
            "requests": {
                "done": look.requests,
                "failed": look.failed_requests,
                "retries": look.retries,
                "in_flight": look.producer.requests_in_flight,
                "window": look.producer.window,
                "order_violations": look.order_violations,
            },
            "bill": {
                "mode": look.mode,
                "units": look.billed_units,
                "bytes": look.billed_bytes,
                # A record a post would be a unit a post at least, whatever its size.
                "saved_units": max(0, look.delivered - look.billed_units),
            },
            "shards": self._rows(look),
            "shard_count": len(look.shards),
            "events": list(self._events),
            "last_posts": [_named(post) for post in self._posts] if self._shows_posts else None,
        }

    def summary(self, look: Look) -> dict[str, object]:
        """Give the figures of a line in the log; rates and delays are of the last ten seconds."""
        before = self._kept[-min(SUMMARY_LOOKS, len(self._kept))] if self._kept else None
        seconds = look.at - before.at if before else 0.0
        rates = {}
        if before and seconds > 0:
            rates = {
                "in_per_second": round((look.received - before.received) / seconds, 1),
                "out_per_second": round((look.delivered - before.delivered) / seconds, 1),
            }
        delays = {
            "lag_p95": look.lag.quantile(PERCENTILE, before.lag if before else None),
            "delivery_p95": look.delivery.quantile(PERCENTILE, before.delivery if before else None),
        }
        return {
            "state": conditions(self._view(look, 0.0))[0].state,
            **rates,
            "received": look.received,
            "recovered": look.recovered,
            "delivered": look.delivered,
            "duplicate": look.duplicate,
            "dropped": sum(look.dropped.values()),
            "buffered": look.buffered,
            "on_disk": look.on_disk,
            "journal_bytes": look.journal_bytes,
            "throttled": sum(look.shard_throttles.values()),
            "retries": look.retries,
            **{name: round(value, 3) for name, value in delays.items() if value is not None},
        }

    def _view(self, look: Look, surplus: float) -> View:
        minute = self._kept[0].dropped if self._kept else look.dropped
        lately = self._shards[0].throttles if self._shards else look.shard_throttles
        dropped = Counter(look.dropped) - Counter(minute)
        return View(
            checks=look.checks,
            closing=self.closing,
            buffered=look.buffered,
            on_disk=look.on_disk,
            surplus=surplus,
            throttled=sum(count > lately.get(name, 0) for name, count in look.shard_throttles.items()),
            shards=len(look.shards),
            dropped={reason: dropped[reason.value] for reason in DropReason if reason.value in dropped},
            silence=look.at - look.received_at if look.received_at else None,
            retry_in=max(0.0, look.retry_at - look.at) if look.retry_at else None,
        )

    def _fill_cells(self, look: Look) -> None:
        """Put the look into the cell of its time; shards that are gone lose theirs."""
        number = int(look.at // CELL_SECONDS)
        before = self._shards[-1].throttles if self._shards else look.shard_throttles
        rows = {}
        for shard in look.shards:
            row = self._cells.get(shard.shard_id, {})
            share, throttles = row.get(number, (1.0, 0))
            new = look.shard_throttles.get(shard.shard_id, 0) - before.get(shard.shard_id, 0)
            row[number] = min(share, shard.share), throttles + max(0, new)
            while len(row) > CELLS:
                del row[next(iter(row))]
            rows[shard.shard_id] = row
        self._cells = rows

    def _rows(self, look: Look) -> list[dict[str, object]]:
        shards = look.shards
        if len(shards) > ROWS:
            worst = sorted(range(len(shards)), key=lambda place: (shards[place].share, -shards[place].posts))
            shards = [shards[place] for place in sorted(worst[:ROWS])]
        before = _ago(self._shards, RATE_LOOKS)
        seconds = look.at - before.at if before else 0.0
        rows = []
        for shard in shards:
            name = shard.shard_id
            records = size = 0.0
            if before and seconds > 0:
                records = (look.shard_records.get(name, 0) - before.records.get(name, 0)) / seconds
                size = (look.shard_bytes.get(name, 0) - before.bytes.get(name, 0)) / seconds
            row = self._cells.get(name, {})
            rows.append(
                {
                    "id": name,
                    "share": round(shard.share, 3),
                    "waiting": shard.posts,
                    "oldest_seconds": round(shard.oldest_seconds, 1),
                    "throttles": look.shard_throttles.get(name, 0),
                    "records_per_second": round(records, 1),
                    "bytes_per_second": round(size),
                    # The cell that is being filled, and the one before it for pages that are late.
                    "cells": _strip(dict(islice(reversed(row.items()), 2))),
                }
            )
        return rows

    def _note_throttles(self, look: Look) -> None:
        """Take note of shards that throttle and lately did not."""
        if not self._shards:
            return
        lately, last = self._shards[0].throttles, self._shards[-1].throttles
        for name, count in look.shard_throttles.items():
            if count > last.get(name, 0) == lately.get(name, 0):
                self.note(look.at, "Kinesis", f"throttles {name}", "notice")

    def _note_checks(self, look: Look) -> None:
        """Take note of what Kinesis and the buffer came to; the source tells more than its check, so it does itself."""
        for name, place in (("kinesis", "Kinesis"), ("buffer", "buffer")):
            check = look.checks.get(name)
            if check is None or (not check.ok and check.reason == STARTING):
                continue
            was_ok = self._checks.get(name, True)
            if was_ok and not check.ok:
                self._checks[name] = False
                self.note(check.since, place, check.reason, "bad")
            elif check.ok and not was_ok and look.at - check.since >= CALM_SECONDS:
                self._checks[name] = True
                self.note(check.since, place, "is well again")


_T = TypeVar("_T")


def _ago(looks: Sequence[_T], count: int) -> _T | None:
    """Give the one of so many looks ago, or the oldest there is."""
    return looks[-min(count, len(looks))] if looks else None


def _strip(row: Mapping[int, tuple[float, int]]) -> dict[str, tuple[float, int]]:
    return {str(cell): (round(share, 3), throttles) for cell, (share, throttles) in row.items()}


def _named(post: Post) -> dict[str, str]:
    """Name a post: its id, and who wrote it as far as the line says so. Never its text."""
    try:
        line = _line.decode(post.line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {"id": post.id, "author": ""}
    author = line.data.author_id
    name = next((user.username for user in line.includes.users if user.id == author and user.username), "")
    return {"id": post.id, "author": f"@{name}" if name else author}
