"""Commands that only ask: `check` tries all that `run` needs, `rules` compares X's rules with the wanted ones."""

import random
import sys
from collections.abc import Mapping

from service.app import fetch_token
from service.config import Settings
from service.core.reconnect import Ladders
from service.core.rules import Changes, Rule
from service.kinesis import Kinesis, KinesisError
from service.rules import Rules, RulesError, RulesUnavailableError
from service.stream import TokenError


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
            changes = await _compare(settings, apply=False)
            print(f"x              ok: {len(changes.keep)} of {len(settings.rules)} wanted rules are there")
        except (TokenError, RulesError, RulesUnavailableError) as error:
            failures += 1
            print(f"x              {error}")
    return 1 if failures else 0


async def rules(settings: Settings, *, apply: bool) -> int:
    """Show how X's rules differ from the wanted ones; with `apply`, make them the same. Return the exit code."""
    try:
        changes = await _compare(settings, apply=apply)
    except (TokenError, RulesError, RulesUnavailableError) as error:
        for line in getattr(error, "problems", [str(error)]):
            print(line, file=sys.stderr)
        return 1
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


async def _compare(settings: Settings, *, apply: bool) -> Changes:
    rng = random.Random()  # noqa: S311 - jitter, not secrets
    token = await fetch_token(settings, Ladders(rng))
    wanted = [Rule(rule.value, rule.tag) for rule in settings.rules]
    return await Rules(settings.x_url, token, rng).sync(wanted, apply=apply)
