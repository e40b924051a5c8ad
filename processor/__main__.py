"""
The operator's console: what is in the table, and what should not be.

    python -m processor latest [-n 20] [--hours 48]      the newest posts
    python -m processor get ID                           one post
    python -m processor author ID [-n 20]                the newest posts of an author, by the author's number
    python -m processor rule TAG [-n 20] [--hours 48]    the newest posts that matched a rule, by the rule's tag
    python -m processor count [--hours 48] [--rule TAG]  how many posts there are of the last hours
    python -m processor count --author ID                how many posts of an author there are
    python -m processor delete ID ... | -                delete posts for good; - reads ids from standard input
    python -m processor purge ID                         delete all posts of an author for good
    python -m processor redrive [PLACE]                  put back what failed, from a bucket or a directory

Whose table it is: --stack NAME asks the function of that stack for its settings. Otherwise they are taken from the
environment, by the names that the function has: TABLE (or --table), and where it matters TIME_SHARDS, TTL_DAYS,
ID_POINTER, TIME_POINTER and QUARANTINE. Region, endpoint and credentials are botocore's own.

On a terminal a post is one line; in a pipe it is one JSON object with all that the table holds, and so is a result.

Exit codes: 0; 1 there is no such post, or something is left to do; 2 the command, a setting or the table is not
usable, said in one line.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from botocore.exceptions import BotoCoreError, ClientError

from processor import dynamodb, tombstones
from processor.failures import connect_bucket, store_at
from processor.items import SORT_KEY_BYTES, TOMBSTONE_PREFIX, Item, Shape
from processor.reader import TableReader, connect_reader, location_of, told
from processor.redrive import DELETED, NOT_NOW, PRESENT, STORED, UNSTORABLE, Redrive
from processor.screen import line_of
from processor.settings import SettingsError, is_whole, shape_from
from processor.stack import settings_of
from processor.table import PARALLEL_CALLS, TableError, TableWriter

# How far back questions about time look; each hour is as many questions as it has shards.
RECENT_HOURS = 48
# A throttled table may need minutes for many deletions.
DELETE_SECONDS = 300.0


def main(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    output: TextIO,
    errors: TextIO,
    given: TextIO = sys.stdin,
    columns: int | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> int:
    """
    Run one command and return the exit code.

    `columns` is the width of the terminal that `output` is; None says that it is none.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.stack:
            environ = {**environ, **settings_of(options.stack, location_of(environ, "lambda"))}
        table = options.table or environ.get("TABLE")
        if not table:
            raise SettingsError("no table is named: use --stack or --table, or set TABLE")
        faults: list[str] = []
        shape = shape_from(environ, faults)
        if faults:
            raise SettingsError("; ".join(faults))
        if options.command == "delete" and options.ids == ["-"]:
            options.ids = given.read().split()
        with ThreadPoolExecutor(PARALLEL_CALLS) as pool, ExitStack() as opened:
            console = Console(options, environ, table, shape, pool, opened, output, errors, columns, now())
            command: Callable[[], int] = getattr(console, options.command)
            return command()
    except (SettingsError, TableError) as error:
        print(f"python -m processor: {error}", file=errors)
    except (OSError, BotoCoreError, ClientError) as error:  # of a directory, or of a bucket
        print(f"python -m processor: {told(error)}", file=errors)
    return 2


@dataclass(frozen=True)
class Console:
    """The commands; each returns the exit code."""

    _options: argparse.Namespace
    _environ: Mapping[str, str]
    _table: str
    _shape: Shape
    _pool: Executor
    _opened: ExitStack
    _output: TextIO
    _errors: TextIO
    _columns: int | None
    _now: datetime

    def latest(self) -> int:
        """Show the newest posts, or those of a rule."""
        reader, options = self._reader(), self._options
        items = reader.newest(options.count, options.hours, options.tag)
        if not items:
            print(f"nothing from the last {options.hours} hours: reading the whole table", file=self._errors)
            items = reader.newest_of_all(options.count, options.tag)
        self._show(items)
        return 0

    rule = latest

    def get(self) -> int:
        """Show one post."""
        item = self._reader().get(self._options.id)
        self._show([item] if item else [])
        return 0 if item else 1

    def author(self) -> int:
        """Show the newest posts of an author."""
        self._show(self._reader().of_author(self._options.id, self._options.count))
        return 0

    def count(self) -> int:
        """Count posts."""
        if self._options.author:
            number = self._reader().count_of_author(self._options.author)
        else:
            number = self._reader().count(self._options.hours, self._options.rule)
        self._tell({"count": number}, f"{number:,}")
        return 0

    def delete(self) -> int:
        """Delete posts for good."""
        return self._delete(self._options.ids)

    def purge(self) -> int:
        """Delete all posts of an author for good."""
        return self._delete(self._reader().ids_of_author(self._options.id))

    def redrive(self) -> int:
        """Put back what failed."""
        # Beside the function's quarantine, in the same place, lies what Lambda gave up.
        place = self._options.place or self._environ.get("QUARANTINE", "").rstrip("/").removesuffix("/quarantine")
        if not place:
            raise SettingsError("no place is named: use --stack, name s3://BUCKET or a directory, or set QUARANTINE")
        location = location_of(self._environ, "s3")
        failures = store_at(place, lambda: self._open(connect_bucket(**location)))
        counts: Counter[str] = Counter()
        kept = 0
        for result in Redrive(failures, self._client(), self._table, self._shape, self._pool).run():
            counts.update(result.counts)
            if result.reason is not None:
                kept += 1
                print(f"{result.key}: {result.reason}", file=self._errors)
        result_of = {name: counts[name] for name in (STORED, PRESENT, DELETED, UNSTORABLE, NOT_NOW)}
        text = (
            f"{counts[STORED]:,} stored; {counts[PRESENT]:,} were in the table already; {counts[DELETED]:,} had been"
            f" deleted; {counts[UNSTORABLE]:,} can still not be stored; {counts[NOT_NOW]:,} not taken now, try again"
        )
        self._tell({**result_of, "objects_kept": kept}, text)
        return 1 if kept else 0

    def _delete(self, ids: Sequence[str]) -> int:
        if wrong := [
            key for key in ids if not 0 < len(key.encode()) <= SORT_KEY_BYTES or key.startswith(TOMBSTONE_PREFIX)
        ]:
            raise SettingsError(f"{wrong[0][:40]!r} is no id of a post, and nothing was deleted")
        table = TableWriter(self._table, lambda: self._open(dynamodb.connect(self._environ)), self._pool)
        left = tombstones.delete(table, ids, self._now, self._shape.ttl_days, time.monotonic() + DELETE_SECONDS)
        deleted = len(set(ids)) - len(left)
        self._tell({"deleted": deleted, "left": sorted(left)}, f"{deleted:,} deleted; they will not come back")
        if left:
            print(f"the table did not take {len(left):,} in time: run it again", file=self._errors)
        return 1 if left else 0

    def _reader(self) -> TableReader:
        return TableReader(self._table, self._client, self._pool, now=self._now, shards=self._shape.time_shards)

    def _client(self) -> Any:
        return self._open(connect_reader(**location_of(self._environ, "dynamodb")))

    def _open(self, client: Any) -> Any:
        self._opened.callback(client.close)
        return client

    def _show(self, items: Sequence[Item]) -> None:
        for item in items:
            print(line_of(item, self._columns), file=self._output)
        if not items:
            print("nothing found", file=self._errors)

    def _tell(self, result: Mapping[str, Any], text: str) -> None:
        print(text if self._columns else json.dumps(result), file=self._output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m processor", description="Look into the table of posts.")
    whose = argparse.ArgumentParser(add_help=False)
    for where, default in ((parser, None), (whose, argparse.SUPPRESS)):
        # Where it is not given after the command, it must not wipe out what stood before it.
        where.add_argument("--stack", default=default, metavar="NAME", help="take all settings from this stack")
        where.add_argument("--table", default=default, metavar="NAME", help="name of the table; else TABLE is it")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, about: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, description=about, parents=[whose])

    latest = command("latest", "the newest posts")
    latest.set_defaults(tag=None)
    get = command("get", "one post by its id")
    get.add_argument("id")
    author = command("author", "the newest posts of an author")
    author.add_argument("id", help="the author's number, not the handle: a handle can change")
    rule = command("rule", "the newest posts that matched a rule")
    rule.add_argument("tag", help="the tag of the rule")
    count = command("count", "how many posts there are")
    chosen = count.add_mutually_exclusive_group()
    chosen.add_argument("--rule", metavar="TAG", help="only those that matched this rule")
    chosen.add_argument("--author", metavar="ID", help="all of this author, whatever their age")
    delete = command("delete", "delete posts for good: a late replay does not bring them back")
    delete.add_argument("ids", nargs="+", metavar="ID", help="of the posts; - reads them from standard input")
    purge = command("purge", "delete all posts of an author for good")
    purge.add_argument("id", help="the author's number")
    redrive = command("redrive", "put back what failed")
    redrive.add_argument("place", nargs="?", help="s3://BUCKET or a directory; else what is around QUARANTINE")
    for where in (latest, author, rule):
        where.add_argument("-n", dest="count", type=_up_to(10_000), default=20, help="how many (default: 20)")
    for where in (latest, rule, count):
        about = f"how far back (default: {RECENT_HOURS})"
        where.add_argument("--hours", type=_up_to(100_000), default=RECENT_HOURS, help=about)
    return parser


def _up_to(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if is_whole(text, 1, most):
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {most}")

    return read


if __name__ == "__main__":
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    try:
        code = main(sys.argv[1:], os.environ, output=sys.stdout, errors=sys.stderr, columns=width)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has enough. Python would complain once more when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
