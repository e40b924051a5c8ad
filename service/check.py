"""
Commands that only ask.

`check` tries all that `run` needs, `rules` compares X's rules with the wanted ones, `gaps` lists when the stream was
not connected.
"""

import asyncio
import errno
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryFile
from threading import Thread

import aiohttp

from service.admin import explain
from service.config import Settings
from service.core.answers import CLOCK_TOLERANCE_SECONDS
from service.core.limits import MIB
from service.core.reconnect import Reason
from service.core.rules import Rule
from service.http_client import UnavailableError, plain
from service.kinesis import Kinesis, KinesisError
from service.rules import Rules, RulesError
from service.source import bearer
from service.state import DAMAGED, FILE_NAME, StateFile
from service.watch import describe

ANSWER_SECONDS = 10.0
# What a disk takes at once, written and made safe.
DISK_TEST_BYTES = MIB
SLOW_DISK_SECONDS = 1.0
# For these X has not even looked at the rules.
BEFORE_RULES = (Reason.UNAUTHORIZED, Reason.NETWORK_ERROR)
# SQLite's write-ahead log: 48 MiB, and a large transaction more. A disk that it fills cannot take it into the file.
LOG_BYTES = 64 * MIB
# The file is up to so many times the posts in it: a chunk of them that fills half a page and a byte takes a whole one.
FILE_FACTOR = 2


class Report:
    """Prints a line for each thing that is looked at; `failures` counts those that did not go well."""

    def __init__(self) -> None:
        self.failures = 0

    def well(self, what: str, words: str) -> None:
        """Say that something is as it should be."""
        print(f"{what:<14} ok: {words}")

    def bad(self, what: str, words: str) -> None:
        """Say in one line what is wrong, and the way out."""
        self.failures += 1
        print(f"{what:<14} failed: {words}")

    def untried(self, what: str, words: str) -> None:
        """Say why something could not be tried."""
        print(f"{what:<14} not tried: {words}")


async def check(settings: Settings, environ: Mapping[str, str]) -> int:
    """
    Try all that `run` needs, print a line for each, and return the exit code; nothing is carried or changed.

    What a line stands on must be well: without credentials nothing is said of the stream.
    """
    report = Report()
    report.well("configuration", f"source {settings.source}, stream {settings.stream}")
    if not await in_time(lambda: check_disk(settings.journal, settings.journal_limit, report)):
        words = f"{settings.journal} has not answered for {ANSWER_SECONDS:.0f} s; look at its disk"
        report.bad("disk", f"MILLRACE_JOURNAL: {words}")
    await check_port(settings.http_host, settings.http_port, report)
    clock_url = await _check_kinesis(settings, environ.get("AWS_REGION") or None, report)
    if settings.source != "stdin":
        clock_url = await _check_x(settings, report) or clock_url
    if clock_url:
        await check_clock(clock_url, report)
    return 1 if report.failures else 0


async def in_time(work: Callable[[], object], seconds: float = ANSWER_SECONDS) -> bool:
    """Do it in a thread for which neither the loop nor the end of the process waits longer. Whether it was done."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
            done.set_result(None)
        except Exception as error:  # a bug, for whoever waits
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    ended, _ = await asyncio.wait([asyncio.wrap_future(done)], timeout=seconds)
    for one in ended:
        one.result()
    return bool(ended)


def check_disk(journal: Path | None, limit: int, report: Report) -> None:
    """Try whether a journal of so many bytes finds room in the directory, and can be written; it is not made."""
    if journal is None:
        report.well("disk", "MILLRACE_JOURNAL is off; what waits in memory is lost when the process ends")
        return
    place = journal
    way_out = "name a directory that can be written and has room, or write off"
    try:
        place = _nearest(journal.absolute())
        free = disk_usage(place).free + sum(file.stat().st_size for file in journal.glob("journal.db*"))
        started = time.perf_counter()
        with TemporaryFile(dir=place) as file:
            file.write(bytes(DISK_TEST_BYTES))
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - started
    except OSError as error:
        report.bad("disk", f"MILLRACE_JOURNAL: {place} cannot be used: {error.strerror}; {way_out}")
        return
    if free < FILE_FACTOR * limit + LOG_BYTES:
        needed = f"{limit / MIB:,.0f} MiB, which may take twice as much, and {LOG_BYTES // MIB} for SQLite's log"
        words = (
            f"MILLRACE_JOURNAL_LIMIT: {needed} do not fit into the {free / MIB:,.0f} MiB that are free for {journal}"
        )
        report.bad("disk", f"{words}; make room, or lower the limit")
    elif seconds > SLOW_DISK_SECONDS:
        report.bad("disk", f"{place} took {seconds:.1f} s for a write of 1 MiB; use a faster disk for MILLRACE_JOURNAL")
    else:
        report.well("disk", f"{free / MIB:,.0f} MiB are free for {journal}, 1 MiB written in {seconds * 1000:.0f} ms")


def _nearest(path: Path) -> Path:
    # From Python 3.14 on Path.exists takes for absent what it may not look at.
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _nearest(path.parent)
    return path


async def check_port(host: str, port: int, report: Report) -> None:
    """Try whether the admin server can listen there. A port in use is no failure: `check` may run beside a daemon."""
    try:
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            words = f"MILLRACE_HTTP_PORT: {port} is in use; if not by a daemon on these settings, choose another"
            report.untried("port", words)
        else:
            report.bad("port", explain(error, host, port))
        return
    server.close()
    await server.wait_closed()
    report.well("port", f"{port} is free on {host}")


async def _check_kinesis(settings: Settings, region: str | None, report: Report) -> str:
    """Try credentials, stream and permissions; return the URL, "" if nothing can be asked there."""
    what = "credentials"
    url = ""
    try:
        async with Kinesis(settings.stream, region=region) as kinesis:
            report.well(what, f"some are there, to ask {kinesis.url}")
            what = "stream"
            facts = await kinesis.facts()
            url = kinesis.url
            shards = await kinesis.shards()
            words = f"{facts.name}, {facts.status}, {facts.mode}, {len(shards)} open shards"
            report.well(what, words + (", which do not keep order (AUTO)" if facts.ignores_keys else ""))
            what = "permissions"
            if await kinesis.probe():
                report.well(what, "records may be put")
            else:
                report.untried(what, f"{url} is not AWS, and might store the record")
    except KinesisError as error:
        report.bad(what, str(error))
    return url


async def _check_x(settings: Settings, report: Report) -> str:
    """Try the token of X, and where there are rules, those; return its URL, "" if it cannot be reached."""
    rng = random.Random()  # noqa: S311 - jitter, not secrets
    what = "x token"
    try:
        token = await bearer(lambda: settings, rng).get()
        if settings.source == "filtered":
            what = "x rules"
            await _check_rules(Rules(settings.x_url, rng), token, settings.rules, report)
        else:
            report.well(what, f"there is one; whether it is good for {settings.source} shows when it connects")
    except UnavailableError as error:
        reason = error.verdict.reason
        report.bad("x token" if reason in BEFORE_RULES else what, str(error))
        return "" if reason is Reason.NETWORK_ERROR else settings.x_url
    return settings.x_url


async def _check_rules(x: Rules, token: str, wanted: Sequence[Rule], report: Report) -> None:
    """Try the wanted rules, and with them the token; raises UnavailableError."""
    try:
        changes = await x.sync(token, wanted, apply=False)
    except RulesError as error:
        report.well("x token", "X takes it")
        for problem in error.problems:
            report.bad("x rules", problem)
        return
    report.well("x token", "X takes it")
    present = len(changes.delete) + len(changes.others)
    if wanted:
        missing = "" if len(changes.keep) == len(wanted) else "; run makes the rest"
        report.well("x rules", f"{len(changes.keep)} of {len(wanted)} wanted rules are there{missing}")
    elif present:
        report.well("x rules", f"none are wanted, so the {present} that X has are used")
    else:
        report.bad("x rules", "X has none, and a filtered stream needs one; set MILLRACE_RULES or MILLRACE_RULES_FILE")


async def check_clock(url: str, report: Report) -> None:
    """Compare the clock of this machine with that of a server, which any answer tells to the second."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    try:
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session:
            asked = time.time()
            async with session.head(url, allow_redirects=False) as response:
                ahead = parsedate_to_datetime(response.headers["Date"]).timestamp() - (asked + time.time()) / 2
    except aiohttp.ClientConnectorError as error:
        report.bad("clock", f"{url} cannot be reached: {plain(error)}; check that address and the network")
        return
    except (aiohttp.ClientError, OSError, KeyError, ValueError, OverflowError):
        report.untried("clock", f"{url} does not say the time")
        return
    if abs(ahead) > CLOCK_TOLERANCE_SECONDS:
        words = f"this machine is {abs(ahead):,.0f} s {'behind' if ahead > 0 else 'ahead of'} {url}"
        report.bad("clock", f"{words}; set it by NTP: AWS refuses signatures that are five minutes off")
    else:
        # Whole seconds on one side, and the way there and back.
        report.well("clock", f"within {max(1.0, abs(ahead)):.0f} s of {url}")


async def rules(settings: Settings, *, apply: bool, all_owners: bool) -> int:
    """
    Show how X's rules differ from the wanted ones; with `apply`, make them the same. Return the exit code.

    With `all_owners`, rules of others that are not wanted are deleted too.
    """
    rng = random.Random()  # noqa: S311 - jitter, not secrets
    apply = apply and bool(settings.rules)
    try:
        token = await bearer(lambda: settings, rng).get()
        changes = await Rules(settings.x_url, rng).sync(token, settings.rules, apply=apply, all_owners=all_owners)
    except (RulesError, UnavailableError) as error:
        for line in getattr(error, "problems", [str(error)]):
            print(line, file=sys.stderr)
        return 1
    if not settings.rules:
        for rule in [*changes.delete, *changes.others]:
            print(f"  {rule.value}  [{rule.tag}]")
        print("no rules are wanted, so X's stay as they are: set MILLRACE_RULES or MILLRACE_RULES_FILE")
        return 0
    for sign, group in (
        ("+", changes.add),
        ("-", changes.delete),
        ("-", [change.old for change in changes.replace]),
        ("+", [change.new for change in changes.replace]),
        (" ", changes.keep),
    ):
        for rule in group:
            print(f"{sign} {rule.value}  [{rule.tag}]")
    for rule in changes.others:
        print(f"  {rule.value}  [{rule.tag}]  of another owner; --all-owners would delete it")
    if changes.is_empty:
        print("nothing to change")
    else:
        print("made" if apply else "not made: add --apply")
    return 0


def gaps(settings: Settings) -> int:
    """List when the stream was not connected, and what that cost. Return the exit code."""
    if settings.journal is None:
        print("MILLRACE_JOURNAL: off, so no gaps are remembered; /status shows those of this run", file=sys.stderr)
        return 1
    try:
        entries = StateFile(settings.journal).read().gaps
    except DAMAGED as error:
        print(f"MILLRACE_JOURNAL: the gaps cannot be read: {error}; look at {FILE_NAME} there", file=sys.stderr)
        return 1
    now = time.time()
    print(f"{'from':<21} {'until':<21} {'seconds':>9} {'missed':>8} {'backfilled':>10}  reason")
    for gap in entries:
        row = describe(gap, now)
        print(
            f"{row['from']:<21} {row['until'] or 'it lasts':<21} {row['seconds']:>9,.1f}"
            f" {row['missed_estimate']:>8,} {row['backfilled']:>10,}  {row['reason']}"
        )
    return 0
