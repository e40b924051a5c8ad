import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.admin import Health
from service.core.board import Board
from service.core.gaps import Kept
from service.core.reconnect import Reason
from service.core.records import Post
from service.core.spend import Spend
from service.metrics import Metrics, new_registry
from service.watch import Watch

# 2026-11-25, 22:00 UTC.
NOW = 1_795_644_000.0


def posts(*numbers: int) -> list[Post]:
    """Make posts of this moment with different ids."""
    return [Post(b"{}", str((int((NOW - 1288834974.657) * 1000) << 22) + number), b"k", 0.0) for number in numbers]


class Rig:
    """A watch over real metrics and a real readiness, with a clock that stands still."""

    def __init__(self, kept: Kept | None = None, budget: int | None = None, *, backfill: bool = True) -> None:
        self.now = NOW
        self.saves = 0
        self.registry = new_registry()
        self.health = Health(["stream"], lambda: 0.0)
        self.metrics = Metrics(self.registry)
        self.board = Board({}, shows_posts=False)
        kept = kept or Kept()
        self.watch = Watch(
            kept,
            Spend(budget, kept.month, kept.posts),
            backfill=backfill,
            metrics=self.metrics,
            health=self.health,
            board=self.board,
            save=self._save,
            clock=lambda: self.now,
        )

    async def _save(self) -> None:
        self.saves += 1

    def value(self, name: str, **labels: str) -> float | None:
        """Read a metric."""
        return self.registry.get_sample_value(f"millrace_{name}", labels)

    def events(self) -> list[str]:
        """Say what the live page has noted."""
        events: Any = self.board.frame(self.metrics.look())["events"]
        return [event["text"] for event in events]

    def reason(self) -> str:
        """Say why the stream is not ready; empty if it is."""
        checks = self.health.report()["checks"]
        assert isinstance(checks, dict)
        return str(checks["stream"]["reason"])

    def lose(self, reason: Reason = Reason.CUT, *, healable: bool = True) -> None:
        """Lose the connection, or fail to get one."""
        self.watch.disconnected(reason, "what X said", 1.2345, healable)


def test_a_connection_is_told_to_everybody() -> None:
    """Metrics, readiness, live page and log agree, from the first connection on."""
    rig = Rig()
    with capture_logs() as logs:
        rig.watch.connected(0)
    assert rig.health.is_ready
    assert rig.value("stream_connected") == 1
    assert rig.events() == ["connected"]
    assert logs == [{"event": "stream_connected", "log_level": "info"}]


@pytest.mark.parametrize(
    ("reason", "healable", "level"), [(Reason.STALL, True, "info"), (Reason.UNAUTHORIZED, False, "error")]
)
def test_a_lost_connection_is_told_with_its_reason(reason: Reason, healable: bool, level: str) -> None:
    """What heals by itself is no error in the log; what an operator must mend is."""
    rig = Rig()
    rig.watch.connected(0)
    with capture_logs() as logs:
        rig.lose(reason, healable=healable)
    assert not rig.health.is_ready
    assert rig.reason() == f"{reason}: what X said"
    assert rig.events() == ["connected", f"{reason}: what X said"]
    assert rig.value("stream_connected") == 0
    assert rig.value("stream_reconnects_total", reason=reason) == 1
    (entry,) = logs
    assert (entry["event"], entry["log_level"]) == ("stream_disconnected", level)
    assert (entry["reason"], entry["detail"], entry["retry_seconds"]) == (reason, "what X said", 1.23)


def test_what_somebody_must_act_on_is_known_until_it_is_over() -> None:
    """The words of X stay for metrics and /status; a later fault that heals by itself, or a connection, ends them."""
    rig = Rig()
    rig.lose(Reason.PAYMENT_REQUIRED, healable=False)
    assert rig.watch.trouble == ("payment_required", "what X said")
    assert rig.watch.status()["needs_operator"] == {"reason": "payment_required", "detail": "what X said"}
    rig.lose(Reason.SERVER_ERROR)
    assert rig.watch.trouble == ("", "")
    rig.lose(Reason.PAYMENT_REQUIRED, healable=False)
    rig.watch.connected(0)
    assert rig.watch.trouble == ("", "")
    assert rig.watch.status()["needs_operator"] is None


def test_a_keep_alive_is_a_sign_of_life() -> None:
    """The metrics are told."""
    rig = Rig()
    assert rig.value("stream_signal_timestamp_seconds") == 0
    rig.watch.keep_alive()
    assert (rig.value("stream_signal_timestamp_seconds") or 0) > 0


def test_each_connect_is_written_down_before_it_is_made() -> None:
    """So that a process that dies in it does not forget it."""
    rig = Rig()
    asyncio.run(rig.watch.connecting())
    assert rig.saves == 1


def test_repeats_are_left_out_and_counted() -> None:
    """Those that came before do not go on, and do not count against the budget."""
    rig = Rig()
    rig.watch.connected(0)
    assert rig.watch.sift(posts(1, 2)) == posts(1, 2)
    assert rig.watch.sift(posts(2, 3)) == posts(3)
    assert rig.value("posts_duplicate_total") == 1
    assert rig.watch.spend.posts == 3


def test_what_had_no_room_may_come_again() -> None:
    """A post that was dropped is no repeat when backfill brings it."""
    rig = Rig()
    rig.watch.connected(0)
    rig.watch.sift(posts(1, 2))
    rig.watch.forget(posts(2))
    assert rig.watch.sift(posts(1, 2)) == posts(2)


def test_a_gap_is_told_when_it_is_over() -> None:
    """Its length and what it cost, by the rate before."""
    rig = Rig()
    rig.watch.connected(0)
    for _ in range(100):
        rig.now += 1
        rig.watch.sift(posts(*range(int(rig.now) * 10, int(rig.now) * 10 + 10)))
    rig.lose()
    rig.now += 30
    assert rig.watch.gap_seconds() == 30
    with capture_logs() as logs:
        rig.watch.connected(0)
    assert logs == [{"event": "stream_connected", "log_level": "info", "gap_seconds": 30.0, "posts_missed": 300}]
    assert rig.events()[-1] == "connected after 30 s"
    (gap,) = rig.watch.status()["gaps"]
    assert gap == {
        "from": "2026-11-25T22:01:40Z",
        "until": "2026-11-25T22:02:10Z",
        "seconds": 30.0,
        "reason": "cut",
        "failed_tries": 0,
        "backfill_minutes": 0,
        "backfilled": 0,
        "missed_estimate": 300,
    }


@pytest.mark.parametrize(("reason", "since"), [(Reason.CUT, 100), (Reason.STALL, 60), (Reason.EMPTY, 20)])
def test_where_a_gap_begins(reason: Reason, since: int) -> None:
    """At the drop; if it was only noticed, at the last sign of life; if only keep-alives came, at the last post."""
    rig = Rig()
    rig.watch.connected(0)
    rig.now = NOW + 20
    rig.watch.sift(posts(1))
    rig.now = NOW + 60
    rig.watch.keep_alive()
    rig.now = NOW + 100
    rig.lose(reason)
    assert rig.watch.gaps.entries[-1].since == NOW + since


def test_backfill_is_asked_for_unless_it_is_off() -> None:
    """The setting decides, then what X has answered."""
    on, off = Rig(Kept(heard_at=NOW - 90)), Rig(Kept(heard_at=NOW - 90), backfill=False)
    assert (on.watch.backfill_minutes(), off.watch.backfill_minutes()) == (2, 0)
    with capture_logs() as logs:
        on.watch.backfill_refused()
    assert logs[0]["event"] == "backfill_refused"
    assert on.watch.backfill_minutes() == 0
    assert [rig.watch.status()["backfill"] for rig in (on, off)] == ["refused", "off"]


def test_the_budget_ends_the_connection() -> None:
    """A warning at nine tenths, once; at the last post an objection until the month is over, in plain words."""
    rig = Rig(budget=10)
    rig.watch.connected(0)
    rig.watch.sift(posts(*range(8)))
    with capture_logs() as logs:
        rig.watch.look()
        rig.watch.sift(posts(8))
        rig.watch.look()
        rig.watch.look()
    assert [entry["event"] for entry in logs] == ["budget_nearly_spent"]
    assert rig.watch.objection() is None
    rig.watch.sift(posts(9, 10))
    objection = rig.watch.objection()
    assert objection is not None
    assert objection.reason is Reason.BUDGET_SPENT
    assert objection.words == (
        "11 posts have come this month, and MILLRACE_MONTHLY_POSTS allows 10; nothing more is read before"
        " 2026-12-01T00:00:00Z"
    )
    assert objection.wait == 5 * 86_400 + 2 * 3600
    rig.lose(Reason.BUDGET_SPENT, healable=False)
    rig.now += objection.wait
    assert rig.watch.objection() is None


def test_a_connection_without_posts_is_objected_to() -> None:
    """Keep-alives for a minute, where 20 posts were to be expected."""
    rig = Rig()
    rig.watch.connected(0)
    for _ in range(100):
        rig.now += 1
        rig.watch.sift(posts(int(rig.now)))
    rig.now += 59
    assert rig.watch.objection() is None
    rig.now += 1
    objection = rig.watch.objection()
    assert objection is not None
    assert (objection.reason, objection.wait) == (Reason.EMPTY, None)
    rig.watch.rules_changed()
    assert rig.watch.objection() is None


def test_what_is_kept_is_taken_up_again() -> None:
    """The next run knows of the gap before it, of the rate and of the month."""
    rig = Rig()
    rig.watch.connected(0)
    rig.now += 10
    rig.watch.sift(posts(*range(100)))
    rig.watch.stopped()
    kept = Kept()
    rig.watch.keep(kept)
    assert (kept.month, kept.posts, kept.heard_at) == ("2026-11", 100, NOW + 10)
    again = Rig(kept)
    again.now = NOW + 70
    with capture_logs() as logs:
        again.watch.connected(2)
    expected: dict[str, Any] = {"gap_seconds": 60.0, "posts_missed": 605, "backfill_minutes": 2}
    assert logs == [{"event": "stream_connected", "log_level": "info", **expected}]
    assert again.watch.gaps.entries[-1].reason == "restart"
    assert again.watch.spend.posts == 100
