"""
From a stream into the table: the function under the local event source mapping, with the settings of the template.

Each story ends with a table that equals the ledger: of each post that was put into the stream the newest version, but
for those that were deleted.
"""

import io
import json
import random
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local.batches import BatchQueue, GivenUp, failure_record, lambda_event, lambda_record
from local.mapping import EventSource
from local.template import MappingSettings, Template, load
from local.worker import Answer
from processor.failures import Directory, Quarantine
from processor.handler import RESERVE_SECONDS, Processor
from processor.items import Item, Shape
from processor.redrive import Redrive
from processor.table import TableWriter
from processor.wire import compress
from tests.local.memory_stream import SOURCE, Stream, mapped
from tests.processor.aws_by_moto import Aws
from tests.processor.fake_dynamodb import (
    HALF,
    LOST,
    NONE,
    STORED,
    TABLE,
    THROTTLED,
    UNREACHABLE,
    Clock,
    FakeDynamo,
    Inline,
)
from tests.processor.fake_surroundings import Context, Shelf, aggregate, post

DOCUMENT = load().document


def mapping(**changes: int) -> MappingSettings:
    """The settings of the template, with other values where a story needs them; no waiting for fuller batches."""
    return Template(DOCUMENT, {"MaximumBatchingWindowInSeconds": 0, **changes}).mapping()


class Function:
    """The processor as the mapping calls it. Its clock is its own: what it waits for takes no time here."""

    def __init__(self, table: FakeDynamo, shelf: Shelf, clock: Clock, seconds: float) -> None:
        self.table = table
        self.shelf = shelf
        self.invocations = 0
        self._seconds = seconds
        writer = TableWriter(TABLE, lambda: table, Inline(), clock=clock, sleep=clock.sleep, chance=max)
        quarantine = Quarantine(shelf)
        self._processor = Processor(Shape(), writer, quarantine, Inline(), clock=clock, output=io.StringIO())

    def answer(self, event: bytes) -> Answer:
        self.invocations += 1
        request = f"request-{self.invocations}"
        try:
            return Answer(request, self._processor.process(json.loads(event), Context(self._seconds)))
        except Exception as error:  # as Lambda's runtime does with whatever a handler raises
            return Answer(request, error=f"{type(error).__name__}: {error}")

    async def invoke(self, event: bytes) -> Answer:
        return self.answer(event)


class House:
    """A stream of two shards, the mapping, the function, and the ledger of what was put into the stream."""

    def __init__(
        self,
        directory: Path,
        table: FakeDynamo | None = None,
        shelf: Shelf | None = None,
        clock: Clock | None = None,
        seconds: float = 60,
    ) -> None:
        self.stream = Stream("shardId-0", "shardId-1")
        self.table = table or FakeDynamo()
        self.shelf = shelf or Shelf()
        self.function = Function(self.table, self.shelf, clock or Clock(), seconds)
        self.failures = directory / "failures"
        self.ledger: dict[str, str] = {}
        self.bad: set[bytes] = set()

    def put(self, shard: str, *records: bytes | list[bytes], key: str = "lane") -> None:
        """Put records into a shard, a list as one container, and note in the ledger what a table should hold."""
        for record in records:
            for line in record if isinstance(record, list) else [record]:
                try:
                    data = json.loads(line)["data"]
                    self.ledger[data["id"]] = data["text"]
                except (ValueError, KeyError, TypeError):
                    self.bad.add(line)
            self.stream.put(shard, aggregate(*record) if isinstance(record, list) else record, key=key)

    def running(self, **changes: Any) -> AbstractAsyncContextManager[EventSource]:
        """Run the mapping from the beginning of the stream until the block ends."""
        return mapped(
            self.stream, self.function, settings=mapping(**changes), failures=self.failures, log=lambda _: None
        )

    async def deliver(self, **changes: Any) -> dict[str, Any]:
        """Run the mapping until all records are done or given up; return its counters."""
        async with self.running(**changes) as source:
            return await self.delivered(source)

    async def delivered(self, source: EventSource) -> dict[str, Any]:
        """Wait until all records of the stream are done or given up."""

        def is_done() -> bool:
            counters = source.statistics()
            return bool(counters["records"] + counters["given_up"] >= sum(map(len, self.stream.records.values())))

        await self.stream.events.until(is_done)
        return source.statistics()

    @property
    def messages(self) -> dict[str, str]:
        return {key: str(item["Message"]) for key, item in self.table.items.items()}


POISON: list[bytes | list[bytes]] = [
    b"",
    b"no json",
    b"\xff\xfe",
    b'{"data":{"text":"x"}}',
    aggregate(b"")[:-18],
    b"MZS1 but not really",
    [b"still no json"],
]


async def test_poison_of_every_kind(tmp_path: Path) -> None:
    """Whatever stands among them, the others are stored at the first call, and it is in quarantine, alone."""
    house = House(tmp_path)
    for number, poison in enumerate(POISON):
        house.put("shardId-0", post(number), poison, [post(number + 50), post(number + 60)])

    counters = await house.deliver()

    assert house.messages == house.ledger
    assert house.shelf.payloads == house.bad
    assert len(house.shelf.objects) == len(POISON)
    assert (counters["invocations"], counters["failures"]) == (1, 0)


@pytest.mark.parametrize("fault", [THROTTLED, "InternalServerError", HALF, NONE, LOST, UNREACHABLE])
async def test_a_table_with_trouble(tmp_path: Path, fault: str) -> None:
    """Throttles, errors, items left out and lost answers, of writes and of looks, are survived within a call."""
    house = House(tmp_path, FakeDynamo([fault] * 5, look_faults=[fault] * 5))
    for shard in ("shardId-0", "shardId-1"):
        house.put(shard, *([post(number) for number in range(place, place + 20)] for place in range(0, 100, 20)))

    counters = await house.deliver()

    assert house.messages == house.ledger
    assert len(house.ledger) == 100
    assert counters["given_up"] == 0


async def test_unprocessed_items_for_ever(aws: Aws, table: str, tmp_path: Path) -> None:
    """After its retries a batch is given up, whole, and a redrive brings the table to the ledger."""
    house = House(tmp_path, FakeDynamo([NONE] * 1_000_000))
    house.put("shardId-0", post(1), [post(2), post(3), b"bad"], post(1, "newer"))

    counters = await house.deliver(MaximumRetryAttempts=2)

    assert counters["given_up"] == 3
    assert house.messages == {}
    results = list(Redrive(Directory(house.failures), aws.dynamodb, table, Shape(), Inline()).run())
    assert {key: item["Message"] for key, item in aws.items(table).items()} == house.ledger
    # The bad one keeps its batch where it is; the function had put it into quarantine as well.
    assert [result.reason for result in results if result.reason] == ["not JSON: Expecting value at character 0"]
    assert house.shelf.payloads == house.bad


async def test_time_runs_out(tmp_path: Path) -> None:
    """A table so slow that a call stores only a part: the mapping goes on from there, and all of it arrives."""
    clock = Clock()
    house = House(tmp_path, FakeDynamo(clock=clock, seconds=1.0), clock=clock, seconds=RESERVE_SECONDS + 6)
    for number in range(0, 400, 10):
        house.put("shardId-0", [post(number + place) for place in range(10)])

    counters = await house.deliver()

    assert house.messages == house.ledger
    assert len(house.ledger) == 400
    assert counters["failures"] > 1
    assert counters["given_up"] == 0


async def test_duplicates_inside_and_across_batches(tmp_path: Path) -> None:
    """Repeats of a post, in a container, in a batch and in later batches, end as one item, the newest version."""
    house = House(tmp_path, FakeDynamo([STORED, HALF, THROTTLED, LOST]))
    for version in range(8):
        house.put(
            "shardId-0", [post(1, f"{version}a"), post(2), post(1, f"{version}b")], post(1, f"{version}c"), post(2)
        )

    counters = await house.deliver(BatchSize=5)

    assert house.messages == house.ledger == {"1": "7c", "2": "hello"}
    assert counters["invocations"] > 1


async def test_resurrected_deletes(tmp_path: Path) -> None:
    """A replay of the whole stream does not bring back what was deleted, nor does a post that comes only now."""
    house = House(tmp_path)
    house.put("shardId-0", [post(1), post(2), post(3)], post(4))
    await house.deliver()
    house.table.bury("2", "4", "5")

    house.put("shardId-1", post(5), post(6))
    await house.deliver()

    for deleted in ("2", "4", "5"):
        del house.ledger[deleted]
    assert house.messages == house.ledger
    assert set(house.ledger) == {"1", "3", "6"}


@pytest.mark.parametrize("call", range(6))
async def test_a_delete_in_the_middle(tmp_path: Path, call: int) -> None:
    """Before any look at the tombstones of a stream under way: the post that is deleted there is gone in the end."""
    house = House(tmp_path)
    looks = iter(range(1_000))
    house.table.before_look = lambda: house.table.bury("3") if next(looks) == call else None
    for _ in range(6):
        house.put("shardId-0", [post(number) for number in range(5)])

    await house.deliver(BatchSize=1)

    del house.ledger["3"]
    assert house.messages == house.ledger


async def test_a_reshard_in_the_middle(tmp_path: Path) -> None:
    """The children's newer versions come after the parent's older ones, though the parent has trouble."""
    house = House(tmp_path, FakeDynamo([NONE, THROTTLED] * 20))
    house.put("shardId-0", *([post(number, "parent"), post(number + 50)] for number in range(20)))
    async with house.running(BatchSize=3) as source:
        await house.stream.events.until(lambda: house.function.invocations > 2)
        house.stream.split("shardId-0", "shardId-2", "shardId-3")
        house.put("shardId-2", *(post(number, "child") for number in range(10)))
        house.put("shardId-3", *(post(number, "child") for number in range(10, 20)))
        await house.delivered(source)

    assert house.messages == house.ledger
    assert {house.messages[str(number)] for number in range(20)} == {"child"}


async def test_a_quarantine_that_is_away(tmp_path: Path) -> None:
    """Until it takes the bad record its shard waits at it; then all is well, and nothing was skipped."""
    asked = iter(range(1_000))
    house = House(tmp_path, shelf=Shelf(broken=lambda _: next(asked) < 3))
    house.put("shardId-0", post(1), b"bad", post(2))

    counters = await house.deliver()

    assert house.messages == house.ledger
    assert house.shelf.payloads == house.bad
    assert (counters["failures"], counters["given_up"]) == (3, 0)


async def test_a_table_that_was_away(tmp_path: Path) -> None:
    """A missing permission fails the whole call; bisecting and retries go on until it is healed."""
    house = House(tmp_path, FakeDynamo(["AccessDeniedException"] * 5))
    house.put("shardId-0", *(post(number) for number in range(7)))

    counters = await house.deliver()

    assert house.messages == house.ledger
    assert counters["failures"] == 5


@pytest.mark.parametrize("factor", [1, 3, 10])
async def test_batches_of_a_shard_at_once(tmp_path: Path, factor: int) -> None:
    """Whatever the parallelisation, the versions of a post stay in order, since they have one partition key."""
    house = House(tmp_path, FakeDynamo([HALF, NONE, LOST] * 10))
    for version in range(10):
        for number in range(8):
            house.put("shardId-0", post(number, str(version)), key=f"author-{number}")

    await house.deliver(ParallelizationFactor=factor, BatchSize=4)

    assert house.messages == house.ledger == {str(number): "9" for number in range(8)}


TEXTS = st.sampled_from(["a", "b", "c", "refused", "broken"])
ENTRIES = st.lists(st.tuples(st.integers(0, 12), TEXTS), max_size=5)
RECORDS = st.lists(st.tuples(st.sampled_from(["container", "compressed", "raw"]), ENTRIES), max_size=12)
FAULTS = st.lists(
    st.sampled_from([STORED, HALF, NONE, LOST, UNREACHABLE, THROTTLED, "AccessDeniedException"]), max_size=25
)


def refused(item: Item) -> bool:
    """Whether the table will never take the item."""
    return item.get("Message") == "refused"


def until_done(queue: BatchQueue, answer: Callable[[bytes], Answer]) -> Iterable[GivenUp]:
    """Send all of a shard's records by the rules of the mapping; give what it gives up."""
    now = 0.0
    while not queue.is_done:
        batch = queue.take(now)
        if batch is None:
            now = queue.next_time or now
            continue
        _, given_up = queue.settle(answer(lambda_event(batch.records)), now)
        if given_up is not None:
            yield given_up


@settings(deadline=None)
@given(
    stream=RECORDS,
    faults=FAULTS,
    look_faults=FAULTS,
    broken=st.sets(st.integers(0, 40)),
    buried=st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12)),
    batch_size=st.integers(1, 6),
    seconds=st.sampled_from([2.0, 6.2, 60.0]),
    retries=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_any_records_under_any_failures_end_as_the_ledger_says(
    stream: list[tuple[str, list[tuple[int, str]]]],
    faults: list[str],
    look_faults: list[str],
    broken: set[int],
    buried: tuple[int, int, int],
    batch_size: int,
    seconds: float,
    retries: int,
    seed: int,
) -> None:
    """
    Through batches, partial failures, bisecting and giving up, nothing is lost and nothing deleted comes back.

    Each post is in the table in its newest version, or in a batch that was given up, or in quarantine, or deleted;
    where nothing was given up, the table is that of the ledger.
    """
    lines = [[post(key, text)[: -1 if text == "broken" else None] for key, text in entries] for _, entries in stream]
    records: list[bytes] = []
    for (how, _), group in zip(stream, lines, strict=True):
        container = aggregate(*group)
        records += {"container": [container], "compressed": [compress(container)], "raw": group}[how]
    memory = Stream("shardId-0")
    memory.put("shardId-0", *records)
    clock = Clock()
    table = FakeDynamo(faults, look_faults=look_faults, invalid=refused, clock=clock, seconds=0.01)
    before, *later = map(str, buried)
    table.bury(before)
    moments = iter(later)
    table.before_look = lambda: table.bury(*[key for key in [next(moments, None)] if key])
    asked = iter(range(10_000))
    shelf = Shelf(broken=lambda _: next(asked) in broken)
    function = Function(table, shelf, clock, seconds)
    queue = BatchQueue(mapping(BatchSize=batch_size, MaximumRetryAttempts=retries), random.Random(seed).random)
    for record in memory.records["shardId-0"]:
        queue.add(lambda_record(record, "shardId-0", SOURCE), 0.0)
    queue.close()

    given_up = [
        json.loads(json.dumps(failure_record(one, "shardId-0", SOURCE, 0.0)))
        for one in until_done(queue, function.answer)
    ]

    table.bury(*moments)
    deleted = {str(key) for key in buried}
    lost_to_lambda = {
        record["kinesis"]["sequenceNumber"] for one in given_up for record in json.loads(one["payload"])["Records"]
    }
    model: dict[str, str] = {}
    uncertain: set[str] = set()
    kept_aside: list[tuple[str, bytes]] = []
    number = 0
    for (how, entries), group in zip(stream, lines, strict=True):
        for place, ((key, text), line) in enumerate(zip(entries, group, strict=True)):
            if str(number + 1 + (place if how == "raw" else 0)) in lost_to_lambda:
                uncertain.add(str(key))
            elif text in {"broken", "refused"}:
                kept_aside.append((str(key), line))
            if text not in {"broken", "refused"}:
                model[str(key)] = text
        number += len(group) if how == "raw" else 1
    for post_id, bad in kept_aside:
        # Where a newer version of it is stored, nobody asks the table for an older one.
        assert bad in shelf.payloads or (bad.endswith(b"}}") and post_id in model.keys() | deleted | uncertain)
    found = {key: str(item["Message"]) for key, item in table.items.items()}
    # A batch that was given up between its put and its look may leave what was deleted; a redrive takes it out.
    assert not (deleted - uncertain) & found.keys()
    certain = {key: text for key, text in model.items() if key not in uncertain | deleted}
    assert {key: text for key, text in found.items() if key not in uncertain} == certain
