"""
The live page in a real browser.

Most tests show it looks that are made up, through the real board and server; one goes through all states of the real
pipeline.

    .venv/bin/pytest -m browser          needs a Chromium
"""

import re
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page

from service.admin import Admin, Health
from service.core.board import Board
from service.core.lanes import ShardState
from service.core.look import Buffer, Inside, Look, SourceFigures
from service.core.records import Post
from service.core.verdict import Check
from service.metrics import Metrics, new_registry
from tests.browser import chromium
from tests.browser.chromium import says
from tests.browser.pictures import walk

pytestmark = [
    pytest.mark.browser,
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(150),
]

START = 1_700_000_000.0
NAMES = [f"shardId-{number:012}" for number in range(4)]
WELL = {name: Check(True, "", START - 100) for name in ("stream", "kinesis", "buffer")}
BROKEN = WELL | {"stream": Check(False, "unauthorized: X answered 401: Unauthorized; check the token", START)}


class Daemon:
    """What a page sees of a daemon: a real server and a real board, and looks that are made up."""

    def __init__(self, port: int = 0) -> None:
        self.board = Board({"version": "1.2.3", "source": "filtered", "kinesis_stream": "posts"}, shows_posts=True)
        self.now = Metrics(new_registry(), lambda: START).look()._replace(buffer=Buffer(limit=1000))
        self.admin = Admin(
            "127.0.0.1",
            port,
            new_registry(),
            Health([]),
            dict,
            self.board.history,
            lambda: self.board.frame(self.now),
            bytes,
            0.05,
        )

    def pass_time(self, seconds: int, rate: int = 100, **changes: Any) -> Look:
        """Let seconds pass with so many posts each, and with these changes."""
        for _ in range(seconds):
            before = self.now
            self.now = before._replace(
                at=before.at + 1,
                received=before.received + rate,
                delivered=before.delivered + rate,
                received_at=before.at + 1 if rate else before.received_at,
                signal_at=before.at + 1,
                **{"connected": True, "inside": before.inside._replace(checks=WELL), **changes},
            )
            self.board.add(self.now)
        return self.now

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.admin.port}/"


def shards(*shares: float) -> Inside:
    """Have shards with these paces, and be well otherwise."""
    states = [ShardState(name, share, 5, 2.5) for name, share in zip(NAMES, shares, strict=False)]
    return Inside(shards=states, checks=WELL)


def flow(daemon: Daemon) -> None:
    """Be well for a minute."""
    daemon.pass_time(60, inside=shards(1, 1, 1, 1))


def throttle(daemon: Daemon) -> None:
    """Be throttled by one shard of four."""
    flow(daemon)
    daemon.pass_time(5, inside=shards(1, 0.2, 1, 1), shard_throttles={NAMES[1]: 7})


def disconnect(daemon: Daemon) -> None:
    """Lose X, for a reason that an operator must mend."""
    flow(daemon)
    daemon.board.note(START, "X", "unauthorized: X answered 401: Unauthorized; check the token", "bad")
    source = SourceFigures(20.0, 1800, posts_missing=200, month_posts=9500, month_budget=10_000)
    inside = daemon.now.inside._replace(checks=BROKEN)
    daemon.pass_time(20, 0, connected=False, inside=inside, source=source, retry_at=START + 900, reconnects=3)


def catch_up(daemon: Daemon) -> None:
    """Have posts on disk."""
    flow(daemon)
    daemon.pass_time(5, buffer=Buffer(posts=6000, on_disk=5000, bytes=95, limit=100, journal_limit=1000))


def lose(daemon: Daemon) -> None:
    """Drop posts."""
    flow(daemon)
    daemon.pass_time(5, dropped={"journal_full": 12, "not_json": 1})


STATES = {
    "flowing": (flow, "ok", "Flowing"),
    "throttled": (throttle, "notice", "Kinesis throttles 1 of 4 shards"),
    "disconnected": (disconnect, "bad", "Not connected to X"),
    "catching_up": (catch_up, "notice", "Catching up"),
    "dropping": (lose, "bad", "Posts are dropped"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="browser")
async def _browser() -> AsyncIterator[Browser]:
    async with chromium.browser() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """Give a page that must not complain: of errors, or of what its policy forbids."""
    context = await browser.new_context(viewport={"width": 1280, "height": 900}, timezone_id="UTC")
    page = await context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console", lambda message: complaints.append(message.text) if "Failed to load" not in message.text else None
    )
    yield page
    await context.close()
    assert complaints == []


@pytest_asyncio.fixture(loop_scope="module")
async def daemon() -> AsyncIterator[Daemon]:
    """Give a daemon that serves its page."""
    daemon = Daemon()
    async with daemon.admin:
        yield daemon


async def audit(page: Page) -> list[str]:
    """Give what axe-core finds wrong with the accessibility of the page, its contrasts included."""
    found = (await Axe().run(page)).response
    return [
        f"{rule['id']}: {node['html']} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


class TestStates:
    async def test_before_anything_happened(self, page: Page, daemon: Daemon) -> None:
        """A daemon without a post has no rates, curves or shards, and no empty boxes: each says so in words."""
        daemon.now = daemon.now._replace(inside=Inside(checks=WELL), connected=True)
        await page.goto(daemon.url)
        await says(page, "Connected, no posts yet")
        await says(page, "0", "#rate-in")
        await says(page, "no posts yet", "#chart-top")
        await says(page, "They are not known yet", "#shards-note")
        await says(page, "Nothing yet", "#events-empty")
        await says(page, "None yet", "#posts-note")
        await says(page, "–", "#delay-x")
        await says(page, "✓ The sums agree", "#balance")
        assert "NaN" not in await page.inner_text("body")
        assert "undefined" not in await page.inner_text("body")
        assert await audit(page) == []

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("state", STATES)
    async def test_a_state(self, page: Page, daemon: Daemon, state: str, scheme: Any) -> None:
        """Title, mark and level agree, everything is accessible by axe's rules, and nothing runs out of a phone."""
        prepare, level, title = STATES[state]
        prepare(daemon)
        await page.emulate_media(color_scheme=scheme)
        await page.goto(daemon.url)
        await says(page, title)
        assert await page.get_attribute("#verdict", "data-level") == level
        assert await page.get_attribute("#verdict-mark", "href") == f"#mark-{level}"
        assert title in await page.title()
        assert "NaN" not in await page.inner_text("body")
        assert await audit(page) == []
        await page.set_viewport_size({"width": 360, "height": 740})
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        assert await audit(page) == []

    async def test_the_figures(self, page: Page, daemon: Daemon) -> None:
        """What the board tells is what stands there, with units."""
        catch_up(daemon)
        daemon.now = daemon.now._replace(billed_units=650, received=12_507, retries=1234)
        await page.goto(daemon.url)
        await says(page, "5,000 posts on disk", "#verdict-detail")
        await says(page, "6,000", "#buffered")
        await says(page, "95 B of 100 B", "#memory")
        await says(page, "0 B of 1,000 B", "#journal")
        await says(page, "1,234", "#retries")
        await says(page, "650", "#bill")
        await says(page, "A record a post would be 6,500 at least: aggregation saves 90 %", "#saved")
        await says(page, "7 posts are not accounted for: report it.", "#balance")
        assert await page.get_attribute("#memory-bar", "aria-valuenow") == "95"
        assert await page.get_attribute("#memory-bar", "data-full") is not None
        daemon.pass_time(1, buffer=Buffer(bytes=105, limit=100))
        await says(page, "105 B, full at 100 B", "#memory")

    async def test_without_a_connection(self, page: Page, daemon: Daemon) -> None:
        """The reason, the next try and the time without one are told; the curve shows since when."""
        disconnect(daemon)
        await page.goto(daemon.url)
        detail = "unauthorized: X answered 401: Unauthorized; check the token. Next try in 14 min."
        await says(page, detail, "#verdict-detail")
        await says(page, "not open, for 80 s", "#stream-state")
        await says(page, "in 14 min", "#retry")
        await says(page, "20 s", "#gap")
        await says(page, "2,000", "#missed")
        await says(page, "9,500 of 10,000", "#month")
        assert await page.is_visible("#gap-key")
        (width,) = await page.eval_on_selector_all("#gaps rect", "found => found.map(r => r.getAttribute('width'))")
        assert float(width) == 20
        assert "unauthorized" in await page.inner_text("#events")

    async def test_the_strip_of_a_shard(self, page: Page, daemon: Daemon) -> None:
        """The pace is a shade, a throttle a mark of its own, and both are in words beside it."""
        throttle(daemon)
        await page.goto(daemon.url)
        await says(page, "Kinesis throttles")
        rows = await page.eval_on_selector_all(
            "#shards tr",
            """rows => rows.map(row => ({
                words: [...row.children].map(cell => cell.textContent),
                classes: [...row.querySelectorAll('rect')].map(cell => cell.getAttribute('class')),
            }))""",
        )
        assert [row["words"][0] for row in rows] == ["0", "1", "2", "3"]
        assert rows[1]["words"][2:5] == ["20 %", "5, 2.5 s", "7"]
        assert "hit" in rows[1]["classes"]
        assert "c4" in rows[1]["classes"]
        assert {"c0", "none"} == set(rows[0]["classes"])

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    async def test_shades_without_colour(self, page: Page, daemon: Daemon, scheme: Any) -> None:
        """Who sees no colours tells the shades by their lightness: each step is a fifth lighter or darker."""
        flow(daemon)
        await page.emulate_media(color_scheme=scheme)
        await page.goto(daemon.url)
        await says(page, "Flowing")
        shades = await page.eval_on_selector_all(
            ".swatch:not(.hit)", "found => found.map(element => getComputedStyle(element).backgroundColor)"
        )
        lights = [luminance(shade) for shade in shades]
        assert len(lights) == 5
        assert lights == sorted(lights, reverse=scheme == "light")
        ratios = [(max(pair) + 0.05) / (min(pair) + 0.05) for pair in pairwise(lights)]
        assert min(ratios) > 1.2


def luminance(colour: str) -> float:
    """Give the relative luminance of `rgb(r, g, b)`, as WCAG has it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


class TestTexts:
    HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"

    async def test_markup_is_text(self, page: Page, daemon: Daemon) -> None:
        """Whatever X, Kinesis or an author wrote is shown as it is and never run."""
        line = b'{"data":{"id":"1","author_id":"2"},"includes":{"users":[{"id":"2","username":"%s"}]}}'
        daemon.board.take([Post(line % self.HOSTILE.encode(), self.HOSTILE, b"", 0.0)])
        daemon.board.note(START, self.HOSTILE, self.HOSTILE, "bad")
        checks = {**WELL, "kinesis": Check(False, self.HOSTILE, START)}
        daemon.pass_time(2, inside=Inside(shards=[ShardState(self.HOSTILE, 1.0, 0, 0.0)], checks=checks))
        alerts: list[str] = []
        page.on("dialog", lambda dialog: alerts.append(dialog.message))
        await page.goto(daemon.url)
        await says(page, self.HOSTILE, "#verdict-detail")
        await says(page, f"{self.HOSTILE}@{self.HOSTILE}", "#posts li")
        assert self.HOSTILE in await page.inner_text("#events")
        assert self.HOSTILE in await page.inner_text("#shards")
        assert await page.query_selector("main img, main script") is None
        assert alerts == []

    async def test_posts_that_may_not_be_shown(self, page: Page) -> None:
        """The page says which setting shows them, and what that means."""
        daemon = Daemon()
        daemon.board = Board({"version": "1", "source": "stdin", "kinesis_stream": "posts"}, shows_posts=False)
        daemon.pass_time(1)
        async with daemon.admin:
            await page.goto(daemon.url)
            await says(page, "They are not shown. MILLRACE_SHOW_POSTS=on", "#posts-note")
            await says(page, "Standard input", "#stream-title")


class TestConnection:
    async def test_the_daemon_stops_and_comes_back(self, page: Page) -> None:
        """What is shown is greyed and called old, and is of now again when the daemon is back: nobody reloads."""
        first = Daemon()
        flow(first)
        async with first.admin:
            await page.goto(first.url)
            await says(page, "Live", "#link")
            port = first.admin.port
        await says(page, "The daemon has stopped; what follows was its last word.", "#link")
        assert await page.get_attribute("body", "data-link") == "lost"
        await says(page, "Figures of ", "#age")
        assert await page.eval_on_selector(".card", "card => getComputedStyle(card).borderStyle") == "dashed"
        assert (await page.title()).startswith("?")
        assert await audit(page) == []
        second = Daemon(port)
        disconnect(second)
        async with second.admin:
            await says(page, "Live", "#link")
            await says(page, "Not connected to X")
            assert await page.text_content("#age") == ""
            assert await page.eval_on_selector(".card", "card => getComputedStyle(card).borderStyle") == "solid"

    async def test_no_place_is_free(self, page: Page, daemon: Daemon, browser: Browser) -> None:
        """A page too many waits for its turn and says that it does."""
        flow(daemon)
        daemon.admin._listeners += 16
        await page.goto(daemon.url)
        await says(page, "Connecting to the daemon", "#link")
        await says(page, "Waiting for the first figures")
        daemon.admin._listeners -= 16
        await says(page, "Flowing")


class TestHands:
    async def test_keyboard(self, page: Page, daemon: Daemon) -> None:
        """Everything that can be done is done by keys, in the order in which it stands there, with a visible focus."""
        throttle(daemon)
        await page.goto(daemon.url)
        await says(page, "Kinesis throttles")
        seen = []
        for _ in range(7):
            await page.keyboard.press("Tab")
            seen.append(await page.evaluate("document.activeElement.textContent.trim().split('\\n')[0]"))
            assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert seen[:2] == ["To the figures", "Pause"]
        assert seen[2].startswith("shard")
        assert seen[3:] == ["/metrics", "/readyz", "/healthz", "/status"]

    async def test_pause(self, page: Page, daemon: Daemon) -> None:
        """Figures that move can be stopped; they go on where they are by then."""
        flow(daemon)
        await page.goto(daemon.url)
        await says(page, "Flowing")
        await page.focus("#pause")
        await page.keyboard.press("Space")
        await says(page, "Paused", "#link")
        assert await page.get_attribute("#pause", "aria-pressed") == "true"
        daemon.pass_time(3, inside=Inside(checks=BROKEN))
        # The news has come, and is not drawn.
        await page.wait_for_timeout(300)
        assert await page.text_content("#verdict-title") == "Flowing"
        await page.keyboard.press("Space")
        await says(page, "Not connected to X")
        await says(page, "Live", "#link")

    async def test_screen_reader(self, page: Page, daemon: Daemon) -> None:
        """What is drawn is told too: the verdict when it changes, the curve in a sentence, the strips as a table."""
        throttle(daemon)
        await page.goto(daemon.url)
        await says(page, "Kinesis throttles")
        heard = await page.locator("body").aria_snapshot()
        assert re.search(r'status:\n\s+- heading "Kinesis throttles 1 of 4 shards"', heard)
        assert re.search(r'img "The last 2 minutes: now 100 in and 100 out a second, highest 100 in"', heard)
        assert re.search(r'row "1 20 % 5, 2\.5 s 7', heard)
        assert re.search(r"meter \"memory\"", heard)

    async def test_without_scripts(self, browser: Browser, daemon: Daemon) -> None:
        """Who has no JavaScript is led to the figures as JSON."""
        context = await browser.new_context(java_script_enabled=False)
        page = await context.new_page()
        await page.goto(daemon.url)
        assert await page.get_attribute("noscript a", "href") == "status"
        await context.close()


async def test_the_real_pipeline(browser: Browser, tmp_path: Path) -> None:
    """Normal, throttled, not connected, blocked, catching up, killed: the page says each, and a picture is taken."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    state = tmp_path / "state"
    state.mkdir()
    await walk(browser, state, pictures, 3)
    names = {path.stem.removeprefix("page-") for path in pictures.iterdir()}
    assert names == {"normal", "throttled", "disconnected", "blocked", "catching-up", "without-daemon"}
