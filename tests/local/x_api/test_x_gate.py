import asyncio
import json
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pytest

from local.x_api.answers import REFUSALS
from tests.elastic_loop import elastic_time
from tests.local.x_api.serving import serving

PATH = "/2/tweets/search/stream"
SAMPLE_PATH = "/2/tweets/sample/stream"
RULES_PATH = "/2/tweets/search/stream/rules"


async def answer(http: aiohttp.ClientSession, path: str = PATH, **request: Any) -> tuple[int, str]:
    """Ask once and return status and body; a stream that opens is left at once."""
    async with http.get(path, **request) as response:
        return response.status, "" if response.status == 200 else await response.text()


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer bad", "Basic good"])
async def test_wrong_token_is_401(header: str) -> None:
    """Only the tokens that were named open anything."""
    async with serving(tokens=["good"]) as (api, http):
        assert await answer(http, headers={"authorization": header}) == REFUSALS["unauthorized"][:2]
        assert api.refused == {"unauthorized": 1}


async def test_without_named_tokens_any_is_good() -> None:
    """A stand-in that was told nothing asks for a token, whichever it be."""
    async with serving() as (_, http):
        assert (await answer(http))[0] == 200
        assert (await answer(http, headers={"authorization": ""}))[0] == 401


async def test_zero_rules_is_409() -> None:
    """The filtered stream needs rules, the sample stream does not."""
    async with serving() as (api, http):
        api.rules.change(None, dry_run=False, delete_all=True)
        assert await answer(http) == REFUSALS["no_rules"][:2]
        assert (await answer(http, SAMPLE_PATH))[0] == 200


async def test_second_connection_of_a_token_is_429() -> None:
    """One connection for each token and endpoint; the slot is free when it ends."""
    async with serving() as (api, http):
        async with http.get(PATH) as first:
            assert first.status == 200
            assert await answer(http) == REFUSALS["too_many_connections"][:2]
            assert (await answer(http, headers={"authorization": "Bearer other"}))[0] == 200
            assert (await answer(http, SAMPLE_PATH))[0] == 200
        await api.feed.until(lambda: not api.feed.streams)
        assert (await answer(http))[0] == 200


async def test_redundant_connections_are_a_setting() -> None:
    """Enterprise has more than one."""
    async with serving(connections=2) as (_, http), http.get(PATH) as first, http.get(PATH) as second:
        assert (first.status, second.status) == (200, 200)
        assert (await answer(http))[0] == 429


async def test_a_newer_connection_can_replace_the_older_one() -> None:
    """As one page of X's documentation has it: the old stream ends, the new one is open."""
    async with serving(replaces=True) as (api, http), http.get(PATH) as first, http.get(PATH) as second:
        assert (first.status, second.status) == (200, 200)
        with pytest.raises(aiohttp.ClientPayloadError):
            await first.read()
        assert [record.ending for record in api.ledger.connections] == ["replaced", "open"]


async def test_ghost_keeps_the_slot_of_a_lost_connection() -> None:
    """After an end that X cannot see the slot stays taken for the time that was set, and is free again then."""
    async with serving(ghost_seconds=60) as (api, http):
        async with http.get(PATH):
            pass
        await api.feed.until(lambda: not api.feed.streams)
        assert await answer(http) == REFUSALS["too_many_connections"][:2]
        api.clock.advance(61)
        assert (await answer(http))[0] == 200


async def test_clean_end_leaves_no_ghost() -> None:
    """What X itself ended is over."""
    async with serving(ghost_seconds=60) as (api, http):
        async with http.get(PATH) as response:
            await api.feed.until(lambda: api.feed.streams)
            api.faults.inject("last_chunk")
            assert await response.read() == b""
        await api.feed.until(lambda: not api.feed.streams)
        assert (await answer(http))[0] == 200


async def test_connects_are_limited_and_counted_down() -> None:
    """Refused ones count too; over the limit comes the plain 429 with its reset."""
    async with serving(connects=3, window_seconds=900) as (api, http):
        remaining = []
        async with http.get(PATH) as response:
            remaining.append(response.headers["x-rate-limit-remaining"])
            for _ in range(2):
                async with http.get(PATH) as refused:
                    remaining.append(refused.headers["x-rate-limit-remaining"])
            async with http.get(PATH) as refused:
                assert (refused.status, await refused.text()) == REFUSALS["rate_limit"][:2]
                assert 890 < int(refused.headers["x-rate-limit-reset"]) - time.time() < 902
                assert refused.headers["x-rate-limit-limit"] == "3"
        assert remaining == ["2", "1", "0"]
        assert api.refused == {"too_many_connections": 2, "rate_limit": 1}


async def test_refused_connects_can_be_for_free() -> None:
    """Whether X counts them is not known, so both are there."""
    async with serving(connects=2, counts_refused=False) as (api, http):
        api.faults.inject("refuse", answer="service_unavailable", times=5)
        assert [(await answer(http))[0] for _ in range(7)] == [503] * 5 + [200, 200]
        assert (await answer(http))[0] == 429


@elastic_time
async def test_window_is_a_quarter_of_an_hour() -> None:
    """And the date of the answers agrees with the reset, however X's time was moved."""
    async with serving(connects=1) as (api, http):
        assert (await answer(http))[0] == 200
        async with http.get(PATH) as refused:
            date = parsedate_to_datetime(refused.headers["date"]).timestamp()
            assert 898 <= int(refused.headers["x-rate-limit-reset"]) - date <= 901
        api.clock.advance(901)
        assert (await answer(http))[0] == 200


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ({"tweet.fields": "created_at,nonsense"}, "tweet.fields"),
        ({"expansions": "authors"}, "expansions"),
        ({"nonsense": "1"}, "nonsense"),
        ({"backfill_minutes": "6"}, "backfill_minutes"),
        ({"backfill_minutes": "5"}, "backfill_minutes"),
        ({"start_time": "2026-01-01T00:00:00Z"}, "start_time"),
        ({"start_time": "yesterday"}, "start_time"),
        ({"partition": "1"}, "partition"),
    ],
)
async def test_bad_parameters_are_400_and_named(query: dict[str, str], parameter: str) -> None:
    """The answer says which parameter and which value X does not take."""
    async with serving() as (_, http):
        status, body = await answer(http, params=query)
        assert status == 400
        assert json.loads(body)["errors"][0]["parameters"] == {parameter: [query[parameter]]}


async def test_backfill_without_access_can_be_403() -> None:
    """Which of the two X gives is not known."""
    async with serving(forbids_backfill=True) as (_, http):
        assert await answer(http, params={"backfill_minutes": "1"}) == REFUSALS["client_forbidden"][:2]
        assert (await answer(http, params={"nonsense": "1"}))[0] == 400


@pytest.mark.parametrize(
    ("start", "end"), [(-100, None), (None, -1), (-10, -20), (-25 * 3600, -60), (-24 * 3600 - 60, -10)]
)
async def test_recovery_wants_a_range_within_a_day(start: int | None, end: int | None) -> None:
    """Both ends, in their order, not further back."""
    async with serving(enterprise=True) as (api, http):
        now = api.clock.now()
        query = {
            name: datetime.fromtimestamp(now + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            for name, seconds in (("start_time", start), ("end_time", end))
            if seconds is not None
        }
        assert (await answer(http, params=query))[0] == 400


@pytest.mark.parametrize("value", [None, "0", "3", "x"])
async def test_partition_is_needed_and_has_a_range(value: str | None) -> None:
    """A volume stream without its partition is 400, and so is one that is not there."""
    async with serving() as (_, http):
        query = {} if value is None else {"partition": value}
        status, body = await answer(http, "/2/tweets/sample10/stream", params=query)
        assert status == 400
        assert json.loads(body)["errors"][0]["parameters"] == {"partition": [value or ""]}


async def test_each_partition_has_a_connection_of_its_own() -> None:
    """One connection serves one partition."""
    path = "/2/tweets/sample10/stream"
    async with serving() as (_, http), http.get(path, params={"partition": "1"}) as first:
        assert first.status == 200
        assert (await answer(http, path, params={"partition": "2"}))[0] == 200
        assert (await answer(http, path, params={"partition": "1"}))[0] == 429


async def test_known_fields_are_taken() -> None:
    """What tweepy and the daemon ask for is valid."""
    query = {
        "tweet.fields": "author_id,created_at,lang,note_tweet",
        "expansions": "author_id,referenced_tweets.id",
        "user.fields": "username",
        "backfill_minutes": "0",
    }
    async with serving() as (_, http):
        assert (await answer(http, params=query))[0] == 200


async def test_usage_cap_ends_streams_and_closes_the_door() -> None:
    """At the cap comes the announced end, and from then on the refusal."""
    async with serving(rate=1000, limit=None, usage_cap=5) as (api, http):
        async with http.get(PATH) as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        await api.feed.until(lambda: not api.feed.streams)
        assert api.ledger.connections[0].ending == "operational_disconnect"
        assert await answer(http) == REFUSALS["usage_cap"][:2]


async def test_rules_have_limits_of_their_own() -> None:
    """A hundred changes in a window, then 429; reading has another limit."""
    async with serving() as (_, http):
        for _ in range(100):
            async with http.post(RULES_PATH, json={"add": [{"value": "water"}]}) as response:
                assert response.status == 200
        async with http.post(RULES_PATH, json={"add": [{"value": "water"}]}) as response:
            assert response.status == 429
        assert (await answer(http, RULES_PATH))[0] == 200


@pytest.mark.parametrize("name", list(REFUSALS))
async def test_every_refusal_can_be_asked_for(name: str) -> None:
    """It comes as often as asked, then the request is answered as usual."""
    async with serving() as (api, http):
        api.faults.inject("refuse", answer=name, times=2)
        for _ in range(2):
            async with http.get(PATH, allow_redirects=False) as response:
                assert (response.status, await response.text()) == REFUSALS[name][:2]
                assert response.content_type == REFUSALS[name].content_type.partition(";")[0]
                assert response.headers.get("location", "") == REFUSALS[name].location
        assert (await answer(http))[0] == 200
        assert api.refused == {name: 2}


async def test_refusals_of_rules_are_asked_for_apart() -> None:
    """Faults of the rules endpoint do not touch the stream."""
    async with serving() as (api, http):
        api.faults.inject("refuse", answer="service_unavailable", endpoint="rules")
        assert (await answer(http))[0] == 200
        assert (await answer(http, RULES_PATH))[0] == 503


async def test_request_can_stay_without_an_answer() -> None:
    """`hang` takes the request and says nothing; it ends with the client's patience."""
    async with serving() as (api, http):
        api.faults.inject("refuse", answer="hang")
        with pytest.raises(TimeoutError):
            await answer(http, timeout=aiohttp.ClientTimeout(total=0.1))
        assert api.refused == {"hang": 1}


@elastic_time
async def test_body_of_a_refusal_can_hang() -> None:
    """Half of it comes, and then nothing."""
    async with serving() as (api, http):
        api.faults.inject("refuse", answer="service_unavailable", hanging=True)
        async with http.get(PATH) as response:
            assert response.status == 503
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(60):
                    await response.read()


async def test_request_can_be_dropped() -> None:
    """`drop` closes the connection instead of answering."""
    async with serving() as (api, http):
        api.faults.inject("refuse", answer="drop", times=0)
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await answer(http)
        api.faults.inject("clear")
        assert (await answer(http))[0] == 200
