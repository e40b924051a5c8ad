import asyncio
import re

import pytest

from local.posts import Generated
from local.x_api.layout import Layout
from local.x_api.measure import main, read
from local.x_api.server import XApi
from local.x_api.settings import Settings


@pytest.mark.parametrize("layout", [Layout.BATCH, Layout.LINE])
async def test_a_reader_counts_each_post_once(layout: Layout) -> None:
    """Wherever chunks and reads end."""
    async with XApi(Generated(1), Settings(rate=0, limit=500, layout=layout)) as api:
        api.rules.change({"add": [{"value": "millrace"}]}, dry_run=False, delete_all=False)
        host, _, port = api.url.removeprefix("http://").partition(":")
        reading = asyncio.create_task(asyncio.to_thread(read, host, int(port), 500))
        await api.feed.until(lambda: api.ledger.counts["written"] == 500)
        if not reading.done():
            api.faults.inject("fin")
        found = await reading
    assert found.posts == 500
    assert found.bytes > 500 * 100


@pytest.mark.integration
def test_the_program_says_posts_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line."""
    assert main(["2000"]) == 0
    assert re.fullmatch(r"2,000 posts in [0-9.]+ s: [0-9,]+ posts/s, [0-9,]+ MB/s\n", capsys.readouterr().out)
