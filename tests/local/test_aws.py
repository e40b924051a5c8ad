"""All that stands for AWS, as a program."""

import os
import socket
from pathlib import Path

import aiohttp
import pytest

from local.aws import main
from local.processes import Process

pytestmark = pytest.mark.integration


async def test_it_serves_until_sigterm(tmp_path: Path) -> None:
    """It says where the stream is when all can be used, and ends well."""
    ports = ("--kinesis-port", "0", "--dynamodb-port", "0", "--port", "0")
    program = Process("aws", ["local", "aws", "--directory", str(tmp_path / "aws"), *ports], os.environ, tmp_path)
    url = await program.start()
    async with aiohttp.ClientSession(raise_for_status=True) as http, http.get(f"{url}/admin/stats") as answer:
        assert list((await answer.json())["streams"]) == ["millrace-EventStream"]
    assert await program.stop() == 0
    assert program.said() == []


def test_a_part_that_does_not_start_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with that part's own words, and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["--directory", str(tmp_path), "--kinesis-port", port]) == 1
    error = f"aws: kinesis: local Kinesis: port {port} on 127.0.0.1 is in use; give another --port\n"
    assert capsys.readouterr().err == error
