import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping

import pytest
from aiohttp import ClientConnectionError, ClientSession

from service.admin import LISTENERS, Admin, AdminError, Health
from service.core.look import SourceFigures
from service.log import Redactor
from service.metrics import Metrics, new_registry
from tests.still_clock import StillClock

LOOPBACK = "127.0.0.1"


class Rig:
    """A server and its client, with what the server shows."""

    def __init__(self, client: ClientSession) -> None:
        self.client = client
        self.clock = StillClock(1_700_000_000.0)
        self.health = Health(["stream", "kinesis"], self.clock)
        self.figures: dict[str, object] = {"lanes": 4}
        self.frame: dict[str, object] = {"at": 1}
        self.redactor = Redactor()
        registry = new_registry()
        self.metrics = Metrics(registry)
        self.admin = Admin(
            LOOPBACK,
            0,
            registry,
            self.health,
            lambda: self.figures,
            dict,
            lambda: self.frame,
            self.redactor.clean,
            0.01,
        )

    async def ask(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Send a request; give status, type and body of the answer."""
        url = f"http://{LOOPBACK}:{self.admin.port}{path}"
        async with asyncio.timeout(5), self.client.request(method, url, headers=headers) as answer:
            return answer.status, answer.headers.get("Content-Type", ""), await answer.text()

    async def ask_json(self, path: str) -> tuple[int, object]:
        """Send a request; give status and body of the answer, which must be JSON."""
        url = f"http://{LOOPBACK}:{self.admin.port}{path}"
        async with asyncio.timeout(5), self.client.get(url) as answer:
            assert answer.headers["Cache-Control"] == "no-store"
            return answer.status, await answer.json()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """Give a server that listens."""
    async with ClientSession() as client:
        rig = Rig(client)
        async with rig.admin:
            yield rig


class TestMetrics:
    async def test_text(self, rig: Rig) -> None:
        """Prometheus gets the figures of this moment as text."""
        rig.metrics.received(3, 300)
        status, kind, text = await rig.ask("/metrics")
        assert status == 200
        assert kind.startswith("text/plain; version=")
        assert "\nmillrace_posts_received_total 3.0\n" in text

    async def test_open_metrics(self, rig: Rig) -> None:
        """Who asks for OpenMetrics gets that."""
        _, kind, text = await rig.ask("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert kind.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")

    async def test_some(self, rig: Rig) -> None:
        """Single series can be asked for, those that are worked out at the scrape too."""
        _, _, text = await rig.ask("/metrics?name[]=millrace_posts_buffered")
        assert [line for line in text.splitlines() if not line.startswith("#")] == ["millrace_posts_buffered 0.0"]


class TestHealth:
    async def test_alive(self, rig: Rig) -> None:
        """The process is alive, whatever its surroundings do."""
        rig.health.set("kinesis", ok=False, reason="no such stream")
        assert (await rig.ask("/healthz"))[::2] == (200, "ok\n")

    async def test_starting(self, rig: Rig) -> None:
        """Nothing is ready until it says so."""
        check = {"ok": False, "reason": "starting", "since": "2023-11-14T22:13:20+00:00"}
        report = {"ready": False, "checks": {"stream": check, "kinesis": check}}
        assert await rig.ask_json("/readyz") == (503, report)

    async def test_ready(self, rig: Rig) -> None:
        """Ready needs every condition, and is lost with one of them, which then tells why and since when."""
        rig.health.set("stream", ok=True)
        assert (await rig.ask_json("/readyz"))[0] == 503
        rig.clock.now += 1
        rig.health.set("kinesis", ok=True)
        checks = {
            "stream": {"ok": True, "reason": "", "since": "2023-11-14T22:13:20+00:00"},
            "kinesis": {"ok": True, "reason": "", "since": "2023-11-14T22:13:21+00:00"},
        }
        assert await rig.ask_json("/readyz") == (200, {"ready": True, "checks": checks})
        rig.clock.now += 60
        rig.health.set("stream", ok=False, reason="unauthorized")
        checks["stream"] = {"ok": False, "reason": "unauthorized", "since": "2023-11-14T22:14:21+00:00"}
        assert await rig.ask_json("/readyz") == (503, {"ready": False, "checks": checks})

    def test_new_reason(self) -> None:
        """A new reason for the same state leaves the time since when it lasts."""
        clock = StillClock(100.0)
        health = Health(["stream"], clock)
        clock.now += 5
        health.set("stream", ok=False, reason="unauthorized")
        assert health.checks["stream"] == (False, "unauthorized", clock.now - 5)

    def test_unknown_condition(self) -> None:
        """A condition that nobody declared is a bug and not a new condition."""
        with pytest.raises(KeyError, match="strem"):
            Health(["stream"]).set("strem", ok=True)


class TestPages:
    async def test_status(self, rig: Rig) -> None:
        """The figures are asked for at each request."""
        assert await rig.ask_json("/status") == (200, {"lanes": 4})
        rig.figures["lanes"] = 8
        assert await rig.ask_json("/status") == (200, {"lanes": 8})

    async def test_the_page(self, rig: Rig) -> None:
        """The root is the live page, and all that it names is there, of the right kind."""
        status, kind, text = await rig.ask("/")
        assert (status, kind) == (200, "text/html; charset=utf-8")
        named = set(re.findall(r'(?:src|href)="([^"#]+)"', text))
        assert named == {"page.css", "page.js", "icon.svg", "metrics", "readyz", "healthz", "status"}
        answers = {name: await rig.ask(f"/{name}") for name in named}
        assert {name: status for name, (status, _, _) in answers.items()} == dict.fromkeys(named, 200) | {"readyz": 503}
        assert answers["page.css"][1] == "text/css; charset=utf-8"
        assert answers["page.js"][1] == "text/javascript; charset=utf-8"
        assert answers["icon.svg"][1] == "image/svg+xml; charset=utf-8"

    async def test_nothing_foreign(self, rig: Rig) -> None:
        """The page runs and loads only what comes from here, and no script or style is inside its text."""
        async with rig.client.get(f"http://{LOOPBACK}:{rig.admin.port}/") as answer:
            text = await answer.text()
            policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert not re.search(r"https?://|<style|style=|<script>|\son\w+=", text)
        _, _, script = await rig.ask("/page.js")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document.write|eval", script)

    async def test_secrets(self, rig: Rig) -> None:
        """What X or Kinesis wrote may repeat a secret; no answer does, whatever it is and however it is packed."""
        secret = 'qqx"qqy'
        rig.redactor.add(secret)
        rig.health.set("stream", ok=False, reason=f"X answered 401 to {secret}")
        rig.figures["words"] = rig.frame["words"] = secret
        figures = SourceFigures(trouble=("unauthorized", secret))
        rig.metrics.read_source = lambda: figures
        for path in ("/readyz", "/status", "/metrics"):
            _, _, text = await rig.ask(path, headers={"Accept-Encoding": "gzip"})
            assert "***" in text
            assert "qq" not in text
        (_, (_, frame)) = await TestEvents().read(rig, 2)
        assert frame == {"at": 1, "words": "***"}

    async def test_unknown(self, rig: Rig) -> None:
        """An address that is none is not found."""
        assert (await rig.ask("/health"))[0] == 404

    async def test_method(self, rig: Rig) -> None:
        """Nothing can be changed from here; a check without a body may be asked for."""
        assert (await rig.ask("/healthz", "POST"))[0] == 405
        assert (await rig.ask("/healthz", "HEAD"))[0] == 200

    async def test_only_the_head_of_the_events(self) -> None:
        """Who asks only for the head of the stream gets that and no event, and the connection goes on."""
        async with ClientSession() as client, Rig(client).admin as admin:
            reader, writer = await asyncio.open_connection(LOOPBACK, admin.port)
            writer.write(b"HEAD /events HTTP/1.1\r\nHost: x\r\n\r\nHEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(5):
                head, next_head = [await reader.readuntil(b"\r\n\r\n") for _ in range(2)]
            writer.close()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"Content-Type: text/event-stream\r\n" in head
        assert next_head.startswith(b"HTTP/1.1 200 ")


class TestEvents:
    async def read(self, rig: Rig, events: int) -> list[tuple[str, object]]:
        """Read so many events: their names and what they tell."""
        url = f"http://{LOOPBACK}:{rig.admin.port}/events"
        found: list[tuple[str, object]] = []
        async with asyncio.timeout(5), rig.client.get(url) as answer:
            assert (answer.status, answer.content_type) == (200, "text/event-stream")
            async for line in answer.content:
                field, _, value = line.decode().strip().partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    found.append((name, json.loads(value)))
                if len(found) == events:
                    break
        return found

    async def test_order(self, rig: Rig) -> None:
        """First what was, then what is, again and again."""
        assert await self.read(rig, 4) == [("history", {}), *[("frame", {"at": 1})] * 3]

    async def test_end(self) -> None:
        """A page that is open is told of the end, and does not hold it up."""
        async with ClientSession() as client, asyncio.timeout(5):
            rig = Rig(client)
            async with rig.admin:
                answer = await client.get(f"http://{LOOPBACK}:{rig.admin.port}/events")
            assert (await answer.read()).endswith(b"event: end\ndata: {}\n\n")

    async def test_a_closed_page(self, rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
        """A page that goes away in the middle is nothing to write an error about."""
        url = f"http://{LOOPBACK}:{rig.admin.port}/events"
        async with asyncio.timeout(5):
            pages = [await rig.client.get(url) for _ in range(LISTENERS)]
            for page in pages:
                await page.content.readline()
                page.close()
            while (answer := await rig.client.get(url)).status == 503:
                await asyncio.sleep(0)
            answer.close()
        assert caplog.messages == []

    async def test_too_many(self, rig: Rig) -> None:
        """Pages cost something each; one too many is told so, and has its place when another is closed."""
        url = f"http://{LOOPBACK}:{rig.admin.port}/events"
        async with asyncio.timeout(5):
            pages = [await rig.client.get(url) for _ in range(LISTENERS)]
            assert (await rig.ask("/events"))[0] == 503
            pages[0].close()
            while (answer := await rig.client.get(url)).status == 503:
                await asyncio.sleep(0)
            assert answer.status == 200
            for page in [*pages, answer]:
                page.close()


class TestListening:
    def make(self, host: str, port: int) -> Admin:
        return Admin(host, port, new_registry(), Health([]), dict, dict, dict, bytes)

    async def test_port_in_use(self) -> None:
        """A port that is taken is one line with the setting and the way out."""
        async with self.make(LOOPBACK, 0) as first:
            with pytest.raises(AdminError) as caught:
                async with self.make(LOOPBACK, first.port):
                    pass
            assert str(caught.value) == (
                f"MILLRACE_HTTP_PORT: {first.port} is in use;"
                " stop what uses it, or choose another (0 takes any free one)"
            )

    async def test_foreign_address(self) -> None:
        """An address of another machine is one line with the setting and the way out."""
        with pytest.raises(AdminError, match=r"^MILLRACE_HTTP_HOST: 192\.0\.2\.1 cannot be used \(.+\); write an "):
            async with self.make("192.0.2.1", 0):
                pass

    async def test_end(self) -> None:
        """After its end nobody listens, and an open connection does not hold it up."""
        async with ClientSession() as client, asyncio.timeout(5):
            async with self.make(LOOPBACK, 0) as admin:
                url = f"http://{LOOPBACK}:{admin.port}/healthz"
                async with client.get(url) as answer:
                    assert answer.status == 200
            with pytest.raises(ClientConnectionError):
                await client.get(url)
