"""SIGTERM while Kinesis is away: the drain has a limit, and whoever cannot wait for it sends a second signal."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from local.kinesis.faults import RequestError
from local.kinesis.server import LocalKinesis
from local.pipeline import CREDENTIALS, Pipeline
from tests.integration.steps import until

# X cannot know what was still on the wire when the daemon ended the connection: a backfill brings it again.
BACKFILL = ["--enterprise"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


async def ended_without_kinesis(running: Pipeline, signals: int) -> tuple[int, float]:
    """Take Kinesis away, let posts pile up, send SIGTERM so many times; return the exit code and how long it took."""
    clock = asyncio.get_running_loop().time
    await running.kinesis.kill()
    async with asyncio.timeout(30):
        while (await running.metrics())["posts_buffered"] < 500:
            await asyncio.sleep(0.1)
    process = running.daemon._process
    assert process is not None
    started = clock()
    for number in range(signals):
        # Two that come before it has looked would be one.
        while number and not any('"event":"draining"' in line for line in running.daemon.said()):
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    code = await process.wait()
    return code, clock() - started


async def all_arrives(running: Pipeline) -> None:
    """Bring Kinesis and the daemon back: what the journal kept must be in Kinesis, in order."""
    await running.restart_kinesis(after=0)
    await running.restart_daemon()
    await running.stop_posts()
    # What the journal kept can be delivered before X has been asked for the rest.
    await until(running, lambda metrics: metrics["stream_connected"] == 1)
    await running.settle()
    assert (await running.metrics())["posts_recovered_total"] >= 500
    result = await running.reconcile()
    assert result.ok, result.summary()


async def test_what_the_drain_limit_leaves_waits_in_the_journal(tmp_path: Path) -> None:
    """The daemon ends in time with code 0, says how many posts it left, and the next run delivers them."""
    settings = {"MILLRACE_SHUTDOWN_SECONDS": "1"}
    async with Pipeline(tmp_path, rate=500, settings=settings, x_options=BACKFILL, table=False) as running:
        code, seconds = await ended_without_kinesis(running, signals=1)
        assert code == 0, running.daemon.last_words()
        assert 1.0 <= seconds < 8.0
        assert any('"event":"posts_left_in_journal"' in line for line in running.daemon.said())
        await all_arrives(running)


async def test_a_second_signal_ends_at_once_and_loses_nothing(tmp_path: Path) -> None:
    """Nobody has to wait for the drain: the process dies of the signal, and the journal has the posts."""
    settings = {"MILLRACE_SHUTDOWN_SECONDS": "60"}
    async with Pipeline(tmp_path, rate=500, settings=settings, x_options=BACKFILL, table=False) as running:
        code, seconds = await ended_without_kinesis(running, signals=2)
        assert code == -signal.SIGTERM
        assert seconds < 5.0
        await all_arrives(running)


HANGING_DISK = """
import os, sqlite3, sys, threading
from functools import partial
from service import __main__, app

class Database(sqlite3.Connection):
    def execute(self, sql, *parameters):
        if sql == sys.argv[1]:
            threading.Event().wait()
        return super().execute(sql, *parameters)

app.JournalFile = partial(app.JournalFile, connect=partial(sqlite3.connect, factory=Database))
sys.exit(__main__.main([], os.environ))
"""


@pytest.mark.parametrize(
    ("hangs_at", "operation", "end"),
    [("COMMIT", "write", "posts_dropped"), ("PRAGMA freelist_count", "close", "posts_left_in_journal")],
)
async def test_a_disk_that_hangs_does_not_keep_it_from_ending(
    tmp_path: Path, hangs_at: str, operation: str, end: str
) -> None:
    """The log says that it hangs and what became of the posts; neither the loop nor Python waits for its thread."""
    directory = tmp_path / "journal"
    directory.mkdir()
    async with LocalKinesis({"posts": 1}) as kinesis:
        kinesis.stream("posts").faults.add(RequestError(code="ServiceUnavailable"), now=0.0)
        environ = {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL_KINESIS": kinesis.url,
            "MILLRACE_STREAM": "posts",
            "MILLRACE_SOURCE": "stdin",
            "MILLRACE_JOURNAL": str(directory),
            "MILLRACE_HTTP_PORT": "0",
            "MILLRACE_SHUTDOWN_SECONDS": "0",
        }
        daemon = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", HANGING_DISK, hangs_at), stdin=PIPE, stdout=PIPE, env=environ
        )
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        said: dict[str, dict[str, Any]] = {}
        try:
            daemon.stdin.write(b'{"data":{"id":"1","author_id":"5"}}\n')
            async with asyncio.timeout(30):
                async for line in daemon.stdout:
                    entry = json.loads(line)
                    said[entry["event"]] = entry
                    if entry["event"] == "put_failed":
                        daemon.terminate()
                code = await daemon.wait()
        finally:
            if daemon.returncode is None:
                daemon.kill()
                await daemon.wait()
    assert code == 0
    assert said["journal_failed"]["operation"] == operation
    assert said["journal_failed"]["error"] == "the disk has not answered for 2 s"
    assert said[end]["posts"] == 1
    assert ("dead_letter_lost" in said) == ("posts_dropped" in said)
    assert said["stopped"]["dropped"] == said.get("posts_dropped", {"posts": 0})["posts"]
