"""
The operator's console: what is in the table.

    python -m processor latest [-n 20]          the newest posts
    python -m processor get ID                  one post
    python -m processor author ID [-n 20]       the newest posts of an author, by the author's number

On a terminal a post is one line; in a pipe it is one JSON object with all that the table holds.

Exit codes: 0; 1 there is no such post; 2 the command, a setting or the table is not usable, said in one line.
"""

import argparse
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TextIO

from processor.handler import SettingsError, whole_number
from processor.items import Item, Shape
from processor.table import PARALLEL_CALLS, TableError, TableReader, connect_reader

# How far back `latest` asks the time index, each hour in as many questions as it has shards.
RECENT_HOURS = 48


def main(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    output: TextIO,
    errors: TextIO,
    columns: int | None = None,
    connect: Callable[[], Any] = connect_reader,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> int:
    """
    Run one command and return the exit code.

    `columns` is the width of the terminal that `output` is; None says that it is none.
    """
    options = _parser().parse_args(arguments)
    table = options.table or environ.get("TABLE")
    try:
        if not table:
            raise SettingsError("no table is named: use --table, or set TABLE")
        with ThreadPoolExecutor(PARALLEL_CALLS) as pool:
            items = _ask(options, TableReader(table, connect, pool), environ, errors, now())
    except (SettingsError, TableError) as error:
        print(f"python -m processor: {error}", file=errors)
        return 2
    for item in items:
        print(_line(item, columns) if columns else json.dumps(_plain(item), ensure_ascii=False), file=output)
    if not items:
        print("nothing found", file=errors)
    return 1 if options.command == "get" and not items else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m processor", description="Look into the table of posts.")
    about_table = "name of the table; else TABLE of the environment"
    parser.add_argument("--table", help=about_table)
    commands = parser.add_subparsers(dest="command", required=True)
    latest = commands.add_parser("latest", help="the newest posts")
    get = commands.add_parser("get", help="one post by its id")
    get.add_argument("id")
    author = commands.add_parser("author", help="the newest posts of an author")
    author.add_argument("id", help="the author's number, not the handle: a handle can change")
    for command in (latest, get, author):
        # Where it is not given, it must not wipe out what stood before the command.
        command.add_argument("--table", default=argparse.SUPPRESS, help=about_table)
    for command in (latest, author):
        command.add_argument("-n", dest="count", type=_count, default=20, help="how many (default: 20)")
    return parser


def _count(text: str) -> int:
    faults: list[str] = []
    count = whole_number({"-n": text}, "-n", 0, 1, 10_000, faults)
    if faults:
        raise argparse.ArgumentTypeError(faults[0])
    return count


def _ask(
    options: argparse.Namespace, reader: TableReader, environ: Mapping[str, str], errors: TextIO, now: datetime
) -> Sequence[Item]:
    if options.command == "get":
        item = reader.get(options.id)
        return [item] if item else []
    if options.command == "author":
        return reader.of_author(options.id, options.count)
    faults: list[str] = []
    shards = whole_number(environ, "TIME_SHARDS", Shape().time_shards, 1, 1_000, faults)
    if faults:
        raise SettingsError(faults[0])
    items = reader.newest(options.count, now, RECENT_HOURS, shards)
    if not items:
        print(f"nothing from the last {RECENT_HOURS} hours: reading the whole table", file=errors)
        items = reader.newest_of_all(options.count)
    return items


def _plain(item: Item) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in item.items():
        ((kind, content),) = value.items()
        plain[name] = int(content) if kind == "N" else content
    return plain


def _line(item: Item, columns: int) -> str:
    post = _plain(item)
    head = f"{post['Timestamp'][:19].replace('T', ' ')}  @{post['Username']}  "
    return _fit(head + " ".join(post["Message"].split()), columns)


def _fit(text: str, columns: int) -> str:
    """Shorten to the width of a terminal, on which Chinese, Japanese and Korean characters take two columns."""
    shown: list[str] = []
    used = 0
    for character in text:
        # A post may hold control and direction characters, which a terminal would obey.
        printable = character if character.isprintable() else " "
        width = 2 if unicodedata.east_asian_width(printable) in "WF" else 1
        if unicodedata.combining(printable):
            width = 0
        if used + width > columns - 1:
            return "".join(shown) + "…"
        shown.append(printable)
        used += width
    return "".join(shown)


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
