import os
import socket
from pathlib import Path

import aiohttp
import pytest

from local.event_source import main
from local.processes import Process


async def test_it_starts_without_a_stream_and_stops_on_sigterm(tmp_path: Path) -> None:
    """The program says where it listens, whether or not there is a Kinesis, and ends well on SIGTERM."""
    program = Process("mapping", ["local.event_source", *arguments(tmp_path)], os.environ, tmp_path)
    async with aiohttp.ClientSession(await program.start(), raise_for_status=True) as http:
        async with http.get("/healthz") as answer:
            assert await answer.text() == "ok\n"
        async with http.get("/admin/stats") as answer:
            assert (await answer.json())["invocations"] == 0
    assert await program.stop() == 0


def test_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A port that is taken is one line that names it, and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([*arguments(tmp_path), "--port", str(port)], os.environ) == 1
    output = capsys.readouterr()
    assert str(port) in output.err
    assert output.err.count("\n") == 1


def arguments(directory: Path) -> list[str]:
    """A command line, with nothing at the other end."""
    nobody = "http://127.0.0.1:1"
    return f"--kinesis {nobody} --dynamodb {nobody} --stream posts --stack it --failures {directory}".split()
