"""All that stands for AWS, as a program."""

import asyncio
import os
import socket
from pathlib import Path

import boto3
import pytest

from local import ACCESS_KEY, REGION, SECRET_KEY
from local.aws import main
from local.processes import Process

pytestmark = pytest.mark.integration


def first_steps(url: str) -> None:
    """Do what whoever tries Kinesis does first."""
    session = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name=REGION)
    kinesis = session.client("kinesis", endpoint_url=url)
    assert kinesis.list_streams()["StreamNames"] == ["millrace-EventStream"]
    kinesis.create_stream(StreamName="mine", ShardCount=1)
    kinesis.get_waiter("stream_exists").wait(StreamName="mine", WaiterConfig={"Delay": 1})
    (shard,) = kinesis.describe_stream(StreamName="mine")["StreamDescription"]["Shards"]
    kinesis.put_record(StreamName="mine", Data=b"hello", PartitionKey="k")
    start = kinesis.get_shard_iterator(StreamName="mine", ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON")
    records = kinesis.get_records(ShardIterator=start["ShardIterator"])["Records"]
    assert [record["Data"] for record in records] == [b"hello"]
    kinesis.delete_stream(StreamName="mine")
    kinesis.get_waiter("stream_not_exists").wait(StreamName="mine", WaiterConfig={"Delay": 1})


async def test_it_serves_until_sigterm(tmp_path: Path) -> None:
    """It says where the stream is when all can be used, AWS's own client works with it, and it ends well."""
    ports = ("--kinesis-port", "0", "--dynamodb-port", "0", "--port", "0")
    program = Process("aws", ["local", "aws", "--directory", str(tmp_path / "aws"), *ports], os.environ, tmp_path)
    url = await program.start()
    await asyncio.to_thread(first_steps, url)
    assert await program.stop() == 0
    assert program.said() == []


def test_a_part_that_does_not_start_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with that part's own words, and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["--directory", str(tmp_path), "--kinesis-port", port]) == 1
    error = f"aws: kinesis: local Kinesis: port {port} on 127.0.0.1 is in use; give another --port\n"
    assert capsys.readouterr().err == error
