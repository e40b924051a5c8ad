"""The X side as a whole, against the stand-in for X, with the parts of the daemon that it reports to."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs

from local.x_api.endings import Ending
from local.x_api.server import XApi
from local.x_api.settings import Settings as XSettings
from service.admin import Health
from service.config import load
from service.core.board import Board
from service.core.posts import PostReader
from service.core.records import DropReason, Post
from service.http_client import UnavailableError
from service.metrics import Metrics, new_registry
from service.rules import RulesError
from service.source import Source, bearer
from service.state import StateFile
from tests.elastic_loop import elastic_time
from tests.invented import posts
from tests.service.scripted_server import Connection, FakeX

SECONDS = 10
TOKEN = "local-token"


class Rig:
    """A source with what it reports to, and an intake that keeps what it gets."""

    def __init__(self, x: XApi, directory: Path | None, **settings: str) -> None:
        environ = {
            "MILLRACE_STREAM": "posts",
            "MILLRACE_BEARER_TOKEN": TOKEN,
            "MILLRACE_X_URL": x.url,
            "MILLRACE_JOURNAL": str(directory or "off"),
            "MILLRACE_RULES": "coffee",
        }
        self.environ = environ | {f"MILLRACE_{name}": value for name, value in settings.items()}
        self.environ = {name: value for name, value in self.environ.items() if value}
        self.registry = new_registry()
        metrics = Metrics(self.registry)
        self.health = Health(["stream"], lambda: 0.0)
        self.tokens: list[str] = []
        self.posts: list[Post] = []
        self.source = Source(
            load(self.environ),
            self.environ,
            metrics,
            self.health,
            Board({}, shows_posts=False),
            self.tokens.append,
            Random(1),
            x.clock.now,
        )
        metrics.read_source = self.source.figures
        self._reader = PostReader()

    def take(self, lines: list[bytes]) -> list[bytes]:
        posts, rejected = self._reader.read(lines, 0.0)
        self.posts += self.source.sift(posts)
        return [line for line, reason, _ in rejected if reason is DropReason.X_ERROR]

    def reject(self, line: bytes, reason: DropReason) -> None:
        raise AssertionError((line, reason))

    def value(self, name: str, **labels: str) -> float | None:
        """Read a metric."""
        return self.registry.get_sample_value(f"millrace_{name}", labels)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it, and close it as the daemon does."""
        task = asyncio.create_task(self.source.run(self))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task], timeout=SECONDS)
            await self.source.close()
        if not task.cancelled():
            task.result()


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def x_api(**settings: Any) -> AsyncIterator[XApi]:
    """Start a stand-in for X whose posts match every rule."""
    defaults: dict[str, Any] = {"rate": 200, "match_all": True, "keep_alive": 0.2, "tokens": (TOKEN,)}
    async with XApi(posts(), XSettings(**(defaults | settings))) as x:
        yield x


def rules_of(x: XApi) -> list[dict[str, str]]:
    """Give X's rules, oldest first."""
    rules: list[dict[str, str]] = x.rules.listed([], 1000, "").body["data"]
    return rules


@elastic_time
async def test_posts_come(tmp_path: Path) -> None:
    """The rules are made X's, posts are taken, and /status and the metrics say how it is."""
    async with x_api() as x:
        rig = Rig(x, tmp_path)
        async with rig.running():
            await until(lambda: len(rig.posts) > 20)
            assert rig.health.is_ready
            status = rig.source.status()
    assert [rule["value"] for rule in rules_of(x)] == ["coffee"]
    assert (status["name"], status["connected"], status["connects_left"]) == ("filtered", True, 19)
    assert status["month"]["posts"] >= 20
    assert rig.value("month_posts") == len(rig.posts)
    assert rig.value("stream_gap_seconds_total") == 0


@elastic_time
async def test_the_parameters_are_those_of_the_settings(tmp_path: Path) -> None:
    """X judges the names: one that it does not know is refused in its words."""
    async with x_api() as x:
        rig = Rig(x, tmp_path, TWEET_FIELDS="author_id,nonsense")
        async with rig.running():
            await until(lambda: rig.value("stream_reconnects_total", reason="bad_request"))
        checks: Any = rig.health.report()["checks"]
    assert "nonsense" in checks["stream"]["reason"]


@elastic_time
async def test_what_no_retry_can_heal_is_a_metric(tmp_path: Path) -> None:
    """With the reason, and the words of X."""
    async with x_api() as x:
        rig = Rig(x, tmp_path, RULES="")
        async with rig.running():
            await until(lambda: rig.value("stream_reconnects_total", reason="no_rules"))
            reason, words = rig.source.figures().trouble
            assert rig.value("stream_needs_operator", reason=reason, detail=words) == 1
    assert reason == "no_rules"
    assert "You must define rules" in words


@elastic_time
async def test_a_restart_remembers(tmp_path: Path) -> None:
    """The gap between two runs, the connects that were made, the posts of the month, and the id of the connection."""
    async with x_api() as x:
        first = Rig(x, tmp_path)
        async with first.running():
            await until(lambda: len(first.posts) > 5)
            x.faults.inject(Ending.FIN)
            await until(lambda: first.value("stream_reconnects_total", reason="cut"))
            await until(lambda: first.health.is_ready)
        kept = StateFile(tmp_path).load()
        await asyncio.sleep(3)
        second = Rig(x, tmp_path)
        async with second.running():
            await until(lambda: second.health.is_ready)
            assert second.source.status()["connects_left"] == 16
    assert kept.source == "filtered"
    # Two connects, and one more because this X refuses backfill; the second run knows that already.
    assert kept.spare == pytest.approx(17, abs=0.1)
    assert kept.posts == len(first.posts)
    assert [gap["reason"] for gap in second.source.status()["gaps"]] == ["cut, backfill_refused", "restart"]
    assert second.source.status()["month"]["posts"] >= kept.posts
    assert second.value("stream_gap_seconds_total") == pytest.approx(3, abs=0.5)


@elastic_time
async def test_a_gap_is_filled(tmp_path: Path) -> None:
    """With access to backfill every post of the gap comes after all, none twice, and the account says so."""
    async with x_api(enterprise=True, rate=500) as x:
        rig = Rig(x, tmp_path)
        async with rig.running():
            await until(lambda: len(rig.posts) > 100)
            x.faults.inject("refuse", answer="drop", times=3)
            x.faults.inject(Ending.FIN)
            await until(lambda: rig.value("stream_reconnects_total", reason="network_error"))
            await until(lambda: rig.health.is_ready)
            count = len(rig.posts)
            await until(lambda: len(rig.posts) > count + 100)
            x.feed.stop()
            await until(lambda: not x.feed.streams or len(rig.posts) == len({row.id for row in x.ledger.rows()}))
        (gap,) = rig.source.status()["gaps"]
    assert [post.id for post in rig.posts] == sorted({row.id for row in x.ledger.rows()})
    assert gap["backfill_minutes"] == 1
    assert gap["backfilled"] > 0
    assert gap["missed_estimate"] <= gap["backfilled"]
    assert rig.value("posts_backfilled_total") == gap["backfilled"]
    assert (rig.value("posts_duplicate_total") or 0) >= 100


@elastic_time
async def test_another_source_begins_anew(tmp_path: Path) -> None:
    """Gaps and rate are of the stream; the connects and the posts of the month are of the app."""
    async with x_api() as x:
        first = Rig(x, tmp_path)
        async with first.running():
            await until(lambda: len(first.posts) > 5)
        second = Rig(x, tmp_path, SOURCE="sample", RULES="")
        assert second.source.status()["gaps"] == []
        assert second.source.status()["connects_left"] == 19
        assert second.source.status()["month"]["posts"] == len(first.posts)


@elastic_time
async def test_without_a_journal_nothing_is_remembered() -> None:
    """The second run knows of no gap."""
    async with x_api() as x:
        first = Rig(x, None)
        async with first.running():
            await until(lambda: len(first.posts) > 5)
        assert Rig(x, None).source.status()["gaps"] == []


@elastic_time
async def test_new_rules_are_applied_without_a_new_connection(tmp_path: Path) -> None:
    """When the file changes, and at a signal."""
    file = tmp_path / "rules.yaml"
    file.write_text("- coffee\n", encoding="utf-8")
    async with x_api() as x:
        rig = Rig(x, tmp_path, RULES="", RULES_FILE=str(file))
        async with rig.running():
            await until(lambda: rig.health.is_ready)
            (before,) = rules_of(x)
            file.write_text("- coffee\n- value: tea\n  tag: leaves\n", encoding="utf-8")
            await until(lambda: len(x.rules) == 2)
            x.rules.change({"delete": {"values": ["tea"]}}, dry_run=False, delete_all=False)
            rig.source.reload()
            await until(lambda: len(x.rules) == 2)
        assert len(x.ledger.connections) == 1
    assert {rule["value"]: rule["tag"] for rule in rules_of(x)} == {"coffee": "millrace:", "tea": "millrace:leaves"}
    assert rules_of(x)[0] == before


@elastic_time
async def test_rules_that_somebody_else_has_deleted_come_back(tmp_path: Path) -> None:
    """As soon as X refuses to connect for want of them: those of MILLRACE_RULES, without a signal or a restart."""
    async with x_api() as x:
        rig = Rig(x, tmp_path)
        async with rig.running():
            await until(lambda: rig.health.is_ready)
            x.rules.change({"delete": {"values": ["coffee"]}}, dry_run=False, delete_all=False)
            x.faults.inject(Ending.FIN)
            await until(lambda: rig.value("stream_reconnects_total", reason="no_rules"))
            await until(lambda: rig.health.is_ready)
        assert rig.value("stream_reconnects_total", reason="no_rules") == 1
    assert [rule["value"] for rule in rules_of(x)] == ["coffee"]


@elastic_time
async def test_rules_that_x_refuses_later_do_not_end_it(tmp_path: Path) -> None:
    """The log has X's words, and the stream goes on."""
    file = tmp_path / "rules.yaml"
    file.write_text("- coffee\n", encoding="utf-8")
    async with x_api() as x:
        rig = Rig(x, tmp_path, RULES="", RULES_FILE=str(file))
        async with rig.running():
            await until(lambda: rig.health.is_ready)
            with capture_logs() as logs:
                file.write_text("- coffee\n- '-tea'\n", encoding="utf-8")
                await until(lambda: any(entry["event"] == "rules_refused" for entry in logs))
                file.write_text("nonsense: [\n", encoding="utf-8")
                await until(lambda: any(entry["event"] == "rules_not_read" for entry in logs))
            assert rig.health.is_ready
    assert [rule["value"] for rule in rules_of(x)] == ["coffee"]


@elastic_time
async def test_rules_that_x_refuses_at_the_start_end_it(tmp_path: Path) -> None:
    """There is nothing to carry yet, and an operator is there to read it."""
    async with x_api() as x:
        rig = Rig(x, tmp_path, RULES="-tea")
        with pytest.raises(RulesError, match="X refuses the rule '-tea'"):
            await asyncio.wait_for(rig.source.run(rig), SECONDS)


@elastic_time
async def test_rules_that_change_before_the_first_answer_of_x(tmp_path: Path) -> None:
    """Those of the file as it is then are applied, and a signal meanwhile does not say that there are none."""
    file = tmp_path / "rules.yaml"
    file.write_text("- coffee\n", encoding="utf-8")
    async with x_api() as x:
        rig = Rig(x, tmp_path, RULES="", RULES_FILE=str(file))
        file.write_text("- tea\n", encoding="utf-8")
        with capture_logs() as logs:
            rig.source.reload()
        async with rig.running():
            await until(lambda: rig.health.is_ready)
    assert logs == []
    assert [rule["value"] for rule in rules_of(x)] == ["tea"]


@elastic_time
async def test_rules_that_change_while_x_is_asked(tmp_path: Path) -> None:
    """What the file says when X answers the first question counts, though it was read before."""
    file = tmp_path / "rules.yaml"
    file.write_text("- coffee\n", encoding="utf-8")

    async def answer(connection: Connection) -> None:
        file.write_text("- value: tea\n  tag: leaves\n", encoding="utf-8")
        for _ in ("the list", "the dry run", "the addition"):
            await connection.answer(201, b"{}", "Content-Type: application/json")
            await connection.request()

    async with FakeX(answer) as fake, x_api() as x:
        rig = Rig(x, tmp_path, RULES="", RULES_FILE=str(file), X_URL=fake.url)
        async with rig.running():
            await until(lambda: sum(b"/rules" in request for request in fake.requests) == 2)


@elastic_time
async def test_a_file_without_rules_at_the_start_deletes_none(tmp_path: Path) -> None:
    """As later on: it is being written, or a mistake."""
    file = tmp_path / "rules.yaml"
    file.write_text("- coffee\n", encoding="utf-8")
    async with x_api() as x:
        rig = Rig(x, tmp_path, RULES="", RULES_FILE=str(file))
        file.write_text("[]\n", encoding="utf-8")
        async with rig.running():
            await until(lambda: rig.health.is_ready)
    assert [rule["value"] for rule in rules_of(x)] == ["coffee"]


@elastic_time
async def test_a_signal_where_there_are_no_rules(tmp_path: Path) -> None:
    """It is answered in the log, and does no harm."""
    async with x_api() as x:
        rig = Rig(x, tmp_path, SOURCE="sample", RULES="")
        with capture_logs() as logs:
            rig.source.reload()
    assert [entry["event"] for entry in logs] == ["nothing_to_reload"]


@elastic_time
async def test_the_budget_of_the_month_ends_the_connection(tmp_path: Path) -> None:
    """X is left, the state is clear, and a restart does not go on either."""
    async with x_api() as x:
        rig = Rig(x, tmp_path, MONTHLY_POSTS="50")
        async with rig.running():
            await until(lambda: rig.value("stream_reconnects_total", reason="budget_spent"))
            await until(lambda: not x.feed.streams)
        again = Rig(x, tmp_path, MONTHLY_POSTS="50")
        async with again.running():
            await until(lambda: again.value("stream_reconnects_total", reason="budget_spent"))
        checks: Any = again.health.report()["checks"]
        assert len(x.ledger.connections) == 1
        assert again.value("month_posts_budget") == 50
    assert 50 <= len(rig.posts) <= 60
    assert again.posts == []
    assert "MILLRACE_MONTHLY_POSTS allows 50" in str(rig.source.figures().trouble)
    assert checks["stream"]["ok"] is False


@elastic_time
async def test_our_own_ghost_is_ended(tmp_path: Path) -> None:
    """A slot that X still counts after an end that it did not see is freed by the id of the connection."""
    async with x_api(ghost_seconds=3600) as x:
        rig = Rig(x, tmp_path)
        rig.source._connections._settle_seconds = 0
        async with rig.running():
            await until(lambda: rig.source._connections.own)
            own = rig.source._connections.own
            x.faults.inject(Ending.RESET)
            await until(lambda: rig.value("stream_reconnects_total", reason="too_many_connections"))
            # What the stream does at the second refusal, five seconds later.
            assert await rig.source._connections.free(TOKEN)
            assert not x._gate.is_active(x.ledger.connections[0])
    assert own == x.ledger.connections[0].uuid


@elastic_time
async def test_a_token_that_is_set_is_taken_as_it_is() -> None:
    """X is not asked: nobody listens at the address that is given."""
    environ = {"MILLRACE_STREAM": "p", "MILLRACE_BEARER_TOKEN": "a-token", "MILLRACE_X_URL": "http://127.0.0.1:1"}
    assert await bearer(lambda: load(environ), Random(1)).get() == "a-token"


@elastic_time
async def test_a_token_in_a_file_is_read_again_when_x_refuses_it(tmp_path: Path) -> None:
    """A secret that was rotated needs no restart; while it is being written, the old one is tried on."""
    file = tmp_path / "token"
    file.write_text("revoked")
    async with x_api() as x:
        rig = Rig(x, None, BEARER_TOKEN="", BEARER_TOKEN_FILE=str(file), RULES="", SOURCE="sample")
        token = rig.source._token
        assert await token.get() == "revoked"
        file.write_text("")
        token.refused("revoked")
        with capture_logs() as logs:
            assert await token.get() == "revoked"
        assert [entry["event"] for entry in logs] == ["settings_not_read"]
        file.write_text(TOKEN)
        token.refused("revoked")
        async with rig.running():
            await until(lambda: rig.health.is_ready)
    assert rig.tokens == ["revoked", "revoked", TOKEN]


@elastic_time
async def test_a_rotated_token_costs_no_wait(tmp_path: Path) -> None:
    """X refuses the old one while the file has the new one: stream and rules go on with that at once."""
    file = tmp_path / "token"
    file.write_text("old")
    async with x_api(tokens=("old", "newer", "newest")) as x:
        rig = Rig(x, None, BEARER_TOKEN="", BEARER_TOKEN_FILE=str(file))
        async with rig.running():
            await until(lambda: rig.health.is_ready)
            file.write_text("newer")
            x.faults.inject("refuse", answer="unauthorized")
            x.faults.inject(Ending.FIN)
            await until(lambda: rig.value("stream_reconnects_total", reason="token_replaced"))
            await until(lambda: rig.health.is_ready)
            file.write_text("newest")
            x.faults.inject("refuse", answer="unauthorized", endpoint="rules")
            x.rules.change(None, dry_run=False, delete_all=True)
            rig.source.reload()
            await until(lambda: len(x.rules) == 1)
    assert rig.tokens == ["old", "newer", "newest"]
    assert rig.value("stream_reconnects_total", reason="unauthorized") == 0


@elastic_time
async def test_key_and_secret_are_exchanged_at_x(tmp_path: Path) -> None:
    """What X gives for them is the token, and is made known so that it stays out of the log."""
    async with x_api(keys="key:secret") as x:
        rig = Rig(x, tmp_path, BEARER_TOKEN="", API_KEY="key", API_KEY_SECRET="secret")
        async with rig.running():
            await until(lambda: rig.health.is_ready)
        assert rig.tokens == [TOKEN]
        wrong = Rig(x, tmp_path, BEARER_TOKEN="", API_KEY="key", API_KEY_SECRET="other")
        with pytest.raises(UnavailableError, match="403"):
            await bearer(lambda: load(wrong.environ), Random(1)).get()


@elastic_time
async def test_a_partition_is_part_of_the_request(tmp_path: Path) -> None:
    """And of what is remembered; the connects of the app are shared among all of them."""
    async with x_api() as x:
        rig = Rig(x, tmp_path, SOURCE="firehose", PARTITION="7", RULES="")
        status = rig.source.status()
        async with rig.running():
            await until(lambda: rig.source._stream)
            stream = rig.source._stream
            assert stream is not None
            assert stream._url == x.url + "/2/tweets/firehose/stream?partition=7"
    assert (status["name"], status["connects_left"]) == ("firehose 7", 1)


@elastic_time
async def test_a_clock_of_the_future_gives_no_connects(tmp_path: Path) -> None:
    """What was written down by a clock that ran ahead is as if it were written now."""
    async with x_api() as x:
        file = StateFile(tmp_path)
        kept = file.load()
        kept.source, kept.spare, kept.saved_at = "filtered", 3.0, time.time() + 10**6
        await file.save(kept)
        assert Rig(x, tmp_path).source.status()["connects_left"] == 3
