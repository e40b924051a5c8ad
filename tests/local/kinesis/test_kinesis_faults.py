import msgspec
import pytest

from local.kinesis.faults import (
    DropAnswer,
    FailRecords,
    Fault,
    Faults,
    RequestError,
    SlowAnswer,
    ThrottleShard,
)

THROTTLED = "ProvisionedThroughputExceededException"


def put(faults: Faults, *shards: int, now: float = 0.0) -> list[str | None]:
    """Offer one record for each shard in one request; return their failures."""
    plan = faults.begin("PutRecords", now)
    return [plan.failure(shard) for shard in shards]


def test_without_faults_nothing_goes_wrong() -> None:
    """An empty script leaves requests and records alone."""
    plan = Faults().begin("PutRecords", 0.0)
    assert (plan.error, plan.delay, plan.drop, plan.failure(0)) == (None, 0.0, False, None)


def test_a_throttled_shard_fails_all_its_records_and_no_others() -> None:
    """The fault names one shard."""
    faults = Faults()
    faults.add(ThrottleShard(shard=1), 0.0)
    assert put(faults, 0, 1, 2, 1) == [None, THROTTLED, None, THROTTLED]


def test_seconds_end_a_fault() -> None:
    """A fault of two seconds is over when two seconds have passed."""
    faults = Faults()
    faults.add(ThrottleShard(shard=1, seconds=2), 10.0)
    assert put(faults, 1, now=11.9) == [THROTTLED]
    assert put(faults, 1, now=12.0) == [None]


def test_requests_end_a_fault() -> None:
    """A fault for two requests spares the third; requests of other operations do not count."""
    faults = Faults()
    faults.add(RequestError(code="ExpiredTokenException", requests=2), 0.0)
    assert faults.begin("GetRecords", 0.0).error is None
    codes = [error.code if (error := faults.begin("PutRecords", 0.0).error) else None for _ in range(3)]
    assert codes == ["ExpiredTokenException", "ExpiredTokenException", None]


def test_each_kth_record_fails_counted_over_requests() -> None:
    """Every third record offered fails, wherever it goes and in whatever request it comes."""
    faults = Faults()
    faults.add(FailRecords(every=3), 0.0)
    assert put(faults, 0, 1) == [None, None]
    assert put(faults, 2, 0, 1, 2) == ["InternalFailure", None, None, "InternalFailure"]


def test_an_operation_can_be_named() -> None:
    """A fault for ListShards does not touch writes."""
    faults = Faults()
    faults.add(RequestError(code="AccessDeniedException", operations=("ListShards",)), 0.0)
    assert faults.begin("PutRecords", 0.0).error is None
    error = faults.begin("ListShards", 0.0).error
    assert error is not None
    assert (error.code, error.status) == ("AccessDeniedException", 400)


def test_answers_can_be_slow_and_lost() -> None:
    """Delays add up; a lost answer is not an error."""
    faults = Faults()
    faults.add(SlowAnswer(milliseconds=20), 0.0)
    faults.add(SlowAnswer(milliseconds=30), 0.0)
    faults.add(DropAnswer(requests=1), 0.0)
    plan = faults.begin("PutRecord", 0.0)
    assert plan.delay == pytest.approx(0.05)
    assert plan.drop
    assert plan.error is None
    assert not faults.begin("PutRecord", 0.0).drop


def test_clear_ends_all() -> None:
    """After clearing nothing is in force."""
    faults = Faults()
    faults.add(ThrottleShard(shard=0), 0.0)
    faults.add(DropAnswer(), 0.0)
    faults.clear()
    assert put(faults, 0) == [None]
    assert not faults.begin("PutRecords", 0.0).drop


@pytest.mark.parametrize(
    "text",
    [
        b'{"kind": "error", "code": "NoSuchException"}',
        b'{"kind": "throttle_shard"}',
        b'{"kind": "throttle_shard", "shard": -1}',
        b'{"kind": "throttle_shard", "shard": 1, "second": 2}',
        b'{"kind": "drop", "operations": ["PutRecordz"]}',
        b'{"kind": "fail_records", "every": 0}',
        b'{"kind": "unheard"}',
    ],
)
def test_a_fault_that_could_never_work_is_refused(text: bytes) -> None:
    """A misspelt fault is an error, not a fault that never strikes."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Fault)
