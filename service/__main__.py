"""
The commands of the daemon.

    python -m service [run]     carry posts until SIGTERM
    python -m service check     try everything that `run` needs, and say what is wrong; carries nothing
    python -m service rules     show how X's rules differ from the wanted ones; --apply makes them the same
    python -m service health    ask a running daemon; exit code 0 if it lives
    python -m service config    print the effective configuration; --markdown prints the table of all settings

Everything else is set by environment variables: see docs/configuration.md. Exit codes: 0 well, 1 it failed, 2 the
configuration is not usable.
"""

import argparse
import asyncio
import os
import random
import sys
from collections.abc import Callable

import aiohttp

from service import __version__
from service.app import Daemon, StartError, fetch_token
from service.config import ConfigError, Settings, describe, load, markdown
from service.core.reconnect import Ladders
from service.core.rules import Changes, Rule
from service.kinesis import Kinesis, KinesisError
from service.rules import Rules, RulesError, RulesUnavailableError
from service.stream import TokenError


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m service", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"Millrace {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("run", help="carry posts until SIGTERM (the default)")
    commands.add_parser("check", help="try everything that run needs")
    rules = commands.add_parser("rules", help="compare X's rules with the wanted ones")
    rules.add_argument("--apply", action="store_true", help="add and delete what differs")
    commands.add_parser("health", help="ask a running daemon")
    config = commands.add_parser("config", help="print the effective configuration, without secrets")
    config.add_argument("--markdown", action="store_true", help="print docs/configuration.md instead")
    options = parser.parse_args(arguments)

    if options.command == "config" and options.markdown:
        print(markdown(), end="")
        return 0
    try:
        settings = load(os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    match options.command:
        case "config":
            print(describe(settings))
            return 0
        case "health":
            return asyncio.run(_health(settings))
        case "check":
            return asyncio.run(_check(settings))
        case "rules":
            return asyncio.run(_rules(settings, apply=options.apply))
        case _:
            return _run(settings)


def _run(settings: Settings) -> int:
    code = 0
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(Daemon(settings, os.environ).run())
    except* StartError as group:
        code = 1
        errors: list[BaseException] = [group]
        while errors:
            error = errors.pop()
            if isinstance(error, BaseExceptionGroup):
                errors += error.exceptions
            else:
                print(error, file=sys.stderr)
    return code


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - it does not exist for every system
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _health(settings: Settings) -> int:
    url = f"http://{_local(settings.http_host)}:{settings.http_port}/readyz"
    timeout = aiohttp.ClientTimeout(total=3)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
            report = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        print(f"no daemon answers at {url}: {error}; see MILLRACE_HTTP_HOST and MILLRACE_HTTP_PORT", file=sys.stderr)
        return 1
    for name, check in report["checks"].items():
        print(f"{name:<8} {'ok' if check['ok'] else check['reason']}  (since {check['since']})")
    # Not being ready is no reason to be restarted: that would only add to an outage of X or of Kinesis.
    return 0


def _local(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - compared, not bound


async def _check(settings: Settings) -> int:
    """Print a line for each thing that `run` needs."""
    failures = 0
    print("configuration  ok")
    try:
        async with Kinesis(settings.stream, region=os.environ.get("AWS_REGION")) as kinesis:
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


async def _rules(settings: Settings, *, apply: bool) -> int:
    try:
        changes = await _compare(settings, apply=apply)
    except (TokenError, RulesError, RulesUnavailableError) as error:
        for line in getattr(error, "problems", [str(error)]):
            print(line, file=sys.stderr)
        return 1
    for sign, rules in (
        ("+", changes.add),
        ("-", changes.delete),
        ("-", [change.old for change in changes.replace]),
        ("+", [change.new for change in changes.replace]),
        (" ", changes.keep),
    ):
        for rule in rules:
            print(f"{sign} {rule.value}  [{rule.tag}]")
    if not changes.is_empty:
        print("made" if apply else "not made: add --apply")
    return 0


async def _compare(settings: Settings, *, apply: bool) -> Changes:
    rng = random.Random()  # noqa: S311 - jitter, not secrets
    token = await fetch_token(settings, Ladders(rng))
    wanted = [Rule(rule.value, rule.tag) for rule in settings.rules]
    return await Rules(settings.x_url, token, rng).sync(wanted, apply=apply)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
