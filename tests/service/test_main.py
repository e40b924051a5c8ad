import asyncio
import gc
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from local import REGION
from local.kinesis.server import LocalKinesis
from service import __version__
from service.__main__ import main
from service.admin import Admin, Health
from service.config import describe, load, markdown
from service.core.records import DropReason
from service.dead_letters import FILE_NAME, DeadLetters
from service.metrics import new_registry

ROOT = Path(__file__).parents[2]
STDIN = {"MILLRACE_STREAM": "posts", "MILLRACE_SOURCE": "stdin"}


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def millrace(capsysbinary: pytest.CaptureFixture[bytes], own_aws: None, own_logging: None) -> Iterator[Command]:
    """Give what runs a command in this environment and no other, and leave the process as it was found."""

    def run(*arguments: str, environ: Mapping[str, str]) -> Ended:
        try:
            code = main(arguments, environ)
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsysbinary.readouterr()
        # Dead letters may be any bytes.
        return Ended(code, out.decode(errors="surrogateescape"), err.decode())

    mask = os.umask(0o077)
    thresholds = gc.get_threshold()
    yield run
    os.umask(mask)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_as_a_program() -> None:
    """What its users run; the version needs no configuration."""
    done = subprocess.run(
        [sys.executable, "-m", "service", "--version"], cwd=ROOT, env={}, capture_output=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Millrace {__version__}\n".encode(), b"")


def test_run_is_the_default_and_reports_all_faults_at_once(millrace: Command) -> None:
    """A configuration that cannot be used ends with code 2 and a line for each thing to mend, before anything else."""
    code, out, err = millrace(environ={"MILLRACE_STREM": "posts", "MILLRACE_MEMORY_LIMIT": "much"})
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert sorted(line.split(":")[0] for line in lines) == [
        "MILLRACE_BEARER_TOKEN",
        "MILLRACE_MEMORY_LIMIT",
        "MILLRACE_STREAM",
        "MILLRACE_STREM",
    ]


def test_config_shows_what_is_in_effect(millrace: Command) -> None:
    """Defaults and settings, one a line, and no secret."""
    environ = {"MILLRACE_STREAM": "posts", "MILLRACE_BEARER_TOKEN": "very-secret", "MILLRACE_RULES": "猫"}
    assert millrace("config", environ=environ) == (0, describe(load(environ)) + "\n", "")


def test_config_markdown_is_the_page_of_the_documentation(millrace: Command) -> None:
    """It needs no configuration."""
    assert millrace("config", "--markdown", environ={}) == (0, markdown(), "")


def test_health_without_a_daemon(millrace: Command) -> None:
    """A line that names the settings, and code 1."""
    with socket.socket() as free:
        # Bound but not listening: nobody else can take this port, and nobody answers.
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        code, out, err = millrace("health", environ=STDIN | {"MILLRACE_HTTP_PORT": str(port)})
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert f"http://127.0.0.1:{port}/readyz: Connection refused; see " in line
    assert "MILLRACE_HTTP_PORT" in line


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"220 ready to take mail\r\n",
    ],
)
async def test_health_of_another_program(millrace: Command, answer: bytes) -> None:
    """Whatever it says, it is no daemon: a line that names the settings, and code 1."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with asyncio.timeout(50), await asyncio.start_server(reply, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        environ = STDIN | {"MILLRACE_HTTP_PORT": str(port)}
        code, out, err = await asyncio.to_thread(millrace, "health", environ=environ)
    assert (code, out) == (1, "")
    assert err == (
        f"no daemon answers at http://127.0.0.1:{port}/readyz: another program does;"
        " see MILLRACE_HTTP_HOST and MILLRACE_HTTP_PORT\n"
    )


async def test_health_of_a_daemon_that_is_not_ready(millrace: Command) -> None:
    """It lives, so the code is 0: a restart would not help; what is wrong is printed."""
    health = Health(["stream", "kinesis"])
    health.set("kinesis", ok=True)
    health.set("stream", ok=False, reason="unauthorized: 401")
    async with asyncio.timeout(50), Admin("127.0.0.1", 0, new_registry(), health, dict, dict, dict, bytes) as admin:
        # An unspecified address is where a server listens, not where a client connects to.
        environ = STDIN | {"MILLRACE_HTTP_PORT": str(admin.port), "MILLRACE_HTTP_HOST": "0.0.0.0"}
        code, out, err = await asyncio.to_thread(millrace, "health", environ=environ)
    assert (code, err) == (0, "")
    stream, kinesis = out.splitlines()
    assert stream.startswith("stream   unauthorized: 401  (since ")
    assert kinesis.startswith("kinesis  ok  (since ")


def test_run_on_a_port_that_is_taken(millrace: Command) -> None:
    """It does not start: a line that names the setting, and code 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = millrace(environ=STDIN | {"MILLRACE_HTTP_PORT": str(port), "MILLRACE_JOURNAL": "off"})
    assert code == 1
    (line,) = err.splitlines()
    assert "MILLRACE_HTTP_PORT" in line


def test_run_without_a_region(millrace: Command) -> None:
    """What AWS needs is asked for before anything is read: a line that names the variable, and code 1."""
    code, _, err = millrace("run", environ=STDIN | {"MILLRACE_HTTP_PORT": "0", "MILLRACE_JOURNAL": "off"})
    assert code == 1
    (line,) = err.splitlines()
    assert "AWS_REGION" in line


@pytest.mark.usefixtures("own_aws")
async def test_run_without_a_standard_input() -> None:
    """Closed by whoever started it, it is one that has ended: the libraries would abort over its number."""
    async with LocalKinesis({"posts": 1}) as kinesis:
        environ = STDIN | {"MILLRACE_JOURNAL": "off", "MILLRACE_HTTP_PORT": "0"}
        done = await asyncio.to_thread(
            subprocess.run,
            ["/bin/sh", "-c", 'exec "$0" -m service <&-', sys.executable],
            cwd=ROOT,
            env={**os.environ, **environ, "AWS_REGION": REGION, "AWS_ENDPOINT_URL": kinesis.url},
            capture_output=True,
            timeout=50,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_check_tells_good_from_bad(millrace: Command) -> None:
    """A line for each thing that run needs, as far as one stands on another, and code 1 if one of them is missing."""
    code, out, err = millrace("check", environ=STDIN | {"MILLRACE_JOURNAL": "off", "MILLRACE_HTTP_PORT": "0"})
    assert (code, err) == (1, "")
    configuration, disk, port, credentials = out.splitlines()
    assert configuration == "configuration  ok: source stdin, stream posts"
    assert disk.startswith("disk           ok: MILLRACE_JOURNAL is off")
    assert port.startswith("port           ok: ")
    assert credentials.startswith("credentials    failed: ")
    assert "AWS_REGION" in credentials


def test_rules_without_x(millrace: Command) -> None:
    """A line that says what could not be reached, and code 1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        environ = {"MILLRACE_STREAM": "posts", "MILLRACE_BEARER_TOKEN": "very-secret", "MILLRACE_X_URL": url}
        code, out, err = millrace("rules", environ=environ)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "very-secret" not in err


def kept(directory: Path) -> dict[str, str]:
    """Keep three dead letters in a directory, and return the settings that name it."""
    letters = DeadLetters(directory, lambda: 0.0)
    letters.add("日本語".encode(), DropReason.NO_ID)
    letters.add(b"\xff\xfe", DropReason.NOT_JSON)
    letters.add(b'{"data":{"id":"1"}}', DropReason.POST_TOO_LARGE)
    return STDIN | {"MILLRACE_JOURNAL": str(directory)}


def test_letters_prints_the_lines_as_they_came(millrace: Command, tmp_path: Path) -> None:
    """Byte for byte, one a line, so that they can be piped into another run."""
    code, out, err = millrace("letters", environ=kept(tmp_path))
    assert (code, err) == (0, "")
    expected = "日本語".encode() + b'\n\xff\xfe\n{"data":{"id":"1"}}\n'
    assert expected == out.encode("utf-8", "surrogateescape")


def test_letters_of_some_reasons(millrace: Command, tmp_path: Path) -> None:
    """--reason may be given several times; a reason that does not exist is refused with those that do."""
    environ = kept(tmp_path)
    code, out, _ = millrace("letters", "--reason", "post_too_large", "--reason", "no_id", environ=environ)
    assert (code, out.splitlines()) == (0, ["日本語", '{"data":{"id":"1"}}'])
    code, out, err = millrace("letters", "--reason", "too_large", environ=environ)
    assert (code, out) == (2, "")
    assert "post_too_large" in err


@pytest.mark.parametrize("command", ["letters", "gaps", "config"])
def test_a_reader_that_has_enough(tmp_path: Path, command: str) -> None:
    """Whoever closes the pipe, as head does, has no error to see."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "service", command],
        cwd=ROOT,
        env=kept(tmp_path),
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=50,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_letters_where_there_are_none(millrace: Command, tmp_path: Path) -> None:
    """Neither an empty directory nor MILLRACE_JOURNAL=off is an error."""
    for journal in (str(tmp_path), "off"):
        assert millrace("letters", environ=STDIN | {"MILLRACE_JOURNAL": journal}) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["letters", "gaps"])
def test_a_journal_that_is_not_there_is_not_an_empty_one(millrace: Command, tmp_path: Path, command: str) -> None:
    """In another directory, or without the daemon's settings: no list that would say that all is well."""
    code, out, err = millrace(command, environ=STDIN | {"MILLRACE_JOURNAL": str(tmp_path / "nowhere")})
    assert (code, out) == (1, "")
    assert (
        err
        == f"MILLRACE_JOURNAL: {tmp_path / 'nowhere'} cannot be read; name the directory of the daemon, as its user\n"
    )


def test_letters_that_cannot_be_read(millrace: Command, tmp_path: Path) -> None:
    """A line that names the setting and the file, and code 1."""
    (tmp_path / FILE_NAME).mkdir()
    code, out, err = millrace("letters", environ=STDIN | {"MILLRACE_JOURNAL": str(tmp_path)})
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert "MILLRACE_JOURNAL" in line
    assert FILE_NAME in line
