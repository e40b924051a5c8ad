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
from processor.items import Shape, item_of
from tests.processor.aws_by_moto import Aws

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)
# Minutes before NOW at which each post was written, and what it says.
POSTS = {
    "1": (10, "今日は良い天気ですね、川の水も豊かで水車がよく回ります"),
    "2": (90, "one\ntwo\x1b[31m cafe\u0301"),
    "3": (47 * 60, "two days ago, nearly"),
    "4": (60 * 60, "long ago"),
}


def fill(aws: Aws, table: str, names: str) -> None:
    """Put the posts with these ids into the table."""
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
        aws.put(table, item_of(json.dumps(line).encode(), 0, Shape(time_shards=2)))


class Console:
    """The console, pointed at a table by its environment."""

    def __init__(self, aws: Aws, table: str) -> None:
        self._environ = aws.environ
        self.table = table
        self.output = ""
        self.errors = ""

    def run(
        self, *arguments: str, columns: int | None = None, environ: dict[str, str] | None = None, given: str = ""
    ) -> int:
        output, errors = io.StringIO(), io.StringIO()
        code = main(
            arguments,
            self._environ | {"TABLE": self.table, "TIME_SHARDS": "2"} | (environ or {}),
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
def posts(aws: Aws) -> Iterator[str]:
    """The name of a table with four posts."""
    with aws.table() as name:
        fill(aws, name, "1234")
        yield name


@pytest.fixture
def console(aws: Aws, posts: str) -> Console:
    """A console for that table."""
    return Console(aws, posts)


def test_latest_shows_the_newest_posts_first(console: Console) -> None:
    """Posts of the last 48 hours come newest first, across hours and shards, and no older ones."""
    assert console.run("latest") == 0
    assert console.ids == ["1", "2", "3"]
    assert console.errors == ""


def test_latest_shows_as_many_as_wanted(console: Console) -> None:
    """-n limits the number."""
    assert console.run("latest", "-n", "2") == 0
    assert console.ids == ["1", "2"]


def test_latest_falls_back_to_the_whole_table(aws: Aws, table: str) -> None:
    """Where the last hours hold nothing, as with a replayed archive, the whole table is read, and that is said."""
    fill(aws, table, "4")
    console = Console(aws, table)

    assert console.run("latest", "--hours", "2") == 0
    assert console.ids == ["4"]
    assert console.errors == "nothing from the last 2 hours: reading the whole table\n"


def test_an_empty_table_is_no_error(aws: Aws, table: str) -> None:
    """With nothing to show the console says so and is content."""
    console = Console(aws, table)

    assert console.run("latest", "--hours", "1") == 0
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
    """Time, name and message share one line, which ends where the terminal does and holds nothing that it obeys."""
    assert console.run("get", "2", columns=80) == 0
    assert console.output == "2026-11-23 13:00:00  @miller  one two [31m cafe\u0301\n"
    assert console.run("get", "1", columns=45) == 0
    assert console.output == "2026-11-23 14:20:00  @miller  今日は良い天気…\n"


def test_the_table_may_be_named_before_or_after_the_command(console: Console) -> None:
    """--table wins over the environment, wherever it stands."""
    for arguments in (("--table", console.table, "get", "1"), ("get", "1", "--table", console.table)):
        assert console.run(*arguments, environ={"TABLE": "elsewhere"}) == 0
        assert console.ids == ["1"]


def test_the_settings_may_be_those_of_a_stack(aws: Aws, console: Console) -> None:
    """--stack wins over the environment."""
    aws.make_function("weir-DDBEventProcessor", {"TABLE": console.table, "TTL_DAYS": "30"})

    assert console.run("get", "1", "--stack", "weir", environ={"TABLE": "elsewhere", "TTL_DAYS": "x"}) == 0
    assert console.ids == ["1"]


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        (["latest"], {"TABLE": ""}, "no table is named: use --stack or --table, or set TABLE"),
        (["latest"], {"TABLE": "elsewhere"}, "table elsewhere: there is no such table"),
        (["latest"], {"TIME_SHARDS": "x"}, "TIME_SHARDS is 'x'"),
        (["redrive"], {}, "no place is named: use --stack, name s3://BUCKET"),
        (["redrive", "/nowhere/at/all"], {}, "there is no directory /nowhere/at/all"),
        (["delete", "1", "deleted#2"], {}, "'deleted#2' is no id of a post, and nothing was deleted"),
        (["delete", ""], {}, "'' is no id of a post"),
        (["delete", "x" * 1_025], {}, f"'{'x' * 40}' is no id of a post"),
        (["delete", "1"], {"TABLE": "elsewhere"}, "table elsewhere: there is no such table"),
        (["delete", "1"], {"AWS_ENDPOINT_URL_DYNAMODB": "there"}, "'there': set it to http(s)://host:port"),
        (["latest"], {"AWS_ENDPOINT_URL_DYNAMODB": "there"}, "'there': set it to http(s)://host:port"),
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
    assert console.run("rule", "rule-2", "--hours", "1") == 0
    assert console.ids == ["2"]
    assert "reading the whole table" in console.errors
    assert console.run("rule", "rule-2", "--hours", "2") == 0
    assert console.ids == ["2"]
    assert console.errors == ""


def test_count_counts(console: Console) -> None:
    """All of the last hours, those of a rule, those of an author; a number on a terminal, JSON in a pipe."""
    assert console.run("count", "--hours", "2") == 0
    assert console.result == {"count": 2}
    assert console.run("count", "--hours", "2", "--rule", "rule-2", columns=80) == 0
    assert console.output == "1\n"
    assert console.run("count", "--author", "42") == 0
    assert console.result == {"count": 3}


class TestDelete:
    def test_deleted_posts_are_gone_and_stay_gone(self, aws: Aws, table: str) -> None:
        """The ids leave their tombstones, which last as long as the posts could; one that is unknown leaves one too."""
        fill(aws, table, "1234")
        console = Console(aws, table)
        assert console.run("delete", "1", "3", "99", environ={"TTL_DAYS": "7"}) == 0
        assert console.result == {"deleted": 3, "left": []}
        assert console.run("delete", "-", given="4\n4\n", columns=80) == 0
        assert console.output == "1 deleted; they will not come back\n"

        items = aws.items(table)
        assert items.keys() == {"2", *(f"deleted#{number}" for number in (1, 3, 4, 99))}
        assert items["deleted#1"] == {
            "Id": "deleted#1",
            "DeletedAt": "2026-11-23T14:30:00.000Z",
            "ExpiresAt": int((NOW + timedelta(days=7)).timestamp()),
        }

    def test_purge_deletes_an_author(self, aws: Aws, table: str) -> None:
        """All posts of one author go, those of others stay."""
        fill(aws, table, "1234")
        console = Console(aws, table)
        for deleted in (3, 0):
            assert console.run("purge", "42") == 0
            assert console.result == {"deleted": deleted, "left": []}
            assert aws.items(table).keys() == {"3", "deleted#1", "deleted#2", "deleted#4"}


class TestRedrive:
    LINE = json.dumps({"data": {"id": "7", "text": "late", "created_at": NOW.isoformat()}}).encode()

    def document(self, data: bytes) -> str:
        """What the quarantine keeps of a record."""
        encoded = base64.b64encode(data).decode()
        return json.dumps({"data": encoded, "position": 0, "approximateArrivalTimestamp": 1.0})

    def test_what_failed_is_put_back_and_what_stays_is_told(self, aws: Aws, table: str, tmp_path: Path) -> None:
        """From the folder around the quarantine; exit code 1 says that something was left."""
        folder = tmp_path / "quarantine" / "stream" / "shard"
        folder.mkdir(parents=True)
        for name, data in (("1-0.json", self.LINE), ("2-0.json", b"no post")):
            (folder / name).write_text(self.document(data))
        console = Console(aws, table)
        assert console.run("redrive", environ={"QUARANTINE": str(tmp_path / "quarantine")}) == 1
        assert console.result == {
            "stored": 1,
            "present": 0,
            "deleted": 0,
            "unstorable": 1,
            "not_now": 0,
            "objects_kept": 1,
        }
        assert console.errors == "quarantine/stream/shard/2-0.json: not JSON: Expecting value at character 0\n"
        assert console.run("redrive", str(tmp_path), columns=80) == 1
        assert console.output.startswith("0 stored; 0 were in the table already;")

        assert aws.items(table).keys() == {"7"}
        assert [path.name for path in tmp_path.rglob("*.json")] == ["2-0.json"]

    def test_the_bucket_of_the_stack_is_found_by_its_quarantine(self, aws: Aws, table: str) -> None:
        """Without a place it is the bucket in which the function has its quarantine."""
        aws.s3.create_bucket(Bucket="stack-redrive")
        aws.s3.put_object(Bucket="stack-redrive", Key="quarantine/s/1-0.json", Body=self.document(self.LINE))
        console = Console(aws, table)
        assert console.run("redrive", environ={"QUARANTINE": "s3://stack-redrive/quarantine"}) == 0
        assert console.result["stored"] == 1
        assert aws.s3.list_objects_v2(Bucket="stack-redrive")["KeyCount"] == 0

        assert console.run("redrive", "s3://nobody-has-this") == 2
        assert "NoSuchBucket" in console.errors
        assert console.errors.count("\n") == 1


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

    def test_it_finds_table_region_and_endpoint_in_its_environment(self, aws: Aws, posts: str) -> None:
        """The usual variables are enough, AWS_REGION among them."""
        run = self.run("get", "1", TABLE=posts, **aws.environ)

        assert (run.returncode, run.stderr) == (0, "")
        assert json.loads(run.stdout)["Id"] == "1"

    def test_a_missing_region_is_told(self) -> None:
        """Without a region nothing is asked, and the line says what to set."""
        run = self.run("latest", "--table", "mill")

        assert run.returncode == 2
        assert run.stderr == (
            "python -m processor: table mill: there is no region; set AWS_REGION "
            "(NoRegionError: You must specify a region.)\n"
        )
