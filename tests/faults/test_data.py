"""What the posts are and which of them come. Rows 15 to 18 of the checklist of faults."""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from local.posts import Recorded
from local.x_api.answers import REFUSALS
from service.core.limits import LINE_BYTES, MIB
from service.core.reconnect import Reason
from service.core.records import DropReason
from tests.elastic_loop import elastic_time
from tests.faults.rig import TOKEN, carried

RECORDED = Path(os.environ.get("MILLRACE_TEST_POSTS", "../shared/data/x/posts.jsonl"))


@elastic_time
async def test_lines_that_are_no_posts_are_counted_by_kind(tmp_path: Path) -> None:
    """Not JSON, no id, errors alone, an event of another stream: each a dead letter, and the stream goes on."""
    async with carried(tmp_path, rate=50) as rig:
        await rig.received(10)
        for line in (
            "this is not JSON",
            '{"data":{"text":"no id"}}',
            REFUSALS["usage_cap"].body.join(('{"errors":[', "]}")),
            '{"data":{"delete":{"tweet":{"id":"1","author_id":"2"},"event_at":"2022-12-23T12:34:56.789Z"}}}',
            '{"connection_metadata":{"dc":"somewhere"}}',
        ):
            rig.x.faults.inject("line", line=line)
        await rig.received(20)
        found = {reason: rig.dropped(reason) for reason in DropReason if rig.dropped(reason)}
        assert found == {DropReason.NOT_JSON: 1, DropReason.NO_ID: 3, DropReason.X_ERROR: 1}
        assert len(rig.letters()) == 5
    assert len(rig.x.ledger.connections) == 1


@elastic_time
async def test_what_is_too_large_is_put_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    """A post of more than a record of Kinesis takes is a dead letter; of one over the line's limit the head is."""
    async with carried(tmp_path, rate=50) as rig:
        await rig.received(10)
        rig.x.faults.inject("enlarge", bytes=600_000)
        rig.x.faults.inject("enlarge", bytes=MIB + 1000)
        await rig.until(lambda: rig.dropped(DropReason.POST_TOO_LARGE))
        rig.x.faults.inject("enlarge", bytes=LINE_BYTES + 1000)
        await rig.until(lambda: rig.dropped(DropReason.LINE_TOO_LONG))
        await rig.received(20)
    assert rig.result.put_aside == {DropReason.POST_TOO_LARGE.value: 1}
    assert len(rig.x.ledger.connections) == 1


@pytest.mark.skipif(not RECORDED.exists() and not os.environ.get("CI"), reason="there are no recorded posts here")
@elastic_time
async def test_recorded_posts_arrive_byte_for_byte(tmp_path: Path) -> None:
    """An archive of real posts, all that it holds and some again with new ids."""
    posts = Recorded(RECORDED)
    async with carried(tmp_path, source=posts, rate=500, limit=len(posts) + 100, match_all=True) as rig:
        await rig.until(lambda: rig.x.feed.exhausted)
    assert rig.result.missed == 0
    assert rig.dropped(DropReason.NO_ID) == 0


@elastic_time
async def test_posts_out_of_order_and_twice(tmp_path: Path) -> None:
    """They are carried as they come; what came twice is counted and left out."""
    async with carried(tmp_path, rate=200, disorder=5, duplicates=0.2) as rig:
        await rig.received(500)
        await rig.until(lambda: rig.duplicates > 50)
    assert rig.result.missed == 0
    assert rig.result.repeated == 0


@elastic_time
async def test_a_spike_of_twenty_five_times_the_rate(tmp_path: Path) -> None:
    """The second of a record: all of it arrives."""
    async with carried(tmp_path, rate=80) as rig:
        await rig.received(80)
        rig.x.faults.inject("spike", seconds=1, factor=25)
        await rig.received(2000)
    assert rig.result.missed == 0


@elastic_time
async def test_what_x_does_not_deliver_over_its_cap_is_not_lost_here(tmp_path: Path) -> None:
    """At 250 posts a second the rest is X's to keep."""
    async with carried(tmp_path, rate=500, delivery_cap=250) as rig:
        await rig.received(750)
    assert rig.result.missed > 250
    assert len(rig.x.ledger.connections) == 1


@elastic_time
async def test_backfill_closes_the_gap(tmp_path: Path) -> None:
    """Away for 100 seconds: two minutes are asked for, repeats are left out, and nothing is missed."""
    async with carried(tmp_path, rate=5, enterprise=True) as rig:
        await rig.received(50)
        rig.x.faults.inject("closed", seconds=100)
        rig.x.faults.inject("fin")
        await rig.reconnected(Reason.CUT)
        first, second = rig.x.ledger.connections
        assert second.connected_at - (first.disconnected_at or 0) > 99
        assert second.backfill_minutes in {2, 3}
        await rig.until(lambda: rig.duplicates)
    assert rig.result.missed == 0
    assert rig.result.repeated == 0


@elastic_time
async def test_a_gap_longer_than_backfill_is_told(tmp_path: Path) -> None:
    """Five minutes come back; what lay before is counted as missed, and the gap says how much."""
    async with carried(tmp_path, rate=3, enterprise=True) as rig:
        await rig.received(90)
        rig.x.faults.inject("closed", seconds=480)
        rig.x.faults.inject("fin")
        await rig.reconnected(Reason.CUT)
        assert rig.source is not None
        await asyncio.sleep(10)
        figures = rig.source.figures()
        assert rig.x.ledger.connections[1].backfill_minutes == 5
    assert rig.result.missed == pytest.approx(3 * (figures.gap_seconds - 300), abs=60)
    assert figures.posts_missed == pytest.approx(rig.result.missed, rel=0.2), figures


@elastic_time
async def test_two_daemons_for_redundancy(tmp_path: Path) -> None:
    """Enterprise may connect twice: both carry the posts, and when one is cut the other has them."""
    off = {"MILLRACE_BACKFILL": "off"}
    async with (
        carried(tmp_path, rate=100, connections=2, settings=off, ordered=False) as rig,
        rig.another(tmp_path / "two") as other,
    ):
        await other.received(50)
        rig.x.faults.inject("closed", seconds=5)
        rig.x.faults.inject("fin", connection=1)
        await rig.reconnected(Reason.CUT)
        await other.received(20)
    assert rig.result.missed == 0
    assert rig.result.repeated > 50


@elastic_time
async def test_each_partition_has_a_daemon(tmp_path: Path) -> None:
    """Two of the 10 % sample: disjoint, and together all posts that fell due while both were there."""
    settings = {"MILLRACE_SOURCE": "sample10", "MILLRACE_PARTITION": "1", "MILLRACE_RULES": ""}
    async with (
        carried(tmp_path, rate=100, settings=settings, ordered=False) as rig,
        rig.another(tmp_path / "two", MILLRACE_PARTITION="2") as other,
    ):
        await other.received(100)
        await rig.received(100)
        assert rig.duplicates == other.duplicates == 0
    assert rig.result.repeated == 0
    assert {record.partition for record in rig.x.ledger.connections} == {1, 2}


@elastic_time
async def test_connections_and_usage_agree_with_the_daemon(tmp_path: Path) -> None:
    """X's list says why each connection ended, and its usage how many posts were delivered."""
    async with carried(tmp_path, rate=100, enterprise=True) as rig:
        await rig.received(50)
        rig.x.faults.inject("reset")
        await rig.reconnected(Reason.CUT)
        rig.x.feed.stop()
        await rig.until(lambda: not rig.x.ledger.counts["queued"])
        async with aiohttp.ClientSession(rig.x.url, headers={"authorization": f"Bearer {TOKEN}"}) as http:
            async with http.get("/2/connections", params={"status": "inactive"}) as answer:
                ended = (await answer.json())["data"]
            async with http.get("/2/usage/tweets") as answer:
                usage = (await answer.json())["data"]
        await rig.until(lambda: rig.arrived >= rig.x.ledger.counts["written"])
        assert [one["disconnect_reason"] for one in ended] == ["reset"]
        assert datetime.fromisoformat(ended[0]["disconnected_at"]).tzinfo is UTC
        assert int(usage["project_usage"]) == rig.x.ledger.counts["written"]
