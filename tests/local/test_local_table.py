"""A real moto server with the table of the real template."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from local.table import create_table, dynamodb, main
from local.template import load


@pytest.fixture
def url() -> Iterator[str]:
    """A DynamoDB of this test's own."""
    with dynamodb() as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    """A client of it."""
    client = boto3.client(
        "dynamodb",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    yield client
    client.close()


def test_the_table_of_the_template(url: str, client: Any) -> None:
    """The table has the keys, indexes and time to live that the template gives it."""
    template = load()
    assert create_table(url, template, "it") == "it-EventData"
    table = client.describe_table(TableName="it-EventData")["Table"]
    wanted = template.table_definition("it")
    assert table["KeySchema"] == wanted["KeySchema"]
    indexes = {index["IndexName"]: index["KeySchema"] for index in table["GlobalSecondaryIndexes"]}
    assert indexes == {index["IndexName"]: index["KeySchema"] for index in wanted["GlobalSecondaryIndexes"]}
    time_to_live = client.describe_time_to_live(TableName="it-EventData")["TimeToLiveDescription"]
    assert time_to_live == {"TimeToLiveStatus": "ENABLED", "AttributeName": template.ttl_attribute}


def test_it_stores_and_finds(url: str, client: Any) -> None:
    """An item can be written, and found through an index of the template."""
    table = create_table(url, load(), "it")
    item = {"Id": {"S": "1"}, "AuthorId": {"S": "2"}, "SortId": {"S": "0001"}, "Message": {"S": "吾輩は猫である"}}
    assert client.batch_write_item(RequestItems={table: [{"PutRequest": {"Item": item}}]})["UnprocessedItems"] == {}
    found = client.query(
        TableName=table,
        IndexName="ByAuthor",
        KeyConditionExpression="AuthorId = :author",
        ExpressionAttributeValues={":author": {"S": "2"}},
    )
    assert [found["Id"]["S"] for found in found["Items"]] == ["1"]


def test_silence(url: str, client: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Requests leave no line behind, neither in the log nor on a terminal."""
    create_table(url, load(), "it")
    client.list_tables()
    assert [record for record in caplog.records if record.name == "werkzeug"] == []
    assert capfd.readouterr() == ("", "")


def test_program() -> None:
    """The program says where it listens and what its table is called, and ends well on SIGTERM."""
    command = [sys.executable, "-m", "local.table", "--stack", "it"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            ready = re.fullmatch(
                r"local DynamoDB ready at http://127\.0\.0\.1:(\d+) with the table it-EventData\n",
                program.stdout.readline(),
            )
            assert ready
            with socket.create_connection(("127.0.0.1", int(ready[1]))):
                program.send_signal(signal.SIGTERM)
            assert program.wait(10) == 0
        finally:
            program.kill()


def test_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    """A port that is taken is one line that names it, and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--stack", "it", "--port", str(port)]) == 1
    output = capsys.readouterr()
    assert str(port) in output.err
    assert output.err.count("\n") == 1
