"""The mapping's decisions, without network or clock: time and chance are numbers in the call."""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from local.batches import (
    EVENT_BYTES,
    LONGEST_RETRY_SECONDS,
    Batch,
    BatchQueue,
    GivenUp,
    Record,
    delay,
    failure_record,
    first_failure,
    lambda_event,
    lambda_record,
    place,
    startable,
)
from local.template import MappingSettings
from local.worker import Answer
from tests.local.memory_stream import SETTINGS, SOURCE

FAILED = Answer("a-request", error="ValueError: no")


def records(numbers: Iterable[int], arrived_at: float = 0.0, size: int = 2) -> list[Record]:
    """Records with these sequence numbers and entries of `size` bytes."""
    return [Record(str(number), "key", arrived_at, b"x" * size) for number in numbers]


def numbers(batch: Batch) -> list[int]:
    """The sequence numbers in a batch."""
    return [int(record.sequence_number) for record in batch.records]


def reported(*sequence_numbers: Any) -> Answer:
    """A partial batch response that names these."""
    return Answer("a-request", {"batchItemFailures": [{"itemIdentifier": number} for number in sequence_numbers]})


def queue_of(count: int, queue_settings: MappingSettings = SETTINGS, now: float = 0.0) -> BatchQueue:
    """A queue with the records 1 to `count`, which waits as long as it may."""
    queue = BatchQueue(queue_settings, lambda: 1.0)
    for record in records(range(1, count + 1)):
        queue.add(record, now)
    return queue


def taken(queue: BatchQueue, now: float) -> list[int]:
    """The sequence numbers of the batch that is due."""
    batch = queue.take(now)
    assert batch is not None
    return numbers(batch)


def run(queue: BatchQueue, handler: Callable[[list[int]], Answer]) -> tuple[list[list[int]], list[list[int]]]:
    """Send until nothing is left, jumping over the waits; return what was sent, and what was given up."""
    now, sent, given_up = 0.0, [], []
    while queue.first is not None:
        batch = queue.take(now)
        if batch is None:
            assert queue.next_time is not None
            now = queue.next_time
            continue
        sent.append(numbers(batch))
        _, gone = queue.settle(handler(sent[-1]), now)
        if gone is not None:
            given_up.append(numbers(gone.batch))
    return sent, given_up


class TestEvent:
    def test_it_has_the_fields_of_lambda(self) -> None:
        """A record of GetRecords becomes an entry with the names and forms of Lambda's Kinesis event."""
        raw = {
            "SequenceNumber": "49545115243490985018280067714973144582180062593244200961",
            "PartitionKey": "猫",
            "Data": b"\x00\xff",
            "ApproximateArrivalTimestamp": datetime(2026, 11, 23, 12, 0, 0, 987_654, tzinfo=UTC),
        }
        record = lambda_record(raw, "shardId-000000000006", SOURCE)
        assert json.loads(lambda_event([record])) == {
            "Records": [
                {
                    "kinesis": {
                        "kinesisSchemaVersion": "1.0",
                        "partitionKey": "猫",
                        "sequenceNumber": "49545115243490985018280067714973144582180062593244200961",
                        "data": base64.b64encode(b"\x00\xff").decode(),
                        "approximateArrivalTimestamp": 1795435200.988,
                    },
                    "eventSource": "aws:kinesis",
                    "eventVersion": "1.0",
                    "eventID": "shardId-000000000006:49545115243490985018280067714973144582180062593244200961",
                    "eventName": "aws:kinesis:record",
                    "invokeIdentityArn": "arn:aws:iam::000000000000:role/it",
                    "awsRegion": "us-east-1",
                    "eventSourceARN": "arn:aws:kinesis:us-east-1:000000000000:stream/posts",
                }
            ]
        }


class TestBatching:
    def test_batch_size(self) -> None:
        """A batch takes BatchSize records at most, the next one goes on behind it."""
        sent, _ = run(queue_of(5, replace(SETTINGS, batch_size=2)), lambda _: Answer(""))
        assert sent == [[1, 2], [3, 4], [5]]

    def test_window(self) -> None:
        """A batch that is not full waits until the window closes that its first record opened."""
        queue = queue_of(1, replace(SETTINGS, window_seconds=5), now=100.0)
        queue.add(records([2])[0], 103.0)
        assert queue.take(104.9) is None
        assert queue.next_time == 105.0
        assert taken(queue, 105.0) == [1, 2]

    def test_a_full_batch_does_not_wait(self) -> None:
        """A batch of BatchSize is sent at once, whatever the window."""
        assert taken(queue_of(2, replace(SETTINGS, window_seconds=300, batch_size=2)), 0.0) == [1, 2]

    def test_the_next_window_opens_when_the_invocation_ends(self) -> None:
        """Records that came during an invocation wait for a window from its end on."""
        queue = queue_of(1, replace(SETTINGS, window_seconds=5))
        queue.take(5.0)
        queue.add(records([2])[0], 6.0)
        queue.settle(Answer(""), 10.0)
        assert queue.next_time == 15.0

    def test_the_end_of_a_shard_closes_the_window(self) -> None:
        """A shard that has ended does not wait for company, and is done when its last record is."""
        queue = queue_of(1, replace(SETTINGS, window_seconds=300))
        queue.close()
        assert queue.take(0.0) is not None
        assert not queue.is_done
        queue.settle(Answer(""), 0.0)
        assert queue.is_done

    def test_six_megabytes(self) -> None:
        """Two records that fill the event to the last byte go together; one byte more and they do not."""
        room = EVENT_BYTES - len(lambda_event(records([1, 2], size=0)))
        for size, together in ((room - 100, 2), (room - 99, 1)):
            queue = BatchQueue(SETTINGS, lambda: 1.0)
            queue.add(records([1], size=100)[0], 0.0)
            queue.add(records([2], size=size)[0], 0.0)
            assert len(taken(queue, 0.0)) == together

    def test_a_full_queue_says_so(self) -> None:
        """A queue with a whole batch is full, by number or by size, and is not when the batch is out."""
        assert queue_of(2, replace(SETTINGS, batch_size=2)).is_full
        queue = queue_of(3, replace(SETTINGS, batch_size=2))
        queue.take(0.0)
        assert not queue.is_full
        large = BatchQueue(SETTINGS, lambda: 1.0)
        large.add(records([1], size=EVENT_BYTES)[0], 0.0)
        assert large.is_full

    def test_one_batch_at_a_time(self) -> None:
        """The oldest record that is not done stays the first, in flight and when it has to be sent again."""
        queue = queue_of(150)
        queue.take(0.0)
        assert queue.first is not None
        assert queue.first.sequence_number == "1"
        queue.settle(reported("40"), 0.0)
        assert queue.first.sequence_number == "40"


class TestAnswer:
    @pytest.mark.parametrize("payload", [None, {}, {"batchItemFailures": None}, {"batchItemFailures": []}])
    def test_success(self, payload: Any) -> None:
        """Null, an empty answer, and a null or empty list are success."""
        assert first_failure(Batch(tuple(records([1, 2]))), Answer("", payload), SETTINGS) is None

    @pytest.mark.parametrize(
        "payload",
        [
            {"batchItemFailures": [{"itemIdentifier": ""}]},
            {"batchItemFailures": [{"itemIdentifier": None}]},
            {"batchItemFailures": [{"itemIdentifier": "17"}]},
            {"batchItemFailures": [{"itemIdentifier": "3"}, {"itemIdentifier": "17"}]},
            {"batchItemFailures": [{"sequenceNumber": "2"}]},
            {"batchItemFailures": ["2"]},
            {"batchItemFailures": {"itemIdentifier": "2"}},
            "2",
        ],
    )
    def test_whole_batch(self, payload: Any) -> None:
        """An empty, null or unknown identifier, one under a wrong name, and no list at all fail the whole batch."""
        assert first_failure(Batch(tuple(records([1, 2, 3]))), Answer("", payload), SETTINGS) == 0

    def test_lowest_wins(self) -> None:
        """Of several records the lowest sequence number counts, as a number, in whatever order they are named."""
        batch = Batch(tuple(records([8, 9, 10, 11])))
        assert first_failure(batch, reported("11", "10"), SETTINGS) == 2

    def test_without_partial_responses(self) -> None:
        """A mapping without ReportBatchItemFailures does not read the answer."""
        batch = Batch(tuple(records([1, 2])))
        assert first_failure(batch, reported("2"), replace(SETTINGS, report_batch_item_failures=False)) is None
        assert first_failure(batch, FAILED, replace(SETTINGS, report_batch_item_failures=False)) == 0


class TestRetry:
    @pytest.mark.parametrize("poison", range(1, 9))
    def test_bisect_finds_the_poison(self, poison: int) -> None:
        """A record that breaks the handler, at whatever place, is given up alone; all others are done, in order."""
        done: list[int] = []

        def handler(batch: list[int]) -> Answer:
            if poison in batch:
                return FAILED
            done.extend(batch)
            return Answer("")

        sent, given_up = run(queue_of(8), handler)
        assert given_up == [[poison]]
        assert done == [number for number in range(1, 9) if number != poison]
        assert sent.count([poison]) == 1 + SETTINGS.retry_attempts

    @pytest.mark.parametrize("poison", range(1, 9))
    def test_reported_poison(self, poison: int) -> None:
        """A record that the handler reports for ever is given up alone; what stands before it is not sent again."""
        done: list[int] = []

        def handler(batch: list[int]) -> Answer:
            done.extend(number for number in batch if number < poison or poison not in batch)
            return reported(str(poison)) if poison in batch else Answer("")

        sent, given_up = run(queue_of(8), handler)
        assert given_up == [[poison]]
        assert done == [number for number in range(1, 9) if number != poison]
        assert sent[1][0] == poison

    def test_all_fail(self) -> None:
        """When everything fails every record is given up alone, once, in order."""
        _, given_up = run(queue_of(5), lambda _: FAILED)
        assert given_up == [[1], [2], [3], [4], [5]]

    def test_without_bisect_the_batch_stays_whole(self) -> None:
        """Without bisecting a batch is sent 1 + MaximumRetryAttempts times and given up whole; the next one follows."""
        queue = queue_of(5, replace(SETTINGS, bisect=False, batch_size=3))
        sent, given_up = run(queue, lambda batch: FAILED if 2 in batch else Answer(""))
        assert sent == [[1, 2, 3], [1, 2, 3], [1, 2, 3], [4, 5]]
        assert given_up == [[1, 2, 3]]

    def test_without_bisect_progress_costs_a_retry(self) -> None:
        """Without bisecting the rest of a reported batch uses up retries like a whole one."""
        queue = queue_of(4, replace(SETTINGS, bisect=False))
        sent, given_up = run(queue, lambda batch: reported(str(batch[1])) if len(batch) > 1 else FAILED)
        assert sent == [[1, 2, 3, 4], [2, 3, 4], [3, 4]]
        assert given_up == [[4]]

    def test_no_retry(self) -> None:
        """MaximumRetryAttempts 0 gives a failing record up at once."""
        sent, given_up = run(queue_of(1, replace(SETTINGS, retry_attempts=0)), lambda _: FAILED)
        assert sent == [[1]]
        assert given_up == [[1]]

    def test_endless_retry(self) -> None:
        """MaximumRetryAttempts -1 never gives up."""
        tries = iter([FAILED] * 50)
        sent, given_up = run(queue_of(1, replace(SETTINGS, retry_attempts=-1)), lambda _: next(tries, Answer("")))
        assert len(sent) == 51
        assert given_up == []

    def test_failing_again_and_again_waits_longer(self) -> None:
        """The wait before a retry doubles with each failure up to its bound, and begins anew after a success."""
        queue = queue_of(1, replace(SETTINGS, retry_attempts=-1))
        waits, now = [], 0.0
        for _ in range(8):
            assert queue.take(now) is not None
            queue.settle(FAILED, now)
            assert queue.next_time is not None
            assert queue.take(queue.next_time - 0.01) is None
            waits.append(queue.next_time - now)
            now = queue.next_time
        assert waits == pytest.approx([0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0])
        queue.take(now)
        queue.settle(Answer(""), now)
        queue.add(records([2])[0], now)
        queue.take(now)
        queue.settle(FAILED, now)
        assert queue.next_time == pytest.approx(now + 0.4)

    def test_jitter(self) -> None:
        """The wait is anything between nothing and its bound, as chance has it."""
        assert delay(3, 0.0) == 0.0
        assert delay(3, 0.5) == 0.5 * delay(3, 1.0)
        assert delay(10_000, 1.0) == LONGEST_RETRY_SECONDS


class TestAge:
    def test_too_old_to_be_sent(self) -> None:
        """Records over the age limit are given up without being sent; younger ones behind them are sent."""
        queue = BatchQueue(replace(SETTINGS, record_age_seconds=60), lambda: 1.0)
        for record in [*records([1, 2], arrived_at=100.0), *records([3], arrived_at=150.0)]:
            queue.add(record, 161.0)
        given_up = queue.expire(161.0)
        assert given_up is not None
        assert given_up.condition == "RecordAgeExceeded"
        assert numbers(given_up.batch) == [1, 2]
        assert queue.expire(161.0) is None
        assert taken(queue, 161.0) == [3]

    def test_too_old_while_it_fails(self) -> None:
        """A record that keeps failing is given up when it is too old, with the number of its invocations."""
        queue = queue_of(1, replace(SETTINGS, record_age_seconds=60, retry_attempts=-1))
        for now in (0.0, 50.0):
            queue.take(now)
            queue.settle(FAILED, now)
        assert queue.expire(60.0) is None
        given_up = queue.expire(60.1)
        assert given_up is not None
        assert given_up.batch.invocations == 2
        assert queue.first is None

    def test_no_limit(self) -> None:
        """MaximumRecordAgeInSeconds -1 lets a record be as old as it likes."""
        assert queue_of(1).expire(1e9) is None


class TestPlace:
    def test_a_key_has_one_place(self) -> None:
        """A partition key always goes to the same of the concurrent batches, and many keys use all of them."""
        keys = [f"lane-{number}" for number in range(200)]
        places = [place(key, 4) for key in keys]
        assert places == [place(key, 4) for key in keys]
        assert set(places) == {0, 1, 2, 3}
        assert {place(key, 1) for key in keys} == {0}


class TestReshard:
    SPLIT = (
        {"ShardId": "0"},
        {"ShardId": "1", "ParentShardId": "0"},
        {"ShardId": "2", "ParentShardId": "0"},
    )
    MERGE = (
        {"ShardId": "0"},
        {"ShardId": "1"},
        {"ShardId": "2", "ParentShardId": "0", "AdjacentParentShardId": "1"},
    )

    @pytest.mark.parametrize(
        ("shards", "started", "done", "next_ones"),
        [
            # After a split the children wait for their parent,
            (SPLIT, [], [], ["0"]),
            (SPLIT, ["0"], [], []),
            (SPLIT, ["0"], ["0"], ["1", "2"]),
            (SPLIT, ["0", "1"], ["0"], ["2"]),
            # and after a merge for both parents,
            (MERGE, ["0", "1"], ["0"], []),
            (MERGE, ["0", "1"], ["0", "1"], ["2"]),
            # but not for one that the stream has forgotten, because all its records are too old.
            (SPLIT[1:], [], [], ["1", "2"]),
            # Grandchildren wait too.
            ((*SPLIT, {"ShardId": "3", "ParentShardId": "1"}), [], [], ["0"]),
            ((*SPLIT, {"ShardId": "3", "ParentShardId": "1"}), ["0"], ["0"], ["1", "2"]),
        ],
    )
    def test_a_shard_waits_for_its_parents(
        self, shards: Sequence[dict[str, str]], started: list[str], done: list[str], next_ones: list[str]
    ) -> None:
        """It is read only when those that it was made from are done."""
        assert startable(shards, started, done) == next_ones


class TestFailureRecord:
    BATCH = Batch(tuple(records([7, 8], arrived_at=1795435200.5)), retries=2, invocations=3, answer=FAILED)

    def test_it_is_lambdas_with_the_payload(self) -> None:
        """What is given up is described as Lambda does it for a bucket: the batch, the cause, and the whole event."""
        record = failure_record(
            GivenUp(self.BATCH, "RetryAttemptsExhausted"), "shardId-000000000001", SOURCE, 1795435203.25
        )
        assert record == {
            "requestContext": {
                "requestId": "a-request",
                "functionArn": SOURCE.function_arn,
                "condition": "RetryAttemptsExhausted",
                "approximateInvokeCount": 3,
            },
            "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
            "version": "1.0",
            "timestamp": "2026-11-23T12:00:03.250Z",
            "KinesisBatchInfo": {
                "shardId": "shardId-000000000001",
                "startSequenceNumber": "7",
                "endSequenceNumber": "8",
                "approximateArrivalOfFirstRecord": "2026-11-23T12:00:00.500Z",
                "approximateArrivalOfLastRecord": "2026-11-23T12:00:00.500Z",
                "batchSize": 2,
                "streamArn": SOURCE.stream_arn,
            },
            "payload": '{"Records": [xx, xx]}',
        }

    def test_a_reported_record_is_no_function_error(self) -> None:
        """When the function answered, and reported, the record names no function error."""
        batch = self.BATCH._replace(answer=reported("7"))
        record = failure_record(GivenUp(batch, "RetryAttemptsExhausted"), "shardId-000000000001", SOURCE, 0.0)
        assert record["responseContext"]["functionError"] is None

    def test_never_sent(self) -> None:
        """A record that was too old from the start has no response, and a request id of its own."""
        batch = Batch(self.BATCH.records)
        record = failure_record(GivenUp(batch, "RecordAgeExceeded"), "shardId-000000000001", SOURCE, 0.0)
        assert "responseContext" not in record
        assert record["requestContext"]["requestId"]
        assert record["requestContext"]["approximateInvokeCount"] == 0
