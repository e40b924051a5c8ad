"""What X answers to a connect. Rows 11 and 12 of the checklist of faults."""

import asyncio
from pathlib import Path

import pytest

from local.x_api.server import XApi
from service.core.reconnect import Reason
from tests.elastic_loop import elastic_time
from tests.faults.rig import carried

NO_BACKFILL = {"MILLRACE_BACKFILL": "off"}
# How each answer is to be understood, and for how long it may keep the daemon away, in seconds.
ANSWERS = {
    "invalid_request": (Reason.BAD_REQUEST, 66),
    "unauthorized": (Reason.UNAUTHORIZED, 66),
    "credits_depleted": (Reason.PAYMENT_REQUIRED, 66),
    "client_forbidden": (Reason.FORBIDDEN, 66),
    "no_rules": (Reason.NO_RULES, 5),
    "too_many_connections": (Reason.TOO_MANY_CONNECTIONS, 6),
    "rate_limit": (Reason.RATE_LIMITED, 992),
    "rate_limit_code_88": (Reason.RATE_LIMITED, 992),
    "usage_cap": (Reason.USAGE_CAPPED, 66),
    "usage_cap_daily": (Reason.USAGE_CAPPED, 66),
    "provisioning": (Reason.PROVISIONING, 66),
    "redirect": (Reason.REDIRECT, 66),
    "internal_error": (Reason.SERVER_ERROR, 5),
    "bad_gateway_html": (Reason.SERVER_ERROR, 5),
    "service_unavailable": (Reason.SERVER_ERROR, 5),
    "service_unavailable_html": (Reason.SERVER_ERROR, 5),
    "gateway_timeout": (Reason.SERVER_ERROR, 5),
}


@pytest.mark.parametrize("answer", list(ANSWERS))
@elastic_time
async def test_each_answer_is_understood_and_outlived(tmp_path: Path, answer: str) -> None:
    """By its body, not its status; when X answers 200 again, posts come again."""
    reason, longest = ANSWERS[answer]
    async with carried(tmp_path, rate=0.5, settings=NO_BACKFILL) as rig:
        await rig.received(5)
        rig.x.faults.inject("refuse", answer=answer)
        rig.x.faults.inject("fin")
        await rig.until(lambda: len(rig.x.ledger.connections) == 2)
        assert rig.reconnects(reason) == 1
        first, second = rig.x.ledger.connections
        assert second.connected_at - (first.disconnected_at or 0) < longest + 1
        await rig.received(5)
        assert rig.x.refused == {answer: 1}


@pytest.mark.parametrize("answer", ["unauthorized", "bad_gateway_html", "too_many_connections"])
@elastic_time
async def test_a_body_that_hangs_is_not_waited_for(tmp_path: Path, answer: str) -> None:
    """After some seconds the status alone has to do."""
    async with carried(tmp_path, rate=0.5, settings=NO_BACKFILL) as rig:
        await rig.received(5)
        rig.x.faults.inject("refuse", answer=answer, hanging=True)
        rig.x.faults.inject("fin")
        await rig.until(lambda: len(rig.x.ledger.connections) == 2)
        await rig.received(5)
        assert rig.x.refused == {answer: 1}


@pytest.mark.parametrize("counts", [True, False], ids=["refused_count", "refused_are_free"])
@elastic_time
async def test_the_limit_of_connects_is_never_met(tmp_path: Path, counts: bool) -> None:
    """Half an hour in which most connects fail: X's 50 in a quarter of an hour suffice, whatever X counts."""
    async with carried(tmp_path, rate=0.1, counts_refused=counts, settings=NO_BACKFILL) as rig:
        await rig.received(5)
        for answer in ("service_unavailable", "bad_gateway_html", "drop", "too_many_connections"):
            rig.x.faults.inject("refuse", answer=answer, every=60)
        rig.x.faults.inject("fin", every=10)
        await asyncio.sleep(1800)
        rig.x.faults.inject("clear")
        await rig.received(5)
        assert len(rig.x.ledger.connections) + rig.x.refused.total() > 20
        assert not rig.x.refused["rate_limit"]


@elastic_time
async def test_the_reset_of_a_rate_limit_is_honoured(tmp_path: Path) -> None:
    """A limit that was used up by somebody else: no try before its end, and none long after."""
    async with carried(tmp_path, rate=0.5, connects=1, window_seconds=600, settings=NO_BACKFILL) as rig:
        await rig.received(5)
        rig.x.faults.inject("fin")
        await rig.until(lambda: len(rig.x.ledger.connections) == 2)
        await rig.received(5)
        assert rig.x.refused["rate_limit"] == 1
        first, second = rig.x.ledger.connections
        assert 599 < second.connected_at - first.connected_at < 665


@elastic_time
async def test_rules_that_are_gone_at_x_come_back(tmp_path: Path) -> None:
    """Somebody deletes all rules at X: the first answer that says so brings ours back, and the stream with them."""
    async with carried(tmp_path, rate=5) as rig:
        await rig.received(5)
        rig.x.rules.change(None, dry_run=False, delete_all=True)
        rig.x.faults.inject("fin")
        await rig.until(lambda: rig.reconnects(Reason.NO_RULES))
        await rig.received(5)
        assert rig.reconnects(Reason.NO_RULES) == 1


@elastic_time
async def test_at_the_usage_cap_it_waits_and_says_so(tmp_path: Path) -> None:
    """X ends the stream at the cap and refuses it from then on; everything that was delivered is in Kinesis."""
    async with carried(tmp_path, rate=50, usage_cap=300, settings=NO_BACKFILL) as rig:
        await rig.received(300)
        rig.x.feed.set_rate(1)
        await rig.until(lambda: rig.reconnects(Reason.USAGE_CAPPED) >= 2)
        assert not rig.health.is_ready
        assert "UsageCapExceeded" in str(rig.health.report())
        assert rig.arrived >= 300


@elastic_time
async def test_the_own_budget_ends_the_stream_before_x_does(tmp_path: Path) -> None:
    """MILLRACE_MONTHLY_POSTS is counted, and the connection closed; what came is in Kinesis."""
    async with carried(tmp_path, rate=50, settings={"MILLRACE_MONTHLY_POSTS": "300"}) as rig:
        await rig.until(lambda: rig.reconnects(Reason.BUDGET_SPENT))
        rig.x.feed.set_rate(1)
        await asyncio.sleep(300)
        assert len(rig.x.ledger.connections) == 1
        assert 300 <= rig.arrived < 400


@pytest.mark.parametrize("forbids", [False, True], ids=["400", "403"])
@elastic_time
async def test_a_refused_backfill_is_learnt(tmp_path: Path, forbids: bool) -> None:
    """Asked for once, and then not again."""
    async with carried(tmp_path, rate=20, forbids_backfill=forbids) as rig:
        await rig.received(5)
        for number in range(1, 4):
            rig.x.faults.inject("fin")
            await rig.reconnected(Reason.CUT, number)
        assert rig.reconnects(Reason.BACKFILL_REFUSED) == 1


async def lose_the_token(x: XApi) -> None:
    """Have X refuse the first request for a token's rules."""
    x.faults.inject("refuse", answer="unauthorized", endpoint="rules", times=2)


@elastic_time
async def test_a_token_that_x_refuses_at_the_start_is_tried_again(tmp_path: Path) -> None:
    """Slowly, and shown meanwhile; when X takes it the stream begins."""
    async with carried(tmp_path, rate=20, before=lose_the_token) as rig:
        await rig.until(lambda: rig.reconnects(Reason.UNAUTHORIZED))
        assert not rig.health.is_ready
        await rig.received(20)
        assert rig.reconnects(Reason.UNAUTHORIZED) == 2
