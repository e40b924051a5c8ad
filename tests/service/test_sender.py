import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random

import pytest
from structlog.testing import capture_logs

from service.core.limits import DEFAULT_RECORD_BYTES, HASH_KEYS, LARGEST_RECORD_BYTES
from service.core.producer import POST_OVERHEAD_BYTES, Producer
from service.core.records import (
    DropReason,
    FailureKind,
    KinesisRecord,
    Outcome,
    Post,
    PutRequest,
    RecordResult,
    RequestFailure,
    SealReason,
    Shard,
    StreamFacts,
)
from service.core.shard_map import hash_key
from service.sender import REFRESH_SECONDS, Sender
from tests.virtual_loop import virtual_time

WHOLE = [Shard("shardId-0", 0, HASH_KEYS - 1)]
HALVES = [Shard("shardId-1", 0, HASH_KEYS // 2 - 1), Shard("shardId-2", HASH_KEYS // 2, HASH_KEYS - 1)]
TROUBLE = RequestFailure(FailureKind.UNKNOWN, "TimeoutError", "no answer")
FAILED = RecordResult(error_code="InternalFailure")
THROTTLED = RecordResult(error_code="ProvisionedThroughputExceededException")


def key(half: int) -> bytes:
    """Find a key in the lower (0) or upper (1) half of all hash keys."""
    return next(name for n in range(100) if hash_key(name := b"author-%d" % n) * 2 // HASH_KEYS == half)


def post(number: int, half: int = 0, size: int = 100) -> Post:
    """Make a post; its line has this size."""
    return Post((b"%d" % number).ljust(size), str(number), key(half), 0.0)


class NotListedError(Exception):
    """What this sink raises when it cannot list the shards."""


Answer = list[RecordResult] | RequestFailure


class Sink:
    """Kinesis as the sender knows it: a round trip of 50 ms, and whatever the test makes of it."""

    def __init__(self) -> None:
        self.open = WHOLE
        self.record_bytes = DEFAULT_RECORD_BYTES
        self.listings: list[float] = []
        self.listings_to_fail = 0
        self.puts: list[tuple[float, list[KinesisRecord]]] = []
        self.stored: list[Post] = []
        self.behaviour: Callable[[Sequence[KinesisRecord]], Awaitable[Answer]] = self.store

    async def put(self, records: Sequence[KinesisRecord]) -> Answer:
        self.puts.append((asyncio.get_running_loop().time(), list(records)))
        await asyncio.sleep(0.05)
        return await self.behaviour(records)

    async def store(self, records: Sequence[KinesisRecord]) -> Answer:
        """Store all, each where its hash key belongs."""
        results = []
        for record in records:
            at = int(record.explicit_hash_key)
            shard = next(shard for shard in self.open if shard.first <= at <= shard.last)
            self.stored += record.posts
            results.append(RecordResult(shard.shard_id, str(len(self.stored))))
        return results

    def then_store(self, *answers: Answer) -> None:
        """Give these answers first, and store from then on."""
        left = list(answers)

        async def behave(records: Sequence[KinesisRecord]) -> Answer:
            return left.pop(0) if left else await self.store(records)

        self.behaviour = behave

    async def shards(self) -> list[Shard]:
        self.listings.append(asyncio.get_running_loop().time())
        if len(self.listings) <= self.listings_to_fail:
            raise NotListedError("may not list")
        return self.open

    async def facts(self) -> StreamFacts:
        return StreamFacts("posts", "ACTIVE", "PROVISIONED", self.record_bytes, False)


class Observer:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, float, str]] = []
        self.results: list[tuple[int, int, int]] = []
        self.throttles: list[str] = []
        self.shard_ids: list[list[str]] = []
        self.seals: list[SealReason] = []
        self.violations = 0

    def request_done(
        self, request: PutRequest, seconds: float, answer: Sequence[RecordResult] | RequestFailure
    ) -> None:
        if isinstance(answer, RequestFailure):
            outcome = answer.kind.value
        else:
            outcome = "partial" if any(result.error_code for result in answer) else "ok"
        self.requests.append((len(request.records), round(seconds, 6), outcome))

    def record_results(self, delivered: int, throttled: int, failed: int) -> None:
        self.results.append((delivered, throttled, failed))

    def throttled(self, shard_id: str) -> None:
        self.throttles.append(shard_id)

    def shards(self, shard_ids: Sequence[str]) -> None:
        self.shard_ids.append(list(shard_ids))

    def sealed(self, reason: SealReason) -> None:
        self.seals.append(reason)

    def order_violation(self) -> None:
        self.violations += 1


class Rig:
    """A sender over a real producer and a fake sink, with all that it hands on."""

    def __init__(self, *, linger: float = 0.0, memory: int = 1 << 20) -> None:
        self.sink = Sink()
        self.observer = Observer()
        self.outcomes: list[Outcome] = []
        self.sink_states: list[tuple[bool, str]] = []
        self.producer = Producer(
            aggregate=True, lanes_per_shard=1, linger=linger, memory_limit=memory, compress=False, rng=Random(1)
        )
        self.sender = Sender(
            self.producer,
            self.sink,
            observer=self.observer,
            on_outcomes=self.outcomes.extend,
            on_sink=lambda ok, reason: self.sink_states.append((ok, reason)),
            trouble=NotListedError,
        )

    def delivered(self) -> list[str]:
        """Name the posts that were delivered, in the order of their outcomes."""
        return [post.id for outcome in self.outcomes if outcome.reason is None for post in outcome.posts]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """Let it run, and in the end close it and let it drain; an hour is more than any of this takes."""
        await self.sender.start()
        async with asyncio.timeout(3600), asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.sender.run())
            yield task
            self.sender.close()


@virtual_time
async def test_closing_drains() -> None:
    """After close() everything inside is confirmed, and run() ends by itself."""
    rig = Rig(linger=30.0)
    async with rig.running() as task:
        rig.sender.offer([post(number) for number in range(5)])
    assert task.done()
    assert rig.delivered() == ["0", "1", "2", "3", "4"]
    assert rig.producer.is_drained
    assert asyncio.get_running_loop().time() == pytest.approx(0.05), "a drain does not linger"


@virtual_time
async def test_it_wakes_when_the_linger_is_over() -> None:
    """Nothing but the timer tells it to send a small batch."""
    rig = Rig(linger=1.0)
    async with rig.running():
        rig.sender.offer([post(1)])
        await asyncio.sleep(10)
        assert rig.delivered() == ["1"]
    ((at, _),) = rig.sink.puts
    assert 0.8 <= at <= 1.0, "the linger, or up to a fifth less"


@virtual_time
async def test_it_wakes_when_a_retry_is_due() -> None:
    """A failed record goes again after its delay, without a new post or answer to wake it."""
    rig = Rig()
    rig.sink.then_store(TROUBLE, [FAILED], TROUBLE)
    async with rig.running():
        rig.sender.offer([post(1)])
        await asyncio.sleep(60)
        assert rig.delivered() == ["1"]
    assert len(rig.sink.puts) == 4
    assert len({records[0].data for _, records in rig.sink.puts}) == 1
    (outcome,) = rig.outcomes
    assert (outcome.attempts, outcome.repeated) == (4, True)


@virtual_time
async def test_a_new_post_wakes_it() -> None:
    """An idle sender has no timer; an offer is enough."""
    rig = Rig()
    async with rig.running():
        for second in range(1, 4):
            await asyncio.sleep(1)
            rig.sender.offer([post(second)])
    assert [at for at, _ in rig.sink.puts] == [1.0, 2.0, 3.0]


@virtual_time
async def test_a_request_without_an_answer_holds_up_only_its_lane() -> None:
    """Other lanes go on beside it."""
    rig = Rig()
    rig.sink.open = HALVES

    async def behave(records: Sequence[KinesisRecord]) -> Answer:
        if records[0].posts[0].key == key(0):
            await asyncio.sleep(100)
        return await rig.sink.store(records)

    rig.sink.behaviour = behave
    async with rig.running():
        rig.sender.offer([post(1, half=0)])
        await asyncio.sleep(1)
        rig.sender.offer([post(2, half=1), post(3, half=0)])
        await asyncio.sleep(1)
        assert rig.delivered() == ["2"]
    assert rig.delivered() == ["2", "1", "3"]


@virtual_time
async def test_room_comes_back_with_an_answer() -> None:
    """A source that can be held back waits while the memory is full, and not longer."""
    rig = Rig(memory=2 * (100 + POST_OVERHEAD_BYTES))
    async with rig.running():
        await rig.sender.room()
        rig.sender.offer([post(1), post(2)])
        await rig.sender.room()
        assert asyncio.get_running_loop().time() == pytest.approx(0.05)
        assert rig.delivered() == ["1", "2"]


@virtual_time
async def test_room_comes_back_with_the_shards() -> None:
    """A record that was stored on an unknown shard has its outcome when they are listed, not when it was answered."""
    rig = Rig(memory=100 + POST_OVERHEAD_BYTES)
    async with rig.running():
        rig.sink.open = HALVES
        rig.sender.offer([post(1)])
        await rig.sender.room()
        assert rig.delivered() == ["1"]


@virtual_time
async def test_no_timer_is_left_behind() -> None:
    """What wakes it before its time has come would leave one each time, for minutes."""
    rig = Rig()
    loop = asyncio.get_running_loop()
    async with rig.running():
        for number in range(20):
            rig.sender.offer([post(number)])
            await asyncio.sleep(1)
        timers = [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        assert len(timers) == 2, "the sender's and the hour's of this test"


@virtual_time
async def test_an_answer_that_frees_nothing_gives_no_room() -> None:
    """The waiter looks again, and waits on."""
    rig = Rig(memory=100 + POST_OVERHEAD_BYTES)
    rig.sink.then_store(TROUBLE, TROUBLE)
    async with rig.running():
        rig.sender.offer([post(1)])
        await rig.sender.room()
        assert len(rig.sink.puts) == 3
        assert rig.delivered() == ["1"]


@virtual_time
async def test_posts_without_room_are_taken_all_the_same() -> None:
    """What is offered is with nobody else any more: room is asked for before."""
    rig = Rig(memory=100 + POST_OVERHEAD_BYTES)
    async with rig.running():
        rig.sender.offer([post(1)])
        assert not rig.sender.has_room
        rig.sender.offer([post(2), post(3)])
    assert rig.delivered() == ["1", "2", "3"]


@virtual_time
async def test_a_post_that_is_too_large_has_its_outcome_at_once() -> None:
    """What the producer refuses at the door is handed on, and its neighbours are sent."""
    rig = Rig(memory=1 << 30)
    async with rig.running():
        rig.sender.offer([post(1, size=DEFAULT_RECORD_BYTES), post(2)])
        assert [outcome.reason for outcome in rig.outcomes] == [DropReason.POST_TOO_LARGE]
    assert rig.delivered() == ["2"]


@virtual_time
async def test_the_shards_are_listed_anew_until_they_are_had() -> None:
    """A record astray asks for the new map; failures of that are repeated with growing delays, others go on."""
    rig = Rig()
    async with rig.running():
        rig.sink.open = HALVES
        rig.sink.listings_to_fail = 6
        rig.sender.offer([post(1, half=0), post(2, half=1)])
        await asyncio.sleep(60)
        assert rig.producer.is_drained
    assert len(rig.sink.listings) == 7
    assert rig.observer.shard_ids == [["shardId-0"], ["shardId-1", "shardId-2"]]
    assert sorted(rig.delivered()) == ["1", "2"]
    assert [one.id for one in rig.sink.stored] == ["1", "2", "2"], "only what lay outside was sent again"
    waits = [later - earlier for earlier, later in zip(rig.sink.listings[1:], rig.sink.listings[2:], strict=False)]
    assert all(0 < wait <= bound for wait, bound in zip(waits, [0.1, 0.2, 0.4, 0.8, 1.6], strict=True))


@virtual_time
async def test_other_lanes_go_on_while_the_shards_are_listed() -> None:
    """Only the lane that went astray stands still."""
    rig = Rig()
    rig.sink.open = HALVES
    async with rig.running():
        rig.sink.open = [Shard("shardId-3", 0, HASH_KEYS // 2 - 1), HALVES[1]]
        rig.sink.listings_to_fail = 10
        rig.sender.offer([post(1, half=0)])
        await asyncio.sleep(0.1)
        rig.sender.offer([post(2, half=1)])
        await asyncio.sleep(0.1)
        assert rig.delivered() == ["2"]
    assert rig.delivered() == ["2", "1"]


@virtual_time
async def test_the_stream_is_looked_at_every_five_minutes() -> None:
    """Without any other cause, and only what has changed is told to the log."""
    rig = Rig()
    with capture_logs() as logs:
        async with rig.running():
            await asyncio.sleep(2.5 * REFRESH_SECONDS)
            rig.sink.open = HALVES
            await asyncio.sleep(2 * REFRESH_SECONDS)
    assert [number * REFRESH_SECONDS for number in range(5)] == rig.sink.listings
    assert [(entry["event"], entry["shards"]) for entry in logs] == [("shards_listed", 1), ("shards_listed", 2)]
    assert [len(shard_ids) for shard_ids in rig.observer.shard_ids] == [1, 1, 1, 2, 2]


@virtual_time
async def test_a_raised_record_limit_is_noticed() -> None:
    """A larger post is refused at the door until the next look, and delivered after it."""
    rig = Rig(memory=1 << 30)
    async with rig.running():
        rig.sink.record_bytes = LARGEST_RECORD_BYTES
        rig.sender.offer([post(1, size=2 * DEFAULT_RECORD_BYTES)])
        await asyncio.sleep(REFRESH_SECONDS + 1)
        rig.sender.offer([post(2, size=2 * DEFAULT_RECORD_BYTES)])
    assert [outcome.reason for outcome in rig.outcomes] == [DropReason.POST_TOO_LARGE, None]
    assert rig.delivered() == ["2"]


@virtual_time
async def test_a_look_that_was_asked_for_puts_the_next_one_off() -> None:
    """Five minutes count from the last time that the shards were had."""
    rig = Rig()
    async with rig.running():
        rig.sink.open = HALVES
        await asyncio.sleep(100)
        rig.sender.offer([post(1, half=1)])
        await asyncio.sleep(REFRESH_SECONDS + 1)
    assert [round(at) for at in rig.sink.listings] == [0, 100, 100 + REFRESH_SECONDS]


@virtual_time
async def test_posts_go_on_while_a_look_fails() -> None:
    """Kinesis may forbid to list the shards; the old map is good until a record says otherwise."""
    rig = Rig()
    async with rig.running():
        rig.sink.listings_to_fail = 1000
        await asyncio.sleep(REFRESH_SECONDS + 30)
        assert len(rig.sink.listings) > 3
        rig.sender.offer([post(1)])
        await asyncio.sleep(1)
        assert rig.delivered() == ["1"]
        rig.sink.listings_to_fail = 0
        await asyncio.sleep(30)
        had = rig.sink.listings[-1]
        await asyncio.sleep(REFRESH_SECONDS)
    assert [had + REFRESH_SECONDS] == [at for at in rig.sink.listings if at > had]


@virtual_time
async def test_a_look_that_fails_does_not_hold_up_the_end() -> None:
    """When the last post is confirmed nobody needs the shards any more: an input that ended must end the process."""
    rig = Rig()
    async with rig.running() as task:
        rig.sink.listings_to_fail = 1 << 30
        await asyncio.sleep(REFRESH_SECONDS + 1)
        rig.sender.offer([post(1)])
    assert len(rig.sink.listings) > 1
    assert rig.delivered() == ["1"]
    assert task.done()


@virtual_time
async def test_it_may_run_before_the_shards_are_known() -> None:
    """Without start() it lists them itself."""
    rig = Rig()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(rig.sender.run())
        await asyncio.sleep(1)
        rig.sender.offer([post(1)])
        rig.sender.close()
    assert rig.delivered() == ["1"]


@virtual_time
async def test_start_raises_the_trouble_of_the_first_look() -> None:
    """Whoever starts the daemon must hear that the stream cannot be read."""
    rig = Rig()
    rig.sink.listings_to_fail = 1
    with pytest.raises(NotListedError):
        await rig.sender.start()
    assert rig.sender.facts is None
    assert await rig.sender.start() == rig.sender.facts


@virtual_time
async def test_cancelling_leaves_posts_inside() -> None:
    """Giving up a drain loses nothing from sight: what is left can still be named."""
    rig = Rig(linger=30.0)
    rig.sink.open = HALVES
    await rig.sender.start()
    under_way = asyncio.Event()

    async def behave(records: Sequence[KinesisRecord]) -> Answer:
        under_way.set()
        return await asyncio.Future()

    rig.sink.behaviour = behave
    task = asyncio.create_task(rig.sender.run())
    rig.sender.offer([post(1, size=100_000)])
    await under_way.wait()
    rig.sender.offer([post(2), post(3, half=1)])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rig.outcomes == []
    assert rig.producer.statistics().posts == 3
    assert [one.id for one in rig.producer.abandon()] == ["1", "2", "3"]


@virtual_time
async def test_the_observer_hears_of_each_request_and_record() -> None:
    """Good, throttled and failed records of one request, then their repeats; a seal counts once."""
    rig = Rig()
    rig.sink.open = HALVES
    rig.sink.then_store([THROTTLED, FAILED])
    async with rig.running():
        rig.sender.offer([post(1, half=0), post(2, half=1)])
    assert rig.observer.requests[0] == (2, 0.05, "partial")
    assert {outcome for _, _, outcome in rig.observer.requests[1:]} == {"ok"}
    assert rig.observer.results[0] == (0, 1, 1)
    assert [sum(column) for column in zip(*rig.observer.results, strict=True)] == [2, 1, 1]
    assert rig.observer.throttles == ["shardId-1"]
    assert len(rig.observer.seals) == 2
    assert {ok for ok, _ in rig.sink_states} == {True}


@virtual_time
async def test_posts_can_be_followed_by_their_ids() -> None:
    """One line a request at debug: which posts went in which record, and where Kinesis filed it, or why not."""
    rig = Rig()
    rig.sink.open = HALVES
    rig.sink.then_store([THROTTLED, RecordResult("shardId-2", "77")], TROUBLE)
    with capture_logs() as logs:
        async with rig.running():
            rig.sender.offer([post(1, half=0), post(2, half=1)])
    lines = [entry for entry in logs if entry["event"] == "request_done"]
    assert [(line["request"], line["log_level"]) for line in lines] == [(1, "debug"), (2, "debug"), (3, "debug")]
    first, second, third = (line["records"] for line in lines)
    assert [(record["posts"], record["error"], record["sequence"]) for record in first] == [
        (["1"], THROTTLED.error_code, None),
        (["2"], None, "77"),
    ]
    assert [(record["posts"], record["attempt"], record["error"]) for record in second] == [(["1"], 2, TROUBLE.code)]
    assert [(record["posts"], record["attempt"], record["shard"]) for record in third] == [(["1"], 3, "shardId-1")]


@virtual_time
async def test_a_failed_request_is_told_with_its_reason() -> None:
    """The outcome is the kind of the failure, and the readiness shows its text until an answer comes."""
    rig = Rig()
    rig.sink.then_store(TROUBLE)
    async with rig.running():
        rig.sender.offer([post(1)])
    assert [outcome for _, _, outcome in rig.observer.requests] == ["unknown", "ok"]
    assert rig.sink_states == [(False, "no answer"), (True, "")]
    assert rig.observer.results == [(1, 0, 0)]


@virtual_time
async def test_a_refused_record_is_handed_on_as_dropped() -> None:
    """The end of a post is an outcome, good or bad."""
    rig = Rig()
    rig.sink.then_store(RequestFailure(FailureKind.REFUSED, "ValidationException", "not valid"))
    async with rig.running():
        rig.sender.offer([post(1)])
    assert [outcome.reason for outcome in rig.outcomes] == [DropReason.REFUSED]


@virtual_time
async def test_a_violated_order_is_counted_once() -> None:
    """A sequence number below the one before it reaches the metrics, and the next good one adds nothing."""
    rig = Rig()
    rig.sink.then_store(*([RecordResult("shardId-0", number)] for number in ("7", "6", "8")))
    async with rig.running():
        for number in range(3):
            rig.sender.offer([post(number)])
            await asyncio.sleep(1)
    assert rig.observer.violations == 1


@virtual_time
async def test_a_bug_in_the_sink_ends_it() -> None:
    """An exception that is no trouble ends run() with it: a daemon that goes on in silence would be worse."""
    rig = Rig()
    await rig.sender.start()

    async def behave(records: Sequence[KinesisRecord]) -> Answer:
        raise ZeroDivisionError("a bug")

    rig.sink.behaviour = behave
    rig.sender.offer([post(1)])
    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError, match="a bug")):
        await rig.sender.run()
    assert rig.producer.statistics().posts == 1
