"""How a connection ends. Rows 8 to 10 of the checklist of faults."""

import asyncio
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest

from local.x_api.answers import DISCONNECT_TYPES
from local.x_api.endings import MID_BLOCK, MID_LINE, Ending
from service.core.reconnect import Reason
from service.core.records import DropReason
from tests.elastic_loop import elastic_time
from tests.faults.rig import TOKEN, carried

REASONS = {
    Ending.LAST_CHUNK: Reason.CLEAN_CLOSE,
    Ending.LAST_CHUNK_MID_LINE: Reason.CLEAN_CLOSE,
    Ending.LAST_CHUNK_MID_BLOCK: Reason.CLEAN_CLOSE,
    Ending.FIN: Reason.CUT,
    Ending.FIN_MID_LINE: Reason.CUT,
    Ending.FIN_MID_BLOCK: Reason.CUT,
    Ending.CUT: Reason.CUT,
    Ending.RESET: Reason.CUT,
}


@pytest.mark.parametrize("gzip", [True, False], ids=["gzip", "identity"])
@pytest.mark.parametrize("ending", list(REASONS))
@elastic_time
async def test_every_complete_line_before_the_end_arrives(tmp_path: Path, ending: Ending, gzip: bool) -> None:
    """With the last chunk or without, mid-line, mid-block or by a reset: a cut line is counted, none other is lost."""
    async with carried(tmp_path, gzip=gzip, rate=1000, enterprise=True) as rig:
        for number in (1, 2):
            await rig.received(50)
            rig.x.faults.inject(ending)
            await rig.reconnected(REASONS[ending], number)
        cut = rig.dropped(DropReason.LINE_CUT)
        # Half of the compressed bytes of a short line may be none of its text.
        assert cut <= 2 if gzip and ending in MID_BLOCK else cut == (2 if ending in MID_LINE else 0)
    assert [record.ending for record in rig.x.ledger.connections] == [ending] * 2 + [Ending.CLIENT]
    assert rig.result.missed == 0


@pytest.mark.parametrize("kind", DISCONNECT_TYPES)
@elastic_time
async def test_an_announced_end_is_told_in_the_words_of_x(tmp_path: Path, kind: str) -> None:
    """The line is counted as a message, not as a post, and it is the reason."""
    async with carried(tmp_path, rate=100, enterprise=True) as rig:
        await rig.received(20)
        rig.x.faults.inject("operational_disconnect", disconnect_type=kind)
        await rig.reconnected(Reason.OPERATIONAL_DISCONNECT)
        assert rig.dropped(DropReason.X_ERROR) == 1
    assert rig.result.missed == 0


@elastic_time
async def test_an_end_that_was_to_be_announced_may_not_be(tmp_path: Path) -> None:
    """Without the line it is a connection that broke."""
    async with carried(tmp_path, rate=100, enterprise=True) as rig:
        await rig.received(20)
        rig.x.faults.inject("operational_disconnect", told=False)
        await rig.reconnected(Reason.CUT)
    assert rig.result.missed == 0


@elastic_time
async def test_a_drop_every_five_minutes(tmp_path: Path) -> None:
    """Each is cured by an immediate reconnect, and X's limit of connects is not met."""
    async with carried(tmp_path, rate=0.1, enterprise=True) as rig:
        await rig.received(5)
        rig.x.faults.inject("fin", every=300)
        await asyncio.sleep(1550)
        rig.x.faults.inject("clear")
        assert rig.reconnects(Reason.CUT) == 5
        for before, after in pairwise(rig.x.ledger.connections):
            assert after.connected_at - (before.disconnected_at or 0) < 1
    assert rig.result.missed == 0


@pytest.mark.parametrize("told", [True, False])
@elastic_time
async def test_a_slow_reader_loses_what_waited_at_x(tmp_path: Path, told: bool) -> None:
    """X discards its queue: with backfill it all comes again, and what came twice is counted."""
    async with carried(tmp_path, rate=100, enterprise=True) as rig:
        await rig.received(50)
        rig.x.faults.inject("stall", seconds=20)
        await asyncio.sleep(5)
        rig.x.faults.inject("slow_reader", told=told)
        await rig.reconnected(Reason.OPERATIONAL_DISCONNECT if told else Reason.CUT)
        assert rig.x.ledger.connections[0].discarded > 400
        assert rig.duplicates >= 50
    assert rig.result.missed == 0


@elastic_time
async def test_a_ghost_of_our_own_is_ended(tmp_path: Path) -> None:
    """X still counts the connection that broke: it is ended through the Connections API, and the stream goes on."""
    async with carried(tmp_path, rate=5, ghost_seconds=3600, enterprise=True) as rig:
        await rig.received(20)
        # So that X has told the daemon which connection is its own.
        await asyncio.sleep(30)
        rig.x.faults.inject("fin")
        await rig.reconnected(Reason.TOO_MANY_CONNECTIONS)
        ended, began = (record.connected_at for record in rig.x.ledger.connections)
        assert began - ended < 60
    assert rig.result.missed == 0


@elastic_time
async def test_a_connection_of_somebody_else_is_not_ended(tmp_path: Path) -> None:
    """The slot is waited for, however long it takes; the other's stream lives on."""
    async with carried(tmp_path, rate=5) as rig:
        await rig.received(20)
        headers = {"authorization": f"Bearer {TOKEN}"}
        rig.x.faults.inject("refuse", answer="drop", times=1)
        rig.x.faults.inject("fin")
        await rig.until(lambda: not rig.x.feed.streams)
        async with aiohttp.ClientSession(rig.x.url, headers=headers) as http:
            async with http.get("/2/tweets/search/stream") as other:
                assert other.status == 200
                rig.others.add(2)
                await rig.until(lambda: rig.reconnects(Reason.TOO_MANY_CONNECTIONS) >= 3)
                assert rig.x.ledger.connections[1].ending == "open"
            await rig.received(20)


@elastic_time
async def test_an_operator_at_x_can_end_the_connection(tmp_path: Path) -> None:
    """Killed through the Connections API, it comes back."""
    async with carried(tmp_path, rate=100, enterprise=True) as rig:
        await rig.received(20)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with (
            aiohttp.ClientSession(rig.x.url, headers=headers) as http,
            http.delete("/2/connections/all") as answer,
        ):
            assert answer.status == 200
        await rig.reconnected(Reason.CUT)
        assert rig.x.ledger.connections[0].ending == Ending.KILLED
    assert rig.result.missed == 0
