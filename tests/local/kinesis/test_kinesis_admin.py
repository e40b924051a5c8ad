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
    async def test_a_fault_for_all_streams_and_its_end(
        self, kinesis: LocalKinesis, http: aiohttp.ClientSession
    ) -> None:
        """It is in force until DELETE."""
        streams = kinesis.account.streams.values()
        async with http.post("/admin/faults", json={"kind": "slow", "milliseconds": 5}):
            assert [stream.faults.begin("PutRecords", NOW).delay for stream in streams] == [0.005, 0.005]
        async with http.delete("/admin/faults"):
            assert [stream.faults.begin("PutRecords", NOW).delay for stream in streams] == [0, 0]

    @pytest.mark.parametrize("body", [b'{"kind": "unheard"}', b"no json"])
    async def test_a_wrong_order_is_refused(self, kinesis: LocalKinesis, body: bytes) -> None:
        """What cannot be done is not silently left out."""
        async with aiohttp.ClientSession(kinesis.url) as session, session.post("/admin/faults", data=body) as response:
            assert response.status == 400


class TestLedger:
    async def test_each_shard_is_counted(self, kinesis: LocalKinesis, http: aiohttp.ClientSession) -> None:
        """What a shard took, refused, and has forgotten."""
        stream = kinesis.stream("posts")
        last = Entry(b"", "k", str(2**128 - 1))
        stream.faults.add(ThrottleShard(shard=1), NOW)
        plan = stream.faults.begin("PutRecords", NOW)
        stream.put([Entry(b"one", "k", "0"), Entry(b"two", "k", "0"), last], NOW, plan)
        stream.trim_oldest()
        async with http.get("/admin/ledger?stream=posts") as response:
            first, second = (await response.json())["shards"]
        counts = {"accepted": 2, "bytes": 8, "throttled": 0, "failed": 0, "trimmed": 1}
        assert first == first | {"shard": 0, "open": True, "parents": []} | counts
        assert second == second | {"shard": 1, "accepted": 0, "throttled": 1, "ending_hash_key": str(2**128 - 1)}

    async def test_records_come_in_pages_and_in_order(self, kinesis: LocalKinesis, http: aiohttp.ClientSession) -> None:
        """Following `next` gives each record once; offsets count forgotten ones too."""
        stream = kinesis.stream("other")
        for number in range(7):
            stream.put([Entry(bytes([number]) * 1_000_000, f"k{number}", str(number))], NOW + number)
        stream.trim_oldest()
        offset: int | None = 0
        pages = []
        while offset is not None:
            async with http.get(f"/admin/ledger?stream=other&shard=0&offset={offset}") as response:
                pages.append(await response.json())
            offset = pages[-1]["next"]
        assert [(len(page["records"]), page["next"]) for page in pages] == [(5, 6), (1, None)]
        records = [record for page in pages for record in page["records"]]
        assert [b64decode(record.pop("data"))[0] for record in records] == [1, 2, 3, 4, 5, 6]
        assert records[0] == {
            "sequence_number": stream.sequence_number(3, 0),
            "partition_key": "k1",
            "explicit_hash_key": "1",
        }

    @pytest.mark.parametrize(
        ("query", "status"),
        [("", 404), ("?stream=unknown", 404), ("?stream=posts&shard=9", 404), ("?stream=posts&shard=x", 400)],
    )
    async def test_what_is_not_there(self, kinesis: LocalKinesis, query: str, status: int) -> None:
        """No stream, no such stream, no such shard, no number."""
        async with aiohttp.ClientSession(kinesis.url) as session, session.get(f"/admin/ledger{query}") as response:
            assert response.status == status


async def test_statistics_of_all_streams(kinesis: LocalKinesis, http: aiohttp.ClientSession) -> None:
    """Refusals by code, records by stream."""
    kinesis.stream("posts").put([Entry(b"one", "k")], NOW)
    async with aiohttp.ClientSession() as stranger, stranger.post(kinesis.url) as response:
        assert response.status == 400
    async with http.get("/admin/stats") as response:
        stats = await response.json()
    assert stats["refused"] == {"UnknownOperationException": 1}
    assert {name: counts["accepted"] for name, counts in stats["streams"].items()} == {"posts": 1, "other": 0}


async def test_health(http: aiohttp.ClientSession) -> None:
    """A server that answers is well."""
    async with http.get("/healthz") as response:
        assert await response.json() == {"status": "ok"}
