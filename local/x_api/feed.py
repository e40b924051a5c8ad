"""
Which post falls due when, and for whom: the source, the rate, the rules and the open streams meet here.

Rules it obeys:

* Posts begin to fall due with the first connection: before it nobody could miss any. From then on they fall due
  whether or not somebody listens.
* With rate 0 the readers set the pace: a post falls due when every open stream has room for it.
* Matching is decided once for all posts of a template, until the rules change. Only `sample:` asks each post.
* The matching rules go into the line, as X puts them, unless the source forbids any change of its bytes.
"""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Protocol

from local.posts import Post
from local.x_api.ledger import QUEUED, UNSENT, Ledger
from local.x_api.rulebook import RuleBook
from local.x_api.rules import Traits
from local.x_api.stream import FILTERED, Stream

# Posts given before the streams get their turn: less than a stream writes in one.
_POSTS_AT_ONCE = 50
_TICK_SECONDS = 0.005
_LONGEST_SLEEP_SECONDS = 0.1


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
        rate: posts a second; 0 for as fast as the readers take them.
        limit: how many posts the source may give; None for no limit.
        match_all: every post matches every rule.

    Attributes:
        streams: the open ones.
        taken: posts that the source has given.
        unmatched: posts of the source that nobody had asked for.
    """

    def __init__(
        self, source: Source, rules: RuleBook, ledger: Ledger, *, rate: float, limit: int | None, match_all: bool
    ) -> None:
        self._source, self._rules, self._ledger = source, rules, ledger
        self._limit = limit
        self._match_all = match_all
        self._fragments: dict[int, bytes | None] = {}
        self._version = -1
        self._asks_each = False
        self._changed = asyncio.Event()
        self._stopped = False
        self._since = 0.0
        self._given_since = 0
        self.rate = rate
        self.streams: list[Stream] = []
        self.taken = 0
        self.unmatched = 0

    @property
    def exhausted(self) -> bool:
        """Whether no more posts will fall due."""
        return self._stopped or (self._limit is not None and self.taken >= self._limit)

    def set_rate(self, rate: float) -> None:
        """Change the rate from now on."""
        self.rate = rate
        self._since, self._given_since = asyncio.get_running_loop().time(), 0
        self.changed()

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

    async def run(self) -> None:
        """Let posts fall due until the source has no more to give."""
        await self.until(lambda: self.streams)
        self.set_rate(self.rate)
        while not self.exhausted:
            count = self._due()
            if self._limit is not None:
                count = min(count, self._limit - self.taken)
            if count > 0:
                self._give(count)
                await asyncio.sleep(0)
            elif self.rate:
                now = asyncio.get_running_loop().time()
                next_due = self._since + (self._given_since + 1) / self.rate - now
                await asyncio.sleep(min(max(next_due, _TICK_SECONDS), _LONGEST_SLEEP_SECONDS))
            else:
                await self.until(lambda: self._due() or self.exhausted)
        self.changed()

    def _due(self) -> int:
        if not self.rate:
            ready = self.streams and all(stream.has_room for stream in self.streams)
            return _POSTS_AT_ONCE if ready else 0
        elapsed = asyncio.get_running_loop().time() - self._since
        return min(int(elapsed * self.rate) - self._given_since, _POSTS_AT_ONCE)

    def _give(self, count: int) -> None:
        now_ms = int(time.time() * 1000)
        for _ in range(count):
            self._hand_out(self._source.take(now_ms))
        self.taken += count
        self._given_since += count
        self.changed()

    def _hand_out(self, post: Post) -> None:
        fragment = self._matching(post)
        handed_out = False
        for stream in self.streams:
            line = post.line
            if stream.record.endpoint == FILTERED:
                if fragment is None:
                    continue
                if fragment:
                    line = line[:-1] + fragment
            if not stream.takes_posts:
                continue
            row = self._ledger.add(post.id, post.key, line, stream.record.number, UNSENT if stream.empty else QUEUED)
            if not stream.empty:
                stream.offer(row, line)
            handed_out = True
        if fragment is None:
            self.unmatched += 1
        elif not handed_out:
            self._ledger.add(post.id, post.key, post.line, 0, UNSENT)

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
        if self._match_all:
            matching = self._rules.all()
        else:
            matching = self._rules.matching(Traits(post.body or json.loads(post.line)), post.id)
        if not matching:
            return None
        if not self._source.takes_rules:
            return b""
        # X sent no tag for untagged rules in 2020, an empty one in 2022 and 2023.
        shown = [{"id": rule.id, "tag": rule.tag or ""} for rule in matching]
        return b',"matching_rules":' + json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode() + b"}"
