"""X's own client against the stand-in, unmodified, in an environment of its own. tweepy is in test_x_api.py."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from local.posts import Generated
from local.x_api.server import XApi
from local.x_api.settings import Settings

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[3]
POSTS = 200


@pytest.fixture(scope="module")
def python_with_xdk() -> Path:
    """Return the interpreter of an environment that holds xdk and nothing of ours; made anew when its pins change."""
    home, pins = Path(sys.prefix) / "xdk", ROOT / "requirements" / "xdk.txt"
    python, made_of = home / "bin" / "python", home / "requirements.txt"
    if not made_of.exists() or made_of.read_bytes() != pins.read_bytes():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        subprocess.run([*pip, "--require-hashes", "-r", str(pins)], check=True)
        made_of.write_bytes(pins.read_bytes())
    return python


async def test_unmodified_xdk_reads_the_stream(python_with_xdk: Path) -> None:
    """Rules, counts, connections and usage are as it expects them; over a drop no post that was written is missing."""
    async with XApi(Generated(1), Settings(rate=500, honours_fields=True)) as api:
        program = await asyncio.create_subprocess_exec(
            *(str(python_with_xdk), str(Path(__file__).with_name("xdk_client.py")), api.url, str(POSTS)),
            stdout=asyncio.subprocess.PIPE,
        )
        reading = asyncio.create_task(program.communicate())
        await api.feed.until(lambda: reading.done() or api.ledger.counts["written"] >= 50)
        api.faults.inject("fin")
        output, _ = await reading
        assert program.returncode == 0
        seen: dict[str, Any] = json.loads(output)
        written = [row.id for row in api.ledger.rows() if row.state == "written"]

    assert (seen["dry"]["summary"]["created"], seen["added"]["summary"]["created"]) == (2, 2)
    assert [rule["value"] for rule in seen["rules"]] == ["millrace", "never matched"]
    assert seen["counts"]["project_rules_count"] == "2"
    assert seen["posts"] == written[:POSTS]
    assert [one["disconnect_reason"] for one in seen["connections"]][-1] == "fin"
    assert int(seen["usage"]["project_usage"]) >= POSTS
    assert seen["deleted"]["summary"] == {"deleted": 2, "not_deleted": 0}
