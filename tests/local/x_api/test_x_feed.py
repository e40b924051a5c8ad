import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import md5
from typing import Any

import aiohttp
import pytest

from local.posts import Post
from local.x_api.ledger import Row
from local.x_api.server import XApi
from local.x_api.settings import Settings, Untagged
from tests.elastic_loop import elastic_time

SAMPLE_PATH = "/2/tweets/sample/stream"
FILTERED_PATH = "/2/tweets/search/stream"


class Words:
    """A source whose posts hold one word each, in turn; the template is the place of the word."""

    def __init__(self, *words: str, takes_rules: bool = True) -> None:
        self.takes_rules = takes_rules
        self._words = words
        self._number = 0

    def take(self, now_ms: int) -> Post:
        place = self._number % len(self._words)
        self._number += 1
        line = json.dumps({"data": {"id": str(self._number), "text": self._words[place]}}).encode()
        return Post(str(self._number), "author", line, place, None)


@asynccontextmanager
async def opened(api: XApi, path: str, token: str = "t", **query: str) -> AsyncIterator[aiohttp.StreamReader]:
    """Connect and hand out what comes."""
    headers = {"authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(api.url, headers=headers) as http,
        http.get(path, params=query, raise_for_status=True) as response,
    ):
        yield response.content


@asynccontextmanager
async def reading(source: Words, **settings: Any) -> AsyncIterator[tuple[XApi, aiohttp.StreamReader]]:
    """Serve with a rule for water, and read the filtered stream."""
    async with XApi(source, Settings(**settings)) as api:
        add(api, {"value": "water"})
        async with opened(api, FILTERED_PATH) as stream:
            yield api, stream


async def read(stream: aiohttp.StreamReader, number: int) -> list[dict[str, Any]]:
    """Read some posts."""
    return [json.loads(await stream.readuntil(b"\r\n")) for _ in range(number)]


def add(api: XApi, *rules: dict[str, str]) -> list[str]:
    """Add rules and return their ids."""
    answer = api.rules.change({"add": list(rules)}, dry_run=False, delete_all=False)
    return [rule["id"] for rule in answer.body["data"]]


def states(api: XApi) -> list[tuple[str, str, int]]:
    """Return id, state and connection of each row."""
    return [(row.id, row.state, row.connection) for row in api.ledger.rows()]


async def test_line_names_all_rules_that_match() -> None:
    """One post, one line, with every matching rule; an untagged one has an empty tag."""
    source = Words("fast water", "dry land")
    async with XApi(source, Settings(rate=0, limit=2)) as api:
        water, fast, _ = add(api, {"value": "water", "tag": "wet"}, {"value": "fast"}, {"value": "fire"})
        async with opened(api, FILTERED_PATH) as stream:
            (post,) = await read(stream, 1)
            assert post["matching_rules"] == [{"id": water, "tag": "wet"}, {"id": fast, "tag": ""}]
            await api.feeding
            assert api.feed.unmatched == 1
            assert len(api.ledger) == 1


async def test_changed_rules_hold_for_open_streams() -> None:
    """A rule that is added or deleted needs no new connection."""
    async with reading(Words("water", "land"), rate=0) as (api, stream):
        assert (await read(stream, 1))[0]["data"]["text"] == "water"
        api.rules.change(None, dry_run=False, delete_all=True)
        (land,) = add(api, {"value": "land"})
        while (post := (await read(stream, 1))[0])["data"]["text"] == "water":
            pass
        assert post["matching_rules"] == [{"id": land, "tag": ""}]


async def test_match_all_needs_no_match() -> None:
    """Every post then matches every rule."""
    async with XApi(Words("land"), Settings(rate=0, limit=1, match_all=True)) as api:
        ids = add(api, {"value": "water"}, {"value": "fire"})
        async with opened(api, FILTERED_PATH) as stream:
            assert [rule["id"] for rule in (await read(stream, 1))[0]["matching_rules"]] == ids


@pytest.mark.parametrize("match_all", [True, False])
async def test_recorded_bytes_are_never_changed(match_all: bool) -> None:
    """A source that forbids it gets no matching rules into its lines."""
    source = Words("water", takes_rules=False)
    async with XApi(source, Settings(rate=0, limit=1, match_all=match_all)) as api:
        add(api, {"value": "water"})
        async with opened(api, FILTERED_PATH) as stream:
            assert await stream.readuntil(b"\r\n") == b'{"data": {"id": "1", "text": "water"}}\r\n'


async def test_sample_stream_takes_all_posts_without_rules() -> None:
    """It needs no rules and shows none."""
    async with XApi(Words("water", "land"), Settings(rate=0, limit=2)) as api, opened(api, SAMPLE_PATH) as stream:
        assert [set(post) for post in await read(stream, 2)] == [{"data"}, {"data"}]


async def test_each_connection_has_a_row_of_its_own() -> None:
    """Two tokens, two streams, both get the post; the ledger knows both."""
    async with XApi(Words("water"), Settings(rate=0)) as api:
        add(api, {"value": "water"})
        async with opened(api, FILTERED_PATH, "one") as first, opened(api, FILTERED_PATH, "two") as second:
            await api.feed.until(lambda: len(api.feed.streams) == 2)
            seen = {post["data"]["id"] for post in await read(second, 3)}
            for _ in seen:
                await read(first, 1)
            rows = [row for row in api.ledger.rows() if row.id in seen]
            assert {row.connection for row in rows} == {1, 2}
            assert len(rows) == 2 * len(seen)


async def test_nothing_falls_due_before_the_first_connection() -> None:
    """The first post that anybody could have is the first of the source."""
    async with reading(Words("water"), rate=1000) as (_, stream):
        assert (await read(stream, 1))[0]["data"]["id"] == "1"


async def test_posts_without_a_connection_are_unsent() -> None:
    """After the first connection the world goes on: what falls due while nobody listens is gone."""
    async with XApi(Words("water"), Settings(rate=1000)) as api:
        add(api, {"value": "water"})
        async with opened(api, FILTERED_PATH) as stream:
            await read(stream, 1)
        await api.feed.until(lambda: api.ledger.counts["unsent"] >= 10)
        rows = states(api)
        assert rows[0] == ("1", "written", 1)
        assert rows[-1] == (str(len(rows)), "unsent", 0)
        assert not any(state == "queued" for _, state, _ in rows)


async def test_reader_that_is_away_stops_the_source_with_rate_zero() -> None:
    """As fast as a client reads means: not at all without one."""
    async with XApi(Words("water"), Settings(rate=0, limit=100_000)) as api:
        add(api, {"value": "water"})
        async with opened(api, FILTERED_PATH) as stream:
            await read(stream, 1)
        await api.feed.until(lambda: not api.feed.streams)
        assert api.ledger.counts["unsent"] == 0
        assert not api.feed.exhausted


async def test_orderly_end_loses_nothing_with_rate_zero() -> None:
    """What was given is written before the end, and nothing more is given until somebody connects again."""
    async with XApi(Words("water"), Settings(rate=0, limit=20_000)) as api:
        add(api, {"value": "water"})
        for _ in range(3):
            async with opened(api, FILTERED_PATH) as stream:
                await read(stream, 1)
                api.faults.inject("last_chunk")
                await stream.read()
        await api.feed.until(lambda: not api.feed.streams)
        assert {row.state for row in api.ledger.rows()} == {"written"}


async def test_rate_is_kept() -> None:
    """Two hundred posts a second take a quarter of a second for fifty."""
    async with reading(Words("water"), rate=200, limit=50) as (_, stream):
        begun = asyncio.get_running_loop().time()
        await read(stream, 50)
        assert 0.2 < asyncio.get_running_loop().time() - begun < 10


async def test_rate_can_be_changed_and_stopped() -> None:
    """A new rate counts from its own beginning; after a stop nothing falls due."""
    async with reading(Words("water"), rate=0.001) as (api, stream):
        await api.feed.until(lambda: api.feed.streams)
        api.feed.set_rate(5000)
        await read(stream, 10)
        api.feed.stop()
        await api.feeding
        await api.feed.until(lambda: api.ledger.counts["queued"] == 0)
        assert api.feed.exhausted


async def test_ledger_says_what_was_on_the_line() -> None:
    """The digest is that of the line as it was sent, with its rules."""
    async with reading(Words("water"), rate=0, limit=1) as (api, stream):
        line = (await stream.readuntil(b"\r\n")).removesuffix(b"\r\n")
        await api.feed.until(lambda: api.ledger.counts["written"])
        assert list(api.ledger.rows()) == [Row("1", "author", md5(line).hexdigest(), "written", 1)]


@pytest.mark.parametrize(
    ("untagged", "shown"),
    [(Untagged.EMPTY, {"tag": ""}), (Untagged.NULL, {"tag": None}), (Untagged.ABSENT, {})],
)
async def test_a_rule_without_a_tag_is_shown_in_all_ways_that_were_seen(
    untagged: Untagged, shown: dict[str, str | None]
) -> None:
    """An empty tag, null, or no tag at all."""
    async with XApi(Words("water"), Settings(rate=0, limit=1, untagged=untagged)) as api:
        (rule,) = add(api, {"value": "water"})
        async with opened(api, FILTERED_PATH) as stream:
            assert (await read(stream, 1))[0]["matching_rules"] == [{"id": rule, **shown}]


@elastic_time
async def test_changed_rules_take_their_time() -> None:
    """The list shows them at once, the streams after the delay."""
    async with XApi(Words("water", "land"), Settings(rate=10, rule_delay=20)) as api:
        add(api, {"value": "water"})
        api.clock.advance(20)
        async with opened(api, FILTERED_PATH) as stream:
            await read(stream, 1)
            add(api, {"value": "land"})
            changed = asyncio.get_running_loop().time()
            assert len(api.rules) == 2
            while (await read(stream, 1))[0]["data"]["text"] != "land":
                pass
            assert 19 < asyncio.get_running_loop().time() - changed < 21


@elastic_time
async def test_backfill_brings_the_past_first() -> None:
    """All of the last minutes in their order, delivered already or not, and then the live posts."""
    async with XApi(Words("water"), Settings(rate=1, enterprise=True)) as api:
        add(api, {"value": "water"})
        async with opened(api, FILTERED_PATH) as stream:
            await read(stream, 90)
        await api.feed.until(lambda: api.ledger.counts["unsent"] == 60)
        async with opened(api, FILTERED_PATH, backfill_minutes="2") as stream:
            ids = [int(post["data"]["id"]) for post in await read(stream, 130)]
        assert 29 <= ids[0] <= 32
        assert ids == list(range(ids[0], ids[0] + 130))
        rows = [row for row in api.ledger.rows() if row.id == "100"]
        assert [(row.state, row.connection) for row in rows] == [("unsent", 0), ("written", 2)]


@elastic_time
async def test_backfill_keeps_the_rules_of_its_time() -> None:
    """A rule that was added later does not match what was before."""
    async with XApi(Words("water", "land"), Settings(rate=1, enterprise=True)) as api:
        add(api, {"value": "water"})
        async with opened(api, FILTERED_PATH) as stream:
            await read(stream, 10)
        add(api, {"value": "land"})
        async with opened(api, FILTERED_PATH, backfill_minutes="1") as stream:
            assert {post["data"]["text"] for post in await read(stream, 10)} == {"water"}


@elastic_time
async def test_recovery_replays_a_range_and_ends() -> None:
    """Two at a time beside the live stream, and each closes when it is done."""

    def moment(seconds: float) -> str:
        return datetime.fromtimestamp(began + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    async with XApi(Words("water"), Settings(rate=1, enterprise=True)) as api:
        add(api, {"value": "water"})
        async with opened(api, FILTERED_PATH) as stream:
            began = api.clock.now()
            await read(stream, 100)
            wanted = {"start_time": moment(20), "end_time": moment(50)}
            async with opened(api, FILTERED_PATH, **wanted) as past:
                lines = (await past.read()).split(b"\r\n")
            ids = [int(json.loads(line)["data"]["id"]) for line in lines if line]
            assert 19 <= ids[0] <= 22
            assert 48 <= ids[-1] <= 51
            assert ids == list(range(ids[0], ids[-1] + 1))
            await read(stream, 1)
        assert [record.ending for record in api.ledger.connections] == ["open", "last_chunk"]


@elastic_time
async def test_recoveries_are_two_at_a_time() -> None:
    """A third one is one connection too many; the live stream does not count."""
    async with reading(Words("water"), rate=1, enterprise=True) as (api, stream):
        began = api.clock.now()
        await read(stream, 100)
        api.faults.inject("layout", layout="bytes")
        times = [datetime.fromtimestamp(began + s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for s in (1, 99)]
        query = dict(zip(("start_time", "end_time"), times, strict=True))
        headers = {"authorization": "Bearer t"}
        async with (
            aiohttp.ClientSession(api.url, headers=headers) as http,
            http.get(FILTERED_PATH, params=query) as first,
            http.get(FILTERED_PATH, params=query) as second,
            http.get(FILTERED_PATH, params=query) as third,
        ):
            assert [first.status, second.status, third.status] == [200, 200, 429]


@elastic_time
async def test_partitions_share_the_posts_out() -> None:
    """Disjoint, and together all of them."""
    path = "/2/tweets/sample10/stream"
    async with (
        XApi(Words("water"), Settings(rate=100, limit=200)) as api,
        opened(api, path, partition="1") as first,
        opened(api, path, partition="2") as second,
    ):
        await api.feed.until(lambda: api.feed.exhausted and not api.ledger.counts["queued"])
        counts = [record.written for record in api.ledger.connections]
        ids = [
            int(post["data"]["id"]) for s, n in zip((first, second), counts, strict=True) for post in await read(s, n)
        ]
        missed = {int(row.id) for row in api.ledger.rows() if row.state == "unsent"}
        assert min(counts) > 50
        assert sorted(ids) == sorted(set(range(1, 201)) - missed)


@elastic_time
async def test_posts_can_come_late_and_twice() -> None:
    """Each connection has its own order, all posts come, and some of them again; the ledger has a row for each."""
    settings = Settings(rate=50, limit=300, disorder=4, duplicates=0.1, connections=2)
    async with XApi(Words("water"), settings) as api:
        add(api, {"value": "water"})
        async with opened(api, FILTERED_PATH) as first, opened(api, FILTERED_PATH) as second:
            await api.feed.until(lambda: api.feed.exhausted and not api.ledger.counts["queued"])
            counts = [record.written for record in api.ledger.connections]
            one = [int(post["data"]["id"]) for post in await read(first, counts[0])]
            other = [int(post["data"]["id"]) for post in await read(second, counts[1])]
        assert one != other
        for ids in (one, other):
            assert ids != sorted(ids)
            assert set(range(10, 301)) <= set(ids)
            assert 10 < len(ids) - len(set(ids)) < 60
        assert sum(counts) == len(api.ledger) - api.ledger.counts["unsent"]


@elastic_time
async def test_what_is_over_the_delivery_cap_is_unsent() -> None:
    """Two hundred and fifty a second, and no more."""
    async with XApi(Words("water"), Settings(rate=1000, limit=5000, delivery_cap=250)) as api:
        add(api, {"value": "water"})
        async with opened(api, FILTERED_PATH):
            await api.feed.until(lambda: api.feed.exhausted and not api.ledger.counts["queued"])
        assert 1240 < api.ledger.counts["written"] < 1600
        assert {row.connection for row in api.ledger.rows() if row.state == "unsent"} == {1}


@elastic_time
async def test_rate_can_spike() -> None:
    """Twenty-five times the posts for a second, then as before."""
    async with reading(Words("water"), rate=10) as (api, stream):
        await read(stream, 10)
        api.faults.inject("spike", seconds=1, factor=25)
        began = asyncio.get_running_loop().time()
        await read(stream, 240)
        assert asyncio.get_running_loop().time() - began < 1.1
        await read(stream, 30)
        assert 2 < asyncio.get_running_loop().time() - began < 5
        assert api.feed.rate == 10


async def test_a_post_can_be_large_and_hold_a_key_that_nobody_knows() -> None:
    """More than a mebibyte, in the ledger like any other."""
    async with XApi(Words("water"), Settings(rate=0, limit=2)) as api:
        add(api, {"value": "water"})
        api.faults.inject("enlarge", bytes=1_100_000)
        async with opened(api, FILTERED_PATH) as stream:
            lines = [await stream.readuntil(b"\r\n", max_size=2_000_000) for _ in range(2)]
        assert [len(line) > 1_100_000 for line in lines] == [True, False]
        assert {"data", "matching_rules", "enlarged"} == json.loads(lines[0]).keys()
