"""What Kinesis answers to the daemon, or does not: seen, counted, told, and nothing lost."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from local.kinesis.faults import DropAnswer, FailRecords, Fault, RequestError, SlowAnswer, ThrottleShard
from service.core.limits import KIB, MIB
from service.core.records import DropReason
from tests.elastic_loop import elastic_time
from tests.faults.rig import SESSION, STREAM, Rig, carried

ANSWERS = [
    "AccessDeniedException",
    "ExpiredTokenException",
    "InternalFailure",
    "InvalidSignatureException",
    "KMSDisabledException",
    "KMSThrottlingException",
    "LimitExceededException",
    "ResourceInUseException",
    "ResourceNotFoundException",
    "ServiceUnavailable",
    "UnknownOperationException",
    "UnrecognizedClientException",
]
# Longer than the client waits for the first byte of an answer.
SILENCE_MILLISECONDS = 11_000


def errors(rig: Rig, code: str) -> int:
    """How often this error was counted."""
    return int(rig.metrics._errors.labels(code).value)


async def fail(rig: Rig, code: str, fault: Fault, logs: Sequence[Mapping[str, Any]]) -> None:
    """Have all requests fail for a while."""
    kinesis = rig._kinesis.stream(STREAM).faults
    await rig.received(5)
    kinesis.add(fault, time.time())
    await rig.until(lambda: errors(rig, code) >= 2)
    check = rig.health.checks["kinesis"]
    assert not check.ok
    assert check.reason in {entry["message"] for entry in logs if entry.get("code") == code}
    kinesis.clear()
    await rig.until(lambda: rig.health.checks["kinesis"].ok)


@pytest.mark.parametrize(
    ("faults", "repeats"),
    [
        ({code: RequestError(code=code) for code in ANSWERS}, False),
        (
            {
                "ConnectionClosedError": DropAnswer(),
                "ReadTimeoutError": SlowAnswer(milliseconds=SILENCE_MILLISECONDS),
            },
            True,
        ),
    ],
    ids=["refused", "unanswered"],
)
@elastic_time
async def test_a_request_that_fails(tmp_path: Path, faults: dict[str, Fault], repeats: bool) -> None:
    """Counted by its code, told in one line by log and readiness, and when it is over all is well again."""
    with capture_logs() as logs:
        async with carried(tmp_path, rate=50) as rig:
            for code, fault in faults.items():
                await fail(rig, code, fault, logs)
    assert bool(rig.result.repeated) == repeats


@elastic_time
async def test_records_that_fail(tmp_path: Path) -> None:
    """Throttled or failed one by one: each is counted, and sent again before anything newer of its lane."""
    async with carried(tmp_path, rate=200) as rig:
        for fault in (ThrottleShard(shard=0, requests=20), FailRecords(every=3, requests=20)):
            rig._kinesis.stream(STREAM).faults.add(fault, time.time())
        await rig.until(lambda: errors(rig, "ProvisionedThroughputExceededException") >= 3)
        await rig.until(lambda: errors(rig, "InternalFailure") >= 3)
        await rig.received(100)
    assert rig.result.repeated == 0


@elastic_time
async def test_a_raised_record_limit_is_followed(tmp_path: Path) -> None:
    """A post of more than 1 MiB is put aside until the stream takes it and the daemon has asked; then it is carried."""
    async with carried(tmp_path, rate=0.1) as rig:
        await rig.received(1)
        rig.x.faults.inject("enlarge", bytes=MIB + 1000)
        await rig.until(lambda: rig.dropped(DropReason.POST_TOO_LARGE))
        stream = rig._kinesis.stream(STREAM)
        async with SESSION.create_client("kinesis", region_name="us-east-1") as client:
            await client.update_max_record_size(StreamARN=stream.arn, MaxRecordSizeInKiB=2048)
        await rig.until(lambda: rig._producer._record_limit == 2048 * KIB)
        rig.x.faults.inject("enlarge", bytes=MIB + 1000)
        await rig.until(lambda: any(record.size > MIB for shard in stream.map.shards for record in shard.records))
    assert rig.result.put_aside == {DropReason.POST_TOO_LARGE.value: 1}
