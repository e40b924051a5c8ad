"""Whether anything comes at all: keep-alives, stalls, trickles, doors. Rows 6 and 7 of the checklist of faults."""

import asyncio
from pathlib import Path

import pytest

from service.core.reconnect import Reason
from tests.elastic_loop import elastic_time
from tests.faults.rig import carried


@elastic_time
async def test_a_quiet_stream_is_left_alone(tmp_path: Path) -> None:
    """Ten minutes of keep-alives alone, each after 20 s and a little, are no reason to connect again."""
    async with carried(tmp_path, rate=0.0001) as rig:
        await asyncio.sleep(600)
        assert rig.x.stats()["keep_alives"] > 25
        rig.x.feed.set_rate(200)
        await rig.received(20)
    assert len(rig.x.ledger.connections) == 1


@elastic_time
async def test_one_late_keep_alive_is_forgiven_and_silence_is_not(tmp_path: Path) -> None:
    """Thirty seconds without a byte end the connection, and the posts that waited at X are missed, not lost here."""
    async with carried(tmp_path, rate=5) as rig:
        await rig.received(20)
        rig.x.faults.inject("stall", seconds=25)
        await rig.received(5 * 25)
        assert len(rig.x.ledger.connections) == 1
        rig.x.faults.inject("stall", seconds=300)
        await rig.reconnected(Reason.STALL)
    assert rig.result.missed > 5 * 25


@elastic_time
async def test_missed_keep_alives_end_a_quiet_connection(tmp_path: Path) -> None:
    """A stream that has nothing to say and does not say so is dead."""
    async with carried(tmp_path, limit=50) as rig:
        await rig.received(50)
        rig.x.faults.inject("missed_beats", beats=3)
        await rig.until(lambda: rig.reconnects(Reason.STALL))
        await rig.until(lambda: len(rig.x.feed.streams) == 1)


@elastic_time
async def test_keep_alives_alone_for_a_while_cost_nothing(tmp_path: Path) -> None:
    """Posts that X holds back come when it lets them go."""
    async with carried(tmp_path, rate=5) as rig:
        await rig.received(20)
        rig.x.faults.inject("silence", seconds=45)
        await rig.received(5 * 45)
    assert rig.result.missed == 0
    assert len(rig.x.ledger.connections) == 1


@elastic_time
async def test_alive_but_empty_is_noticed(tmp_path: Path) -> None:
    """Keep-alives go on and posts do not, though there should be some: a new connection brings them."""
    async with carried(tmp_path, rate=5) as rig:
        await rig.received(50)
        rig.x.faults.inject("empty")
        await rig.reconnected(Reason.EMPTY)
    assert rig.result.missed > 0


@elastic_time
async def test_a_trickle_is_read_as_it_comes(tmp_path: Path) -> None:
    """A few bytes a second are a sign of life; the lines are whole when they are there."""
    async with carried(tmp_path, rate=2) as rig:
        await rig.received(5)
        rig.x.faults.inject("trickle", seconds=60, bytes=7)
        await asyncio.sleep(60)
        await rig.received(60)
    assert rig.result.missed == 0
    assert len(rig.x.ledger.connections) == 1


@pytest.mark.parametrize("answer", ["hang", "drop"])
@elastic_time
async def test_a_request_without_an_answer_is_given_up(tmp_path: Path, answer: str) -> None:
    """No headers, or an end instead of them: counted, and tried again."""
    async with carried(tmp_path, rate=5, enterprise=True) as rig:
        await rig.received(20)
        rig.x.faults.inject("refuse", answer=answer, times=3)
        rig.x.faults.inject("fin")
        await rig.reconnected(Reason.NETWORK_ERROR, 3)
        assert rig.x.refused == {answer: 3}


@pytest.mark.parametrize("kind", ["closed", "black_hole"])
@elastic_time
async def test_an_address_that_lets_nobody_in_is_tried_again(tmp_path: Path, kind: str) -> None:
    """Refused by the system, or swallowed by the network: the gap ends when the door opens."""
    async with carried(tmp_path, rate=5, enterprise=True) as rig:
        await rig.received(20)
        rig.x.faults.inject(kind, seconds=60)
        rig.x.faults.inject("fin")
        await rig.reconnected(Reason.NETWORK_ERROR, 2)
        # At the longest a wait of the ladder and one of the connect budget.
        ended, began = (record.connected_at for record in rig.x.ledger.connections)
        assert began - ended < 60 + 16 + 31
    assert rig.result.missed == 0
