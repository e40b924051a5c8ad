"""
Commands that only ask.

`check` tries all that `run` needs, `rules` compares X's rules with the wanted ones, `gaps` lists when the stream was
not connected.
"""

import random
import sys
import time
from collections.abc import Mapping

from service.config import Settings
from service.core.rules import Changes
from service.kinesis import Kinesis, KinesisError
from service.rules import Rules, RulesError, RulesUnavailableError
from service.source import bearer, wanted_rules
from service.state import StateFile
from service.stream import TokenError
from service.watch import describe


async def check(settings: Settings, environ: Mapping[str, str]) -> int:
    """Try configuration, Kinesis and X, print a line for each, and return the exit code."""
    failures = 0
    print("configuration  ok")
    try:
        async with Kinesis(settings.stream, region=environ.get("AWS_REGION") or None) as kinesis:
            facts = await kinesis.facts()
            shards = await kinesis.shards()
            await kinesis.probe()
        print(f"kinesis        ok: {facts.name}, {facts.status}, {facts.mode}, {len(shards)} open shards")
    except KinesisError as error:
        failures += 1
        print(f"kinesis        {error}")
    if settings.source != "stdin":
        try:
            print(f"x              ok: {await _ask_x(settings)}")
        except (TokenError, RulesError, RulesUnavailableError) as error:
            failures += 1
            print(f"x              {error}")
    return 1 if failures else 0


async def rules(settings: Settings, *, apply: bool, all_owners: bool) -> int:
    """
    Show how X's rules differ from the wanted ones; with `apply`, make them the same. Return the exit code.

    With `all_owners`, rules of others that are not wanted are deleted too.
    """
    try:
        changes = await _compare(settings, apply=apply and bool(settings.rules), all_owners=all_owners)
    except (TokenError, RulesError, RulesUnavailableError) as error:
        for line in getattr(error, "problems", [str(error)]):
            print(line, file=sys.stderr)
        return 1
    if not settings.rules:
        for rule in [*changes.keep, *changes.delete]:
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
    if not changes.is_empty:
        print("made" if apply else "not made: add --apply")
    return 0


def gaps(settings: Settings) -> int:
    """List when the stream was not connected, and what that cost. Return the exit code."""
    if settings.journal is None:
        print("MILLRACE_JOURNAL: off, so no gaps are remembered; /status shows those of this run", file=sys.stderr)
        return 1
    entries = StateFile(settings.journal).load().gaps
    now = time.time()
    print(f"{'from':<21} {'until':<21} {'seconds':>9} {'missed':>8} {'backfilled':>10}  reason")
    for gap in entries:
        row = describe(gap, now)
        print(
            f"{row['from']:<21} {row['until'] or 'it lasts':<21} {row['seconds']:>9,.1f}"
            f" {row['missed_estimate']:>8,} {row['backfilled']:>10,}  {row['reason']}"
        )
    return 0


async def _ask_x(settings: Settings) -> str:
    """Ask X for the token, and for the rules where there are any; say how it went."""
    if settings.source != "filtered":
        await bearer(settings, random.Random()).get()  # noqa: S311 - jitter, not secrets
        return f"there is a token; whether it is good for {settings.source} shows when it connects"
    changes = await _compare(settings, apply=False)
    if not settings.rules:
        return f"{len(changes.keep) + len(changes.delete)} rules are there"
    return f"{len(changes.keep)} of {len(settings.rules)} wanted rules are there"


async def _compare(settings: Settings, *, apply: bool, all_owners: bool = False) -> Changes:
    rng = random.Random()  # noqa: S311 - jitter, not secrets
    token = await bearer(settings, rng).get()
    return await Rules(settings.x_url, rng).sync(token, wanted_rules(settings), apply=apply, all_owners=all_owners)
