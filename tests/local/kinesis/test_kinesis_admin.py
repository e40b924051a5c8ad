from base64 import b64decode
from collections.abc import AsyncIterator

import aiohttp
import pytest

from local.kinesis.faults import ThrottleShard
from local.kinesis.limits import Entry
from local.kinesis.server import LocalKinesis

NOW = 1_800_000_000.0


@pytest.fixture
async def kinesis() -> AsyncIterator[LocalKinesis]:
    """Run a server with two streams and a clock that stands still."""
    async with LocalKinesis({"posts": 2, "other": 1}, clock=lambda: NOW) as server:
        yield server


@pytest.fixture
async def http(kinesis: LocalKinesis) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a client to it."""
    async with aiohttp.ClientSession(kinesis.url, raise_for_status=True) as session:
        yield session


class TestFaults:
    async def test_one_fault_for_one_stream(self, kinesis: LocalKinesis, http: aiohttp.ClientSession) -> None:
        """A fault named for a stream leaves the others alone, and can be seen."""
        fault = {"kind": "throttle_shard", "shard": 1, "seconds": 5}
        async with http.post("/admin/faults?stream=posts", json=fault) as response:
            (shown,) = (await response.json())["posts"]
        assert fault.items() <= shown.items()
        assert kinesis.stream("posts").faults.active(NOW) == [ThrottleShard(shard=1, seconds=5)]
        assert kinesis.stream("other").faults.active(NOW) == []

    async def test_a_list_for_all_streams_and_its_end(self, kinesis: LocalKinesis, http: aiohttp.ClientSession) -> None:
        """Several faults at once, and all of them gone after DELETE."""
        faults = [{"kind": "drop", "requests": 1}, {"kind": "slow", "milliseconds": 5}]
        async with http.post("/admin/faults", json=faults) as response:
            assert [len(active) for active in (await response.json()).values()] == [2, 2]
        async with http.delete("/admin/faults") as response:
            assert await response.json() == {"ended": 4}
        async with http.get("/admin/faults") as response:
            assert await response.json() == {"posts": [], "other": []}
        assert kinesis.stream("posts").faults.active(NOW) == []

    @pytest.mark.parametrize(
        ("path", "body", "status"),
        [
            ("/admin/faults", b'{"kind": "unheard"}', 400),
            ("/admin/faults", b"no json", 400),
            ("/admin/faults?stream=unknown", b'{"kind": "drop"}', 404),
        ],
    )
    async def test_a_wrong_order_is_refused(self, kinesis: LocalKinesis, path: str, body: bytes, status: int) -> None:
        """What cannot be done is not silently left out."""
        async with aiohttp.ClientSession(kinesis.url) as session, session.post(path, data=body) as response:
            assert response.status == status
        assert kinesis.stream("posts").faults.active(NOW) == []


class TestLedger:
    async def test_each_shard_is_counted(self, kinesis: LocalKinesis, http: aiohttp.ClientSession) -> None:
        """What a shard took, refused, keeps and has forgotten unread."""
        stream = kinesis.stream("posts")
        stream.faults.add(ThrottleShard(shard=1), NOW)
        stream.put([Entry(b"one", "k", "0"), Entry(b"two", "k", "0"), Entry(b"", "k", str(2**128 - 1))], NOW)
        stream.trim_oldest()
        async with http.get("/admin/ledger?stream=posts") as response:
            ledger = await response.json()
        assert (ledger["accepted"], ledger["throttled_by_fault"], ledger["trimmed_unread"]) == (2, 1, 1)
        first, second = ledger["shards"]
        assert first == first | {"shard": 0, "open": True, "accepted": 2, "stored": 1, "trimmed": 1, "bytes": 8}
        assert second == second | {"shard": 1, "accepted": 0, "throttled_by_fault": 1, "parents": []}

    async def test_records_come_in_pages_and_in_order(self, kinesis: LocalKinesis, http: aiohttp.ClientSession) -> None:
        """Following `next` gives each record once; offsets count forgotten ones too."""
        stream = kinesis.stream("other")
        stream.put([Entry(bytes([number]), f"k{number}", str(number)) for number in range(7)], NOW)
        stream.trim_oldest()
        offset: int | None = 0
        pages = []
        while offset is not None:
            async with http.get(f"/admin/ledger?stream=other&shard=0&limit=3&offset={offset}") as response:
                pages.append(await response.json())
            offset = pages[-1]["next"]
        assert [(page["offset"], page["next"]) for page in pages] == [(1, 4), (4, None)]
        records = [record for page in pages for record in page["records"]]
        assert [b64decode(record["data"]) for record in records] == [bytes([number]) for number in range(1, 7)]
        assert records[0] == records[0] | {
            "sequence_number": stream.sequence_number(3, 0),
            "partition_key": "k1",
            "explicit_hash_key": "1",
            "arrival": NOW,
            "size": 3,
        }

    @pytest.mark.parametrize(
        ("query", "status"),
        [("", 400), ("?stream=unknown", 404), ("?stream=posts&shard=9", 404), ("?stream=posts&shard=x", 400)],
    )
    async def test_what_is_not_there(self, kinesis: LocalKinesis, query: str, status: int) -> None:
        """No stream, no such stream, no such shard, no number."""
        async with aiohttp.ClientSession(kinesis.url) as session, session.get(f"/admin/ledger{query}") as response:
            assert response.status == status


async def test_statistics_of_all_streams(kinesis: LocalKinesis, http: aiohttp.ClientSession) -> None:
    """Requests by operation, refusals by code, records by stream."""
    kinesis.stream("posts").put([Entry(b"one", "k")], NOW)
    async with aiohttp.ClientSession() as stranger, stranger.post(kinesis.url) as response:
        assert response.status == 400
    async with http.get("/admin/stats") as response:
        stats = await response.json()
    assert stats["refused"] == {"UnknownOperationException": 1}
    assert (stats["requests"], stats["injected"]) == ({}, {})
    assert {name: counts["accepted"] for name, counts in stats["streams"].items()} == {"posts": 1, "other": 0}


async def test_health(http: aiohttp.ClientSession) -> None:
    """A server that answers is well."""
    async with http.get("/healthz") as response:
        assert await response.json() == {"status": "ok"}
