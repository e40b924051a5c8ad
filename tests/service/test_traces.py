import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.core.records import (
    FailureKind,
    KinesisRecord,
    Post,
    RecordResult,
    RequestFailure,
    SealReason,
    Shard,
    StreamFacts,
)
from service.traces import Traces
from tests.trace_collector import collector

ROOT = Path(__file__).parents[2]
WALL = 1_700_000_000.0
SECOND = 1_000_000_000


class Sink:
    """Answers as it is told, or raises."""

    def __init__(self, answer: list[RecordResult] | RequestFailure | Exception) -> None:
        self.answer = answer

    async def put(self, records: Sequence[KinesisRecord]) -> list[RecordResult] | RequestFailure:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def shards(self) -> list[Shard]:
        return [Shard("a", 0, 1)]

    async def facts(self) -> StreamFacts:
        return StreamFacts("posts", "ACTIVE", "PROVISIONED", 1 << 20, False)


def record(posts: int, received_at: float, attempts: int = 1) -> KinesisRecord:
    """Make a record whose oldest post arrived at this moment of the loop's clock."""
    inside = [Post(b"{}", str(number), b"k", received_at + number) for number in range(posts)]
    return KinesisRecord("lane", "0", b"12345678", inside, SealReason.SIZE, attempts=attempts)


class Rig:
    """Traces at 100 s of the loop's clock, which never moves, with the spans that came of it."""

    def __init__(self, answer: list[RecordResult] | RequestFailure | Exception) -> None:
        self.spans = InMemorySpanExporter()
        self.traces = Traces(Sink(answer), "posts", lambda: 100.0, SimpleSpanProcessor(self.spans), lambda: WALL)

    def seen(self) -> tuple[ReadableSpan, ReadableSpan]:
        """Give the request's span and the one around it."""
        request, whole = self.spans.get_finished_spans()
        return request, whole


async def test_a_request() -> None:
    """Its span stands in one that begins when its oldest post arrived; both say what they carried, and name no post."""
    answer = [RecordResult("a", "1"), RecordResult("a", "2")]
    rig = Rig(answer)
    assert await rig.traces.put([record(3, 99.5), record(2, 98.0, attempts=2)]) == answer
    request, whole = rig.seen()
    assert whole.start_time == int((WALL - 2) * SECOND)
    assert request.start_time == whole.end_time == request.end_time == int(WALL * SECOND)
    assert request.parent is not None
    assert request.parent.span_id == whole.context.span_id
    assert (request.name, whole.name, request.kind) == ("send posts", "carry posts", SpanKind.PRODUCER)
    assert dict(whole.attributes or {}) == {"millrace.posts": 5, "millrace.waited_seconds": 2.0}
    attributes = dict(request.attributes or {})
    assert attributes["messaging.destination.name"] == "posts"
    assert attributes["messaging.batch.message_count"] == 2
    assert (attributes["millrace.bytes"], attributes["millrace.repeats"]) == (24, 1)
    assert request.status.status_code is StatusCode.UNSET
    assert request.resource.attributes["service.name"] == "millrace"


async def test_records_that_were_not_taken() -> None:
    """A request with throttled records is an error of the first one's kind, and says how many there were."""
    rig = Rig([RecordResult("a", "1"), RecordResult(error_code="Throttled"), RecordResult(error_code="Other")])
    await rig.traces.put([record(1, 99.0)] * 3)
    request, _ = rig.seen()
    assert request.status.status_code is StatusCode.ERROR
    assert request.status.description == "2 of 3 records were not taken"
    assert (request.attributes or {})["error.type"] == "Throttled"


async def test_a_request_that_failed() -> None:
    """The whole is an error, with the line that an operator reads elsewhere too."""
    rig = Rig(RequestFailure(FailureKind.UNKNOWN, "Timeout", "no answer"))
    await rig.traces.put([record(1, 99.0)])
    request, _ = rig.seen()
    assert (request.status.status_code, request.status.description) == (StatusCode.ERROR, "no answer")
    assert (request.attributes or {})["error.type"] == "Timeout"


async def test_a_bug_is_let_through() -> None:
    """Spans end, and the exception goes on as it would without them."""
    rig = Rig(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        await rig.traces.put([record(1, 99.0)])
    assert len(rig.seen()) == 2


async def test_the_rest_is_passed_on() -> None:
    """Shards and facts are not traced."""
    rig = Rig([])
    assert await rig.traces.shards() == [Shard("a", 0, 1)]
    assert (await rig.traces.facts()).name == "posts"
    assert rig.spans.get_finished_spans() == ()


async def test_spans_reach_a_collector() -> None:
    """OpenTelemetry's own variable says where it is; what is left at the end is sent."""
    async with collector() as (url, bodies):
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
        try:
            traces = Traces(Sink([RecordResult("a", "1")]), "posts", asyncio.get_running_loop().time)
            await traces.put([record(1, 0.0)])
            await traces.close()
        finally:
            del os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert b"send posts" in b"".join(bodies)
    assert b"millrace" in b"".join(bodies)


def test_off_costs_nothing() -> None:
    """The daemon with all that it imports does not import OpenTelemetry."""
    script = "import sys, service.app; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
