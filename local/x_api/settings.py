"""
The settings of the X stand-in and its command line.

Only what tests, the demo and the benchmark differ in is on the command line; the rest is for tests, in process.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local.x_api.stream import Layout


@dataclass(frozen=True)
class Settings:
    """
    How the stand-in behaves.

    Attributes:
        rate: posts a second; 0 for as fast as a client reads.
        limit: posts that the source gives, then silence; None for no limit.
        match_all: every post matches every rule.
        tokens: the valid bearer tokens; none means that every token is.
        keys: "key:secret" that is exchanged for the first token; None means that every pair is.
        keep_alive: seconds of idleness before CR LF; X's is 20 and a little more.
        gzip: serve gzip to clients that accept it.
        layout: where chunks end.
        queue_limit: bytes that may wait for a client; over it the client is dropped. X's own is not known.
        connections: at once, for each token and endpoint; pay-per-use has 1.
        connects: stream requests in a window, refused ones included; X's is 50.
        window_seconds: length of a rate limit window; X's is 900.
        ghost_seconds: how long the slot of a connection stays taken after an end that X cannot see; X's is not known.
        usage_cap: posts that may be delivered; then streams end and connecting is refused. None for no cap.
        rules_cap: rules of the app; pay-per-use has 1,000.
        rule_length: characters of a rule; pay-per-use has 1,024.
        seed: of all chance.
    """

    rate: float = 500.0
    limit: int | None = None
    match_all: bool = False
    tokens: Sequence[str] = ()
    keys: str | None = None
    keep_alive: float = 20.0
    gzip: bool = True
    layout: Layout = Layout.BATCH
    queue_limit: int = 64 * 1024 * 1024
    connections: int = 1
    connects: int = 50
    window_seconds: float = 900.0
    ghost_seconds: float = 0.0
    usage_cap: int | None = None
    rules_cap: int = 1000
    rule_length: int = 1024
    seed: int = 0


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def parser() -> argparse.ArgumentParser:
    """Return the command line; its defaults are those of `Settings`."""
    known = Settings()
    line = argparse.ArgumentParser(
        prog="python -m local.x_api.server",
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
    line.add_argument("--keys", metavar="KEY:SECRET", help="exchanged for the first token; none: any pair is")
    line.add_argument("--keep-alive", type=_not_negative, default=known.keep_alive, metavar="SECONDS")
    line.add_argument("--no-gzip", action="store_true", help="never compress")
    line.add_argument("--layout", type=Layout, choices=list(Layout), default=known.layout, help="where chunks end")
    line.add_argument(
        "--queue-limit", type=int, default=known.queue_limit, metavar="BYTES", help="then the client is too slow"
    )
    line.add_argument("--connects", type=int, default=known.connects, help="in 15 minutes")
    line.add_argument(
        "--ghost", type=_not_negative, default=known.ghost_seconds, metavar="SECONDS", help="a lost slot stays taken"
    )
    line.add_argument("--usage-cap", type=int, metavar="POSTS", help="then streams end")
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
        keys=arguments.keys,
        keep_alive=arguments.keep_alive,
        gzip=not arguments.no_gzip,
        layout=arguments.layout,
        queue_limit=arguments.queue_limit,
        connects=arguments.connects,
        ghost_seconds=arguments.ghost,
        usage_cap=arguments.usage_cap,
        seed=arguments.seed,
    )
