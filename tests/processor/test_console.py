import base64
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
from processor.failures import connect_bucket
from processor.items import Shape, item_of
from processor.reader import connect_reader, plain
from tests.processor.fake_dynamodb import TABLE, environ_of, served_by_moto, typed

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
        users = [{"id": "42", "username": "miller", "name": "粉屋"}]
        line = {
            "data": data,
            "includes": {"users": users},
            "matching_rules": [{"tag": f"rule-{name}"}, {"tag": "mill"}],
        }
        client.put_item(TableName=table, Item=typed(item_of(json.dumps(line).encode(), 0, Shape())))
    client.close()


class Console:
    """The console, pointed at a table by its environment."""

    def __init__(self, location: dict[str, str]) -> None:
        self._location = location
        self.output = ""
        self.errors = ""

    def run(
        self, *arguments: str, columns: int | None = None, environ: dict[str, str] | None = None, given: str = ""
    ) -> int:
        output, errors = io.StringIO(), io.StringIO()
        code = main(
            arguments,
            environ_of(self._location) | ({"TABLE": TABLE} if environ is None else environ),
            output=output,
            errors=errors,
            given=io.StringIO(given),
            columns=columns,
            now=lambda: NOW,
        )
        self.output, self.errors = output.getvalue(), errors.getvalue()
        return code

    @property
    def ids(self) -> list[str]:
        return [json.loads(line)["Id"] for line in self.output.splitlines()]

    @property
    def result(self) -> Any:
        return json.loads(self.output)


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
        (["latest"], {}, "no table is named: use --stack or --table, or set TABLE"),
        (["latest"], {"TABLE": "elsewhere"}, "table elsewhere: there is no such table"),
        (["latest"], {"TABLE": TABLE, "TIME_SHARDS": "x"}, "TIME_SHARDS is 'x'"),
        (["redrive"], {"TABLE": TABLE}, "no place is named: name a bucket as s3://NAME"),
        (["redrive", "/nowhere/at/all"], {"TABLE": TABLE}, "there is no directory /nowhere/at/all"),
        (["delete", "1", "deleted#2"], {"TABLE": TABLE}, "'deleted#2' is no id of a post, and nothing was deleted"),
        (["delete", ""], {"TABLE": TABLE}, "'' is no id of a post"),
        (["delete", "x" * 1_025], {"TABLE": TABLE}, f"'{'x' * 40}' is no id of a post"),
        (["delete", "1"], {"TABLE": "elsewhere"}, "table elsewhere: there is no such table"),
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


def test_rule_shows_the_posts_of_a_rule(console: Console) -> None:
    """By its tag, newest first; where the last hours have none, the whole table is asked, as with latest."""
    assert console.run("rule", "mill", "-n", "2") == 0
    assert console.ids == ["1", "2"]
    assert console.run("rule", "rule-4") == 0
    assert console.ids == ["4"]
    assert "reading the whole table" in console.errors
    assert console.run("rule", "rule-4", "--hours", "61") == 0
    assert console.ids == ["4"]
    assert console.errors == ""


def test_count_counts(console: Console) -> None:
    """All of the last hours, those of a rule, those of an author; a number on a terminal, JSON in a pipe."""
    assert console.run("count") == 0
    assert console.result == {"count": 3}
    assert console.run("count", "--hours", "1", "--rule", "mill", columns=80) == 0
    assert console.output == "1\n"
    assert console.run("count", "--author", "42") == 0
    assert console.result == {"count": 3}


class TestDelete:
    def test_deleted_posts_are_gone_and_stay_gone(self) -> None:
        """The ids leave their tombstones, which last as long as the posts could; one that is unknown leaves one too."""
        with served_by_moto("deleting") as location:
            fill(location, "1234", "deleting")
            console = Console(location)
            environ = {"TABLE": "deleting", "TTL_DAYS": "7"}
            assert console.run("delete", "1", "3", "99", environ=environ) == 0
            assert console.result == {"deleted": 3, "left": []}
            assert console.run("delete", "-", environ=environ, given="4\n4\n", columns=80) == 0
            assert console.output == "1 deleted; they will not come back\n"
            client = connect_reader(**location)
            items = {item["Id"]["S"]: plain(item) for item in client.scan(TableName="deleting")["Items"]}
            client.close()

        assert items.keys() == {"2", *(f"deleted#{number}" for number in (1, 3, 4, 99))}
        assert items["deleted#1"] == {
            "Id": "deleted#1",
            "DeletedAt": "2026-11-23T14:30:00.000Z",
            "ExpiresAt": int((NOW + timedelta(days=7)).timestamp()),
        }

    def test_purge_deletes_an_author(self) -> None:
        """All posts of one author go, those of others stay."""
        with served_by_moto("purging") as location:
            fill(location, "1234", "purging")
            console = Console(location)
            assert console.run("purge", "42", "--table", "purging") == 0
            assert console.result == {"deleted": 3, "left": []}
            assert console.run("latest", "--table", "purging") == 0
            assert console.ids == ["3"]
            assert console.run("purge", "42", "--table", "purging") == 0
            assert console.result == {"deleted": 0, "left": []}


class TestRedrive:
    def test_what_failed_is_put_back_and_what_stays_is_told(self, tmp_path: Path) -> None:
        """From the folder around the quarantine; exit code 1 says that something was left."""
        line = json.dumps({"data": {"id": "7", "text": "late", "created_at": NOW.isoformat()}}).encode()
        for name, data in (("1-0.json", line), ("2-0.json", b"no post")):
            path = tmp_path / "quarantine" / "stream" / "shard" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            document = {"data": base64.b64encode(data).decode(), "position": 0, "approximateArrivalTimestamp": 1.0}
            path.write_text(json.dumps(document))
        with served_by_moto("redriving") as location:
            console = Console(location)
            environ = {"TABLE": "redriving", "QUARANTINE": str(tmp_path / "quarantine")}
            assert console.run("redrive", environ=environ) == 1
            assert console.result == {
                "stored": 1,
                "present": 0,
                "deleted": 0,
                "unstorable": 1,
                "not_now": 0,
                "objects_kept": 1,
            }
            assert console.errors == ("quarantine/stream/shard/2-0.json: not JSON: Expecting value at character 0\n")
            assert console.run("redrive", str(tmp_path), environ=environ, columns=80) == 1
            assert console.output.startswith("0 stored; 0 were in the table already;")
            assert console.run("get", "7", environ=environ) == 0

        assert [path.name for path in tmp_path.rglob("*.json")] == ["2-0.json"]

    def test_the_bucket_of_the_stack_is_found_by_its_quarantine(self) -> None:
        """Without a place it is the bucket in which the function has its quarantine."""
        line = json.dumps({"data": {"id": "7", "text": "late", "created_at": NOW.isoformat()}}).encode()
        document = {"data": base64.b64encode(line).decode(), "position": 0, "approximateArrivalTimestamp": 1.0}
        with served_by_moto("from-bucket") as location:
            bucket = connect_bucket(**location | {"region_name": "us-east-1"})
            bucket.create_bucket(Bucket="stack-redrive")
            bucket.put_object(Bucket="stack-redrive", Key="quarantine/s/1-0.json", Body=json.dumps(document))
            console = Console(location)
            environ = {"TABLE": "from-bucket", "QUARANTINE": "s3://stack-redrive/quarantine"}
            environ["AWS_ENDPOINT_URL_S3"] = location["endpoint_url"]
            assert console.run("redrive", environ=environ) == 0
            assert console.result["stored"] == 1
            assert console.run("redrive", "s3://nobody-has-this", environ=environ) == 2
            assert "NoSuchBucket" in console.errors
            assert console.errors.count("\n") == 1
            left = bucket.list_objects_v2(Bucket="stack-redrive")["KeyCount"]
            bucket.close()

        assert left == 0


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
