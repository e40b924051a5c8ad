"""The daemon's X side as an operator drives it: signals, files, commands. Real processes, some 20 seconds."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from local.pipeline import TOKEN, Pipeline

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.05)


async def rules_of(running: Pipeline) -> dict[str, str]:
    """Give X's rules: value and tag."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"{running.x.url}/2/tweets/search/stream/rules") as response,
    ):
        return {rule["value"]: rule["tag"] for rule in (await response.json()).get("data", [])}


async def command(running: Pipeline, *arguments: str) -> str:
    """Run a command of the daemon with the settings of the one that runs; give what it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "service", *arguments),
        env=running.daemon_environment(),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_an_operator_changes_rules_and_looks_at_gaps(tmp_path: Path) -> None:
    """Nothing of it costs a connection but the kill, and that one is in the list of gaps of the next run."""
    file = tmp_path / "rules.yaml"
    file.write_text("- coffee\n", encoding="utf-8")
    settings = {"MILLRACE_RULES": "", "MILLRACE_RULES_FILE": str(file)}

    async def has(*values: str) -> bool:
        return set(await rules_of(running)) == set(values)

    def has_been_read(posts: int) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            return (await running.metrics())["posts_received_total"] >= posts

        return look

    async with Pipeline(tmp_path, rate=200, settings=settings, table=False) as running:
        await until(has_been_read(100))
        file.write_text("- coffee\n- value: tea\n  tag: leaves\n", encoding="utf-8")
        await until(lambda: has("coffee", "tea"))

        # Somebody else takes one away; SIGHUP brings it back.
        async with (
            aiohttp.ClientSession(headers={"authorization": f"Bearer {TOKEN}"}) as session,
            session.post(
                f"{running.x.url}/2/tweets/search/stream/rules", json={"delete": {"values": ["tea"]}}
            ) as response,
        ):
            assert response.status == 200
        assert await has("coffee")
        assert "+ tea  [millrace:leaves]" in await command(running, "rules")
        assert running.daemon._process is not None
        os.kill(running.daemon._process.pid, signal.SIGHUP)
        await until(lambda: has("coffee", "tea"))
        assert "made" not in await command(running, "rules", "--apply")
        assert (await running.x_stats())["connections"] == 1
        assert (await running.metrics())["stream_reconnects_total"] == 0
        assert len((await command(running, "gaps")).splitlines()) == 1

        await running.restart_daemon()
        await until(has_been_read(100))
        (row,) = (await command(running, "gaps")).splitlines()[1:]
        assert row.endswith("restart")
        metrics = await running.metrics()
        assert 0 < metrics["stream_gap_seconds_total"] < 30
        assert metrics["posts_missed_estimate_total"] == pytest.approx(
            200 * metrics["stream_gap_seconds_total"], rel=0.3
        )
