"""Chromium for the tests of the live page. Where there is none they fail: they are never skipped."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT_SECONDS = 40.0


def find() -> str:
    """Give the path of a Chromium; raises RuntimeError with the way out."""
    wanted = os.environ.get("CHROMIUM")
    found = shutil.which(wanted) if wanted else next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        raise RuntimeError("no Chromium: install one (Debian: apt-get install chromium), or name it with CHROMIUM")
    return found


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Run one without a window."""
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=find())
        try:
            yield running
        finally:
            await running.close()


async def says(page: Page, text: str, selector: str = "#verdict-title") -> None:
    """Wait until a part of the page begins with a text."""
    await _waits(page, text, selector, "startsWith")


async def mentions(page: Page, text: str, selector: str) -> None:
    """Wait until a part of the page has a text somewhere."""
    await _waits(page, text, selector, "includes")


async def _waits(page: Page, text: str, selector: str, how: str) -> None:
    script = f"([selector, text]) => document.querySelector(selector).textContent.{how}(text)"
    try:
        await page.wait_for_function(script, arg=[selector, text], timeout=WAIT_SECONDS * 1000)
    except Exception as error:
        raise AssertionError(f"{selector} says {await page.text_content(selector)!r}, not {text!r}") from error
