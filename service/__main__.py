"""
The commands of the daemon.

    python -m service [run]     carry posts until SIGTERM
    python -m service check     try everything that `run` needs, and say what is wrong; carries nothing
    python -m service rules     show how X's rules differ from the wanted ones; --apply makes them the same
    python -m service gaps      list when the stream was not connected, and about how many posts that cost
    python -m service health    ask a running daemon; exit code 0 if it lives
    python -m service letters   print the lines of the dead letters; --reason NAME only those with that reason
    python -m service config    print the effective configuration; --markdown prints the table of all settings

Dead letters are put back by piping them into a second daemon: see docs/operations.md, Put letters back.

Everything else is set by environment variables: see docs/configuration.md. Exit codes: 0 well, 1 it failed, 2 the
configuration is not usable.
"""

import argparse
import asyncio
import gc
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException

from service import __version__
from service.config import ConfigError, Settings, describe, load, markdown
from service.core.records import DropReason

# New containers before the garbage collector looks at the young ones; CPython's own number is 700.
GC_THRESHOLD = 50_000


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run one command in this environment and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m service", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"Millrace {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="command", help="one of those above; run, where there is none"
    )
    commands.add_parser("run")
    commands.add_parser("check")
    rules = commands.add_parser("rules")
    rules.add_argument("--apply", action="store_true", help="add and delete what differs")
    rules.add_argument(
        "--all-owners", action="store_true", help="delete also rules that are not wanted and that others have put there"
    )
    commands.add_parser("gaps")
    commands.add_parser("health")
    letters = commands.add_parser("letters")
    letters.add_argument("--reason", action="append", default=[], choices=[reason.value for reason in DropReason])
    config = commands.add_parser("config")
    config.add_argument("--markdown", action="store_true", help="print docs/configuration.md instead")
    options = parser.parse_args(arguments)

    if options.command == "config" and options.markdown:
        print(markdown(), end="")
        return 0
    try:
        settings = load(environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if options.command in {None, "run"}:
        return _run(settings, environ)
    try:
        code = _ask(settings, environ, options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has had enough. Nothing is to be said on the way out either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    return code


def _ask(settings: Settings, environ: Mapping[str, str], options: argparse.Namespace) -> int:
    match options.command:
        case "config":
            print(describe(settings))
            return 0
        case "health":
            return _health(settings)
        case "letters" | "gaps" if settings.journal and not os.access(settings.journal, os.R_OK):
            way_out = "name the directory of the daemon, as its user"
            print(f"MILLRACE_JOURNAL: {settings.journal} cannot be read; {way_out}", file=sys.stderr)
            return 1
        case "letters":
            return _letters(settings, options.reason)

    from service import check  # noqa: PLC0415 - asking for health must not cost a second of imports

    match options.command:
        case "check":
            return asyncio.run(check.check(settings, environ))
        case "rules":
            return asyncio.run(check.rules(settings, apply=options.apply, all_owners=options.all_owners))
        case _:
            return check.gaps(settings)


def _run(settings: Settings, environ: Mapping[str, str]) -> int:
    from service.app import Daemon, StartError  # noqa: PLC0415 - as above

    if sys.stdin is None:
        # It was closed, and the first file of ours would get its number: libuv aborts the process that closes that.
        os.open(os.devnull, os.O_RDONLY)
    # Journal and dead letters hold posts: no other user of the machine is to read them.
    os.umask(0o077)
    # What the imports made stays for good, and posts are in no cycles: by default the collector would look through all
    # of it hundreds of times a second, a tenth of the CPU.
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 100)
    code = 0
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(Daemon(settings, environ).run())
            # All is done and said. What a disk that hangs still holds is a thread, for which Python would wait.
            os._exit(0)
    except* StartError as group:
        code = 1
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        print(error, file=sys.stderr)
    return code


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - it does not exist for every system
    except ImportError:
        return None
    return uvloop.new_event_loop


def _health(settings: Settings) -> int:
    # Where a server listens on all addresses, a client connects to one of them.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.http_host, settings.http_host)  # noqa: S104
    url = f"http://{host}:{settings.http_port}/readyz"
    try:
        try:
            answer = urllib.request.urlopen(url, timeout=3)
        except urllib.error.HTTPError as not_ready:
            answer = not_ready
        checks = json.load(answer)["checks"]
    except (OSError, HTTPException, ValueError, TypeError, KeyError) as error:
        reason: object = "another program does"
        if isinstance(error, OSError):
            # urllib puts the error of the system into one of its own, whose text has brackets and a number.
            cause = getattr(error, "reason", error)
            reason = getattr(cause, "strerror", None) or cause
        print(f"no daemon answers at {url}: {reason}; see MILLRACE_HTTP_HOST and MILLRACE_HTTP_PORT", file=sys.stderr)
        return 1
    for name, check in checks.items():
        print(f"{name:<8} {'ok' if check['ok'] else check['reason']}  (since {check['since']})")
    # Not being ready is no reason to be restarted: that would only add to an outage of X or of Kinesis.
    return 0


def _letters(settings: Settings, reasons: list[str]) -> int:
    from service.dead_letters import DeadLetters  # noqa: PLC0415 - as above

    try:
        for line in DeadLetters(settings.journal, time.time).read(reasons):
            sys.stdout.buffer.write(line + b"\n")
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"MILLRACE_JOURNAL: the dead letters cannot be read: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
