"""
The settings of the X stand-in and its command line.

Only what the demo, the benchmark and the soak test differ in is on the command line, and the speed, for somebody who
watches; the rest is for tests, in process.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from local.x_api.layout import Layout


class Untagged(StrEnum):
    """How a line shows a matching rule that has no tag; each has been seen."""

    EMPTY = "empty"  # "tag": "", in 2022 and 2023
    ABSENT = "absent"  # no such key, in 2020
    NULL = "null"  # "tag": null, in lines that were recorded by others


@dataclass(frozen=True)
class Settings:
    """
    How the stand-in behaves. Seconds are its own: they pass `speed` times as fast as this machine's.

    Attributes:
        rate: posts a second of this machine; 0 for as fast as a client reads.
        limit: posts that the source gives, then silence; None for no limit.
        match_all: every post matches every rule.
        honours_fields: a line shows what the request asks for; otherwise all that the source has made of it, which is
            harder on a client.
        untagged: how a rule without a tag is shown.
        duplicates: share of the posts, 0 to 1, that a connection gets twice.
        disorder: seconds by which a post may come later than its turn, on each connection by itself.
        delivery_cap: posts a second for a connection; more are unsent. Pay-per-use has 250, but what X does with the
            rest is not known. None for no cap.
        speed: seconds that pass in one of this machine.
        tokens: the valid bearer tokens; none means that every token is.
        keys: "key:secret" that is exchanged for the first token; None means that every pair is.
        enterprise: access to backfill and recovery.
        forbids_backfill: without that access asking is 403; otherwise it is 400. X's own answer is not known.
        keep_alive: seconds of idleness before CR LF.
        keep_alive_jitter: share of `keep_alive` by which it may come later; X has been seen to take up to 21.5 s.
        gzip: serve gzip to clients that accept it.
        layout: where chunks end.
        queue_limit: bytes that may wait for a client; over it the client is dropped. X's own is not known.
        queue_posts: posts that may wait for a client; None for no limit.
        tells_slow_readers: write the line that says so behind what a slow reader has not read.
        connections: at once, for each token and endpoint; pay-per-use has 1.
        replaces: one connection more ends the oldest, as one page of X's documentation has it; otherwise it is refused.
        connects: stream requests in a window; X's is 50.
        counts_refused: refused stream requests count too. Whether X's do is not known; it is the harder school.
        window_seconds: length of a rate limit window; X's is 900.
        ghost_seconds: how long the slot of a connection stays taken after an end that X cannot see; X's is not known.
        usage_cap: posts that may be delivered; then streams end and connecting is refused. None for no cap.
        rules_cap: rules of the app; pay-per-use has 1,000.
        rule_length: characters of a rule; pay-per-use has 1,024.
        rule_delay: seconds until a change of the rules shows on the streams; X's is about 20.
        state: a file that keeps the rules; None for none.
        seed: of all chance.
    """

    rate: float = 500.0
    limit: int | None = None
    match_all: bool = False
    honours_fields: bool = False
    untagged: Untagged = Untagged.EMPTY
    duplicates: float = 0.0
    disorder: float = 0.0
    delivery_cap: float | None = None
    speed: float = 1.0
    tokens: Sequence[str] = ()
    keys: str | None = None
    enterprise: bool = False
    forbids_backfill: bool = False
    keep_alive: float = 20.0
    keep_alive_jitter: float = 0.075
    gzip: bool = True
    layout: Layout = Layout.BATCH
    queue_limit: int = 64 * 1024 * 1024
    queue_posts: int | None = None
    tells_slow_readers: bool = False
    connections: int = 1
    replaces: bool = False
    connects: int = 50
    counts_refused: bool = True
    window_seconds: float = 900.0
    ghost_seconds: float = 0.0
    usage_cap: int | None = None
    rules_cap: int = 1000
    rule_length: int = 1024
    rule_delay: float = 0.0
    state: Path | None = None
    seed: int = 0


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def _positive(text: str) -> float:
    value = _not_negative(text)
    if not value:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def parser() -> argparse.ArgumentParser:
    """Return the command line; its defaults are those of `Settings`."""
    known = Settings()
    line = argparse.ArgumentParser(
        prog="python -m local x",
        description="A faithful X API v2 on loopback, with faults on demand and an exact ledger.",
    )
    line.add_argument("--host", default="127.0.0.1")
    line.add_argument("--port", type=int, required=True, help="0 takes any free port")
    line.add_argument(
        "--rate", type=_not_negative, default=known.rate, help="posts a second; 0: as fast as the client reads"
    )
    line.add_argument("--limit", type=int, help="posts, then silence")
    line.add_argument("--posts", type=Path, metavar="FILE", help="recorded posts, one JSON object a line")
    line.add_argument("--match", choices=["rules", "all"], default="rules", help="all: every post matches every rule")
    line.add_argument("--token", action="append", default=[], help="valid bearer token; may repeat; none: any is")
    line.add_argument("--keep-alive", type=_not_negative, default=known.keep_alive, metavar="SECONDS")
    line.add_argument("--connects", type=int, default=known.connects, help="in 15 minutes")
    line.add_argument("--enterprise", action="store_true", help="backfill and recovery")
    line.add_argument("--disorder", type=_not_negative, default=known.disorder, metavar="SECONDS", help="of posts")
    line.add_argument("--duplicates", type=_not_negative, default=known.duplicates, metavar="SHARE", help="of posts")
    line.add_argument("--speed", type=_positive, default=known.speed, help="X's seconds in one of this machine")
    line.add_argument("--seed", type=int, default=known.seed)
    line.add_argument("--tls-cert", type=Path, metavar="FILE", help="PEM; with --tls-key: serve HTTPS")
    line.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM")
    return line


def from_arguments(arguments: argparse.Namespace) -> Settings:
    """Return the settings that a command line asks for."""
    return Settings(
        rate=arguments.rate,
        limit=arguments.limit,
        match_all=arguments.match == "all",
        tokens=tuple(arguments.token),
        keep_alive=arguments.keep_alive,
        connects=arguments.connects,
        enterprise=arguments.enterprise,
        disorder=arguments.disorder,
        duplicates=arguments.duplicates,
        speed=arguments.speed,
        seed=arguments.seed,
    )
