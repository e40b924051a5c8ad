"""
The X side of one run: composes token, rules, stream and what follows them.

**What is kept.** Connect budget, gaps, posts of the month and the like are written down before each connect, soon after
each event and otherwise every five seconds. A crash therefore costs five seconds of the count, and no connect.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from service.config import ConfigError, Settings, load
from service.connections import Connections
from service.core.gaps import Kept
from service.core.look import SourceFigures
from service.core.reconnect import Reason, Reconnect
from service.core.records import DropReason, Post
from service.core.rules import Changes, Rule
from service.core.sources import SOURCES
from service.core.spend import Spend
from service.http_client import UnavailableError
from service.metrics import Metrics
from service.readers import Secret
from service.rules import Rules, RulesKeeper, log_changes
from service.state import StateFile
from service.stream import Stream
from service.token import BearerToken
from service.watch import Board, Health, Watch

# How often it is looked whether something is due, and how often all is written down even if nothing happened.
LOOK_SECONDS = 1.0
SAVE_SECONDS = 5.0

log = structlog.get_logger()

_T = TypeVar("_T")


class Intake(Protocol):
    """Where lines go."""

    def take(self, lines: list[bytes]) -> list[bytes]:
        """Take lines, in order; return those in which X says what is wrong."""

    def reject(self, line: bytes, reason: DropReason) -> None:
        """Count and keep a line that is no post."""


class Source:
    """
    X, as the settings want it.

    Arguments:
        settings: all of them.
        environ: where they came from; the rules are read again from it.
        metrics, health, board: are told.
        on_token: called with each token before it is used.
        rng: for jitter.
        wall: the time of day, in seconds since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        metrics: Metrics,
        health: Health,
        board: Board,
        on_token: Callable[[str], None],
        rng: random.Random,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._clock = asyncio.get_running_loop().time
        self._token = bearer(self._read_settings, rng, on_token)
        self._rules = Rules(settings.x_url, rng)
        self._kind = SOURCES[settings.source]
        self._name = f"{settings.source} {settings.partition}" if settings.partition else settings.source
        self._file = StateFile(settings.journal)
        kept = self._file.load()
        if kept.source != self._name:
            # Of another source only what belongs to the app is of use.
            kept = Kept(spare=kept.spare, saved_at=kept.saved_at, month=kept.month, posts=kept.posts)
        self._wall = wall
        away = max(0.0, wall() - kept.saved_at)
        connects = self._kind.connects / max(1, self._kind.partitions)
        self._reconnect = Reconnect(self._clock() - away, rng, kept.spare, connects)
        self._connections = Connections(settings.x_url, self._kind.endpoint, kept.connection)
        self._watch = Watch(
            kept,
            Spend(settings.monthly_posts, kept.month, kept.posts),
            backfill=settings.backfill == "auto",
            metrics=metrics,
            health=health,
            board=board,
            save=self._save,
            clock=wall,
        )
        self._stream: Stream | None = None
        self._keeper: RulesKeeper | None = None
        if settings.rules:
            # Made here, so that it follows what changes before they are read for the first time.
            self._keeper = RulesKeeper(self._read_rules, self._stamp_rules, self._sync, self._rules_changed)

    async def run(self, intake: Intake) -> None:
        """Keep connected until cancelled; raises RulesError if X does not take the rules at the start."""
        await self._insist(self._token.get)
        if self._keeper is not None:
            log_changes(await self._insist(lambda: self._sync(self._read_settings().rules or self._settings.rules)))
        partition = f"?partition={self._settings.partition}" if self._settings.partition else ""
        self._stream = Stream(
            self._settings.x_url,
            self._token,
            intake.take,
            intake.reject,
            self._watch,
            self._reconnect,
            self._clock,
            path=self._kind.path + partition,
            parameters=self._settings.parameters(),
            slot=self._connections,
            # Somebody else has deleted them.
            on_no_rules=self._keeper.reload if self._keeper else lambda: None,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._stream.run())
            tasks.create_task(self._look())
            if self._keeper is not None:
                tasks.create_task(self._keeper.run())

    async def close(self) -> None:
        """Write down how it ended; call it when `run` has ended."""
        self._watch.stopped()
        await self._save()

    def reload(self) -> None:
        """Read the rules again, and apply them."""
        if self._keeper is None:
            log.info("nothing_to_reload", way_out="rules come from MILLRACE_RULES_FILE or MILLRACE_RULES")
        else:
            self._keeper.reload()

    # Posts

    def sift(self, posts: list[Post]) -> list[Post]:
        """Take posts as they come, and give back those that have not come before."""
        return self._watch.sift(posts)

    def forget(self, posts: Sequence[Post]) -> None:
        """Let posts come again: there was no room for them."""
        self._watch.forget(posts)

    # What is seen of it

    def figures(self) -> SourceFigures:
        """Give what the metrics show."""
        gaps, spend = self._watch.gaps, self._watch.spend
        return SourceFigures(
            self._watch.gap_seconds(),
            gaps.missed,
            gaps.backfilled,
            spend.posts,
            spend.budget or 0,
            self._watch.trouble,
            int(self._reconnect.budget.spare(self._clock())),
            gaps.missing(self._wall()),
        )

    def status(self) -> Mapping[str, Any]:
        """Give what /status shows."""
        return {
            "name": self._name,
            **self._watch.status(),
            "connects_left": int(self._reconnect.budget.spare(self._clock())),
        }

    # Inside

    async def _look(self) -> None:
        saved_at = self._clock()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._watch.look()
            if self._watch.changed or self._clock() - saved_at >= SAVE_SECONDS:
                self._watch.changed = False
                saved_at = self._clock()
                await self._save()

    async def _save(self) -> None:
        kept = Kept(
            source=self._name,
            saved_at=self._wall(),
            spare=self._reconnect.budget.spare(self._clock()),
            connection=self._connections.own,
        )
        self._watch.keep(kept)
        await self._file.save(kept)

    async def _sync(self, wanted: Sequence[Rule]) -> Changes:
        while True:
            token = await self._token.get()
            try:
                return await self._rules.sync(token, wanted, apply=True)
            except UnavailableError as error:
                if error.verdict.reason is not Reason.UNAUTHORIZED or not self._token.refused(token):
                    raise

    def _read_settings(self) -> Settings:
        """Read the settings again: a file that holds one may have another text now."""
        try:
            return load(self._environ)
        except ConfigError as error:
            log.warning("settings_not_read", faults=error.faults, way_out="mend them; those of before are used")
            return self._settings

    def _read_rules(self) -> Sequence[Rule]:
        try:
            return load(self._environ).rules
        except ConfigError as error:
            raise ValueError(*error.faults) from None

    def _stamp_rules(self) -> object:
        path = self._environ.get("MILLRACE_RULES_FILE", "").strip()
        if not path:
            return None
        try:
            seen = Path(path).stat()
        except OSError:
            return None
        return seen.st_mtime_ns, seen.st_ino, seen.st_size

    def _rules_changed(self) -> None:
        assert self._stream is not None
        self._watch.rules_changed()
        self._stream.rules_changed()

    async def _insist(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask X until it answers; what no retry can heal is retried slowly and shown in the readiness."""
        while True:
            try:
                return await ask()
            except UnavailableError as error:
                verdict = error.verdict
                self._watch.disconnected(verdict.reason, verdict.detail, verdict.delay, verdict.healable)
                await asyncio.sleep(verdict.delay)


def bearer(
    read: Callable[[], Settings], rng: random.Random, on_new: Callable[[str], None] = lambda _: None
) -> BearerToken:
    """Make what gives the token that the settings speak of; a token that is set is read anew when X refuses it."""

    def text(secret: Secret | None) -> str:
        return secret.reveal() if secret else ""

    settings = read()
    return BearerToken(
        settings.x_url,
        read=lambda: text(read().bearer_token),
        key=text(settings.api_key),
        secret=text(settings.api_key_secret),
        rng=rng,
        on_new=on_new,
    )
