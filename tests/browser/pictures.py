"""
Takes pictures of the live page while the real pipeline goes through its states, with invented posts.

    python -m tests.browser.pictures docs/pictures         writes those of the README, in some three minutes

The test of the page goes the same way, only quicker.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from playwright.async_api import Browser, Page

from local.pipeline import Pipeline
from tests.browser.chromium import browser, mentions, says

WIDTH, HEIGHT = 1100, 900
# In six seconds of an outage these posts fill their part of this memory; after that they wait on disk.
RATE = 600
SETTINGS = {"MILLRACE_MEMORY_LIMIT": "16MiB", "MILLRACE_SHOW_POSTS": "on"}
# The README's pages show some minutes.
WARM_UP_SECONDS = 60.0


async def walk(chromium: Browser, state: Path, pictures: Path, warm_up: float) -> None:
    """Bring the pipeline into each state, wait until the page says so, and take a picture of it."""
    context = await chromium.new_context(
        viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", reduced_motion="reduce"
    )
    page = await context.new_page()
    try:
        async with Pipeline(state, rate=RATE, settings=SETTINGS, table=False) as pipeline:
            await page.goto(pipeline.daemon.url)
            await says(page, "Flowing")
            await asyncio.sleep(warm_up)
            await _take(page, pictures / "page-normal.png")

            await pipeline.fault_at_kinesis("throttle_shard", shard=2, seconds=6)
            await says(page, "Kinesis throttles 1 of 4 shards")
            await asyncio.sleep(4)
            await _take(page, pictures / "page-throttled.png")
            await says(page, "Flowing")

            await pipeline.fault_at_x("refuse", answer="service_unavailable", times=2, endpoint="stream")
            await pipeline.fault_at_x("fin")
            await says(page, "Not connected to X")
            await _take(page, pictures / "page-disconnected.png")
            await says(page, "Flowing")

            # So slow that catching up can be watched.
            await pipeline.fault_at_kinesis("slow", milliseconds=400, seconds=600)
            await pipeline.fault_at_kinesis("error", code="ServiceUnavailable", seconds=20, operations=["PutRecords"])
            await says(page, "Kinesis does not take posts")
            await _take(page, pictures / "page-blocked.png")
            await says(page, "Catching up")
            await mentions(page, "At this pace that takes", "#verdict-detail")
            await page.emulate_media(color_scheme="dark")
            await _take(page, pictures / "page-catching-up.png")

            await pipeline.daemon.kill()
            await says(page, "No word from the daemon", "#link")
            await _take(page, pictures / "page-without-daemon.png")
            await pipeline.restart_daemon()
    finally:
        await context.close()


async def _take(page: Page, path: Path) -> None:
    """Take a picture of the upper part, down to the shards."""
    shards = await page.locator("section", has=page.locator("#shards")).bounding_box()
    assert shards is not None
    height = shards["y"] + shards["height"] + 16
    await page.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})


async def main(directory: Path, warm_up: float) -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory(prefix="millrace-pictures-") as state:
        async with browser() as chromium:
            await walk(chromium, Path(state), directory, warm_up)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--warm-up", type=float, default=WARM_UP_SECONDS, metavar="SECONDS")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(options.directory, options.warm_up))
