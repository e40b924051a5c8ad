"""
OpenTelemetry traces: the way of posts from their arrival to Kinesis' answer. The only file that knows OpenTelemetry.

It is an extra. Nothing here is imported unless OTEL_EXPORTER_OTLP_ENDPOINT, or its kin for traces, is set, and the
packages of requirements/traces.txt are there. All is configured by OpenTelemetry's own variables, sampling included.

A trace is a PutRecords request: a span for the request itself, inside one that begins when its oldest post arrived. So
what is left of the first one is the time that posts waited. No post is named; the log names them, by the request's
number at debug. Names and attributes are those of the semantic conventions for messaging, where they have any.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context

from service import __version__
from service.core.records import KinesisRecord, RecordResult, RequestFailure, Shard, StreamFacts

# For the last spans, when the process ends; a collector that does not answer must not hold it up.
CLOSE_SECONDS = 2.0
_NANOSECONDS = 1_000_000_000


class Sink(Protocol):
    """What is traced: Kinesis, as the sender sees it."""

    async def put(self, records: Sequence[KinesisRecord]) -> list[RecordResult] | RequestFailure:
        """Send one request; trouble is a value."""

    async def shards(self) -> list[Shard]:
        """List the open shards; trouble is raised."""

    async def facts(self) -> StreamFacts:
        """Describe the stream; trouble is raised."""


class Traces:
    """
    A sink that traces what goes through it to another one.

    Args:
        sink: the other one.
        stream: its name, for the spans.
        clock: the clock of `Post.received_at`.
        processor: where spans go; None for OTLP over HTTP, as OTEL_EXPORTER_OTLP_ENDPOINT and its kin say.
        wall: the time of day, in seconds since 1970.
    """

    def __init__(
        self,
        sink: Sink,
        stream: str,
        clock: Callable[[], float],
        processor: SpanProcessor | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._sink = sink
        self._stream = stream
        self._clock = clock
        self._wall = wall
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            # Neither OTEL_SERVICE_NAME nor OTEL_RESOURCE_ATTRIBUTES has a name for it.
            resource = resource.merge(Resource({"service.name": "millrace"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("millrace", __version__)

    async def put(self, records: Sequence[KinesisRecord]) -> list[RecordResult] | RequestFailure:
        """Send one request through the other sink, and trace it."""
        now = self._wall()
        waited = self._clock() - min(record.posts[0].received_at for record in records)
        posts = sum(len(record.posts) for record in records)
        whole = self._tracer.start_span(
            f"carry {self._stream}",
            start_time=int((now - waited) * _NANOSECONDS),
            attributes={"millrace.posts": posts, "millrace.waited_seconds": round(waited, 3)},
        )
        request = self._tracer.start_span(
            f"send {self._stream}",
            context=set_span_in_context(whole),
            kind=SpanKind.PRODUCER,
            start_time=int(now * _NANOSECONDS),
            attributes=self._attributes(records),
        )
        try:
            answer = await self._sink.put(records)
            _tell(request, answer)
        finally:
            end = int(self._wall() * _NANOSECONDS)
            request.end(end)
            whole.end(end)
        return answer

    async def shards(self) -> list[Shard]:
        """List the open shards."""
        return await self._sink.shards()

    async def facts(self) -> StreamFacts:
        """Describe the stream."""
        return await self._sink.facts()

    async def close(self) -> None:
        """Hand on the last spans, for `CLOSE_SECONDS` at most."""
        # Of its own, and a daemon: the interpreter waits at its end for those of the event loop's executor.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_SECONDS)

    def _attributes(self, records: Sequence[KinesisRecord]) -> Mapping[str, str | int]:
        return {
            "messaging.system": "aws_kinesis",
            "messaging.operation.type": "send",
            "messaging.operation.name": "PutRecords",
            "messaging.destination.name": self._stream,
            "messaging.batch.message_count": len(records),
            "millrace.bytes": sum(record.size for record in records),
            "millrace.repeats": sum(record.attempts > 1 for record in records),
        }


def _tell(span: Span, answer: Sequence[RecordResult] | RequestFailure) -> None:
    if isinstance(answer, RequestFailure):
        span.set_attribute("error.type", answer.code)
        span.set_status(Status(StatusCode.ERROR, answer.message))
        return
    codes = [result.error_code for result in answer if result.error_code]
    if codes:
        span.set_attribute("error.type", codes[0])
        span.set_attribute("millrace.failed_records", len(codes))
        span.set_status(Status(StatusCode.ERROR, f"{len(codes)} of {len(answer)} records were not taken"))
