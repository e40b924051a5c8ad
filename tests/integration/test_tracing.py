"""Traces of the real daemon, as a collector gets them. Real time: each takes some seconds."""

import asyncio
from pathlib import Path

import pytest

from local.pipeline import STREAM, Pipeline
from tests.integration.steps import delivered
from tests.trace_collector import collector

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

POSTS = 200


async def carry(directory: Path, **settings: str) -> list[str]:
    """Carry some posts, end the daemon, and return what it logged."""
    async with Pipeline(directory, rate=200, limit=POSTS, settings=settings, table=False) as pipeline:
        await delivered(pipeline, POSTS)
        assert await pipeline.daemon.stop() == 0
        return pipeline.daemon.said()


async def test_a_collector_gets_the_requests(tmp_path: Path) -> None:
    """OpenTelemetry's own variable switches traces on; at the end of the daemon the last of them are sent."""
    async with collector() as (url, bodies):
        said = await carry(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_SERVICE_NAME="mill-7")
    body = b"".join(bodies)
    assert f"send {STREAM}".encode() in body
    assert f"carry {STREAM}".encode() in body
    assert b"mill-7" in body
    assert not [line for line in said if '"warning"' in line]


async def test_a_collector_that_is_not_there(tmp_path: Path) -> None:
    """It costs warnings, no posts, and no time at the end."""
    loop = asyncio.get_running_loop()
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    async with Pipeline(tmp_path, rate=200, limit=POSTS, settings=settings, table=False) as pipeline:
        await delivered(pipeline, POSTS)
        started = loop.time()
        assert await pipeline.daemon.stop() == 0
        assert loop.time() - started < 6
        assert (await pipeline.reconcile()).ok


async def test_packages_that_are_missing(tmp_path: Path) -> None:
    """The daemon says so in one line that names the way out, and carries posts without traces."""
    missing = tmp_path / "path" / "opentelemetry"
    missing.mkdir(parents=True)
    (missing / "__init__.py").write_text("raise ImportError('No module named opentelemetry')\n")
    state = tmp_path / "state"
    state.mkdir()
    said = await carry(state, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", PYTHONPATH=str(missing.parent))
    (line,) = [line for line in said if '"traces_off"' in line]
    assert "requirements/traces.txt" in line
