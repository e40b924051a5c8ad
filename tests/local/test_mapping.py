"""The mapping at work: real asyncio, a stream in memory, a function that answers as it is told."""

import asyncio
import base64
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from local.mapping import EventSource
from local.worker import Answer
from tests.local.memory_stream import SETTINGS, Events, Stream, mapped


class Handler:
    """A function that keeps what it gets by shard, and does with a batch what it is told: fail, report, wait."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.done: dict[str, list[str]] = defaultdict(list)
        self.batches: list[list[str]] = []
        self.poison: set[str] = set()
        self.reported: set[str] = set()
        self.gates: dict[str, asyncio.Event] = {}

    async def invoke(self, event: bytes) -> Answer:
        records = json.loads(event)["Records"]
        texts = [base64.b64decode(record["kinesis"]["data"]).decode() for record in records]
        shard = records[0]["eventID"].partition(":")[0]
        self.batches.append(texts)
        await self.events.tell()
        for gate in [self.gates[text] for text in texts if text in self.gates]:
            await gate.wait()
        if self.poison.intersection(texts):
            return Answer("a-request", error="ValueError: poison")
        bad = [place for place, text in enumerate(texts) if text in self.reported]
        self.done[shard] += texts[: bad[0]] if bad else texts
        await self.events.tell()
        numbers = [records[place]["kinesis"]["sequenceNumber"] for place in bad]
        return Answer("a-request", {"batchItemFailures": [{"itemIdentifier": number} for number in numbers]})


class House:
    """An event source over a stream and a handler, in a directory of its own."""

    def __init__(self, stream: Stream, directory: Path) -> None:
        self.stream = stream
        self.handler = Handler(stream.events)
        self.until = stream.events.until
        self.directory = directory
        self.lines: list[str] = []
        self.source: EventSource | None = None

    @asynccontextmanager
    async def running(self, **changes: Any) -> AsyncIterator[EventSource]:
        """Run until the block ends, then let it stop in good order."""
        arguments = {
            "settings": replace(SETTINGS, **{"batch_size": 10, "retry_attempts": 1} | changes),
            "failures": self.directory / "failures",
            "log": self.lines.append,
        }
        async with mapped(self.stream, self.handler, **arguments) as source:
            self.source = source
            yield source

    def given_up(self) -> list[dict[str, Any]]:
        files = sorted(path for path in (self.directory / "failures").rglob("*") if path.is_file())
        return [json.loads(path.read_text()) for path in files]


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Two shards, nothing in them."""
    return House(Stream("shardId-0", "shardId-1"), tmp_path)


class TestDelivery:
    async def test_every_shard_in_order(self, house: House) -> None:
        """What was in the stream before, and what comes later, reaches the function in the order of each shard."""
        house.stream.put("shardId-0", "a", "b")
        async with house.running():
            await house.until(lambda: len(house.handler.done["shardId-0"]) == 2)
            house.stream.put("shardId-1", "c", "d")
            house.stream.put("shardId-0", "e")
            await house.until(lambda: sum(map(len, house.handler.done.values())) == 5)
        assert house.handler.done == {"shardId-0": ["a", "b", "e"], "shardId-1": ["c", "d"]}

    async def test_latest(self, house: House) -> None:
        """A mapping that begins at LATEST leaves out what is there already, but nothing of shards that come later."""
        house.stream.put("shardId-0", "old")
        async with house.running(starting_position="LATEST"):
            await house.until(lambda: house.stream.questions > 3)
            house.stream.put("shardId-0", "new")
            await house.until(lambda: house.handler.done["shardId-0"] == ["new"])
            house.stream.split("shardId-0", "shardId-2")
            house.stream.put("shardId-2", "first of the child")
            await house.until(lambda: house.handler.done["shardId-2"] == ["first of the child"])

    async def test_batches_at_once_keep_each_key_in_order(self, house: House) -> None:
        """With a parallelization factor a key that hangs holds up itself and not the others, and each is in order."""
        texts = {key: [f"{key}-{number}" for number in range(20)] for key in ("lane-0", "lane-1", "lane-2", "lane-3")}
        house.handler.gates["lane-0-0"] = gate = asyncio.Event()
        for number in range(20):
            for key in texts:
                house.stream.put("shardId-0", texts[key][number], key=key)
        async with house.running(parallelization_factor=10, batch_size=3):
            done = house.handler.done["shardId-0"]
            await house.until(lambda: all(texts[key][-1] in done for key in ("lane-1", "lane-2", "lane-3")))
            assert "lane-0-0" not in done
            gate.set()
            await house.until(lambda: len(done) == 80)
        for key, sent in texts.items():
            assert [text for text in done if text.startswith(key)] == sent

    async def test_a_shard_that_fails_holds_up_itself_only(self, house: House) -> None:
        """While a shard's batch fails for ever the other shards go on."""
        house.stream.put("shardId-0", "bad")
        house.handler.poison.add("bad")
        async with house.running(retry_attempts=-1):
            await house.until(lambda: len(house.handler.batches) > 2)
            house.stream.put("shardId-1", "good")
            await house.until(lambda: house.handler.done["shardId-1"] == ["good"])
        assert house.given_up() == []


class TestReshard:
    async def test_parent_before_child(self, house: House) -> None:
        """A child is read only when its parent is done, failures and their retries included."""
        house.stream.put("shardId-0", "a", "b", "c")
        house.handler.reported.add("b")
        async with house.running(retry_attempts=-1):
            house.stream.split("shardId-0", "shardId-2", "shardId-3")
            house.stream.put("shardId-2", "d")
            house.stream.put("shardId-3", "e")
            await house.until(lambda: len(house.handler.batches) > 5)
            assert dict(house.handler.done) == {"shardId-0": ["a"]}
            house.handler.reported.clear()
            await house.until(lambda: sum(map(len, house.handler.done.values())) == 5)
        assert house.handler.done == {"shardId-0": ["a", "b", "c"], "shardId-2": ["d"], "shardId-3": ["e"]}

    async def test_an_empty_parent(self, house: House) -> None:
        """A parent that never had a record does not keep its children waiting."""
        house.stream.split("shardId-0", "shardId-2")
        house.stream.put("shardId-2", "a")
        async with house.running():
            await house.until(lambda: house.handler.done["shardId-2"] == ["a"])


class TestFailure:
    async def test_given_up_and_gone_on(self, house: House) -> None:
        """A poison record ends in the failure destination with its payload, and the records behind it arrive."""
        house.stream.put("shardId-0", "a", "bad", "b")
        house.handler.poison.add("bad")
        async with house.running() as source:
            await house.until(lambda: house.handler.done["shardId-0"] == ["a", "b"])
            house.stream.put("shardId-0", "c")
            await house.until(lambda: house.handler.done["shardId-0"] == ["a", "b", "c"])
        [record] = house.given_up()
        [entry] = json.loads(record["payload"])["Records"]
        assert base64.b64decode(entry["kinesis"]["data"]) == b"bad"
        assert record["requestContext"]["condition"] == "RetryAttemptsExhausted"
        assert record["KinesisBatchInfo"]["startSequenceNumber"] == "2"
        statistics = source.statistics()
        assert statistics["records"] == 3
        assert statistics["given_up"] == 1
        # All three, "a" and "bad" together, "a", "bad" twice, "b", "c"; or with "b" beside "c".
        assert statistics["failures"] == 4
        assert statistics["retries"] >= 4
        assert statistics["iterator_age_seconds"] == 0
        assert any("given up" in line for line in house.lines)
        assert not any("poison" not in line and "not done" in line for line in house.lines)

    async def test_too_old(self, house: House) -> None:
        """Records that are too old when they are read go to the failure destination without an invocation."""
        house.stream.put("shardId-0", "old")
        house.stream.records["shardId-0"][0]["ApproximateArrivalTimestamp"] = datetime(2020, 1, 1, tzinfo=UTC)
        house.stream.put("shardId-0", "new")
        async with house.running(record_age_seconds=60):
            await house.until(lambda: house.handler.done["shardId-0"] == ["new"])
        assert house.handler.batches == [["new"]]
        assert [record["requestContext"]["condition"] for record in house.given_up()] == ["RecordAgeExceeded"]

    async def test_a_destination_that_cannot_be_written(self, house: House) -> None:
        """A failure that cannot be kept ends the mapping: it would be lost otherwise."""
        (house.directory / "failures").write_text("a file, where a directory should be")
        house.stream.put("shardId-0", "bad")
        house.handler.poison.add("bad")
        with pytest.RaisesGroup(pytest.RaisesGroup(NotADirectoryError, flatten_subgroups=True)):
            async with house.running():
                await house.until(lambda: len(house.handler.batches) == 2)


class TestOutage:
    async def test_it_waits(self, house: House) -> None:
        """While Kinesis is away the mapping waits, says so once, says when it is over, and loses nothing."""
        house.stream.put("shardId-0", "a")
        async with house.running():
            await house.until(lambda: house.handler.done["shardId-0"] == ["a"])
            house.stream.is_down = True
            house.stream.put("shardId-0", "b")
            asked = house.stream.questions
            await house.until(lambda: house.stream.questions > asked + 5)
            assert [line for line in house.lines if "no answer" in line] == house.lines
            house.stream.is_down = False
            await house.until(lambda: house.handler.done["shardId-0"] == ["a", "b"])
        assert len([line for line in house.lines if "no answer" in line]) == 1

    async def test_it_can_start_first(self, house: House) -> None:
        """A mapping that is started before its stream waits for it."""
        house.stream.is_down = True
        house.stream.put("shardId-0", "a")
        async with house.running():
            await house.until(lambda: house.stream.questions > 5)
            house.stream.is_down = False
            await house.until(lambda: house.handler.done["shardId-0"] == ["a"])
        assert house.lines[0].startswith("no answer from Kinesis, waiting for it: Could not connect")
        assert house.lines[-1] == "Kinesis answers again"


class TestStop:
    async def test_the_invocation_in_flight_ends(self, house: House) -> None:
        """A mapping that is stopped waits for the batch that is out, and sends no other."""
        house.handler.gates["a"] = gate = asyncio.Event()
        house.stream.put("shardId-0", "a", "b")
        async with house.running(batch_size=1) as source:
            await house.until(lambda: house.handler.batches == [["a"]])
            source.stop()
            gate.set()
        assert house.handler.batches == [["a"]]
        assert house.handler.done == {"shardId-0": ["a"]}
