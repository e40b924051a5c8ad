import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from processor.__main__ import main
from processor.items import Shape, item_of
from processor.table import connect_reader
from tests.processor.fake_dynamodb import TABLE, served_by_moto

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)
# Minutes before NOW at which each post was written, and what it says.
POSTS = {
    "1": (10, "今日は良い天気ですね、川の水も豊かで水車がよく回ります"),
    "2": (90, "one\ntwo\x1b[31m cafe\u0301"),
    "3": (47 * 60, "two days ago, nearly"),
    "4": (60 * 60, "long ago"),
}


def fill(location: dict[str, str], names: str, table: str = TABLE) -> None:
    """Put the posts with these ids into the table."""
    client = connect_reader(**location)
    for name in names:
        minutes, text = POSTS[name]
        data = {
            "id": name,
            "author_id": "42" if name != "3" else "43",
            "created_at": (NOW - timedelta(minutes=minutes)).isoformat(),
            "text": text,
        }
        line = {"data": data, "includes": {"users": [{"id": "42", "username": "miller", "name": "粉屋"}]}}
        client.put_item(TableName=table, Item=item_of(json.dumps(line).encode(), 0, Shape()))
    client.close()


class Console:
    """The console, wired to a table; closes its connections behind itself."""

    def __init__(self, location: dict[str, str]) -> None:
        self._location = location
        self.output = ""
        self.errors = ""

    def run(self, *arguments: str, columns: int | None = None, environ: dict[str, str] | None = None) -> int:
        output, errors = io.StringIO(), io.StringIO()
        clients: list[Any] = []

        def connect() -> Any:
            clients.append(connect_reader(**self._location))
            return clients[-1]

        code = main(
            arguments,
            {"TABLE": TABLE} if environ is None else environ,
            output=output,
            errors=errors,
            columns=columns,
            connect=connect,
            now=lambda: NOW,
        )
        for client in clients:
            client.close()
        self.output, self.errors = output.getvalue(), errors.getvalue()
        return code

    @property
    def ids(self) -> list[str]:
        return [json.loads(line)["Id"] for line in self.output.splitlines()]


@pytest.fixture(scope="module")
def location() -> Iterator[dict[str, str]]:
    """Where a table with four posts answers."""
    with served_by_moto() as place:
        fill(place, "1234")
        yield place


@pytest.fixture
def console(location: dict[str, str]) -> Console:
    """A console for that table."""
    return Console(location)


def test_latest_shows_the_newest_posts_first(console: Console) -> None:
    """Posts of the last 48 hours come newest first, across hours and shards, and no older ones."""
    assert console.run("latest") == 0
    assert console.ids == ["1", "2", "3"]
    assert console.errors == ""


def test_latest_shows_as_many_as_wanted(console: Console) -> None:
    """-n limits the number."""
    assert console.run("latest", "-n", "2") == 0
    assert console.ids == ["1", "2"]


def test_latest_falls_back_to_the_whole_table() -> None:
    """Where the last 48 hours hold nothing, as with a replayed archive, the whole table is read, and that is said."""
    with served_by_moto("archive") as location:
        fill(location, "4", "archive")
        console = Console(location)
        assert console.run("latest", "--table", "archive") == 0

    assert console.ids == ["4"]
    assert "reading the whole table" in console.errors


def test_an_empty_table_is_no_error() -> None:
    """With nothing to show the console says so and is content."""
    with served_by_moto("empty") as location:
        console = Console(location)
        assert console.run("latest", "--table", "empty") == 0

    assert console.output == ""
    assert console.errors.endswith("nothing found\n")


def test_author_shows_the_posts_of_one_author(console: Console) -> None:
    """Posts of other authors are left out; the newest id comes first."""
    assert console.run("author", "42", "-n", "2") == 0
    assert console.ids == ["4", "2"]


def test_get_shows_all_that_the_table_holds(console: Console) -> None:
    """In a pipe a post is one JSON object with every attribute, as a plain value, in its own script."""
    assert console.run("get", "1") == 0

    item = json.loads(console.output)
    assert item["Message"] == POSTS["1"][1]
    assert item["Message"] in console.output
    assert item["DisplayName"] == "粉屋"
    assert item["ExpiresAt"] == int((NOW - timedelta(minutes=10) + timedelta(days=30)).timestamp())


def test_get_of_no_post_fails(console: Console) -> None:
    """An id that is not there is exit code 1."""
    assert console.run("get", "17") == 1
    assert console.output == ""
    assert console.errors == "nothing found\n"


def test_a_terminal_gets_a_line_a_post(console: Console) -> None:
    """Time, name and message share one line, which cannot hold what a terminal would obey."""
    assert console.run("get", "2", columns=80) == 0
    assert console.output == "2026-11-23 13:00:00  @miller  one two [31m cafe\u0301\n"


def test_an_accent_takes_no_column(console: Console) -> None:
    """A mark that is written over the letter before it does not make the line any wider."""
    line = "2026-11-23 13:00:00  @miller  one two [31m cafe\u0301"

    assert console.run("get", "2", columns=len(line)) == 0
    assert console.output == line + "\n"


def test_a_terminal_s_line_is_never_too_wide(console: Console) -> None:
    """Japanese takes two columns a character: the line is cut where the terminal ends."""
    assert console.run("get", "1", columns=45) == 0
    assert console.output == "2026-11-23 14:20:00  @miller  今日は良い天気…\n"


@pytest.mark.parametrize("arguments", [("--table", TABLE, "get", "1"), ("get", "1", "--table", TABLE)])
def test_the_table_may_be_named_before_or_after_the_command(console: Console, arguments: tuple[str, ...]) -> None:
    """--table wins over the environment, wherever it stands."""
    assert console.run(*arguments, environ={"TABLE": "elsewhere"}) == 0
    assert console.ids == ["1"]


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        (["latest"], {}, "no table is named: use --table"),
        (["latest"], {"TABLE": "elsewhere"}, "table elsewhere: there is no such table"),
        (["latest"], {"TABLE": TABLE, "TIME_SHARDS": "x"}, "TIME_SHARDS is 'x'"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    console: Console, arguments: list[str], environ: dict[str, str], words: str
) -> None:
    """A table or a setting that cannot be used is named, with the way out."""
    assert console.run(*arguments, environ=environ) == 2
    assert console.output == ""
    assert words in console.errors
    assert console.errors.count("\n") == 1


@pytest.mark.parametrize("count", ["0", "-1", "many", "10001"])
def test_a_count_is_a_whole_number(console: Console, count: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A count that makes no sense is refused as a wrong command."""
    with pytest.raises(SystemExit) as caught:
        console.run("latest", "-n", count)

    assert caught.value.code == 2
    assert "whole number from 1 to 10000" in capsys.readouterr().err


class TestAsAProcess:
    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "processor", *arguments],
            cwd=ROOT,
            env={"AWS_EC2_METADATA_DISABLED": "true", "HOME": os.devnull, **environ},
            capture_output=True,
            encoding="utf-8",
            timeout=50,
            check=False,
        )

    def test_it_finds_table_region_and_endpoint_in_its_environment(self, location: dict[str, str]) -> None:
        """The usual variables are enough, AWS_REGION among them."""
        run = self.run(
            *("get", "1"),
            TABLE=TABLE,
            AWS_REGION=location["region_name"],
            AWS_ENDPOINT_URL_DYNAMODB=location["endpoint_url"],
            AWS_ACCESS_KEY_ID="local",
            AWS_SECRET_ACCESS_KEY="local",
        )

        assert (run.returncode, run.stderr) == (0, "")
        assert json.loads(run.stdout)["Id"] == "1"

    def test_a_missing_region_is_told(self) -> None:
        """Without a region nothing is asked, and the line says what to set."""
        run = self.run("latest", "--table", TABLE)

        assert run.returncode == 2
        assert run.stderr == (
            f"python -m processor: table {TABLE}: there is no region; set AWS_REGION "
            "(NoRegionError: You must specify a region.)\n"
        )
