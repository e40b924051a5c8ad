"""A real moto server with the table of the real template."""

import os
import socket
from pathlib import Path
from typing import Any

import boto3
import pytest

from local.processes import Process
from local.table import create_table, dynamodb, main
from local.template import load


def test_the_table_of_the_template(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """It has the keys, indexes and time to live that the template gives it; requests to it leave no line behind."""
    with dynamodb() as url:
        assert create_table(url, load(), "it") == "it-EventData"
        client: Any = boto3.client(
            "dynamodb",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="any",
            aws_secret_access_key="any",
        )
        table = client.describe_table(TableName="it-EventData")["Table"]
        time_to_live = client.describe_time_to_live(TableName="it-EventData")["TimeToLiveDescription"]
        client.close()
    assert table["KeySchema"] == [{"AttributeName": "Id", "KeyType": "HASH"}]
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert table["SSEDescription"]["Status"] == "ENABLED"
    keys = {
        index["IndexName"]: [key["AttributeName"] for key in index["KeySchema"]]
        for index in table["GlobalSecondaryIndexes"]
    }
    assert keys == {"ByAuthor": ["AuthorId", "SortId"], "ByTime": ["Bucket", "SortId"]}
    assert time_to_live == {"TimeToLiveStatus": "ENABLED", "AttributeName": "ExpiresAt"}
    assert [record for record in caplog.records if record.name == "werkzeug"] == []
    assert capfd.readouterr() == ("", "")


async def test_program(tmp_path: Path) -> None:
    """The program says where it listens, and ends well on SIGTERM."""
    program = Process("table", ["local.table", "--stack", "it"], os.environ, tmp_path)
    host, _, port = (await program.start()).removeprefix("http://").partition(":")
    socket.create_connection((host, int(port))).close()
    assert await program.stop() == 0


def test_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    """A port that is taken is one line that names it, and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--stack", "it", "--port", str(port)]) == 1
    output = capsys.readouterr()
    assert str(port) in output.err
    assert output.err.count("\n") == 1
