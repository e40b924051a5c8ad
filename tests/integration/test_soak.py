"""All that X and Kinesis can do to the daemon, at random, for a minute. Real processes, real time: some 90 seconds."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from local.pipeline import Pipeline
from local.x_api.answers import DISCONNECT_TYPES
from local.x_api.layout import Layout
from service.core.limits import KIB, MIB

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(240)]

SEED = 2026
SECONDS = 60
POSTS_PER_SECOND = 2000
# The daemon has 20 connects at once and 2 a minute; each of these costs one or two.
ENDINGS_EVERY = 5
DROP_CHANCE = 0.25
ENDINGS: tuple[dict[str, Any], ...] = (
    {"kind": "fin"},
    {"kind": "fin_mid_line"},
    {"kind": "fin_mid_block"},
    {"kind": "cut"},
    {"kind": "reset"},
    {"kind": "last_chunk"},
    {"kind": "last_chunk_mid_line"},
    {"kind": "last_chunk_mid_block"},
    {"kind": "slow_reader"},
    {"kind": "operational_disconnect", "told": False},
)
# X asks for 5 s after these, and twice that at each further one: no more than two in a minute. What keeps the daemon
# away for longer is left to tests in which time passes faster.
HARD_ENDINGS: tuple[dict[str, Any], ...] = (
    {"kind": "slow_reader", "told": True},
    *({"kind": "operational_disconnect", "disconnect_type": kind} for kind in DISCONNECT_TYPES),
)
HARD_ENDING_AT = 19
REFUSALS = ("service_unavailable", "bad_gateway_html", "internal_error")
REFUSAL_AT = 39
OTHERS: tuple[dict[str, Any], ...] = (
    *({"kind": "layout", "layout": layout} for layout in Layout if layout != Layout.BYTES),
    {"kind": "stall", "seconds": 1},
    {"kind": "silence", "seconds": 1},
    {"kind": "trickle", "seconds": 1, "bytes": 64 * KIB},
    {"kind": "missed_beats", "beats": 3},
    {"kind": "empty"},
    {"kind": "spike", "seconds": 1, "factor": 3},
    {"kind": "enlarge", "bytes": 300 * KIB},
    {"kind": "enlarge", "bytes": MIB},
    {"kind": "line", "line": "this is not JSON"},
    {"kind": "line", "line": '{"data":{"text":"no id"}}'},
)
AT_KINESIS: tuple[dict[str, Any], ...] = (
    {"kind": "throttle_shard", "shard": 1, "seconds": 1},
    {"kind": "fail_records", "every": 5, "seconds": 1},
    {"kind": "drop", "requests": 2, "operations": ["PutRecords"]},
)


async def seconds(count: int) -> AsyncIterator[int]:
    """Count the seconds as they pass."""
    clock = asyncio.get_running_loop().time
    start = clock()
    for number in range(count):
        await asyncio.sleep(max(0.0, start + number - clock()))
        yield number


async def test_a_minute_of_everything_loses_nothing(tmp_path: Path) -> None:
    """Each line that X wrote whole is in Kinesis, in its key's order, or is put aside with a reason."""
    chance = Random(SEED)
    x_options = ["--disorder", "0.2", "--duplicates", "0.02", "--seed", str(SEED)]
    async with Pipeline(tmp_path, rate=POSTS_PER_SECOND, table=False, x_options=x_options) as running:
        async for second in seconds(SECONDS):
            running.check()
            await running.fault_at_x(**chance.choice(OTHERS))
            await running.fault_at_kinesis(**chance.choice(AT_KINESIS))
            if second % ENDINGS_EVERY == ENDINGS_EVERY - 1:
                if second == REFUSAL_AT:
                    await running.fault_at_x("refuse", answer=chance.choice(REFUSALS))
                elif chance.random() < DROP_CHANCE:
                    await running.fault_at_x("refuse", answer="drop")
                await running.fault_at_x(**chance.choice(HARD_ENDINGS if second == HARD_ENDING_AT else ENDINGS))
        await running.stop_posts()
        await running.settle()
        metrics = await running.metrics()
        stats = await running.x_stats()
        result = await running.reconcile()

    came = metrics["posts_received_total"] + metrics["posts_recovered_total"]
    gone = sum(metrics[f"posts_{name}_total"] for name in ("delivered", "dropped", "duplicate"))
    assert came == gone
    assert result.ok, result.summary()
    assert result.sent > SECONDS * POSTS_PER_SECOND / 3, result.summary()
    assert len(stats["endings"]) > 5
    assert "rate_limit" not in stats["refused"]
    assert metrics["posts_duplicate_total"] > 100
