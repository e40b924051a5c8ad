import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from local.event_source import main


def test_it_starts_without_a_stream_and_stops_on_sigterm(tmp_path: Path) -> None:
    """The program says where it listens, waits for a Kinesis that is not there, and ends well on SIGTERM."""
    command = [sys.executable, "-m", "local.event_source", *arguments(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            assert program.stderr is not None
            ready = re.fullmatch(r"event source ready at (http://127\.0\.0\.1:\d+)\n", program.stdout.readline())
            assert ready is not None
            assert "no answer from Kinesis, waiting for it" in program.stderr.readline()
            with urlopen(f"{ready[1]}/healthz") as answer:
                assert answer.status == 200
            with urlopen(f"{ready[1]}/admin/stats") as answer:
                assert json.load(answer)["invocations"] == 0
            program.send_signal(signal.SIGTERM)
            assert program.wait(10) == 0
        finally:
            program.kill()


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
