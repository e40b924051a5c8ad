"""
Which post falls due when, and for whom: the source, the rate, the rules and the open streams meet here.

Rules it obeys:

* Posts begin to fall due with the first connection: before it nobody could miss any. From then on they fall due
  whether or not somebody listens.
* With rate 0 the readers set the pace: a post falls due when every open stream has room for it.
* Matching is decided once for all posts of a template, until the rules change. Only `sample:` asks each post.
* The matching rules go into the line, as X puts them, unless the source forbids any change of its bytes.
* What comes late or twice does so on each connection by itself, and is in the ledger when it is sent.
"""

import asyncio
import heapq
import json
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Protocol

from local.posts import Post
from local.x_api.archive import Archive, Kept
from local.x_api.clock import Clock
from local.x_api.endpoints import FILTERED
from local.x_api.fields import View, Wanted
from local.x_api.ledger import QUEUED, UNSENT, Ledger
from local.x_api.rulebook import RuleBook
from local.x_api.rules import Traits
from local.x_api.settings import Settings, Untagged
from local.x_api.stream import Stream

# Posts given before the streams get their turn: less than a stream writes in one.
_POSTS_AT_ONCE = 50
_TICK_SECONDS = 0.005
_LONGEST_SLEEP_SECONDS = 0.1
_MINUTE = 60.0


class Source(Protocol):
    """Where posts come from: `local.posts`."""

    takes_rules: bool

    def take(self, now_ms: int) -> Post:
        """Return the next post, sent at this moment."""


class Feed:
    """
    Hands posts to streams.

    Args:
        source: of the posts.
        rules: of the app.
        ledger: takes every post that falls due.
        clock: of the stand-in.
        settings: rate, limit and whatever goes wrong with the order of posts.

    Attributes:
        streams: the open ones.
        rate: posts a second.
        taken: posts that the source has given.
        unmatched: posts of the source that nobody had asked for.
    """

    def __init__(self, source: Source, rules: RuleBook, ledger: Ledger, clock: Clock, settings: Settings) -> None:
        self._source, self._rules, self._ledger = source, rules, ledger
        self._clock = clock
        self._settings = settings
        self._archive = Archive()
        self._rng = Random(settings.seed)
        self._fragments: dict[int, bytes | None] = {}
        self._langs: dict[int, str] = {}
        self._views: dict[Wanted, View] = {}
        self._version = -1
        self._asks_each = False
        self._changed = asyncio.Event()
        self._stopped = False
        self._since = 0.0
        self._given_since = 0
        self._extra_bytes: list[int] = []
        # What is to come late: when, a number for the order of equal times, the stream, the post, its line.
        self._late: list[tuple[float, int, Stream, Post, bytes]] = []
        self._number = 0
        self.rate = settings.rate
        self.streams: list[Stream] = []
        self.taken = 0
        self.unmatched = 0

    @property
    def exhausted(self) -> bool:
        """Whether no more posts will fall due."""
        return self._no_more and not self._late

    @property
    def _no_more(self) -> bool:
        limit = self._settings.limit
        return self._stopped or (limit is not None and self.taken >= limit)

    def set_rate(self, rate: float) -> None:
        """Change the rate from now on."""
        self.rate = rate
        self._since, self._given_since = asyncio.get_running_loop().time(), 0
        self.changed()

    def enlarge_next(self, size: int) -> None:
        """Give the next post another key, one that nobody knows, with so many bytes."""
        self._extra_bytes.append(size)

    def stop(self) -> None:
        """Let no more posts fall due."""
        self._stopped = True
        self.changed()

    def changed(self) -> None:
        """Wake everybody who waits for a change."""
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds; it is asked again whenever posts have moved or streams have come or gone."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def open(self, stream: Stream) -> None:
        """Let a stream have posts from now on, those of the past that it asked for first."""
        self.streams.append(stream)
        wanted = stream.subscription
        now = self._clock.now()
        start = now - wanted.backfill_minutes * _MINUTE if wanted.start is None else wanted.start
        lines = []
        for kept in self._archive.between(start, now if wanted.end is None else wanted.end):
            line = self._line(stream, kept.post, kept.fragment)
            if line is not None:
                row = self._ledger.add(kept.post.id, kept.post.key, line, stream.record.number)
                lines.append((row, line))
        stream.replay(lines)
        self.changed()

    async def run(self) -> None:
        """Let posts fall due until the source has no more to give."""
        await self.until(lambda: self.streams)
        self.set_rate(self.rate)
        while not self.exhausted:
            self._send_late()
            count = self._due()
            if count > 0:
                self._give(count)
                await asyncio.sleep(0)
            elif self.rate or self._late:
                now = asyncio.get_running_loop().time()
                next_due = self._since + (self._given_since + 1) / self.rate - now if self.rate else 0.0
                if next_due < _LONGEST_SLEEP_SECONDS or self._late:
                    await asyncio.sleep(min(max(next_due, _TICK_SECONDS), _LONGEST_SLEEP_SECONDS))
                else:
                    # With a slow rate nothing is to be done but for a change of it.
                    self._changed.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(next_due):
                            await self._changed.wait()
            else:
                await self.until(lambda: self._due() or self.exhausted)
        self.changed()

    def _due(self) -> int:
        limit = self._settings.limit
        if self._no_more:
            return 0
        count = _POSTS_AT_ONCE
        if not self.rate:
            live = [stream for stream in self.streams if stream.subscription.is_live]
            count = _POSTS_AT_ONCE if live and all(stream.has_room for stream in live) else 0
        else:
            elapsed = asyncio.get_running_loop().time() - self._since
            count = min(int(elapsed * self.rate) - self._given_since, _POSTS_AT_ONCE)
        return count if limit is None else min(count, limit - self.taken)

    def _give(self, count: int) -> None:
        self._rules.refresh()
        now = self._clock.now()
        now_ms = int(now * 1000)
        for _ in range(count):
            post = self._source.take(now_ms)
            if self._extra_bytes:
                filler = b',"enlarged":"%b"}' % (b"x" * self._extra_bytes.pop(0))
                post = post._replace(line=post.line[:-1] + filler)
            fragment = self._matching(post)
            if self._settings.enterprise:
                self._archive.keep(Kept(now, post, fragment))
            self._hand_out(post, fragment)
        self.taken += count
        self._given_since += count
        self.changed()

    def _hand_out(self, post: Post, fragment: bytes | None) -> None:
        settings = self._settings
        taken = False
        for stream in self.streams:
            if not (stream.takes_posts and stream.subscription.is_live):
                continue
            line = self._line(stream, post, fragment)
            if line is None:
                continue
            taken = True
            if settings.disorder or settings.duplicates:
                self._delay(stream, post, line)
            else:
                self._send(stream, post, line)
        if fragment is None:
            self.unmatched += 1
        elif not taken:
            self._ledger.add(post.id, post.key, post.line, 0, UNSENT)

    def _send(self, stream: Stream, post: Post, line: bytes) -> None:
        gets_it = stream.takes_posts and not stream.empty and stream.may_send()
        row = self._ledger.add(post.id, post.key, line, stream.record.number, QUEUED if gets_it else UNSENT)
        if gets_it:
            stream.offer(row, line)

    def _delay(self, stream: Stream, post: Post, line: bytes) -> None:
        """Have a post sent later than its turn, and perhaps twice."""
        now = self._clock.now()
        for _ in range(2 if self._rng.random() < self._settings.duplicates else 1):
            self._number += 1
            due = now + self._settings.disorder * self._rng.random()
            heapq.heappush(self._late, (due, self._number, stream, post, line))

    def _send_late(self) -> None:
        now = self._clock.now()
        while self._late and self._late[0][0] <= now:
            _, _, stream, post, line = heapq.heappop(self._late)
            self._send(stream, post, line)

    def _line(self, stream: Stream, post: Post, fragment: bytes | None) -> bytes | None:
        """Return what a stream gets for a post; None if it is not for it."""
        wanted = stream.subscription
        is_filtered = wanted.endpoint is FILTERED
        if is_filtered and fragment is None:
            return None
        if not is_filtered and not wanted.wants(post, self._lang(post) if wanted.endpoint.lang else ""):
            return None
        line = post.line
        if self._settings.honours_fields:
            view = self._views.get(wanted.fields)
            if view is None:
                view = self._views[wanted.fields] = View(wanted.fields)
            line = view.line(post)
        return line[:-1] + fragment if is_filtered and fragment else line

    def _lang(self, post: Post) -> str:
        if post.template not in self._langs:
            data = (post.body or json.loads(post.line))["data"]
            self._langs[post.template] = data.get("lang", "")
        return self._langs[post.template]

    def _matching(self, post: Post) -> bytes | None:
        """Return what replaces the last brace of a line that matches (b"" for no change), None for no match."""
        if self._version != self._rules.version:
            self._version = self._rules.version
            self._fragments.clear()
            self._asks_each = self._rules.sampled
        if self._asks_each or post.template not in self._fragments:
            self._fragments[post.template] = self._match(post)
        return self._fragments[post.template]

    def _match(self, post: Post) -> bytes | None:
        if self._settings.match_all:
            matching = self._rules.in_force()
        else:
            matching = self._rules.matching(Traits(post.body or json.loads(post.line)), post.id)
        if not matching:
            return None
        if not self._source.takes_rules:
            return b""
        shown = [{"id": rule.id, **_tag(rule.tag, self._settings.untagged)} for rule in matching]
        return b',"matching_rules":' + json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode() + b"}"


def _tag(tag: str | None, untagged: Untagged) -> dict[str, str | None]:
    if tag is None and untagged is Untagged.ABSENT:
        return {}
    return {"tag": "" if tag is None and untagged is Untagged.EMPTY else tag}
