"""The daemon's X side as an operator drives it: signals, files, commands. Real processes, some 20 seconds."""

import asyncio
import json
import os
import signal
from pathlib import Path

import aiohttp
import pytest

from local.pipeline import TOKEN, Pipeline
from tests.integration.steps import run, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


class Rules:
    """The rules that X has for the daemon's app, as another client of the app sees and changes them."""

    def __init__(self, session: aiohttp.ClientSession, running: Pipeline) -> None:
        self._session = session
        self._url = f"{running.x.url}/2/tweets/search/stream/rules"

    async def values(self) -> set[str]:
        """Give their values."""
        async with self._session.get(self._url) as response:
            return {rule["value"] for rule in (await response.json()).get("data", [])}

    async def become(self, *values: str) -> None:
        """Wait until they are these."""
        async with asyncio.timeout(30):
            while await self.values() != set(values):
                await asyncio.sleep(0.05)

    async def delete(self, value: str) -> None:
        """Take one away."""
        async with self._session.post(self._url, json={"delete": {"values": [value]}}) as response:
            assert response.status == 200


async def test_an_operator_changes_rules_and_looks_at_gaps(tmp_path: Path) -> None:
    """Nothing of it costs a connection but the kill, and that one is in the list of gaps of the next run."""
    file = tmp_path / "rules.yaml"
    file.write_text("- coffee\n", encoding="utf-8")
    settings = {"MILLRACE_RULES": "", "MILLRACE_RULES_FILE": str(file)}

    def posts_came(metrics: dict[str, float]) -> bool:
        return metrics["posts_received_total"] >= 100

    async def command(*arguments: str) -> str:
        code, output, _ = await run(running.daemon_environment(), "service", *arguments)
        assert code == 0
        return output

    async with (
        Pipeline(tmp_path, rate=200, settings=settings, table=False) as running,
        aiohttp.ClientSession(headers={"authorization": f"Bearer {TOKEN}"}) as session,
    ):
        rules = Rules(session, running)
        await until(running, posts_came)
        file.write_text("- coffee\n- value: tea\n  tag: leaves\n", encoding="utf-8")
        await rules.become("coffee", "tea")

        await rules.delete("tea")
        assert await rules.values() == {"coffee"}
        assert "+ tea  [millrace:leaves]" in await command("rules")
        assert running.daemon._process is not None
        os.kill(running.daemon._process.pid, signal.SIGHUP)
        await rules.become("coffee", "tea")
        made, gaps = await asyncio.gather(command("rules", "--apply"), command("gaps"))
        assert "made" not in made
        assert len(gaps.splitlines()) == 1
        assert (await running.x_stats())["connections"] == 1
        assert (await running.metrics())["stream_reconnects_total"] == 0

        # The change of rules made a new beginning of the rate, and the last one kept is what the next run has.
        async with asyncio.timeout(30):
            while json.loads((tmp_path / "journal" / "source.json").read_bytes())["rate"] < 160:
                await asyncio.sleep(0.1)
        await running.restart_daemon()
        await until(running, posts_came)
        (row,) = (await command("gaps")).splitlines()[1:]
        assert row.endswith("restart, backfill_refused")
        metrics = await running.metrics()
        assert 0 < metrics["stream_gap_seconds_total"] < 30
        assert metrics["posts_missed_estimate_total"] == pytest.approx(
            200 * metrics["stream_gap_seconds_total"], rel=0.3
        )
