import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from shutil import disk_usage
from threading import Event
from time import time

import pytest
from aiohttp import web

from local.kinesis.server import LocalKinesis
from local.x_api.server import XApi
from local.x_api.settings import Settings as XSettings
from service.check import Report, check, check_clock, check_disk, check_port, gaps, in_time, rules
from service.config import load
from service.core.gaps import Gap, Kept
from service.core.limits import MIB
from service.state import FILE_NAME, StateFile

pytestmark = pytest.mark.usefixtures("own_aws")

TOKEN = "a-token"
Said = Callable[[], dict[str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Give what was printed since, by the name of the line."""

    def read() -> dict[str, str]:
        lines = capsys.readouterr().out.splitlines()
        return {line[:14].strip(): line[15:] for line in lines}

    return read


@pytest.fixture
async def x() -> AsyncIterator[XApi]:
    """Run an X that knows the token."""
    async with XApi(settings=XSettings(tokens=(TOKEN,))) as running:
        yield running


async def run(x: XApi, stream: str = "posts", **settings: str) -> int:
    """Check a daemon on the stand-ins."""
    environ = {
        "MILLRACE_STREAM": stream,
        "MILLRACE_X_URL": x.url,
        "MILLRACE_BEARER_TOKEN": TOKEN,
        "MILLRACE_JOURNAL": "off",
        "MILLRACE_HTTP_PORT": "0",
        **{f"MILLRACE_{name}": value for name, value in settings.items()},
    }
    async with LocalKinesis({"posts": 4}) as kinesis:
        os.environ["AWS_ENDPOINT_URL_KINESIS"] = kinesis.url
        return await check(load(environ), {"AWS_REGION": "us-east-1"})


class TestAll:
    async def test_well(self, x: XApi, said: Said) -> None:
        """A line for each, in the order in which one stands on another, and exit code 0."""
        assert await run(x, RULES="coffee") == 0
        lines = said()
        names = ["configuration", "disk", "port", "credentials", "stream", "permissions", "x token", "x rules", "clock"]
        assert list(lines) == names
        assert lines["configuration"] == "ok: source filtered, stream posts"
        assert lines["stream"] == "ok: posts, ACTIVE, PROVISIONED, 4 open shards"
        assert lines["permissions"].startswith("not tried: http://127.0.0.1:")
        assert lines["x token"] == "ok: X takes it"
        assert lines["x rules"] == "ok: 0 of 1 wanted rules are there; run makes the rest"
        assert lines["clock"].startswith("ok: within 1 s of http://127.0.0.1:")

    async def test_no_such_stream(self, x: XApi, said: Said) -> None:
        """It is named with the settings to look at, nothing is said of its permissions, and the rest is tried."""
        assert await run(x, stream="other", RULES="coffee") == 1
        lines = said()
        assert lines["stream"].startswith("failed: There is no stream other in us-east-1: check MILLRACE_STREAM")
        assert "permissions" not in lines
        assert lines["x token"] == "ok: X takes it"

    async def test_a_wrong_token(self, said: Said) -> None:
        """X's refusal is the token's line, without the token; nothing is said of rules."""
        async with XApi(settings=XSettings(tokens=("another",))) as x:
            assert await run(x, RULES="coffee") == 1
        lines = said()
        assert lines["x token"].startswith("failed: X answered 401")
        assert "MILLRACE_BEARER_TOKEN" in lines["x token"]
        assert "x rules" not in lines
        assert TOKEN not in str(lines)

    async def test_x_is_not_there(self, x: XApi, said: Said) -> None:
        """Whoever cannot be reached is the token's line, with the setting to look at; nothing is said of rules."""
        assert await run(x, RULES="coffee", X_URL="http://127.0.0.1:1") == 1
        lines = said()
        assert lines["x token"].startswith("failed: X cannot be reached: no connection to 127.0.0.1:1")
        assert "MILLRACE_X_URL" in lines["x token"]
        assert "x rules" not in lines
        assert lines["clock"] == f"ok: within 1 s of {os.environ['AWS_ENDPOINT_URL_KINESIS']}"

    async def test_neither_x_nor_the_stream_is_there(self, x: XApi, said: Said) -> None:
        """Then nothing is said of the clock."""
        assert await run(x, stream="other", RULES="coffee", X_URL="http://127.0.0.1:1") == 1
        assert list(said())[-2:] == ["stream", "x token"]

    async def test_a_key_that_x_does_not_know(self, said: Said) -> None:
        """So is what X says when it gives no token."""
        async with XApi(settings=XSettings(tokens=(TOKEN,), keys="key:secret")) as x:
            assert await run(x, BEARER_TOKEN="", API_KEY="key", API_KEY_SECRET="other") == 1
        assert "x rules" not in said()

    async def test_a_rule_that_x_refuses(self, x: XApi, said: Said) -> None:
        """X's judgement of it is the line; the token is well."""
        assert await run(x, RULES="-is:retweet") == 1
        lines = said()
        assert lines["x token"] == "ok: X takes it"
        assert lines["x rules"].startswith("failed: X refuses the rule '-is:retweet'")

    async def test_no_rules_at_all(self, x: XApi, said: Said) -> None:
        """A filtered stream without a rule would never connect."""
        assert await run(x) == 1
        assert said()["x rules"].startswith("failed: X has none, and a filtered stream needs one; set MILLRACE_RULES")

    async def test_a_stream_without_rules(self, x: XApi, said: Said) -> None:
        """Of a volume stream only the token can be tried."""
        assert await run(x, SOURCE="sample") == 0
        lines = said()
        assert lines["x token"] == "ok: there is one; whether it is good for sample shows when it connects"
        assert "x rules" not in lines
        assert await run(x, SOURCE="sample", X_URL="http://127.0.0.1:1") == 1
        assert said()["clock"].startswith("failed: http://127.0.0.1:1 cannot be reached: no connection to 127.0.0.1:1")

    async def test_standard_input(self, x: XApi, said: Said) -> None:
        """X is not asked, and the clock is compared with that of Kinesis."""
        assert await run(x, SOURCE="stdin", BEARER_TOKEN="") == 0
        assert list(said()) == ["configuration", "disk", "port", "credentials", "stream", "permissions", "clock"]


class TestDisk:
    def test_room(self, tmp_path: Path, said: Said) -> None:
        """A directory that is not there yet is not made; that above it is looked at."""
        report = Report()
        check_disk(tmp_path / "not" / "yet", MIB, report)
        assert report.failures == 0
        assert said()["disk"].startswith("ok: ")
        assert list(tmp_path.iterdir()) == []

    def test_no_room(self, tmp_path: Path, said: Said) -> None:
        """A limit that the disk cannot hold is told before the disk is full."""
        report = Report()
        check_disk(tmp_path, 1 << 60, report)
        assert report.failures == 1
        assert said()["disk"].startswith("failed: MILLRACE_JOURNAL_LIMIT: 1,099,511,627,776 MiB, which ")

    def test_room_for_the_posts_alone_is_not_enough(self, tmp_path: Path, said: Said) -> None:
        """What SQLite keeps beside them would fill such a disk long before the limit, and for ever."""
        report = Report()
        check_disk(tmp_path, disk_usage(tmp_path).free - MIB, report)
        assert report.failures == 1
        assert said()["disk"].endswith(f" free for {tmp_path}; make room, or lower the limit")

    @pytest.mark.parametrize(
        ("journal", "place", "error"),
        [("file/journal", "file", "Not a directory"), ("x" * 300, "x" * 300, "File name too long")],
    )
    def test_not_a_directory(self, tmp_path: Path, said: Said, journal: str, place: str, error: str) -> None:
        """Where nothing can be written, or not even looked, the setting is named, and the way out."""
        (tmp_path / "file").touch()
        report = Report()
        check_disk(tmp_path / journal, MIB, report)
        assert report.failures == 1
        assert said()["disk"] == (
            f"failed: MILLRACE_JOURNAL: {tmp_path / place} cannot be used: {error};"
            " name a directory that can be written and has room, or write off"
        )

    async def test_a_disk_that_hangs(self) -> None:
        """Neither the other lines nor the end wait for it."""
        answers = Event()
        assert not await in_time(answers.wait, 0)
        answers.set()
        assert await in_time(answers.wait)


class TestPort:
    async def test_in_use(self, said: Said) -> None:
        """It may be a daemon that has it, so that is no failure; the setting is named for the other case."""
        report = Report()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            await check_port("127.0.0.1", port, report)
        assert report.failures == 0
        assert said()["port"].startswith(f"not tried: MILLRACE_HTTP_PORT: {port} is in use;")
        await check_port("127.0.0.1", port, report)
        assert said()["port"] == f"ok: {port} is free on 127.0.0.1"

    async def test_foreign_address(self, said: Said) -> None:
        """An address of another machine is the line that a start would end with."""
        report = Report()
        await check_port("192.0.2.1", 0, report)
        assert report.failures == 1
        assert said()["port"].startswith("failed: MILLRACE_HTTP_HOST: 192.0.2.1 cannot be used")


class TestClock:
    @asynccontextmanager
    async def server(self, ahead: float) -> AsyncIterator[str]:
        """Run a server whose clock is so many seconds ahead of ours."""

        async def answer(_request: web.Request) -> web.Response:
            return web.Response(status=404, headers={"Date": formatdate(time() + ahead, usegmt=True)})

        application = web.Application()
        application.router.add_route("*", "/{tail:.*}", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        await runner.cleanup()

    @pytest.mark.parametrize(("ahead", "words"), [(300.0, "behind"), (-300.0, "ahead of")])
    async def test_wrong(self, said: Said, ahead: float, words: str) -> None:
        """How far it is off, in which direction, and what to do."""
        report = Report()
        async with self.server(ahead) as url:
            await check_clock(url, report)
        assert report.failures == 1
        line = said()["clock"]
        assert line.startswith("failed: this machine is ")
        assert any(f" is {seconds} s {words} {url}; set it by NTP" in line for seconds in (299, 300, 301))

    async def test_right(self, said: Said) -> None:
        """Whole seconds are as exact as it gets."""
        report = Report()
        async with self.server(0) as url:
            await check_clock(url, report)
        assert report.failures == 0
        assert said()["clock"] == f"ok: within 1 s of {url}"

    async def test_a_server_that_hangs_up(self, said: Said) -> None:
        """It has been reached, so that is no failure."""
        report = Report()
        async with await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            await check_clock(url, report)
        assert report.failures == 0
        assert said()["clock"] == f"not tried: {url} does not say the time"


async def add_rule(x: XApi, value: str, tag: str) -> None:
    """Have another client add a rule at X."""
    x.rules.change({"add": [{"value": value, "tag": tag}]}, dry_run=False, delete_all=False)


class TestRules:
    async def ask(self, x: XApi, wanted: str, *, apply: bool = False, all_owners: bool = False) -> int:
        environ = {"MILLRACE_STREAM": "posts", "MILLRACE_X_URL": x.url, "MILLRACE_BEARER_TOKEN": TOKEN}
        return await rules(load(environ | {"MILLRACE_RULES": wanted}), apply=apply, all_owners=all_owners)

    async def test_the_difference(self, x: XApi, capsys: pytest.CaptureFixture[str]) -> None:
        """What is missing, what is too much, and what belongs to somebody else; nothing is changed without --apply."""
        await add_rule(x, "old", "millrace:")
        await add_rule(x, "weather", "somebody")
        assert await self.ask(x, "coffee") == 0
        shown = "+ coffee  [millrace:]\n- old  [millrace:]\n  weather  [somebody]  of another owner"
        assert capsys.readouterr().out.startswith(shown)
        assert len(x.rules) == 2
        assert await self.ask(x, "coffee", apply=True) == 0
        assert capsys.readouterr().out.endswith("made\n")
        assert len(x.rules) == 2
        assert await self.ask(x, "coffee", apply=True, all_owners=True) == 0
        assert capsys.readouterr().out == "- weather  [somebody]\n  coffee  [millrace:]\nmade\n"
        assert len(x.rules) == 1
        assert await self.ask(x, "coffee", apply=True) == 0
        assert capsys.readouterr().out == "  coffee  [millrace:]\nnothing to change\n"

    async def test_no_rules_are_wanted(self, x: XApi, capsys: pytest.CaptureFixture[str]) -> None:
        """X's are shown, all of them, and --apply deletes none."""
        await add_rule(x, "old", "millrace:")
        await add_rule(x, "weather", "somebody")
        assert await self.ask(x, "", apply=True) == 0
        assert len(x.rules) == 2
        out = capsys.readouterr().out
        assert "  old  [millrace:]" in out
        assert "  weather  [somebody]" in out
        assert "MILLRACE_RULES" in out

    async def test_a_rule_that_x_refuses(self, x: XApi, capsys: pytest.CaptureFixture[str]) -> None:
        """A line in X's words, and exit code 1."""
        assert await self.ask(x, "-tea", apply=True) == 1
        assert capsys.readouterr().err.startswith("X refuses the rule '-tea'")


class TestGaps:
    async def test_a_list(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A line for each, the oldest first; one may last."""
        lasting = Gap(time() - 60, "cut", 1.0, then=["network_error", "unauthorized"])
        entries = [Gap(0.0, "cut", 10.0, 30.5, 2, 1, 250), lasting]
        await StateFile(tmp_path).save(Kept(gaps=entries))
        environ = {"MILLRACE_STREAM": "p", "MILLRACE_BEARER_TOKEN": TOKEN, "MILLRACE_JOURNAL": str(tmp_path)}
        assert gaps(load(environ)) == 0
        _, first, second = capsys.readouterr().out.splitlines()
        assert first.split() == ["1970-01-01T00:00:00Z", "1970-01-01T00:00:30Z", "30.5", "55", "250", "cut"]
        assert second.split()[1:3] == ["it", "lasts"]
        assert second.endswith("  cut, network_error, unauthorized")

    def test_a_damaged_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """No list that would say that all is well, and the file stays the daemon's."""
        (tmp_path / FILE_NAME).write_text('{"gaps": [')
        environ = {"MILLRACE_STREAM": "p", "MILLRACE_BEARER_TOKEN": TOKEN, "MILLRACE_JOURNAL": str(tmp_path)}
        assert gaps(load(environ)) == 1
        said = capsys.readouterr()
        assert (said.out, [path.name for path in tmp_path.iterdir()]) == ("", [FILE_NAME])
        assert said.err.startswith("MILLRACE_JOURNAL: the gaps cannot be read: ")

    def test_without_a_journal(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A line that says where else to look, and exit code 1."""
        environ = {"MILLRACE_STREAM": "p", "MILLRACE_BEARER_TOKEN": TOKEN, "MILLRACE_JOURNAL": "off"}
        assert gaps(load(environ)) == 1
        assert "/status" in capsys.readouterr().err


async def test_rules_of_others_are_enough(x: XApi, said: Said) -> None:
    """A filtered stream needs a rule, whoever has put it there."""
    await add_rule(x, "weather", "somebody")
    assert await run(x) == 0
    assert said()["x rules"] == "ok: none are wanted, so the 1 that X has are used"
