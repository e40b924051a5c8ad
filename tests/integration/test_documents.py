"""The commands of the documents that need no account, run beside a daemon that carries posts."""

import asyncio
import json
import os
import shlex
import sys
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from local.pipeline import STACK, Pipeline
from local.template import load
from service.core.records import DropReason
from service.dead_letters import DeadLetters
from tests.docs.documents import DOCUMENTS, ROOT, blocks, commands, words
from tests.integration.steps import run

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(180)]

# `python -m service` alone is the daemon of the pipeline; --help and --version are asked elsewhere; what is not ASCII
# stands for something of the reader's.
COMMANDS = sorted(
    {
        tuple(parts[2:])
        for path in DOCUMENTS
        for variables, parts in map(words, commands(path))
        if not variables  # those are of the compose file: tests/container
        and parts[1:2] == ["-m"]
        and parts[2] in {"service", "processor"}
        and parts[3:] not in ([], ["--help"], ["--version"])
        and "".join(parts).isascii()
    }
)


def lambda_with(settings: dict[str, str]) -> TestServer:
    """Return what Lambda says of the stack's function: its settings."""

    async def answer(request: web.Request) -> web.Response:
        assert request.match_info["name"] == load().function(STACK).name
        return web.json_response({"Environment": {"Variables": settings}})

    application = web.Application()
    application.router.add_get("/2015-03-31/functions/{name}/configuration", answer)
    return TestServer(application)


async def test_the_commands_of_the_documents_work(tmp_path: Path) -> None:
    """Each ends with 0 and says something, or has nothing to say; the daemon's files are its own user's."""
    failed = []
    (tmp_path / "failures").mkdir()
    settings = dict(load().function(STACK).environment) | {"QUARANTINE": str(tmp_path / "failures/quarantine")}
    async with Pipeline(tmp_path, rate=200) as running, lambda_with(settings) as stack:
        environment = running.daemon_environment() | {
            "AWS_ENDPOINT_URL_DYNAMODB": running.table.url,
            "AWS_ENDPOINT_URL_LAMBDA": str(stack.make_url("")),
        }
        environment["MILLRACE_HTTP_PORT"] = running.daemon.url.rpartition(":")[2]
        async with asyncio.timeout(60):
            while not (await running.mapping_stats())["records"]:
                await asyncio.sleep(0.1)
        for command in COMMANDS:
            code, output, errors = await run(environment, *command)
            if code != 0:
                failed.append(f"{shlex.join(command)} ended with {code}: {output}{errors}")
        modes = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "journal").iterdir() if path.is_file()}
        await running.stop_posts()

    assert failed == []
    assert ("service", "check") in COMMANDS
    assert ("processor", "--stack", "millrace", "latest") in COMMANDS
    assert {"journal.db", "journal.lock"} <= modes.keys()
    assert set(modes.values()) == {0}


async def test_letters_are_put_back_as_the_documents_say(tmp_path: Path) -> None:
    """Beside a daemon that runs: the letters reach Kinesis, the daemon keeps its port and its journal."""
    (steps,) = (block for block in blocks(ROOT / "docs/operations.md") if "service letters" in block)
    async with Pipeline(tmp_path, rate=20, table=False) as running:
        letters = DeadLetters(tmp_path / "journal", lambda: 0.0)
        letters.add(b'{"data":{"id":"1","author_id":"2"}}', DropReason.JOURNAL_FULL)
        letters.add(b"other", DropReason.NOT_JSON)
        environment = running.daemon_environment() | {
            "MILLRACE_HTTP_PORT": running.daemon.url.rpartition(":")[2],
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        process = await asyncio.create_subprocess_exec(
            *("sh", "-ec", steps),
            cwd=tmp_path,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        running.check()

    assert process.returncode == 0, output.decode()
    last = json.loads(output.splitlines()[-1])
    assert (last["event"], last["delivered"], last["dropped"]) == ("stopped", 1, 0)
    assert [path.name for path in (tmp_path / "journal/again").iterdir()] == ["dead-letters.jsonl"]
