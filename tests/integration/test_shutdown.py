"""SIGTERM while Kinesis is away: the drain has a limit, and whoever cannot wait for it sends a second signal."""

import asyncio
import signal
from pathlib import Path

import pytest

from local.pipeline import Pipeline
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
